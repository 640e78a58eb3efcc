/* kernels/gather.cu - copy arrived blocks into their slots, digest checked in the same pass.
 *
 * Bound: the link. The sources are pinned host memory (host tier or landing zone), read by the SMs
 * directly: one copy engine operation a block costs more than the block. A few CTAs fill PCIe and
 * leave the rest of the device to attention; the digest (kernels/xxh3.cuh) hides under the loads.
 *
 * As `bring` it waits for what has not arrived, each item by the lane that needs to know of it, and
 * at its end tells attend.cu, which may be waiting in another stream.
 *
 * A block whose arrival failed, or whose bytes do not have the digest, is unmapped and its row made
 * void: bytes that were written to the slot before the digest was known are never looked at. */
#include "kernels/xxh3.cuh"

extern "C" status cuda_wait(kern_stream *stream, const kern_wait_args *args);

namespace
{

/* 16 CTAs with 16 to 32 KiB under way each cover the link's latency. */
constexpr uint32_t GATHER_CTAS = CUDA_BESIDE_CTAS;

struct gather_params {
    const kern_miss *miss;
    const kern_arrival *seen; /* the device's copy, where a PENDING one has its answer in arrival */
    kern_arrival *arrival;
    const int32_t *published;
    uint32_t *over;       /* NULL, or counts CTAs that are done */
    uint64_t deadline_ns; /* of what is PENDING, on the device's timer; 0: it is late already */
    kern_table table;
    uint8_t *pool;
    int32_t *row_status;
    uint32_t block_bytes;
};

__device__ void fail_miss(const gather_params &p, uint32_t i, const kern_miss &miss, int32_t why)
{
    const uint64_t list = (uint64_t)miss.seq * p.table.kv_heads + miss.kv_head;
    if (miss.entry >= 0 &&
        p.table.block_of[list * p.table.max_entries + miss.entry] == miss.block) {
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

/* Small, so that a CTA finds room beside one of attend.cu. */
template <uint32_t BLOCKS> struct gather_shared {
    xxh_shared xxh;
    uint64_t sum[2][BLOCKS][8]; /* of the block that is stored, and of the one before */
    gather_item item[32];
};

/* Items first, first + step, ... of this CTA, by the lanes of warp 0; returns how many. */
template <uint32_t BLOCKS>
__device__ uint32_t fetch_items(const gather_params &p, gather_shared<BLOCKS> &s, uint32_t first,
                                uint32_t end)
{
    __syncthreads();
    const uint32_t i = first + threadIdx.x * gridDim.x;
    if (threadIdx.x < 32 && i < end) {
        const uint4 *m = reinterpret_cast<const uint4 *>(p.miss + i);
        const uint4 *a = reinterpret_cast<const uint4 *>(p.seen + i);
        const uint4 m0 = load_once(m), m1 = load_once(m + 1);
        uint4 a0 = load_once(a), a1 = load_once(a + 1);
        int32_t state = (int32_t)a1.z;
        if ((p.seen != p.arrival || p.deadline_ns != 0) && state == STATUS_PENDING) {
            state = await_state((const int32_t *)&p.arrival[i].state, p.deadline_ns);
            __threadfence_system();
            a = reinterpret_cast<const uint4 *>(p.arrival + i);
            a0 = load_once(a), a1 = load_once(a + 1);
        }
        gather_item &to = s.item[threadIdx.x];
        reinterpret_cast<uint4 *>(&to.miss)[0] = m0;
        reinterpret_cast<uint4 *>(&to.miss)[1] = m1;
        to.source = reinterpret_cast<const uint8_t *>(a0.x | (uint64_t)a0.y << 32);
        to.seed = a0.z | (uint64_t)a0.w << 32;
        to.digest = a1.x | (uint64_t)a1.y << 32;
        to.state = state;
        if (to.state != STATUS_OK)
            fail_miss(p, i, to.miss,
                      to.state == STATUS_PENDING ? (int32_t)STATUS_DEADLINE : to.state);
    }
    __syncthreads();
    return min(32u, first < end ? (end - first - 1) / gridDim.x + 1 : 0);
}

/* Items in a row, the loads of each begun while the one before is stored. Warp 0 finishes a digest
 * while the others go on. */
template <bool VERIFY, uint32_t BLOCKS>
__global__ void __launch_bounds__(XXH_THREADS, 4)
    gather_kernel(const __grid_constant__ gather_params p)
{
    cuda_begin();
    __shared__ gather_shared<BLOCKS> s;
    static_assert(sizeof(kern_miss) == 32 && sizeof(kern_arrival) == 32, "read as two uint4 each");
    const uint32_t count = (uint32_t)cta_load_acquire(p.published);
    const uint32_t blocks = p.block_bytes / XXH_BLOCK;
    xxh_begin(s.xxh);
    for (uint32_t base = blockIdx.x; base < count; base += 32 * gridDim.x) {
        const uint32_t items = fetch_items(p, s, base, count);
        xxh_piece piece = {};
        if (s.item[0].state == STATUS_OK) xxh_load(piece, s.item[0].source, 0, blocks);
        for (uint32_t n = 0; n < items; n++) {
            const gather_item &item = s.item[n];
            const uint8_t *next = nullptr;
            if (n + 1 < items && s.item[n + 1].state == STATUS_OK) next = s.item[n + 1].source;
            if (item.state != STATUS_OK) {
                if (next) xxh_load(piece, next, 0, blocks);
                if (VERIFY) __syncthreads(); /* sums are used by turns */
                continue;
            }
            xxh_move<VERIFY>(s.xxh, s.sum[n % 2], piece, item.source,
                             p.pool + (uint64_t)item.miss.slot * p.block_bytes, p.block_bytes,
                             item.seed, next);
            if (!VERIFY) continue;
            __syncthreads();
            if (threadIdx.x >= 8) continue;
            const uint64_t digest = xxh_finish(s.xxh, s.sum[n % 2], p.block_bytes, item.seed);
            if (threadIdx.x == 0 && digest != item.digest)
                fail_miss(p, base + n * gridDim.x, item.miss, STATUS_CORRUPT);
        }
    }
    if (!p.over) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); /* for all: what the barrier has ordered before it */
        (void)atomicAdd(p.over, 1);
    }
}

} // namespace

/* own: the list is a plan's, and stands in the device's memory as well. */
static status gather_list(kern_stream *stream, const kern_gather_args *args, bool own,
                          uint64_t deadline_ns)
{
    if (args->block_bytes % XXH_BLOCK != 0 || args->block_bytes > XXH_BLOCK * XXH_BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "gather on CUDA moves whole KiB up to 64 KiB, not %u bytes",
                    args->block_bytes);
    const kern_exchange *x = args->exchange;
    gather_params p = {};
    p.miss = own ? x->own_miss : x->miss;
    p.seen = own ? x->own_arrival : x->arrival;
    p.arrival = x->arrival;
    p.published = own ? (const int32_t *)x->own_count : (const int32_t *)&x->published;
    p.over = own ? x->own_count + 2 : nullptr;
    p.deadline_ns = deadline_ns;
    p.table = args->table;
    p.pool = args->pool;
    p.row_status = args->row_status;
    p.block_bytes = args->block_bytes;
    const cuda_grid grid = {GATHER_CTAS, XXH_THREADS};
    if (!args->verify)
        cuda_launch(cuda_stream_of(stream), grid, gather_kernel<false, 1>, p);
    else if (args->block_bytes <= 32 * XXH_BLOCK)
        cuda_launch(cuda_stream_of(stream), grid, gather_kernel<true, 32>, p);
    else
        cuda_launch(cuda_stream_of(stream), grid, gather_kernel<true, XXH_BLOCKS_MAX>, p);
    return cuda_launched("gather");
}

extern "C" status cuda_gather(kern_stream *stream, const kern_gather_args *args)
{
    return gather_list(stream, args, args->exchange->own_count != nullptr, 0);
}

/* A list that the host made (install.cu). */
extern "C" status cuda_gather_given(kern_stream *stream, const kern_gather_args *args)
{
    return gather_list(stream, args, false, 0);
}

extern "C" status cuda_bring(kern_stream *stream, const kern_bring_args *args)
{
    const kern_host *host = args->wait.host;
    if (host->pause || !args->wait.exchange->own_count) {
        TRY(cuda_wait(stream, &args->wait));
        return cuda_gather(stream, &args->gather);
    }
    if (host->notify) host->notify(host->self);
    return gather_list(stream, &args->gather, true, cuda_deadline(stream, &args->wait));
}
