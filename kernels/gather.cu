/* kernels/gather.cu - copy arrived blocks into their slots, digest checked in the same pass.
 *
 * Bound: the link. The sources are pinned host memory (host tier or landing zone), read by the SMs
 * directly: one copy engine operation a block costs more than the block. A few CTAs fill PCIe and
 * leave the rest of the device to attention; the digest (kernels/xxh3.cuh) hides under the loads:
 * eight warps of a CTA move blocks and sum their stripes, a ninth makes digests of the sums, so
 * that nobody who moves waits for arithmetic, or for stores to be seen.
 *
 * As `bring` it waits for what has not arrived, each item by the lane that needs to know of it. Of
 * each item of a plan it tells attend.cu, which may be waiting in another stream, that it is done.
 *
 * A block whose arrival failed, or whose bytes do not have the digest, is unmapped and its row made
 * void: bytes that were written to the slot before the digest was known are never looked at. */
#include "kernels/xxh3.cuh"

extern "C" status cuda_wait(kern_stream *stream, const kern_wait_args *args);

namespace
{

/* CTAs that read, with 16 to 32 KiB under way each. Twelve fill the link; more only stand in line
 * before it, and other reads of the device's memory with them: attention beside sixteen has 85 % of
 * its speed, beside twelve 90, beside eight, which take 94 % of the link, 95 (H200, README). */
constexpr uint32_t GATHER_CTAS = CUDA_BESIDE_CTAS, READERS = 12, READERS_AHEAD = 8;
static_assert(READERS <= GATHER_CTAS && READERS_AHEAD <= GATHER_CTAS, "of those launched");
constexpr uint32_t THREADS = XXH_THREADS + 32;

struct gather_params {
    const kern_miss *miss;
    const kern_arrival *seen; /* the device's copy, where a PENDING one has its answer in arrival */
    kern_arrival *arrival;
    const int32_t *published;
    uint32_t own_tag;     /* of a list in the device's memory */
    uint32_t *coming;     /* NULL, or by a miss's place: 0 when it is done with */
    uint64_t deadline_ns; /* of what is PENDING, on the device's timer; 0: it is late already */
    kern_table table;
    uint8_t *pool;
    int32_t *row_status;
    uint32_t block_bytes;
    uint32_t readers; /* of a list with more than two items a CTA */
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

/* The item is in the pool, or will not be. */
__device__ __forceinline__ void miss_done(const gather_params &p, const kern_miss &miss)
{
    if (p.coming) store_release_device(p.coming + miss.place, 0);
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
                                uint32_t end, uint32_t step)
{
    __syncthreads();
    const uint32_t i = first + threadIdx.x * step;
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
        if (to.state != STATUS_OK) {
            fail_miss(p, i, to.miss,
                      to.state == STATUS_PENDING ? (int32_t)STATUS_DEADLINE : to.state);
            miss_done(p, to.miss);
        }
    }
    __syncthreads();
    return min(32u, first < end ? (end - first - 1) / step + 1 : 0);
}

/* Named barriers of all threads, two of each by turns: a block's sums are there; they have been
 * used. */
enum { BARRIER_THERE = 1, BARRIER_USED = 3 };

template <int BARRIER> __device__ __forceinline__ void barrier_arrive(uint32_t turn)
{
    if (turn == 0) asm volatile("bar.arrive %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
    if (turn == 1) asm volatile("bar.arrive %0, %1;" ::"n"(BARRIER + 1), "n"(THREADS) : "memory");
}

template <int BARRIER> __device__ __forceinline__ void barrier_await(uint32_t turn)
{
    if (turn == 0) asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
    if (turn == 1) asm volatile("bar.sync %0, %1;" ::"n"(BARRIER + 1), "n"(THREADS) : "memory");
}

/* The CTA's first warps: items in a row, the loads of each begun while the one before is stored.
 * moved: blocks of this CTA so far. */
template <bool VERIFY, uint32_t BLOCKS>
__device__ __forceinline__ void move_items(const gather_params &p, gather_shared<BLOCKS> &s,
                                           uint32_t items, uint32_t &moved)
{
    const uint32_t blocks = p.block_bytes / XXH_BLOCK;
    xxh_piece piece = {};
    if (items > 0 && s.item[0].state == STATUS_OK) xxh_load(piece, s.item[0].source, 0, blocks);
    for (uint32_t n = 0; n < items; n++) {
        const gather_item &item = s.item[n];
        const uint8_t *next = nullptr;
        if (n + 1 < items && s.item[n + 1].state == STATUS_OK) next = s.item[n + 1].source;
        if (item.state != STATUS_OK) {
            if (next) xxh_load(piece, next, 0, blocks);
            continue;
        }
        const uint32_t turn = moved++ % 2;
        if (moved > 2) barrier_await<BARRIER_USED>(turn);
        xxh_move<VERIFY>(s.xxh, s.sum[turn], piece, item.source,
                         p.pool + (uint64_t)item.miss.slot * p.block_bytes, p.block_bytes,
                         item.seed, next);
        barrier_arrive<BARRIER_THERE>(turn);
    }
}

/* The last warp, which moves nothing and so may wait for what others have stored: digests, and who
 * waits for the blocks. */
template <bool VERIFY, uint32_t BLOCKS>
__device__ __forceinline__ void finish_items(const gather_params &p, gather_shared<BLOCKS> &s,
                                             uint32_t first, uint32_t step, uint32_t items,
                                             uint32_t &moved)
{
    for (uint32_t n = 0; n < items; n++) {
        const gather_item &item = s.item[n];
        if (item.state != STATUS_OK) continue;
        const uint32_t turn = moved++ % 2;
        barrier_await<BARRIER_THERE>(turn);
        if (VERIFY && threadIdx.x % 32 < 8) {
            const uint64_t digest = xxh_finish(s.xxh, s.sum[turn], p.block_bytes, item.seed);
            if (threadIdx.x % 32 == 0 && digest != item.digest)
                fail_miss(p, first + n * step, item.miss, STATUS_CORRUPT);
        }
        __syncwarp();
        barrier_arrive<BARRIER_USED>(turn);
        if (threadIdx.x % 32 == 0) miss_done(p, item.miss);
    }
}

/* How many items there are. Of a list in the device's memory who waits for its blocks may go on
 * before every CTA has begun, and the plan of another layer may then have taken its place: what is
 * left of this gather has nothing to do. */
__device__ uint32_t items_of(const gather_params &p)
{
    if (p.seen == p.arrival) return (uint32_t)cta_load_acquire(p.published);
    __shared__ uint64_t word;
    if (threadIdx.x == 0) word = load_acquire_device64((const uint64_t *)p.published);
    __syncthreads();
    return (uint32_t)(word >> 32) == p.own_tag ? (uint32_t)word : 0;
}

template <bool VERIFY, uint32_t BLOCKS>
__global__ void __launch_bounds__(THREADS, 3) gather_kernel(const __grid_constant__ gather_params p)
{
    cuda_begin();
    __shared__ gather_shared<BLOCKS> s;
    static_assert(sizeof(kern_miss) == 32 && sizeof(kern_arrival) == 32, "read as two uint4 each");
    const uint32_t count = items_of(p);
    const uint32_t step = count > 2 * gridDim.x ? p.readers : gridDim.x;
    const bool moves = threadIdx.x < XXH_THREADS;
    uint32_t moved = 0;
    if (blockIdx.x >= step) return;
    xxh_begin(s.xxh);
    for (uint32_t base = blockIdx.x; base < count; base += 32 * step) {
        const uint32_t items = fetch_items(p, s, base, count, step);
        if (moves)
            move_items<VERIFY>(p, s, items, moved);
        else
            finish_items<VERIFY>(p, s, base, step, items, moved);
    }
    for (uint32_t i = moved < 2 ? 0 : moved - 2; moves && i < moved; i++)
        barrier_await<BARRIER_USED>(i % 2); /* leaves no barrier half full */
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
    p.own_tag = x->own_tag;
    p.coming = own ? x->coming : nullptr;
    p.deadline_ns = deadline_ns;
    p.table = args->table;
    p.pool = args->pool;
    p.row_status = args->row_status;
    p.block_bytes = args->block_bytes;
    p.readers = args->ahead ? READERS_AHEAD : READERS;
    const cuda_grid grid = {GATHER_CTAS, THREADS};
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
