/* JSON from files that others wrote: cJSON with limits in front of it.
 *
 * cJSON reads numbers as doubles and ends strings at a NUL, so whole numbers are accepted up to
 * 2^53 only and "\u0000" becomes the two bytes C0 80 (which valid UTF-8 never holds): json_text
 * undoes it. Duplicate members are refused where a tree is small; large maps (vocabulary, tensors)
 * are checked by their readers, who build an index anyway. */
#include "worker/json.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Length of the well-formed sequence at p, 0 if there is none (Unicode 15, table 3-7). */
static size_t utf8_sequence(const uint8_t *p, size_t left)
{
    uint8_t a = p[0];
    if (a < 0x80) return 1;
    if (a < 0xc2 || a > 0xf4) return 0;
    size_t need = a < 0xe0 ? 2 : a < 0xf0 ? 3 : 4;
    if (left < need) return 0;
    uint8_t low = a == 0xe0 ? 0xa0 : a == 0xf0 ? 0x90 : 0x80;
    uint8_t high = a == 0xed ? 0x9f : a == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < need; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return need;
}

size_t json_utf8_check(const char *text, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)text;
    size_t i = 0;
    while (i < bytes) {
        uint64_t eight;
        if (bytes - i >= 8 && (memcpy(&eight, p + i, 8), (eight & 0x8080808080808080u) == 0)) {
            i += 8;
            continue;
        }
        size_t n = utf8_sequence(p + i, bytes - i);
        if (n == 0) return i;
        i += n;
    }
    return bytes;
}

/* Depth and escapes, outside and inside of strings; cJSON does the grammar. */
static status scan(const char *file, const char *text, size_t bytes, size_t *out_nuls)
{
    uint32_t depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < bytes; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '"') in_string = false;
            if (c != '\\') continue;
            if (bytes - i > 5 && memcmp(text + i, "\\u0000", 6) == 0) ++*out_nuls;
            i++;
            continue;
        }
        if (c == '\0') return FAIL(INVALID, "%s: a NUL byte at byte %zu", file, i);
        if (c == '"') in_string = true;
        if ((c == '}' || c == ']') && depth > 0) depth--;
        if ((c == '{' || c == '[') && ++depth > JSON_DEPTH_MAX)
            return FAIL(INVALID, "%s: JSON nested deeper than %d at byte %zu", file, JSON_DEPTH_MAX,
                        i);
    }
    return STATUS_OK;
}

/* Members with equal names, in objects small enough to compare all pairs. */
static status check_duplicates(const char *file, const cJSON *node)
{
    int count = cJSON_IsObject(node) ? cJSON_GetArraySize(node) : 0;
    const cJSON *child;
    cJSON_ArrayForEach(child, node)
    {
        if (cJSON_IsObject(child) || cJSON_IsArray(child)) TRY(check_duplicates(file, child));
        if (count == 0 || count > 256) continue;
        for (const cJSON *other = child->next; other; other = other->next)
            if (strcmp(child->string, other->string) == 0)
                return FAIL(INVALID, "%s: the key \"%.80s\" appears twice", file, child->string);
    }
    return STATUS_OK;
}

/* A copy with each \u0000 as C0 80. */
static span replace_nuls(const char *text, size_t bytes, arena *a)
{
    char *copy = arena_alloc(a, bytes, 1);
    size_t used = 0;
    for (size_t i = 0; i < bytes; i++) {
        if (bytes - i < 6 || memcmp(text + i, "\\u0000", 6) != 0) {
            copy[used++] = text[i];
            if (text[i] == '\\' && i + 1 < bytes) copy[used++] = text[++i];
            continue;
        }
        copy[used++] = '\xc0';
        copy[used++] = '\x80';
        i += 5;
    }
    return (span){copy, used};
}

span json_text(const char *text, arena *a)
{
    size_t bytes = strlen(text), used = 0;
    if (!memchr(text, 0xc0, bytes)) return (span){text, bytes};
    char *copy = arena_alloc(a, bytes, 1);
    for (size_t i = 0; i < bytes; i++) {
        copy[used] = text[i];
        if ((uint8_t)text[i] == 0xc0) copy[used] = text[++i] & 0x3f; /* 0x80 becomes 0 */
        used++;
    }
    return (span){copy, used};
}

static status parse_tree(const char *file, span text, cJSON **out_tree)
{
    const char *end = NULL;
    cJSON *tree = cJSON_ParseWithLengthOpts(text.text, text.bytes, &end, 0);
    if (!tree) {
        size_t at = end ? (size_t)(end - text.text) : 0;
        return FAIL(INVALID, "%s: not valid JSON near byte %zu", file, at);
    }
    const char *stop = text.text + text.bytes;
    while (end < stop && strchr(" \t\r\n", *end))
        end++;
    status s = STATUS_OK;
    if (end != stop)
        s = FAIL(INVALID, "%s: more text after the JSON value at byte %zu", file,
                 (size_t)(end - text.text));
    if (s == STATUS_OK) s = check_duplicates(file, tree);
    if (s != STATUS_OK) {
        cJSON_Delete(tree);
        return s;
    }
    *out_tree = tree;
    return STATUS_OK;
}

status json_parse(const char *file, const char *text, size_t bytes, cJSON **out_tree)
{
    CHECK(file && text && out_tree);
    size_t bad = json_utf8_check(text, bytes), nuls = 0;
    if (bad != bytes) return FAIL(INVALID, "%s: invalid UTF-8 at byte %zu", file, bad);
    TRY(scan(file, text, bytes, &nuls));
    if (nuls == 0) return parse_tree(file, (span){text, bytes}, out_tree);
    arena *a = arena_create("json");
    status s = parse_tree(file, replace_nuls(text, bytes, a), out_tree);
    arena_destroy(a);
    return s;
}

void json_free(cJSON *tree)
{
    cJSON_Delete(tree);
}

static status read_all(int fd, const char *path, char *text, size_t bytes)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t n = read(fd, text + done, bytes - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return FAIL(IO, "%s: cannot read: %s", path, strerror(errno));
        if (n == 0) return FAIL(IO, "%s: became shorter while it was read", path);
        done += (size_t)n;
    }
    return STATUS_OK;
}

status json_file_read(const char *path, size_t bytes_max, arena *a, char **out_text,
                      size_t *out_bytes)
{
    CHECK(path && a && out_text && out_bytes);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) return FAIL(NOT_FOUND, "%s: no such file", path);
    if (fd < 0) return FAIL(IO, "%s: cannot open: %s", path, strerror(errno));
    struct stat st;
    status s = STATUS_OK;
    if (fstat(fd, &st) != 0)
        s = FAIL(IO, "%s: cannot stat: %s", path, strerror(errno));
    else if (!S_ISREG(st.st_mode))
        s = FAIL(INVALID, "%s: not a regular file", path);
    else if ((uint64_t)st.st_size > bytes_max)
        s = FAIL(INVALID, "%s: %lld bytes, more than the %zu such a file may have", path,
                 (long long)st.st_size, bytes_max);
    if (s == STATUS_OK) {
        size_t bytes = (size_t)st.st_size;
        char *text = arena_alloc(a, bytes + 1, 1);
        s = read_all(fd, path, text, bytes);
        if (s == STATUS_OK) {
            *out_text = text;
            *out_bytes = bytes;
        }
    }
    close(fd);
    return s;
}

status json_file_parse(const char *path, size_t bytes_max, cJSON **out_tree)
{
    arena *a = arena_create("json file");
    char *text = NULL;
    size_t bytes = 0;
    cJSON *tree = NULL;
    status s = json_file_read(path, bytes_max, a, &text, &bytes);
    if (s == STATUS_OK) s = json_parse(path, text, bytes, &tree);
    arena_destroy(a);
    if (s != STATUS_OK) return s;
    if (!cJSON_IsObject(tree)) {
        cJSON_Delete(tree);
        return FAIL(INVALID, "%s: must hold a JSON object", path);
    }
    *out_tree = tree;
    return STATUS_OK;
}

const cJSON *json_get(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

bool json_whole(const cJSON *item, uint64_t *out_value)
{
    if (!cJSON_IsNumber(item)) return false;
    double v = item->valuedouble;
    if (!(v >= 0 && v <= 9007199254740992.0) || v != floor(v)) return false;
    *out_value = (uint64_t)v;
    return true;
}

status json_u32(json_in in, const char *key, uint32_t min, uint32_t max, const uint32_t *fallback,
                uint32_t *out_value)
{
    const cJSON *item = json_get(in.object, key);
    if (!item && !fallback) return FAIL(INVALID, "%s: the key \"%s\" is missing", in.file, key);
    if (!item) {
        *out_value = *fallback;
        return STATUS_OK;
    }
    uint64_t v;
    if (!json_whole(item, &v) || v < min || v > max)
        return FAIL(INVALID, "%s: \"%s\" must be a whole number from %u to %u", in.file, key, min,
                    max);
    *out_value = (uint32_t)v;
    return STATUS_OK;
}

status json_f64(json_in in, const char *key, double min, double max, const double *fallback,
                double *out_value)
{
    const cJSON *item = json_get(in.object, key);
    if (!item && !fallback) return FAIL(INVALID, "%s: the key \"%s\" is missing", in.file, key);
    if (!item) {
        *out_value = *fallback;
        return STATUS_OK;
    }
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= min && item->valuedouble <= max))
        return FAIL(INVALID, "%s: \"%s\" must be a number from %g to %g", in.file, key, min, max);
    *out_value = item->valuedouble;
    return STATUS_OK;
}

status json_bool(json_in in, const char *key, const bool *fallback, bool *out_value)
{
    const cJSON *item = json_get(in.object, key);
    if (!item && !fallback) return FAIL(INVALID, "%s: the key \"%s\" is missing", in.file, key);
    if (item && !cJSON_IsBool(item))
        return FAIL(INVALID, "%s: \"%s\" must be true or false", in.file, key);
    *out_value = item ? cJSON_IsTrue(item) : *fallback;
    return STATUS_OK;
}

status json_string(json_in in, const char *key, const char *fallback, const char **out_value)
{
    const cJSON *item = json_get(in.object, key);
    if (!item && !fallback) return FAIL(INVALID, "%s: the key \"%s\" is missing", in.file, key);
    if (item && !cJSON_IsString(item))
        return FAIL(INVALID, "%s: \"%s\" must be a string", in.file, key);
    *out_value = item ? item->valuestring : fallback;
    return STATUS_OK;
}
