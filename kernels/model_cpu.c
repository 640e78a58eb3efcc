/* kernels/model_cpu.c - the ops around attention and products: embed, rmsnorm, rope, swiglu,
 * sample.
 *
 * All work on one row at a time in a fixed order, so threads share out rows and nothing else. */
#include "kernels/scalar.h"
#include "kernels/simd.h"

enum { SMALL_FLOATS = 1 << 14, TASK_ROWS = 8 };

static uint32_t row_tasks(uint32_t rows)
{
    return (rows + TASK_ROWS - 1) / TASK_ROWS;
}

static uint32_t row_end(uint32_t task, uint32_t rows)
{
    const uint32_t end = (task + 1) * TASK_ROWS;
    return end < rows ? end : rows;
}

static void embed_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_embed_args *a = context;
    for (uint32_t r = task * TASK_ROWS; r < row_end(task, a->rows); r++) {
        const uint16_t *source = a->table + (uint64_t)a->ids[r] * a->hidden;
        float *out = a->out + (uint64_t)r * a->hidden;
        for (uint32_t i = 0; i < a->hidden; i++)
            out[i] = a->scale * kern_bf16_to_f32(source[i]);
    }
}

status LEVEL(embed)(kern_stream *stream, const kern_embed_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->hidden >= SMALL_FLOATS;
    kern_team_run(stream->backend->team, row_tasks(args->rows), parallel, embed_task, args);
    return STATUS_OK;
}

static void rmsnorm_row(const kern_rmsnorm_args *a, const float *x, float *out)
{
    const uint32_t whole = a->hidden / 16 * 16, rest = a->hidden - whole;
    vf sum = vf_zero();
    for (uint32_t i = 0; i < whole; i += 16) {
        const vf v = vf_load(x + i);
        sum = vf_fma(v, v, sum);
    }
    if (rest > 0) {
        const vf v = vf_load_n(x + whole, rest);
        sum = vf_fma(v, v, sum);
    }
    const float mean = vf_sum(sum) / (float)a->hidden;
    const vf scale = vf_set1(1.0f / sqrtf(mean + a->eps));
    for (uint32_t i = 0; i < whole; i += 16)
        vf_store(out + i, vf_mul(vf_mul(vf_load(x + i), scale), vf_bf16(a->weight + i)));
    if (rest > 0) {
        const vf v = vf_mul(vf_load_n(x + whole, rest), scale);
        vf_store_n(out + whole, vf_mul(v, vf_bf16_n(a->weight + whole, rest)), rest);
    }
}

static void rmsnorm_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_rmsnorm_args *a = context;
    for (uint32_t r = task * TASK_ROWS; r < row_end(task, a->rows); r++)
        rmsnorm_row(a, a->x + (uint64_t)r * a->hidden, a->out + (uint64_t)r * a->hidden);
}

status LEVEL(rmsnorm)(kern_stream *stream, const kern_rmsnorm_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->hidden >= SMALL_FLOATS;
    kern_team_run(stream->backend->team, row_tasks(args->rows), parallel, rmsnorm_task, args);
    return STATUS_OK;
}

/* (a, b) -> (a cos - b sin, b cos + a sin), one rounding for the product and one for the fma. */
static void rope_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_rope_args *a = context;
    const uint32_t half = a->head_dim / 2;
    for (uint32_t r = task * TASK_ROWS; r < row_end(task, a->rows); r++) {
        const float *cosine = a->cos + (uint64_t)a->row_pos[r] * half;
        const float *sine = a->sin + (uint64_t)a->row_pos[r] * half;
        for (uint32_t h = 0; h < a->heads; h++) {
            float *x = a->x + r * a->row_stride + (uint64_t)h * a->head_dim;
            for (uint32_t i = 0; i < half; i += 16) {
                const vf c = vf_load(cosine + i), s = vf_load(sine + i);
                const vf low = vf_load(x + i), high = vf_load(x + half + i);
                vf_store(x + i, vf_fnma(high, s, vf_mul(low, c)));
                vf_store(x + half + i, vf_fma(low, s, vf_mul(high, c)));
            }
        }
    }
}

status LEVEL(rope)(kern_stream *stream, const kern_rope_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->heads * args->head_dim >= SMALL_FLOATS;
    kern_team_run(stream->backend->team, row_tasks(args->rows), parallel, rope_task, args);
    return STATUS_OK;
}

/* silu(g) * up = g / (1 + e^-g) * up. */
LANE_OP vf swiglu_lanes(vf gate, vf up)
{
    const vf denominator = vf_add(vf_set1(1.0f), vf_exp(vf_sub(vf_zero(), gate)));
    return vf_mul(vf_div(gate, denominator), up);
}

static void swiglu_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_swiglu_args *a = context;
    const uint32_t whole = a->ffn / 16 * 16, rest = a->ffn - whole;
    for (uint32_t r = task * TASK_ROWS; r < row_end(task, a->rows); r++) {
        const float *gate = a->gate + r * a->in_stride, *up = a->up + r * a->in_stride;
        float *out = a->out + (uint64_t)r * a->ffn;
        for (uint32_t i = 0; i < whole; i += 16)
            vf_store(out + i, swiglu_lanes(vf_load(gate + i), vf_load(up + i)));
        if (rest > 0)
            vf_store_n(out + whole,
                       swiglu_lanes(vf_load_n(gate + whole, rest), vf_load_n(up + whole, rest)),
                       rest);
    }
}

status LEVEL(swiglu)(kern_stream *stream, const kern_swiglu_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->ffn >= SMALL_FLOATS / 8;
    kern_team_run(stream->backend->team, row_tasks(args->rows), parallel, swiglu_task, args);
    return STATUS_OK;
}

static float largest(const float *logits, uint32_t count)
{
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    vf most = vf_set1(-INFINITY);
    for (uint32_t i = 0; i < whole; i += 16)
        most = vf_max(vf_load(logits + i), most);
    if (rest > 0) most = vf_max(vf_first(rest, vf_load_n(logits + whole, rest), most), most);
    return vf_max_lane(most);
}

/* Sixteen running sums and the tree. */
static float log_sum_exp(const float *logits, uint32_t count, float top)
{
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    const vf shift = vf_set1(top);
    vf sum = vf_zero();
    for (uint32_t i = 0; i < whole; i += 16)
        sum = vf_add(sum, vf_exp(vf_sub(vf_load(logits + i), shift)));
    if (rest > 0) {
        const vf e = vf_exp(vf_sub(vf_load_n(logits + whole, rest), shift));
        sum = vf_add(sum, vf_first(rest, e, vf_zero()));
    }
    return top + (float)kern_log((double)vf_sum(sum));
}

static void weights(const float *logits, uint32_t count, float top, float inverse, float *out)
{
    const uint32_t whole = count / 16 * 16, rest = count - whole;
    const vf shift = vf_set1(top), factor = vf_set1(inverse);
    for (uint32_t i = 0; i < whole; i += 16)
        vf_store(out + i, vf_exp(vf_mul(vf_sub(vf_load(logits + i), shift), factor)));
    if (rest > 0) {
        const vf l = vf_sub(vf_load_n(logits + whole, rest), shift);
        vf_store_n(out + whole, vf_exp(vf_mul(l, factor)), rest);
    }
}

status LEVEL(sample)(kern_stream *stream, const kern_sample_args *args)
{
    static const kern_sample_math math = {largest, log_sum_exp, weights};
    return kern_sample_rows(stream, args, &math);
}

/* add + x * (1 / (1 + e^-g)), a gate a head; one rounding for the product and the sum. */
static void gate_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_gate_args *a = context;
    const vf one = vf_set1(1.0f);
    for (uint32_t r = task * TASK_ROWS; r < row_end(task, a->rows); r++) {
        const float *gate = a->gate + r * a->gate_stride;
        for (uint32_t h = 0; h < a->heads; h++) {
            const uint64_t at = ((uint64_t)r * a->heads + h) * a->head_dim;
            float *x = a->x + at;
            const float *add = a->add == NULL ? NULL : a->add + at;
            const vf g = vf_sub(vf_zero(), vf_set1(gate[h]));
            const vf weight = vf_div(one, vf_add(one, vf_exp(g)));
            for (uint32_t d = 0; d < a->head_dim; d += 16) { /* a multiple of 32 */
                const vf of = vf_load(x + d);
                vf_store(x + d,
                         add == NULL ? vf_mul(of, weight) : vf_fma(of, weight, vf_load(add + d)));
            }
        }
    }
}

status LEVEL(gate)(kern_stream *stream, const kern_gate_args *args)
{
    const bool parallel = (uint64_t)args->rows * args->heads * args->head_dim >= SMALL_FLOATS;
    kern_team_run(stream->backend->team, row_tasks(args->rows), parallel, gate_task, args);
    return STATUS_OK;
}
