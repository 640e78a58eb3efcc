/* kernels/select.c - windows to blocks, and which blocks a row attends to. Shared by `ref` and
 * `cpu`: nothing is computed, floats are only compared.
 *
 * Rule of NOSA (arXiv 2510.13602): forced blocks; then the best by query score until `query` blocks
 * are chosen, the forced ones counted; then the best of the rest by importance until `total`. Ties
 * go to the smaller block. Forced blocks are never dropped. A row that sees no more blocks than it
 * may hold takes all of them, and then all count as forced or filled: its query scores do not
 * exist. NSA's sliding window (arXiv 2502.11089) only adds storage blocks to the list, which its
 * own branch attends to; what the selection does not have of them is masked.
 *
 * Top-k is a heap of the best k seen so far, over keys that order like (value, then smaller block).
 */
#include "kernels/backend.h"
#include "kernels/selector.h"

#include <math.h>
#include <string.h>

enum { SMALL_BLOCKS = 1 << 11 };

/* ---- pool ------------------------------------------------------------------------------------ */

enum { POOL_ROWS = 16 };

/* Windows of block b without a division a block, where the stride divides the block. */
typedef struct window_walk {
    const kern_selector *selector;
    int64_t first_lo, first_hi, step; /* step 0: no such luck */
} window_walk;

static window_walk walk_of(const kern_selector *s)
{
    window_walk w = {.selector = s};
    if (s->block % s->stride != 0) return w;
    w.step = s->block / s->stride;
    w.first_lo = -(((int64_t)s->window - 1) / s->stride);
    w.first_hi = ((int64_t)s->block - 1) / s->stride + 1;
    return w;
}

static void walk_windows(const window_walk *w, uint32_t block, uint32_t visible, uint32_t *lo,
                         uint32_t *hi)
{
    if (w->step == 0) {
        selector_block_windows(w->selector, block, visible, lo, hi);
        return;
    }
    const int64_t from = w->first_lo + block * w->step, to = w->first_hi + block * w->step;
    *hi = to < (int64_t)visible ? (uint32_t)to : visible;
    *lo = from <= 0 ? 0 : from < (int64_t)*hi ? (uint32_t)from : *hi;
}

static float most_of(const float *values, uint32_t lo, uint32_t hi)
{
    float most = -INFINITY;
    for (uint32_t j = lo; j < hi; j++)
        most = values[j] > most ? values[j] : most;
    return most;
}

/* Mean over a complete block's windows; 0 of none stays -inf. */
static float mean_of(const float *values, uint32_t lo, uint32_t hi)
{
    float sum = 0.0f;
    for (uint32_t j = lo; j < hi; j++)
        sum += values[j];
    return hi > lo ? sum / (float)(hi - lo) : -INFINITY;
}

/* NSA (arXiv 2502.11089, equation 9): the sum over windows, each as often as it has strides in the
 * block: 1, 2, 2, 2, 1 for windows of 32 every 16 and blocks of 64. */
static float shares_of(const kern_selector *s, uint32_t block, const float *values, uint32_t lo,
                       uint32_t hi)
{
    const uint32_t first = block * s->block, end = first + s->block;
    float sum = 0.0f;
    for (uint32_t j = lo; j < hi; j++) {
        const uint32_t from = j * s->stride, to = from + s->window;
        const uint32_t tokens = (to < end ? to : end) - (from > first ? from : first);
        sum += (float)tokens / (float)s->stride * values[j];
    }
    return hi > lo ? sum : -INFINITY;
}

static float most_of_bf16(const uint16_t *values, uint32_t lo, uint32_t hi)
{
    float most = -INFINITY;
    for (uint32_t j = lo; j < hi; j++) {
        const float u = kern_bf16_to_f32(values[j]);
        most = u > most ? u : most;
    }
    return most;
}

/* One (row, KV head). known: importance of the row before of the same sequence and selector, right
 * for blocks below `known_end`; copying it is most of the saving in prefill. */
static void pool_row(const kern_pool_args *a, uint32_t row, uint32_t head, const float *known,
                     uint32_t known_end)
{
    const kern_summary *s = &a->summary;
    const kern_selector *selector = &a->selectors[a->row_selector[row]];
    const int32_t pos = a->row_pos[row];
    const uint32_t current = selector_current(selector, pos);
    uint32_t visible = selector_visible(selector, pos);
    if (visible > s->max_windows) visible = s->max_windows;
    const bool scored = selector_needs_scores(selector, pos);
    const uint64_t index = (uint64_t)row * s->kv_heads + head;
    const float *scores = a->scores + index * s->max_windows;
    const uint16_t *uc = s->uc + ((uint64_t)a->row_seq[row] * s->kv_heads + head) * s->max_windows;
    float *query = a->query + index * a->max_select_blocks;
    float *importance = a->importance + index * a->max_select_blocks;
    const window_walk walk = walk_of(selector);
    for (uint32_t b = 0; b <= current; b++) {
        if (selector_forced(selector, b, current)) {
            query[b] = importance[b] = INFINITY;
            continue;
        }
        uint32_t lo, hi;
        walk_windows(&walk, b, visible, &lo, &hi);
        query[b] = !scored               ? -INFINITY
                   : selector->raw       ? mean_of(scores, lo, hi)
                   : selector->near != 0 ? shares_of(selector, b, scores, lo, hi)
                                         : most_of(scores, lo, hi);
        importance[b] = b < known_end ? known[b] : most_of_bf16(uc, lo, hi);
    }
}

/* Blocks whose importance at the row is what it was at the row before: not forced there, and all
 * their windows were visible already. */
static uint32_t blocks_known(const kern_pool_args *a, uint32_t row)
{
    const uint32_t before = row - 1;
    if (a->row_seq[row] != a->row_seq[before] || a->row_selector[row] != a->row_selector[before] ||
        a->row_pos[row] < a->row_pos[before])
        return 0;
    const kern_selector *s = &a->selectors[a->row_selector[row]];
    const uint32_t current = selector_current(s, a->row_pos[before]);
    const uint32_t visible = selector_visible(s, a->row_pos[before]);
    uint32_t end = current > s->local ? current - s->local : 0, lo, hi;
    for (; end > 0; end--) {
        selector_block_windows(s, end - 1, UINT32_MAX, &lo, &hi);
        if (hi <= visible) break;
    }
    return end;
}

static void pool_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_pool_args *a = context;
    const uint32_t kv_heads = a->summary.kv_heads, head = task % kv_heads;
    const uint32_t first = task / kv_heads * POOL_ROWS;
    const uint32_t end = first + POOL_ROWS < a->rows ? first + POOL_ROWS : a->rows;
    for (uint32_t row = first; row < end; row++) {
        const uint32_t known = row > first ? blocks_known(a, row) : 0;
        const uint64_t before =
            ((uint64_t)(row > first ? row - 1 : row) * kv_heads + head) * a->max_select_blocks;
        pool_row(a, row, head, a->importance + before, known);
    }
}

status host_pool(kern_stream *stream, const kern_pool_args *args)
{
    const uint32_t kv_heads = args->summary.kv_heads;
    const uint32_t tasks = (args->rows + POOL_ROWS - 1) / POOL_ROWS * kv_heads;
    const uint64_t work = (uint64_t)args->rows * kv_heads * args->max_select_blocks;
    kern_team_run(stream->backend->team, tasks, work >= SMALL_BLOCKS, pool_task, args);
    return STATUS_OK;
}

/* ---- top-k ----------------------------------------------------------------------------------- */

/* Larger key = larger value, or the same value and a smaller block. NaN counts as -inf. */
static uint64_t rank_key(float value, uint32_t block)
{
    uint32_t bits;
    if (!(value == value)) value = -INFINITY;
    if (value == 0.0f) value = 0.0f; /* -0 equals +0 */
    memcpy(&bits, &value, sizeof bits);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (UINT32_MAX - block);
}

static uint32_t key_block(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* Smallest key on top of heap[0 .. count). */
static void heap_sink(uint64_t *heap, uint32_t count, uint64_t key)
{
    uint32_t i = 0;
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= key) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static void heap_rise(uint64_t *heap, uint32_t i, uint64_t key)
{
    while (i > 0 && heap[(i - 1) / 2] > key) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = key;
}

enum { PART_NONE, PART_SETTLED, PART_QUERY, PART_KEPT };

/* Blocks [first, end) whose mark is `from`: the `want` best of them get the mark `to`. */
typedef struct mark_rule {
    uint32_t first, end, want;
    uint8_t from, to;
} mark_rule;

static void mark_best(const float *value, mark_rule rule, uint8_t *part, uint64_t *heap)
{
    uint32_t held = 0;
    const uint32_t want = rule.want;
    if (want == 0) return;
    for (uint32_t b = rule.first; b < rule.end; b++) {
        if (part[b] != rule.from) continue;
        const uint64_t key = rank_key(value[b], b);
        if (held < want)
            heap_rise(heap, held++, key);
        else if (key > heap[0])
            heap_sink(heap, held, key);
    }
    for (uint32_t i = 0; i < held; i++)
        part[key_block(heap[i])] = rule.to;
}

/* What SSA's released kernel leaves of an exact top-k: a sorted buffer of `chunk` blocks gives up
 * its worse half for the better half of each further chunk, so all before the last chunk share
 * chunk / 2 places and the last has as many, the current block's among them. */
static void mark_by_chunks(const float *value, uint32_t chunk, uint32_t current, uint32_t picks,
                           uint8_t *part, uint64_t *heap)
{
    const uint32_t last = current / chunk * chunk, half = chunk / 2;
    mark_best(value, (mark_rule){0, last, half, PART_NONE, PART_KEPT}, part, heap);
    mark_best(value, (mark_rule){last, current, half - 1, PART_NONE, PART_KEPT}, part, heap);
    mark_best(value, (mark_rule){0, current, picks, PART_KEPT, PART_QUERY}, part, heap);
    for (uint32_t b = 0; b < current; b++)
        if (part[b] == PART_KEPT) part[b] = PART_NONE;
}

/* ---- select ---------------------------------------------------------------------------------- */

/* part[b] for b <= current. */
static void choose(const kern_selector *selector, int32_t pos, const float *query,
                   const float *importance, uint8_t *part, uint64_t *heap)
{
    const uint32_t current = selector_current(selector, pos);
    if (selector_takes_all(selector, pos)) {
        memset(part, PART_SETTLED, current + 1);
        return;
    }
    uint32_t forced = 0;
    for (uint32_t b = 0; b <= current; b++) {
        part[b] = selector_forced(selector, b, current) ? PART_SETTLED : PART_NONE;
        forced += part[b];
    }
    const uint32_t picks = selector->query > forced ? selector->query - forced : 0;
    if (selector->chunk != 0 && current >= selector->chunk) {
        mark_by_chunks(query, selector->chunk, current, picks, part, heap);
        return;
    }
    const uint32_t end = current + 1;
    mark_best(query, (mark_rule){0, end, picks, PART_NONE, PART_QUERY}, part, heap);
    if (!selector->fill_by_importance) return;
    const uint32_t held = forced + picks;
    const uint32_t fill = selector->total > held ? selector->total - held : 0;
    mark_best(importance, (mark_rule){0, end, fill, PART_NONE, PART_SETTLED}, part, heap);
}

/* Which 16-token parts of storage block `storage` are selected, and whether any of them is settled.
 */
static uint8_t storage_mask(uint32_t block_tokens, const uint8_t *part, uint32_t current,
                            uint32_t storage, bool *out_settled)
{
    if (block_tokens >= KERN_BLOCK) {
        const uint8_t whole = part[storage / (block_tokens / KERN_BLOCK)];
        *out_settled = whole == PART_SETTLED;
        return whole == PART_NONE ? 0 : 0xf;
    }
    uint8_t mask = 0;
    *out_settled = false;
    for (uint32_t i = 0; i < KERN_BLOCK / 16; i++) {
        const uint32_t b = (storage * KERN_BLOCK + i * 16) / block_tokens;
        if (b > current || part[b] == PART_NONE) continue;
        mask = (uint8_t)(mask | 1u << i);
        if (part[b] == PART_SETTLED) *out_settled = true;
    }
    return mask;
}

static void select_task(const void *context, uint32_t task, void *scratch)
{
    const kern_select_args *a = context;
    const uint32_t row = task / a->kv_heads;
    const kern_selector *selector = &a->selectors[a->row_selector[row]];
    const int32_t pos = a->row_pos[row];
    const uint64_t from = (uint64_t)task * a->max_select_blocks;
    uint64_t *heap = scratch;
    uint8_t *part = (uint8_t *)scratch + KERN_SELECT_BLOCKS_MAX * sizeof *heap;
    choose(selector, pos, a->query + from, a->importance + from, part, heap);

    const uint32_t current = selector_current(selector, pos), last = (uint32_t)pos / KERN_BLOCK;
    const uint32_t near = selector_near_first(selector, pos);
    int32_t *block = a->block + (uint64_t)task * a->max_select;
    uint8_t *mask = a->mask + (uint64_t)task * a->max_select;
    uint32_t count = 0;
    for (int settled_pass = 1; settled_pass >= 0; settled_pass--) {
        for (uint32_t s = 0; s <= last; s++) {
            bool settled;
            const uint8_t m = storage_mask(selector->block, part, current, s, &settled);
            if (m == 0 && s < near) continue;
            if ((settled || s >= near) != (settled_pass == 1)) continue;
            CHECK(count < a->max_select);
            block[count] = (int32_t)s;
            mask[count++] = m;
        }
        if (settled_pass == 1) a->settled[task] = (int32_t)count;
    }
    a->count[task] = (int32_t)count;
    for (uint32_t e = count; e < a->max_select; e++) {
        block[e] = -1;
        mask[e] = 0;
    }
}

status host_select(kern_stream *stream, const kern_select_args *args)
{
    const uint32_t tasks = args->rows * args->kv_heads;
    const bool parallel = (uint64_t)tasks * args->max_select_blocks >= SMALL_BLOCKS;
    kern_team_run(stream->backend->team, tasks, parallel, select_task, args);
    return STATUS_OK;
}

/* ---- candidates ------------------------------------------------------------------------------ */

typedef struct candidate_list {
    int32_t *block;
    uint32_t count, max;
} candidate_list;

/* Add those of storage blocks first .. last that are complete before `next` and not in the table.
 */
static void offer_storage(const kern_candidates_args *a, uint64_t place, uint32_t first,
                          uint32_t last, int32_t next, candidate_list *list)
{
    for (uint32_t s = first; s <= last; s++) {
        if ((uint64_t)(s + 1) * KERN_BLOCK > (uint64_t)next || s >= a->table.max_blocks) continue;
        if (a->table.entry_of[place * a->table.max_blocks + s] >= 0) continue;
        bool known = false;
        for (uint32_t i = 0; i < list->count; i++)
            known |= list->block[i] == (int32_t)s;
        if (!known && list->count < list->max) list->block[list->count++] = (int32_t)s;
    }
}

/* The same for selection block b. */
static void offer(const kern_candidates_args *a, const kern_selector *selector, uint64_t place,
                  uint32_t b, int32_t next, candidate_list *list)
{
    const uint32_t first = b * selector->block / KERN_BLOCK;
    const uint32_t last = (b * selector->block + selector->block - 1) / KERN_BLOCK;
    offer_storage(a, place, first, last, next, list);
}

/* Best first: the heap gives the smallest of what it holds, so it is emptied from the back. */
static uint32_t best_by_importance(const kern_summary *s, const kern_selector *selector,
                                   uint64_t place, int32_t next, uint32_t want, uint64_t *heap)
{
    const uint32_t current = selector_current(selector, next);
    uint32_t visible = selector_windows_at(selector->window, selector->stride, next - 1);
    if (visible > s->max_windows) visible = s->max_windows;
    const uint16_t *uc = s->uc + place * s->max_windows;
    uint32_t held = 0;
    for (uint32_t b = 0; b <= current && want > 0; b++) {
        if (selector_forced(selector, b, current)) continue;
        uint32_t lo, hi;
        selector_block_windows(selector, b, visible, &lo, &hi);
        float most = -INFINITY;
        for (uint32_t j = lo; j < hi; j++) {
            const float u = kern_bf16_to_f32(uc[j]);
            if (u > most) most = u;
        }
        const uint64_t key = rank_key(most, b);
        if (held < want)
            heap_rise(heap, held++, key);
        else if (key > heap[0])
            heap_sink(heap, held, key);
    }
    for (uint32_t left = held; left > 1; left--) {
        const uint64_t least = heap[0];
        heap_sink(heap, left - 1, heap[left - 1]);
        heap[left - 1] = least;
    }
    return held;
}

static void candidates_task(const void *context, uint32_t task, void *scratch)
{
    const kern_candidates_args *a = context;
    const kern_summary *s = &a->summary;
    const uint32_t i = task / s->kv_heads, head = task % s->kv_heads;
    const kern_selector *selector = &a->selectors[a->selector[i]];
    const int32_t next = a->next_pos[i];
    const uint32_t current = selector_current(selector, next);
    const uint64_t place = (uint64_t)a->seq[i] * s->kv_heads + head;
    candidate_list list = {a->block + (uint64_t)task * a->max_candidates, 0, a->max_candidates};
    uint32_t forced = 0;
    for (uint32_t b = 0; b <= current; b++) {
        if (!selector_forced(selector, b, current)) continue;
        forced++;
        if (a->forced) offer(a, selector, place, b, next, &list);
    }
    if (a->forced)
        offer_storage(a, place, selector_near_first(selector, next), (uint32_t)next / KERN_BLOCK,
                      next, &list);
    uint32_t want = 0;
    if (selector_takes_all(selector, next))
        want = current + 1 - forced;
    else if (selector->fill_by_importance)
        want = selector_fill(selector, forced, a->forced);
    uint64_t *heap = scratch;
    const uint32_t held = best_by_importance(s, selector, place, next, want, heap);
    for (uint32_t k = 0; k < held && list.count < list.max; k++)
        offer(a, selector, place, key_block(heap[k]), next, &list);
    for (uint32_t k = list.count; k < list.max; k++)
        list.block[k] = -1;
}

status host_candidates(kern_stream *stream, const kern_candidates_args *args)
{
    const uint32_t tasks = args->n * args->summary.kv_heads;
    kern_team_run(stream->backend->team, tasks, tasks >= 16, candidates_task, args);
    return STATUS_OK;
}
