/* worker/text.h - a growing piece of text, and JSON written into it.
 *
 * Flow:    decode, eval -> [text] -> an output line, a summary.
 * Threads: one owner.
 * Memory:  bytes live in the caller's arena; growing doubles, so what is left behind is at most as
 *          much again. */
#ifndef WORKER_TEXT_H
#define WORKER_TEXT_H

#include "proto/proto.h"

typedef struct text {
    arena *memory;
    char *bytes; /* a NUL follows; NULL until the first byte */
    size_t count, room;
} text;

void text_start(text *t, arena *memory);
/* Room for `count` more bytes and a NUL; returns where they go. */
char *text_reserve(text *t, size_t count);
void text_add(text *t, const char *bytes, size_t count);
void text_add_string(text *t, const char *string);
void text_format(text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* "bytes" with quotes and escapes; bytes must be UTF-8. */
void text_quote(text *t, const char *bytes, size_t count);
void text_quote_string(text *t, const char *string); /* NULL: null */
/* Up to six significant digits, never NaN or infinity (null). */
void text_number(text *t, double value);
/* "name": with a comma before it unless it is the first member of its object or array. */
void text_key(text *t, const char *name);

#endif
