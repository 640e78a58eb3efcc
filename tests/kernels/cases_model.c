/* tests/kernels/cases_model.c - rows of the op table: embed, rmsnorm, rope, linear, swiglu,
 * importance, compress, append, sample. */
#include "tests/kernels/ops.h"

#include <math.h>
#include <string.h>

#define COUNT_OF(x) (sizeof(x) / sizeof((x)[0]))
#define ARGS(type)  type *a = ARENA_NEW(f->memory, type, 1)

/* ---- embed: rows hidden vocab ---------------------------------------------------------------- */

static status embed_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_embed_args a = *(kern_embed_args *)f->args;
    a.ids += first;
    a.out += (uint64_t)first * a.hidden;
    a.rows = count;
    return kern_embed(f->stream, &a);
}

static void embed_build(op_fixture *f)
{
    ARGS(kern_embed_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->hidden = (uint32_t)f->param[1];
    a->vocab = (uint32_t)f->param[2];
    a->scale = 12.0f;
    a->table = ops_bf16s(f, (uint64_t)a->vocab * a->hidden, 1.0f);
    int32_t *ids = ARENA_NEW(f->memory, int32_t, a->rows);
    for (uint32_t i = 0; i < a->rows; i++)
        ids[i] = (int32_t)rng_below(&f->random, a->vocab);
    a->ids = ids;
    a->out = ops_floats(f, (uint64_t)a->rows * a->hidden, 0.0f);
    f->args = a;
    f->run = embed_run;
    f->bytes = (double)a->rows * a->hidden * 6;
    ops_output(f, "out", a->out, (uint64_t)a->rows * a->hidden, VALUE_F32);
}

/* ---- rmsnorm: rows hidden -------------------------------------------------------------------- */

static status rmsnorm_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_rmsnorm_args a = *(kern_rmsnorm_args *)f->args;
    a.x += (uint64_t)first * a.hidden;
    a.out += (uint64_t)first * a.hidden;
    a.rows = count;
    return kern_rmsnorm(f->stream, &a);
}

static void rmsnorm_build(op_fixture *f)
{
    ARGS(kern_rmsnorm_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->hidden = (uint32_t)f->param[1];
    a->eps = 1e-6f;
    a->x = ops_floats(f, (uint64_t)a->rows * a->hidden, 3.0f);
    a->weight = ops_bf16s(f, a->hidden, 1.0f);
    a->out = ops_floats(f, (uint64_t)a->rows * a->hidden, 0.0f);
    f->args = a;
    f->run = rmsnorm_run;
    f->bytes = (double)a->rows * a->hidden * 8;
    ops_output(f, "out", a->out, (uint64_t)a->rows * a->hidden, VALUE_F32);
}

/* ---- rope: rows heads dim stride-extra: in place, so each run starts from a copy ------------- */

static status rope_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_rope_args a = *(kern_rope_args *)f->args;
    const float *source = f->context;
    memcpy(a.x + first * a.row_stride, source + first * a.row_stride,
           count * a.row_stride * sizeof *source);
    a.x += first * a.row_stride;
    a.row_pos += first;
    a.rows = count;
    return kern_rope(f->stream, &a);
}

static void rope_build(op_fixture *f)
{
    ARGS(kern_rope_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->heads = (uint32_t)f->param[1];
    a->head_dim = (uint32_t)f->param[2];
    a->max_tokens = 300;
    a->row_stride = (uint64_t)a->heads * a->head_dim + (uint64_t)f->param[3];
    const uint64_t count = a->rows * a->row_stride;
    f->context = ops_floats(f, count, 1.0f);
    a->x = ops_floats(f, count, 0.0f);
    int32_t *pos = ARENA_NEW(f->memory, int32_t, a->rows);
    for (uint32_t i = 0; i < a->rows; i++)
        pos[i] = (int32_t)rng_below(&f->random, a->max_tokens);
    a->row_pos = pos;
    const uint32_t half = a->head_dim / 2;
    float *cosine = ops_floats(f, (uint64_t)a->max_tokens * half, 0.0f);
    float *sine = ops_floats(f, (uint64_t)a->max_tokens * half, 0.0f);
    for (uint32_t t = 0; t < a->max_tokens; t++)
        for (uint32_t i = 0; i < half; i++) {
            const double angle = t * pow(1e4, -2.0 * i / a->head_dim);
            cosine[t * half + i] = (float)cos(angle);
            sine[t * half + i] = (float)sin(angle);
        }
    a->cos = cosine;
    a->sin = sine;
    f->args = a;
    f->run = rope_run;
    f->bytes = (double)count * 8;
    ops_output(f, "x", a->x, count, VALUE_F32);
}

/* ---- linear: rows k n residual --------------------------------------------------------------- */

static status linear_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_linear_args a = *(kern_linear_args *)f->args;
    a.x += first * a.x_stride;
    a.out += first * a.out_stride;
    if (a.residual != NULL) a.residual += first * a.out_stride;
    a.rows = count;
    return kern_linear(f->stream, &a);
}

static void linear_build(op_fixture *f)
{
    ARGS(kern_linear_args);
    const uint32_t k = (uint32_t)f->param[1], n = (uint32_t)f->param[2];
    a->rows = f->rows = (uint32_t)f->param[0];
    a->x_stride = k + 3;
    a->out_stride = n + 5;
    a->scale = f->param[3] != 0 ? 0.25f : 1.0f;
    const uint32_t second = n > 40 ? n / 3 : 0; /* two parts, the second not at a panel's edge */
    const kern_matrix parts[2] = {{ops_bf16s(f, (uint64_t)(n - second) * k, 0.1f), n - second},
                                  {ops_bf16s(f, (uint64_t)second * k + 1, 0.1f), second}};
    CHECK(kern_weight_pack(f->backend, parts, second > 0 ? 2 : 1, k, &f->weight) == STATUS_OK);
    a->weight = f->weight;
    a->x = ops_floats(f, a->rows * a->x_stride, 1.0f);
    a->residual = f->param[3] != 0 ? ops_floats(f, a->rows * a->out_stride, 1.0f) : NULL;
    a->out = ops_floats(f, a->rows * a->out_stride, 0.0f);
    f->args = a;
    f->run = linear_run;
    f->flops = 2.0 * a->rows * k * n;
    f->bytes = (double)kern_weight_bytes(f->weight) + 4.0 * a->rows * (k + n);
    ops_output(f, "out", a->out, a->rows * a->out_stride, VALUE_F32);
}

/* ---- swiglu: rows ffn ------------------------------------------------------------------------ */

static status swiglu_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_swiglu_args a = *(kern_swiglu_args *)f->args;
    a.gate += first * a.in_stride;
    a.up += first * a.in_stride;
    a.out += (uint64_t)first * a.ffn;
    a.rows = count;
    return kern_swiglu(f->stream, &a);
}

static void swiglu_build(op_fixture *f)
{
    ARGS(kern_swiglu_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->ffn = (uint32_t)f->param[1];
    a->in_stride = 2 * a->ffn;
    float *both = ops_floats(f, a->rows * a->in_stride, 4.0f);
    both[0] = 200.0f;
    both[1] = -200.0f;
    a->gate = both;
    a->up = both + a->ffn;
    a->out = ops_floats(f, (uint64_t)a->rows * a->ffn, 0.0f);
    f->args = a;
    f->run = swiglu_run;
    f->bytes = (double)a->rows * a->ffn * 12;
    ops_output(f, "out", a->out, (uint64_t)a->rows * a->ffn, VALUE_F32);
}

/* ---- gate: rows heads dim added: in place, so each run starts from a copy --------------------
 */

static status gate_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_gate_args a = *(kern_gate_args *)f->args;
    const uint64_t width = (uint64_t)a.heads * a.head_dim;
    const float *source = f->context;
    memcpy(a.x + first * width, source + first * width, count * width * sizeof *source);
    a.x += first * width;
    a.gate += first * a.gate_stride;
    if (a.add != NULL) a.add += first * width;
    a.rows = count;
    return kern_gate(f->stream, &a);
}

static void gate_build(op_fixture *f)
{
    ARGS(kern_gate_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->heads = (uint32_t)f->param[1];
    a->head_dim = (uint32_t)f->param[2];
    a->gate_stride = a->heads + 3;
    float *gate = ops_floats(f, a->rows * a->gate_stride, 4.0f);
    gate[0] = 200.0f;
    gate[a->heads - 1] = -200.0f;
    const uint64_t values = (uint64_t)a->rows * a->heads * a->head_dim;
    a->gate = gate;
    f->context = ops_floats(f, values, 3.0f);
    a->x = ops_floats(f, values, 0.0f);
    if (f->param[3] != 0) a->add = ops_floats(f, values, 1.0f);
    f->args = a;
    f->run = gate_run;
    f->bytes = (double)values * (a->add == NULL ? 8 : 12);
    ops_output(f, "x", a->x, values, VALUE_F32);
}

/* ---- importance: rows kv_heads dim has-A ----------------------------------------------------- */

static status importance_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_importance_args a = *(kern_importance_args *)f->args;
    a.v += first * a.row_stride;
    a.out += (uint64_t)first * a.kv_heads;
    a.rows = count;
    return kern_importance(f->stream, &a);
}

static void importance_build(op_fixture *f)
{
    ARGS(kern_importance_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->kv_heads = (uint32_t)f->param[1];
    a->head_dim = (uint32_t)f->param[2];
    a->row_stride = (uint64_t)a->kv_heads * a->head_dim + 7;
    a->a = f->param[3] != 0 ? ops_bf16s(f, a->kv_heads, 1.0f) : NULL;
    a->delta = ops_bf16s(f, (uint64_t)a->kv_heads * a->kv_heads * a->head_dim, 1.0f);
    a->v = ops_floats(f, a->rows * a->row_stride, 1.0f);
    a->out = ops_bf16s(f, (uint64_t)a->rows * a->kv_heads, 0.0f);
    f->args = a;
    f->run = importance_run;
    f->flops = 2.0 * a->rows * a->kv_heads * a->kv_heads * a->head_dim;
    f->bytes = 4.0 * a->rows * a->kv_heads * a->head_dim;
    ops_output(f, "u", a->out, (uint64_t)a->rows * a->kv_heads, VALUE_BF16);
}

/* ---- compress: rows kv_heads dim window stride values; two sequences in turn ----------------- */

static status compress_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_compress_args a = *(kern_compress_args *)f->args;
    a.k += first * a.row_stride;
    if (a.v != NULL) a.v += first * a.row_stride;
    a.u += (uint64_t)first * a.summary.kv_heads;
    a.row_seq += first;
    a.row_pos += first;
    a.rows = count;
    return kern_compress(f->stream, &a);
}

static void compress_build(op_fixture *f)
{
    ARGS(kern_compress_args);
    kern_summary *s = &a->summary;
    a->rows = f->rows = (uint32_t)f->param[0];
    s->seqs = 2;
    s->kv_heads = (uint32_t)f->param[1];
    s->head_dim = (uint32_t)f->param[2];
    s->window = (uint32_t)f->param[3];
    s->stride = (uint32_t)f->param[4];
    s->max_tokens = a->rows / 2 + 1;
    s->max_windows = s->max_tokens / s->stride + 1;
    const uint64_t heads = (uint64_t)s->seqs * s->kv_heads;
    s->kc = ops_bf16s(f, heads * s->max_windows * s->head_dim, 0.0f);
    s->uc = ops_bf16s(f, heads * s->max_windows, 0.0f);
    s->u = ops_bf16s(f, heads * s->max_tokens, 0.0f);
    s->key_ring = ops_bf16s(f, heads * KERN_KEY_RING * s->head_dim, 0.0f);
    a->row_stride = (uint64_t)s->kv_heads * s->head_dim;
    a->k = ops_floats(f, a->rows * a->row_stride, 1.0f);
    a->u = ops_bf16s(f, (uint64_t)a->rows * s->kv_heads, 1.0f);
    if (f->param[5] != 0) {
        a->v = ops_floats(f, a->rows * a->row_stride, 1.0f);
        s->vc = ops_bf16s(f, heads * s->max_windows * s->head_dim, 0.0f);
        s->value_ring = ops_bf16s(f, heads * KERN_KEY_RING * s->head_dim, 0.0f);
        ops_output(f, "vc", s->vc, heads * s->max_windows * s->head_dim, VALUE_BF16);
    }
    int32_t *seq = ARENA_NEW(f->memory, int32_t, a->rows),
            *pos = ARENA_NEW(f->memory, int32_t, a->rows);
    for (uint32_t r = 0; r < a->rows; r++) {
        seq[r] = (int32_t)(r % 2);
        pos[r] = (int32_t)(r / 2);
    }
    a->row_seq = seq;
    a->row_pos = pos;
    f->args = a;
    f->run = compress_run;
    f->bytes =
        4.0 * (double)a->rows * (double)a->row_stride * (1.0 + (double)s->window / s->stride);
    ops_output(f, "kc", s->kc, heads * s->max_windows * s->head_dim, VALUE_BF16);
    ops_output(f, "uc", s->uc, heads * s->max_windows, VALUE_BF16);
    ops_output(f, "ring", s->key_ring, heads * KERN_KEY_RING * s->head_dim, VALUE_BF16);
    ops_output(f, "u", s->u, heads * s->max_tokens, VALUE_BF16);
}

/* ---- append: rows kv_heads dim --------------------------------------------------------------- */

static status append_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_append_args a = *(kern_append_args *)f->args;
    a.k += first * a.row_stride;
    a.v += first * a.row_stride;
    a.slot += (uint64_t)first * a.kv_heads;
    a.row_pos += first;
    a.rows = count;
    return kern_append(f->stream, &a);
}

static void append_build(op_fixture *f)
{
    ARGS(kern_append_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->kv_heads = (uint32_t)f->param[1];
    a->head_dim = (uint32_t)f->param[2];
    a->row_stride = (uint64_t)a->kv_heads * a->head_dim + 1;
    a->k = ops_floats(f, a->rows * a->row_stride, 1.0f);
    a->v = ops_floats(f, a->rows * a->row_stride, 1.0f);
    const uint32_t lists = a->rows * a->kv_heads;
    const uint64_t bytes =
        (uint64_t)(lists / KERN_BLOCK + 1) * a->kv_heads * 4 * KERN_BLOCK * a->head_dim;
    int32_t *slot = ARENA_NEW(f->memory, int32_t, lists),
            *pos = ARENA_NEW(f->memory, int32_t, a->rows);
    for (uint32_t r = 0; r < a->rows; r++) {
        pos[r] = (int32_t)(r + 1000);
        for (uint32_t h = 0; h < a->kv_heads; h++)
            slot[r * a->kv_heads + h] =
                r % 7 == 3 ? -1 : (int32_t)(r / KERN_BLOCK * a->kv_heads + h);
    }
    a->slot = slot;
    a->row_pos = pos;
    a->pool = (uint8_t *)arena_alloc(f->memory, bytes, 64);
    f->args = a;
    f->run = append_run;
    f->bytes = (double)lists * a->head_dim * 12;
    ops_output(f, "pool", a->pool, bytes / 2, VALUE_BF16);
}

/* ---- sample: rows vocab kind: 0 greedy, 1 temperature, 2 top-k, 3 top-p, 4 both -------------- */

static status sample_run(op_fixture *f, uint32_t first, uint32_t count)
{
    kern_sample_args a = *(kern_sample_args *)f->args;
    int32_t *token = (int32_t *)f->context + first;
    float *logprob = (float *)f->context + f->rows + first;
    a.logits += (uint64_t)first * a.vocab;
    a.sampling += first;
    a.row_pos += first;
    a.out += first;
    a.rows = count;
    TRY(kern_sample(f->stream, &a));
    for (uint32_t i = 0; i < count; i++) {
        token[i] = a.out[i].token;
        logprob[i] = a.out[i].logprob;
    }
    return STATUS_OK;
}

static void sample_build(op_fixture *f)
{
    ARGS(kern_sample_args);
    a->rows = f->rows = (uint32_t)f->param[0];
    a->vocab = (uint32_t)f->param[1];
    const int kind = f->param[2];
    a->logits = ops_floats(f, (uint64_t)a->rows * a->vocab, 2.0f);
    kern_sampling *how = ARENA_NEW(f->memory, kern_sampling, a->rows);
    int32_t *pos = ARENA_NEW(f->memory, int32_t, a->rows);
    for (uint32_t r = 0; r < a->rows; r++) {
        how[r] = (kern_sampling){.temperature = kind == 0 ? 0.0f : 0.8f,
                                 .top_p = kind >= 3 ? 0.9f : 1.0f,
                                 .top_k = kind == 2 || kind == 4 ? 40 : 0,
                                 .top_logprobs = r % 21,
                                 .seed = r};
        pos[r] = (int32_t)(r * 3);
    }
    a->sampling = how;
    a->row_pos = pos;
    a->out = ARENA_NEW(f->memory, kern_sampled, a->rows);
    f->context = ARENA_NEW(f->memory, float, 2 * (uint64_t)a->rows);
    f->args = a;
    f->run = sample_run;
    f->bytes = 4.0 * a->rows * a->vocab;
    ops_output(f, "token", f->context, 4 * (uint64_t)a->rows, VALUE_BYTES);
    ops_output(f, "logprob", (float *)f->context + a->rows, a->rows, VALUE_F32);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* clang-format off */
const op_case ops_model_cases[] = {
    {"embed", "rows=9 hidden=256 vocab=4096", {9, 256, 4096}, 0, false, embed_build},
    {"rmsnorm", "rows=128 hidden=256", {128, 256}, 3e-7f, false, rmsnorm_build},
    {"rmsnorm", "rows=5 hidden=250", {5, 250}, 3e-7f, false, rmsnorm_build},
    {"rmsnorm", "rows=3 hidden=4096", {3, 4096}, 3e-7f, false, rmsnorm_build},
    {"rope", "rows=128 heads=8 dim=64", {128, 8, 64, 0}, 3e-7f, false, rope_build},
    {"rope", "rows=7 heads=3 dim=128 stride+=5", {7, 3, 128, 5}, 3e-7f, false, rope_build},
    {"linear", "rows=1 k=256 n=704", {1, 256, 704, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=4 k=256 n=704", {4, 256, 704, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=16 k=256 n=704", {16, 256, 704, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=128 k=256 n=704", {128, 256, 704, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=1 k=704 n=256", {1, 704, 256, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=4 k=704 n=256", {4, 704, 256, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=8 k=704 n=256", {8, 704, 256, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=16 k=704 n=256", {16, 704, 256, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=128 k=704 n=256", {128, 704, 256, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=23 k=37 n=45", {23, 37, 45, 1}, 2e-6f, false, linear_build},
    {"linear", "rows=11 k=64 n=1", {11, 64, 1, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=1 k=1024 n=1024", {1, 1024, 1024, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=16 k=1024 n=1024", {16, 1024, 1024, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=1 k=256 n=4096", {1, 256, 4096, 0}, 2e-6f, false, linear_build},
    {"linear", "rows=8 k=256 n=4096", {8, 256, 4096, 0}, 2e-6f, false, linear_build},
    {"swiglu", "rows=128 ffn=704", {128, 704}, 4e-7f, false, swiglu_build},
    {"swiglu", "rows=3 ffn=45", {3, 45}, 4e-7f, false, swiglu_build},
    {"gate", "rows=65 heads=6 dim=64", {65, 6, 64}, 4e-7f, false, gate_build},
    {"gate", "rows=3 heads=1 dim=32", {3, 1, 32}, 4e-7f, false, gate_build},
    {"gate", "rows=65 heads=6 dim=64 added", {65, 6, 64, 1}, 4e-7f, false, gate_build},
    {"importance", "rows=128 kv=2 dim=64", {128, 2, 64, 1}, 8e-3f, false, importance_build},
    {"importance", "rows=5 kv=3 dim=128", {5, 3, 128, 1}, 8e-3f, false, importance_build},
    {"importance", "rows=5 kv=2 dim=64 without A", {5, 2, 64, 0}, 0, false, importance_build},
    {"compress", "rows=600 kv=2 dim=64 window=32 stride=16", {600, 2, 64, 32, 16}, 8e-3f, false, compress_build},
    {"compress", "rows=700 kv=1 dim=128 window=16 stride=16", {700, 1, 128, 16, 16}, 8e-3f, false, compress_build},
    {"compress", "rows=700 kv=2 dim=64 window=128 stride=64", {700, 2, 64, 128, 64}, 8e-3f, false, compress_build},
    {"compress", "rows=700 kv=2 dim=64 window=16 stride=16 values", {700, 2, 64, 16, 16, 1}, 8e-3f, false, compress_build},
    {"append", "rows=200 kv=2 dim=64", {200, 2, 64}, 0, false, append_build},
    {"append", "rows=70 kv=1 dim=128", {70, 1, 128}, 0, false, append_build},
    {"sample", "rows=40 vocab=4096 greedy", {40, 4096, 0}, 1e-6f, false, sample_build},
    {"sample", "rows=40 vocab=4096 temperature", {40, 4096, 1}, 1e-6f, false, sample_build},
    {"sample", "rows=9 vocab=73448 top_k", {9, 73448, 2}, 1e-6f, false, sample_build},
    {"sample", "rows=40 vocab=999 top_p", {40, 999, 3}, 1e-6f, false, sample_build},
    {"sample", "rows=40 vocab=30 top_k top_p", {40, 30, 4}, 1e-6f, false, sample_build},
};
/* clang-format on */
const uint32_t ops_model_case_count = COUNT_OF(ops_model_cases);
