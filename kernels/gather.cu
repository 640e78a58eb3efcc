/* kernels/gather.cu - copy arrived blocks into their slots, digest checked in the same pass.
 *
 * Bound: the link. The sources are pinned host memory (host tier or landing zone), read by the SMs
 * directly: one copy engine operation a block costs more than the block. A few CTAs fill PCIe and
 * leave the rest of the device to attention; the digest (kernels/xxh3.cuh) hides under the loads.
 *
 * A block whose arrival failed, or whose bytes do not have the digest, is unmapped and its row made
 * void: bytes that were written to the slot before the digest was known are never looked at. */
#include "kernels/xxh3.cuh"

namespace
{

/* 16 CTAs with 16 to 32 KiB under way each cover the link's latency. */
constexpr uint32_t GATHER_CTAS = 16;

struct gather_params {
    const kern_miss *miss;
    kern_arrival *arrival;
    const int32_t *published;
    kern_table table;
    uint8_t *pool;
    int32_t *row_status;
    uint32_t block_bytes;
};

__device__ __forceinline__ int32_t load_acquire(const int32_t *from)
{
    int32_t v;
    asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

__device__ void fail_miss(const gather_params &p, uint32_t i, const kern_miss &miss, int32_t why)
{
    const uint64_t list = (uint64_t)miss.seq * p.table.kv_heads + miss.kv_head;
    if (p.table.block_of[list * p.table.max_entries + miss.entry] == miss.block) {
        p.table.entry_of[list * p.table.max_blocks + miss.block] = -1;
        p.table.block_of[list * p.table.max_entries + miss.entry] = -1;
    }
    p.arrival[i].state = why;
    if (miss.row >= 0 && p.row_status) atomicCAS(p.row_status + miss.row, (int)STATUS_OK, why);
}

/* What a CTA needs to know of its next items, fetched for 32 of them at once: a read of host memory
 * takes longer than a block. */
struct alignas(16) gather_item {
    kern_miss miss;
    const uint8_t *source;
    uint64_t seed, digest;
    int32_t state;
};

struct gather_shared {
    xxh_shared xxh;
    gather_item item[32];
};

/* Items first, first + step, ... of this CTA, by the lanes of warp 0; returns how many. */
__device__ uint32_t fetch_items(const gather_params &p, gather_shared &s, uint32_t first,
                                uint32_t published)
{
    __syncthreads();
    const uint32_t i = first + threadIdx.x * gridDim.x;
    if (threadIdx.x < 32 && i < published) {
        const uint4 *m = reinterpret_cast<const uint4 *>(p.miss + i);
        const uint4 *a = reinterpret_cast<const uint4 *>(p.arrival + i);
        const uint4 m0 = load_once(m), m1 = load_once(m + 1);
        const uint4 a0 = load_once(a), a1 = load_once(a + 1);
        gather_item &to = s.item[threadIdx.x];
        reinterpret_cast<uint4 *>(&to.miss)[0] = m0;
        reinterpret_cast<uint4 *>(&to.miss)[1] = m1;
        to.source = reinterpret_cast<const uint8_t *>(a0.x | (uint64_t)a0.y << 32);
        to.seed = a0.z | (uint64_t)a0.w << 32;
        to.digest = a1.x | (uint64_t)a1.y << 32;
        to.state = (int32_t)a1.z;
        if (to.state != STATUS_OK)
            fail_miss(p, i, to.miss,
                      to.state == STATUS_PENDING ? (int32_t)STATUS_DEADLINE : to.state);
    }
    __syncthreads();
    return min(32u, first < published ? (published - first - 1) / gridDim.x + 1 : 0);
}

/* Pieces of 16 KiB in a row over all items of the CTA: the loads of one are under way while the one
 * before is hashed and stored. Warp 0 finishes a digest while the others go on. */
template <bool VERIFY>
__global__ void __launch_bounds__(XXH_THREADS, 4)
    gather_kernel(const __grid_constant__ gather_params p)
{
    __shared__ gather_shared s;
    static_assert(sizeof(kern_miss) == 32 && sizeof(kern_arrival) == 32, "read as two uint4 each");
    const uint32_t published = (uint32_t)load_acquire(p.published);
    const uint32_t blocks = p.block_bytes / XXH_BLOCK;
    const uint32_t pieces = (blocks + XXH_PIECE_BLOCKS - 1) / XXH_PIECE_BLOCKS;
    xxh_begin(s.xxh);
    for (uint32_t base = blockIdx.x; base < published; base += 32 * gridDim.x) {
        const uint32_t items = fetch_items(p, s, base, published);
        xxh_piece now, next;
        if (s.item[0].state == STATUS_OK) xxh_load(now, s.item[0].source, 0, blocks);
        for (uint32_t k = 0; k < items * pieces; k++) {
            const uint32_t n = k / pieces, first = k % pieces * XXH_PIECE_BLOCKS;
            const uint32_t after = (k + 1) / pieces;
            if (after < items && s.item[after].state == STATUS_OK)
                xxh_load(next, s.item[after].source, (k + 1) % pieces * XXH_PIECE_BLOCKS, blocks);
            const gather_item &item = s.item[n];
            if (item.state == STATUS_OK)
                xxh_store<VERIFY>(s.xxh, s.xxh.sum[n % 2], now,
                                  p.pool + (uint64_t)item.miss.slot * p.block_bytes, first, blocks,
                                  item.seed);
            now = next;
            if (!VERIFY || after == n) continue;
            __syncthreads();
            if (threadIdx.x >= 8 || item.state != STATUS_OK) continue;
            const uint64_t digest = xxh_finish(s.xxh, s.xxh.sum[n % 2], p.block_bytes, item.seed);
            if (threadIdx.x == 0 && digest != item.digest)
                fail_miss(p, base + n * gridDim.x, item.miss, STATUS_CORRUPT);
        }
    }
}

} // namespace

extern "C" status cuda_gather(kern_stream *stream, const kern_gather_args *args)
{
    if (args->block_bytes % XXH_BLOCK != 0 || args->block_bytes > XXH_BLOCK * XXH_BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "gather on CUDA moves whole KiB up to 64 KiB, not %u bytes",
                    args->block_bytes);
    gather_params p = {};
    p.miss = args->exchange->miss;
    p.arrival = args->exchange->arrival;
    p.published = (const int32_t *)&args->exchange->published;
    p.table = args->table;
    p.pool = args->pool;
    p.row_status = args->row_status;
    p.block_bytes = args->block_bytes;
    cudaStream_t handle = cuda_stream_of(stream)->handle;
    if (args->verify)
        gather_kernel<true><<<GATHER_CTAS, XXH_THREADS, 0, handle>>>(p);
    else
        gather_kernel<false><<<GATHER_CTAS, XXH_THREADS, 0, handle>>>(p);
    return cuda_launched("gather");
}
