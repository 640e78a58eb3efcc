/* Contexts that nobody computed, for as many tokens as one likes.
 *
 * A request is queued and admitted as any; instead of its prefill, blocks of random bytes are
 * written into host slots, digested by the backend's seal and handed to the io side, which stores
 * them: the way of prefill's blocks from there on. Every sequence, layer and KV head has bytes of
 * its own. What selection reads is written beside: window means in which at most WALK_HOT blocks a
 * head can win, as random directions of those rotary pairs that hardly turn, and importance that
 * wanders along the blocks. Windows that lie across two blocks are neutral, so that a block wins or
 * loses alone; the key ring stays empty, so the first windows made by new tokens are neutral too.
 *
 * Filled sequences are READY but held (a prefetch group that does not exist) until bench_release,
 * so that the first fill of the pool can be measured apart. */
#include "worker/bench.h"
#include "worker/fetch.h"
#include "worker/session.h"

#include <math.h>
#include <string.h>

enum { CHUNK_BLOCKS = 1024, PIECE = 64 };

typedef struct fill_block {
    uint64_t seed; /* of its bytes */
    uint8_t *to;
} fill_block;

typedef struct fill {
    bench *b;
    worker_engine *e;
    uint32_t seq, context;
    fill_block block[CHUNK_BLOCKS];
    int32_t slot[CHUNK_BLOCKS];
    uint64_t id_hash[CHUNK_BLOCKS], digest[CHUNK_BLOCKS];
    uint32_t count;
    /* summaries of one sequence, by (layer, KV head) */
    uint16_t *kc, *uc, *u;
} fill;

/* The only writes to device memory from here. */
static status put_device(worker_engine *e, void *to, const void *from, uint64_t bytes)
{
    return kern_copy(e->stream, to, from, bytes);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* bf16 of either sign between 2^-4 and 2^-3. */
static void write_block(const fill_block *to, uint32_t bytes)
{
    rng r;
    rng_seed(&r, to->seed);
    uint64_t *word = (uint64_t *)(void *)to->to;
    for (uint32_t i = 0; i < bytes / 8; i++)
        word[i] = (rng_next(&r) & 0x807f807f807f807fu) | 0x3d803d803d803d80u;
}

static void block_task(void *context, uint32_t task)
{
    const fill *f = context;
    uint32_t last = (task + 1) * PIECE < f->count ? (task + 1) * PIECE : f->count;
    for (uint32_t i = task * PIECE; i < last; i++)
        write_block(&f->block[i], f->e->block_bytes);
}

/* Turns of the engine until `slots` host slots are free for us beside its own reserve. */
static status wait_slots(fill *f, uint32_t slots)
{
    worker_engine *e = f->e;
    uint32_t reserve = 2 * e->seqs * e->layers * e->kv_heads;
    while (io_slots_free(e->io) < slots + reserve) {
        if (session_interrupted()) return FAIL(CANCELED, "interrupted while contexts were stored");
        sched_turn(e);
        if (e->seq[f->seq].state != SEQ_PREFILL) {
            status why = e->seq[f->seq].final.result;
            return FAIL(IO, "a context cannot be stored: %s", status_sentence(why));
        }
        io_pause(e->io, clock_now(&e->config.clock) + 1000000);
    }
    return STATUS_OK;
}

/* Blocks [first, last) of all layers and heads: bytes, digests, and off to the io side. */
static status fill_chunk(fill *f, uint32_t first, uint32_t last)
{
    worker_engine *e = f->e;
    uint32_t heads = e->layers * e->kv_heads;
    f->count = (last - first) * heads;
    TRY(wait_slots(f, f->count));
    for (uint32_t i = 0; i < f->count; i++) {
        uint32_t block = first + i / heads, l = i % heads / e->kv_heads, h = i % e->kv_heads;
        block_id id = io_block_id(e->io, (int32_t)f->seq, (int32_t)l, (int32_t)h, (int32_t)block);
        f->slot[i] = io_slot_take(e->io);
        CHECK(f->slot[i] >= 0);
        f->id_hash[i] = block_id_hash(&id);
        f->block[i] =
            (fill_block){f->id_hash[i] ^ f->b->options.seed, io_slot_bytes(e->io, f->slot[i])};
    }
    bench_parallel(f->b->options.threads, (f->count + PIECE - 1) / PIECE, block_task, f);
    kern_seal_args seal = {.pool = io_slot_bytes(e->io, 0),
                           .slot = f->slot,
                           .seed = f->id_hash,
                           .digest = f->digest,
                           .n = f->count,
                           .block_bytes = e->block_bytes};
    TRY(kern_seal(e->stream, &seal));
    TRY(kern_stream_sync(e->stream));
    for (uint32_t i = 0; i < f->count; i++) {
        uint32_t block = first + i / heads, l = i % heads / e->kv_heads, h = i % e->kv_heads;
        TRY(seal_digest_set(e, f->seq, l, h, block, f->digest[i]));
        seal_send(e, f->seq, i % heads, block, f->slot[i], false);
    }
    f->b->fill_bytes += (uint64_t)f->count * e->block_bytes;
    return STATUS_OK;
}

/* The open block stays in host slots of the sequence's own, as after a prefill. */
static status fill_tail(fill *f)
{
    worker_engine *e = f->e;
    uint32_t heads = e->layers * e->kv_heads;
    if (f->context % KERN_BLOCK == 0) return STATUS_OK;
    TRY(wait_slots(f, heads));
    for (uint32_t i = 0; i < heads; i++) {
        int32_t slot = io_slot_take(e->io);
        fill_block tail = {f->b->options.seed * 977 + (uint64_t)f->seq * heads + i,
                           io_slot_bytes(e->io, slot)};
        write_block(&tail, e->block_bytes);
        e->seq[f->seq].tail_slot[i] = slot;
    }
    seal_tail_given(e, f->seq, f->context / KERN_BLOCK);
    return STATUS_OK;
}

/* ---- summaries ------------------------------------------------------------------------------- */

typedef struct hot_block {
    bool hot;
    float importance;
} hot_block;

/* Of `rest` unforced blocks every so manieth is hot. Its importance is drawn near its neighbour's.
 */
static void mark_blocks(const fill *f, hot_block *out, uint32_t blocks, rng *r)
{
    const kern_selector *s = &f->b->selector;
    uint32_t forced = selector_always(s), rest = blocks > forced ? blocks - forced : 0;
    uint32_t hot = rest < WALK_HOT ? rest : WALK_HOT;
    float height = (float)rng_unit(r);
    for (uint32_t i = 0; i < blocks; i++) {
        uint64_t k = i - s->init;
        bool in = i >= s->init && k < rest;
        height += 0.5f * ((float)rng_unit(r) - 0.5f);
        height -= height > 1.0f ? 1.0f : height < 0.0f ? -1.0f : 0.0f;
        out[i].hot = in && k * hot / rest != (k + 1) * hot / rest;
        out[i].importance = out[i].hot ? height : -1.0f;
    }
}

static void write_key(const fill *f, bool hot, uint64_t seed, uint16_t *to)
{
    const bench_weights *w = f->b->weights;
    uint32_t d = f->e->head_dim;
    rng r;
    rng_seed(&r, seed);
    float size = (hot ? 3.0f : 0.3f) * sqrtf((float)d / (float)(2 * w->slow_count));
    for (uint32_t i = 0; i < w->slow_count; i++) {
        uint64_t bits = rng_next(&r);
        to[w->slow_pairs[i]] = kern_f32_to_bf16(size * w->normal[bits % 4096]);
        to[w->slow_pairs[i] + d / 2] = kern_f32_to_bf16(size * w->normal[bits / 4096 % 4096]);
    }
}

/* One (layer, KV head) of the sequence: all its windows and tokens. */
static void summary_task(void *context, uint32_t head)
{
    const fill *f = context;
    const worker_engine *e = f->e;
    const sparse_config *sparse = &e->config.model->config.sparse;
    uint32_t blocks = (f->context + sparse->block - 1) / sparse->block + 1, d = e->head_dim;
    arena *a = arena_create("summary");
    hot_block *mark = ARENA_NEW(a, hot_block, blocks);
    rng r;
    uint64_t seed = (f->b->options.seed * 1315423911u + f->seq) * 8191 + head;
    rng_seed(&r, seed);
    mark_blocks(f, mark, blocks, &r);
    uint16_t *kc = f->kc + (size_t)head * e->max_windows * d;
    uint16_t *uc = f->uc + (size_t)head * e->max_windows, *u = f->u + (size_t)head * e->max_len;
    memset(kc, 0, (size_t)e->max_windows * d * sizeof *kc);
    for (uint32_t j = 0; j * sparse->stride + sparse->window <= f->context; j++) {
        uint32_t first = j * sparse->stride / sparse->block;
        uint32_t last = (j * sparse->stride + sparse->window - 1) / sparse->block;
        bool alone = first == last || sparse->block < sparse->window;
        float low = mark[first].importance < mark[last].importance ? mark[first].importance
                                                                   : mark[last].importance;
        uc[j] = kern_f32_to_bf16(alone ? mark[first].importance : low);
        if (alone) write_key(f, mark[first].hot, seed * 1048573 + first, kc + (size_t)j * d);
    }
    for (uint32_t t = 0; t < f->context; t++)
        u[t] = kern_f32_to_bf16(mark[t / sparse->block].importance);
    arena_destroy(a);
}

static status fill_summaries(fill *f)
{
    worker_engine *e = f->e;
    uint32_t heads = e->layers * e->kv_heads;
    bench_parallel(f->b->options.threads, heads, summary_task, f);
    for (uint32_t i = 0; i < heads; i++) {
        kern_summary s = engine_summary(e, i / e->kv_heads);
        size_t at = (size_t)f->seq * e->kv_heads + i % e->kv_heads, w = e->max_windows;
        size_t d = e->head_dim, t = e->max_len;
        TRY(put_device(e, s.kc + at * w * d, f->kc + i * w * d, w * d * sizeof *s.kc));
        TRY(put_device(e, s.uc + at * w, f->uc + i * w, w * sizeof *s.uc));
        TRY(put_device(e, s.u + at * t, f->u + i * t, t * sizeof *s.u));
    }
    return STATUS_OK;
}

/* ---- sequences ------------------------------------------------------------------------------- */

static status fill_sequence(fill *f)
{
    worker_engine *e = f->e;
    sequence *s = &e->seq[f->seq];
    f->context = s->prefill_count;
    uint32_t blocks = f->context / KERN_BLOCK, heads = e->layers * e->kv_heads;
    uint32_t chunk = CHUNK_BLOCKS / heads;
    if (chunk == 0)
        return FAIL(UNSUPPORTED, "more than %d KV heads in all layers together", CHUNK_BLOCKS);
    for (uint32_t first = 0; first < blocks; first += chunk)
        TRY(fill_chunk(f, first, first + chunk < blocks ? first + chunk : blocks));
    TRY(fill_tail(f));
    TRY(fill_summaries(f));
    /* The last row of a prefill would have sampled the next token. */
    int32_t *last = &f->b->last_token[s->request.id];
    *last = s->token[s->count++] = bench_weights_next(f->b->weights, *last);
    s->sampled = 1;
    s->last_token_ns = clock_now(&e->config.clock);
    s->done = f->context;
    s->state = SEQ_READY;
    s->groups_open++; /* held */
    return STATUS_OK;
}

/* Every block is where it has to be before anything is measured. */
static status wait_stored(bench *b)
{
    worker_engine *e = b->engine;
    uint64_t wanted = b->fill_bytes / e->block_bytes;
    while (b->with_store) {
        worker_stats_read(e, b->stats);
        if (b->stats->stored.blocks >= wanted) break;
        if (session_interrupted()) return FAIL(CANCELED, "interrupted while contexts were stored");
        sched_turn(e);
        for (uint32_t i = 0; i < e->seqs; i++) {
            if (e->seq[i].state != SEQ_CLOSING) continue;
            return FAIL(NO_SPACE, "a context cannot be stored: %s",
                        status_sentence(e->seq[i].final.result));
        }
        io_pause(e->io, clock_now(&e->config.clock) + 2000000);
    }
    return STATUS_OK;
}

static status submit(bench *b, uint32_t i, int32_t *prompt)
{
    uint32_t vocab = b->model->config.vocab,
             count = b->options.context[i % b->options.context_count];
    uint32_t start = (uint32_t)((uint64_t)vocab * i / b->batch); /* walks apart from each other */
    for (uint32_t t = 0; t < count; t++)
        prompt[t] = (int32_t)((start + t) % vocab);
    b->last_token[i] = prompt[count - 1];
    worker_request request = {.id = i,
                              .prompt = prompt,
                              .prompt_count = count,
                              .max_new = b->new_tokens,
                              .selector = b->selector,
                              .sampling = {.top_p = 1.0f}};
    return worker_submit(b->engine, &request);
}

status bench_fill(bench *b)
{
    worker_engine *e = b->engine;
    void *shared = NULL; /* the lists in it are read by seal */
    TRY(kern_alloc_shared(e->backend, sizeof(fill), &shared));
    fill *f = shared;
    size_t heads = (size_t)e->layers * e->kv_heads;
    arena *a = arena_create("fill");
    *f = (fill){.b = b, .e = e};
    f->kc = ARENA_NEW(a, uint16_t, heads * e->max_windows * e->head_dim);
    f->uc = ARENA_NEW(a, uint16_t, heads * e->max_windows);
    f->u = ARENA_NEW(a, uint16_t, heads * e->max_len);
    int32_t *prompt = ARENA_NEW(a, int32_t, e->max_len);
    uint64_t begun = clock_now(&clock_monotonic);
    status done = STATUS_OK;
    for (uint32_t i = 0; i < b->batch && done == STATUS_OK; i++) {
        done = submit(b, i, prompt);
        if (done == STATUS_OK) sched_turn(e);
        if (done == STATUS_OK && sched_prefilling(e, &f->seq) == NULL)
            done = FAIL(INTERNAL, "a request was not admitted");
        if (done == STATUS_OK) done = fill_sequence(f);
        if (done == STATUS_OK && session_interrupted())
            done = FAIL(CANCELED, "interrupted while contexts were made");
    }
    if (done == STATUS_OK) done = wait_stored(b);
    b->fill_ns = clock_now(&clock_monotonic) - begun;
    kern_free_shared(e->backend, shared);
    arena_destroy(a);
    return done;
}

void bench_release(bench *b)
{
    for (uint32_t i = 0; i < b->engine->seqs; i++) {
        sequence *s = &b->engine->seq[i];
        if (s->state == SEQ_READY && s->groups_open == 1) s->groups_open = 0;
    }
}

/* ---- resident -------------------------------------------------------------------------------- */

static status settle_groups(bench *b)
{
    worker_engine *e = b->engine;
    for (bool open = true; open;) {
        open = false;
        sched_turn(e);
        for (uint32_t i = 0; i < e->seqs; i++)
            open |= e->seq[i].groups_open > 0;
        if (session_interrupted()) return FAIL(CANCELED, "interrupted while the pool was filled");
        if (open) io_pause(e->io, clock_now(&e->config.clock) + 1000000);
    }
    return STATUS_OK;
}

status bench_bring_all(bench *b)
{
    worker_engine *e = b->engine;
    arena *a = arena_create("blocks");
    int32_t *list = ARENA_NEW(a, int32_t, (size_t)e->kv_heads * e->max_blocks);
    status done = STATUS_OK;
    for (uint32_t i = 0; i < e->kv_heads * e->max_blocks; i++)
        list[i] = (int32_t)(i % e->max_blocks);
    for (uint32_t i = 0; i < e->seqs && done == STATUS_OK; i++) {
        if (e->seq[i].state != SEQ_ACTIVE && e->seq[i].state != SEQ_RESUMING) continue;
        done = engine_read_table(e, i);
        for (uint32_t l = 0; l < e->layers && done == STATUS_OK; l++) {
            fetch_wish wish = {.seq = i,
                               .layer = l,
                               .per_head = e->max_blocks,
                               .block = list,
                               .resident =
                                   e->seen_entry_of + (size_t)l * e->kv_heads * e->max_blocks,
                               .resume = true};
            while (!fetch_ahead(e, &wish) && done == STATUS_OK)
                done = settle_groups(b);
        }
    }
    if (done == STATUS_OK) done = settle_groups(b);
    arena_destroy(a);
    return done;
}
