/* kernels/summary_cpu.c - what is kept of every token: importance u, window means, K and V in the
 * pool.
 *
 * Importance has sixteen lanes over all values of a token (Hk * D, a multiple of 32) and the fixed
 * tree; a window's mean is one chain of additions over its tokens, ascending. */
#include "kernels/scalar.h"
#include "kernels/simd.h"

enum { SMALL_FLOATS = 1 << 14, TASK_ROWS = 8 };

static void importance_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_importance_args *a = context;
    const uint32_t width = a->kv_heads * a->head_dim;
    const uint32_t end = (task + 1) * TASK_ROWS < a->rows ? (task + 1) * TASK_ROWS : a->rows;
    for (uint32_t r = task * TASK_ROWS; r < end; r++) {
        const float *v = a->v + r * a->row_stride;
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            uint16_t *out = a->out + (uint64_t)r * a->kv_heads + h;
            if (a->a == NULL) {
                *out = 0;
                continue;
            }
            const uint16_t *delta = a->delta + (uint64_t)h * width;
            vf sum = vf_zero();
            for (uint32_t i = 0; i < width; i += 16) {
                float rounded[16];
                for (uint32_t j = 0; j < 16; j++)
                    rounded[j] = kern_bf16_to_f32(kern_f32_to_bf16(v[i + j]));
                sum = vf_fma(vf_load(rounded), vf_bf16(delta + i), sum);
            }
            const float soft = (float)kern_softplus((double)vf_sum(sum));
            *out = kern_f32_to_bf16(kern_bf16_to_f32(a->a[h]) * soft);
        }
    }
}

status LEVEL(importance)(kern_stream *stream, const kern_importance_args *args)
{
    const uint64_t work = (uint64_t)args->rows * args->kv_heads * args->kv_heads * args->head_dim;
    const uint32_t tasks = (args->rows + TASK_ROWS - 1) / TASK_ROWS;
    kern_team_run(stream->backend->team, tasks, work >= SMALL_FLOATS, importance_task, args);
    return STATUS_OK;
}

/* Mean of the last s->window tokens up to `pos` of one head's ring. */
static void ring_mean(const kern_summary *s, const uint16_t *kept, uint32_t pos, uint16_t *out)
{
    const float scale = 1.0f / (float)s->window;
    for (uint32_t d = 0; d < s->head_dim; d += 16) {
        vf sum = vf_zero();
        for (uint32_t t = pos + 1 - s->window; t <= pos; t++)
            sum = vf_add(sum, vf_bf16(kept + (uint64_t)(t % KERN_KEY_RING) * s->head_dim + d));
        float mean[16];
        vf_store(mean, vf_mul(sum, vf_set1(scale)));
        for (uint32_t i = 0; i < 16; i++)
            out[d + i] = kern_f32_to_bf16(mean[i]);
    }
}

/* Means of the window that `pos` completes, of one sequence and KV head. */
static void window_means(const kern_summary *s, uint64_t head, uint32_t pos, uint32_t index)
{
    const uint32_t first = pos + 1 - s->window;
    const float scale = 1.0f / (float)s->window;
    const uint64_t tokens = head * KERN_KEY_RING * s->head_dim;
    const uint64_t row = (head * s->max_windows + index) * s->head_dim;
    ring_mean(s, s->key_ring + tokens, pos, s->kc + row);
    if (s->vc != NULL) ring_mean(s, s->value_ring + tokens, pos, s->vc + row);
    const uint16_t *u = s->u + head * s->max_tokens;
    float sum = 0.0f;
    for (uint32_t t = first; t <= pos; t++)
        sum += kern_bf16_to_f32(u[t]);
    s->uc[head * s->max_windows + index] = kern_f32_to_bf16(sum * scale);
}

/* One KV head, rows in order: a row's window reads what earlier rows wrote into the ring. */
static void compress_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_compress_args *a = context;
    const kern_summary *s = &a->summary;
    for (uint32_t r = 0; r < a->rows; r++) {
        const uint32_t pos = (uint32_t)a->row_pos[r];
        const uint64_t head = (uint64_t)a->row_seq[r] * s->kv_heads + task;
        const uint64_t from = r * a->row_stride + (uint64_t)task * s->head_dim;
        const uint64_t to = (head * KERN_KEY_RING + pos % KERN_KEY_RING) * s->head_dim;
        for (uint32_t d = 0; d < s->head_dim; d++)
            s->key_ring[to + d] = kern_f32_to_bf16(a->k[from + d]);
        for (uint32_t d = 0; d < s->head_dim && s->vc != NULL; d++)
            s->value_ring[to + d] = kern_f32_to_bf16(a->v[from + d]);
        s->u[head * s->max_tokens + pos] = a->u[(uint64_t)r * s->kv_heads + task];
        if (pos + 1 < s->window || (pos + 1 - s->window) % s->stride != 0) continue;
        const uint32_t index = (pos + 1 - s->window) / s->stride;
        if (index < s->max_windows) window_means(s, head, pos, index);
    }
}

status LEVEL(compress)(kern_stream *stream, const kern_compress_args *args)
{
    const kern_summary *s = &args->summary;
    const uint64_t work = (uint64_t)args->rows * s->kv_heads * s->head_dim;
    kern_team_run(stream->backend->team, s->kv_heads, work >= SMALL_FLOATS, compress_task, args);
    return STATUS_OK;
}

static void append_task(const void *context, uint32_t task, void *scratch)
{
    (void)scratch;
    const kern_append_args *a = context;
    const uint64_t dim = a->head_dim, block = UINT64_C(2) * KERN_BLOCK * dim;
    const uint32_t end = (task + 1) * TASK_ROWS < a->rows ? (task + 1) * TASK_ROWS : a->rows;
    for (uint32_t r = task * TASK_ROWS; r < end; r++)
        for (uint32_t h = 0; h < a->kv_heads; h++) {
            const int32_t slot = a->slot[(uint64_t)r * a->kv_heads + h];
            if (slot < 0) continue;
            uint16_t *keys = (uint16_t *)(void *)a->pool + (uint64_t)slot * block;
            uint16_t *k = keys + (uint64_t)(a->row_pos[r] % KERN_BLOCK) * dim;
            uint16_t *v = k + KERN_BLOCK * dim;
            const float *from_k = a->k + r * a->row_stride + h * dim;
            const float *from_v = a->v + r * a->row_stride + h * dim;
            for (uint64_t d = 0; d < dim; d++) {
                k[d] = kern_f32_to_bf16(from_k[d]);
                v[d] = kern_f32_to_bf16(from_v[d]);
            }
        }
}

status LEVEL(append)(kern_stream *stream, const kern_append_args *args)
{
    const uint64_t work = (uint64_t)args->rows * args->kv_heads * args->head_dim;
    const uint32_t tasks = (args->rows + TASK_ROWS - 1) / TASK_ROWS;
    kern_team_run(stream->backend->team, tasks, work >= SMALL_FLOATS, append_task, args);
    return STATUS_OK;
}
