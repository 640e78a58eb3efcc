/* What a tokenizer searches for: a literal, or a regular expression run by PCRE2.
 *
 * Files are written for Oniguruma (Ruby syntax, UTF-8). PCRE2 with UTF and UCP means the same by
 * most constructs. Translated: \s and \S (Unicode White_Space), \w and \W (Unicode's word
 * characters). Refused, since they mean something else or nothing: \h, \H, && in a class, (?m), \W
 * in a class. */
#include "worker/tokenizer_impl.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

struct pattern {
    const char *literal; /* else a regular expression */
    size_t literal_bytes;
    pcre2_code *code;
    pcre2_match_data *match;
};

status pattern_create_literal(arena *a, span text, pattern **out_pattern)
{
    pattern *p = ARENA_NEW(a, pattern, 1);
    text = span_copy(a, text);
    p->literal = text.text;
    p->literal_bytes = text.bytes;
    *out_pattern = p;
    return STATUS_OK;
}

static const char word_class[] = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";

/* One escape at text[0] == '\\'. Returns what stands for it, NULL: itself. */
static const char *translate_escape(const char *text, bool in_class)
{
    switch (text[1]) {
    case 's':
        return "\\p{White_Space}";
    case 'S':
        return "\\P{White_Space}";
    case 'w':
        return in_class ? word_class : "[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    case 'W':
        return in_class ? NULL : "[^\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}]";
    default:
        return NULL;
    }
}

/* What cannot be carried over at this place, NULL: nothing. */
static const char *refuse(const char *text, bool in_class)
{
    if (text[0] == '\\' && (text[1] == 'h' || text[1] == 'H')) return "\\h";
    if (text[0] == '\\' && text[1] == 'W' && in_class) return "\\W in a class";
    if (in_class && text[0] == '&' && text[1] == '&') return "&& in a class";
    if (!in_class && strncmp(text, "(?m", 3) == 0) return "(?m";
    return NULL;
}

static status translate(arena *a, const char *file, const char *text, char **out)
{
    size_t bytes = strlen(text), used = 0;
    char *to = arena_alloc(a, bytes * 24 + 1, 1); /* the longest translation of two bytes is 46 */
    bool in_class = false;
    size_t class_at = 0;
    for (size_t i = 0; i < bytes; i++) {
        const char *bad = refuse(text + i, in_class);
        if (bad)
            return FAIL(UNSUPPORTED, "%s: the regular expression \"%.120s\" uses %s", file, text,
                        bad);
        if (text[i] == '\\' && i + 1 < bytes) {
            const char *other = translate_escape(text + i, in_class);
            size_t n = other ? strlen(other) : 2;
            memcpy(to + used, other ? other : text + i, n);
            used += n;
            i++;
            continue;
        }
        if (!in_class && text[i] == '[') {
            in_class = true;
            class_at = i + 1 + (text[i + 1] == '^');
        } else if (in_class && text[i] == '[') {
            if (text[i + 1] != ':')
                return FAIL(UNSUPPORTED, "%s: the regular expression \"%.120s\" nests classes",
                            file, text);
            const char *end = strstr(text + i, ":]");
            size_t n = end ? (size_t)(end + 2 - (text + i)) : 1;
            memcpy(to + used, text + i, n);
            used += n;
            i += n - 1;
            continue;
        } else if (in_class && text[i] == ']' && i > class_at) {
            in_class = false;
        }
        to[used++] = text[i];
    }
    to[used] = '\0';
    *out = to;
    return STATUS_OK;
}

status pattern_create_regex(arena *a, const char *file, const char *text, pattern **out_pattern)
{
    char *translated = NULL;
    if (strlen(text) > 1 << 16)
        return FAIL(INVALID, "%s: a regular expression longer than 64 KiB", file);
    TRY(translate(a, file, text, &translated));
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    CHECK(context);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE at = 0;
    pcre2_code *code = pcre2_compile(
        (PCRE2_SPTR)translated, PCRE2_ZERO_TERMINATED,
        PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &at, context);
    pcre2_compile_context_free(context);
    if (!code) {
        PCRE2_UCHAR why[160];
        (void)pcre2_get_error_message(error, why, sizeof why);
        return FAIL(INVALID, "%s: the regular expression \"%.120s\" is refused: %s", file, text,
                    (const char *)why);
    }
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without JIT it is only slower */
    pattern *p = ARENA_NEW(a, pattern, 1);
    p->code = code;
    p->match = pcre2_match_data_create(1, NULL);
    CHECK(p->match);
    *out_pattern = p;
    return STATUS_OK;
}

status pattern_create(arena *a, const char *file, const cJSON *item, pattern **out_pattern)
{
    const cJSON *literal = json_get(item, "String"), *regex = json_get(item, "Regex");
    if (cJSON_IsString(literal))
        return pattern_create_literal(a, json_text(literal->valuestring, a), out_pattern);
    if (cJSON_IsString(regex))
        return pattern_create_regex(a, file, regex->valuestring, out_pattern);
    return FAIL(INVALID, "%s: a \"pattern\" must hold \"String\" or \"Regex\"", file);
}

void pattern_release(pattern *p)
{
    if (!p) return;
    if (p->match) pcre2_match_data_free(p->match);
    if (p->code) pcre2_code_free(p->code);
}

static bool find_literal(const pattern *p, span in, size_t from, size_t *out_begin, size_t *out_end)
{
    if (p->literal_bytes == 0) return false;
    const char *at = memmem(in.text + from, in.bytes - from, p->literal, p->literal_bytes);
    if (!at) return false;
    *out_begin = (size_t)(at - in.text);
    *out_end = *out_begin + p->literal_bytes;
    return true;
}

status pattern_find(pattern *p, span in, size_t from, bool *out_found, size_t *out_begin,
                    size_t *out_end)
{
    CHECK(from <= in.bytes);
    if (p->literal) {
        *out_found = find_literal(p, in, from, out_begin, out_end);
        return STATUS_OK;
    }
    PCRE2_SPTR text = (PCRE2_SPTR)in.text;
    int n = pcre2_match(p->code, text, in.bytes, from, PCRE2_NO_UTF_CHECK, p->match, NULL);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT)
        n = pcre2_match(p->code, text, in.bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, p->match,
                        NULL);
    if (n < 0 && n != PCRE2_ERROR_NOMATCH)
        return FAIL(INVALID,
                    "the tokenizer's regular expression gave up on this text (PCRE2 error %d)", n);
    *out_found = n >= 0;
    if (n >= 0) {
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(p->match);
        *out_begin = v[0];
        *out_end = v[1];
    }
    return STATUS_OK;
}
