/* Creation (all memory is taken here, and printed), requests in, events out. */
#include "worker/engine_plan.h"
#include "worker/fetch.h"

#include <string.h>

/* ---- views ----------------------------------------------------------------------------------- */

size_t engine_home(const worker_engine *e, uint32_t seq, uint32_t layer, uint32_t kv_head,
                   uint32_t block)
{
    return (((size_t)seq * e->layers + layer) * e->kv_heads + kv_head) * e->max_blocks + block;
}

kern_summary engine_summary(const worker_engine *e, uint32_t layer)
{
    size_t heads = (size_t)layer * e->seqs * e->kv_heads;
    const sparse_config *sparse = &e->config.model->config.sparse;
    return (kern_summary){
        .kc = e->kc + heads * e->max_windows * e->head_dim,
        .uc = e->uc + heads * e->max_windows,
        .u = e->u + heads * e->max_len,
        .key_ring = e->key_ring + heads * KERN_KEY_RING * e->head_dim,
        .seqs = e->seqs,
        .kv_heads = e->kv_heads,
        .head_dim = e->head_dim,
        .max_windows = e->max_windows,
        .max_tokens = e->max_len,
        .window = sparse->window,
        .stride = sparse->stride,
        .vc = e->vc == NULL ? NULL : e->vc + heads * e->max_windows * e->head_dim,
        .value_ring = e->vc == NULL ? NULL : e->value_ring + heads * KERN_KEY_RING * e->head_dim};
}

kern_table engine_table(const worker_engine *e, uint32_t layer)
{
    size_t heads = (size_t)layer * e->seqs * e->kv_heads;
    return (kern_table){.entry_of = e->entry_of + heads * e->max_blocks,
                        .block_of = e->block_of + heads * e->max_entries,
                        .slot_of = e->slot_of + heads * e->max_entries,
                        .used_step = e->used_step + heads * e->max_entries,
                        .entries = e->entries,
                        .seqs = e->seqs,
                        .kv_heads = e->kv_heads,
                        .max_blocks = e->max_blocks,
                        .max_entries = e->max_entries};
}

uint32_t engine_plans(const worker_engine *e)
{
    return e->layers * e->parts;
}

uint32_t engine_demand(const worker_engine *e, uint32_t layer, uint32_t part)
{
    return layer * e->halves + part;
}

kern_exchange *engine_exchange(const worker_engine *e, uint32_t layer)
{
    return &e->exchange[engine_demand(e, layer, e->now)];
}

row_range engine_rows(const worker_engine *e, kern_source source, uint32_t part)
{
    row_range of = e->source_rows[source], in = e->part[part].decode;
    uint32_t first = of.first > in.first ? of.first : in.first;
    uint32_t end = of.first + of.count, last = in.first + in.count;
    if (last < end) end = last;
    return (row_range){first, end > first ? end - first : 0};
}

kern_homes engine_homes(const worker_engine *e, uint32_t layer)
{
    return (kern_homes){.home = e->shared.home + engine_home(e, 0, layer, 0, 0),
                        .memory = io_slot_bytes(e->io, 0),
                        .seq_stride = (uint64_t)e->layers * e->kv_heads * e->max_blocks,
                        .block_bytes = e->block_bytes};
}

static size_t late_bytes(const worker_engine *e)
{
    return (e->max_select + KERN_LATE_ENTRIES - 1) / KERN_LATE_ENTRIES;
}

pick_buffers engine_picks(const worker_engine *e, uint32_t layer)
{
    size_t row = (size_t)e->part[e->now].decode.first * e->kv_heads;
    size_t lists = (size_t)layer * e->seqs * e->kv_heads + row;
    pick_buffers p = e->scratch[layer & 1];
    p.scores += row * e->max_windows;
    p.query += row * e->max_select_blocks;
    p.importance += row * e->max_select_blocks;
    p.late += row * late_bytes(e);
    p.block = e->picks.block + lists * e->max_select;
    p.slot = e->picks.slot + lists * e->max_select;
    p.mask = e->pick_mask + lists * e->max_select;
    p.count = e->picks.count + lists;
    p.settled = e->picks.settled + lists;
    return p;
}

status engine_read_table(worker_engine *e, uint32_t seq)
{
    size_t n = (size_t)e->kv_heads * e->max_blocks;
    for (uint32_t l = 0; l < e->layers; l++)
        TRY(kern_copy(e->stream, e->seen_entry_of + l * n, engine_table(e, l).entry_of + seq * n,
                      n * sizeof(int32_t)));
    return kern_stream_sync(e->stream);
}

/* Storage blocks that a selection can hold at most. */
uint32_t selector_entries(const worker_engine *e, const kern_selector *s)
{
    uint64_t n = s->total;
    if (s->block > KERN_BLOCK) n *= s->block / KERN_BLOCK;
    if (s->near > 0)
        n += (s->near + UINT64_C(62)) / KERN_BLOCK + 1; /* wherever the window begins */
    return n < e->max_blocks ? (uint32_t)n : e->max_blocks;
}

uint32_t selector_always(const kern_selector *s)
{
    return s->init + s->local + 1;
}

uint32_t engine_streams(const worker_engine *e, kern_stream *out_streams[ENGINE_STREAMS])
{
    uint32_t n = 0;
    out_streams[n++] = e->stream;
    if (e->side != e->stream) out_streams[n++] = e->side;
    if (e->picker != e->stream) out_streams[n++] = e->picker;
    return n;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static void read_dims(worker_engine *e)
{
    const model_config *m = &e->config.model->config;
    const sparse_config *sparse = &m->sparse;
    e->layers = m->layers;
    e->halves = e->config.two_batch ? 2 : 1;
    e->demands = e->layers * e->halves;
    e->parts = 1;
    e->heads = m->heads;
    e->kv_heads = m->kv_heads;
    e->head_dim = m->head_dim;
    e->hidden = m->hidden;
    e->ffn = m->ffn;
    e->vocab = m->vocab;
    e->seqs = e->cluster.max_num_seqs;
    e->max_len = e->cluster.max_model_len != 0 ? e->cluster.max_model_len : m->positions_max;
    e->max_len = (e->max_len + KERN_BLOCK - 1) / KERN_BLOCK * KERN_BLOCK;
    e->max_blocks = e->max_len / KERN_BLOCK;
    e->max_windows =
        e->max_len < sparse->window ? 1 : (e->max_len - sparse->window) / sparse->stride + 1;
    e->select_block = sparse->block;
    e->gates = !m->has_gate ? 0 : sparse->kind == SELECTOR_NSA ? 3 : 1;
    e->max_select_blocks = (e->max_len + e->select_block - 1) / e->select_block;
    e->max_select = selector_entries(e, &e->config.widest);
    e->max_entries = sched_entries_needed(e, &e->config.widest, e->max_blocks);
    e->block_bytes = block_layout_bytes(&e->config.model->layout);
    uint64_t stage = e->config.prompt_stage_bytes / e->block_bytes / e->layers / e->kv_heads;
    e->stage_blocks = stage < e->max_blocks ? (uint32_t)stage : e->max_blocks;
    e->rows_max = e->cluster.max_num_batched_tokens + e->seqs;
    e->qkv_stride = (e->heads + UINT64_C(2) * e->kv_heads) * e->head_dim;
}

/* Takes memory until something fails, then nothing more: `result` says what. */
typedef struct taking {
    worker_engine *e;
    status result;
    bool dry; /* only count */
} taking;

static void *take_some(taking *t, uint64_t bytes, bool shared)
{
    worker_engine *e = t->e;
    void *p = NULL;
    if (t->result != STATUS_OK) return NULL;
    if (t->dry) {
        *(shared ? &e->shared_bytes : &e->device_bytes) += bytes;
        return NULL;
    }
    t->result =
        shared ? kern_alloc_shared(e->backend, bytes, &p) : kern_alloc(e->backend, bytes, &p);
    if (t->result != STATUS_OK) return NULL;
    CHECK(e->taken_count < ENGINE_MEMORY_MAX);
    e->taken[e->taken_count++] = (struct engine_memory){p, shared};
    *(shared ? &e->shared_bytes : &e->device_bytes) += bytes;
    return p;
}

static void *take(taking *t, uint64_t count, uint64_t item)
{
    return take_some(t, count * item, false);
}

static void *take_shared(taking *t, uint64_t count, uint64_t item)
{
    return take_some(t, count * item, true);
}

/* What is read back from `device`: the same memory where ops run inline. */
static void *take_seen(taking *t, void *device, uint64_t count, uint64_t item)
{
    return t->e->inline_ops ? device : take_shared(t, count, item);
}

/* Filled with -1. */
static int32_t *take_absent(taking *t, uint64_t count)
{
    int32_t *p = take(t, count, sizeof(int32_t));
    if (p != NULL) t->result = kern_fill(t->e->stream, p, 0xff, count * sizeof(int32_t));
    return p;
}

static void take_scores(taking *t, pick_buffers *p, uint64_t rows)
{
    const worker_engine *e = t->e;
    uint64_t n = rows * e->kv_heads;
    p->scores = take(t, n * e->max_windows, sizeof(float));
    p->query = take(t, n * e->max_select_blocks, sizeof(float));
    p->importance = take(t, n * e->max_select_blocks, sizeof(float));
}

static void take_picks(taking *t)
{
    worker_engine *e = t->e;
    uint64_t lists = (uint64_t)e->layers * e->seqs * e->kv_heads, n = lists * e->max_select;
    e->picks.block = take(t, n, sizeof(int32_t));
    e->picks.slot = take(t, n, sizeof(int32_t));
    e->picks.count = take(t, 2 * lists, sizeof(int32_t));
    e->picks.settled = e->picks.count == NULL ? NULL : e->picks.count + lists;
    e->pick_mask = take(t, n, 1);
    for (int i = 0; i < 2; i++)
        e->scratch[i].late = take(t, (uint64_t)e->seqs * e->kv_heads * late_bytes(e), 1);
    e->seen.block = take_seen(t, e->picks.block, n, sizeof(int32_t));
    e->seen.slot = take_seen(t, e->picks.slot, n, sizeof(int32_t));
    e->seen.count = take_seen(t, e->picks.count, 2 * lists, sizeof(int32_t));
    e->seen.settled = e->seen.count == NULL ? NULL : e->seen.count + lists;
    take_scores(t, &e->scratch[0], e->seqs);
    take_scores(t, &e->scratch[1], e->seqs);
    uint64_t tile = (uint64_t)ENGINE_PREFILL_TILE * e->kv_heads;
    take_scores(t, &e->prefill, ENGINE_PREFILL_TILE);
    e->prefill.block = take(t, tile * e->max_select, sizeof(int32_t));
    e->prefill.slot = take(t, tile * e->max_select, sizeof(int32_t));
    e->prefill.mask = take(t, tile * e->max_select, 1);
    e->prefill.count = take(t, tile, sizeof(int32_t));
    e->prefill.settled = take(t, tile, sizeof(int32_t));
    uint64_t heads = (uint64_t)e->layers * e->kv_heads;
    e->prompt_block = take_shared(t, heads * e->max_select, sizeof(int32_t));
    e->prompt_count = take_shared(t, heads, sizeof(int32_t));
    e->candidate = take_shared(t, n, sizeof(int32_t));
    e->candidate_seq = take_shared(t, e->seqs, sizeof(int32_t));
    e->candidate_pos = take_shared(t, e->seqs, sizeof(int32_t));
    e->candidate_selector = take_shared(t, e->seqs, sizeof(int32_t));
}

static row_lists lists_of(int32_t *at, size_t rows)
{
    if (at == NULL) return (row_lists){0};
    return (row_lists){.seq = at,
                       .pos = at + rows,
                       .token = at + 2 * rows,
                       .selector = at + 3 * rows,
                       .next_pos = at + 4 * rows,
                       .status = at + 5 * rows,
                       .hits = (uint32_t *)at + 6 * rows,
                       .misses = (uint32_t *)at + 7 * rows};
}

static operand take_operand(taking *t, uint64_t count)
{
    if (kern_rounds_operands(t->e->backend))
        return (operand){.bf16 = take(t, count, sizeof(uint16_t))};
    return (operand){.f32 = take(t, count, sizeof(float))};
}

static void take_rows(taking *t)
{
    worker_engine *e = t->e;
    uint64_t r = e->rows_max, q = (uint64_t)e->heads * e->head_dim;
    uint64_t ends = r > ENGINE_LOGIT_ROWS ? r : ENGINE_LOGIT_ROWS;
    int32_t *lists = take(t, ENGINE_ROW_LISTS * r, sizeof(int32_t));
    e->dev = lists_of(lists, r);
    e->row = lists_of(take_seen(t, lists, ENGINE_ROW_LISTS * r, sizeof(int32_t)), r);
    e->x = take(t, r * e->hidden, sizeof(float));
    e->x_next = take(t, ends * e->hidden, sizeof(float));
    e->norm = take_operand(t, ends * e->hidden);
    e->qkv = take(t, r * e->qkv_stride, sizeof(float));
    e->attended = e->heads_out = take_operand(t, r * q);
    if (e->gates > 0) e->out_gate = take(t, r * e->heads * e->gates, sizeof(float));
    if (e->gates > 0 && kern_rounds_operands(e->backend)) /* no place for what is gated */
        e->attended = (operand){.f32 = take(t, r * q, sizeof(float))};
    if (e->gates == 3) e->coarse_out = take(t, r * q, sizeof(float));
    if (e->gates == 3) e->near_out = take(t, r * q, sizeof(float));
    e->gate_up = take(t, r * 2 * e->ffn, sizeof(float));
    e->act = take_operand(t, r * e->ffn);
    e->ahead_norm = take_operand(t, (uint64_t)e->seqs * e->hidden);
    e->pick_q[0] = take(t, r * q, sizeof(float));
    e->pick_q[1] = take(t, r * q, sizeof(float));
    e->row_u = take(t, r * e->kv_heads, sizeof(uint16_t));
    e->append_slot = take(t, r * e->kv_heads, sizeof(int32_t));
    uint64_t ahead = (uint64_t)e->seqs * e->layers, heads = ahead * e->kv_heads;
    e->last_q = take(t, ahead * q, sizeof(float));
    ahead_lists *kept[] = {&e->ahead, &e->aside};
    for (uint32_t i = 0; i < 2; i++) {
        kept[i]->block = take(t, heads * e->max_select, sizeof(int32_t));
        kept[i]->mask = take(t, heads * e->max_select, 1);
        kept[i]->count = take(t, heads, sizeof(int32_t));
        kept[i]->settled = take(t, heads, sizeof(int32_t));
    }
    e->seen_ahead_block = take_seen(t, e->ahead.block, heads * e->max_select, sizeof(int32_t));
    e->seen_ahead_count = take_seen(t, e->ahead.count, heads, sizeof(int32_t));
    e->seen_ahead_slot = take_shared(t, heads * e->max_select, sizeof(int32_t));
    uint64_t logits = (uint64_t)ENGINE_LOGIT_ROWS * e->vocab;
    e->logits = take(t, logits, sizeof(float));
    e->seen_logits = take_seen(t, e->logits, logits, sizeof(float));
    e->sampling = take_shared(t, ENGINE_LOGIT_ROWS, sizeof(kern_sampling));
    e->sample_pos = take_shared(t, ENGINE_LOGIT_ROWS, sizeof(int32_t));
    e->sampled = take_shared(t, ENGINE_LOGIT_ROWS, sizeof(kern_sampled));
    e->logits_digest = take_shared(t, ENGINE_LOGIT_ROWS, sizeof(uint64_t));
}

static void take_guess(taking *t)
{
    worker_engine *e = t->e;
    uint64_t lists = (uint64_t)e->seqs * e->kv_heads, n = lists * e->max_select;
    if (e->config.guess == 0) return;
    take_scores(t, &e->guess, e->seqs);
    e->guess.mask = take(t, n, 1);
    e->guess.settled = take(t, lists, sizeof(int32_t));
    e->guess.count = take(t, lists + 2 * n, sizeof(int32_t));
    e->guess.block = e->guess.count == NULL ? NULL : e->guess.count + lists;
    e->guess.slot = e->guess.count == NULL ? NULL : e->guess.block + n;
    e->guess_q = take(t, (uint64_t)e->seqs * e->heads * e->head_dim, sizeof(float));
    e->guess_seen = take_seen(t, e->guess.count, e->demands * (lists + 2 * n), sizeof(int32_t));
    e->guess_made = take_shared(t, e->demands, sizeof *e->guess_made);
}

static void take_summaries(taking *t)
{
    worker_engine *e = t->e;
    uint64_t per_seq = (uint64_t)e->layers * e->kv_heads, heads = per_seq * e->seqs;
    uint64_t before = e->device_bytes;
    e->kc = take(t, heads * e->max_windows * e->head_dim, sizeof(uint16_t));
    e->uc = take(t, heads * e->max_windows, sizeof(uint16_t));
    e->u = take(t, heads * e->max_len, sizeof(uint16_t));
    e->key_ring = take(t, heads * KERN_KEY_RING * e->head_dim, sizeof(uint16_t));
    if (e->gates == 3) {
        e->vc = take(t, heads * e->max_windows * e->head_dim, sizeof(uint16_t));
        e->value_ring = take(t, heads * KERN_KEY_RING * e->head_dim, sizeof(uint16_t));
    }
    e->summary_bytes = e->device_bytes - before;
    e->entry_of = take_absent(t, heads * e->max_blocks);
    e->block_of = take_absent(t, heads * e->max_entries);
    e->slot_of = take_absent(t, heads * e->max_entries);
    e->used_step = take(t, heads * e->max_entries, sizeof(uint32_t));
    e->entries = take(t, e->seqs, sizeof(int32_t));
    e->dev_selectors = take(t, 1, sizeof e->selectors);
    uint64_t lists = (uint64_t)e->layers * e->kv_heads;
    e->seen_entry_of = take_shared(t, lists * e->max_blocks, sizeof(int32_t));
    e->stage_home = take_absent(t, per_seq * e->max_blocks);
    e->open_slot = take(t, heads, sizeof(int32_t));
    e->seen_open = take_seen(t, e->open_slot, heads, sizeof(int32_t));
    e->seal_slot = take_shared(t, heads, sizeof(int32_t));
    e->seal_seed = take_shared(t, heads, sizeof(uint64_t));
    e->seal_digest = take_shared(t, heads, sizeof(uint64_t));
    e->seal_copy = take_shared(t, heads, sizeof(uint8_t *));
    e->wait_ns = take_shared(t, 1, sizeof(uint64_t));
    e->stood_ns = take(t, 1, sizeof(uint64_t));
    e->seen_stood_ns = take_seen(t, e->stood_ns, 1, sizeof(uint64_t));
    e->keep_step = take_shared(t, e->seqs, sizeof(uint32_t));
}

static void take_stage(taking *t)
{
    worker_engine *e = t->e;
    uint64_t places = (uint64_t)e->kv_heads * e->max_blocks;
    if (e->stage_blocks == 0) return;
    e->stage = take(t, engine_stage_bytes(e), 1);
    e->stage_place = take(t, places, sizeof(int32_t));
    if (t->dry || t->result != STATUS_OK) return;
    int32_t *place = ARENA_NEW(e->memory, int32_t, places);
    for (uint64_t i = 0; i < places; i++) {
        uint32_t head = (uint32_t)(i / e->max_blocks), block = (uint32_t)(i % e->max_blocks);
        place[i] = block < e->stage_blocks ? (int32_t)(head * e->stage_blocks + block) : -1;
    }
    t->result = kern_copy(e->stream, e->stage_place, place, places * sizeof(int32_t));
}

static void take_host(worker_engine *e)
{
    arena *a = e->memory;
    size_t heads = (size_t)e->layers * e->kv_heads, homes = heads * e->max_blocks;
    e->pool_stack = ARENA_NEW(a, int32_t, e->pool_slots);
    for (uint32_t i = 0; i < e->pool_slots; i++)
        e->pool_stack[i] = (int32_t)(e->pool_slots - 1 - i);
    e->pool_free = e->pool_slots;
    e->seq = ARENA_NEW(a, sequence, e->seqs);
    for (uint32_t i = 0; i < e->seqs; i++) {
        sequence *s = &e->seq[i];
        s->token = ARENA_NEW(a, int32_t, e->max_len + 1);
        s->pool_slot = ARENA_NEW(a, int32_t, heads * e->max_entries);
        s->tail_slot = ARENA_NEW(a, int32_t, heads);
        s->tail_digest = ARENA_NEW(a, uint64_t, heads);
        s->stage_slot = ARENA_NEW(a, int32_t, homes);
        s->last_pick = ARENA_NEW(a, int32_t, heads * e->max_select);
        memset(s->tail_slot, 0xff, heads * sizeof(int32_t));
        memset(s->stage_slot, 0xff, homes * sizeof(int32_t));
    }
    e->shared.context = ARENA_NEW(a, context_id, e->seqs);
    e->ahead_bit = ARENA_NEW(a, uint8_t, e->seqs * homes);
    e->fetching = ARENA_NEW(a, bool, e->demands);
    e->uncounted = ARENA_NEW(a, row_uncounted, e->seqs);
    e->copy_slot = ARENA_NEW(a, int32_t, e->seqs * heads);
    e->resume_list = ARENA_NEW(a, int32_t, (size_t)e->kv_heads * 2 * e->max_select);
    e->queue = ARENA_NEW(a, engine_request, ENGINE_QUEUE);
    for (uint32_t i = 0; i < ENGINE_QUEUE; i++)
        e->queue[i].prompt = ARENA_NEW(a, int32_t, e->max_len);
    uint32_t capacity = 1;
    while (capacity < 64 * (e->seqs + ENGINE_QUEUE))
        capacity *= 2;
    e->events = ring_create(a, capacity, sizeof(worker_event));
}

static void take_exchanges(taking *t)
{
    worker_engine *e = t->e;
    uint64_t demand = (uint64_t)e->seqs * e->kv_heads * e->max_select;
    uint64_t ahead = (uint64_t)e->kv_heads * e->max_entries;
    uint32_t capacity = (uint32_t)(demand > ahead ? demand : ahead);
    /* With lookahead `step` a sequence has groups of two steps: whose blocks it uses in this one,
     * and whose it will use in the next. */
    uint32_t each = e->seqs < 32 ? 2 * e->seqs + 1 : 65;
    if (e->config.guess > 0) each += ENGINE_GUESS_KEEP * e->seqs;
    if (e->config.guess > 0 && each > ENGINE_GUESS_GROUPS) each = ENGINE_GUESS_GROUPS;
    e->groups = e->demands + e->layers * each;
    uint64_t all = (uint64_t)e->demands * capacity + e->layers * each * ahead;
    e->shared.home = take_shared(t, (uint64_t)e->seqs * e->layers * e->kv_heads * e->max_blocks,
                                 sizeof(kern_home));
    e->exchange = take_shared(t, e->groups, sizeof(kern_exchange));
    kern_miss *miss = take_shared(t, all, sizeof(kern_miss));
    kern_arrival *arrival = take_shared(t, all, sizeof(kern_arrival));
    /* A plan may run one layer ahead of attention. */
    uint64_t own = e->inline_ops ? 0 : 2 * e->halves;
    kern_miss *own_miss = own > 0 ? take(t, own * capacity, sizeof(kern_miss)) : NULL;
    kern_arrival *own_arrival = own > 0 ? take(t, own * capacity, sizeof(kern_arrival)) : NULL;
    uint32_t *own_count = own > 0 ? take(t, own * 16, sizeof(uint32_t)) : NULL;
    uint32_t *coming = own > 0 ? take(t, own * capacity, sizeof(uint32_t)) : NULL;
    if (coming != NULL)
        t->result = kern_fill(t->e->stream, coming, 0, own * capacity * sizeof(uint32_t));
    if (t->result != STATUS_OK || t->dry) return;
    e->prefetch = ARENA_NEW(e->memory, prefetch_group, e->groups - e->demands);
    e->arrived = ARENA_NEW(e->memory, int32_t, e->groups);
    for (uint32_t g = 0; g < e->groups; g++) {
        kern_exchange *x = &e->exchange[g];
        x->capacity = g < e->demands ? capacity : (uint32_t)ahead;
        x->miss = miss;
        x->arrival = arrival;
        miss += x->capacity;
        arrival += x->capacity;
        if (g >= e->demands || own == 0) continue;
        const size_t turn = g % own;
        x->own_miss = own_miss + turn * capacity;
        x->own_arrival = own_arrival + turn * capacity;
        x->own_count = own_count + turn * 16;
        x->coming = coming + turn * capacity;
        x->own_tag = g + 1;
    }
}

/* Host slots: one prompt being computed and the blocks it still waits to have acknowledged, an open
 * block for every parked sequence, seals on their way; then the host tier. */
static status create_io(worker_engine *e)
{
    uint32_t per_block = e->layers * e->kv_heads;
    uint64_t base = (uint64_t)per_block * (e->max_blocks + 6ull * e->seqs + 16);
    uint64_t tier = e->cluster.host_tier_bytes / e->block_bytes;
    if (!e->config.with_store) {
        base += (uint64_t)per_block * e->seqs * (e->max_blocks + 1);
        tier = UINT32_MAX;
    } else {
        base += tier;
    }
    if (base * e->block_bytes > (1ull << 46) || base > INT32_MAX / 2)
        return FAIL(NO_MEMORY,
                    "host memory for %llu blocks cannot be had: lower --max-num-seqs or "
                    "--max-model-len",
                    (unsigned long long)base);
    io_config io = {.memory = e->memory,
                    .backend = e->inline_ops ? NULL : e->backend,
                    .worker = &e->config,
                    .shared = e->shared,
                    .seqs = e->seqs,
                    .layers = e->layers,
                    .demands = e->demands,
                    .kv_heads = e->kv_heads,
                    .max_blocks = e->max_blocks,
                    .block_bytes = e->block_bytes,
                    .slots = (uint32_t)base,
                    .tier_slots = (uint32_t)(tier < UINT32_MAX ? tier : UINT32_MAX),
                    .groups = e->groups,
                    .exchange = e->exchange};
    TRY(io_create(&io, &e->io));
    e->host = (kern_host){.notify = engine_notify,
                          .pause = e->inline_ops ? engine_pause : NULL,
                          .self = e,
                          .clock = e->config.clock};
    return STATUS_OK;
}

/* Nothing to do: fetch_pump tells the io side about a layer's misses. */
void engine_notify(void *self)
{
    (void)self;
}

void engine_pause(void *self, uint64_t until_ns)
{
    io_pause(((worker_engine *)self)->io, until_ns);
}

/* ---- creation -------------------------------------------------------------------------------- */

static uint64_t smallest_pool(const worker_engine *e)
{
    return (uint64_t)e->layers * e->kv_heads * e->max_entries * e->block_bytes;
}

static bool overlaps(const worker_engine *e)
{
    return e->config.overlap && !e->inline_ops;
}

/* Device memory beside weights and pool: summaries, tables and workspaces, the stream's own. */
static uint64_t count_others(worker_engine *e)
{
    taking t = {.e = e, .result = STATUS_OK, .dry = true};
    double stream = 0;
    e->device_bytes = e->shared_bytes = 0;
    take_summaries(&t);
    take_stage(&t);
    take_rows(&t);
    take_guess(&t);
    take_picks(&t);
    take_exchanges(&t);
    if (kern_probe(e->backend, "stream_bytes", &stream) != STATUS_OK) stream = 0;
    e->stream_bytes = (uint64_t)stream * (overlaps(e) ? ENGINE_STREAMS : 1);
    uint64_t all = e->device_bytes + e->stream_bytes;
    e->device_bytes = e->shared_bytes = 0;
    return all;
}

/* What would do in place of a limit that is too small: more memory, or fewer sequences. */
static status refuse_limit(worker_engine *e, uint64_t others, uint64_t pool)
{
    const double mib = 1.0 / 1048576.0;
    uint64_t limit = e->config.hbm_bytes, weights = e->config.model->weight_bytes;
    uint64_t need = weights + others + pool, summaries = e->summary_bytes;
    bool smallest = e->cluster.device_pool_bytes == WORKER_POOL_REST;
    uint32_t asked = e->cluster.max_num_seqs, n = asked - 1;
    for (; n > 0; n--) {
        e->cluster.max_num_seqs = n;
        read_dims(e);
        if (weights + count_others(e) + (smallest ? smallest_pool(e) : pool) <= limit) break;
    }
    char or_else[64];
    (void)snprintf(or_else, sizeof or_else,
                   n > 0 ? "--max-num-seqs %u" : "a smaller --max-model-len or budget", n);
    return FAIL(NO_MEMORY,
                "%.1f MiB of device memory (--hbm) do not hold weights of %.1f MiB, workspaces of "
                "%.1f, summaries of %.1f and %s pool of %.1f: give --hbm %lluMiB, or %s%s",
                (double)limit * mib, (double)weights * mib, (double)(others - summaries) * mib,
                (double)summaries * mib, smallest ? "the smallest" : "a", (double)pool * mib,
                (unsigned long long)((need + 1048575) / 1048576), or_else,
                e->stage_blocks > 0 ? ", or a smaller --prompt-stage" : "");
}

/* The pool's size by the limit of device memory, if there is one, and whether the device has it. */
static status size_pool(worker_engine *e)
{
    uint64_t limit = e->config.hbm_bytes, others = count_others(e);
    uint64_t weights = e->config.model->weight_bytes, pool = e->cluster.device_pool_bytes;
    double left = 0;
    CHECK(pool != WORKER_POOL_REST || limit != 0);
    if (pool == WORKER_POOL_REST) pool = smallest_pool(e);
    if (limit != 0 && weights + others + pool > limit) return refuse_limit(e, others, pool);
    if (e->cluster.device_pool_bytes == WORKER_POOL_REST) {
        uint64_t most = smallest_pool(e) * e->seqs; /* more would serve nobody */
        pool = limit - weights - others < most ? limit - weights - others : most;
    }
    e->cluster.device_pool_bytes = pool;
    if (kern_probe(e->backend, "memory_free", &left) == STATUS_OK && (double)(others + pool) > left)
        return FAIL(NO_MEMORY,
                    "the device has %.0f MiB left for a pool of %.0f and %.0f of workspaces and "
                    "summaries: lower --hbm, --device-pool or --max-num-seqs, or end what else "
                    "uses it",
                    left / 1048576.0, (double)pool / 1048576.0, (double)others / 1048576.0);
    return STATUS_OK;
}

status worker_create(const worker_config *config, FILE *plan, worker_engine **out_engine)
{
    TRY(engine_check_config(config));
    arena *a = arena_create("worker");
    worker_engine *e = ARENA_NEW(a, worker_engine, 1);
    e->memory = a;
    e->config = *config;
    e->cluster = *config->cluster;
    e->config.cluster = &e->cluster;
    e->backend = config->model->backend;
    read_dims(e);
    e->inline_ops = kern_runs_inline(e->backend);
    taking t = {.e = e, .result = size_pool(e)};
    if (t.result == STATUS_OK) {
        e->pool_slots = (uint32_t)(e->cluster.device_pool_bytes / e->block_bytes);
        t.result = engine_check_pool(e);
    }
    if (t.result == STATUS_OK) t.result = kern_stream_create(e->backend, &e->stream);
    e->side = e->picker = e->selects = e->stream;
    if (overlaps(e)) {
        if (t.result == STATUS_OK) t.result = kern_stream_create(e->backend, &e->side);
        if (t.result == STATUS_OK) t.result = kern_stream_create(e->backend, &e->picker);
    }
    e->pool = take(&t, e->pool_slots, e->block_bytes);
    take_summaries(&t);
    take_stage(&t);
    take_rows(&t);
    take_guess(&t);
    take_picks(&t);
    take_exchanges(&t);
    status result = t.result;
    if (result == STATUS_OK) {
        take_host(e);
        result = create_io(e);
    }
    if (result == STATUS_OK) result = step_warm(e);
    if (result == STATUS_OK) result = kern_stream_sync(e->stream);
    if (result != STATUS_OK) {
        worker_destroy(e);
        return result;
    }
    arena_seal(a);
    hist_reset(&e->stats.ttft_ns);
    hist_reset(&e->stats.itl_ns);
    engine_print_plan(e, plan);
    *out_engine = e;
    return STATUS_OK;
}

static void give_memory(worker_engine *e)
{
    for (uint32_t i = 0; i < e->taken_count; i++) {
        if (e->taken[i].shared)
            kern_free_shared(e->backend, e->taken[i].at);
        else
            kern_free(e->backend, e->taken[i].at);
    }
}

/* Live sequences end as canceled, so that the nodes hear DROP for every context. */
void worker_destroy(worker_engine *e)
{
    if (e == NULL) return;
    if (e->io != NULL) {
        uint64_t until = clock_now(&e->config.clock) + e->cluster.put_deadline_ns;
        for (uint32_t i = 0; i < e->seqs; i++)
            e->seq[i].cancel = true;
        e->queue_count = 0;
        bool open =
            e->failed == STATUS_OK; /* else nobody can tell the nodes; leases end by themselves */
        while (open && clock_now(&e->config.clock) < until) {
            sched_turn(e);
            open = false;
            for (uint32_t i = 0; i < e->seqs; i++)
                open |= e->seq[i].state != SEQ_FREE;
            worker_event event;
            while (ring_pop(e->events, &event)) { /* nobody listens any more */
            }
            if (open) io_pause(e->io, clock_now(&e->config.clock) + 1000000);
        }
        io_destroy(e->io);
    }
    kern_stream *streams[ENGINE_STREAMS];
    for (uint32_t n = engine_streams(e, streams); n > 0; n--)
        kern_stream_destroy(streams[n - 1]);
    give_memory(e);
    arena_destroy(e->memory);
}

/* ---- events ---------------------------------------------------------------------------------- */

void engine_device_failed(worker_engine *e, status why)
{
    if (e->failed == STATUS_OK) e->failed = why;
}

void engine_emit(worker_engine *e, const worker_event *event)
{
    CHECK(ring_push(e->events, event)); /* a step makes at most a few a sequence; see worker_step */
}

bool worker_next_event(worker_engine *e, worker_event *out_event)
{
    return ring_pop(e->events, out_event);
}

/* The caller reads events between steps; with a full ring the engine waits for that. */
status worker_step(worker_engine *e)
{
    if (ring_count(e->events) > 32 * (e->seqs + ENGINE_QUEUE)) return STATUS_PENDING;
    if (e->failed != STATUS_OK)
        return FAIL(INTERNAL, "an earlier step failed: this engine can only be closed");
    sched_turn(e);
    status result = e->failed != STATUS_OK ? e->failed : step_run(e);
    if (result != STATUS_OK && result != STATUS_PENDING) engine_device_failed(e, result);
    if (e->failed != STATUS_OK) { /* also where the step itself was fine, and sealing was not */
        fetch_abandon(e);
        sched_fail_all(e, e->failed);
        return e->failed;
    }
    if (result == STATUS_PENDING) io_pause(e->io, clock_now(&e->config.clock) + 2000000);
    return result;
}

bool worker_idle(const worker_engine *e)
{
    if (e->queue_count > 0) return false;
    for (uint32_t i = 0; i < e->seqs; i++) {
        if (e->seq[i].state != SEQ_FREE) return false;
    }
    return true;
}

void worker_stats_read(worker_engine *e, worker_stats *out_stats)
{
    io_stats io;
    fetch_settle(e, -1);
    io_stats_read(e->io, &io);
    *out_stats = e->stats;
    out_stats->prefetch.used += e->landed_used;
    out_stats->prefetch.late = io.late;
    out_stats->stored.blocks = io.stored_blocks;
    out_stats->stored.bytes = io.stored_bytes;
    out_stats->stored.replicas = e->config.with_store ? e->cluster.map.replicas : 0;
    out_stats->served.blocks = io.client.blocks_received;
    out_stats->served.bytes = io.client.blocks_received * e->block_bytes;
    out_stats->fetch_ns = io.fetch_ns;
    out_stats->client = io.client;
}
