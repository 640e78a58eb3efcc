/* A tokenizer from its file, special tokens within text, and the public calls.
 *
 * Encoding follows the order of `tokenizers`: added tokens that are searched in the raw text; the
 * normaliser on what lies between; added tokens that are searched in normalised text; the
 * pre-tokenizer; BPE. */
#include "worker/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

enum { TOKENIZER_BYTES_MAX = 256 << 20, TEXT_BYTES_MAX = 1 << 30 };

/* ---- small things every part uses ------------------------------------------------------------ */

void buffer_reserve(buffer *b, arena *a, size_t capacity)
{
    if (capacity <= b->capacity) return;
    size_t grown = b->capacity * 2;
    b->capacity = grown > capacity ? grown : capacity;
    b->data = arena_alloc(a, b->capacity, 64);
}

span span_copy(arena *a, span text)
{
    char *copy = arena_alloc(a, text.bytes + 1, 1);
    if (text.bytes) memcpy(copy, text.text, text.bytes);
    return (span){copy, text.bytes};
}

void buffer_append(buffer *b, const char *text, size_t bytes)
{
    CHECK(b->capacity - b->bytes >= bytes);
    if (bytes) memcpy(b->data + b->bytes, text, bytes);
    b->bytes += bytes;
}

uint32_t utf8_next(const char *p, int32_t *out_code)
{
    const uint8_t *u = (const uint8_t *)p;
    if (u[0] < 0x80) {
        *out_code = u[0];
        return 1;
    }
    if (u[0] < 0xe0) {
        *out_code = (u[0] & 0x1f) << 6 | (u[1] & 0x3f);
        return 2;
    }
    if (u[0] < 0xf0) {
        *out_code = (u[0] & 0x0f) << 12 | (u[1] & 0x3f) << 6 | (u[2] & 0x3f);
        return 3;
    }
    *out_code = (u[0] & 0x07) << 18 | (u[1] & 0x3f) << 12 | (u[2] & 0x3f) << 6 | (u[3] & 0x3f);
    return 4;
}

uint32_t utf8_put(int32_t code, char *out)
{
    uint32_t c = (uint32_t)code, n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const uint8_t lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (uint32_t i = n - 1; i > 0; i--) {
        out[i] = (char)(0x80 | (c & 0x3f));
        c >>= 6;
    }
    out[0] = (char)(lead[n] | c);
    return n;
}

status unsupported_type(const char *file, const char *kind, const char *type)
{
    return FAIL(UNSUPPORTED, "%s: the %s type \"%.60s\" is not supported", file, kind, type);
}

/* ---- added tokens ---------------------------------------------------------------------------- */

static int by_first_byte(const void *a, const void *b)
{
    const added_token *x = a, *y = b;
    uint8_t p = (uint8_t)x->text[0], q = (uint8_t)y->text[0];
    if (p != q) return p < q ? -1 : 1;
    return x->bytes > y->bytes ? -1 : x->bytes < y->bytes;
}

static void index_added(added_set *s)
{
    if (s->count) qsort(s->tokens, s->count, sizeof *s->tokens, by_first_byte);
    uint32_t at = 0;
    for (uint32_t b = 0; b < 256; b++) {
        s->by_byte[b] = at;
        while (at < s->count && (uint8_t)s->tokens[at].text[0] == b)
            at++;
    }
    s->by_byte[256] = at;
}

static status read_added_token(const char *file, const cJSON *item, tokenizer *t)
{
    json_in in = {file, item};
    const bool no = false;
    const char *text = NULL;
    bool special, in_normalized;
    uint32_t id;
    added_token token = {0};
    TRY(json_string(in, "content", NULL, &text));
    TRY(json_u32(in, "id", 0, TOKENIZER_ID_MAX, NULL, &id));
    TRY(json_bool(in, "special", &no, &special));
    const bool plain = !special;
    TRY(json_bool(in, "normalized", &plain, &in_normalized));
    TRY(json_bool(in, "lstrip", &no, &token.lstrip));
    TRY(json_bool(in, "rstrip", &no, &token.rstrip));
    TRY(json_bool(in, "single_word", &no, &token.single_word));
    span content = span_copy(t->arena, json_text(text, t->arena));
    if (in_normalized) TRY(normalizer_run(&t->normalizer, content, t->arena, &content));
    if (content.bytes == 0) return STATUS_OK;
    token.text = content.text;
    token.bytes = (uint32_t)content.bytes;
    token.id = (int32_t)id;
    t->special[id] = special;
    added_set *set = in_normalized ? &t->normalized : &t->raw;
    set->tokens[set->count++] = token;
    return STATUS_OK;
}

static status read_added(const char *file, const cJSON *list, tokenizer *t)
{
    t->special = ARENA_NEW(t->arena, bool, t->bpe.vocab);
    uint32_t count = cJSON_IsArray(list) ? (uint32_t)cJSON_GetArraySize(list) : 0;
    t->raw.tokens = ARENA_NEW(t->arena, added_token, count + 1);
    t->normalized.tokens = ARENA_NEW(t->arena, added_token, count + 1);
    const cJSON *item;
    cJSON_ArrayForEach(item, list) TRY(read_added_token(file, item, t));
    index_added(&t->raw);
    index_added(&t->normalized);
    TRY(pattern_create_regex(t->arena, file, "\\A[" UNICODE_WORD "]", &t->word_at_start));
    return pattern_create_regex(t->arena, file, "[" UNICODE_WORD "]\\z", &t->word_at_end);
}

/* ---- post-processor -------------------------------------------------------------------------- */

static status read_special_ids(const char *file, const cJSON *map, const char *name, tokenizer *t,
                               bool after)
{
    const cJSON *ids = json_get(json_get(map, name), "ids"), *item;
    if (!cJSON_IsArray(ids))
        return FAIL(INVALID, "%s: the template's special token \"%.60s\" has no ids", file, name);
    cJSON_ArrayForEach(item, ids)
    {
        uint64_t id;
        uint32_t *count = after ? &t->after_count : &t->before_count;
        if (!json_whole(item, &id) || id >= t->bpe.vocab)
            return FAIL(INVALID, "%s: the template's special token \"%.60s\" has a wrong id", file,
                        name);
        if (*count == TEMPLATE_IDS_MAX)
            return FAIL(UNSUPPORTED, "%s: the template adds more than %d tokens", file,
                        TEMPLATE_IDS_MAX);
        (after ? t->after : t->before)[(*count)++] = (int32_t)id;
    }
    return STATUS_OK;
}

static status read_template(const char *file, const cJSON *item, tokenizer *t)
{
    const cJSON *single = json_get(item, "single"), *each;
    const cJSON *map = json_get(item, "special_tokens");
    bool seen = false;
    if (!cJSON_IsArray(single))
        return FAIL(INVALID, "%s: TemplateProcessing \"single\" must be a list", file);
    cJSON_ArrayForEach(each, single)
    {
        const cJSON *special = json_get(each, "SpecialToken");
        if (special) {
            const char *name = NULL;
            TRY(json_string((json_in){file, special}, "id", NULL, &name));
            TRY(read_special_ids(file, map, name, t, seen));
        } else if (json_get(each, "Sequence") && !seen) {
            seen = true;
        } else {
            return FAIL(INVALID,
                        "%s: TemplateProcessing \"single\" needs one Sequence and special "
                        "tokens",
                        file);
        }
    }
    return STATUS_OK;
}

static status read_post_processor(const char *file, const cJSON *item, tokenizer *t)
{
    if (!item) return STATUS_OK;
    const char *type = NULL;
    TRY(json_string((json_in){file, item}, "type", NULL, &type));
    if (strcmp(type, "ByteLevel") == 0) return STATUS_OK; /* only offsets */
    if (strcmp(type, "TemplateProcessing") == 0) return read_template(file, item, t);
    if (strcmp(type, "Sequence") != 0) return unsupported_type(file, "post_processor", type);
    const cJSON *each;
    cJSON_ArrayForEach(each, json_get(item, "processors")) TRY(read_post_processor(file, each, t));
    return STATUS_OK;
}

/* ---- loading --------------------------------------------------------------------------------- */

static status read_parts(const char *file, const cJSON *tree, tokenizer *t)
{
    const cJSON *added = json_get(tree, "added_tokens");
    if (added && !cJSON_IsArray(added))
        return FAIL(INVALID, "%s: \"added_tokens\" must be a list", file);
    TRY(normalizer_parse(t->arena, file, json_get(tree, "normalizer"), &t->normalizer));
    TRY(pretokenizer_parse(t->arena, file, json_get(tree, "pre_tokenizer"), &t->pretokenizer));
    TRY(bpe_parse(t->arena, file, json_get(tree, "model"), added, &t->bpe));
    TRY(decoder_parse(t->arena, file, json_get(tree, "decoder"), &t->bpe, &t->decoder));
    TRY(read_added(file, added, t));
    return read_post_processor(file, json_get(tree, "post_processor"), t);
}

status tokenizer_parse(const char *file, const char *text, size_t bytes, tokenizer **out_tokenizer)
{
    CHECK(file && text && out_tokenizer);
    cJSON *tree = NULL;
    TRY(json_parse(file, text, bytes, &tree));
    arena *a = arena_create("tokenizer");
    tokenizer *t = ARENA_NEW(a, tokenizer, 1);
    t->arena = a;
    status s = STATUS_OK;
    if (!cJSON_IsObject(tree)) s = FAIL(INVALID, "%s: must hold a JSON object", file);
    if (s == STATUS_OK) s = read_parts(file, tree, t);
    json_free(tree);
    if (s != STATUS_OK) {
        tokenizer_destroy(t);
        return s;
    }
    arena_seal(a);
    *out_tokenizer = t;
    return STATUS_OK;
}

/* A template in tokenizer_config.json (a string, or a list of named ones), or beside it. */
static status find_chat_template(const char *directory, tokenizer *t)
{
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/chat_template.jinja", directory);
    if (n < 0 || (size_t)n >= sizeof path)
        return FAIL(INVALID, "%.80s...: path too long", directory);
    FILE *f = fopen(path, "rbe");
    t->has_chat_template = f != NULL;
    if (f) (void)fclose(f);
    (void)snprintf(path, sizeof path, "%s/tokenizer_config.json", directory);
    f = fopen(path, "rbe");
    if (!f) return STATUS_OK;
    (void)fclose(f);
    cJSON *tree = NULL;
    TRY(json_file_parse(path, TOKENIZER_BYTES_MAX, &tree));
    const cJSON *item = json_get(tree, "chat_template");
    t->has_chat_template = t->has_chat_template || cJSON_IsString(item) || cJSON_IsArray(item);
    json_free(tree);
    return STATUS_OK;
}

status tokenizer_load(const char *directory, tokenizer **out_tokenizer)
{
    CHECK(directory && out_tokenizer);
    char path[4096];
    int n = snprintf(path, sizeof path, "%s/tokenizer.json", directory);
    if (n < 0 || (size_t)n >= sizeof path)
        return FAIL(INVALID, "%.80s...: path too long", directory);
    arena *a = arena_create("tokenizer file");
    char *text = NULL;
    size_t bytes = 0;
    tokenizer *t = NULL;
    status s = json_file_read(path, TOKENIZER_BYTES_MAX, a, &text, &bytes);
    if (s == STATUS_OK) s = tokenizer_parse(path, text, bytes, &t);
    arena_destroy(a);
    if (s == STATUS_OK) s = find_chat_template(directory, t);
    if (s != STATUS_OK) {
        tokenizer_destroy(t);
        return s;
    }
    *out_tokenizer = t;
    return STATUS_OK;
}

void tokenizer_destroy(tokenizer *t)
{
    if (!t) return;
    normalizer_release(&t->normalizer);
    pretokenizer_release(&t->pretokenizer);
    pattern_release(t->word_at_start);
    pattern_release(t->word_at_end);
    arena_destroy(t->arena);
}

/* ---- encoding -------------------------------------------------------------------------------- */

typedef struct encoding {
    tokenizer *t;
    arena *scratch;
    id_list ids;
    word_sink sink;
} encoding;

static status on_word(void *self, span word)
{
    encoding *e = self;
    return bpe_word(&e->t->bpe, word, &e->ids);
}

static size_t space_before(span text, size_t begin)
{
    while (begin > 0) {
        size_t i = begin - 1;
        while (i > 0 && ((uint8_t)text.text[i] & 0xc0) == 0x80)
            i--;
        span rest = {text.text + i, begin - i};
        if (!unicode_space(rest.text)) break;
        begin = i;
    }
    return begin;
}

static size_t space_after(span text, size_t end)
{
    while (end < text.bytes && unicode_space(text.text + end)) {
        int32_t code;
        end += utf8_next(text.text + end, &code);
    }
    return end;
}

/* Whether the token stands alone, for those that must. */
static status stands_alone(const tokenizer *t, span text, size_t begin, size_t end, bool *out)
{
    bool before = false, after = false;
    size_t x, y;
    if (begin > 0) TRY(pattern_find(t->word_at_end, (span){text.text, begin}, 0, &before, &x, &y));
    span rest = {text.text + end, text.bytes - end};
    if (rest.bytes > 0) TRY(pattern_find(t->word_at_start, rest, 0, &after, &x, &y));
    *out = !before && !after;
    return STATUS_OK;
}

static const added_token *added_at(const added_set *s, span text, size_t i)
{
    uint8_t b = (uint8_t)text.text[i];
    for (uint32_t k = s->by_byte[b]; k < s->by_byte[b + 1]; k++) {
        const added_token *a = &s->tokens[k];
        if (a->bytes <= text.bytes - i && memcmp(a->text, text.text + i, a->bytes) == 0) return a;
    }
    return NULL;
}

typedef status (*piece_fn)(encoding *e, span piece, bool first);

/* Calls between() for what lies between the set's tokens, and adds their ids. */
static status split_added(encoding *e, const added_set *s, span text, bool first, piece_fn between)
{
    size_t done = 0;
    for (size_t i = 0; i < text.bytes && s->count > 0;) {
        const added_token *a = added_at(s, text, i);
        if (!a) {
            i++;
            continue;
        }
        size_t begin = i, end = i + a->bytes;
        i = end;
        bool alone = true;
        if (a->single_word) TRY(stands_alone(e->t, text, begin, end, &alone));
        if (!alone) continue;
        if (a->lstrip) begin = space_before(text, begin);
        if (begin < done) begin = done;
        if (a->rstrip) end = space_after(text, end);
        if (begin > done)
            TRY(between(e, (span){text.text + done, begin - done}, first && done == 0));
        id_list_add(&e->ids, a->id);
        done = end;
    }
    if (done >= text.bytes) return STATUS_OK;
    return between(e, (span){text.text + done, text.bytes - done}, first && done == 0);
}

static status encode_words(encoding *e, span piece, bool first)
{
    return pretokenizer_run(&e->t->pretokenizer, piece, first, &e->sink);
}

static status encode_raw(encoding *e, span piece, bool first)
{
    span text;
    TRY(normalizer_run(&e->t->normalizer, piece, e->scratch, &text));
    if (text.bytes == 0) return STATUS_OK;
    return split_added(e, &e->t->normalized, text, first, encode_words);
}

status tokenizer_encode(tokenizer *t, span text, bool special, arena *a, int32_t **out_ids,
                        uint32_t *out_count)
{
    CHECK(t && (text.text || text.bytes == 0) && a && out_ids && out_count);
    if (text.bytes > TEXT_BYTES_MAX)
        return FAIL(INVALID, "text of %zu bytes is longer than 1 GiB", text.bytes);
    size_t bad = json_utf8_check(text.text, text.bytes);
    if (bad != text.bytes) return FAIL(INVALID, "text is not UTF-8: invalid at byte %zu", bad);
    arena *scratch = arena_create("encode");
    encoding e = {.t = t, .scratch = scratch, .ids.arena = scratch};
    e.sink = (word_sink){.word = on_word, .self = &e, .scratch = scratch};
    for (uint32_t i = 0; special && i < t->before_count; i++)
        id_list_add(&e.ids, t->before[i]);
    status s = text.bytes ? split_added(&e, &t->raw, text, true, encode_raw) : STATUS_OK;
    for (uint32_t i = 0; special && i < t->after_count; i++)
        id_list_add(&e.ids, t->after[i]);
    if (s == STATUS_OK) {
        int32_t *ids = ARENA_NEW(a, int32_t, e.ids.count + 1);
        if (e.ids.count) memcpy(ids, e.ids.ids, e.ids.count * sizeof *ids);
        *out_ids = ids;
        *out_count = e.ids.count;
    }
    arena_destroy(scratch);
    return s;
}

/* ---- looking --------------------------------------------------------------------------------- */

uint32_t tokenizer_vocab(const tokenizer *t)
{
    return t->bpe.vocab;
}

int32_t tokenizer_id(const tokenizer *t, const char *text)
{
    return bpe_find(&t->bpe, (span){text, strlen(text)});
}

bool tokenizer_is_special(const tokenizer *t, int32_t id)
{
    return id >= 0 && (uint32_t)id < t->bpe.vocab && t->special[id];
}

bool tokenizer_has_chat_template(const tokenizer *t)
{
    return t->has_chat_template;
}

const char *tokenizer_token_bytes(const tokenizer *t, int32_t id, uint32_t *out_bytes)
{
    bool known = id >= 0 && (uint32_t)id < t->bpe.vocab && t->bpe.text[id];
    *out_bytes = known ? (uint32_t)t->decoder.text[id].bytes : 0;
    return known ? t->decoder.text[id].text : NULL;
}
