/* kernels/attend_ref.c - importance, compress, append, score and attend in the plainest C, sums in
 * double, softmax in two passes. Roundings to bf16 stand where kernels.h puts them, nowhere else.
 */
#include "kernels/backend.h"
#include "kernels/selector.h"

#include <math.h>
#include <string.h>

static double at_bf16(const uint16_t *x, uint64_t i)
{
    return (double)kern_bf16_to_f32(x[i]);
}

status ref_importance(kern_stream *stream, const kern_importance_args *a)
{
    (void)stream;
    const uint64_t width = (uint64_t)a->kv_heads * a->head_dim;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < a->kv_heads; h++) {
            double sum = 0.0;
            for (uint64_t i = 0; i < width && a->a != NULL; i++) {
                const uint16_t v = kern_f32_to_bf16(a->v[r * a->row_stride + i]);
                sum += (double)kern_bf16_to_f32(v) * at_bf16(a->delta, h * width + i);
            }
            const double soft = sum > 20.0 ? sum : log1p(exp(sum));
            const double u = a->a == NULL ? 0.0 : at_bf16(a->a, h) * soft;
            a->out[r * a->kv_heads + h] = kern_f32_to_bf16((float)u);
        }
    return STATUS_OK;
}

/* Mean of a head's kept tokens first .. first + window - 1. */
static void mean_ring(const kern_summary *s, const uint16_t *kept, uint64_t head, uint32_t first,
                      uint16_t *out)
{
    for (uint64_t d = 0; d < s->head_dim; d++) {
        double sum = 0.0;
        for (uint32_t t = first; t < first + s->window; t++)
            sum += at_bf16(kept, (head * KERN_KEY_RING + t % KERN_KEY_RING) * s->head_dim + d);
        out[d] = kern_f32_to_bf16((float)(sum / s->window));
    }
}

static void mean_window(const kern_summary *s, uint64_t head, uint32_t first, uint32_t index)
{
    const uint64_t row = (head * s->max_windows + index) * s->head_dim;
    mean_ring(s, s->key_ring, head, first, s->kc + row);
    if (s->vc != NULL) mean_ring(s, s->value_ring, head, first, s->vc + row);
    double sum = 0.0;
    for (uint32_t t = first; t < first + s->window; t++)
        sum += at_bf16(s->u, head * s->max_tokens + t);
    s->uc[head * s->max_windows + index] = kern_f32_to_bf16((float)(sum / s->window));
}

status ref_compress(kern_stream *stream, const kern_compress_args *a)
{
    (void)stream;
    const kern_summary *s = &a->summary;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < s->kv_heads; h++) {
            const uint32_t pos = (uint32_t)a->row_pos[r];
            const uint64_t head = (uint64_t)a->row_seq[r] * s->kv_heads + h;
            const uint64_t to = (head * KERN_KEY_RING + pos % KERN_KEY_RING) * s->head_dim;
            const uint64_t from = r * a->row_stride + h * s->head_dim;
            for (uint64_t d = 0; d < s->head_dim; d++) {
                s->key_ring[to + d] = kern_f32_to_bf16(a->k[from + d]);
                if (s->vc != NULL) s->value_ring[to + d] = kern_f32_to_bf16(a->v[from + d]);
            }
            s->u[head * s->max_tokens + pos] = a->u[r * s->kv_heads + h];
            const uint32_t before =
                pos == 0 ? 0 : selector_windows_at(s->window, s->stride, (int32_t)pos - 1);
            const uint32_t now = selector_windows_at(s->window, s->stride, (int32_t)pos);
            if (now > before && before < s->max_windows)
                mean_window(s, head, before * s->stride, before);
        }
    return STATUS_OK;
}

status ref_append(kern_stream *stream, const kern_append_args *a)
{
    (void)stream;
    const uint64_t dim = a->head_dim;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < a->kv_heads; h++) {
            const int32_t slot = a->slot[r * a->kv_heads + h];
            if (slot < 0) continue;
            uint16_t *block = (uint16_t *)(void *)a->pool + (uint64_t)slot * 2 * KERN_BLOCK * dim;
            const uint64_t token = (uint64_t)a->row_pos[r] % KERN_BLOCK;
            for (uint64_t d = 0; d < dim; d++) {
                const uint64_t from = r * a->row_stride + h * dim + d;
                block[token * dim + d] = kern_f32_to_bf16(a->k[from]);
                block[(KERN_BLOCK + token) * dim + d] = kern_f32_to_bf16(a->v[from]);
            }
        }
    return STATUS_OK;
}

static double dot(const float *q, const uint16_t *k, uint64_t dim)
{
    double sum = 0.0;
    for (uint64_t d = 0; d < dim; d++)
        sum += (double)q[d] * at_bf16(k, d);
    return sum;
}

/* Scores of one (row, KV head); logits: scratch of max_windows. */
static void score_one(const kern_score_args *a, uint64_t r, uint64_t h, double *logits)
{
    const kern_summary *s = &a->summary;
    const kern_selector *selector = &a->selectors[a->row_selector[r]];
    if (!selector_needs_scores(selector, a->row_pos[r])) return;
    uint32_t count = selector_visible(selector, a->row_pos[r]);
    if (count > s->max_windows) count = s->max_windows;
    const uint64_t group = a->heads / s->kv_heads, dim = s->head_dim;
    const uint16_t *kc = s->kc + ((uint64_t)a->row_seq[r] * s->kv_heads + h) * s->max_windows * dim;
    float *out = a->out + (r * s->kv_heads + h) * s->max_windows;
    for (uint64_t j = 0; j < s->max_windows; j++)
        out[j] = 0.0f;
    for (uint64_t g = 0; g < group; g++) {
        const float *q = a->q + r * a->row_stride + (h * group + g) * dim;
        double top = -INFINITY, sum = 0.0;
        for (uint64_t j = 0; j < count && selector->raw; j++)
            out[j] = (float)((double)out[j] + dot(q, kc + j * dim, dim));
        if (selector->raw) continue;
        for (uint64_t j = 0; j < count; j++) {
            logits[j] = dot(q, kc + j * dim, dim) / sqrt((double)dim);
            if (logits[j] > top) top = logits[j];
        }
        for (uint64_t j = 0; j < count; j++)
            sum += exp(logits[j] - top);
        for (uint64_t j = 0; j < count; j++)
            out[j] = (float)((double)out[j] + exp(logits[j] - top) / sum);
    }
}

status ref_score(kern_stream *stream, const kern_score_args *a)
{
    double *logits = kern_team_scratch(stream->backend->team);
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < a->summary.kv_heads; h++)
            score_one(a, r, h, logits);
    return STATUS_OK;
}

/* One key and value: for the largest logit (sum NULL), or for the sums. */
static void weigh(double l, const uint16_t *v, uint64_t dim, double *top, double *sum)
{
    if (sum == NULL) {
        if (l > *top) *top = l;
        return;
    }
    const double p = exp(l - *top);
    sum[dim] += p;
    for (uint64_t d = 0; d < dim; d++)
        sum[d] += p * at_bf16(v, d);
}

/* NSA's compressed branch: every window complete at the row. */
static void coarse_pass(const kern_attend_args *a, uint64_t index, const float *q, double *top,
                        double *sum)
{
    const kern_summary *s = &a->summary;
    const uint64_t r = index / s->kv_heads, dim = s->head_dim;
    const uint64_t head = (uint64_t)a->row_seq[r] * s->kv_heads + index % s->kv_heads;
    uint32_t count = selector_windows_at(s->window, s->stride, a->row_pos[r]);
    if (count > s->max_windows) count = s->max_windows;
    for (uint64_t j = head * s->max_windows; j < head * s->max_windows + count; j++)
        weigh(dot(q, s->kc + j * dim, dim) / sqrt((double)dim), s->vc + j * dim, dim, top, sum);
}

/* Visit every token that counts: first for the largest logit, then for the sums. */
static void attend_pass(const kern_attend_args *a, uint64_t index, const float *q, double *top,
                        double *sum)
{
    const kern_summary *s = &a->summary;
    const uint64_t r = index / s->kv_heads, h = index % s->kv_heads, dim = s->head_dim;
    const kern_selector *selector = &a->selectors[a->row_selector[r]];
    const bool near = a->branch == BRANCH_NEAR;
    const int64_t from = near ? (int64_t)a->row_pos[r] + 1 - (int64_t)selector->near : 0;
    if (a->branch == BRANCH_COARSE) {
        coarse_pass(a, index, q, top, sum);
        return;
    }
    const uint16_t *u = s->u + ((uint64_t)a->row_seq[r] * s->kv_heads + h) * s->max_tokens;
    for (int32_t e = 0; e < a->count[index]; e++) {
        const uint64_t entry = index * a->max_select + (uint64_t)e;
        if (a->block[entry] < 0 || a->slot[entry] < 0) continue;
        const uint16_t *block =
            (const uint16_t *)(const void *)(a->pool + (uint64_t)a->slot[entry] * a->block_bytes);
        for (uint64_t t = 0; t < KERN_BLOCK; t++) {
            const int64_t token = (int64_t)a->block[entry] * KERN_BLOCK + (int64_t)t;
            if (token > a->row_pos[r] || token < from) continue;
            if (!near && (a->mask[entry] >> (t / 16) & 1) == 0) continue;
            double l = dot(q, block + t * dim, dim) / sqrt((double)dim);
            if (selector->bias) l += at_bf16(u, (uint64_t)token);
            weigh(l, block + (KERN_BLOCK + t) * dim, dim, top, sum);
        }
    }
}

status ref_attend(kern_stream *stream, const kern_attend_args *a)
{
    if (a->part == ATTEND_PRESENT) return STATUS_OK;
    (void)stream;
    const uint64_t kv_heads = a->summary.kv_heads, dim = a->summary.head_dim;
    const uint64_t group = a->heads / kv_heads;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t head = 0; head < a->heads; head++) {
            const uint64_t index = r * kv_heads + head / group;
            const float *q = a->q + r * a->row_stride + head * dim;
            double sum[KERN_DIM_MAX + 1] = {0}, top = -INFINITY;
            attend_pass(a, index, q, &top, NULL);
            attend_pass(a, index, q, &top, sum);
            for (uint64_t d = 0; d < dim; d++)
                a->out[(r * a->heads + head) * dim + d] =
                    sum[dim] > 0.0 ? (float)(sum[d] / sum[dim]) : 0.0f;
        }
    return STATUS_OK;
}
