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

/* Oniguruma's word characters; outside a class it also takes the six of Latin-1 that are numbers.
 */
#define WORD       "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_ALONE WORD "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}"

/* What a construct is called in PCRE2, where the names or their meaning differ. */
static const struct rewrite {
    const char *from, *alone, *in_class; /* in_class NULL: refused there */
} rewrites[] = {
    {"\\s", "\\p{White_Space}", "\\p{White_Space}"},
    {"\\S", "\\P{White_Space}", "\\P{White_Space}"},
    {"\\w", "[" WORD_ALONE "]", WORD},
    {"\\W", "[^" WORD_ALONE "]", NULL},
    {"\\h", NULL, NULL}, /* a hexadecimal digit there, a blank here */
    {"\\H", NULL, NULL},
    {"&&", "&&", NULL}, /* intersection of classes */
    {"[:alpha:]", "[:alpha:]", "\\p{Alphabetic}"},
    {"[:alnum:]", "[:alnum:]", "\\p{Alphabetic}\\p{Nd}"},
    {"[:digit:]", "[:digit:]", "\\p{Nd}"},
    {"[:lower:]", "[:lower:]", "\\p{Lowercase}"},
    {"[:upper:]", "[:upper:]", "\\p{Uppercase}"},
    {"[:punct:]", "[:punct:]", "\\p{P}\\p{S}"},
    {"[:space:]", "[:space:]", "\\p{White_Space}"},
    {"[:word:]", "[:word:]", WORD},
    {"[:cntrl:]", "[:cntrl:]", "[:cntrl:]"},
    {"[:xdigit:]", "[:xdigit:]", "[:xdigit:]"},
};

typedef struct translation {
    const char *file, *text;
    size_t at;
    bool in_class;
    size_t class_at; /* a ] here is a character */
    buffer out;
} translation;

static status refused(const translation *t, const char *what)
{
    return FAIL(UNSUPPORTED, "%s: the regular expression \"%.120s\" uses %s", t->file, t->text,
                what);
}

static void write_text(translation *t, const char *text, size_t bytes)
{
    buffer_append(&t->out, text, bytes);
}

static bool is_script(const char *name, size_t bytes)
{
    char property[64];
    int error = 0;
    PCRE2_SIZE at = 0;
    int n = snprintf(property, sizeof property, "\\p{sc:%.*s}", (int)bytes, name);
    if (bytes < 3 || n < 0 || (size_t)n >= sizeof property) return false;
    pcre2_code *code =
        pcre2_compile((PCRE2_SPTR)property, PCRE2_ZERO_TERMINATED, PCRE2_UTF, &error, &at, NULL);
    if (code) pcre2_code_free(code);
    return code != NULL;
}

/* \p{Han} is the script there and its extensions here. */
static void translate_property(translation *t)
{
    const char *name = t->text + t->at + 3, *end = strchr(name, '}');
    write_text(t, t->text + t->at, 3);
    t->at += 3;
    if (*name == '^') write_text(t, name++, 1);
    size_t bytes = end ? (size_t)(end - name) : 0;
    if (is_script(name, bytes)) write_text(t, "sc:", 3);
    write_text(t, name, bytes);
    t->at = (size_t)(name - t->text) + bytes;
}

/* (?m) lets a dot match a newline there, which is (?s) here. */
static bool multiline_option(const char *text)
{
    if (text[0] != '(' || text[1] != '?') return false;
    size_t letters = strspn(text + 2, "imsx-");
    return memchr(text + 2, 'm', letters) != NULL;
}

static void translate_bracket(translation *t)
{
    char c = t->text[t->at];
    if (!t->in_class && c == '[') {
        t->in_class = true;
        t->class_at = t->at + 1 + (t->text[t->at + 1] == '^');
    } else if (t->in_class && c == ']' && t->at > t->class_at) {
        t->in_class = false;
    }
    write_text(t, &c, 1);
    t->at++;
}

static status translate_one(translation *t)
{
    const char *here = t->text + t->at;
    for (size_t i = 0; i < sizeof rewrites / sizeof rewrites[0]; i++) {
        const struct rewrite *r = &rewrites[i];
        size_t n = strlen(r->from);
        if (strncmp(here, r->from, n) != 0) continue;
        const char *to = t->in_class ? r->in_class : r->alone;
        if (!to) return refused(t, r->from);
        if (!t->in_class && here[0] == '[') break; /* a class that begins with a colon */
        write_text(t, to, strlen(to));
        t->at += n;
        return STATUS_OK;
    }
    if ((here[0] == '\\') && (here[1] == 'p' || here[1] == 'P') && here[2] == '{') {
        translate_property(t);
        return STATUS_OK;
    }
    if (here[0] == '\\' && here[1] != '\0') {
        write_text(t, here, 2);
        t->at += 2;
        return STATUS_OK;
    }
    if (!t->in_class && multiline_option(here)) return refused(t, "(?m");
    if (t->in_class && here[0] == '[')
        return refused(t, here[1] == ':' ? "a bracket expression that is not known"
                                         : "nested classes");
    translate_bracket(t);
    return STATUS_OK;
}

static status translate(arena *a, const char *file, const char *text, char **out)
{
    translation t = {.file = file, .text = text};
    size_t bytes = strlen(text);
    buffer_reserve(&t.out, a, 40 * bytes + 1); /* \w is the longest: 2 bytes become 76 */
    while (t.at < bytes)
        TRY(translate_one(&t));
    t.out.data[t.out.bytes] = '\0';
    *out = t.out.data;
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
