/* kernels/sample.c - the next token of each row: greedy, or drawn at a temperature after top-k and
 * top-p.
 *
 * All randomness is one number in [0, 1) that splitmix64 (Steele, Lea, Flood 2014) makes of (seed,
 * position), so a token depends on its row and nothing else. Candidates are ordered by logit,
 * largest first, equal ones by smaller id; probabilities are added in that order in double, with
 * exp of scalar.h. NaN counts as -inf. */
#include "kernels/backend.h"
#include "kernels/scalar.h"

typedef struct sample_job {
    const kern_sample_args *a;
    const kern_sample_math *math;
} sample_job;

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ULL;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
    return x ^ (x >> 31);
}

static double draw_unit(uint64_t seed, int32_t pos)
{
    return (double)(mix(mix(seed) ^ mix((uint64_t)pos + 1)) >> 11) * 0x1p-53;
}

/* Larger key = earlier candidate. */
static uint64_t logit_key(float logit, uint32_t id)
{
    uint32_t bits;
    if (!(logit == logit)) logit = -INFINITY;
    if (logit == 0.0f) logit = 0.0f;
    memcpy(&bits, &logit, sizeof bits);
    bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (UINT32_MAX - id);
}

static uint32_t key_id(uint64_t key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* ---- heaps of keys --------------------------------------------------------------------------- */

/* sign 0: largest on top, ~0: smallest on top (keys are compared after the exclusive or). */
static void sink(uint64_t *heap, uint32_t count, uint32_t i, uint64_t sign)
{
    const uint64_t key = heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && (heap[child + 1] ^ sign) > (heap[child] ^ sign)) child++;
        if ((heap[child] ^ sign) <= (key ^ sign)) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static void make_heap(uint64_t *heap, uint32_t count, uint64_t sign)
{
    for (uint32_t i = count / 2; i-- > 0;)
        sink(heap, count, i, sign);
}

/* Swap the top to heap[count - 1] and mend the rest. */
static uint64_t take_top(uint64_t *heap, uint32_t count, uint64_t sign)
{
    const uint64_t top = heap[0];
    heap[0] = heap[count - 1];
    heap[count - 1] = top;
    sink(heap, count - 1, 0, sign);
    return top;
}

/* ---- draws ----------------------------------------------------------------------------------- */

/* A row's candidates and their weights e^((logit - largest) / temperature), by id. */
typedef struct draw {
    const float *logits;
    const kern_sampling *how;
    float *weight;
    uint64_t *key; /* [vocab] scratch; after a cut, candidates best first */
    uint32_t vocab;
    double unit;
} draw;

/* The first id whose weights up to it exceed the draw. */
static uint32_t draw_from_all(const draw *d)
{
    double sum = 0.0, reached = 0.0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < d->vocab; i++)
        sum += (double)d->weight[i];
    for (uint32_t i = 0; i < d->vocab; i++) {
        if (d->weight[i] > 0.0f) last = i;
        reached += (double)d->weight[i];
        if (reached > d->unit * sum) return i;
    }
    return last;
}

/* The `most` best, best first, by a heap whose smallest is on top. */
static uint32_t cut_top_k(const draw *d, uint32_t most)
{
    for (uint32_t i = 0; i < most; i++)
        d->key[i] = logit_key(d->logits[i], i);
    make_heap(d->key, most, UINT64_MAX);
    for (uint32_t i = most; i < d->vocab; i++) {
        if (d->logits[i] <= d->logits[key_id(d->key[0])])
            continue; /* equal: the smaller id stays */
        const uint64_t key = logit_key(d->logits[i], i);
        if (key <= d->key[0]) continue;
        d->key[0] = key;
        sink(d->key, most, 0, UINT64_MAX);
    }
    for (uint32_t left = most; left > 1; left--)
        (void)take_top(d->key, left, UINT64_MAX);
    return most;
}

/* The best whose weights reach top_p of all, the one that crosses it included; best first. What
 * weighs less than (1 - top_p) / vocab of all cannot be needed: all such together leave more than
 * top_p. */
static uint32_t cut_top_p(const draw *d)
{
    double all = 0.0, sum = 0.0;
    for (uint32_t i = 0; i < d->vocab; i++)
        all += (double)d->weight[i];
    const double least = (1.0 - (double)d->how->top_p) * all / d->vocab * 0.5;
    uint32_t held = 0, count = 0;
    for (uint32_t i = 0; i < d->vocab; i++)
        if ((double)d->weight[i] >= least) d->key[held++] = logit_key(d->logits[i], i);
    make_heap(d->key, held, 0);
    while (count < held) {
        const uint64_t key = take_top(d->key, held - count, 0);
        sum += (double)d->weight[key_id(key)];
        count++;
        if (sum >= (double)d->how->top_p * all) break;
    }
    for (uint32_t i = 0; i < held / 2; i++) { /* taken from the back: turn round */
        const uint64_t key = d->key[i];
        d->key[i] = d->key[held - 1 - i];
        d->key[held - 1 - i] = key;
    }
    return count;
}

/* How many of the first `count` candidates reach top_p of their sum. */
static uint32_t shorten(const draw *d, uint32_t count)
{
    double all = 0.0, sum = 0.0;
    for (uint32_t i = 0; i < count; i++)
        all += (double)d->weight[key_id(d->key[i])];
    for (uint32_t i = 0; i < count; i++) {
        sum += (double)d->weight[key_id(d->key[i])];
        if (sum >= (double)d->how->top_p * all) return i + 1;
    }
    return count;
}

static uint32_t draw_from_cut(const draw *d)
{
    const uint32_t k = d->how->top_k;
    uint32_t count = k == 0 || k >= d->vocab ? cut_top_p(d) : cut_top_k(d, k);
    if (k != 0 && k < d->vocab && d->how->top_p < 1.0f) count = shorten(d, count);
    double sum = 0.0, reached = 0.0;
    for (uint32_t i = 0; i < count; i++)
        sum += (double)d->weight[key_id(d->key[i])];
    for (uint32_t i = 0; i < count; i++) {
        reached += (double)d->weight[key_id(d->key[i])];
        if (reached > d->unit * sum) return key_id(d->key[i]);
    }
    return key_id(d->key[count > 0 ? count - 1 : 0]);
}

static uint32_t first_equal(const float *logits, uint32_t vocab, float value)
{
    for (uint32_t i = 0; i < vocab; i++)
        if (logits[i] == value) return i;
    return 0;
}

/* The best n by repeated insertion: n is at most 20. */
static void top_logprobs(const float *logits, uint32_t vocab, uint32_t n, float lse,
                         kern_sampled *out)
{
    uint64_t best[KERN_TOP_LOGPROBS_MAX];
    uint32_t held = 0;
    for (uint32_t i = 0; i < vocab && n > 0; i++) {
        if (held == n && logits[i] <= logits[key_id(best[n - 1])]) continue;
        const uint64_t key = logit_key(logits[i], i);
        if (held == n && key <= best[n - 1]) continue;
        uint32_t at = held < n ? held++ : n - 1;
        for (; at > 0 && best[at - 1] < key; at--)
            best[at] = best[at - 1];
        best[at] = key;
    }
    for (uint32_t i = 0; i < held; i++) {
        out->top_token[i] = (int32_t)key_id(best[i]);
        out->top_logprob[i] = logits[key_id(best[i])] - lse;
    }
}

static void sample_task(const void *context, uint32_t row, void *scratch)
{
    const sample_job *job = context;
    const kern_sample_args *a = job->a;
    const kern_sampling *how = &a->sampling[row];
    const float *logits = a->logits + (uint64_t)row * a->vocab;
    const float top = job->math->largest(logits, a->vocab);
    const float lse = job->math->log_sum_exp(logits, a->vocab, top);
    kern_sampled *out = &a->out[row];
    memset(out, 0, sizeof *out);
    uint32_t token;
    if (how->temperature <= 0.0f) {
        token = first_equal(logits, a->vocab, top);
    } else {
        uint64_t *key = scratch;
        const draw d = {.logits = logits,
                        .how = how,
                        .weight = (float *)(void *)(key + KERN_VOCAB_MAX),
                        .key = key,
                        .vocab = a->vocab,
                        .unit = draw_unit(how->seed, a->row_pos[row])};
        job->math->weights(logits, a->vocab, top, fminf(1.0f / how->temperature, 1e30f), d.weight);
        token = how->top_k == 0 && how->top_p >= 1.0f ? draw_from_all(&d) : draw_from_cut(&d);
    }
    out->token = (int32_t)token;
    out->logprob = logits[token] - lse;
    top_logprobs(logits, a->vocab, how->top_logprobs, lse, out);
}

status kern_sample_rows(kern_stream *stream, const kern_sample_args *args,
                        const kern_sample_math *math)
{
    _Static_assert(KERN_VOCAB_MAX * (sizeof(uint64_t) + sizeof(float)) <= KERN_SCRATCH_BYTES,
                   "keys and weights");
    const sample_job job = {args, math};
    kern_team_run(stream->backend->team, args->rows, (uint64_t)args->rows * args->vocab >= 8192,
                  sample_task, &job);
    return STATUS_OK;
}
