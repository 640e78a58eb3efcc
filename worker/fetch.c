/* Blocks on their way into the pool: a layer's misses, prefetch groups and installs between steps,
 * and the accounting of where every block came from. */
#include "worker/engine.h"

#include <string.h>

/* ---- a layer's misses ------------------------------------------------------------------------ */

void fetch_start(worker_engine *e, uint32_t layer)
{
    kern_exchange *x = &e->exchange[layer];
    if (atomic_load_explicit(&x->published, memory_order_acquire) == 0) return;
    e->fetching[layer] = true;
    io_command command = {.op = IO_FETCH,
                          .group = (int32_t)layer,
                          .class = KV_DEMAND,
                          .deadline_ns =
                              clock_now(&e->config.clock) + e->cluster.fetch_deadline_ns};
    io_send(e->io, &command);
}

static void count_sources(worker_engine *e, const kern_exchange *x, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        const kern_miss *m = &x->miss[i];
        if (atomic_load(&x->arrival[i].state) != STATUS_OK) continue;
        worker_blocks *of = &e->seq[m->seq].final.blocks;
        if (x->arrival[i].source_kind == IO_SOURCE_HOST)
            of->host++, e->stats.blocks.host++;
        else
            of->remote++, e->stats.blocks.remote++;
    }
}

/* Wait for the layer's arrivals and gather them. A wait ends because the client completes every
 * request by its deadline; rows whose blocks failed are void. */
status fetch_finish(worker_engine *e, uint32_t layer)
{
    if (!e->fetching[layer]) return STATUS_OK;
    kern_exchange *x = &e->exchange[layer];
    uint64_t before = e->stats.waited_ns;
    kern_wait_args wait = {.exchange = x,
                           .host = &e->host,
                           .deadline_ns = UINT64_MAX,
                           .waited_ns = &e->stats.waited_ns};
    TRY(kern_wait(e->stream, &wait));
    uint64_t waited = e->stats.waited_ns - before;
    if (waited > e->stats.stall_ns_max) e->stats.stall_ns_max = waited;
    kern_gather_args gather = {.exchange = x,
                               .table = engine_table(e, layer),
                               .pool = e->pool,
                               .row_status = e->row_status,
                               .block_bytes = e->block_bytes,
                               .verify = e->config.verify};
    TRY(kern_gather(e->stream, &gather));
    count_sources(e, x, atomic_load(&x->published));
    e->fetching[layer] = false;
    io_command command = {.op = IO_GATHERED, .group = (int32_t)layer};
    io_send(e->io, &command);
    return STATUS_OK;
}

/* ahead: 1 when prefetch had brought the block, else 0. */
static void count_resident(worker_engine *e, uint32_t seq, bool agnostic, uint8_t ahead)
{
    e->seq[seq].final.blocks.resident++;
    e->stats.blocks.resident++;
    e->stats.prefetch.used += ahead;
    if (agnostic) e->stats.agnostic_fetched += ahead;
    if (agnostic) e->stats.agnostic_ahead += ahead;
}

static void count_miss(worker_engine *e, uint32_t layer, bool agnostic, uint8_t ahead)
{
    e->stats.prefetch.wasted += ahead;
    e->stats.misses_by_layer[layer < 64 ? layer : 63]++;
    if (agnostic) e->stats.agnostic_fetched++;
}

/* Before the plan: which picks are resident, which of those prefetch brought, which are missing. */
void fetch_count_picks(worker_engine *e, uint32_t layer, const pick_buffers *picks)
{
    kern_table table = engine_table(e, layer);
    for (uint32_t r = 0; r < e->decode_rows; r++) {
        uint32_t seq = (uint32_t)e->row_seq[r];
        if (e->row_status[r] != STATUS_OK) continue;
        for (uint32_t h = 0; h < e->kv_heads; h++) {
            size_t at = (size_t)r * e->kv_heads + h;
            for (int32_t i = 0; i < picks->count[at]; i++) {
                int32_t b = picks->block[at * e->max_select + (size_t)i];
                if (b == e->row_pos[r] / KERN_BLOCK) continue;
                size_t entry = ((size_t)seq * e->kv_heads + h) * e->max_blocks + (size_t)b;
                bool resident = table.entry_of[entry] >= 0, agnostic = i < picks->settled[at];
                uint8_t *ahead = &e->ahead_bit[engine_home(e, seq, layer, h, (uint32_t)b)];
                if (resident)
                    count_resident(e, seq, agnostic, *ahead);
                else
                    count_miss(e, layer, agnostic, *ahead);
                *ahead = 0;
            }
        }
    }
}

/* ---- ahead of time --------------------------------------------------------------------------- */

static int32_t group_take(worker_engine *e)
{
    for (uint32_t g = 0; g < e->groups - e->layers; g++) {
        if (!e->prefetch[g].used) return (int32_t)(g + e->layers);
    }
    return -1;
}

static bool is_wanted(const worker_engine *e, const kern_exchange *x, uint32_t n,
                      const kern_miss *miss, uint32_t layer)
{
    const sequence *s = &e->seq[miss->seq];
    if (miss->block < 0 || (uint32_t)miss->block >= s->done / KERN_BLOCK) return false;
    size_t entry = ((size_t)miss->seq * e->kv_heads + (size_t)miss->kv_head) * e->max_blocks +
                   (size_t)miss->block;
    if (engine_table(e, layer).entry_of[entry] >= 0) return false;
    for (uint32_t i = 0; i < n; i++) {
        if (x->miss[i].kv_head == miss->kv_head && x->miss[i].block == miss->block) return false;
    }
    return true;
}

/* Ask for blocks [Hk, per_head] (-1 pads) of one layer, most wanted first, at most what the entries
 * hold. False: no group free, nothing asked. */
bool fetch_ahead(worker_engine *e, uint32_t seq, uint32_t layer, const int32_t *blocks,
                 uint32_t per_head, bool resume)
{
    if (!e->config.prefetch) return true; /* a resumed sequence's first step asks for itself */
    int32_t g = group_take(e);
    if (g < 0) return false;
    kern_exchange *x = &e->exchange[g];
    sequence *s = &e->seq[seq];
    uint32_t n = 0, room = (uint32_t)s->entries > 1 ? (uint32_t)s->entries - 1 : 1;
    for (uint32_t h = 0; h < e->kv_heads; h++) {
        uint32_t taken = 0;
        for (uint32_t i = 0; i < per_head && taken < room && n < x->capacity; i++) {
            kern_miss miss = {.row = -1,
                              .seq = (int32_t)seq,
                              .kv_head = (int32_t)h,
                              .block = blocks[(size_t)h * per_head + i],
                              .entry = -1,
                              .slot = -1,
                              .reserved = layer};
            if (!is_wanted(e, x, n, &miss, layer)) continue;
            x->miss[n] = miss;
            atomic_store(&x->arrival[n].state, STATUS_PENDING);
            n++;
            taken++;
        }
    }
    if (n == 0) return true;
    e->prefetch[g - (int32_t)e->layers] = (prefetch_group){.used = true,
                                                           .seq = (int32_t)seq,
                                                           .layer = (int32_t)layer,
                                                           .generation = s->generation,
                                                           .resume = resume};
    s->groups_open++;
    e->stats.prefetch.issued += n;
    atomic_store_explicit(&x->published, n, memory_order_release);
    io_command command = {.op = IO_FETCH,
                          .group = g,
                          .class = KV_PREFETCH,
                          .deadline_ns =
                              clock_now(&e->config.clock) + e->cluster.fetch_deadline_ns};
    io_send(e->io, &command);
    return true;
}

/* A group's arrivals go into the pool, if its sequence still has the entries it was meant for. */
void fetch_install(worker_engine *e, int32_t group)
{
    prefetch_group *p = &e->prefetch[group - (int32_t)e->layers];
    kern_exchange *x = &e->exchange[group];
    sequence *s = &e->seq[p->seq];
    CHECK(p->used && s->groups_open > 0);
    s->groups_open--;
    uint32_t count = atomic_load(&x->published), n = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (atomic_load_explicit(&x->arrival[i].state, memory_order_acquire) != STATUS_OK) continue;
        x->miss[n] = x->miss[i];
        x->arrival[n].source = x->arrival[i].source;
        x->arrival[n].seed = x->arrival[i].seed;
        x->arrival[n].digest = x->arrival[i].digest;
        x->arrival[n].source_kind = x->arrival[i].source_kind;
        atomic_store(&x->arrival[n].state, STATUS_OK);
        n++;
    }
    bool fits =
        p->generation == s->generation && (s->state == SEQ_ACTIVE || s->state == SEQ_RESUMING);
    if (fits && n > 0) {
        atomic_store(&x->published, n);
        kern_install_args install = {.exchange = x,
                                     .table = engine_table(e, (uint32_t)p->layer),
                                     .pool = e->pool,
                                     .block_bytes = e->block_bytes,
                                     .step = e->step_number,
                                     .keep_step =
                                         s->state == SEQ_ACTIVE ? e->step_number : s->resumed_step,
                                     .verify = e->config.verify};
        status result = kern_install(e->stream, &install);
        CHECK(result == STATUS_OK);
    }
    for (uint32_t i = 0; i < n; i++) {
        bool in = fits && atomic_load(&x->arrival[i].state) == STATUS_OK;
        if (in) {
            e->ahead_bit[engine_home(e, (uint32_t)p->seq, (uint32_t)p->layer,
                                     (uint32_t)x->miss[i].kv_head, (uint32_t)x->miss[i].block)] = 1;
        } else {
            e->stats.prefetch.wasted++;
        }
        if (!in) continue;
        bool host = x->arrival[i].source_kind == IO_SOURCE_HOST;
        *(host ? &e->stats.blocks.host : &e->stats.blocks.remote) += 1;
        *(host ? &s->final.blocks.host : &s->final.blocks.remote) += 1;
    }
    p->used = false;
    io_command command = {.op = IO_GATHERED, .group = group};
    io_send(e->io, &command);
}

/* Blocks of one layer that the next step may select and the pool lacks: out[Hk, max_select]. */
status fetch_candidates_of(worker_engine *e, uint32_t seq, uint32_t layer, bool forced,
                           int32_t *out)
{
    const sequence *s = &e->seq[seq];
    int32_t seq_index = (int32_t)seq, next = (int32_t)s->done;
    kern_candidates_args args = {.seq = &seq_index,
                                 .next_pos = &next,
                                 .selector = &s->selector,
                                 .selectors = e->selectors,
                                 .summary = engine_summary(e, layer),
                                 .table = engine_table(e, layer),
                                 .block = out,
                                 .n = 1,
                                 .max_candidates = e->max_select,
                                 .forced = forced};
    return kern_candidates(e->stream, &args);
}

/* Locality blocks that the next step may select and the pool lacks (NOSA: known before it starts).
 */
void fetch_candidates(worker_engine *e, uint32_t seq)
{
    sequence *s = &e->seq[seq];
    const kern_selector *selector = &e->selectors[s->selector];
    if (!selector->fill_by_importance || !e->config.prefetch) return;
    uint32_t per_head = e->max_select;
    int32_t *blocks = e->prefill.block; /* idle between steps */
    for (uint32_t l = 0; l < e->layers; l++) {
        if (fetch_candidates_of(e, seq, l, false, blocks) != STATUS_OK) return;
        if (!fetch_ahead(e, seq, l, blocks, per_head, false)) return;
    }
}

/* The sequence leaves the pool: what prefetch brought and nobody used was in vain. */
void fetch_forget_ahead(worker_engine *e, uint32_t seq)
{
    uint8_t *bits = e->ahead_bit + engine_home(e, seq, 0, 0, 0);
    size_t n = (size_t)e->layers * e->kv_heads * e->max_blocks;
    for (size_t i = 0; i < n; i++)
        e->stats.prefetch.wasted += bits[i];
    memset(bits, 0, n);
}
