/* kernels/install.cu - between steps: arrived blocks into entries of their sequence. Free entries
 * first, then the least recently used before keep_step, then the lowest. Two launches:
 *
 *   install  one CTA a (sequence, KV head): it goes through the list, 256 misses at a time, and
 *            gives entries to its own in order, so the outcome is the CPU's. Bound: latency.
 *   gather   gather.cu, for all that got one. Bound: the link. */
#include "kernels/cuda.cuh"

extern "C" status cuda_gather_given(kern_stream *stream, const kern_gather_args *args);

namespace
{

constexpr uint32_t THREADS = 256, WARPS = THREADS / 32, ENTRIES_MAX = 24000;
constexpr unsigned long long TAKEN = ~0ull; /* rank of an entry that may not be given away */

struct install_params {
    kern_miss *miss;
    kern_arrival *arrival;
    const int32_t *published;
    kern_table table;
    const uint32_t *keep_step;
    uint32_t step;
};

struct install_shared {
    unsigned long long best[WARPS];
    uint32_t warp[WARPS];
    uint32_t index[THREADS]; /* of the CTA's own misses among those looked at */
    int32_t block[THREADS];
};

/* Free first, then by last use, then the lowest: the least number is the entry to give. */
__device__ __forceinline__ unsigned long long entry_rank(int32_t held, uint32_t used, uint32_t keep,
                                                         uint32_t entry)
{
    if (held < 0) return entry;
    return used >= keep ? TAKEN : ((unsigned long long)used + 1) << 24 | entry;
}

/* The least rank, known to all threads. */
__device__ unsigned long long least_rank(install_shared &s, const unsigned long long *rank,
                                         uint32_t entries)
{
    unsigned long long best = TAKEN;
    for (uint32_t e = threadIdx.x; e < entries; e += THREADS)
        best = min(best, rank[e]);
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        best = min(best, __shfl_xor_sync(~0u, best, i));
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = best;
    __syncthreads();
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++)
        best = min(best, s.best[w]);
    return best;
}

/* Which of misses first .. first + THREADS - 1 are this CTA's, in order; returns how many. */
__device__ uint32_t own_misses(const install_params &p, install_shared &s, uint32_t first,
                               uint32_t published, int32_t seq, int32_t head)
{
    const uint32_t i = first + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int32_t block = -1;
    bool own = false;
    if (i < published) {
        kern_miss *m = p.miss + i;
        block = m->block;
        own = m->seq == seq && m->kv_head == head;
        if (own) {
            m->row = m->entry = m->slot = -1;
            own = load_relaxed(&p.arrival[i].state) == STATUS_OK;
        }
    }
    const uint32_t mine = __ballot_sync(~0u, own);
    __syncthreads();
    if (lane == 0) s.warp[warp] = __popc(mine);
    __syncthreads();
    uint32_t at = __popc(mine & ((1u << lane) - 1)), all = 0;
    for (uint32_t w = 0; w < WARPS; w++) {
        if (w < warp) at += s.warp[w];
        all += s.warp[w];
    }
    if (own) s.index[at] = i, s.block[at] = block;
    __syncthreads();
    return all;
}

__global__ void __launch_bounds__(THREADS) install_kernel(const __grid_constant__ install_params p)
{
    cuda_begin();
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    __shared__ install_shared s;
    unsigned long long *rank = reinterpret_cast<unsigned long long *>(shared_bytes);
    const int32_t head = (int32_t)blockIdx.x, seq = (int32_t)blockIdx.y;
    const uint64_t place = (uint64_t)seq * p.table.kv_heads + head;
    int32_t *entry_of = p.table.entry_of + place * p.table.max_blocks;
    int32_t *block_of = p.table.block_of + place * p.table.max_entries;
    uint32_t *used = p.table.used_step + place * p.table.max_entries;
    const int32_t *slot_of = p.table.slot_of + place * p.table.max_entries;
    const uint32_t entries = min((uint32_t)p.table.entries[seq], p.table.max_entries);
    const uint32_t published = (uint32_t)cta_load_acquire(p.published);
    const uint32_t keep = p.keep_step[seq];
    for (uint32_t e = threadIdx.x; e < entries; e += THREADS)
        rank[e] = entry_rank(block_of[e], used[e], keep, e);
    for (uint32_t first = 0; first < published; first += THREADS) {
        const uint32_t own = own_misses(p, s, first, published, seq, head);
        for (uint32_t k = 0; k < own; k++) {
            const int32_t block = s.block[k];
            const unsigned long long best = least_rank(s, rank, entries);
            const bool resident = entry_of[block] >= 0;
            __syncthreads(); /* all have looked */
            const uint32_t i = s.index[k], entry = (uint32_t)best & 0xffffffu;
            if (threadIdx.x == 0 && (resident || best == TAKEN)) {
                p.arrival[i].state = resident ? STATUS_STALE : STATUS_BUSY;
            } else if (threadIdx.x == 0) {
                if (block_of[entry] >= 0) entry_of[block_of[entry]] = -1;
                entry_of[block] = (int32_t)entry;
                block_of[entry] = block;
                used[entry] = p.step;
                rank[entry] = entry_rank(block, p.step, keep, entry);
                p.miss[i].entry = (int32_t)entry;
                p.miss[i].slot = slot_of[entry];
            }
            __syncthreads();
        }
    }
}

} // namespace

extern "C" status cuda_install(kern_stream *stream, const kern_install_args *args)
{
    if (args->table.max_entries > ENTRIES_MAX)
        return FAIL(UNSUPPORTED, "install on CUDA has up to %u entries a head, not %u", ENTRIES_MAX,
                    args->table.max_entries);
    install_params p = {};
    p.miss = args->exchange->miss;
    p.arrival = args->exchange->arrival;
    p.published = (const int32_t *)&args->exchange->published;
    p.table = args->table;
    p.keep_step = args->keep_step;
    p.step = args->step;
    TRY_CUDA(cudaFuncSetAttribute(install_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)(ENTRIES_MAX * sizeof(unsigned long long))));
    const dim3 grid(args->table.kv_heads, args->table.seqs);
    const size_t bytes = args->table.max_entries * sizeof(unsigned long long);
    cuda_launch(cuda_stream_of(stream), {grid, THREADS, bytes}, install_kernel, p);
    TRY(cuda_launched("install"));
    kern_gather_args gather = {};
    gather.exchange = args->exchange;
    gather.table = args->table;
    gather.pool = args->pool;
    gather.block_bytes = args->block_bytes;
    gather.verify = args->verify;
    return cuda_gather_given(stream, &gather);
}
