/* tests/kernels/cases_attend.c - rows of the op table: score, pool and select, attend, over
 * sequences with random K, V and u whose blocks lie scattered in the pool, and rows at the edges of
 * windows, blocks and budgets. */
#include "tests/kernels/ops.h"

#include <string.h>

#define COUNT_OF(x) (sizeof(x) / sizeof((x)[0]))

/* Parameters: group heads, KV heads, dim, tokens, rows, selector (below), branch of attention. */
enum { P_GROUP, P_KV, P_DIM, P_TOKENS, P_ROWS, P_SELECTOR, P_BRANCH };

static const kern_selector selectors[] = {
    {32, 16, 64, 1, 4, 10, 16, true, true, SOURCE_OWN, 0, false, 0},         /* 0: nosa 16 */
    {32, 16, 64, 1, 16, 33, 64, true, true, SOURCE_OWN, 0, false, 0},        /* 1: nosa 64 */
    {32, 16, 64, 1, 4, 16, 16, false, false, SOURCE_OWN, 0, false, 0},       /* 2: infllmv2 16 */
    {32, 16, 64, 0, 0, 0, UINT32_MAX, false, true, SOURCE_OWN, 0, false, 0}, /* 3: full */
    {32, 16, 64, 1, 4, 10, 16, true, true, SOURCE_STEP, 0, false, 0}, /* 4: nosa 16, a step early */
    {16, 16, 16, 0, 1, 16, 16, false, false, SOURCE_OWN, 0, false, 0}, /* 5: ssa, 16-token blocks */
    {32, 16, 32, 1, 3, 9, 14, true, true, SOURCE_OWN, 0, false, 0},    /* 6: 32-token blocks */
    {32, 16, 128, 1, 2, 5, 8, true, true, SOURCE_MID, 0, false, 0},    /* 7: 128-token blocks */
    {32, 16, 64, 1, 14, 0, 16, true, true, SOURCE_OWN, 0, false, 0},   /* 8: window 16 */
    {16, 16, 16, 0, 0, 12, 12, false, false, SOURCE_OWN, 16, false, 0}, /* 9: ssa by chunks */
    {128, 128, 256, 0, 0, 3, 3, false, false, SOURCE_OWN, 0, true, 0},  /* 10: moba */
    {16, 16, 16, 0, 0, 8, 8, false, false, SOURCE_OWN, 0, false, 100},  /* 11: nsa */
    {32, 32, 32, 0, 0, 6, 6, false, false, SOURCE_STEP, 0, false, 512}, /* 12: nsa, a step early */
    {16, 16, 16, 0, 0, 16, 16, false, false, SOURCE_OWN, 16, false, 1}, /* 13: nsa by chunks */
    {32, 16, 64, 1, 1, 8, 8, false, false, SOURCE_OWN, 0, false,
     512}, /* 14: nsa, windows overlap */
};

static const int32_t edges[] = {0,  1,  14, 15,  30,  31,  32,  46,  47,   62,   63,   64,  65,
                                78, 79, 80, 127, 128, 255, 256, 511, 1023, 1024, 1087, 1088};

/* Everything the three ops need. */
typedef struct attend_context {
    kern_score_args score;
    kern_pool_args pool;
    kern_select_args select;
    kern_attend_args attend;
} attend_context;

static void make_summary(op_fixture *f, kern_summary *s, const kern_selector *selector)
{
    s->seqs = 2;
    s->kv_heads = (uint32_t)f->param[P_KV];
    s->head_dim = (uint32_t)f->param[P_DIM];
    s->max_tokens = (uint32_t)f->param[P_TOKENS];
    s->window = selector->window;
    s->stride = selector->stride;
    s->max_windows = s->max_tokens / s->stride;
    const uint64_t heads = (uint64_t)s->seqs * s->kv_heads;
    s->kc = ops_bf16s(f, heads * s->max_windows * s->head_dim, 0.7f);
    s->uc = ops_bf16s(f, heads * s->max_windows, 1.0f);
    s->u = ops_bf16s(f, heads * s->max_tokens, 1.0f);
    s->key_ring = NULL;
    if (f->param[P_BRANCH] == BRANCH_COARSE)
        s->vc = ops_bf16s(f, heads * s->max_windows * s->head_dim, 1.0f);
}

static int32_t *make_positions(op_fixture *f, uint32_t rows, uint32_t tokens)
{
    int32_t *pos = ARENA_NEW(f->memory, int32_t, rows);
    for (uint32_t r = 0; r < rows; r++) {
        const int32_t edge = edges[r % COUNT_OF(edges)];
        pos[r] = (int32_t)rng_below(&f->random, tokens);
        if (r % 2 == 0 && (uint32_t)edge < tokens) pos[r] = edge;
        if (r % 5 == 3) pos[r] = (int32_t)tokens - 1 - (int32_t)(r % 7);
    }
    return pos;
}

/* Blocks of (sequence, KV head) at scattered slots; what no token fills stays NaN. */
static const uint8_t *make_pool(op_fixture *f, const kern_summary *s, int32_t **out_slot_of)
{
    const uint32_t blocks = (s->max_tokens + KERN_BLOCK - 1) / KERN_BLOCK;
    const uint32_t slots = s->seqs * s->kv_heads * blocks;
    const uint64_t values = 2ull * KERN_BLOCK * s->head_dim;
    int32_t *slot_of = ARENA_NEW(f->memory, int32_t, slots);
    uint16_t *pool = ARENA_NEW(f->memory, uint16_t, slots * values);
    memset(pool, 0xff, slots * values * sizeof *pool);
    for (uint32_t i = 0; i < slots; i++) {
        const uint32_t j = (uint32_t)rng_below(&f->random, i + 1);
        slot_of[i] = slot_of[j];
        slot_of[j] = (int32_t)i;
    }
    for (uint32_t i = 0; i < slots; i++) {
        const uint32_t first = i % blocks * KERN_BLOCK, left = s->max_tokens - first;
        const uint32_t tokens = left < KERN_BLOCK ? left : KERN_BLOCK;
        uint16_t *k = pool + (uint64_t)slot_of[i] * values;
        for (uint64_t j = 0; j < (uint64_t)tokens * s->head_dim; j++) {
            k[j] = kern_f32_to_bf16(ops_normal(&f->random));
            k[KERN_BLOCK * s->head_dim + j] = kern_f32_to_bf16(ops_normal(&f->random));
        }
    }
    *out_slot_of = slot_of;
    return (const uint8_t *)pool;
}

static attend_context *make_context(op_fixture *f)
{
    attend_context *c = ARENA_NEW(f->memory, attend_context, 1);
    const kern_selector *selector = &selectors[f->param[P_SELECTOR]];
    const uint32_t rows = f->rows = (uint32_t)f->param[P_ROWS];
    kern_summary summary = {0};
    make_summary(f, &summary, selector);
    const uint32_t kv = summary.kv_heads, dim = summary.head_dim, tokens = summary.max_tokens;
    const uint32_t heads = kv * (uint32_t)f->param[P_GROUP];
    const uint32_t blocks = (tokens + selector->block - 1) / selector->block;
    const uint32_t entries = (tokens + KERN_BLOCK - 1) / KERN_BLOCK;
    int32_t *seq = ARENA_NEW(f->memory, int32_t, rows),
            *which = ARENA_NEW(f->memory, int32_t, rows);
    for (uint32_t r = 0; r < rows; r++)
        seq[r] = (int32_t)(r % 2);
    const int32_t *pos = make_positions(f, rows, tokens);
    const uint64_t stride = (uint64_t)heads * dim + 16, lists = (uint64_t)rows * kv;
    const float *q = ops_floats(f, rows * stride, 1.5f);
    float *scores = ops_floats(f, lists * summary.max_windows, 0.0f);
    float *query = ops_floats(f, lists * blocks, 0.0f);
    float *importance = ops_floats(f, lists * blocks, 0.0f);
    int32_t *block = ARENA_NEW(f->memory, int32_t, lists * entries);
    int32_t *count = ARENA_NEW(f->memory, int32_t, lists);
    int32_t *settled = ARENA_NEW(f->memory, int32_t, lists);
    uint8_t *mask = ARENA_NEW(f->memory, uint8_t, lists * entries);
    c->score = (kern_score_args){q,      seq,    pos,  which, selector, summary,
                                 scores, stride, rows, heads, false};
    c->pool = (kern_pool_args){scores,  seq,   pos,        which, selector,
                               summary, query, importance, rows,  blocks};
    c->select = (kern_select_args){query, importance, pos,  which, selector, block,  mask,
                                   count, settled,    rows, kv,    blocks,   entries};
    c->attend = (kern_attend_args){.q = q,
                                   .block = block,
                                   .count = count,
                                   .mask = mask,
                                   .row_seq = seq,
                                   .row_pos = pos,
                                   .row_selector = which,
                                   .selectors = selector,
                                   .summary = summary,
                                   .row_stride = stride,
                                   .rows = rows,
                                   .heads = heads,
                                   .max_select = entries,
                                   .block_bytes = 4 * KERN_BLOCK * dim,
                                   .branch = (kern_branch)f->param[P_BRANCH]};
    f->context = c;
    return c;
}

/* ---- score ----------------------------------------------------------------------------------- */

static status score_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_score_args a = ((attend_context *)f->context)->score;
    a.q += first * a.row_stride;
    a.row_seq += first;
    a.row_pos += first;
    a.row_selector += first;
    a.out += (uint64_t)first * a.summary.kv_heads * a.summary.max_windows;
    a.rows = count;
    return kern_score(f->stream, &a);
}

static void score_build(op_fixture *f)
{
    const kern_score_args *a = &make_context(f)->score;
    f->run = score_run;
    for (uint32_t r = 0; r < f->rows; r++) {
        if ((uint32_t)a->row_pos[r] / a->selectors->block < a->selectors->total) continue;
        const double windows = (double)a->row_pos[r] / a->summary.stride;
        f->flops += 2.0 * windows * a->heads * a->summary.head_dim;
        f->bytes += 2.0 * windows * a->summary.kv_heads * a->summary.head_dim;
    }
    ops_output(f, "scores", a->out,
               (uint64_t)a->rows * a->summary.kv_heads * a->summary.max_windows, VALUE_F32);
}

/* ---- pool and select: on random scores, so that ref and cpu start from the same -------------- */

static status select_run(op_fixture *f, uint32_t first, uint32_t count)
{
    const attend_context *c = f->context;
    kern_pool_args p = c->pool;
    kern_select_args s = c->select;
    const uint64_t list = (uint64_t)first * s.kv_heads;
    p.scores += list * p.summary.max_windows;
    p.row_seq += first;
    p.row_pos += first;
    p.row_selector += first;
    p.query += list * p.max_select_blocks;
    p.importance += list * p.max_select_blocks;
    s.query = p.query;
    s.importance = p.importance;
    s.row_pos += first;
    s.row_selector += first;
    s.block += list * s.max_select;
    s.mask += list * s.max_select;
    s.count += list;
    s.settled += list;
    p.rows = s.rows = count;
    TRY(kern_pool(f->stream, &p));
    return kern_select(f->stream, &s);
}

static void select_build(op_fixture *f)
{
    attend_context *c = make_context(f);
    const kern_select_args *s = &c->select;
    float *scores = (float *)(uintptr_t)c->pool.scores;
    for (uint64_t i = 0; i < (uint64_t)f->rows * s->kv_heads * c->pool.summary.max_windows; i++)
        scores[i] = (float)rng_below(&f->random, 1000) * 1e-3f; /* ties are common */
    f->run = select_run;
    f->bytes = 4.0 * f->rows * s->kv_heads * c->pool.summary.max_windows;
    const uint64_t lists = (uint64_t)f->rows * s->kv_heads;
    ops_output(f, "block", s->block, lists * s->max_select * 4, VALUE_BYTES);
    ops_output(f, "mask", s->mask, lists * s->max_select, VALUE_BYTES);
    ops_output(f, "count", s->count, lists * 4, VALUE_BYTES);
    ops_output(f, "settled", s->settled, lists * 4, VALUE_BYTES);
}

/* ---- attend: over selections made from random scores ----------------------------------------- */

static status attend_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_attend_args a = ((attend_context *)f->context)->attend;
    const uint64_t list = (uint64_t)first * a.summary.kv_heads;
    a.q += first * a.row_stride;
    a.block += list * a.max_select;
    a.slot += list * a.max_select;
    a.mask += list * a.max_select;
    a.count += list;
    a.row_seq += first;
    a.row_pos += first;
    a.row_selector += first;
    a.out += (uint64_t)first * a.heads * a.summary.head_dim;
    a.rows = count;
    return kern_attend(f->stream, &a);
}

/* One KV head's heads see so many tokens, or windows. */
static void count_tokens(op_fixture *f, const kern_attend_args *a, double tokens)
{
    const kern_summary *s = &a->summary;
    f->flops += 4.0 * tokens * s->head_dim * a->heads / s->kv_heads;
    f->bytes += 4.0 * tokens * s->head_dim;
}

static void attend_build(op_fixture *f)
{
    select_build(f);
    f->outputs = 0;
    f->bytes = 0.0;
    CHECK(select_run(f, 0, f->rows) == STATUS_OK);
    attend_context *c = f->context;
    kern_attend_args *a = &c->attend;
    const kern_summary *s = &a->summary;
    int32_t *slot_of;
    a->pool = make_pool(f, s, &slot_of);
    const uint32_t blocks = (s->max_tokens + KERN_BLOCK - 1) / KERN_BLOCK;
    int32_t *slot = ARENA_NEW(f->memory, int32_t, (uint64_t)a->rows * s->kv_heads * a->max_select);
    for (uint32_t i = 0; i < a->rows * s->kv_heads; i++) {
        const uint32_t row = i / s->kv_heads;
        const uint32_t place = (uint32_t)a->row_seq[row] * s->kv_heads + i % s->kv_heads;
        for (int32_t e = 0; e < a->count[i]; e++) {
            const uint64_t at = (uint64_t)i * a->max_select + (uint64_t)e;
            slot[at] = slot_of[place * blocks + (uint32_t)a->block[at]];
            for (uint32_t p = 0; p < 4 && a->branch == BRANCH_SELECTED; p++) {
                const int64_t left =
                    a->row_pos[row] + 1 - a->block[at] * KERN_BLOCK - (int64_t)p * 16;
                if ((a->mask[at] >> p & 1) == 0 || left <= 0) continue;
                count_tokens(f, a, left < 16 ? (double)left : 16.0);
            }
        }
        const double all = a->row_pos[row] + 1, near = a->selectors->near;
        if (a->branch == BRANCH_NEAR) count_tokens(f, a, near < all ? near : all);
        if (a->branch == BRANCH_COARSE) count_tokens(f, a, all / s->stride);
    }
    a->slot = slot;
    a->out = ops_floats(f, (uint64_t)a->rows * a->heads * s->head_dim, 0.0f);
    f->run = attend_run;
    ops_output(f, "out", a->out, (uint64_t)a->rows * a->heads * s->head_dim, VALUE_F32);
}

/* clang-format off */
const op_case ops_attend_cases[] = {
    {"score", "G=4 kv=2 dim=64 tokens=16384 rows=16 nosa16", {4, 2, 64, 16384, 16, 0}, 2e-6f, false, score_build},
    {"score", "G=1 kv=2 dim=64 tokens=2000 rows=60 nosa16", {1, 2, 64, 2000, 60, 0}, 2e-6f, false, score_build},
    {"score", "G=3 kv=2 dim=64 tokens=2001 rows=60 nosa16", {3, 2, 64, 2001, 60, 0}, 2e-6f, false, score_build},
    {"score", "G=8 kv=2 dim=128 tokens=6000 rows=30 nosa64", {8, 2, 128, 6000, 30, 1}, 2e-6f, false, score_build},
    {"score", "G=16 kv=1 dim=128 tokens=3000 rows=30 infllmv2", {16, 1, 128, 3000, 30, 2}, 2e-6f, false, score_build},
    {"score", "G=4 kv=2 dim=64 tokens=2500 rows=60 step", {4, 2, 64, 2500, 60, 4}, 2e-6f, false, score_build},
    {"score", "G=6 kv=1 dim=64 tokens=1500 rows=60 block=16", {6, 1, 64, 1500, 60, 5}, 2e-6f, false, score_build},
    {"score", "G=1 kv=3 dim=64 tokens=2500 rows=60 moba", {1, 3, 64, 2500, 60, 10}, 4e-6f, false, score_build},
    {"select", "tokens=1500 rows=60 ssa by chunks", {4, 2, 64, 1500, 60, 9}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 moba", {1, 3, 64, 2500, 60, 10}, 0, false, select_build},
    {"select", "tokens=1500 rows=60 nsa", {4, 2, 64, 1500, 60, 11}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 nsa step", {4, 2, 64, 2500, 60, 12}, 0, false, select_build},
    {"select", "tokens=3000 rows=60 nsa, windows overlap", {4, 2, 64, 3000, 60, 14}, 0, false, select_build},
    {"select", "tokens=1500 rows=60 nsa by chunks", {4, 2, 64, 1500, 60, 13}, 0, false, select_build},
    {"select", "tokens=16384 rows=16 nosa16", {4, 2, 64, 16384, 16, 0}, 0, false, select_build},
    {"select", "tokens=6000 rows=60 nosa64", {4, 2, 64, 6000, 60, 1}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 infllmv2", {4, 2, 64, 2500, 60, 2}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 full", {4, 2, 64, 2500, 60, 3}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 step", {4, 2, 64, 2500, 60, 4}, 0, false, select_build},
    {"select", "tokens=1500 rows=60 block=16", {4, 2, 64, 1500, 60, 5}, 0, false, select_build},
    {"select", "tokens=1500 rows=60 block=32", {4, 2, 64, 1500, 60, 6}, 0, false, select_build},
    {"select", "tokens=3000 rows=60 block=128 mid", {4, 2, 64, 3000, 60, 7}, 0, false, select_build},
    {"select", "tokens=2500 rows=60 window16", {4, 2, 64, 2500, 60, 8}, 0, false, select_build},
    {"attend", "G=4 kv=2 dim=64 tokens=16384 rows=16 nosa16", {4, 2, 64, 16384, 16, 0}, 2e-6f, false, attend_build},
    {"attend", "G=1 kv=2 dim=64 tokens=2000 rows=60 nosa16", {1, 2, 64, 2000, 60, 0}, 2e-6f, false, attend_build},
    {"attend", "G=3 kv=2 dim=64 tokens=2001 rows=60 nosa16", {3, 2, 64, 2001, 60, 0}, 2e-6f, false, attend_build},
    {"attend", "G=8 kv=2 dim=128 tokens=5000 rows=20 nosa64", {8, 2, 128, 5000, 20, 1}, 2e-6f, false, attend_build},
    {"attend", "G=16 kv=1 dim=128 tokens=5000 rows=20 nosa64", {16, 1, 128, 5000, 20, 1}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=2500 rows=40 infllmv2", {4, 2, 64, 2500, 40, 2}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=16384 rows=6 full", {4, 2, 64, 16384, 6, 3}, 2e-6f, false, attend_build},
    {"attend", "G=5 kv=1 dim=64 tokens=1500 rows=60 block=16", {5, 1, 64, 1500, 60, 5}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=128 tokens=1500 rows=60 block=32", {4, 2, 128, 1500, 60, 6}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=3000 rows=60 block=128", {4, 2, 64, 3000, 60, 7}, 2e-6f, false, attend_build},
    {"attend", "G=1 kv=3 dim=64 tokens=2500 rows=60 moba", {1, 3, 64, 2500, 60, 10}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=1500 rows=60 nsa selected", {4, 2, 64, 1500, 60, 11, BRANCH_SELECTED}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=1500 rows=60 nsa near 100", {4, 2, 64, 1500, 60, 11, BRANCH_NEAR}, 2e-6f, false, attend_build},
    {"attend", "G=3 kv=1 dim=128 tokens=2500 rows=60 nsa near 512", {3, 1, 128, 2500, 60, 12, BRANCH_NEAR}, 2e-6f, false, attend_build},
    {"attend", "G=2 kv=1 dim=64 tokens=700 rows=60 nsa near 1", {2, 1, 64, 700, 60, 13, BRANCH_NEAR}, 2e-6f, false, attend_build},
    {"attend", "G=4 kv=2 dim=64 tokens=16384 rows=16 nsa means", {4, 2, 64, 16384, 16, 11, BRANCH_COARSE}, 2e-6f, false, attend_build},
    {"attend", "G=7 kv=1 dim=96 tokens=1400 rows=60 nsa means", {7, 1, 96, 1400, 60, 12, BRANCH_COARSE}, 2e-6f, false, attend_build},
    {"attend", "G=7 kv=1 dim=96 tokens=700 rows=40 nosa16", {7, 1, 96, 700, 40, 0}, 2e-6f, false, attend_build},
};
/* clang-format on */
const uint32_t ops_attend_case_count = COUNT_OF(ops_attend_cases);
