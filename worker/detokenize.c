/* Ids -> text, a token at a time.
 *
 * The decoder chain of the file is folded into one text per id when it is loaded (Replace, Strip
 * before Fuse, byte-level characters as bytes) and three rules that need what came before: UTF-8
 * put together across tokens, leading characters dropped (Strip after Fuse), the first token's
 * marks dropped (Metaspace). Chains that do not fold are refused. */
#include "worker/tokenizer_impl.h"

#include <string.h>

typedef struct fold {
    arena *arena;
    const char *file;
    decoder *d;
    bool fused; /* Fuse or ByteLevel has been: later steps see the whole text */
    struct {
        const char *find, *put;
    } replace[TOKENIZER_STEPS_MAX];
    uint32_t replace_count;
    const char *strip; /* before Fuse: of every token */
    uint32_t strip_start, strip_stop;
} fold;

static bool one_character(const char *text)
{
    int32_t code;
    return text[0] != '\0' && text[utf8_next(text, &code)] == '\0';
}

static status parse_replace(fold *f, const cJSON *item)
{
    const cJSON *find = json_get(json_get(item, "pattern"), "String");
    const char *put = NULL;
    TRY(json_string((json_in){f->file, item}, "content", NULL, &put));
    if (!cJSON_IsString(find) || find->valuestring[0] == '\0')
        return FAIL(UNSUPPORTED, "%s: the decoder Replace is supported with a \"String\" pattern",
                    f->file);
    if (f->d->lossy || (f->fused && !one_character(find->valuestring)))
        return FAIL(UNSUPPORTED, "%s: the decoder Replace is not supported after Fuse", f->file);
    if (f->replace_count == TOKENIZER_STEPS_MAX)
        return FAIL(UNSUPPORTED, "%s: too many decoder Replace steps", f->file);
    f->replace[f->replace_count].find = arena_string(f->arena, find->valuestring);
    f->replace[f->replace_count++].put = arena_string(f->arena, put);
    return STATUS_OK;
}

static status parse_strip(fold *f, const cJSON *item)
{
    json_in in = {f->file, item};
    const char *content = NULL;
    uint32_t start, stop;
    TRY(json_string(in, "content", NULL, &content));
    TRY(json_u32(in, "start", 0, 1024, NULL, &start));
    TRY(json_u32(in, "stop", 0, 1024, NULL, &stop));
    if (!one_character(content))
        return FAIL(INVALID, "%s: the decoder Strip needs one character as \"content\"", f->file);
    if (f->fused && stop > 0)
        return FAIL(UNSUPPORTED, "%s: the decoder Strip with \"stop\" after Fuse is not supported",
                    f->file);
    if (f->strip || f->d->strip)
        return FAIL(UNSUPPORTED, "%s: more than one decoder Strip is not supported", f->file);
    if (f->fused) {
        f->d->strip = arena_string(f->arena, content);
        f->d->strip_count = start;
    } else {
        f->strip = arena_string(f->arena, content);
        f->strip_start = start;
        f->strip_stop = stop;
    }
    return STATUS_OK;
}

static status parse_metaspace(fold *f, const cJSON *item)
{
    json_in in = {f->file, item};
    const char *mark = NULL, *scheme = NULL;
    const bool yes = true;
    bool prefix;
    TRY(json_string(in, "replacement", NULL, &mark));
    TRY(json_bool(in, "add_prefix_space", &yes, &prefix));
    TRY(json_string(in, "prepend_scheme", prefix ? "always" : "never", &scheme));
    if (!one_character(mark))
        return FAIL(INVALID, "%s: the decoder Metaspace needs one character as \"replacement\"",
                    f->file);
    if (f->fused || f->d->mark || f->strip)
        return FAIL(UNSUPPORTED, "%s: the decoder Metaspace is supported as the first step only",
                    f->file);
    f->d->mark = arena_string(f->arena, mark);
    f->d->drop_first = strcmp(scheme, "never") != 0;
    return STATUS_OK;
}

static status parse_decoder(fold *f, const cJSON *item)
{
    const char *type = NULL;
    TRY(json_string((json_in){f->file, item}, "type", NULL, &type));
    if (strcmp(type, "Sequence") == 0) {
        const cJSON *list = json_get(item, "decoders"), *each;
        if (!cJSON_IsArray(list)) return FAIL(INVALID, "%s: \"decoders\" must be a list", f->file);
        cJSON_ArrayForEach(each, list) TRY(parse_decoder(f, each));
        return STATUS_OK;
    }
    if (strcmp(type, "Replace") == 0) return parse_replace(f, item);
    if (strcmp(type, "Strip") == 0) return parse_strip(f, item);
    if (strcmp(type, "Metaspace") == 0) return parse_metaspace(f, item);
    if (strcmp(type, "Fuse") == 0) {
        f->fused = true;
        return STATUS_OK;
    }
    bool byte_level = strcmp(type, "ByteLevel") == 0;
    if (!byte_level && strcmp(type, "ByteFallback") != 0)
        return unsupported_type(f->file, "decoder", type);
    if (f->fused || f->d->mark || f->strip || f->d->byte_tokens)
        return FAIL(UNSUPPORTED, "%s: the decoder %s is not supported after other steps", f->file,
                    type);
    f->d->byte_tokens = !byte_level;
    f->d->lossy = f->fused = byte_level;
    return STATUS_OK;
}

/* ---- one text per id ------------------------------------------------------------------------- */

/* Byte-level: the bytes its characters stand for, or the text itself if one stands for none. */
static span fold_bytes(span text, buffer *b, arena *scratch)
{
    buffer_reserve(b, scratch, text.bytes);
    b->bytes = 0;
    for (size_t i = 0; i < text.bytes;) {
        int32_t code;
        i += utf8_next(text.text + i, &code);
        int32_t byte = char_to_byte(code);
        if (byte < 0) return text;
        b->data[b->bytes++] = (char)byte;
    }
    return (span){b->data, b->bytes};
}

static span fold_replace(span text, const char *find, const char *put, buffer *b, arena *scratch)
{
    size_t n = strlen(find), m = strlen(put);
    if (!memmem(text.text, text.bytes, find, n)) return text;
    buffer_reserve(b, scratch, text.bytes * (m + 1));
    b->bytes = 0;
    for (size_t i = 0; i < text.bytes;) {
        bool here = text.bytes - i >= n && memcmp(text.text + i, find, n) == 0;
        buffer_append(b, here ? put : text.text + i, here ? m : 1);
        i += here ? n : 1;
    }
    return (span){b->data, b->bytes};
}

static span fold_strip(span text, const fold *f)
{
    size_t n = strlen(f->strip);
    for (uint32_t i = 0; i < f->strip_start; i++) {
        if (text.bytes < n || memcmp(text.text, f->strip, n) != 0) break;
        text = (span){text.text + n, text.bytes - n};
    }
    for (uint32_t i = 0; i < f->strip_stop; i++) {
        if (text.bytes < n || memcmp(text.text + text.bytes - n, f->strip, n) != 0) break;
        text.bytes -= n;
    }
    return text;
}

static int32_t byte_token(span text)
{
    static const char digits[] = "0123456789ABCDEF";
    if (text.bytes != 6 || memcmp(text.text, "<0x", 3) != 0 || text.text[5] != '>') return -1;
    int32_t value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text.text[i];
        const char *at = strchr(digits, c >= 'a' && c <= 'f' ? c - 32 : c);
        if (!at || c == '\0') return -1;
        value = value * 16 + (int32_t)(at - digits);
    }
    return value;
}

static void fold_texts(fold *f, const bpe *b)
{
    decoder *d = f->d;
    arena *scratch = arena_create("decoder");
    buffer buffers[TOKENIZER_STEPS_MAX + 2] = {0};
    d->text = ARENA_NEW(f->arena, span, b->vocab);
    if (d->byte_tokens) d->byte = ARENA_NEW(f->arena, int16_t, b->vocab);
    d->bytes_max = 4;
    for (uint32_t id = 0; id < b->vocab; id++) {
        if (d->byte) d->byte[id] = -1;
        if (!b->text[id]) continue;
        span original = {b->text[id], b->bytes[id]}, text = original;
        for (uint32_t i = 0; i < f->replace_count; i++)
            text = fold_replace(text, f->replace[i].find, f->replace[i].put, &buffers[i], scratch);
        if (d->mark)
            text = fold_replace(text, d->mark, " ", &buffers[TOKENIZER_STEPS_MAX], scratch);
        if (d->lossy) text = fold_bytes(text, &buffers[TOKENIZER_STEPS_MAX + 1], scratch);
        if (f->strip) text = fold_strip(text, f);
        if (d->byte_tokens) d->byte[id] = (int16_t)byte_token(text);
        char byte = d->byte ? (char)d->byte[id] : 0;
        if (d->byte && d->byte[id] >= 0) text = (span){&byte, 1};
        d->text[id] = text;
        if (text.text != original.text) { /* out of the scratch memory */
            char *copy = arena_alloc(f->arena, text.bytes + 1, 1);
            if (text.bytes) memcpy(copy, text.text, text.bytes);
            d->text[id].text = copy;
        }
        if (text.bytes > d->bytes_max) d->bytes_max = (uint32_t)text.bytes;
    }
    arena_destroy(scratch);
}

status decoder_parse(arena *a, const char *file, const cJSON *item, const bpe *b, decoder *d)
{
    fold f = {.arena = a, .file = file, .d = d};
    if (!item)
        return FAIL(UNSUPPORTED, "%s: a tokenizer without a \"decoder\" is not supported", file);
    TRY(parse_decoder(&f, item));
    fold_texts(&f, b);
    return STATUS_OK;
}

/* ---- streaming ------------------------------------------------------------------------------- */

void detokenizer_start(const tokenizer *t, bool skip_special, detokenizer *out_state)
{
    CHECK(t && out_state);
    *out_state = (detokenizer){
        .tokenizer = t, .skip_special = skip_special, .strip = t->decoder.strip_count};
}

uint32_t detokenizer_bytes_max(const tokenizer *t)
{
    return 3 * (t->decoder.bytes_max + 4); /* every byte may become U+FFFD */
}

/* A whole character, unless it is a leading one that Strip drops. */
static uint32_t put(detokenizer *d, const char *character, uint32_t bytes, char *out)
{
    const char *strip = d->tokenizer->decoder.strip;
    if (d->strip > 0) {
        if (strlen(strip) == bytes && memcmp(strip, character, bytes) == 0) {
            d->strip--;
            return 0;
        }
        d->strip = 0;
    }
    memcpy(out, character, bytes);
    return bytes;
}

/* How many bytes of p begin a character that more bytes could complete (0: none do), when the whole
 * is not well-formed yet. Unicode 15, table 3-7. */
static uint32_t incomplete(const uint8_t *p, uint32_t bytes)
{
    static const uint8_t filler[3] = {0x80, 0x90, 0xa0};
    for (uint32_t n = bytes < 3 ? bytes : 3; n > 0; n--) {
        for (uint32_t i = 0; i < 3; i++) {
            uint8_t c[4] = {0x80, 0x80, 0x80, 0x80};
            memcpy(c, p, n);
            if (n == 1) c[1] = filler[i];
            uint32_t need = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
            if (p[0] >= 0xc2 && n < need && json_utf8_check((const char *)c, need) == need)
                return n;
        }
    }
    return 0;
}

/* Bytes -> characters; the incomplete rest stays in d->pending. */
static uint32_t put_bytes(detokenizer *d, const char *text, uint32_t bytes, bool last, char *out)
{
    static const char bad[] = "\xef\xbf\xbd";
    uint8_t window[4];
    uint32_t written = 0, at = 0, held = d->pending_bytes;
    memcpy(window, d->pending, held);
    for (;;) {
        while (held < 4 && at < bytes)
            window[held++] = (uint8_t)text[at++];
        if (held == 0) break;
        uint32_t lead = window[0];
        uint32_t need = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
        uint32_t used = 0;
        if (need <= held && json_utf8_check((char *)window, need) == need) {
            used = need;
            written += put(d, (char *)window, need, out + written);
        } else {
            used = incomplete(window, held);
            if (used == held && !last) break; /* wait for more */
            if (used == 0 || d->tokenizer->decoder.byte_tokens) used = 1;
            written += put(d, bad, 3, out + written);
        }
        held -= used;
        memmove(window, window + used, held);
    }
    memcpy(d->pending, window, held);
    d->pending_bytes = held;
    return written;
}

/* Metaspace: the first token without its marks. */
static uint32_t put_first(detokenizer *d, int32_t id, char *out)
{
    const tokenizer *t = d->tokenizer;
    const char *mark = t->decoder.mark;
    size_t n = strlen(mark);
    uint32_t written = 0;
    span text = {t->bpe.text[id], t->bpe.bytes[id]};
    for (size_t i = 0; i < text.bytes;) {
        bool here = text.bytes - i >= n && memcmp(text.text + i, mark, n) == 0;
        if (!here) out[written++] = text.text[i];
        i += here ? n : 1;
    }
    return written;
}

uint32_t detokenizer_push(detokenizer *d, int32_t id, char *out)
{
    CHECK(d && out);
    const tokenizer *t = d->tokenizer;
    if (id < 0 || (uint32_t)id >= t->bpe.vocab || !t->bpe.text[id]) return 0;
    if (d->skip_special && t->special[id]) return 0;
    bool first = !d->started;
    d->started = true;
    if (first && t->decoder.drop_first) return put_first(d, id, out);
    span s = t->decoder.text[id];
    if (!t->decoder.byte_tokens || t->decoder.byte[id] >= 0)
        return put_bytes(d, s.text, (uint32_t)s.bytes, false, out);
    uint32_t written = put_bytes(d, NULL, 0, true, out); /* a run of byte tokens ends here */
    return written + put_bytes(d, s.text, (uint32_t)s.bytes, false, out + written);
}

uint32_t detokenizer_finish(detokenizer *d, char *out)
{
    CHECK(d && out);
    return put_bytes(d, NULL, 0, true, out);
}

status tokenizer_decode(const tokenizer *t, const int32_t *ids, uint32_t count, bool skip_special,
                        arena *a, span *out_text)
{
    CHECK(t && (ids || count == 0) && out_text);
    size_t capacity = 1 + detokenizer_bytes_max(t), bytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (ids[i] < 0 || (uint32_t)ids[i] >= t->bpe.vocab)
            return FAIL(INVALID, "id %d is not in the vocabulary", ids[i]);
        capacity += 3 * t->decoder.text[ids[i]].bytes;
    }
    char *text = arena_alloc(a, capacity, 1);
    detokenizer d;
    detokenizer_start(t, skip_special, &d);
    for (uint32_t i = 0; i < count; i++)
        bytes += detokenizer_push(&d, ids[i], text + bytes);
    bytes += detokenizer_finish(&d, text + bytes);
    text[bytes] = '\0';
    *out_text = (span){text, bytes};
    return STATUS_OK;
}
