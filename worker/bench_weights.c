/* A model made from a seed.
 *
 * Weights are random with the spread that keeps every state near unit size, packed one matrix at a
 * time. What is not plain noise:
 *
 *   embedding   row i is step i of a random walk (bench_walk.c), unit size in every coordinate
 *   lm_head     row i + 1 is the embedding of i, so that greedy decoding answers i with i + 1 and
 *               the states of a sequence walk on, through the whole model, without any hook
 *   q_proj      all heads of a KV group have the same rows, so that the group's sum of softmaxes
 *               ranks blocks as each of them does
 *   o, down     small: a layer adds little to the state, and its query follows the embedding
 *   k_proj      small: keys of new tokens win nothing against the contexts' (bench_fill.c)
 *
 * Costs, bytes and shapes are the real model's; what it says is of no interest. */
#include "worker/bench.h"

#include <math.h>
#include <string.h>

enum { COLUMNS = 64, QUANTILES = 4096, SMALL = 1 << 20 };

/* Slower than this many radians a token: a pick that lives for tens of steps does not notice. */
static const double SLOW = 0.002;

void bench_weights_start(bench_weights *w, const model_config *config, uint64_t seed,
                         uint32_t threads)
{
    w->config = *config;
    w->config.tied = false;
    w->seed = seed;
    w->threads = threads;
    rng r;
    rng_seed(&r, seed);
    double sum = 0;
    for (uint32_t i = 0; i < QUANTILES; i++) {
        double u = 1.0 - rng_unit(&r), v = rng_unit(&r);
        w->normal[i] = (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v));
        sum += w->normal[i];
    }
    for (uint32_t i = 0; i < QUANTILES; i++)
        w->normal[i] -= (float)(sum / QUANTILES);
    double frequency[CONFIG_ROPE_PAIRS_MAX];
    config_rope_frequencies(config, config->positions_max, frequency);
    uint32_t pairs = config->head_dim / 2;
    w->slow_count = 0;
    for (uint32_t i = 0; i < pairs; i++) {
        if (frequency[i] < SLOW || i + 8 >= pairs) w->slow_pairs[w->slow_count++] = i;
    }
}

int32_t bench_weights_next(const bench_weights *w, int32_t token)
{
    return (int32_t)(((uint32_t)token + 1) % w->config.vocab);
}

/* ---- plain noise ----------------------------------------------------------------------------- */

typedef struct noise_job {
    const bench_weights *w;
    uint16_t *to;
    uint16_t quantile[QUANTILES]; /* bf16, spread included */
    uint64_t seed;
    uint32_t rows, columns;
    uint32_t repeat; /* rows of q_proj: D rows of each of G heads are the first's; 0: none */
} noise_job;

static void noise_row(const noise_job *job, uint32_t row, uint16_t *to)
{
    rng r;
    rng_seed(&r, job->seed + row);
    for (uint32_t i = 0; i < job->columns; i += 5) {
        uint64_t bits = rng_next(&r);
        for (uint32_t k = 0; k < 5 && i + k < job->columns; k++, bits >>= 12)
            to[i + k] = job->quantile[bits % QUANTILES];
    }
}

static void noise_task(void *context, uint32_t task)
{
    const noise_job *job = context;
    const model_config *c = &job->w->config;
    uint32_t last = (task + 1) * COLUMNS < job->rows ? (task + 1) * COLUMNS : job->rows;
    for (uint32_t row = task * COLUMNS; row < last; row++) {
        uint32_t from = row;
        if (job->repeat > 0) {
            uint32_t head = row / c->head_dim;
            from = head / job->repeat * job->repeat * c->head_dim + row % c->head_dim;
        }
        noise_row(job, from, job->to + (size_t)row * job->columns);
    }
}

static void make_noise(const bench_weights *w, noise_job *job, double spread)
{
    for (uint32_t i = 0; i < QUANTILES; i++)
        job->quantile[i] = kern_f32_to_bf16((float)spread * w->normal[i]);
    bench_parallel(w->threads, (job->rows + COLUMNS - 1) / COLUMNS, noise_task, job);
}

/* ---- the walk of embeddings ------------------------------------------------------------------ */

typedef struct walk_job {
    const bench_weights *w;
    uint16_t *to;
    uint32_t shift; /* row i goes to row (i + shift) % vocab */
} walk_job;

static void walk_task(void *context, uint32_t task)
{
    const walk_job *job = context;
    const bench_weights *w = job->w;
    uint32_t hidden = w->config.hidden, vocab = w->config.vocab, first = task * COLUMNS;
    uint32_t n = first + COLUMNS < hidden ? COLUMNS : hidden - first;
    float keep = (float)w->walk.keep, renew = (float)sqrt(1 - w->walk.keep * w->walk.keep);
    float jitter = (float)w->walk.jitter;
    float rest = (float)sqrt(1 - w->walk.jitter * w->walk.jitter), slow[COLUMNS];
    rng r;
    rng_seed(&r, w->seed * 31 + task);
    for (uint32_t i = 0; i < n; i++)
        slow[i] = w->normal[rng_next(&r) % QUANTILES];
    for (uint32_t row = 0; row < vocab; row++) {
        uint16_t *to = job->to + (size_t)((row + job->shift) % vocab) * hidden + first;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t bits = rng_next(&r);
            slow[i] = keep * slow[i] + renew * w->normal[bits % QUANTILES];
            to[i] =
                kern_f32_to_bf16(rest * slow[i] + jitter * w->normal[bits / QUANTILES % QUANTILES]);
        }
    }
}

/* All rows equally long: then no row's product with another exceeds that with itself. */
static void length_task(void *context, uint32_t task)
{
    const walk_job *job = context;
    uint32_t hidden = job->w->config.hidden, vocab = job->w->config.vocab;
    uint32_t last = (task + 1) * COLUMNS < vocab ? (task + 1) * COLUMNS : vocab;
    for (uint32_t row = task * COLUMNS; row < last; row++) {
        uint16_t *to = job->to + (size_t)row * hidden;
        float sum = 0;
        for (uint32_t i = 0; i < hidden; i++)
            sum += kern_bf16_to_f32(to[i]) * kern_bf16_to_f32(to[i]);
        float scale = sqrtf((float)hidden / sum);
        for (uint32_t i = 0; i < hidden; i++)
            to[i] = kern_f32_to_bf16(scale * kern_bf16_to_f32(to[i]));
    }
}

/* ---- tensors by name ------------------------------------------------------------------------- */

static bool ends_in(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

/* Standard deviation of a matrix's elements. */
static double spread_of(const bench_weights *w, const char *name)
{
    const model_config *c = &w->config;
    double unit = 1.0 / sqrt(c->hidden);
    double added = 0.3 / sqrt(2.0 * c->layers) * c->embed_scale / c->residual_scale;
    if (ends_in(name, "q_proj.weight")) return unit;
    if (ends_in(name, "k_proj.weight")) return 0.3 * unit;
    if (ends_in(name, "v_proj.weight")) return 0.1 * unit;
    if (ends_in(name, "o_proj.weight")) return added / (0.05 * sqrt(c->heads * c->head_dim));
    if (ends_in(name, "down_proj.weight")) return added / (0.6 * sqrt(c->ffn));
    if (ends_in(name, "delta.weight")) return 10.0 / sqrt(c->kv_heads * c->head_dim);
    return unit; /* gate, up */
}

uint64_t bench_weights_room(const bench_weights *w)
{
    const model_config *c = &w->config;
    uint64_t q = (uint64_t)c->heads * c->head_dim;
    return BENCH_ROOMS * sizeof(uint16_t) * c->hidden * (q > c->ffn ? q : c->ffn);
}

/* Memory that was touched before: to clear fresh pages takes longer than to make what goes there.
 * Small ones may be copied after this returns, and stand alone. */
static uint16_t *place_for(bench_weights *w, size_t count, arena *a)
{
    if (w->room == NULL || count < SMALL || count > w->room_items)
        return ARENA_NEW(a, uint16_t, count);
    return w->room + w->turn++ % BENCH_ROOMS * w->room_items;
}

static status read_made(void *self, const char *name, uint32_t rows, uint32_t columns, arena *a,
                        const uint16_t **out_data)
{
    bench_weights *w = self;
    size_t count = (size_t)rows * (columns > 0 ? columns : 1);
    uint16_t *to = place_for(w, count, a);
    *out_data = to;
    if (columns == 0) { /* norms and A */
        uint16_t value = kern_f32_to_bf16(ends_in(name, "self_attn.A") ? 0.5f : 1.0f);
        for (size_t i = 0; i < count; i++)
            to[i] = value;
        return STATUS_OK;
    }
    bool head = strcmp(name, "lm_head.weight") == 0;
    if (head || ends_in(name, "embed_tokens.weight")) {
        walk_job job = {.w = w, .to = to, .shift = head ? 1 : 0};
        bench_parallel(w->threads, (w->config.hidden + COLUMNS - 1) / COLUMNS, walk_task, &job);
        bench_parallel(w->threads, (w->config.vocab + COLUMNS - 1) / COLUMNS, length_task, &job);
        return STATUS_OK;
    }
    noise_job *job = ARENA_NEW(a, noise_job, 1);
    job->w = w;
    job->to = to;
    job->rows = rows;
    job->columns = columns;
    job->seed = bytes_digest(name, strlen(name), w->seed);
    job->repeat = ends_in(name, "q_proj.weight") ? w->config.heads / w->config.kv_heads : 0;
    make_noise(w, job, spread_of(w, name));
    return STATUS_OK;
}

model_source bench_weights_source(bench_weights *w)
{
    uint64_t of[2] = {w->seed, w->config.digest};
    return (model_source){read_made, w, bytes_digest(of, sizeof of, 0)};
}
