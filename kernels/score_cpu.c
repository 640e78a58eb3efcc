/* kernels/score_cpu.c - query scores of compressed keys: exact softmax over the visible windows for
 * each head, summed over the heads of a KV head (InfLLM-V2; NOSA, arXiv 2510.13602).
 *
 * For a tile of up to four heads: products of all windows into scratch, largest, e^(l - largest)
 * with sixteen running sums and the tree, then weight by 1 / sum and add to the row, heads
 * ascending. */
#include "kernels/dots.h"
#include "kernels/selector.h"

enum { SMALL_FLOATS = 1 << 12 };

typedef struct score_job {
    const kern_score_args *a;
    uint32_t group; /* query heads of a KV head */
} score_job;

static inline uint32_t row_stride(uint32_t count)
{
    return (count + 15) / 16 * 16;
}

/* Products of `heads` queries with rows 0 .. count - 1 of kc; out rows row_stride(count) apart. */
LANE_OP void all_dots(uint32_t heads, const float *q, const uint16_t *kc, uint32_t dim,
                      uint32_t count, float *out)
{
    const uint64_t stride = row_stride(count);
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    for (uint32_t j = 0; j < whole; j += 16)
        dots_sixteen(heads, q, kc + (uint64_t)j * dim, dim, out + j, stride);
    if (rest > 0) { /* rows beyond the last are not ours to read */
        uint16_t tail[16 * KERN_DIM_MAX];
        memset(tail, 0, sizeof tail);
        memcpy(tail, kc + (uint64_t)whole * dim, (uint64_t)rest * dim * sizeof tail[0]);
        dots_sixteen(heads, q, tail, dim, out + whole, stride);
    }
}

/* logits [count] products -> weights added to out [count]. */
LANE_OP void softmax_add(float *logits, uint32_t count, float scale, float *out)
{
    const vf factor = vf_set1(scale);
    vf most = vf_set1(-INFINITY);
    for (uint32_t j = 0; j < count; j += 16) {
        const uint32_t n = count - j < 16 ? count - j : 16;
        const vf l = vf_first(n, vf_mul(vf_load(logits + j), factor), vf_set1(-INFINITY));
        vf_store(logits + j, l);
        most = vf_max(l, most);
    }
    const vf top = vf_set1(vf_max_lane(most));
    vf sum = vf_zero();
    for (uint32_t j = 0; j < count; j += 16) {
        const vf e = vf_exp(vf_sub(vf_load(logits + j), top));
        vf_store(logits + j, e);
        sum = vf_add(sum, e);
    }
    const vf inverse = vf_set1(1.0f / vf_sum(sum));
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    for (uint32_t j = 0; j < whole; j += 16)
        vf_store(out + j, vf_fma(vf_load(logits + j), inverse, vf_load(out + j)));
    if (rest > 0)
        vf_store_n(out + whole,
                   vf_fma(vf_load(logits + whole), inverse, vf_load_n(out + whole, rest)), rest);
}

/* Products added to out [count] as they are (MoBA). */
LANE_OP void products_add(const float *products, uint32_t count, float *out)
{
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    for (uint32_t j = 0; j < whole; j += 16)
        vf_store(out + j, vf_add(vf_load(products + j), vf_load(out + j)));
    if (rest > 0)
        vf_store_n(out + whole, vf_add(vf_load(products + whole), vf_load_n(out + whole, rest)),
                   rest);
}

static void score_task(const void *context, uint32_t task, void *scratch)
{
    const score_job *job = context;
    const kern_score_args *a = job->a;
    const kern_summary *s = &a->summary;
    const uint32_t row = task / s->kv_heads, head = task % s->kv_heads, dim = s->head_dim;
    const kern_selector *selector = &a->selectors[a->row_selector[row]];
    if (!selector_needs_scores(selector, a->row_pos[row])) return;
    uint32_t count = selector_visible(selector, a->row_pos[row]);
    if (count > s->max_windows) count = s->max_windows;
    float *out = a->out + (uint64_t)task * s->max_windows;
    memset(out, 0, s->max_windows * sizeof *out);
    if (count == 0) return;

    const uint64_t place = (uint64_t)a->row_seq[row] * s->kv_heads + head;
    const uint16_t *kc = s->kc + place * s->max_windows * dim;
    const float *query = a->q + row * a->row_stride + (uint64_t)head * job->group * dim;
    float *logits = scratch;
    const uint64_t stride = row_stride(count);
    const float scale = 1.0f / sqrtf((float)dim);
    float q[4 * KERN_DIM_MAX];
    for (uint32_t g = 0; g < job->group;) {
        const uint32_t left = job->group - g, heads = left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (uint32_t h = 0; h < heads; h++)
            dots_spread(query + (uint64_t)(g + h) * dim, dim, q + (uint64_t)h * dim);
        if (heads == 4)
            all_dots(4, q, kc, dim, count, logits);
        else if (heads == 2)
            all_dots(2, q, kc, dim, count, logits);
        else
            all_dots(1, q, kc, dim, count, logits);
        for (uint32_t h = 0; h < heads; h++) {
            if (selector->raw)
                products_add(logits + h * stride, count, out);
            else
                softmax_add(logits + h * stride, count, scale, out);
        }
        g += heads;
    }
}

status LEVEL(score)(kern_stream *stream, const kern_score_args *args)
{
    const kern_summary *s = &args->summary;
    const score_job job = {args, args->heads / s->kv_heads};
    const uint64_t work = (uint64_t)args->rows * args->heads * s->max_windows;
    kern_team_run(stream->backend->team, args->rows * s->kv_heads, work >= SMALL_FLOATS, score_task,
                  &job);
    return STATUS_OK;
}
