/* kernels/install.cu - between steps: arrived blocks into entries of their sequence, digest checked
 * in the copy. Free entries first, then the least recently used before keep_step, then the lowest.
 *
 * Bound: the link. The first arrival of a (sequence, KV head) takes all of its list in order, so
 * the outcome is the CPU's; different heads work at once. */
#include "kernels/xxh3.cuh"

namespace
{

constexpr unsigned long long NONE = ~0ull;

struct install_params {
    kern_miss *miss;
    kern_arrival *arrival;
    const int32_t *published;
    kern_table table;
    uint8_t *pool;
    uint32_t block_bytes, step, keep_step;
};

/* Rank (0: free; used_step + 1) and entry in one number; NONE when nothing may go. */
__device__ unsigned long long least_entry(const install_params &p, uint64_t place, uint32_t entries,
                                          unsigned long long *shared)
{
    unsigned long long best = NONE;
    const int32_t *block_of = p.table.block_of + place * p.table.max_entries;
    const uint32_t *used = p.table.used_step + place * p.table.max_entries;
    for (uint32_t e = threadIdx.x; e < entries; e += XXH_THREADS) {
        if (block_of[e] >= 0 && used[e] >= p.keep_step) continue;
        const unsigned long long rank =
            (block_of[e] < 0 ? 0ull : (unsigned long long)used[e] + 1) << 24 | e;
        if (rank < best) best = rank;
    }
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) {
        const unsigned long long other = __shfl_xor_sync(~0u, best, i);
        if (other < best) best = other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t w = 0; w < XXH_THREADS / 32; w++)
        if (shared[w] < best) best = shared[w];
    return best;
}

template <bool VERIFY>
__device__ int32_t install_one(const install_params &p, xxh_shared &s, xxh_sums sum, uint32_t i,
                               kern_miss &miss, unsigned long long *shared)
{
    const uint64_t place = (uint64_t)miss.seq * p.table.kv_heads + miss.kv_head;
    int32_t *entry_of = p.table.entry_of + place * p.table.max_blocks;
    int32_t *block_of = p.table.block_of + place * p.table.max_entries;
    const uint32_t entries = min((uint32_t)p.table.entries[miss.seq], p.table.max_entries);
    miss.entry = miss.slot = -1;
    if (entry_of[miss.block] >= 0) return STATUS_STALE;
    const unsigned long long best = least_entry(p, place, entries, shared);
    if (best == NONE) return STATUS_BUSY;
    const uint32_t entry = (uint32_t)best & 0xffffffu;
    const int32_t slot = p.table.slot_of[place * p.table.max_entries + entry];
    __syncthreads();
    if (threadIdx.x == 0 && block_of[entry] >= 0) {
        entry_of[block_of[entry]] = -1;
        block_of[entry] = -1;
    }
    const uint64_t digest =
        xxh_copy<VERIFY>(s, sum, (const uint8_t *)p.arrival[i].source,
                         p.pool + (uint64_t)slot * p.block_bytes, p.block_bytes, p.arrival[i].seed);
    if (VERIFY && digest != p.arrival[i].digest) return STATUS_CORRUPT;
    if (threadIdx.x == 0) {
        entry_of[miss.block] = (int32_t)entry;
        block_of[entry] = miss.block;
        p.table.used_step[place * p.table.max_entries + entry] = p.step;
    }
    miss.entry = (int32_t)entry;
    miss.slot = slot;
    return STATUS_OK;
}

template <bool VERIFY>
__global__ void __launch_bounds__(XXH_THREADS)
    install_kernel(const __grid_constant__ install_params p)
{
    __shared__ xxh_shared s;
    __shared__ uint64_t sum[XXH_BLOCKS_MAX][8];
    __shared__ unsigned long long shared[XXH_THREADS / 32];
    const uint32_t published = (uint32_t)cta_load_acquire(p.published);
    xxh_begin(s);
    for (uint32_t first = blockIdx.x; first < published; first += gridDim.x) {
        const int32_t seq = p.miss[first].seq, head = p.miss[first].kv_head;
        bool earlier = false;
        for (uint32_t i = threadIdx.x; i < first; i += XXH_THREADS)
            earlier |= p.miss[i].seq == seq && p.miss[i].kv_head == head;
        if (__syncthreads_or(earlier)) continue;
        for (uint32_t i = first; i < published; i++) {
            kern_miss miss = p.miss[i];
            if (miss.seq != seq || miss.kv_head != head) continue;
            const int32_t state = load_acquire(&p.arrival[i].state);
            __syncthreads();
            if (state != STATUS_OK) continue;
            const int32_t done = install_one<VERIFY>(p, s, sum, i, miss, shared);
            if (threadIdx.x == 0) {
                p.miss[i] = miss;
                p.arrival[i].state = done;
            }
            __syncthreads();
        }
    }
}

} // namespace

extern "C" status cuda_install(kern_stream *stream, const kern_install_args *args)
{
    if (args->block_bytes % XXH_BLOCK != 0 || args->block_bytes > XXH_BLOCK * XXH_BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "install on CUDA moves whole KiB up to 64 KiB, not %u bytes",
                    args->block_bytes);
    install_params p = {};
    p.miss = args->exchange->miss;
    p.arrival = args->exchange->arrival;
    p.published = (const int32_t *)&args->exchange->published;
    p.table = args->table;
    p.pool = args->pool;
    p.block_bytes = args->block_bytes;
    p.step = args->step;
    p.keep_step = args->keep_step;
    cudaStream_t handle = cuda_stream_of(stream)->handle;
    const uint32_t ctas = (uint32_t)cuda_device_of(stream->backend)->sms;
    if (args->verify)
        install_kernel<true><<<ctas, XXH_THREADS, 0, handle>>>(p);
    else
        install_kernel<false><<<ctas, XXH_THREADS, 0, handle>>>(p);
    return cuda_launched("install");
}
