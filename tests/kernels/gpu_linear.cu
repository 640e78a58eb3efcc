/* tests/kernels/gpu_linear.cu - the bits of matrix products against their definition: one chain of
 * tensor-core steps over ascending K, written here once more, at every class of rows. */
#include "kernels/linear.cuh"
#include "tests/kernels/gpu_checks.cuh"

namespace
{

/* x [16 a, k], w [8 b, k], to [16 a, 8 b], k a multiple of 16; grid (b, a), a warp each. */
__global__ void chain_sums(const uint16_t *x, const uint16_t *w, float *to, uint32_t k)
{
    const uint32_t g = threadIdx.x / 4, t = threadIdx.x % 4, n = gridDim.x * 8;
    const uint32_t *a = (const uint32_t *)(x + (uint64_t)(blockIdx.y * 16 + g) * k);
    const uint32_t *b = (const uint32_t *)(w + (uint64_t)(blockIdx.x * 8 + g) * k);
    float c[4] = {};
    for (uint32_t i = t; i < k / 2; i += 8) {
        const uint32_t rows[4] = {a[i], a[i + 4 * k], a[i + 4], a[i + 4 * k + 4]};
        mma_16x8x16(c, rows, b[i], b[i + 4]);
    }
    float *out = to + (uint64_t)(blockIdx.y * 16 + g) * n + blockIdx.x * 8 + 2 * t;
    out[0] = c[0], out[1] = c[1], out[8 * n] = c[2], out[8 * n + 1] = c[3];
}

uint32_t up_to(uint32_t x, uint32_t unit)
{
    return (x + unit - 1) / unit * unit;
}

struct product {
    uint32_t n, k, rows;
    mirror<uint16_t> w;
    mirror<float> x, residual, out;
    std::vector<float> sums; /* the definition's, before scale and residual */
    kern_weight *packed = nullptr;

    product(gpu_bench &b, random_source &r, uint32_t n_, uint32_t k_, uint32_t rows_)
        : n(n_), k(k_), rows(rows_), w((size_t)n * k), x((size_t)rows * k),
          residual((size_t)rows * n), out(residual.host.size())
    {
        fill_bf16(r, w.host, 0.05f);
        fill_normal(r, x.host, 1.0f), fill_normal(r, residual.host, 1.0f);
        for (size_t i = 0; i < x.host.size(); i++) /* every other row of many magnitudes */
            if (i / k % 2) x.host[i] = std::ldexp(x.host[i], (int)r.below(16) - 8);
        w.up(), x.up(), residual.up();
        pack(b.gpu_backend, &packed);
        define();
    }
    ~product() { kern_weight_free(packed); }
    void pack(kern_backend *backend, kern_weight **to) const
    {
        const kern_matrix part = {w.host.data(), n};
        expect_ok(kern_weight_pack(backend, &part, 1, k, to), "pack");
    }
    /* Filled up with zeros to whole tiles. */
    void define()
    {
        const uint32_t kk = up_to(k, 16), nn = up_to(n, 8), rr = up_to(rows, 16);
        mirror<uint16_t> tx((size_t)rr * kk), tw((size_t)nn * kk);
        mirror<float> to((size_t)rr * nn);
        for (uint32_t i = 0; i < rows; i++)
            for (uint32_t j = 0; j < k; j++)
                tx.host[(size_t)i * kk + j] = kern_f32_to_bf16(x.host[(size_t)i * k + j]);
        for (uint32_t i = 0; i < n; i++)
            memcpy(&tw.host[(size_t)i * kk], &w.host[(size_t)i * k], k * sizeof(uint16_t));
        tx.up(), tw.up();
        chain_sums<<<dim3(nn / 8, rr / 16), 32, 0, cudaStreamPerThread>>>(tx.device, tw.device,
                                                                          to.device, kk);
        CUDA(cudaGetLastError());
        CUDA(cudaStreamSynchronize(cudaStreamPerThread));
        const std::vector<float> padded = to.down();
        sums.resize((size_t)rows * n);
        for (uint32_t i = 0; i < rows; i++)
            memcpy(&sums[(size_t)i * n], &padded[(size_t)i * nn], n * sizeof(float));
    }
    /* `count` rows from `first`. */
    std::vector<float> run(kern_stream *stream, const kern_weight *weight, uint32_t first,
                           uint32_t count, float scale, bool add)
    {
        kern_linear_args a = {};
        a.weight = weight, a.x = x.device + (size_t)first * k, a.out = out.device;
        a.residual = add ? residual.device + (size_t)first * n : nullptr;
        a.x_stride = k, a.out_stride = n, a.rows = count, a.scale = scale;
        out.poison();
        expect_ok(kern_linear(stream, &a), "linear");
        expect_ok(kern_stream_sync(stream), "stream");
        std::vector<float> got = out.down();
        got.resize((size_t)count * n);
        return got;
    }
    /* How outputs that are not the wanted ones came about. */
    void tell(const std::vector<float> &got, uint32_t first, float scale, bool add) const;
    std::vector<float> want(bool fused, uint32_t first, uint32_t count, float scale, bool add) const
    {
        std::vector<float> all((size_t)count * n);
        for (size_t i = 0; i < all.size(); i++) {
            const size_t at = (size_t)first * n + i;
            volatile float scaled = scale * sums[at];
            if (!add)
                all[i] = scaled;
            else if (fused)
                all[i] = std::fma(scale, sums[at], residual.host[at]);
            else
                all[i] = scaled + residual.host[at];
        }
        return all;
    }
};

void product::tell(const std::vector<float> &got, uint32_t first, float scale, bool add) const
{
    const uint32_t count = (uint32_t)(got.size() / n);
    const std::vector<float> fused = want(true, first, count, scale, add);
    const std::vector<float> apart = want(false, first, count, scale, add);
    size_t is_fused = 0, is_apart = 0, shown = 0;
    for (size_t i = 0; i < got.size(); i++) {
        is_fused += got[i] == fused[i], is_apart += got[i] == apart[i];
        if (got[i] == fused[i] || got[i] == apart[i] || shown++ > 0) continue;
        printf("        sum %a residual %a: %a, where fused is %a and apart %a\n",
               (double)sums[(size_t)first * n + i], (double)residual.host[(size_t)first * n + i],
               (double)got[i], (double)fused[i], (double)apart[i]);
    }
    printf("        of %zu outputs %zu are fused, %zu apart\n", got.size(), is_fused, is_apart);
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b)
{
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/* By the algorithms that were chosen, and by the kernel that stands in where none is. */
void classes_case(gpu_bench &b, random_source &r, uint32_t n, uint32_t k, uint32_t most)
{
    product p(b, r, n, k, most);
    cuda_weight *w = reinterpret_cast<cuda_weight *>(p.packed);
    const cuda_shape *chosen = w->shape;
    cuda_shape slow = *chosen;
    const bool fused = cuda_device_of(b.gpu_backend)->products == PRODUCTS_FUSED;
    uint32_t missing = 0;
    for (uint32_t i = 0; i <= linear_class(chosen->rows_most); i++)
        missing += chosen->algo[i].own;
    for (cuda_algo &a : slow.algo)
        a.own = true;
    bool library = true, own = true;
    for (uint32_t rows : {1u, 7u, 8u, 9u, 16u, 33u, 64u, 65u, 128u, 200u, 300u, 600u, 1100u}) {
        if (rows > most) break;
        for (const bool add : {false, true}) {
            const uint32_t first = r.below(most - rows + 1);
            const float scale = add ? 0.3f : 0.7f;
            const std::vector<float> want = p.want(fused, first, rows, scale, add);
            const std::vector<float> got = p.run(b.gpu, p.packed, first, rows, scale, add);
            const bool a = same_bits(got, want);
            if (!a) p.tell(got, first, scale, add);
            w->shape = &slow;
            const bool s = same_bits(p.run(b.gpu, p.packed, first, rows, scale, add), want);
            w->shape = chosen;
            if (!a || !s) printf("        %u rows from %u%s\n", rows, first, add ? ", added" : "");
            library &= a, own &= s;
        }
    }
    check_that(library, "linear %u x %u: bits of the definition at every class of rows", n, k);
    check_that(own, "linear %u x %u: the same by the kernel of the definition", n, k);
    if (k % 8 == 0) /* else rows are not aligned as it likes them */
        check_that(missing == 0, "linear %u x %u: %u classes of rows without cublasLt", n, k,
                   missing);
}

void two_backends_case(gpu_bench &b, random_source &r, uint32_t n, uint32_t k)
{
    product p(b, r, n, k, 300);
    kern_backend *backend = nullptr;
    kern_stream *stream = nullptr;
    kern_weight *weight = nullptr;
    const kern_config config = {"cuda", 0, nullptr};
    expect_ok(kern_backend_open(&config, &backend), "a second backend");
    expect_ok(kern_stream_create(backend, &stream), "stream");
    p.pack(backend, &weight);
    bool same = strcmp(kern_numerics_id(backend), kern_numerics_id(b.gpu_backend)) == 0;
    for (uint32_t rows : {1u, 16u, 45u, 100u, 300u})
        same &= same_bits(p.run(stream, weight, 0, rows, 0.7f, true),
                          p.run(b.gpu, p.packed, 0, rows, 0.7f, true));
    check_that(same, "linear %u x %u: a backend opened later has the same id and bits", n, k);
    kern_weight_free(weight);
    kern_stream_destroy(stream);
    kern_backend_close(backend);
}

} // namespace

void check_linear(gpu_bench &b, random_source &r, bool small)
{
    two_backends_case(b, r, 192, 256);
    if (cuda_device_of(b.gpu_backend)->products == PRODUCTS_LIBRARY) {
        printf("note    products have the library's own bits here, not the definition's\n");
        return;
    }
    classes_case(b, r, 192, 256, 33);
    if (small) return;
    classes_case(b, r, 192, 256, 1200);
    classes_case(b, r, 100, 250, 100);
    classes_case(b, r, 512, 4096, 1200);
    classes_case(b, r, 4096, 1024, 1200);
    classes_case(b, r, 256, 16384, 300);
    classes_case(b, r, 4608, 4096, 300);
    two_backends_case(b, r, 4096, 1024);
}
