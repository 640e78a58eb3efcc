/* kernels/linear.cuh - what linear.cu (the op) and linear_algo.cu (the choice) share: one product,
 * and the algorithms of a shape of weights by classes of rows.
 *
 * Threads: as kernels.h. Memory: shapes belong to the backend, and last as long as it. */
#ifndef KERNELS_LINEAR_CUH
#define KERNELS_LINEAR_CUH

#include "kernels/cuda.cuh"

enum { LINEAR_CLASSES = 12 };

constexpr uint64_t LINEAR_WORKSPACE_BYTES = 32ull << 20; /* cublasLt's part of a stream's */

/* Most rows of each class but the last. An algorithm loses up to a tenth where half a tile is
 * filled, so classes are narrow where batches of decode rows are. */
constexpr uint32_t LINEAR_CLASS_ROWS[LINEAR_CLASSES - 1] = {8,  16,  24,  32,  48,  64,
                                                            96, 128, 256, 512, 1024};

struct cuda_algo {
    cublasLtMatmulAlgo_t algo;
    bool own; /* none of the library's: the kernel that defines the bits */
};

/* Of every weight [n, k] of one backend. */
struct cuda_shape {
    uint32_t n, k, rows_most; /* more rows go in waves */
    cuda_algo algo[LINEAR_CLASSES];
    cuda_shape *next;
};

/* out[r, c] = residual[r, c] (NULL: 0) + scale * (x weight^T)[r, c] */
struct cuda_product {
    const uint16_t *weight, *x; /* [n, k], [rows, k] bf16 */
    const float *residual;
    float *out;
    uint64_t stride; /* of residual and out */
    uint32_t n, k, rows;
    float scale;
};

/* Column-major views: out^T [n, rows] = weight^T [k, n] transposed times x^T [k, rows]. */
struct cuda_layouts {
    cublasLtMatrixLayoutOpaque_t weight, x, out;
    cublasStatus_t init(uint32_t n, uint32_t k, uint32_t rows, uint64_t stride)
    {
        cublasStatus_t done = cublasLtMatrixLayoutInit(&weight, CUDA_R_16BF, k, n, k);
        if (done == CUBLAS_STATUS_SUCCESS)
            done = cublasLtMatrixLayoutInit(&x, CUDA_R_16BF, k, rows, k);
        if (done != CUBLAS_STATUS_SUCCESS) return done;
        return cublasLtMatrixLayoutInit(&out, CUDA_R_32F, n, rows, (int64_t)stride);
    }
};

static inline uint32_t linear_class(uint32_t rows)
{
    uint32_t c = 0;
    while (c + 1 < LINEAR_CLASSES && rows > LINEAR_CLASS_ROWS[c])
        c++;
    return c;
}

/* linear.cu: by one of the library's algorithms (what it does not take it refuses), and by the
 * kernel that defines the bits of the backend's products. */
cublasStatus_t cuda_product_library(cuda_stream *stream, const cuda_product &p,
                                    const cublasLtMatmulAlgo_t *algo);
void cuda_product_own(cuda_stream *stream, const cuda_product &p);
void cuda_product_slow(cuda_device *d, uint32_t n, uint32_t k); /* warns, once */

/* linear_algo.cu: at open, whether the library has the bits of the definition (d->products). */
status cuda_linear_probe(kern_backend *backend);
/* The shape of a weight whose memory it may write over: another's, or chosen now. */
status cuda_linear_shape(kern_backend *backend, uint32_t n, uint32_t k, uint16_t *memory,
                         const cuda_shape **out_shape);
void cuda_linear_forget(kern_backend *backend); /* at close */

#ifdef __CUDACC__

/* The end of a product by its definition. Where the library adds a residual in one fused operation
 * is its affair; what it does on this device was seen at open. */
__device__ __forceinline__ float cuda_product_end(cuda_products form, float scale, float sum,
                                                  const float *residual)
{
    if (!residual) return scale * sum;
    return form == PRODUCTS_FUSED ? __fmaf_rn(scale, sum, *residual)
                                  : __fadd_rn(__fmul_rn(scale, sum), *residual);
}

#endif
#endif
