/* worker/json.h - JSON files from outside, read with limits and refused with one sentence.
 *
 * A thin layer over cJSON: nesting, size and UTF-8 are checked before the tree is built, and the
 * getters say which file and which key is wrong.
 *
 * Threads: any, one at a time a tree. Memory: a tree belongs to the caller (json_free). */
#ifndef WORKER_JSON_H
#define WORKER_JSON_H

#include "proto/base.h"
#include "worker/span.h"

#include <cjson/cJSON.h>

enum { JSON_DEPTH_MAX = 32 };

/* Parse all of text; only white space may follow the value. `file` is named in sentences. INVALID.
 */
status json_parse(const char *file, const char *text, size_t bytes, cJSON **out_tree);
/* The characters of a string or key of a tree. NULs (\u0000) are the bytes C0 80 in the tree, so
 * that C strings stay whole; here they are NULs. A view, or memory of `a` where there are any. */
span json_text(const char *text, arena *a);
void json_free(cJSON *tree); /* NULL is fine */

/* A regular file into memory of `a` (a NUL follows the bytes). NOT_FOUND, INVALID (too large), IO.
 */
status json_file_read(const char *path, size_t bytes_max, arena *a, char **out_text,
                      size_t *out_bytes);
/* Both in one; the top must be an object. */
status json_file_parse(const char *path, size_t bytes_max, cJSON **out_tree);

/* Byte offset of the first byte that is not well-formed UTF-8, or `bytes`. */
size_t json_utf8_check(const char *text, size_t bytes);

/* Members of an object. A member that is null counts as absent. */
const cJSON *json_get(const cJSON *object, const char *key);

/* What a getter needs to name in its sentence. */
typedef struct json_in {
    const char *file;
    const cJSON *object;
} json_in;

/* With `fallback` NULL the key is required. INVALID names file, key and what was expected. */
status json_u32(json_in in, const char *key, uint32_t min, uint32_t max, const uint32_t *fallback,
                uint32_t *out_value);
status json_f64(json_in in, const char *key, double min, double max, const double *fallback,
                double *out_value);
status json_bool(json_in in, const char *key, const bool *fallback, bool *out_value);
/* out points into the tree. */
status json_string(json_in in, const char *key, const char *fallback, const char **out_value);

/* Whole numbers up to 2^53; false for anything else (fractions, negatives, infinities, strings). */
bool json_whole(const cJSON *item, uint64_t *out_value);

#endif
