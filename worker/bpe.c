/* Byte-pair encoding of one word (Sennrich et al. 2016), with the tie rules of `tokenizers`:
 * the merge of the lowest rank first, the leftmost among equals.
 *
 * A word of n symbols costs O(n log n): symbols form a linked list, candidate merges a binary heap
 * of (rank, position); a candidate whose pair has changed since is recognised by its rank and
 * dropped. Text without a pre-tokenizer is one word, so this bound matters. Short words are cached.
 */
#include "worker/tokenizer_impl.h"

#include <string.h>

/* ---- vocabulary ------------------------------------------------------------------------------ */

static uint32_t pow2_at_least(uint64_t n)
{
    uint32_t p = 16;
    while (p < n)
        p *= 2;
    return p;
}

int32_t bpe_find(const bpe *b, span text)
{
    uint64_t h = bytes_digest(text.text, text.bytes, 0);
    for (uint32_t i = (uint32_t)h & b->slot_mask;; i = (i + 1) & b->slot_mask) {
        uint32_t id = b->slots[i];
        if (id == 0) return -1;
        id--;
        if (b->bytes[id] == text.bytes && memcmp(b->text[id], text.text, text.bytes) == 0)
            return (int32_t)id;
    }
}

/* Without the added tokens. */
static int32_t model_find(const bpe *b, span text)
{
    int32_t id = bpe_find(b, text);
    return id >= 0 && b->added[id] ? -1 : id;
}

static status add_entry(arena *a, const char *file, bpe *b, const char *key, uint64_t id)
{
    span text = span_copy(a, json_text(key, a));
    if (bpe_find(b, text) >= 0)
        return FAIL(INVALID, "%s: \"%.60s\" is in the vocabulary twice", file, key);
    if (b->text[id])
        return FAIL(INVALID, "%s: \"%.60s\" and \"%.60s\" have the same id", file, b->text[id],
                    key);
    b->text[id] = text.text;
    b->bytes[id] = (uint32_t)text.bytes;
    uint32_t i = (uint32_t)bytes_digest(text.text, text.bytes, 0) & b->slot_mask;
    while (b->slots[i] != 0)
        i = (i + 1) & b->slot_mask;
    b->slots[i] = (uint32_t)id + 1;
    return STATUS_OK;
}

/* Ids of vocabulary and added tokens, checked, so that tables can be sized. */
static status measure(const char *file, const cJSON *vocab, const cJSON *added, uint32_t *out_vocab,
                      uint32_t *out_entries)
{
    uint64_t largest = 0, entries = 0, id;
    const cJSON *item;
    cJSON_ArrayForEach(item, vocab)
    {
        if (!json_whole(item, &id) || id >= TOKENIZER_ID_MAX)
            return FAIL(INVALID, "%s: the id of \"%.60s\" must be a whole number below 2^24", file,
                        item->string);
        largest = id > largest ? id : largest;
        entries++;
    }
    cJSON_ArrayForEach(item, added)
    {
        const cJSON *content = json_get(item, "content");
        if (!cJSON_IsString(content) || content->valuestring[0] == '\0')
            return FAIL(INVALID, "%s: an added token has no \"content\"", file);
        if (!json_whole(json_get(item, "id"), &id) || id >= TOKENIZER_ID_MAX)
            return FAIL(INVALID,
                        "%s: the id of the added token \"%.60s\" must be a whole number "
                        "below 2^24",
                        file, content->valuestring);
        largest = id > largest ? id : largest;
        entries++;
    }
    if (entries == 0) return FAIL(INVALID, "%s: the vocabulary is empty", file);
    if (largest > 2 * entries + 65536)
        return FAIL(INVALID, "%s: the id %llu is far beyond the %llu entries", file,
                    (unsigned long long)largest, (unsigned long long)entries);
    *out_vocab = (uint32_t)largest + 1;
    *out_entries = (uint32_t)entries;
    return STATUS_OK;
}

static status read_vocab(arena *a, const char *file, const cJSON *vocab, const cJSON *added, bpe *b)
{
    uint32_t entries = 0;
    TRY(measure(file, vocab, added, &b->vocab, &entries));
    b->text = ARENA_NEW(a, const char *, b->vocab);
    b->bytes = ARENA_NEW(a, uint32_t, b->vocab);
    b->added = ARENA_NEW(a, bool, b->vocab);
    b->slot_mask = pow2_at_least(2 * (uint64_t)entries) - 1;
    b->slots = ARENA_NEW(a, uint32_t, b->slot_mask + 1);
    const cJSON *item;
    cJSON_ArrayForEach(item, vocab)
    {
        uint64_t id = 0;
        (void)json_whole(item, &id);
        TRY(add_entry(a, file, b, item->string, id));
    }
    for (int32_t c = 0; c < CHAR_TABLE; c++) {
        char text[4];
        b->char_id[c] = bpe_find(b, (span){text, utf8_put(c, text)});
    }
    cJSON_ArrayForEach(item, added)
    {
        const char *text = json_get(item, "content")->valuestring;
        uint64_t id = 0;
        (void)json_whole(json_get(item, "id"), &id);
        int32_t known = bpe_find(b, json_text(text, a));
        if (known >= 0 && (uint64_t)known != id)
            return FAIL(INVALID,
                        "%s: the added token \"%.60s\" has the id %llu, but %d in the "
                        "vocabulary",
                        file, text, (unsigned long long)id, known);
        if (known >= 0) continue;
        TRY(add_entry(a, file, b, text, id));
        b->added[id] = true;
    }
    return STATUS_OK;
}

/* ---- merges ---------------------------------------------------------------------------------- */

static uint32_t pair_hash(uint64_t pair)
{
    return (uint32_t)((pair * 0x9e3779b97f4a7c15u) >> 32);
}

static const merge_slot *merge_find(const bpe *b, int32_t left, int32_t right)
{
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint32_t i = pair_hash(pair) & b->merge_mask;; i = (i + 1) & b->merge_mask) {
        if (b->merges[i].pair == pair) return &b->merges[i];
        if (b->merges[i].pair == UINT64_MAX) return NULL;
    }
}

static void merge_put(bpe *b, uint64_t pair, uint32_t rank, int32_t id)
{
    uint32_t i = pair_hash(pair) & b->merge_mask;
    while (b->merges[i].pair != UINT64_MAX && b->merges[i].pair != pair)
        i = (i + 1) & b->merge_mask;
    b->merges[i] = (merge_slot){.pair = pair, .rank = rank, .id = id}; /* the last of equals wins */
}

/* "left right" or ["left", "right"]. */
static bool merge_parts(const cJSON *item, arena *a, span *left, span *right)
{
    if (cJSON_IsString(item)) {
        span both = json_text(item->valuestring, a);
        const char *space = memchr(both.text, ' ', both.bytes);
        if (!space) return false;
        *left = (span){both.text, (size_t)(space - both.text)};
        *right = (span){space + 1, both.bytes - left->bytes - 1};
        return !memchr(right->text, ' ', right->bytes);
    }
    if (!cJSON_IsArray(item) || cJSON_GetArraySize(item) != 2) return false;
    const cJSON *l = item->child, *r = l->next;
    if (!cJSON_IsString(l) || !cJSON_IsString(r)) return false;
    *left = json_text(l->valuestring, a);
    *right = json_text(r->valuestring, a);
    return true;
}

static status read_merges(arena *a, const char *file, const cJSON *merges, bpe *b)
{
    if (!cJSON_IsArray(merges)) return FAIL(INVALID, "%s: \"merges\" must be a list", file);
    uint64_t count = (uint64_t)cJSON_GetArraySize(merges);
    if (count > 1 << 26) return FAIL(INVALID, "%s: too many merges", file);
    b->merge_mask = pow2_at_least(2 * count) - 1;
    b->merges = ARENA_NEW(a, merge_slot, b->merge_mask + 1);
    for (uint32_t i = 0; i <= b->merge_mask; i++)
        b->merges[i].pair = UINT64_MAX;
    arena *scratch = arena_create("merges");
    buffer joined = {0};
    uint32_t rank = 0;
    status s = STATUS_OK;
    for (const cJSON *item = merges->child; item && s == STATUS_OK; item = item->next, rank++) {
        span left, right;
        if (!merge_parts(item, scratch, &left, &right)) {
            s = FAIL(INVALID, "%s: merge %u is not two tokens", file, rank);
            break;
        }
        buffer_reserve(&joined, scratch, left.bytes + right.bytes + 1);
        joined.bytes = 0;
        buffer_append(&joined, left.text, left.bytes);
        buffer_append(&joined, right.text, right.bytes);
        joined.data[joined.bytes] = '\0';
        int32_t l = model_find(b, left), r = model_find(b, right);
        int32_t id = model_find(b, (span){joined.data, joined.bytes});
        if (l < 0 || r < 0 || id < 0)
            s = FAIL(INVALID, "%s: merge %u (%.40s) uses a token outside the vocabulary", file,
                     rank, joined.data);
        else
            merge_put(b, (uint64_t)(uint32_t)l << 32 | (uint32_t)r, rank, id);
    }
    arena_destroy(scratch);
    return s;
}

/* ---- the model ------------------------------------------------------------------------------- */

static status read_unknown(json_in in, bpe *b)
{
    const char *unk = NULL;
    b->unk = -1;
    TRY(json_string(in, "unk_token", "", &unk));
    if (unk[0] == '\0') return STATUS_OK;
    b->unk = bpe_find(b, (span){unk, strlen(unk)});
    if (b->unk < 0)
        return FAIL(INVALID, "%s: \"unk_token\" \"%.60s\" is not in the vocabulary", in.file, unk);
    return STATUS_OK;
}

static status read_flags(json_in in, bpe *b)
{
    const bool no = false;
    TRY(json_bool(in, "byte_fallback", &no, &b->byte_fallback));
    TRY(json_bool(in, "fuse_unk", &no, &b->fuse_unk));
    TRY(json_bool(in, "ignore_merges", &no, &b->ignore_merges));
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *text = NULL;
        TRY(json_string(in, affixes[i], "", &text));
        if (text[0] != '\0')
            return FAIL(UNSUPPORTED, "%s: BPE with a \"%s\" is not supported", in.file, affixes[i]);
    }
    double dropout, none = 0;
    TRY(json_f64(in, "dropout", 0, 1, &none, &dropout));
    if (dropout != 0)
        return FAIL(UNSUPPORTED, "%s: BPE with \"dropout\" is not supported", in.file);
    return STATUS_OK;
}

status bpe_parse(arena *a, const char *file, const cJSON *model, const cJSON *added, bpe *b)
{
    json_in in = {file, model};
    const char *type = NULL;
    if (!cJSON_IsObject(model)) return FAIL(INVALID, "%s: \"model\" must be an object", file);
    TRY(json_string(in, "type", "BPE", &type));
    if (strcmp(type, "BPE") != 0) return unsupported_type(file, "model", type);
    const cJSON *vocab = json_get(model, "vocab");
    if (!cJSON_IsObject(vocab)) return FAIL(INVALID, "%s: \"vocab\" must map tokens to ids", file);
    TRY(read_flags(in, b));
    TRY(read_vocab(a, file, vocab, added, b));
    TRY(read_merges(a, file, json_get(model, "merges"), b));
    TRY(read_unknown(in, b));
    for (uint32_t i = 0; i < 256; i++) {
        char text[8];
        (void)snprintf(text, sizeof text, "<0x%02X>", i);
        b->byte_id[i] = b->byte_fallback ? model_find(b, (span){text, 6}) : -1;
    }
    b->cache = ARENA_NEW(a, cache_slot, CACHE_SLOTS);
    return STATUS_OK;
}

/* ---- one word -------------------------------------------------------------------------------- */

void id_list_add(id_list *l, int32_t id)
{
    if (l->count == l->capacity) {
        uint32_t capacity = l->capacity ? 2 * l->capacity : 256;
        int32_t *ids = ARENA_NEW(l->arena, int32_t, capacity);
        if (l->count) memcpy(ids, l->ids, l->count * sizeof *ids);
        l->ids = ids;
        l->capacity = capacity;
    }
    l->ids[l->count++] = id;
}

/* Symbols of the word being merged, a doubly linked list in place. id -1: merged away. */
typedef struct symbol {
    int32_t id;
    uint32_t previous, next; /* UINT32_MAX: none */
} symbol;

typedef struct merging {
    const bpe *b;
    symbol *symbols;
    uint32_t count;
    uint64_t *heap; /* rank << 32 | position of the left symbol; smallest on top */
    uint32_t heap_count;
} merging;

static void heap_push(merging *m, uint64_t key)
{
    uint32_t i = m->heap_count++;
    while (i > 0 && m->heap[(i - 1) / 2] > key) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = key;
}

static uint64_t heap_pop(merging *m)
{
    uint64_t top = m->heap[0], key = m->heap[--m->heap_count];
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= m->heap_count) break;
        if (child + 1 < m->heap_count && m->heap[child + 1] < m->heap[child]) child++;
        if (m->heap[child] >= key) break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    m->heap[i] = key;
    return top;
}

static void propose(merging *m, uint32_t left)
{
    if (left == UINT32_MAX || m->symbols[left].next == UINT32_MAX) return;
    const merge_slot *s =
        merge_find(m->b, m->symbols[left].id, m->symbols[m->symbols[left].next].id);
    if (s) heap_push(m, (uint64_t)s->rank << 32 | left);
}

static void merge_all(merging *m)
{
    for (uint32_t i = 0; i + 1 < m->count; i++)
        propose(m, i);
    while (m->heap_count > 0) {
        uint64_t top = heap_pop(m);
        uint32_t at = (uint32_t)top;
        symbol *left = &m->symbols[at];
        if (left->id < 0 || left->next == UINT32_MAX) continue;
        symbol *right = &m->symbols[left->next];
        const merge_slot *s = merge_find(m->b, left->id, right->id);
        if (!s || s->rank != top >> 32) continue; /* the pair has changed since */
        left->id = s->id;
        right->id = -1;
        left->next = right->next;
        if (left->next != UINT32_MAX) m->symbols[left->next].previous = at;
        propose(m, left->previous);
        propose(m, at);
    }
}

static void add_symbol(merging *m, int32_t id)
{
    uint32_t i = m->count++;
    m->symbols[i] = (symbol){.id = id, .previous = i ? i - 1 : UINT32_MAX, .next = UINT32_MAX};
    if (i) m->symbols[i - 1].next = i;
}

static bool add_bytes(merging *m, span c)
{
    if (!m->b->byte_fallback) return false;
    for (size_t i = 0; i < c.bytes; i++)
        if (m->b->byte_id[(uint8_t)c.text[i]] < 0) return false;
    for (size_t i = 0; i < c.bytes; i++)
        add_symbol(m, m->b->byte_id[(uint8_t)c.text[i]]);
    return true;
}

/* Characters -> symbols. Unknown ones become bytes, or the unknown token (one for a run of them
 * with fuse_unk), or nothing where the file has no unknown token. As in `tokenizers`, an unknown
 * token is held back until the next known character, also across characters that became bytes. */
static void add_characters(merging *m, span word)
{
    bool unknown = false;
    const bpe *b = m->b;
    for (size_t i = 0; i < word.bytes;) {
        int32_t code;
        span c = {word.text + i, utf8_next(word.text + i, &code)};
        i += c.bytes;
        int32_t id = code < CHAR_TABLE ? b->char_id[code] : model_find(b, c);
        if (id >= 0) {
            if (unknown) add_symbol(m, b->unk);
            unknown = false;
            add_symbol(m, id);
        } else if (!add_bytes(m, c) && b->unk >= 0) {
            if (unknown && !b->fuse_unk) add_symbol(m, b->unk);
            unknown = true;
        }
    }
    if (unknown) add_symbol(m, b->unk);
}

static cache_slot *cache_at(bpe *b, span word, uint64_t *out_hash)
{
    if (word.bytes > CACHE_KEY_MAX) return NULL;
    *out_hash = bytes_digest(word.text, word.bytes, 1);
    return &b->cache[*out_hash % CACHE_SLOTS];
}

static void cache_fill(cache_slot *slot, uint64_t hash, span word, const int32_t *ids,
                       uint32_t count)
{
    if (!slot || count > CACHE_IDS_MAX) return;
    slot->hash = hash;
    slot->key_bytes = (uint8_t)word.bytes;
    slot->count = (uint8_t)count;
    memcpy(slot->key, word.text, word.bytes);
    if (count) memcpy(slot->ids, ids, count * sizeof *ids);
}

status bpe_word(bpe *b, span word, id_list *out)
{
    CHECK(word.bytes > 0 && word.bytes < UINT32_MAX / 8);
    uint64_t hash = 0;
    cache_slot *slot = cache_at(b, word, &hash);
    if (slot && slot->hash == hash && slot->key_bytes == word.bytes &&
        memcmp(slot->key, word.text, word.bytes) == 0) {
        for (uint32_t i = 0; i < slot->count; i++)
            id_list_add(out, slot->ids[i]);
        return STATUS_OK;
    }
    uint32_t before = out->count;
    int32_t whole = b->ignore_merges ? model_find(b, word) : -1;
    if (whole >= 0) {
        id_list_add(out, whole);
        cache_fill(slot, hash, word, out->ids + before, 1);
        return STATUS_OK;
    }
    /* At most one symbol a byte; each merge proposes at most two more pairs than the first pass. */
    buffer_reserve(&out->symbols, out->arena, word.bytes * sizeof(symbol));
    buffer_reserve(&out->heap, out->arena, 3 * word.bytes * sizeof(uint64_t));
    merging m = {.b = b, .symbols = (void *)out->symbols.data, .heap = (void *)out->heap.data};
    add_characters(&m, word);
    merge_all(&m);
    for (uint32_t i = 0; i < m.count; i++)
        if (m.symbols[i].id >= 0) id_list_add(out, m.symbols[i].id);
    if (out->count > before) cache_fill(slot, hash, word, out->ids + before, out->count - before);
    return STATUS_OK;
}
