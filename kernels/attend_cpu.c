/* kernels/attend_cpu.c - attention over a selection, in one order of summation for decode and
 * prefill.
 *
 * For one row and KV head, entries in the order given, in groups of KERN_GROUP_ENTRIES:
 *   logits    l = q . k / sqrt(D) + u, sixteen lanes and the fixed tree a product (dots.h)
 *   largest   m of the group
 *   weights   p = e^(l - m); their sum has lane (token % 16), then the tree
 *   values    one fma chain over tokens for each of the D outputs
 * and the group's (m, sum, values) is then merged into what earlier groups left. (Online softmax,
 * FlashAttention, arXiv 2205.14135; the bias: NOSA, arXiv 2510.13602.) Tokens that do not count are
 * skipped, never multiplied by zero, so stale bytes in a slot cannot matter. NSA's compressed
 * branch takes windows in the place of tokens, as many a group as eight entries hold. Heads are
 * taken in tiles of up to four, which share each load of K and V; a head's bits do not depend on
 * its tile.
 */
#include "kernels/dots.h"
#include "kernels/selector.h"

enum {
    HEADS = 4,
    GROUP_TOKENS = KERN_GROUP_ENTRIES * KERN_BLOCK,
    RUNS_MAX = KERN_GROUP_ENTRIES * 2, /* a 4-bit mask has at most two runs */
    SMALL_ENTRIES = 4,
#if defined(__AVX512F__)
    VALUE_HEADS = 4, /* heads and dimensions whose sums stay in registers */
    VALUE_DIMS = 64,
#else
    VALUE_HEADS = 2,
    VALUE_DIMS = 32,
#endif
};

/* Consecutive tokens of one entry that count, or windows: the first is a multiple of 16 within its
 * block but in BRANCH_NEAR, where it may be any. */
typedef struct token_run {
    const uint16_t *k, *v, *u; /* of the first token */
    uint32_t count;            /* 1 .. 64; of windows 1 .. GROUP_TOKENS */
    uint32_t place;            /* of its logits in the scratch: a multiple of 16 */
} token_run;

typedef struct attend_scratch {
    float q[HEADS * KERN_DIM_MAX];
    float logits[HEADS * GROUP_TOKENS];
    float bias[GROUP_TOKENS];
    float value[HEADS * KERN_DIM_MAX]; /* of this group, lanes in the order of dots_spread */
    float total[HEADS * KERN_DIM_MAX]; /* of all groups so far */
    float most[HEADS], weight[HEADS];
    token_run run[RUNS_MAX];
    uint16_t tail[16 * KERN_DIM_MAX]; /* keys of the last windows: what follows is not ours */
} attend_scratch;

typedef struct attend_job {
    const kern_attend_args *a;
    uint32_t group, chunk; /* query heads of a KV head; rows of a task */
} attend_job;

/* Runs of entries [first, end) of one (row, KV head); returns how many. */
static uint32_t find_runs(const kern_attend_args *a, uint64_t index, uint32_t first, uint32_t end,
                          attend_scratch *s)
{
    const uint64_t list = index * a->max_select, dim = a->summary.head_dim;
    const uint32_t row = (uint32_t)(index / a->summary.kv_heads);
    const uint64_t place =
        (uint64_t)a->row_seq[row] * a->summary.kv_heads + index % a->summary.kv_heads;
    const int32_t pos = a->row_pos[row];
    const bool near = a->branch == BRANCH_NEAR;
    const int64_t from = (int64_t)pos + 1 - (int64_t)a->selectors[a->row_selector[row]].near;
    uint32_t runs = 0, used = 0;
    for (uint32_t e = first; e < end; e++) {
        const int32_t block = a->block[list + e], slot = a->slot[list + e];
        if (block < 0 || slot < 0) continue;
        const int64_t seen = (int64_t)pos + 1 - (int64_t)block * KERN_BLOCK;
        const uint32_t tokens = seen <= 0 ? 0 : seen < KERN_BLOCK ? (uint32_t)seen : KERN_BLOCK;
        const uint16_t *k =
            (const uint16_t *)(const void *)(a->pool + (uint64_t)slot * a->block_bytes);
        const uint16_t *u =
            a->summary.u + place * a->summary.max_tokens + (uint64_t)block * KERN_BLOCK;
        const int64_t skip = near ? from - (int64_t)block * KERN_BLOCK : 0;
        const uint32_t mask = near ? 0xf : a->mask[list + e];
        for (uint32_t t = skip > 0 ? (uint32_t)skip : 0; t < tokens;) {
            if ((mask >> (t / 16) & 1) == 0) {
                t += 16;
                continue;
            }
            uint32_t stop = t;
            while (stop < tokens && (mask >> (stop / 16) & 1) != 0)
                stop += 16;
            const uint32_t count = (stop < tokens ? stop : tokens) - t;
            const uint16_t *key = k + t * dim;
            s->run[runs++] = (token_run){key, key + KERN_BLOCK * dim, u + t, count, used};
            used += (count + 15) / 16 * 16;
            t = stop;
        }
    }
    return runs;
}

/* Windows [first, end) of one (row, KV head) as runs of means; end - first <= GROUP_TOKENS. */
static uint32_t find_windows(const kern_attend_args *a, uint64_t index, uint32_t first,
                             uint32_t end, attend_scratch *s)
{
    const kern_summary *m = &a->summary;
    const uint32_t row = (uint32_t)(index / m->kv_heads), dim = m->head_dim;
    const uint64_t head = (uint64_t)a->row_seq[row] * m->kv_heads + index % m->kv_heads;
    const uint16_t *k = m->kc + (head * m->max_windows + first) * dim;
    const uint16_t *v = m->vc + (head * m->max_windows + first) * dim;
    const uint32_t whole = (end - first) / 16 * 16, rest = end - first - whole;
    uint32_t runs = 0;
    if (whole > 0) s->run[runs++] = (token_run){k, v, NULL, whole, 0};
    if (rest > 0) {
        memset(s->tail, 0, sizeof s->tail);
        memcpy(s->tail, k + (uint64_t)whole * dim, (uint64_t)rest * dim * sizeof s->tail[0]);
        s->run[runs++] = (token_run){s->tail, v + (uint64_t)whole * dim, NULL, rest, whole};
    }
    return runs;
}

/* Products of the group's tokens, for `heads` heads; logits of head h from h * GROUP_TOKENS on. */
LANE_OP void run_dots(uint32_t heads, attend_scratch *s, uint32_t runs, uint32_t dim)
{
    for (uint32_t i = 0; i < runs; i++) {
        const token_run *r = &s->run[i];
        for (uint32_t t = 0; t < r->count; t += 16) /* may read, not use, tokens beyond count */
            dots_sixteen(heads, s->q, r->k + (uint64_t)t * dim, dim, s->logits + r->place + t,
                         GROUP_TOKENS);
    }
}

static void run_bias(attend_scratch *s, uint32_t runs, bool bias)
{
    for (uint32_t i = 0; i < runs; i++) {
        const token_run *r = &s->run[i];
        for (uint32_t t = 0; t < r->count; t += 16) {
            const uint32_t n = r->count - t < 16 ? r->count - t : 16;
            vf u = vf_zero();
            if (bias) u = n == 16 ? vf_bf16(r->u + t) : vf_bf16_n(r->u + t, n);
            vf_store(s->bias + r->place + t, u);
        }
    }
}

/* Logits of one head -> weights, in place; the group's largest and sum. */
static void run_softmax(attend_scratch *s, uint32_t head, uint32_t runs, float scale,
                        float *out_most, float *out_sum)
{
    float *logits = s->logits + (uint64_t)head * GROUP_TOKENS;
    const vf factor = vf_set1(scale), none = vf_set1(-INFINITY);
    vf most = none;
    for (uint32_t i = 0; i < runs; i++) {
        const token_run *r = &s->run[i];
        for (uint32_t t = 0; t < r->count; t += 16) {
            float *at = logits + r->place + t;
            const uint32_t n = r->count - t < 16 ? r->count - t : 16;
            const vf l = vf_fma(vf_load(at), factor, vf_load(s->bias + r->place + t));
            const vf kept = n == 16 ? l : vf_first(n, l, none);
            vf_store(at, kept);
            most = vf_max(kept, most);
        }
    }
    const float top = vf_max_lane(most);
    const vf shift = vf_set1(top);
    vf sum = vf_zero();
    const token_run *last = &s->run[runs - 1];
    const uint32_t used = last->place + (last->count + 15) / 16 * 16;
    for (uint32_t t = 0; t < used; t += 16) {
        const vf p = vf_exp(vf_sub(vf_load(logits + t), shift));
        vf_store(logits + t, p);
        sum = vf_add(sum, p);
    }
    *out_most = top;
    *out_sum = vf_sum(sum);
}

/* value[h][d0 .. d0 + dims) = sum over the group's tokens of weight times v, one chain each. */
/* NOLINTNEXTLINE(readability-function-size): always inline, heads and dims are constants there */
LANE_OP void run_values(uint32_t heads, uint32_t dims, attend_scratch *s, uint32_t head,
                        uint32_t d0, uint32_t runs, uint32_t dim)
{
    vf sum[VALUE_HEADS * VALUE_DIMS / 16];
    const uint32_t lanes = dims / 16;
    UNROLL(16)
    for (uint32_t i = 0; i < heads * lanes; i++)
        sum[i] = vf_zero();
    for (uint32_t i = 0; i < runs; i++) {
        const uint16_t *v = s->run[i].v + d0;
        const float *p = s->logits + (uint64_t)head * GROUP_TOKENS + s->run[i].place;
        const uint32_t count = s->run[i].count;
        for (uint32_t t = 0; t < count; t++) {
            UNROLL(4)
            for (uint32_t c = 0; c < lanes; c += 2) {
                vf low, high;
                vf_pair(v + (uint64_t)t * dim + (uint64_t)c * 16, &low, &high);
                UNROLL(4)
                for (uint32_t h = 0; h < heads; h++) {
                    const vf weight = vf_set1(p[h * GROUP_TOKENS + t]);
                    sum[h * lanes + c] = vf_fma(weight, low, sum[h * lanes + c]);
                    sum[h * lanes + c + 1] = vf_fma(weight, high, sum[h * lanes + c + 1]);
                }
            }
        }
    }
    UNROLL(4)
    for (uint32_t h = 0; h < heads; h++)
        UNROLL(4)
    for (uint32_t c = 0; c < lanes; c++)
        vf_store(s->value + (uint64_t)(head + h) * dim + d0 + (uint64_t)c * 16, sum[h * lanes + c]);
}

static void group_values(attend_scratch *s, uint32_t heads, uint32_t runs, uint32_t dim)
{
    for (uint32_t h = 0; h < heads;) {
        const uint32_t left = heads - h;
        const uint32_t take = left >= VALUE_HEADS ? VALUE_HEADS : left >= 2 ? 2 : 1;
        uint32_t d = 0;
        for (; d + VALUE_DIMS <= dim; d += VALUE_DIMS) {
            if (take == VALUE_HEADS)
                run_values(VALUE_HEADS, VALUE_DIMS, s, h, d, runs, dim);
            else if (take == 2)
                run_values(2, VALUE_DIMS, s, h, d, runs, dim);
            else
                run_values(1, VALUE_DIMS, s, h, d, runs, dim);
        }
        for (; d < dim; d += 32) {
            if (take == VALUE_HEADS)
                run_values(VALUE_HEADS, 32, s, h, d, runs, dim);
            else if (take == 2)
                run_values(2, 32, s, h, d, runs, dim);
            else
                run_values(1, 32, s, h, d, runs, dim);
        }
        h += take;
    }
}

/* Fold the group into the total: whichever has the smaller maximum is scaled down. */
static void merge(attend_scratch *s, uint32_t head, float most, float sum, uint32_t dim)
{
    float *total = s->total + (uint64_t)head * dim;
    const float *value = s->value + (uint64_t)head * dim;
    const float top = most > s->most[head] ? most : s->most[head];
    const vf scale = vf_exp(vf_first(1, vf_set1(s->most[head] - top), vf_set1(most - top)));
    float factor[16];
    vf_store(factor, scale);
    const float was = factor[0], now = factor[1];
    s->weight[head] = fmaf(s->weight[head], was, sum * now);
    s->most[head] = top;
    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(total + d, vf_fma(vf_load(total + d), vf_set1(was),
                                   vf_mul(vf_load(value + d), vf_set1(now))));
}

static uint32_t windows_seen(const kern_attend_args *a, uint32_t row)
{
    const kern_summary *s = &a->summary;
    const uint32_t count = selector_windows_at(s->window, s->stride, a->row_pos[row]);
    return count < s->max_windows ? count : s->max_windows;
}

/* `heads` query heads of one (row, KV head), from q [heads, dim] to out [heads, dim]. */
static void attend_heads(const kern_attend_args *a, uint64_t index, uint32_t heads, const float *q,
                         float *out, attend_scratch *s)
{
    const uint32_t dim = a->summary.head_dim, row = (uint32_t)(index / a->summary.kv_heads);
    const float scale = 1.0f / sqrtf((float)dim);
    const bool coarse = a->branch == BRANCH_COARSE;
    const bool bias = !coarse && a->selectors[a->row_selector[row]].bias;
    for (uint32_t h = 0; h < heads; h++) {
        dots_spread(q + (uint64_t)h * dim, dim, s->q + (uint64_t)h * dim);
        s->most[h] = -INFINITY;
        s->weight[h] = 0.0f;
    }
    memset(s->total, 0, (uint64_t)heads * dim * sizeof s->total[0]);
    const uint32_t count = coarse ? windows_seen(a, row) : (uint32_t)a->count[index];
    const uint32_t step = coarse ? GROUP_TOKENS : KERN_GROUP_ENTRIES;
    for (uint32_t e = 0; e < count; e += step) {
        const uint32_t end = e + step < count ? e + step : count;
        const uint32_t runs =
            coarse ? find_windows(a, index, e, end, s) : find_runs(a, index, e, end, s);
        if (runs == 0) continue;
        if (heads == 4)
            run_dots(4, s, runs, dim);
        else if (heads == 2)
            run_dots(2, s, runs, dim);
        else
            run_dots(1, s, runs, dim);
        run_bias(s, runs, bias);
        float most[HEADS], sum[HEADS];
        for (uint32_t h = 0; h < heads; h++)
            run_softmax(s, h, runs, scale, &most[h], &sum[h]);
        group_values(s, heads, runs, dim);
        for (uint32_t h = 0; h < heads; h++)
            merge(s, h, most[h], sum[h], dim);
    }
    for (uint32_t h = 0; h < heads; h++) {
        const float inverse = s->weight[h] > 0.0f ? 1.0f / s->weight[h] : 0.0f;
        dots_unspread(s->total + (uint64_t)h * dim, dim, inverse, out + (uint64_t)h * dim);
    }
}

/* `chunk` rows of one KV head: neighbouring rows share most of their blocks, which then stay in
 * cache. */
static void attend_task(const void *context, uint32_t task, void *scratch)
{
    const attend_job *job = context;
    const kern_attend_args *a = job->a;
    const uint32_t kv_heads = a->summary.kv_heads, dim = a->summary.head_dim;
    const uint32_t head = task % kv_heads, first = task / kv_heads * job->chunk;
    const uint32_t last = first + job->chunk < a->rows ? first + job->chunk : a->rows;
    for (uint32_t row = first; row < last; row++) {
        const float *q = a->q + row * a->row_stride + (uint64_t)head * job->group * dim;
        float *out = a->out + ((uint64_t)row * a->heads + (uint64_t)head * job->group) * dim;
        for (uint32_t g = 0; g < job->group;) {
            const uint32_t left = job->group - g, heads = left >= 4 ? 4 : left >= 2 ? 2 : 1;
            attend_heads(a, (uint64_t)row * kv_heads + head, heads, q + (uint64_t)g * dim,
                         out + (uint64_t)g * dim, scratch);
            g += heads;
        }
    }
}

status LEVEL(attend)(kern_stream *stream, const kern_attend_args *args)
{
    _Static_assert(sizeof(attend_scratch) <= KERN_SCRATCH_BYTES, "scratch of one row");
    kern_team *team = stream->backend->team;
    const uint32_t kv_heads = args->summary.kv_heads;
    const uint64_t pairs = (uint64_t)args->rows * kv_heads;
    if (args->part == ATTEND_PRESENT) return STATUS_OK;
    uint64_t chunk = pairs / (UINT64_C(4) * kern_team_threads(team));
    chunk = chunk < 1 ? 1 : chunk > 16 ? 16 : chunk;
    if (chunk > args->rows) chunk = args->rows;
    const attend_job job = {args, args->heads / kv_heads, (uint32_t)chunk};
    const uint64_t tasks = args->rows == 0 ? 0 : (args->rows + chunk - 1) / chunk * kv_heads;
    const bool parallel = pairs * args->max_select >= SMALL_ENTRIES;
    kern_team_run(team, (uint32_t)tasks, parallel, attend_task, &job);
    return STATUS_OK;
}
