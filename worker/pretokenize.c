/* The pre-tokenizer: stages that cut a piece of text into words and rewrite them.
 *
 * Each stage sees one piece at a time and hands its parts to the next (depth first), so memory is
 * one buffer a stage and not a list of every word of the text. Composite types are taken apart when
 * the file is read: ByteLevel = a space in front, a split, bytes as characters. */
#include "worker/tokenizer_impl.h"

#include <string.h>
#include <utf8proc.h>

/* GPT-2's split (Radford et al. 2019), which ByteLevel applies with use_regex. */
static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/* Whitespace is \w+|[^\w\s]+ of Rust's regex crate, whose word characters are UNICODE_WORD. */
static const char whitespace_regex[] = "[" UNICODE_WORD "]+|[^" UNICODE_WORD "\\s]+";

/* ---- reading the file ------------------------------------------------------------------------ */

static status add_stage(const char *file, pretokenizer *p, stage **out_stage)
{
    if (p->count == TOKENIZER_STEPS_MAX)
        return FAIL(UNSUPPORTED, "%s: more than %d pre_tokenizer stages", file,
                    TOKENIZER_STEPS_MAX);
    *out_stage = &p->stages[p->count++];
    return STATUS_OK;
}

static status parse_behavior(json_in in, const char *fallback, split_behavior *out)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = NULL;
    TRY(json_string(in, "behavior", fallback, &name));
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *out = (split_behavior)i;
        return STATUS_OK;
    }
    return FAIL(UNSUPPORTED, "%s: the split behavior \"%.40s\" is not supported", in.file, name);
}

static status add_regex(arena *a, const char *file, const char *text, bool invert,
                        split_behavior behavior, pretokenizer *p)
{
    stage *s = NULL;
    TRY(add_stage(file, p, &s));
    s->kind = STAGE_SPLIT;
    s->invert = invert;
    s->behavior = behavior;
    return pattern_create_regex(a, file, text, &s->pattern);
}

static status parse_byte_level(arena *a, json_in in, pretokenizer *p)
{
    const bool yes = true;
    bool prefix, regex;
    stage *s = NULL;
    TRY(json_bool(in, "add_prefix_space", &yes, &prefix));
    TRY(json_bool(in, "use_regex", &yes, &regex));
    if (prefix) {
        TRY(add_stage(in.file, p, &s));
        s->kind = STAGE_PREFIX;
    }
    if (regex) TRY(add_regex(a, in.file, gpt2_regex, false, SPLIT_ISOLATED, p));
    TRY(add_stage(in.file, p, &s));
    s->kind = STAGE_BYTES;
    return STATUS_OK;
}

static status parse_split(arena *a, json_in in, pretokenizer *p)
{
    stage *s = NULL;
    const bool no = false;
    TRY(add_stage(in.file, p, &s));
    s->kind = STAGE_SPLIT;
    TRY(json_bool(in, "invert", &no, &s->invert));
    TRY(parse_behavior(in, NULL, &s->behavior));
    return pattern_create(a, in.file, json_get(in.object, "pattern"), &s->pattern);
}

static status parse_class(json_in in, char_class class, split_behavior behavior, pretokenizer *p)
{
    stage *s = NULL;
    TRY(add_stage(in.file, p, &s));
    *s = (stage){.kind = STAGE_CLASS, .class = class, .behavior = behavior};
    return STATUS_OK;
}

static status parse_metaspace(arena *a, json_in in, pretokenizer *p)
{
    static const char *const schemes[] = {"never", "first", "always"};
    const char *text = NULL, *scheme = NULL;
    const bool yes = true;
    bool prefix, split;
    stage *s = NULL;
    TRY(json_string(in, "replacement", NULL, &text));
    TRY(json_bool(in, "add_prefix_space", &yes, &prefix));
    TRY(json_string(in, "prepend_scheme", prefix ? "always" : "never", &scheme));
    TRY(json_bool(in, "split", &yes, &split));
    TRY(add_stage(in.file, p, &s));
    s->kind = STAGE_METASPACE;
    s->replacement = arena_string(a, text);
    int32_t code;
    if (text[0] == '\0' || text[utf8_next(text, &code)] != '\0')
        return FAIL(INVALID, "%s: Metaspace \"replacement\" must be one character", in.file);
    int known = 0;
    while (known < 3 && strcmp(scheme, schemes[known]) != 0)
        known++;
    if (known == 3)
        return FAIL(UNSUPPORTED, "%s: Metaspace \"prepend_scheme\" \"%.40s\" is not supported",
                    in.file, scheme);
    s->scheme = (prefix_scheme)known;
    if (!split) return STATUS_OK;
    TRY(add_stage(in.file, p, &s));
    s->kind = STAGE_SPLIT;
    s->behavior = SPLIT_MERGED_WITH_NEXT;
    return pattern_create_literal(a, (span){text, strlen(text)}, &s->pattern);
}

status pretokenizer_parse(arena *a, const char *file, const cJSON *item, pretokenizer *p)
{
    if (!item) return STATUS_OK;
    json_in in = {file, item};
    const char *type = NULL;
    TRY(json_string(in, "type", NULL, &type));
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *list = json_get(item, "pretokenizers"), *each;
        if (!cJSON_IsArray(list))
            return FAIL(INVALID, "%s: \"pretokenizers\" must be a list", file);
        cJSON_ArrayForEach(each, list) TRY(pretokenizer_parse(a, file, each, p));
        return STATUS_OK;
    }
    if (strcmp(type, "ByteLevel") == 0) return parse_byte_level(a, in, p);
    if (strcmp(type, "Split") == 0) return parse_split(a, in, p);
    if (strcmp(type, "Metaspace") == 0) return parse_metaspace(a, in, p);
    if (strcmp(type, "Whitespace") == 0)
        return add_regex(a, file, whitespace_regex, true, SPLIT_REMOVED, p);
    if (strcmp(type, "WhitespaceSplit") == 0) return parse_class(in, CLASS_SPACE, SPLIT_REMOVED, p);
    if (strcmp(type, "Punctuation") == 0) {
        split_behavior behavior;
        TRY(parse_behavior(in, "Isolated", &behavior));
        return parse_class(in, CLASS_PUNCTUATION, behavior, p);
    }
    if (strcmp(type, "Digits") == 0) {
        const bool no = false;
        bool each;
        TRY(json_bool(in, "individual_digits", &no, &each));
        return parse_class(in, CLASS_NUMERIC, each ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS, p);
    }
    return unsupported_type(file, "pre_tokenizer", type);
}

void pretokenizer_release(pretokenizer *p)
{
    for (uint32_t i = 0; i < p->count; i++)
        pattern_release(p->stages[i].pattern);
}

/* ---- bytes as characters --------------------------------------------------------------------- */

/* Printable Latin-1 stands for itself, the other 68 bytes for U+0100 and up, in order. */
static bool stands_for_itself(uint32_t c)
{
    return (c >= '!' && c <= '~') || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
}

int32_t byte_to_char(uint8_t byte)
{
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100 + byte;
    if (byte <= 0xa0) return 0x121 + (byte - 0x7f);
    return 0x143; /* 0xad */
}

int32_t char_to_byte(int32_t code)
{
    if (code >= 0 && code < 0x100) return stands_for_itself((uint32_t)code) ? code : -1;
    if (code >= 0x100 && code <= 0x120) return code - 0x100;
    if (code >= 0x121 && code <= 0x142) return code - 0x121 + 0x7f;
    return code == 0x143 ? 0xad : -1;
}

/* ---- running --------------------------------------------------------------------------------- */

typedef struct piece {
    span s;
    bool first;
} piece;

static status run_stage(const pretokenizer *p, uint32_t index, piece in, word_sink *sink);

/* Parts of a piece on their way to the next stage, put together as the split's behavior says. */
typedef struct splitter {
    const pretokenizer *p;
    uint32_t next;
    word_sink *sink;
    piece in;
    split_behavior behavior;
    size_t begin, end; /* the part held back, begin == end: none */
    bool held_match, previous_match;
} splitter;

static status emit(splitter *s, size_t begin, size_t end)
{
    if (begin == end) return STATUS_OK;
    piece part = {.s = {s->in.s.text + begin, end - begin}, .first = s->in.first && begin == 0};
    return run_stage(s->p, s->next, part, s->sink);
}

static status flush(splitter *s)
{
    size_t begin = s->begin, end = s->end;
    s->begin = s->end = 0;
    return emit(s, begin, end);
}

/* Parts come in order and cover the piece. */
static status take(splitter *s, size_t begin, size_t end, bool match)
{
    bool joins = false;
    switch (s->behavior) {
    case SPLIT_REMOVED:
        return match ? STATUS_OK : emit(s, begin, end);
    case SPLIT_ISOLATED:
        return emit(s, begin, end);
    case SPLIT_CONTIGUOUS:
        joins = match == s->previous_match;
        break;
    case SPLIT_MERGED_WITH_PREVIOUS:
        joins = match && !s->previous_match;
        break;
    case SPLIT_MERGED_WITH_NEXT:
        joins = !match && s->previous_match;
        break;
    }
    s->previous_match = match;
    if (joins && s->end > s->begin) {
        s->end = end;
        return STATUS_OK;
    }
    TRY(flush(s));
    s->begin = begin;
    s->end = end;
    return STATUS_OK;
}

static status split_by_pattern(const stage *g, splitter *s)
{
    span in = s->in.s;
    size_t at = 0, from = 0, begin = 0, end = 0;
    while (from <= in.bytes && at < in.bytes) {
        bool found = false;
        TRY(pattern_find(g->pattern, in, from, &found, &begin, &end));
        if (!found) break;
        if (begin > at) TRY(take(s, at, begin, g->invert));
        if (end > begin) TRY(take(s, begin, end, !g->invert));
        at = from = end;
        int32_t code;
        if (end == begin) from += end < in.bytes ? utf8_next(in.text + end, &code) : 1;
    }
    if (at < in.bytes) TRY(take(s, at, in.bytes, g->invert));
    return flush(s);
}

static bool in_class(char_class class, int32_t c)
{
    if (c < 0x80) {
        bool digit = c >= '0' && c <= '9';
        bool letter = (c | 0x20) >= 'a' && (c | 0x20) <= 'z';
        if (class == CLASS_NUMERIC) return digit;
        if (class == CLASS_SPACE) return c == ' ' || (c >= 9 && c <= 13);
        return c > ' ' && c < 0x7f && !digit && !letter;
    }
    utf8proc_category_t k = utf8proc_category(c);
    switch (class) {
    case CLASS_NUMERIC:
        return k == UTF8PROC_CATEGORY_ND || k == UTF8PROC_CATEGORY_NL || k == UTF8PROC_CATEGORY_NO;
    case CLASS_PUNCTUATION:
        return k >= UTF8PROC_CATEGORY_PC && k <= UTF8PROC_CATEGORY_PO;
    default:
        return c == 0x85 || (k >= UTF8PROC_CATEGORY_ZS && k <= UTF8PROC_CATEGORY_ZP);
    }
}

/* Every character of the class is a match of its own; what lies between is one part. */
static status split_by_class(const stage *g, splitter *s)
{
    span in = s->in.s;
    size_t at = 0;
    for (size_t i = 0; i < in.bytes;) {
        int32_t code;
        size_t next = i + utf8_next(in.text + i, &code);
        if (in_class(g->class, code)) {
            if (i > at) TRY(take(s, at, i, false));
            TRY(take(s, i, next, true));
            at = next;
        }
        i = next;
    }
    if (at < in.bytes) TRY(take(s, at, in.bytes, false));
    return flush(s);
}

static void write_prefix(piece in, word_sink *sink, buffer *b)
{
    buffer_reserve(b, sink->scratch, in.s.bytes + 1);
    if (in.s.text[0] != ' ') buffer_append(b, " ", 1);
    buffer_append(b, in.s.text, in.s.bytes);
}

static void write_bytes(piece in, word_sink *sink, buffer *b)
{
    buffer_reserve(b, sink->scratch, 2 * in.s.bytes);
    for (size_t i = 0; i < in.s.bytes; i++)
        b->bytes += utf8_put(byte_to_char((uint8_t)in.s.text[i]), b->data + b->bytes);
}

static void write_metaspace(const stage *g, piece in, word_sink *sink, buffer *b)
{
    size_t n = strlen(g->replacement);
    buffer_reserve(b, sink->scratch, (in.s.bytes + 1) * n);
    bool has =
        in.s.text[0] == ' ' || (in.s.bytes >= n && memcmp(in.s.text, g->replacement, n) == 0);
    bool wants = g->scheme == PREFIX_ALWAYS || (g->scheme == PREFIX_FIRST && in.first);
    if (wants && !has) buffer_append(b, g->replacement, n);
    for (size_t i = 0; i < in.s.bytes; i++) {
        if (in.s.text[i] == ' ')
            buffer_append(b, g->replacement, n);
        else
            buffer_append(b, in.s.text + i, 1);
    }
}

static status run_stage(const pretokenizer *p, uint32_t index, piece in, word_sink *sink)
{
    if (in.s.bytes == 0) return STATUS_OK;
    if (index == p->count) return sink->word(sink->self, in.s);
    const stage *g = &p->stages[index];
    splitter s = {.p = p, .next = index + 1, .sink = sink, .in = in, .behavior = g->behavior};
    if (g->kind == STAGE_SPLIT) return split_by_pattern(g, &s);
    if (g->kind == STAGE_CLASS) return split_by_class(g, &s);
    buffer *b = &sink->stage_text[index];
    b->bytes = 0;
    if (g->kind == STAGE_PREFIX)
        write_prefix(in, sink, b);
    else if (g->kind == STAGE_BYTES)
        write_bytes(in, sink, b);
    else
        write_metaspace(g, in, sink, b);
    return run_stage(p, index + 1, (piece){{b->data, b->bytes}, in.first}, sink);
}

status pretokenizer_run(const pretokenizer *p, span text, bool first, word_sink *sink)
{
    CHECK(text.text && sink->word);
    return run_stage(p, 0, (piece){text, first}, sink);
}
