/* kernels/seal.cu - digests of complete blocks in the pool, and a copy for the host.
 *
 * Bound: one read of the block; with a copy, the link. One CTA a block, kernels/xxh3.cuh. */
#include "kernels/xxh3.cuh"

namespace
{

__global__ void __launch_bounds__(XXH_THREADS) seal_kernel(const __grid_constant__ kern_seal_args a)
{
    cuda_begin();
    __shared__ xxh_shared s;
    __shared__ uint64_t sum[XXH_BLOCKS_MAX][8];
    const uint32_t i = blockIdx.x;
    xxh_begin(s);
    const uint64_t digest = xxh_copy<true>(s, sum, a.pool + (uint64_t)a.slot[i] * a.block_bytes,
                                           a.copy ? a.copy[i] : nullptr, a.block_bytes, a.seed[i]);
    if (threadIdx.x == 0) a.digest[i] = digest;
}

} // namespace

extern "C" status cuda_seal(kern_stream *stream, const kern_seal_args *args)
{
    if (args->n == 0) return STATUS_OK;
    if (args->block_bytes % XXH_BLOCK != 0 || args->block_bytes > XXH_BLOCK * XXH_BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "seal on CUDA takes whole KiB up to 64 KiB, not %u bytes",
                    args->block_bytes);
    cuda_launch(cuda_stream_of(stream), {args->n, XXH_THREADS}, seal_kernel, *args);
    return cuda_launched("seal");
}
