/* kernels/model_ref.c - embed, rmsnorm, rope, linear, swiglu, sample in the plainest C: one loop an
 * index, sums in double, one thread. What every other backend is compared with. */
#include "kernels/backend.h"

#include <math.h>

status ref_embed(kern_stream *stream, const kern_embed_args *a)
{
    (void)stream;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t i = 0; i < a->hidden; i++)
            a->out[r * a->hidden + i] =
                a->scale * kern_bf16_to_f32(a->table[(uint64_t)a->ids[r] * a->hidden + i]);
    return STATUS_OK;
}

status ref_rmsnorm(kern_stream *stream, const kern_rmsnorm_args *a)
{
    (void)stream;
    for (uint64_t r = 0; r < a->rows; r++) {
        const float *x = a->x + r * a->hidden;
        double sum = 0.0;
        for (uint64_t i = 0; i < a->hidden; i++)
            sum += (double)x[i] * (double)x[i];
        const double scale = 1.0 / sqrt(sum / a->hidden + (double)a->eps);
        for (uint64_t i = 0; i < a->hidden; i++)
            a->out[r * a->hidden + i] =
                (float)((double)x[i] * scale * (double)kern_bf16_to_f32(a->weight[i]));
    }
    return STATUS_OK;
}

status ref_rope(kern_stream *stream, const kern_rope_args *a)
{
    (void)stream;
    const uint64_t half = a->head_dim / 2;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < a->heads; h++)
            for (uint64_t i = 0; i < half; i++) {
                const double c = (double)a->cos[(uint64_t)a->row_pos[r] * half + i];
                const double s = (double)a->sin[(uint64_t)a->row_pos[r] * half + i];
                float *x = a->x + r * a->row_stride + h * a->head_dim;
                const double low = (double)x[i], high = (double)x[half + i];
                x[i] = (float)(low * c - high * s);
                x[half + i] = (float)(high * c + low * s);
            }
    return STATUS_OK;
}

static float weight_at(const kern_weight *w, uint64_t n, uint64_t k)
{
    const uint64_t place = n % KERN_PANEL;
    const uint64_t column = place < 16 ? 2 * place : 2 * (place - 16) + 1;
    return kern_bf16_to_f32(w->data[(n / KERN_PANEL * w->k + k) * KERN_PANEL + column]);
}

status ref_linear(kern_stream *stream, const kern_linear_args *a)
{
    (void)stream;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t n = 0; n < kern_linear_columns(a); n++) {
            double sum = 0.0;
            for (uint64_t k = 0; k < a->weight->k; k++)
                sum += (double)a->x[r * a->x_stride + k] * (double)weight_at(a->weight, n, k);
            const uint64_t at = r * a->out_stride + n;
            const double residual = a->residual == NULL ? 0.0 : (double)a->residual[at];
            a->out[at] = (float)(residual + (double)a->scale * sum);
        }
    return STATUS_OK;
}

status ref_swiglu(kern_stream *stream, const kern_swiglu_args *a)
{
    (void)stream;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t i = 0; i < a->ffn; i++) {
            const double gate = (double)a->gate[r * a->in_stride + i];
            const double up = (double)a->up[r * a->in_stride + i];
            a->out[r * a->ffn + i] = (float)(gate / (1.0 + exp(-gate)) * up);
        }
    return STATUS_OK;
}

status ref_gate(kern_stream *stream, const kern_gate_args *a)
{
    (void)stream;
    for (uint64_t r = 0; r < a->rows; r++)
        for (uint64_t h = 0; h < a->heads; h++) {
            const double gate = 1.0 / (1.0 + exp(-(double)a->gate[r * a->gate_stride + h]));
            const uint64_t at = (r * a->heads + h) * a->head_dim;
            for (uint64_t i = at; i < at + a->head_dim; i++) {
                const double x = gate * (double)a->x[i];
                a->x[i] = (float)(a->add == NULL ? x : (double)a->add[i] + x);
            }
        }
    return STATUS_OK;
}

static float largest(const float *logits, uint32_t count)
{
    float top = -INFINITY;
    for (uint32_t i = 0; i < count; i++)
        if (logits[i] > top) top = logits[i];
    return top;
}

static float log_sum_exp(const float *logits, uint32_t count, float top)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        sum += exp((double)logits[i] - (double)top);
    return (float)((double)top + log(sum));
}

static void weights(const float *logits, uint32_t count, float top, float inverse, float *out)
{
    for (uint32_t i = 0; i < count; i++)
        out[i] = (float)exp(((double)logits[i] - (double)top) * (double)inverse);
}

status ref_sample(kern_stream *stream, const kern_sample_args *a)
{
    static const kern_sample_math math = {largest, log_sum_exp, weights};
    return kern_sample_rows(stream, a, &math);
}
