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
    kern_log_sum_exp lse;
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

/* Largest key on top. */
static void sink(uint64_t *heap, uint32_t count, uint32_t i)
{
    const uint64_t key = heap[i];
    for (;;) {
        uint32_t child = 2 * i + 1;
        if (child >= count) break;
        if (child + 1 < count && heap[child + 1] > heap[child]) child++;
        if (heap[child] <= key) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static uint64_t take_best(uint64_t *heap, uint32_t *count)
{
    const uint64_t best = heap[0];
    heap[0] = heap[--*count];
    sink(heap, *count, 0);
    return best;
}

static uint32_t greedy(const float *logits, uint32_t vocab)
{
    uint64_t best = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        const uint64_t key = logit_key(logits[i], i);
        if (key > best) best = key;
    }
    return key_id(best);
}

/* No cut: candidates in order of id, one pass for the sum and one to find the draw. */
static uint32_t draw_from_all(const float *logits, uint32_t vocab, const kern_sampling *how,
                              double unit)
{
    const double top = (double)logits[greedy(logits, vocab)],
                 inverse = 1.0 / (double)how->temperature;
    double sum = 0.0;
    for (uint32_t i = 0; i < vocab; i++)
        sum += kern_exp(((double)logits[i] - top) * inverse);
    const double target = unit * sum;
    double reached = 0.0;
    uint32_t last = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        const double p = kern_exp(((double)logits[i] - top) * inverse);
        if (p > 0.0) last = i;
        reached += p;
        if (reached > target) return i;
    }
    return last;
}

/* Candidates best first into `order`, as many as top-k and top-p leave; their weights' sum. */
static uint32_t cut(const float *logits, uint32_t vocab, const kern_sampling *how, uint64_t *heap,
                    uint64_t *order, double *out_sum)
{
    uint32_t held = vocab;
    for (uint32_t i = 0; i < vocab; i++)
        heap[i] = logit_key(logits[i], i);
    for (uint32_t i = vocab / 2; i-- > 0;)
        sink(heap, vocab, i);
    const uint32_t most = how->top_k == 0 || how->top_k > vocab ? vocab : how->top_k;
    const double top = (double)logits[key_id(heap[0])], inverse = 1.0 / (double)how->temperature;
    double all = INFINITY; /* of the candidates that top-k leaves, only if top-p asks for it */
    if (how->top_p < 1.0f && most == vocab) {
        all = 0.0;
        for (uint32_t i = 0; i < vocab; i++)
            all += kern_exp(((double)logits[i] - top) * inverse);
    } else if (how->top_p < 1.0f) {
        all = 0.0;
        uint32_t left = vocab;
        for (uint32_t i = 0; i < most; i++) {
            order[i] = take_best(heap, &left);
            all += kern_exp(((double)logits[key_id(order[i])] - top) * inverse);
        }
    }
    double sum = 0.0;
    uint32_t count = 0;
    while (count < most) {
        if (!(how->top_p < 1.0f && most < vocab)) order[count] = take_best(heap, &held);
        sum += kern_exp(((double)logits[key_id(order[count])] - top) * inverse);
        count++;
        if (sum >= (double)how->top_p * all) break; /* the candidate that crosses top-p stays */
    }
    *out_sum = sum;
    return count;
}

static uint32_t draw_from_cut(const float *logits, uint32_t vocab, const kern_sampling *how,
                              double unit, void *scratch)
{
    uint64_t *heap = scratch, *order = heap + KERN_VOCAB_MAX;
    double sum;
    const uint32_t count = cut(logits, vocab, how, heap, order, &sum);
    const double top = (double)logits[key_id(order[0])], inverse = 1.0 / (double)how->temperature;
    double reached = 0.0;
    for (uint32_t i = 0; i < count; i++) {
        reached += kern_exp(((double)logits[key_id(order[i])] - top) * inverse);
        if (reached > unit * sum) return key_id(order[i]);
    }
    return key_id(order[count - 1]);
}

/* The best n by repeated insertion: n is at most 20. */
static void top_logprobs(const float *logits, uint32_t vocab, uint32_t n, float lse,
                         kern_sampled *out)
{
    uint64_t best[KERN_TOP_LOGPROBS_MAX];
    uint32_t held = 0;
    for (uint32_t i = 0; i < vocab && n > 0; i++) {
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
    const float lse = job->lse(logits, a->vocab);
    kern_sampled *out = &a->out[row];
    memset(out, 0, sizeof *out);
    uint32_t token;
    if (how->temperature <= 0.0f) {
        token = greedy(logits, a->vocab);
    } else {
        const double unit = draw_unit(how->seed, a->row_pos[row]);
        token = how->top_k == 0 && how->top_p >= 1.0f
                    ? draw_from_all(logits, a->vocab, how, unit)
                    : draw_from_cut(logits, a->vocab, how, unit, scratch);
    }
    out->token = (int32_t)token;
    out->logprob = logits[token] - lse;
    top_logprobs(logits, a->vocab, how->top_logprobs, lse, out);
}

status kern_sample_rows(kern_stream *stream, const kern_sample_args *args, kern_log_sum_exp lse)
{
    _Static_assert(2 * KERN_VOCAB_MAX * sizeof(uint64_t) <= KERN_SCRATCH_BYTES, "heap and order");
    const sample_job job = {args, lse};
    kern_team_run(stream->backend->team, args->rows, args->rows * args->vocab >= 8192, sample_task,
                  &job);
    return STATUS_OK;
}
