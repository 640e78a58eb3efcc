/* The normaliser: steps that turn text into text before it is cut into words.
 *
 * Unicode forms and categories come from utf8proc (Unicode 15). Its canonical ordering is quadratic
 * in a run of combining marks, so longer runs than any writing system needs are refused. */
#include "worker/tokenizer_impl.h"

#include <string.h>
#include <utf8proc.h>

enum { MARKS_MAX = 1024 };

static status parse_replace(arena *a, const char *file, const cJSON *item, normal_step *s)
{
    s->kind = STEP_REPLACE;
    TRY(json_string((json_in){file, item}, "content", NULL, &s->text));
    s->text = arena_string(a, s->text);
    return pattern_create(a, file, json_get(item, "pattern"), &s->find);
}

static status parse_step(arena *a, const char *file, const cJSON *item, const char *type,
                         normal_step *s)
{
    static const struct {
        const char *name;
        step_kind kind;
    } plain[] = {{"NFC", STEP_NFC},
                 {"NFD", STEP_NFD},
                 {"NFKC", STEP_NFKC},
                 {"NFKD", STEP_NFKD},
                 {"Lowercase", STEP_LOWERCASE}};
    for (size_t i = 0; i < sizeof plain / sizeof plain[0]; i++) {
        if (strcmp(type, plain[i].name) != 0) continue;
        s->kind = plain[i].kind;
        return STATUS_OK;
    }
    if (strcmp(type, "Replace") == 0) return parse_replace(a, file, item, s);
    if (strcmp(type, "Prepend") == 0) {
        s->kind = STEP_PREPEND;
        TRY(json_string((json_in){file, item}, "prepend", NULL, &s->text));
        s->text = arena_string(a, s->text);
        return STATUS_OK;
    }
    if (strcmp(type, "Strip") == 0) {
        const bool yes = true;
        s->kind = STEP_STRIP;
        TRY(json_bool((json_in){file, item}, "strip_left", &yes, &s->left));
        return json_bool((json_in){file, item}, "strip_right", &yes, &s->right);
    }
    return unsupported_type(file, "normalizer", type);
}

status normalizer_parse(arena *a, const char *file, const cJSON *item, normalizer *n)
{
    if (!item) return STATUS_OK;
    const char *type = NULL;
    TRY(json_string((json_in){file, item}, "type", NULL, &type));
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *list = json_get(item, "normalizers"), *each;
        if (!cJSON_IsArray(list)) return FAIL(INVALID, "%s: \"normalizers\" must be a list", file);
        cJSON_ArrayForEach(each, list) TRY(normalizer_parse(a, file, each, n));
        return STATUS_OK;
    }
    if (n->count == TOKENIZER_STEPS_MAX)
        return FAIL(UNSUPPORTED, "%s: more than %d normalizers", file, TOKENIZER_STEPS_MAX);
    return parse_step(a, file, item, type, &n->steps[n->count++]);
}

void normalizer_release(normalizer *n)
{
    for (uint32_t i = 0; i < n->count; i++)
        pattern_release(n->steps[i].find);
}

static bool is_ascii(span s)
{
    unsigned char all = 0;
    for (size_t i = 0; i < s.bytes; i++)
        all |= (unsigned char)s.text[i];
    return all < 0x80;
}

static status check_marks(span in)
{
    uint32_t run = 0;
    for (size_t i = 0; i < in.bytes;) {
        int32_t code;
        i += utf8_next(in.text + i, &code);
        bool mark = code >= 0x300 && utf8proc_get_property(code)->combining_class != 0;
        run = mark ? run + 1 : 0;
        if (run > MARKS_MAX)
            return FAIL(INVALID, "more than %d combining marks in a row, near byte %zu", MARKS_MAX,
                        i);
    }
    return STATUS_OK;
}

static status run_unicode(step_kind kind, span in, arena *a, span *out)
{
    *out = in;
    if (is_ascii(in)) return STATUS_OK; /* every form leaves ASCII alone */
    TRY(check_marks(in));
    utf8proc_option_t options = UTF8PROC_STABLE;
    options |= kind == STEP_NFC || kind == STEP_NFKC ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE;
    if (kind == STEP_NFKC || kind == STEP_NFKD) options |= UTF8PROC_COMPAT;
    const utf8proc_uint8_t *text = (const utf8proc_uint8_t *)in.text;
    utf8proc_ssize_t n = utf8proc_decompose(text, (utf8proc_ssize_t)in.bytes, NULL, 0, options);
    if (n < 0) return FAIL(INVALID, "text cannot be normalised: %s", utf8proc_errmsg(n));
    /* utf8proc_reencode writes UTF-8 and a NUL over the code points. */
    utf8proc_int32_t *codes = arena_alloc(a, ((size_t)n + 1) * sizeof *codes, alignof(int32_t));
    n = utf8proc_decompose(text, (utf8proc_ssize_t)in.bytes, codes, n, options);
    if (n >= 0) n = utf8proc_reencode(codes, n, options);
    if (n < 0) return FAIL(INVALID, "text cannot be normalised: %s", utf8proc_errmsg(n));
    *out = (span){(const char *)codes, (size_t)n};
    return STATUS_OK;
}

static void run_lowercase(span in, arena *a, span *out)
{
    /* No lower case is longer than half again its original (U+0130 and U+023A grow by one of two).
     */
    buffer b = {0};
    buffer_reserve(&b, a, in.bytes * 2 + 4);
    for (size_t i = 0; i < in.bytes;) {
        int32_t code;
        i += utf8_next(in.text + i, &code);
        if (code == 0x130) { /* the only one whose lower case is two characters */
            buffer_append(&b, "i\xcc\x87", 3);
            continue;
        }
        b.bytes += utf8_put(utf8proc_tolower(code), b.data + b.bytes);
    }
    *out = (span){b.data, b.bytes};
}

static void run_prepend(const char *text, span in, arena *a, span *out)
{
    if (in.bytes == 0) {
        *out = in;
        return;
    }
    size_t n = strlen(text);
    buffer b = {0};
    buffer_reserve(&b, a, n + in.bytes);
    buffer_append(&b, text, n);
    buffer_append(&b, in.text, in.bytes);
    *out = (span){b.data, b.bytes};
}

/* Two passes: count the matches, then copy. */
static status run_replace(const normal_step *s, span in, arena *a, span *out)
{
    size_t with = strlen(s->text), matches = 0, removed = 0, begin = 0, end = 0;
    bool found = true;
    for (size_t from = 0; from<in.bytes; from = end> begin ? end : end + 1) {
        TRY(pattern_find(s->find, in, from, &found, &begin, &end));
        if (!found) break;
        if (end == begin) return FAIL(UNSUPPORTED, "a normalizer's pattern matches the empty text");
        matches++;
        removed += end - begin;
    }
    *out = in;
    if (matches == 0) return STATUS_OK;
    buffer b = {0};
    buffer_reserve(&b, a, in.bytes - removed + matches * with + 1);
    size_t at = 0;
    while (matches-- > 0) {
        TRY(pattern_find(s->find, in, at, &found, &begin, &end));
        CHECK(found);
        buffer_append(&b, in.text + at, begin - at);
        buffer_append(&b, s->text, with);
        at = end;
    }
    buffer_append(&b, in.text + at, in.bytes - at);
    *out = (span){b.data, b.bytes};
    return STATUS_OK;
}

bool unicode_space(const char *p)
{
    int32_t c;
    (void)utf8_next(p, &c);
    if (c <= 0x20) return c == ' ' || (c >= 9 && c <= 13);
    utf8proc_category_t k = utf8proc_category(c);
    return c == 0x85 || k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL ||
           k == UTF8PROC_CATEGORY_ZP;
}

static void run_strip(const normal_step *s, span in, span *out)
{
    size_t begin = 0, end = 0; /* end: after the last character that is no space */
    bool leading = s->left;
    for (size_t i = 0; i < in.bytes;) {
        int32_t code;
        size_t next = i + utf8_next(in.text + i, &code);
        bool space = unicode_space(in.text + i);
        if (leading && space) begin = next;
        leading = leading && space;
        if (!space) end = next;
        i = next;
    }
    if (!s->right || end < begin) end = s->right ? begin : in.bytes;
    *out = (span){in.text + begin, end - begin};
}

status normalizer_run(const normalizer *n, span in, arena *a, span *out)
{
    span now = in;
    for (uint32_t i = 0; i < n->count; i++) {
        const normal_step *s = &n->steps[i];
        switch (s->kind) {
        case STEP_LOWERCASE:
            run_lowercase(now, a, &now);
            break;
        case STEP_PREPEND:
            run_prepend(s->text, now, a, &now);
            break;
        case STEP_REPLACE:
            TRY(run_replace(s, now, a, &now));
            break;
        case STEP_STRIP:
            run_strip(s, now, &now);
            break;
        default:
            TRY(run_unicode(s->kind, now, a, &now));
        }
    }
    *out = now;
    return STATUS_OK;
}
