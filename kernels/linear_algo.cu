/* kernels/linear_algo.cu - which of cublasLt's algorithms makes a product, by shape and by class of
 * rows.
 *
 * When the first weight of a shape [n, k] is packed, its memory is filled with random values, the
 * library is asked for what it ranks first at each class's most rows, the answers are timed with
 * weights that the second-level cache does not hold, and the fastest is taken whose outputs are
 * those of the definition (linear.cu) bit by bit: at the fewest, the most and some rows between,
 * with and without a residual, at an unaligned place, with fewer columns. Activations repeat every
 * PERIOD rows, so the definition is computed once; every other row has values of many magnitudes,
 * whose sums show another order of summation or another width of the adder.
 *
 * The library's own ranking needs help: asked for no reduction it may put a kernel of 16 CTAs first
 * (4096 x 16384 on an H200: 370 us, where 36 are enough). So it is asked three times: without a
 * workspace, which leaves little but whole K; without reductions; and freely, what splits K being
 * tried with its split taken away. Last the best is tried with other clusters. Weights below
 * TIMED_BYTES take less than their launch: they are not timed, the first that matches will do.
 *
 * Timing decides nothing but the choice among equals. */
#include "kernels/linear.cuh"

#include <algorithm>
#include <cstring>
#include <vector>

namespace
{

constexpr uint32_t PERIOD = 61;      /* rows of different activations; prime, so tiles see all */
constexpr uint32_t ROWS_MOST = 2048; /* of one product; more go in waves */
constexpr uint64_t OUT_BYTES_MOST = 256ull << 20, X_BYTES_MOST = 64ull << 20;
constexpr uint64_t TIMED_BYTES = 4ull << 20;
constexpr int EACH = 6;   /* taken of one ranking */
constexpr int ROUNDS = 5; /* timed launches of an algorithm */
constexpr float PROBE_SCALE = 0.7f;

/* ---- device ---------------------------------------------------------------------------------- */

__device__ __forceinline__ uint64_t mix(uint64_t x)
{
    x ^= x >> 33, x *= 0xff51afd7ed558ccdull;
    x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

/* About normal, of variance 1/12. */
__device__ __forceinline__ float random_value(uint64_t h)
{
    float sum = 0.0f;
    for (int i = 0; i < 4; i++)
        sum += (float)(h >> (16 * i) & 0xffff) * 0x1p-16f - 0.5f;
    return sum * 0.5f;
}

/* Rows repeat every `period`; odd ones have magnitudes from 2^-8 to 2^7. */
__global__ void __launch_bounds__(256)
    fill_kernel(uint16_t *to, uint64_t rows, uint32_t k, uint32_t period, bool spread)
{
    cuda_begin();
    const uint64_t count = rows * k;
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
        const uint64_t row = i / k % period, h = mix((row << 32 | i % k) + 1);
        const float v = random_value(h);
        const int power = spread && row % 2 ? (int)(mix(h) & 15) - 8 : 0;
        to[i] = float_bf16(scalbnf(v, power));
    }
}

__device__ __forceinline__ float residual_value(uint64_t i)
{
    return random_value(mix(~i));
}

__global__ void __launch_bounds__(256) residual_kernel(float *to, uint64_t count)
{
    cuda_begin();
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull)
        to[i] = residual_value(i);
}

/* How many outputs of the product are not the definition's; sum [PERIOD, stride] is its sums. */
__global__ void __launch_bounds__(256)
    compare_kernel(cuda_product p, cuda_products form, const float *sum, uint32_t *differ)
{
    cuda_begin();
    const uint64_t count = (uint64_t)p.rows * p.n;
    uint32_t wrong = 0;
    for (uint64_t i = blockIdx.x * 256ull + threadIdx.x; i < count; i += gridDim.x * 256ull) {
        const uint64_t row = i / p.n, column = i % p.n;
        const float add = residual_value(row * p.stride + column);
        const float want = cuda_product_end(form, p.scale, sum[row % PERIOD * p.stride + column],
                                            p.residual ? &add : nullptr);
        wrong += __float_as_uint(want) != __float_as_uint(p.out[row * p.stride + column]);
    }
    if (wrong) atomicAdd(differ, wrong);
}

/* Reads what has no business in the second-level cache. */
__global__ void __launch_bounds__(512) flush_kernel(const uint4 *from, uint64_t count, uint32_t *to)
{
    cuda_begin();
    uint32_t sum = 0;
    for (uint64_t i = blockIdx.x * 512ull + threadIdx.x; i < count; i += gridDim.x * 512ull) {
        const uint4 v = from[i];
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x9e3779b9u) atomicAdd(to, 1u); /* never read; keeps the loads */
}

/* ---- a shape under trial --------------------------------------------------------------------- */

struct candidate {
    cublasLtMatmulAlgo_t algo;
    std::vector<float> ms;
    float median() const
    {
        std::vector<float> v = ms;
        std::sort(v.begin(), v.end());
        return v.empty() ? 1e30f : v[v.size() / 2];
    }
};

typedef std::vector<candidate> candidates;

struct trial {
    cuda_device *d;
    cuda_stream *s;
    uint32_t n, k, rows_most;
    bool timed;
    uint16_t *weight, *x;
    float *sum, *out, *residual;
    uint32_t *words; /* [2] how many differ; what flush_kernel writes */
    uint8_t *memory;
    uint64_t flush_bytes;
    cudaEvent_t from, to;
};

uint64_t in_lines(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

cuda_product trial_product(const trial &t, uint32_t rows)
{
    cuda_product p = {};
    p.weight = t.weight, p.x = t.x, p.out = t.out;
    p.stride = p.n = t.n, p.k = t.k, p.rows = rows, p.scale = 1.0f;
    return p;
}

void trial_close(trial *t)
{
    if (t->s) t->s->base.backend->device->stream_destroy(&t->s->base);
    if (t->from) (void)cudaEventDestroy(t->from);
    if (t->to) (void)cudaEventDestroy(t->to);
    (void)cudaFree(t->memory);
}

status trial_memory(trial *t)
{
    uint64_t fit = std::min(OUT_BYTES_MOST / (4ull * t->n), X_BYTES_MOST / (2ull * t->k));
    fit = std::min<uint64_t>(std::max<uint64_t>(fit, LINEAR_CLASS_ROWS[0]), ROWS_MOST);
    t->rows_most = (uint32_t)(fit > 128 ? fit / 128 * 128 : fit); /* waves begin aligned */
    if (t->timed) t->flush_bytes = 2 * t->d->l2_bytes;
    const uint64_t x = in_lines(2ull * t->k * std::max(t->rows_most, PERIOD));
    const uint64_t sum = in_lines(4ull * t->n * PERIOD);
    const uint64_t rows = in_lines(4ull * t->n * (t->rows_most + 1));
    const uint64_t out = std::max<uint64_t>(rows, in_lines(t->flush_bytes));
    if (cudaMalloc((void **)&t->memory, x + sum + 256 + out + rows) != cudaSuccess) {
        t->memory = nullptr;
        return FAIL(NO_MEMORY,
                    "no %llu bytes of device memory to try products with a weight of %u x %u: "
                    "nvidia-smi shows who has it",
                    (unsigned long long)(x + sum + 256 + out + rows), t->n, t->k);
    }
    t->x = (uint16_t *)t->memory;
    t->sum = (float *)(t->memory + x);
    t->words = (uint32_t *)(t->memory + x + sum);
    t->out = (float *)(t->memory + x + sum + 256);
    t->residual = (float *)(t->memory + x + sum + 256 + out);
    return STATUS_OK;
}

/* Random weights and activations, and the definition's sums of them. */
status trial_fill(trial *t)
{
    TRY_CUDA(cudaMemsetAsync(t->words, 0, 8, t->s->handle));
    cuda_launch(t->s, {dim3(1024), 256}, fill_kernel, t->weight, (uint64_t)t->n, t->k, t->n, false);
    cuda_launch(t->s, {dim3(1024), 256}, fill_kernel, t->x,
                (uint64_t)std::max(t->rows_most, PERIOD), t->k, PERIOD, true);
    cuda_product p = trial_product(*t, PERIOD);
    p.out = t->sum;
    cuda_product_own(t->s, p);
    return cuda_launched("linear");
}

status trial_open(trial *t, kern_backend *backend, uint32_t n, uint32_t k, uint16_t *weight,
                  bool timed)
{
    *t = {};
    t->d = cuda_device_of(backend);
    t->n = n, t->k = k, t->weight = weight, t->timed = timed;
    kern_stream *stream = nullptr;
    TRY(backend->device->stream_create(backend, &stream));
    t->s = cuda_stream_of(stream);
    status done = trial_memory(t);
    if (done == STATUS_OK &&
        (cudaEventCreate(&t->from) != cudaSuccess || cudaEventCreate(&t->to) != cudaSuccess))
        done = FAIL(GPU, "no event can be made: %s", cudaGetErrorString(cudaGetLastError()));
    if (done == STATUS_OK) done = trial_fill(t);
    if (done == STATUS_OK) done = backend->device->stream_sync(stream);
    if (done != STATUS_OK) trial_close(t);
    return done;
}

uint32_t class_first(uint32_t class_at)
{
    return class_at == 0 ? 1 : LINEAR_CLASS_ROWS[class_at - 1] + 1;
}

uint32_t class_last(const trial &t, uint32_t class_at)
{
    if (class_at + 1 == LINEAR_CLASSES) return t.rows_most;
    return std::min(LINEAR_CLASS_ROWS[class_at], t.rows_most);
}

/* ---- bits ------------------------------------------------------------------------------------ */

/* The product as the definition has it, or not: counted in words[0], without waiting. False: the
 * library refuses it. */
bool try_product(const trial &t, const cublasLtMatmulAlgo_t &algo, cuda_products form,
                 cuda_product p)
{
    p.out += p.stride; /* an output that begins where its second row would */
    if (p.residual)
        cuda_launch(t.s, {dim3(512), 256}, residual_kernel, t.residual, p.rows * p.stride);
    (void)cudaMemsetAsync(p.out, 0xff, p.rows * p.stride * 4, t.s->handle);
    if (cuda_product_library(t.s, p, &algo) != CUBLAS_STATUS_SUCCESS) return false;
    cuda_launch(t.s, {dim3(512), 256}, compare_kernel, p, form, (const float *)t.sum, t.words);
    return true;
}

/* Loads the kernels too: cublasLt does so at their first use, which must not be in a step (see
 * module.cu). */
status algo_matches(const trial &t, const cublasLtMatmulAlgo_t &algo, cuda_products form,
                    uint32_t class_at, bool *out_matches)
{
    const uint32_t first = class_first(class_at), last = class_last(t, class_at);
    bool ran = true;
    uint32_t differ = 0;
    for (uint32_t rows : {first, std::min((first + last) / 2 | 1, last), last}) {
        cuda_product p = trial_product(t, rows);
        ran = ran && try_product(t, algo, form, p);
        p.scale = PROBE_SCALE;
        p.residual = t.residual;
        ran = ran && try_product(t, algo, form, p);
    }
    cuda_product narrow = trial_product(t, last);
    narrow.n = t.n / 4 * 3 / 8 * 8;
    if (narrow.n > 0) ran = ran && try_product(t, algo, form, narrow);
    TRY_CUDA(cudaMemcpyAsync(&differ, t.words, sizeof differ, cudaMemcpyDeviceToHost, t.s->handle));
    TRY_CUDA(cudaMemsetAsync(t.words, 0, sizeof differ, t.s->handle));
    TRY(t.s->base.backend->device->stream_sync(&t.s->base));
    TRY(cuda_launched("linear"));
    *out_matches = ran && differ == 0;
    return STATUS_OK;
}

/* ---- candidates ------------------------------------------------------------------------------ */

template <class T>
bool config(const cublasLtMatmulAlgo_t &algo, cublasLtMatmulAlgoConfigAttributes_t what, T *out)
{
    size_t written = 0;
    return cublasLtMatmulAlgoConfigGetAttribute(&algo, what, out, sizeof *out, &written) ==
           CUBLAS_STATUS_SUCCESS;
}

template <class T>
bool set_config(cublasLtMatmulAlgo_t *algo, cublasLtMatmulAlgoConfigAttributes_t what, T value)
{
    return cublasLtMatmulAlgoConfigSetAttribute(algo, what, &value, sizeof value) ==
           CUBLAS_STATUS_SUCCESS;
}

/* Split-K or a reduction across tiles would order sums by what else is in flight. */
bool whole_k(const cublasLtMatmulAlgo_t &algo)
{
    int32_t split = 0;
    uint32_t scheme = 0;
    return config(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split) &&
           config(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme) && split <= 1 &&
           scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

/* The library's ranking for a product of `rows`. */
std::vector<cublasLtMatmulAlgo_t> ranked(const trial &t, uint32_t rows, uint64_t workspace,
                                         bool reductions)
{
    cublasLtMatmulHeuristicResult_t found[16];
    cublasLtMatmulPreferenceOpaque_t preference;
    cuda_layouts l;
    int count = 0;
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    std::vector<cublasLtMatmulAlgo_t> algos;
    if (l.init(t.n, t.k, rows, t.n) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulPreferenceInit(&preference) != CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, sizeof workspace) != CUBLAS_STATUS_SUCCESS)
        return algos;
    if (!reductions)
        (void)cublasLtMatmulPreferenceSetAttribute(
            &preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof scheme);
    if (cublasLtMatmulAlgoGetHeuristic(t.d->blas, &t.d->matmul, &l.weight, &l.x, &l.out, &l.out,
                                       &preference, 16, found, &count) != CUBLAS_STATUS_SUCCESS)
        return algos;
    for (int i = 0; i < count; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS) algos.push_back(found[i].algo);
    return algos;
}

/* Whether the library would run it. */
bool is_valid(const trial &t, uint32_t rows, const cublasLtMatmulAlgo_t &algo)
{
    cuda_layouts l;
    cublasLtMatmulHeuristicResult_t about = {};
    return l.init(t.n, t.k, rows, t.n) == CUBLAS_STATUS_SUCCESS &&
           cublasLtMatmulAlgoCheck(t.d->blas, &t.d->matmul, &l.weight, &l.x, &l.out, &l.out, &algo,
                                   &about) == CUBLAS_STATUS_SUCCESS &&
           about.workspaceSize <= LINEAR_WORKSPACE_BYTES;
}

bool add(candidates *to, const cublasLtMatmulAlgo_t &algo)
{
    for (const candidate &c : *to)
        if (memcmp(&c.algo, &algo, sizeof algo) == 0) return false;
    to->push_back({algo, {}});
    return true;
}

candidates collect(const trial &t, uint32_t rows)
{
    candidates all;
    const struct {
        uint64_t workspace;
        bool reductions;
    } asks[] = {{0, true}, {LINEAR_WORKSPACE_BYTES, false}, {LINEAR_WORKSPACE_BYTES, true}};
    for (const auto &ask : asks) {
        int taken = 0;
        for (cublasLtMatmulAlgo_t algo : ranked(t, rows, ask.workspace, ask.reductions)) {
            if (taken == EACH) break;
            if (!whole_k(algo) &&
                (!set_config(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, (int32_t)1) ||
                 !set_config(&algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                             (uint32_t)CUBLASLT_REDUCTION_SCHEME_NONE)))
                continue;
            if (is_valid(t, rows, algo)) taken += add(&all, algo);
        }
    }
    return all;
}

/* ---- time ------------------------------------------------------------------------------------ */

/* One launch each, of those that ran until now. The first launch of all loads the kernel. */
status time_round(const trial &t, uint32_t rows, candidates *all, size_t begin)
{
    const cuda_product p = trial_product(t, rows);
    for (size_t i = begin; i < all->size(); i++) {
        candidate &c = (*all)[i];
        cuda_launch(t.s, {dim3(512), 512}, flush_kernel, (const uint4 *)t.out, t.flush_bytes / 16,
                    t.words + 1);
        TRY_CUDA(cudaEventRecord(t.from, t.s->handle));
        const bool ran = cuda_product_library(t.s, p, &c.algo) == CUBLAS_STATUS_SUCCESS;
        TRY_CUDA(cudaEventRecord(t.to, t.s->handle));
        TRY(t.s->base.backend->device->stream_sync(&t.s->base));
        float ms = 1e30f;
        if (ran) TRY_CUDA(cudaEventElapsedTime(&ms, t.from, t.to));
        c.ms.push_back(ms);
    }
    return STATUS_OK;
}

void drop_beyond(candidates *all, size_t begin, float most)
{
    all->erase(std::remove_if(all->begin() + (ptrdiff_t)begin, all->end(),
                              [most](const candidate &c) { return c.median() > most; }),
               all->end());
}

float least_median(const candidates &all)
{
    float best = 1e30f;
    for (const candidate &c : all)
        best = std::min(best, c.median());
    return best;
}

/* Medians; what is far behind after a round, and behind after all, is timed no more: those that are
 * left get as many rounds again. */
status time_all(const trial &t, uint32_t rows, candidates *all, size_t begin)
{
    TRY(time_round(t, rows, all, begin));
    for (size_t i = begin; i < all->size(); i++)
        (*all)[i].ms.clear();
    TRY(time_round(t, rows, all, begin));
    drop_beyond(all, begin, 1.5f * least_median(*all));
    for (int i = 1; i < ROUNDS; i++)
        TRY(time_round(t, rows, all, begin));
    drop_beyond(all, begin, 1.05f * least_median(*all));
    for (int i = 0; i < ROUNDS; i++)
        TRY(time_round(t, rows, all, begin));
    std::stable_sort(all->begin(), all->end(), [](const candidate &a, const candidate &b) {
        return a.median() < b.median();
    });
    return STATUS_OK;
}

/* The best with other clusters. */
status time_clusters(const trial &t, uint32_t rows, candidates *all)
{
    if (all->empty() || t.d->major < 9) return STATUS_OK;
    const cublasLtMatmulAlgo_t best = all->front().algo;
    const size_t begin = all->size();
    for (uint16_t cluster : {CUBLASLT_CLUSTER_SHAPE_1x1x1, CUBLASLT_CLUSTER_SHAPE_2x1x1,
                             CUBLASLT_CLUSTER_SHAPE_4x1x1, CUBLASLT_CLUSTER_SHAPE_1x2x1}) {
        cublasLtMatmulAlgo_t algo = best;
        if (set_config(&algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, cluster) &&
            is_valid(t, rows, algo))
            add(all, algo);
    }
    return begin == all->size() ? STATUS_OK : time_all(t, rows, all, begin);
}

/* ---- the choice ------------------------------------------------------------------------------ */

void tell_choice(const trial &t, uint32_t class_at, const candidate &c)
{
    int32_t id = 0;
    uint32_t tile = 0, stages = 0, custom = 0;
    uint16_t cluster = 0;
    (void)config(c.algo, CUBLASLT_ALGO_CONFIG_ID, &id);
    (void)config(c.algo, CUBLASLT_ALGO_CONFIG_TILE_ID, &tile);
    (void)config(c.algo, CUBLASLT_ALGO_CONFIG_STAGES_ID, &stages);
    (void)config(c.algo, CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, &cluster);
    (void)config(c.algo, CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, &custom);
    LOG(DEBUG,
        "products with a weight of %u x %u, %u to %u rows: algorithm %d, tile %u, stages %u, "
        "cluster %u, option %u, %.1f us",
        t.n, t.k, class_first(class_at), class_last(t, class_at), id, tile, stages, cluster, custom,
        c.ms.empty() ? 0.0 : (double)c.median() * 1e3);
}

/* The first of `all` that matches; out stays as it is when none does. */
status take_first(const trial &t, uint32_t class_at, const candidates &all, cuda_algo *out)
{
    for (const candidate &c : all) {
        bool matches = false;
        TRY(algo_matches(t, c.algo, t.d->products, class_at, &matches));
        if (!matches) continue;
        out->algo = c.algo;
        out->own = false;
        tell_choice(t, class_at, c);
        break;
    }
    return STATUS_OK;
}

status choose_class(const trial &t, uint32_t class_at, cuda_shape *shape)
{
    const uint32_t rows = class_last(t, class_at);
    candidates all = collect(t, rows);
    if (class_at > 0 && !shape->algo[class_at - 1].own) add(&all, shape->algo[class_at - 1].algo);
    if (t.timed) {
        TRY(time_all(t, rows, &all, 0));
        TRY(time_clusters(t, rows, &all));
    }
    return take_first(t, class_at, all, &shape->algo[class_at]);
}

status choose_each(const trial &t, cuda_shape *shape)
{
    const uint32_t used = linear_class(t.rows_most) + 1;
    candidates taken;
    bool slow = false;
    for (cuda_algo &a : shape->algo)
        a.own = true;
    for (uint32_t i = 0; i < used; i++) {
        TRY(choose_class(t, i, shape));
        if (!shape->algo[i].own) add(&taken, shape->algo[i].algo);
    }
    for (uint32_t i = 0; i < used; i++) { /* where none did, one of another class */
        if (shape->algo[i].own) TRY(take_first(t, i, taken, &shape->algo[i]));
        slow |= shape->algo[i].own;
    }
    if (slow) cuda_product_slow(t.d, t.n, t.k);
    return STATUS_OK;
}

/* One for all rows, by the library's ranking alone. */
status choose_library(const trial &t, cuda_shape *shape)
{
    const cublasLtMatmulAlgo_t *one = nullptr;
    const std::vector<cublasLtMatmulAlgo_t> all = ranked(t, 64, LINEAR_WORKSPACE_BYTES, false);
    for (size_t i = 0; i < all.size() && !one; i++)
        one = whole_k(all[i]) ? &all[i] : nullptr;
    if (!one)
        return FAIL(GPU, "cublasLt has no algorithm without split K for a weight of %u x %u", t.n,
                    t.k);
    for (uint32_t i = 0; i < LINEAR_CLASSES; i++) {
        bool ignored;
        shape->algo[i] = {*one, false};
        if (i <= linear_class(t.rows_most)) /* for its kernels to be loaded */
            TRY(algo_matches(t, *one, t.d->products, i, &ignored));
    }
    return STATUS_OK;
}

} // namespace

status cuda_linear_shape(kern_backend *backend, uint32_t n, uint32_t k, uint16_t *memory,
                         const cuda_shape **out_shape)
{
    cuda_device *d = cuda_device_of(backend);
    for (const cuda_shape *s = d->shapes; s; s = s->next) {
        if (s->n != n || s->k != k) continue;
        *out_shape = s;
        return STATUS_OK;
    }
    const uint64_t began = clock_now(&clock_monotonic);
    trial t;
    TRY(trial_open(&t, backend, n, k, memory, 2ull * n * k >= TIMED_BYTES));
    cuda_shape *shape = new cuda_shape();
    shape->n = n, shape->k = k, shape->rows_most = t.rows_most;
    const status done =
        d->products == PRODUCTS_LIBRARY ? choose_library(t, shape) : choose_each(t, shape);
    trial_close(&t);
    if (done != STATUS_OK) {
        delete shape;
        return done;
    }
    LOG(DEBUG, "products with a weight of %u x %u: algorithms chosen in %.1f ms", n, k,
        (double)(clock_now(&clock_monotonic) - began) * 1e-6);
    shape->next = d->shapes;
    d->shapes = shape;
    *out_shape = shape;
    return STATUS_OK;
}

status cuda_linear_probe(kern_backend *backend)
{
    cuda_device *d = cuda_device_of(backend);
    const uint32_t n = 4096, k = 1024, rows = 64;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (cublasLtMatmulDescInit(&d->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
            CUBLAS_STATUS_SUCCESS ||
        cublasLtMatmulDescSetAttribute(&d->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                       sizeof transposed) != CUBLAS_STATUS_SUCCESS)
        return FAIL(GPU, "cublasLt describes no product");
    uint16_t *memory = nullptr;
    if (cudaMalloc((void **)&memory, 2ull * n * k) != cudaSuccess)
        return FAIL(NO_MEMORY, "no %llu bytes of device memory for a first product", 2ull * n * k);
    trial t;
    status done = trial_open(&t, backend, n, k, memory, false);
    if (done == STATUS_OK) {
        uint32_t most = 0;
        const candidates all = collect(t, rows);
        for (cuda_products form : {PRODUCTS_FUSED, PRODUCTS_APART}) {
            uint32_t count = 0;
            for (size_t i = 0; i < all.size() && done == STATUS_OK; i++) {
                bool matches = false;
                done = algo_matches(t, all[i].algo, form, linear_class(rows), &matches);
                count += matches;
            }
            LOG(DEBUG, "%u of %zu algorithms have the bits of a product, residual %s", count,
                all.size(), form == PRODUCTS_FUSED ? "fused" : "apart");
            if (count > most) most = count, d->products = form;
            if (count == all.size()) break;
        }
        trial_close(&t);
    }
    (void)cudaFree(memory);
    return done;
}

void cuda_linear_forget(kern_backend *backend)
{
    cuda_device *d = cuda_device_of(backend);
    while (d->shapes) {
        cuda_shape *next = d->shapes->next;
        delete d->shapes;
        d->shapes = next;
    }
}
