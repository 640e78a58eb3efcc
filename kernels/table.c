/* kernels/table.c - the block table during a step: diff a selection against it, choose victims,
 * list the misses (plan), and put blocks that came early into it (install). Shared by `ref` and
 * `cpu`; one thread, rows and heads in order, so the outcome depends on nothing but the arguments.
 *
 * An entry is free to be taken when it holds no block, or one that no row planned so far in this
 * call selects. `used_step == step` is only a hint for that (install may have written it too), so
 * such entries are looked up in the selections. */
#include "kernels/backend.h"

#include <math.h>
#include <string.h>

/* One (sequence, KV head) of the table. */
typedef struct table_view {
    int32_t *entry_of, *block_of;
    const int32_t *slot_of;
    uint32_t *used_step;
    uint32_t entries;
} table_view;

static table_view view_of(const kern_table *t, int32_t seq, uint32_t head)
{
    const uint64_t place = (uint64_t)seq * t->kv_heads + head;
    table_view v = {t->entry_of + place * t->max_blocks, t->block_of + place * t->max_entries,
                    t->slot_of + place * t->max_entries, t->used_step + place * t->max_entries,
                    (uint32_t)t->entries[seq]};
    CHECK(v.entries <= t->max_entries);
    return v;
}

static void unmap(table_view *v, uint32_t entry)
{
    const int32_t block = v->block_of[entry];
    if (block < 0) return;
    v->entry_of[block] = -1;
    v->block_of[entry] = -1;
}

static void map(table_view *v, uint32_t entry, int32_t block, uint32_t step)
{
    unmap(v, entry);
    v->entry_of[block] = (int32_t)entry;
    v->block_of[entry] = block;
    v->used_step[entry] = step;
}

/* ---- plan ------------------------------------------------------------------------------------ */

static bool row_planned(const kern_plan_args *a, uint32_t row)
{
    return (a->row_on == NULL || a->row_on[row] != 0) && a->row_status[row] == STATUS_OK;
}

static bool selects(const kern_plan_args *a, uint64_t index, int32_t block)
{
    for (int32_t e = 0; e < a->count[index]; e++)
        if (a->block[index * a->max_select + (uint64_t)e] == block) return true;
    return false;
}

/* Whether a row of this sequence up to `row` needs what the entry holds. */
static bool entry_needed(const kern_plan_args *a, uint32_t row, uint32_t head, const table_view *v,
                         uint32_t entry)
{
    if (v->used_step[entry] != a->step) return false;
    for (uint32_t r = 0; r <= row; r++)
        if (a->row_seq[r] == a->row_seq[row] && row_planned(a, r) &&
            selects(a, (uint64_t)r * a->table.kv_heads + head, v->block_of[entry]))
            return true;
    return false;
}

/* Importance of a storage block: the most of its selection blocks that the row sees. */
static float block_importance(const kern_plan_args *a, uint64_t index, int32_t pos, int32_t block)
{
    const uint32_t current = (uint32_t)pos / a->select_block;
    const uint32_t first = (uint32_t)block * KERN_BLOCK / a->select_block;
    const uint32_t last = ((uint32_t)block * KERN_BLOCK + KERN_BLOCK - 1) / a->select_block;
    float most = -INFINITY;
    for (uint32_t b = first; b <= last && b <= current && b < a->max_select_blocks; b++) {
        const float x = a->importance[index * a->max_select_blocks + b];
        if (x > most) most = x;
    }
    return most;
}

/* The entry to give away: a free one, else least recently used, least important, lowest. -1: none.
 */
static int32_t choose_entry(const kern_plan_args *a, uint32_t row, uint32_t head,
                            const table_view *v)
{
    int32_t best = -1;
    float best_importance = 0.0f;
    const uint64_t index = (uint64_t)row * a->table.kv_heads + head;
    for (uint32_t e = 0; e < v->entries; e++) {
        if (v->block_of[e] < 0) return (int32_t)e;
        if (best >= 0 && v->used_step[e] > v->used_step[best]) continue;
        if (entry_needed(a, row, head, v, e)) continue;
        const float importance = block_importance(a, index, a->row_pos[row], v->block_of[e]);
        if (best < 0 || v->used_step[e] < v->used_step[best] || importance < best_importance) {
            best = (int32_t)e;
            best_importance = importance;
        }
    }
    return best;
}

static uint32_t entries_to_give(const kern_plan_args *a, uint32_t row, uint32_t head,
                                const table_view *v)
{
    uint32_t count = 0;
    for (uint32_t e = 0; e < v->entries; e++)
        count += v->block_of[e] < 0 || !entry_needed(a, row, head, v, e);
    return count;
}

/* A block that a row starts: its tokens are about to be written, nobody has to fetch it. */
static bool starts_block(int32_t pos, int32_t block)
{
    return pos % KERN_BLOCK == 0 && block == pos / KERN_BLOCK;
}

typedef struct plan_counts {
    uint32_t published, unanswered;
} plan_counts;

/* What lies in host memory has arrived. True: somebody has to bring it. */
static bool publish_arrival(const kern_plan_args *a, const kern_miss *miss, kern_arrival *arrival)
{
    const kern_homes *h = &a->homes;
    int32_t slot = -1, state = STATUS_PENDING;
    if (h->home != NULL) {
        const kern_home *home = h->home + (uint64_t)miss->seq * h->seq_stride +
                                (uint64_t)miss->kv_head * a->table.max_blocks +
                                (uint64_t)miss->block;
        slot = atomic_load_explicit(&home->slot, memory_order_acquire);
        if (slot >= 0) {
            arrival->source = h->memory + (uint64_t)slot * h->block_bytes;
            arrival->seed = home->seed;
            arrival->digest = home->digest;
            arrival->source_kind = KERN_FROM_HOME;
            state = STATUS_OK;
        }
    }
    atomic_store_explicit(&arrival->state, state, memory_order_relaxed);
    return slot < 0;
}

static uint64_t late_bytes(const kern_plan_args *a)
{
    return (a->max_select + KERN_LATE_ENTRIES - 1) / KERN_LATE_ENTRIES;
}

static void mark_late(const kern_plan_args *a, uint64_t index, uint32_t e)
{
    uint8_t *late = a->late + index * late_bytes(a);
    late[e / KERN_LATE_ENTRIES] |= (uint8_t)(1u << e % KERN_LATE_ENTRIES / KERN_GROUP_ENTRIES);
}

static status plan_head(const kern_plan_args *a, uint32_t row, uint32_t head, plan_counts *n)
{
    const uint64_t index = (uint64_t)row * a->table.kv_heads + head, list = index * a->max_select;
    table_view v = view_of(&a->table, a->row_seq[row], head);
    uint32_t missing = 0;
    for (int32_t e = 0; e < a->count[index]; e++) {
        const int32_t block = a->block[list + (uint64_t)e];
        const int32_t entry = v.entry_of[block];
        if (entry >= 0)
            v.used_step[entry] = a->step;
        else
            missing++;
    }
    if (missing > 0 && missing > entries_to_give(a, row, head, &v)) return STATUS_NO_MEMORY;
    for (int32_t e = 0; e < a->count[index]; e++) {
        const int32_t block = a->block[list + (uint64_t)e];
        int32_t entry = v.entry_of[block];
        if (entry >= 0) {
            a->slot[list + (uint64_t)e] = v.slot_of[entry];
            a->row_hits[row] += block != a->row_pos[row] / KERN_BLOCK;
            continue;
        }
        entry = choose_entry(a, row, head, &v);
        CHECK(entry >= 0);
        map(&v, (uint32_t)entry, block, a->step);
        a->slot[list + (uint64_t)e] = v.slot_of[entry];
        if (starts_block(a->row_pos[row], block)) continue;
        if (a->late != NULL) mark_late(a, index, (uint32_t)e);
        a->row_misses[row]++;
        CHECK(n->published < a->exchange->capacity);
        kern_miss *miss = &a->exchange->miss[n->published];
        *miss = (kern_miss){
            (int32_t)row, a->row_seq[row],  (int32_t)head,         block,
            entry,        v.slot_of[entry], e < a->settled[index], (uint32_t)list + (uint32_t)e};
        n->unanswered += publish_arrival(a, miss, &a->exchange->arrival[n->published]);
        n->published++;
    }
    return STATUS_OK;
}

status host_plan(kern_stream *stream, const kern_plan_args *args)
{
    (void)stream;
    plan_counts n = {0, 0};
    for (uint32_t row = 0; row < args->rows; row++) {
        if (args->row_on != NULL && args->row_on[row] == 0) continue;
        const uint64_t list = (uint64_t)row * args->table.kv_heads * args->max_select;
        for (uint64_t e = 0; e < (uint64_t)args->table.kv_heads * args->max_select; e++)
            args->slot[list + e] = -1;
        const uint64_t late = (uint64_t)args->table.kv_heads * late_bytes(args);
        if (args->late != NULL) memset(args->late + row * late, 0, late);
        for (uint32_t head = 0; head < args->table.kv_heads; head++) {
            if (args->row_status[row] != STATUS_OK) break;
            args->row_status[row] = plan_head(args, row, head, &n);
        }
    }
    /* All at once: who sees a number takes it for the whole. */
    if (n.unanswered == 0)
        atomic_store_explicit(&args->exchange->answered, args->step, memory_order_relaxed);
    atomic_store_explicit(&args->exchange->unanswered, n.unanswered, memory_order_relaxed);
    atomic_store_explicit(&args->exchange->published, n.published, memory_order_release);
    return STATUS_OK;
}

/* ---- locate -----------------------------------------------------------------------------------
 */

static int32_t slot_of_block(const kern_locate_args *a, uint32_t row, uint32_t head, int32_t block)
{
    if (a->home != NULL) return a->home[(uint64_t)head * a->table.max_blocks + (uint64_t)block];
    table_view v = view_of(&a->table, a->row_seq[row], head);
    const int32_t entry = v.entry_of[block];
    return entry < 0 ? -1 : v.slot_of[entry];
}

status host_locate(kern_stream *stream, const kern_locate_args *args)
{
    (void)stream;
    for (uint32_t row = 0; row < args->rows; row++) {
        for (uint32_t head = 0; head < args->table.kv_heads; head++) {
            const uint64_t index = (uint64_t)row * args->table.kv_heads + head;
            int32_t *slot = args->slot + index * args->max_select;
            if (args->block == NULL) {
                *slot = slot_of_block(args, row, head, args->row_pos[row] / KERN_BLOCK);
                continue;
            }
            const int32_t *block = args->block + index * args->max_select;
            for (int32_t i = 0; i < args->count[index]; i++)
                slot[i] = slot_of_block(args, row, head, block[i]);
        }
    }
    return STATUS_OK;
}

/* ---- arrivals -------------------------------------------------------------------------------- */

/* Copy, then digest what was copied: the bytes that will be attended to are the ones that were
 * checked. */
static bool take_block(uint8_t *target, const kern_arrival *arrival, uint32_t bytes, bool verify)
{
    memcpy(target, arrival->source, bytes);
    return !verify || bytes_digest(target, bytes, arrival->seed) == arrival->digest;
}

typedef struct gather_job {
    const kern_gather_args *a;
} gather_job;

static void gather_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_gather_args *a = ((const gather_job *)context)->a;
    kern_arrival *arrival = &a->exchange->arrival[task];
    const int32_t state = atomic_load_explicit(&arrival->state, memory_order_acquire);
    if (state != STATUS_OK) {
        if (state == STATUS_PENDING)
            atomic_store_explicit(&arrival->state, STATUS_DEADLINE, memory_order_relaxed);
        return;
    }
    uint8_t *target = a->pool + (uint64_t)a->exchange->miss[task].slot * a->block_bytes;
    if (!take_block(target, arrival, a->block_bytes, a->verify))
        atomic_store_explicit(&arrival->state, STATUS_CORRUPT, memory_order_relaxed);
}

status host_gather(kern_stream *stream, const kern_gather_args *args)
{
    const gather_job job = {args};
    const uint32_t count = atomic_load_explicit(&args->exchange->published, memory_order_acquire);
    kern_team_run(stream->backend->team, count, count >= 4, gather_task, &job);
    for (uint32_t i = 0; i < count; i++) {
        const int32_t state =
            atomic_load_explicit(&args->exchange->arrival[i].state, memory_order_relaxed);
        if (state == STATUS_OK) continue;
        const kern_miss *miss = &args->exchange->miss[i];
        table_view v = view_of(&args->table, miss->seq, (uint32_t)miss->kv_head);
        if (miss->entry >= 0 && v.block_of[miss->entry] == miss->block)
            unmap(&v, (uint32_t)miss->entry);
        if (miss->row >= 0 && args->row_status != NULL && args->row_status[miss->row] == STATUS_OK)
            args->row_status[miss->row] = state;
    }
    return STATUS_OK;
}

/* ---- install --------------------------------------------------------------------------------- */

static int32_t install_entry(const table_view *v, uint32_t keep_step)
{
    int32_t best = -1;
    for (uint32_t e = 0; e < v->entries; e++) {
        if (v->block_of[e] < 0) return (int32_t)e;
        if (v->used_step[e] >= keep_step) continue;
        if (best < 0 || v->used_step[e] < v->used_step[best]) best = (int32_t)e;
    }
    return best;
}

static status install_one(const kern_install_args *a, kern_miss *miss)
{
    table_view v = view_of(&a->table, miss->seq, (uint32_t)miss->kv_head);
    miss->entry = miss->slot = -1;
    if (v.entry_of[miss->block] >= 0) return STATUS_STALE;
    const int32_t entry = install_entry(&v, a->keep_step[miss->seq]);
    if (entry < 0) return STATUS_BUSY;
    map(&v, (uint32_t)entry, miss->block, a->step);
    miss->entry = entry;
    miss->slot = v.slot_of[entry];
    return STATUS_OK;
}

status host_install(kern_stream *stream, const kern_install_args *args)
{
    const uint32_t count = atomic_load_explicit(&args->exchange->published, memory_order_acquire);
    for (uint32_t i = 0; i < count; i++) {
        kern_arrival *arrival = &args->exchange->arrival[i];
        kern_miss *miss = &args->exchange->miss[i];
        miss->row = miss->entry = -1;
        if (atomic_load_explicit(&arrival->state, memory_order_acquire) != STATUS_OK) continue;
        atomic_store_explicit(&arrival->state, install_one(args, miss), memory_order_relaxed);
    }
    const kern_gather_args gather = {.exchange = args->exchange,
                                     .table = args->table,
                                     .pool = args->pool,
                                     .block_bytes = args->block_bytes,
                                     .verify = args->verify};
    return host_gather(stream, &gather);
}

/* ---- wait ------------------------------------------------------------------------------------ */

static bool all_arrived(const kern_exchange *x, uint32_t *from, uint32_t count)
{
    while (*from < count &&
           atomic_load_explicit(&x->arrival[*from].state, memory_order_acquire) != STATUS_PENDING)
        ++*from;
    return *from == count;
}

/* A compare-and-swap, since the io side may answer at the same moment: whoever is first decides. */
status host_wait(kern_stream *stream, const kern_wait_args *args)
{
    (void)stream;
    kern_exchange *x = args->exchange;
    const kern_host *host = args->host;
    const uint32_t count = atomic_load_explicit(&x->published, memory_order_acquire);
    if (count == 0) return STATUS_OK;
    host->notify(host->self);
    const uint64_t start = clock_now(&host->clock);
    uint64_t now = start;
    uint32_t from = 0;
    while (!all_arrived(x, &from, count) && now < args->deadline_ns) {
        host->pause(host->self, args->deadline_ns);
        now = clock_now(&host->clock);
    }
    for (uint32_t i = from; i < count; i++) {
        int32_t pending = STATUS_PENDING;
        (void)atomic_compare_exchange_strong(&x->arrival[i].state, &pending, STATUS_DEADLINE);
    }
    if (args->waited_ns != NULL) *args->waited_ns += now - start;
    return STATUS_OK;
}

/* ---- seal ------------------------------------------------------------------------------------ */

static void seal_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_seal_args *a = context;
    const uint8_t *bytes = a->pool + (uint64_t)a->slot[task] * a->block_bytes;
    if (a->copy != NULL && a->copy[task] != NULL) {
        memcpy(a->copy[task], bytes, a->block_bytes);
        bytes = a->copy[task]; /* the digest vouches for what is sent */
    }
    a->digest[task] = bytes_digest(bytes, a->block_bytes, a->seed[task]);
}

status host_seal(kern_stream *stream, const kern_seal_args *args)
{
    kern_team_run(stream->backend->team, args->n, args->n >= 4, seal_task, args);
    return STATUS_OK;
}

/* ---- digest ---------------------------------------------------------------------------------- */

static void digest_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_digest_args *a = context;
    a->digest[task] =
        bytes_digest(a->x + (uint64_t)task * a->count, (uint64_t)a->count * sizeof(float), 0);
}

status host_digest(kern_stream *stream, const kern_digest_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->count >= 1 << 18;
    kern_team_run(stream->backend->team, args->rows, parallel, digest_task, args);
    return STATUS_OK;
}
