/* kernels/sample.cu - the next token of each row: greedy, or drawn at a temperature after top-k and
 * top-p. One CTA a row.
 *
 * Bound: latency; the logits of a row stay in L2. Greedy and the top log-probabilities are searches
 * for the largest key below the last one found. A draw over everything sums weights by chunk of
 * ids, in order; a draw after a cut takes candidates best first, one search each, until top-k or
 * top-p stops it: a flat distribution under top-p alone makes that long, and it is not made faster
 * here.
 *
 * The draw's number is the CPU's (splitmix64 of seed and position; Steele, Lea, Flood 2014) and the
 * weights are in double, so the token is the CPU's but where the draw falls within 1e-12 of a
 * border. */
#include "kernels/cuda.cuh"

namespace
{

constexpr uint32_t THREADS = 512, WARPS = THREADS / 32;

struct sample_shared {
    unsigned long long best[WARPS];
    float part[WARPS];
    double chunk[THREADS];
    double sum;
    int32_t token;
};

__device__ __forceinline__ unsigned long long logit_key(float logit, uint32_t id)
{
    if (!(logit == logit)) logit = -INFINITY;
    if (logit == 0.0f) logit = 0.0f;
    uint32_t bits = __float_as_uint(logit);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)bits << 32 | (UINT32_MAX - id);
}

__device__ __forceinline__ uint32_t key_id(unsigned long long key)
{
    return UINT32_MAX - (uint32_t)key;
}

/* The largest key below `below`, known to all. 0: none. */
__device__ unsigned long long best_below(sample_shared &s, const float *logits, uint32_t vocab,
                                         unsigned long long below)
{
    unsigned long long best = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
        const unsigned long long key = logit_key(logits[i], i);
        if (key < below && key > best) best = key;
    }
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) {
        const unsigned long long other = __shfl_xor_sync(~0u, best, i);
        best = other > best ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t w = 0; w < WARPS; w++)
        best = s.best[w] > best ? s.best[w] : best;
    return best;
}

__device__ float log_sum_exp(sample_shared &s, const float *logits, uint32_t vocab, float top)
{
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < vocab; i += THREADS)
        sum += fast_exp2((logits[i] - top) * CUDA_LOG2E);
    sum = warp_sum(sum);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
    for (uint32_t w = 0; w < WARPS; w++)
        sum += s.part[w];
    return top + (float)log((double)sum);
}

__device__ unsigned long long mix(unsigned long long x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__device__ __forceinline__ double weight(float logit, float top, double inverse)
{
    return exp(((double)logit - (double)top) * inverse);
}

/* Weights of contiguous chunks of ids; returns their sum, chunks left in shared memory. */
__device__ double chunk_sums(sample_shared &s, const float *logits, uint32_t vocab, float top,
                             double inverse)
{
    const uint32_t each = (vocab + THREADS - 1) / THREADS;
    double sum = 0.0;
    for (uint32_t i = threadIdx.x * each; i < (threadIdx.x + 1) * each && i < vocab; i++)
        sum += weight(logits[i], top, inverse);
    __syncthreads();
    s.chunk[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double all = 0.0;
        for (uint32_t t = 0; t < THREADS; t++)
            all += s.chunk[t];
        s.sum = all;
    }
    __syncthreads();
    return s.sum;
}

__device__ int32_t draw_from_all(sample_shared &s, const float *logits, uint32_t vocab, float top,
                                 double inverse, double unit)
{
    const double target = unit * chunk_sums(s, logits, vocab, top, inverse);
    if (threadIdx.x == 0) {
        const uint32_t each = (vocab + THREADS - 1) / THREADS;
        double reached = 0.0;
        uint32_t t = 0;
        while (t + 1 < THREADS && reached + s.chunk[t] <= target)
            reached += s.chunk[t++];
        int32_t token = 0;
        for (uint32_t i = t * each; i < vocab; i++) {
            const double p = weight(logits[i], top, inverse);
            if (p > 0.0) token = (int32_t)i;
            reached += p;
            if (reached > target) break;
        }
        s.token = token;
    }
    __syncthreads();
    return s.token;
}

/* Candidates best first: once for the sum of what the cut leaves, once to find the draw. */
__device__ int32_t draw_from_cut(sample_shared &s, const float *logits, uint32_t vocab, float top,
                                 const kern_sampling &how, double unit)
{
    const double inverse = 1.0 / (double)how.temperature;
    const uint32_t most = how.top_k == 0 || how.top_k > vocab ? vocab : how.top_k;
    double all = INFINITY;
    if (how.top_p < 1.0f && most == vocab) all = chunk_sums(s, logits, vocab, top, inverse);
    if (how.top_p < 1.0f && most < vocab) {
        all = 0.0;
        unsigned long long key = ~0ull;
        for (uint32_t i = 0; i < most; i++) {
            key = best_below(s, logits, vocab, key);
            all += weight(logits[key_id(key)], top, inverse);
        }
    }
    double sum = 0.0;
    uint32_t count = 0;
    unsigned long long key = ~0ull;
    while (count < most) {
        key = best_below(s, logits, vocab, key);
        sum += weight(logits[key_id(key)], top, inverse);
        count++;
        if (sum >= (double)how.top_p * all) break;
    }
    double reached = 0.0;
    key = ~0ull;
    for (uint32_t i = 0; i < count; i++) {
        key = best_below(s, logits, vocab, key);
        reached += weight(logits[key_id(key)], top, inverse);
        if (reached > unit * sum) break;
    }
    return (int32_t)key_id(key);
}

__global__ void __launch_bounds__(THREADS) sample_kernel(const __grid_constant__ kern_sample_args a)
{
    cuda_begin();
    __shared__ sample_shared s;
    const uint64_t row = blockIdx.x;
    const float *logits = a.logits + row * a.vocab;
    const kern_sampling how = a.sampling[row];
    kern_sampled *out = a.out + row;
    const uint32_t best = key_id(best_below(s, logits, a.vocab, ~0ull));
    const float top = logits[best];
    const float lse = log_sum_exp(s, logits, a.vocab, top);
    int32_t token = (int32_t)best;
    if (how.temperature > 0.0f) {
        const unsigned long long bits = mix(mix(how.seed) ^ mix((uint64_t)a.row_pos[row] + 1));
        const double unit = (double)(bits >> 11) * 0x1p-53;
        token = how.top_k == 0 && how.top_p >= 1.0f
                    ? draw_from_all(s, logits, a.vocab, top, 1.0 / (double)how.temperature, unit)
                    : draw_from_cut(s, logits, a.vocab, top, how, unit);
    }
    unsigned long long key = ~0ull;
    for (uint32_t i = 0; i < KERN_TOP_LOGPROBS_MAX; i++) {
        const bool wanted = i < how.top_logprobs && i < a.vocab;
        if (wanted) key = best_below(s, logits, a.vocab, key);
        if (threadIdx.x != 0) continue;
        out->top_token[i] = wanted ? (int32_t)key_id(key) : 0;
        out->top_logprob[i] = wanted ? logits[key_id(key)] - lse : 0.0f;
    }
    if (threadIdx.x == 0) {
        out->token = token;
        out->logprob = logits[token] - lse;
    }
}

} // namespace

extern "C" status cuda_sample(kern_stream *stream, const kern_sample_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    cuda_launch(cuda_stream_of(stream), {args->rows, THREADS}, sample_kernel, *args);
    return cuda_launched("sample");
}
