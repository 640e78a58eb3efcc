/* tests/kernels/gpu_common.cuh - what the GPU check and bench programs share: mirrored buffers,
 * seeded inputs, a scene of summaries and a pool, comparison, counting. */
#ifndef TESTS_KERNELS_GPU_COMMON_CUH
#define TESTS_KERNELS_GPU_COMMON_CUH

#include "kernels/cuda.cuh"
#include "kernels/selector.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

/* A test that cannot go on says why and ends: it has nothing to clean up that the driver would not.
 */
#define NEED(cond, ...)                                                                            \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond);                             \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fprintf(stderr, "\n");                                                                 \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
#define CUDA(call)                                                                                 \
    do {                                                                                           \
        const cudaError_t cuda_error_ = (call);                                                    \
        NEED(cuda_error_ == cudaSuccess, "%s", cudaGetErrorString(cuda_error_));                   \
    } while (0)

/* splitmix64 (Steele, Lea, Flood 2014). */
struct random_source {
    uint64_t state;
    uint64_t next()
    {
        uint64_t z = state += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    uint32_t below(uint32_t n) { return (uint32_t)(next() % n); }
    float unit() { return (float)(next() >> 40) * 0x1p-24f; }
    float normal() /* of variance 1, by the sum of four uniforms */
    {
        return (unit() + unit() + unit() + unit() - 2.0f) * 1.7320508f;
    }
};

/* The same values on the host and on the device. */
template <class T> struct mirror {
    std::vector<T> host;
    T *device = nullptr;
    mirror() = default;
    explicit mirror(size_t count) { resize(count); }
    mirror(const mirror &) = delete;
    mirror &operator=(const mirror &) = delete;
    ~mirror() { (void)cudaFree(device); }
    void resize(size_t count)
    {
        (void)cudaFree(device);
        host.assign(count, T());
        CUDA(cudaMalloc((void **)&device, (count ? count : 1) * sizeof(T)));
    }
    size_t bytes() const { return host.size() * sizeof(T); }
    void up() /* over, like poison, before an op of another stream begins */
    {
        CUDA(cudaMemcpy(device, host.data(), bytes(), cudaMemcpyHostToDevice));
        CUDA(cudaStreamSynchronize(cudaStreamLegacy));
    }
    void poison() /* NaN, -1 */
    {
        CUDA(cudaMemset(device, 0xff, bytes()));
        CUDA(cudaStreamSynchronize(cudaStreamLegacy));
    }
    std::vector<T> down() const
    {
        std::vector<T> out(host.size());
        CUDA(cudaMemcpy(out.data(), device, bytes(), cudaMemcpyDeviceToHost));
        return out;
    }
};

inline void fill_normal(random_source &r, std::vector<float> &v, float scale)
{
    for (float &x : v)
        x = r.normal() * scale;
}

inline void fill_bf16(random_source &r, std::vector<uint16_t> &v, float scale)
{
    for (uint16_t &x : v)
        x = kern_f32_to_bf16(r.normal() * scale);
}

/* ---- counting -------------------------------------------------------------------------------- */

extern int checks_passed, checks_failed;

inline void check_that(bool held, const char *format, ...) __attribute__((format(printf, 2, 3)));
inline void check_that(bool held, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    printf("%s  ", held ? "ok    " : "FAILED");
    vprintf(format, list);
    printf("\n");
    fflush(stdout);
    va_end(list);
    (held ? checks_passed : checks_failed)++;
}

/* ||out - ref|| / ||ref||; NaN or infinity anywhere gives NaN, which passes no comparison. */
inline double relative_error(const std::vector<float> &out, const std::vector<float> &ref)
{
    double over = 0.0, norm = 0.0;
    for (size_t i = 0; i < ref.size(); i++) {
        const double d = (double)out[i] - (double)ref[i];
        over += d * d;
        norm += (double)ref[i] * (double)ref[i];
    }
    return sqrt(over) / (norm > 0.0 ? sqrt(norm) : 1.0);
}

inline void check_close(const char *what, const std::vector<float> &out,
                        const std::vector<float> &ref, double bound)
{
    const double error = relative_error(out, ref);
    check_that(error <= bound, "%s: relative error %.3g, bound %.3g", what, error, bound);
}

template <class T>
void check_same(const char *what, const std::vector<T> &out, const std::vector<T> &ref)
{
    size_t differ = 0, at = 0;
    for (size_t i = 0; i < ref.size(); i++)
        if (memcmp(&out[i], &ref[i], sizeof(T)) != 0) {
            if (differ == 0) at = i;
            differ++;
        }
    check_that(differ == 0 && out.size() == ref.size(), "%s: %zu of %zu differ (first at %zu)",
               what, differ, ref.size(), at);
}

/* ---- backends -------------------------------------------------------------------------------- */

struct gpu_bench {
    kern_backend *ref_backend, *gpu_backend;
    kern_stream *ref, *gpu;
    void sync() { NEED(kern_stream_sync(gpu) == STATUS_OK, "stream"); }
};

inline void expect_ok(status s, const char *what)
{
    NEED(s == STATUS_OK, "%s: %s", what, status_name(s));
}

/* Misses and arrivals in memory that host and device both see. */
struct shared_exchange {
    kern_exchange *x;
    explicit shared_exchange(uint32_t capacity)
    {
        CUDA(cudaHostAlloc((void **)&x, sizeof *x, cudaHostAllocMapped));
        memset((void *)x, 0, sizeof *x);
        x->capacity = capacity;
        CUDA(cudaHostAlloc((void **)&x->miss, capacity * sizeof *x->miss, cudaHostAllocMapped));
        CUDA(cudaHostAlloc((void **)&x->arrival, capacity * sizeof *x->arrival,
                           cudaHostAllocMapped));
        memset((void *)x->arrival, 0, capacity * sizeof *x->arrival);
    }
    shared_exchange(const shared_exchange &) = delete;
    /* The device's own copies too: the first `count` of the lists as they are now, as a plan
     * leaves them. */
    void take_own(uint32_t count, uint32_t unanswered)
    {
        const uint32_t counts[3] = {count, x->own_tag, unanswered};
        std::vector<uint32_t> coming(x->capacity);
        for (uint32_t i = 0; i < count; i++)
            coming[x->miss[i].place] = 1;
        if (!x->own_count) {
            CUDA(cudaMalloc((void **)&x->own_miss, x->capacity * sizeof *x->miss));
            CUDA(cudaMalloc((void **)&x->own_arrival, x->capacity * sizeof *x->arrival));
            CUDA(cudaMalloc((void **)&x->own_count, sizeof counts));
            CUDA(cudaMalloc((void **)&x->coming, coming.size() * sizeof coming[0]));
        }
        CUDA(cudaMemcpy(x->own_miss, x->miss, count * sizeof *x->miss, cudaMemcpyDefault));
        CUDA(cudaMemcpy((void *)x->own_arrival, (const void *)x->arrival,
                        count * sizeof *x->arrival, cudaMemcpyDefault));
        CUDA(cudaMemcpy(x->own_count, counts, sizeof counts, cudaMemcpyDefault));
        CUDA(cudaMemcpy(x->coming, coming.data(), coming.size() * sizeof coming[0],
                        cudaMemcpyDefault));
    }
    /* How many misses the device still waits for. */
    uint32_t still_coming() const
    {
        std::vector<uint32_t> coming(x->capacity);
        uint32_t n = 0;
        CUDA(cudaMemcpy(coming.data(), x->coming, coming.size() * sizeof coming[0],
                        cudaMemcpyDefault));
        for (uint32_t one : coming)
            n += one;
        return n;
    }
    ~shared_exchange()
    {
        (void)cudaFreeHost(x->miss);
        (void)cudaFreeHost(x->arrival);
        (void)cudaFree(x->own_miss);
        (void)cudaFree(x->own_arrival);
        (void)cudaFree(x->own_count);
        (void)cudaFree(x->coming);
        (void)cudaFreeHost(x);
    }
};

/* Summaries and row lists of a batch: everything the selection and attention ops read. */
struct scene {
    uint32_t rows, seqs, heads, kv_heads, dim, tokens, windows;
    uint32_t window = 32, stride = 16; /* set before make_scene */
    bool values = false;               /* likewise: means of values too */
    mirror<uint16_t> kc, uc, u, ring, vc, value_ring;
    mirror<int32_t> row_seq, row_pos, row_selector;
    mirror<kern_selector> selectors;
    mirror<float> q;

    kern_summary view(bool on_device)
    {
        kern_summary s = {};
        s.kc = on_device ? kc.device : kc.host.data();
        s.uc = on_device ? uc.device : uc.host.data();
        s.u = on_device ? u.device : u.host.data();
        s.key_ring = on_device ? ring.device : ring.host.data();
        if (values) {
            s.vc = on_device ? vc.device : vc.host.data();
            s.value_ring = on_device ? value_ring.device : value_ring.host.data();
        }
        s.seqs = seqs, s.kv_heads = kv_heads, s.head_dim = dim;
        s.max_windows = windows, s.max_tokens = tokens, s.window = window, s.stride = stride;
        return s;
    }
};

/* What an op is told of the scene's rows: kern_attend_args, kern_score_args. */
template <class Args> Args scene_args(scene &s, float *out, bool gpu)
{
    Args a = {};
    a.q = gpu ? s.q.device : s.q.host.data();
    a.row_seq = gpu ? s.row_seq.device : s.row_seq.host.data();
    a.row_pos = gpu ? s.row_pos.device : s.row_pos.host.data();
    a.row_selector = gpu ? s.row_selector.device : s.row_selector.host.data();
    a.selectors = gpu ? s.selectors.device : s.selectors.host.data();
    a.summary = s.view(gpu);
    a.out = out;
    a.row_stride = (uint64_t)s.heads * s.dim;
    a.rows = s.rows, a.heads = s.heads;
    return a;
}

/* The same of rows first .. first + count - 1 only, with `each` values out a row. */
template <class Args> Args scene_rows(Args a, uint32_t first, uint32_t count, uint64_t each)
{
    a.q += first * a.row_stride;
    a.row_seq += first, a.row_pos += first, a.row_selector += first;
    a.out += first * each;
    a.rows = count;
    return a;
}

inline kern_selector nosa_selector()
{
    kern_selector s = {};
    s.window = 32, s.stride = 16, s.block = 64, s.init = 1, s.local = 16, s.query = 33,
    s.total = 64;
    s.fill_by_importance = s.bias = true;
    s.source = SOURCE_OWN;
    return s;
}

/* MoBA: raw products with means of 128 keys. */
inline kern_selector moba_selector(uint32_t block, uint32_t query)
{
    kern_selector s = {};
    s.window = s.stride = 128, s.block = block, s.query = s.total = query;
    s.raw = true;
    return s;
}

/* SSA with the search of its released kernel: W = a block's tokens. */
inline kern_selector chunked_selector(uint32_t block, uint32_t query)
{
    kern_selector s = {};
    s.window = s.stride = s.block = s.chunk = block, s.query = s.total = query;
    return s;
}

/* NSA as the SSA paper trains it: means of whole blocks, a window of `near` tokens. */
inline kern_selector nsa_selector(uint32_t block, uint32_t query, uint32_t near)
{
    kern_selector s = {};
    s.window = s.stride = s.block = block, s.query = s.total = query, s.near = near;
    return s;
}

/* NSA's own geometry: windows that overlap, forced blocks. */
inline kern_selector nsa_overlap_selector(uint32_t query, uint32_t near)
{
    kern_selector s = nsa_selector(64, query, near);
    s.window = 32, s.stride = 16, s.init = 1, s.local = 2;
    return s;
}

/* One decode row a sequence, at ragged positions up to tokens - 1 (row 0 at the last). */
inline void make_scene(scene &s, random_source &r, uint32_t rows, uint32_t heads, uint32_t kv_heads,
                       uint32_t dim, uint32_t tokens)
{
    s.rows = s.seqs = rows, s.heads = heads, s.kv_heads = kv_heads, s.dim = dim, s.tokens = tokens;
    s.windows = tokens / s.stride;
    s.kc.resize((size_t)rows * kv_heads * s.windows * dim);
    s.uc.resize((size_t)rows * kv_heads * s.windows);
    s.u.resize((size_t)rows * kv_heads * tokens);
    s.ring.resize((size_t)rows * kv_heads * KERN_KEY_RING * dim);
    fill_bf16(r, s.kc.host, 0.5f);
    fill_bf16(r, s.uc.host, 1.0f);
    fill_bf16(r, s.u.host, 1.0f);
    fill_bf16(r, s.ring.host, 1.0f);
    if (s.values) {
        s.vc.resize(s.kc.host.size()), s.value_ring.resize(s.ring.host.size());
        fill_bf16(r, s.vc.host, 0.5f), fill_bf16(r, s.value_ring.host, 1.0f);
        s.vc.up(), s.value_ring.up();
    }
    s.row_seq.resize(rows), s.row_pos.resize(rows), s.row_selector.resize(rows);
    for (uint32_t i = 0; i < rows; i++) {
        s.row_seq.host[i] = (int32_t)((i * 7 + 3) % rows); /* 7 and rows have no common divisor */
        s.row_pos.host[i] = (int32_t)(i == 0 ? tokens - 1 : tokens / 2 + r.below(tokens / 2));
        s.row_selector.host[i] = 0;
    }
    s.selectors.resize(KERN_SELECTORS_MAX);
    for (kern_selector &one : s.selectors.host)
        one = nosa_selector();
    s.q.resize((size_t)rows * heads * dim);
    fill_normal(r, s.q.host, 1.0f);
    s.kc.up(), s.uc.up(), s.u.up(), s.ring.up(), s.row_seq.up(), s.row_pos.up();
    s.row_selector.up(), s.selectors.up(), s.q.up();
}

#endif
