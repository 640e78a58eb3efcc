/* tests/kernels/test_select.c - pool and select against the rule written out in the plainest way,
 * row by row over whole sequences; and what must hold of any selection. */
#include "kernels/kernels.h"
#include "tests/test.h"

enum { KV = 2, TOKENS = 1400, WINDOWS = 100, N = 90, MOST = 24 };

typedef struct rig {
    kern_backend *backend;
    kern_stream *stream;
    uint16_t uc[KV * WINDOWS];
    float scores[TOKENS * KV * WINDOWS];
    float query[TOKENS * KV * N], importance[TOKENS * KV * N];
    int32_t block[TOKENS * KV * MOST], count[TOKENS * KV], settled[TOKENS * KV];
    uint8_t mask[TOKENS * KV * MOST];
    int32_t seq[TOKENS], pos[TOKENS], which[TOKENS];
    kern_selector selector;
} rig;

static rig *rig_open(const kern_selector *selector, uint64_t seed)
{
    static rig r;
    memset(&r, 0, sizeof r);
    r.selector = *selector;
    const kern_config config = {.backend = "cpu", .threads = 2};
    EXPECT_OK(kern_backend_open(&config, &r.backend));
    EXPECT_OK(kern_stream_create(r.backend, &r.stream));
    rng random;
    rng_seed(&random, test_seed() * 1000 + seed);
    for (int i = 0; i < KV * WINDOWS; i++) /* few values, so that ties are common */
        r.uc[i] = kern_f32_to_bf16((float)rng_below(&random, 16) - 8.0f);
    for (int i = 0; i < TOKENS * KV * WINDOWS; i++)
        r.scores[i] = (float)rng_below(&random, 40) * 0.025f;
    for (int i = 0; i < TOKENS; i++)
        r.pos[i] = i;
    return &r;
}

static void rig_close(rig *r)
{
    kern_stream_destroy(r->stream);
    kern_backend_close(r->backend);
}

static kern_summary summary_of(const rig *r)
{
    return (kern_summary){.uc = (uint16_t *)r->uc,
                          .seqs = 1,
                          .kv_heads = KV,
                          .head_dim = 64,
                          .max_windows = WINDOWS,
                          .max_tokens = TOKENS,
                          .window = r->selector.window,
                          .stride = r->selector.stride};
}

static status run(rig *r, uint32_t first, uint32_t rows, uint32_t max_select)
{
    const uint64_t list = (uint64_t)first * KV;
    const kern_pool_args pool = {.scores = r->scores + list * WINDOWS,
                                 .row_seq = r->seq + first,
                                 .row_pos = r->pos + first,
                                 .row_selector = r->which + first,
                                 .selectors = &r->selector,
                                 .summary = summary_of(r),
                                 .query = r->query + list * N,
                                 .importance = r->importance + list * N,
                                 .rows = rows,
                                 .max_select_blocks = N};
    TRY(kern_pool(r->stream, &pool));
    const kern_select_args select = {.query = pool.query,
                                     .importance = pool.importance,
                                     .row_pos = pool.row_pos,
                                     .row_selector = pool.row_selector,
                                     .selectors = &r->selector,
                                     .block = r->block + list * MOST,
                                     .mask = r->mask + list * MOST,
                                     .count = r->count + list,
                                     .settled = r->settled + list,
                                     .rows = rows,
                                     .kv_heads = KV,
                                     .max_select_blocks = N,
                                     .max_select = max_select};
    return kern_select(r->stream, &select);
}

/* ---- the rule, written out ------------------------------------------------------------------- */

/* Largest value of the windows that share a token with block b and are complete at token `last`;
 * with a sliding window the sum of scores, each times the strides that window and block share. */
static double pooled(const rig *r, int row, int head, int b, bool by_query)
{
    const kern_selector *s = &r->selector;
    const int last = s->source == SOURCE_OWN ? r->pos[row] : r->pos[row] - 1;
    double most = -INFINITY;
    float sum = 0.0f;
    for (int j = 0; j < WINDOWS; j++) {
        const int from = j * (int)s->stride, to = from + (int)s->window - 1;
        const int block_from = b * (int)s->block, block_to = block_from + (int)s->block - 1;
        if (to > last || to < block_from || from > block_to) continue;
        const double value = by_query ? (double)r->scores[(row * KV + head) * WINDOWS + j]
                                      : (double)kern_bf16_to_f32(r->uc[head * WINDOWS + j]);
        most = fmax(most, value);
        const int shared =
            1 + (to < block_to ? to : block_to) - (from > block_from ? from : block_from);
        sum += (float)shared / (float)s->stride * (float)value;
    }
    return s->near != 0 && by_query && most > -INFINITY ? (double)sum : most;
}

/* The best block that is not chosen yet; -1: none is left. */
static int best_left(const rig *r, int row, int head, const int *chosen, int current, bool by_query)
{
    int best = -1;
    double most = 0.0;
    for (int b = 0; b <= current; b++) {
        if (chosen[b] != 0) continue;
        const double value = pooled(r, row, head, b, by_query);
        if (best < 0 || value > most) {
            best = b;
            most = value;
        }
    }
    return best;
}

/* chosen[b]: 0 no, 1 forced or filled, 2 query pick. */
static void choose(const rig *r, int row, int head, int *chosen)
{
    const kern_selector *s = &r->selector;
    const int current = r->pos[row] / (int)s->block;
    int held = 0;
    const bool all =
        s->total == UINT32_MAX || (uint32_t)current < (s->fill_by_importance ? s->total : s->query);
    for (int b = 0; b <= current; b++) {
        chosen[b] = all || b < (int)s->init || b >= current - (int)s->local;
        held += chosen[b];
    }
    for (int b; held < (int)s->query && (b = best_left(r, row, head, chosen, current, true)) >= 0;
         held++)
        chosen[b] = 2;
    for (int b; s->fill_by_importance && held < (int)s->total &&
                (b = best_left(r, row, head, chosen, current, false)) >= 0;
         held++)
        chosen[b] = 1;
}

static void expect_list(const rig *r, int row, int head)
{
    int chosen[N] = {0};
    choose(r, row, head, chosen);
    const int tokens = (int)r->selector.block, at = row * KV + head;
    int count = 0;
    for (int pass = 1; pass <= 2; pass++) {
        for (int s = 0; s <= r->pos[row] / 64; s++) {
            int mask = 0, settled = 0;
            for (int part = 0; part < 4; part++) {
                const int b = (s * 64 + part * 16) / tokens;
                if (b > r->pos[row] / tokens || chosen[b] == 0) continue;
                mask |= 1 << part;
                settled |= chosen[b] == 1;
            }
            const int near = s * 64 + 63 > r->pos[row] - (int)r->selector.near; /* in the window */
            if (mask == 0 && !near) continue;
            if ((settled || near) != (pass == 1)) continue;
            EXPECT_MSG(r->block[at * MOST + count] == s && r->mask[at * MOST + count] == mask,
                       "row %d head %d entry %d is block %d mask %d, expected %d mask %d", row,
                       head, count, r->block[at * MOST + count], r->mask[at * MOST + count], s,
                       mask);
            count++;
        }
        if (pass == 1) EXPECT_EQ_I64(r->settled[at], count);
    }
    EXPECT_EQ_I64(r->count[at], count);
    for (; count < MOST; count++)
        EXPECT(r->block[at * MOST + count] == -1 && r->mask[at * MOST + count] == 0);
}

static void expect_rule(const kern_selector *selector, uint64_t seed)
{
    rig *r = rig_open(selector, seed);
    EXPECT_OK(run(r, 0, TOKENS, MOST));
    for (int row = 0; row < TOKENS; row++)
        for (int head = 0; head < KV; head++)
            expect_list(r, row, head);
    rig_close(r);
}

/* ---- tests ----------------------------------------------------------------------------------- */

TEST(nosa_selects_by_the_rule_at_every_position)
{
    expect_rule(&(kern_selector){32, 16, 64, 1, 2, 7, 10, true, true, SOURCE_OWN, 0, false, 0}, 1);
}

TEST(a_selection_made_a_token_early_sees_one_token_less)
{
    expect_rule(&(kern_selector){32, 16, 64, 1, 2, 7, 10, true, true, SOURCE_STEP, 0, false, 0}, 2);
    expect_rule(&(kern_selector){32, 16, 64, 1, 0, 4, 8, true, true, SOURCE_INPUT, 0, false, 0}, 3);
}

static bool is_selected(const rig *r, int row, int head, int32_t block)
{
    const int at = row * KV + head;
    for (int i = 0; i < r->count[at]; i++)
        if (r->block[at * MOST + i] == block) return true;
    return false;
}

/* Prefetch brings no block that a step might not ask for. */
TEST(whatever_the_query_picks_the_candidates_for_a_position_are_selected_there)
{
    const kern_selector nosa = {32, 16, 64, 1, 2, 7, 10, true, true, SOURCE_STEP, 0, false, 0};
    rig *r = rig_open(&nosa, 11);
    static int32_t entry_of[KV * N], block_of[KV], slot_of[KV], got[KV * MOST];
    static uint32_t used_step[KV];
    const int32_t entries = 0;
    uint32_t offered = 0;
    memset(entry_of, 0xff, sizeof entry_of);
    EXPECT_OK(run(r, 0, TOKENS, MOST));
    for (int row = 0; row < TOKENS; row++) {
        const kern_candidates_args a = {.seq = r->seq + row,
                                        .next_pos = r->pos + row,
                                        .selector = r->which + row,
                                        .selectors = &r->selector,
                                        .summary = summary_of(r),
                                        .table = {.entry_of = entry_of,
                                                  .block_of = block_of,
                                                  .slot_of = slot_of,
                                                  .used_step = used_step,
                                                  .entries = &entries,
                                                  .seqs = 1,
                                                  .kv_heads = KV,
                                                  .max_blocks = N,
                                                  .max_entries = 1},
                                        .block = got,
                                        .n = 1,
                                        .max_candidates = MOST};
        EXPECT_OK(kern_candidates(r->stream, &a));
        for (int i = 0; i < KV * MOST; i++) {
            if (got[i] < 0) continue;
            EXPECT(is_selected(r, row, i / MOST, got[i]));
            offered++;
        }
    }
    EXPECT(offered > 3u * KV * (TOKENS - 700)); /* where not all is selected: 10 - 7 a head */
    rig_close(r);
}

TEST(infllm_fills_nothing_by_importance)
{
    expect_rule(&(kern_selector){32, 16, 64, 1, 2, 8, 8, false, false, SOURCE_OWN, 0, false, 0}, 4);
}

TEST(importance_alone_fills_where_no_query_is_asked)
{
    expect_rule(&(kern_selector){32, 16, 64, 1, 2, 0, 9, true, true, SOURCE_OWN, 0, false, 0}, 5);
    expect_rule(&(kern_selector){32, 16, 64, 0, 0, 0, 5, true, true, SOURCE_OWN, 0, false, 0}, 6);
}

TEST(blocks_of_16_32_and_128_tokens_become_masked_storage_blocks)
{
    expect_rule(&(kern_selector){16, 16, 16, 0, 0, 9, 9, false, false, SOURCE_OWN, 0, false, 0}, 7);
    expect_rule(&(kern_selector){32, 16, 32, 1, 2, 8, 11, true, true, SOURCE_OWN, 0, false, 0}, 8);
    expect_rule(&(kern_selector){32, 16, 128, 1, 1, 4, 6, true, true, SOURCE_MID, 0, false, 0}, 9);
}

TEST(windows_whose_stride_does_not_divide_the_block_pool_by_the_rule)
{
    expect_rule(&(kern_selector){48, 24, 64, 1, 1, 6, 9, true, true, SOURCE_OWN, 0, false, 0}, 10);
    expect_rule(&(kern_selector){64, 64, 64, 1, 1, 6, 9, true, true, SOURCE_OWN, 0, false, 0}, 11);
    expect_rule(&(kern_selector){40, 16, 32, 1, 1, 6, 9, true, true, SOURCE_OWN, 0, false, 0}, 12);
}

TEST(a_sliding_window_adds_its_blocks_and_selects_no_part_of_them)
{
    expect_rule(&(kern_selector){16, 16, 16, 0, 0, 5, 5, false, false, SOURCE_OWN, 0, false, 100},
                17);
    expect_rule(&(kern_selector){32, 32, 32, 0, 0, 4, 4, false, false, SOURCE_MID, 0, false, 512},
                18);
    expect_rule(&(kern_selector){16, 16, 16, 0, 0, 7, 7, false, false, SOURCE_OWN, 0, false, 1},
                19);
    expect_rule(&(kern_selector){64, 64, 64, 0, 0, 2, 2, false, false, SOURCE_OWN, 0, false, 5000},
                20);
}

TEST(beside_a_sliding_window_overlapping_windows_are_summed_by_what_they_share)
{
    expect_rule(&(kern_selector){32, 16, 64, 1, 1, 6, 6, false, false, SOURCE_OWN, 0, false, 200},
                21);
    expect_rule(&(kern_selector){48, 16, 32, 0, 1, 7, 7, false, false, SOURCE_STEP, 0, false, 64},
                22);
}

TEST(full_selects_every_block_in_ascending_order)
{
    expect_rule(
        &(kern_selector){32, 16, 64, 0, 0, 0, UINT32_MAX, false, true, SOURCE_OWN, 0, false, 0},
        13);
}

TEST(a_row_selects_alone_what_it_selects_in_a_chunk)
{
    const kern_selector selector = {32, 16, 64, 1, 2, 7, 10, true, true, SOURCE_OWN, 0, false, 0};
    static rig whole;
    rig *r = rig_open(&selector, 14);
    EXPECT_OK(run(r, 0, TOKENS, MOST));
    whole = *r;
    memset(r->query, 0, sizeof r->query);
    memset(r->importance, 0, sizeof r->importance);
    memset(r->block, 0, sizeof r->block);
    for (uint32_t at = 0; at < TOKENS; at++)
        EXPECT_OK(run(r, at, 1, MOST));
    EXPECT_EQ_MEM(r->query, whole.query, sizeof whole.query);
    EXPECT_EQ_MEM(r->importance, whole.importance, sizeof whole.importance);
    EXPECT_EQ_MEM(r->block, whole.block, sizeof whole.block);
    rig_close(r);
}

TEST(without_importance_nosa_selects_as_infllm)
{
    const kern_selector nosa = {32, 16, 64, 1, 2, 10, 10, true, true, SOURCE_OWN, 0, false, 0};
    const kern_selector infllm = {32, 16, 64, 1, 2, 10, 10, false, false, SOURCE_OWN, 0, false, 0};
    static rig first;
    rig *r = rig_open(&nosa, 15);
    EXPECT_OK(run(r, 0, TOKENS, MOST));
    first = *r;
    rig_close(r);
    r = rig_open(&infllm, 15);
    EXPECT_OK(run(r, 0, TOKENS, MOST));
    EXPECT_EQ_MEM(r->block, first.block, sizeof first.block);
    rig_close(r);
}

TEST(a_list_too_short_for_the_selection_is_refused)
{
    const kern_selector selector = {32, 16, 64, 1, 2, 7, 10, true, true, SOURCE_OWN, 0, false, 0};
    rig *r = rig_open(&selector, 16);
    EXPECT_STATUS(run(r, 0, TOKENS, 9), STATUS_INVALID);
    EXPECT_OK(run(r, 0, 9 * 64, 9));
    r->selector = (kern_selector){16, 16, 16, 0, 0, 5, 5, false, false, SOURCE_OWN, 0, false, 130};
    EXPECT_STATUS(run(r, 0, TOKENS, 8), STATUS_INVALID); /* 5 picks, 4 blocks of the window */
    EXPECT_OK(run(r, 0, TOKENS, 9));
    r->selector.block = 48;
    EXPECT_STATUS(run(r, 0, 1, MOST), STATUS_INVALID);
    rig_close(r);
}

TEST_MAIN()
