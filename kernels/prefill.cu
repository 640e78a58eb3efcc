/* kernels/prefill.cu - attention of a prompt's rows, on Hopper's warpgroup products.
 *
 * Bound: arithmetic, 4 * D flops a head and selected token. Rows of one sequence read much the same
 * blocks, so a tile of consecutive tokens reads each block once, whoever of them selected it:
 *
 *   widen   u as float, in units of log2, for the sequence
 *   unite   one CTA a tile and KV head: the union of its rows' lists, ascending, with each row's
 *           mask
 *   attend  one CTA a tile and KV head: 128 rows = 128 / G tokens times G heads, two warpgroups of
 *           64. Blocks pass through shared memory, four ahead (cp.async into the tensor cores'
 *           swizzle). While a warpgroup weighs block j + 1 (softmax), its product of block j's
 *           weights and values runs; the next logits were started before it.
 *
 * Order: a row's blocks ascending, whatever part of its list they stand in, one state (largest,
 * sum, values) a row, one block after another. A block that another row of the tile asked for adds
 * weights of 0 and multiplies by 1, which moves no bit; so neither the tile nor the chunk shows.
 * It is not the order of decode (attend.cu): what was prefilled is recomputed by prefill.
 *
 * Precision: q and the weights are rounded to bf16, as K and V are; logits, weights and sums are
 * float32. Source: NOSA, arXiv 2510.13602; online softmax: Milakov and Gimelshein, arXiv
 * 1805.02867; products beside softmax: FlashAttention-3, arXiv 2407.08608. */
#include "kernels/prefill.cuh"
#include "kernels/wgmma.cuh"

namespace
{

constexpr int THREADS = PREFILL_THREADS, ROWS = PREFILL_ROWS;
constexpr uint32_t UNITE_THREADS = 256, UNITE_BLOCKS = 1024;

/* A block of a tile's union. full: all rows of the tile read all of it. */
struct alignas(16) prefill_entry {
    int32_t block, slot;
    uint32_t full, reserved;
};

struct prefill_params {
    kern_attend_args a;
    float *bias;          /* [kv_heads, tokens] log2(e) * u of the sequence */
    prefill_entry *entry; /* [tiles, kv_heads, room] */
    uint8_t *mask;        /* [tiles, kv_heads, room, tokens of a tile] */
    uint32_t *count;      /* [tiles, kv_heads] */
    prefill_shape shape;
    uint32_t first_row, rows, kv_heads, tile_tokens, tiles, room; /* rows, tiles: of the launch */
};

/* ---- widen ----------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(256) widen_kernel(const __grid_constant__ prefill_params p)
{
    cuda_begin_short();
    const uint32_t tokens = p.a.summary.max_tokens, head = blockIdx.y;
    const uint32_t last = (uint32_t)p.a.row_pos[p.a.rows - 1];
    const uint16_t *u = p.a.summary.u + ((uint64_t)p.a.row_seq[0] * p.kv_heads + head) * tokens;
    const uint64_t to = (uint64_t)head * ((tokens + 63) / 64 * 64);
    for (uint32_t t = blockIdx.x * 256 + threadIdx.x; t <= last && t < tokens; t += gridDim.x * 256)
        p.bias[to + t] = bf16_float(u[t]) * CUDA_LOG2E;
}

/* ---- unite ----------------------------------------------------------------------------------- */

struct unite_shared {
    int32_t slot[UNITE_BLOCKS];
    uint32_t warp[UNITE_THREADS / 32];
};

/* Exclusive sum over the CTA; out_all: of all threads. */
__device__ uint32_t unite_scan(unite_shared &s, uint32_t x, uint32_t &out_all)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t up = x, below = 0;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        const uint32_t other = __shfl_up_sync(~0u, up, i);
        if (lane >= (uint32_t)i) up += other;
    }
    if (lane == 31) s.warp[warp] = up;
    __syncthreads();
    out_all = 0;
    for (uint32_t w = 0; w < UNITE_THREADS / 32; w++) {
        if (w < warp) below += s.warp[w];
        out_all += s.warp[w];
    }
    __syncthreads();
    return below + up - x;
}

/* Entries of the window of blocks from `first` on: slots and masks into shared memory. */
__device__ void unite_mark(const prefill_params &p, unite_shared &s, uint8_t *mask, uint32_t first)
{
    const uint32_t tile = blockIdx.x, head = blockIdx.y;
    for (uint32_t i = threadIdx.x; i < UNITE_BLOCKS; i += UNITE_THREADS)
        s.slot[i] = -1;
    for (uint32_t i = threadIdx.x; i < UNITE_BLOCKS * p.tile_tokens / 4; i += UNITE_THREADS)
        ((uint32_t *)mask)[i] = 0;
    __syncthreads();
    for (uint32_t t = 0; t < p.tile_tokens; t++) {
        const uint32_t row = p.first_row + tile * p.tile_tokens + t;
        if (row >= p.first_row + p.rows) break;
        const uint64_t list = (uint64_t)row * p.kv_heads + head, at = list * p.a.max_select;
        const uint32_t count = (uint32_t)max(p.a.count[list], 0);
        for (uint32_t e = threadIdx.x; e < count; e += UNITE_THREADS) {
            const uint32_t b = (uint32_t)p.a.block[at + e] - first; /* -1 is beyond any window */
            const int32_t slot = p.a.slot[at + e];
            if (b >= UNITE_BLOCKS || slot < 0) continue;
            s.slot[b] = slot; /* the same from every row */
            mask[b * p.tile_tokens + t] = p.a.mask[at + e] & 15;
        }
    }
    __syncthreads();
}

__global__ void __launch_bounds__(UNITE_THREADS)
    unite_kernel(const __grid_constant__ prefill_params p)
{
    cuda_begin();
    extern __shared__ __align__(16) uint8_t mask[];
    __shared__ unite_shared s;
    const uint32_t tile = blockIdx.x, head = blockIdx.y, tokens = p.tile_tokens;
    const uint32_t from = p.first_row + tile * tokens,
                   end = min(from + tokens, p.first_row + p.rows);
    const int32_t pos = p.a.row_pos[from], last = p.a.row_pos[end - 1];
    const uint64_t place = ((uint64_t)tile * p.kv_heads + head) * p.room;
    uint32_t count = 0;
    for (uint32_t first = 0; first <= (uint32_t)last / KERN_BLOCK; first += UNITE_BLOCKS) {
        unite_mark(p, s, mask, first);
        for (uint32_t i = 0; i < UNITE_BLOCKS; i += UNITE_THREADS) {
            const uint32_t b = i + threadIdx.x;
            uint32_t all = 15, any = 0, total;
            for (uint32_t t = 0; t < tokens; t++) {
                any |= mask[b * tokens + t];
                all &= from + t < end ? mask[b * tokens + t] : 15;
            }
            const bool there = any != 0 && s.slot[b] >= 0;
            const uint32_t at = count + unite_scan(s, there, total);
            count += total;
            if (!there || at >= p.room) continue;
            const int32_t block = (int32_t)(first + b);
            const bool full = all == 15 && block * KERN_BLOCK + KERN_BLOCK - 1 <= pos;
            p.entry[place + at] = {block, s.slot[b], full, 0};
            for (uint32_t t = 0; t < tokens; t++)
                p.mask[(place + at) * tokens + t] = mask[b * tokens + t];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) p.count[tile * p.kv_heads + head] = min(count, p.room);
}

/* ---- attend ---------------------------------------------------------------------------------- */

template <int D> struct prefill_shared {
    constexpr static int STAGES = D == 128 ? 5 : 8;
    uint8_t query[2][D / 64][64 * 128];                 /* panels of bf16 */
    uint8_t stage[STAGES][2][D / 64][KERN_BLOCK * 128]; /* K, V */
    float bias[STAGES][KERN_BLOCK];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int D> struct prefill_cta {
    constexpr static int STAGES = prefill_shared<D>::STAGES;
    const prefill_params &p;
    prefill_shared<D> &s;
    const uint32_t group, lane,
        row; /* warpgroup; the first of this thread's two rows, in the tile */
    const uint32_t tile, head, entries;
    const prefill_entry *entry;
    const uint8_t *mask;
    const float *bias;
    bool biased;
    int32_t last, pos[2]; /* position of the tile's last row, of this thread's two */
    uint32_t token[2];    /* of this thread's rows, within the tile */
    float logit[32], acc[D / 2], max[2], sum[2];
    uint32_t weight[4][4];

    __device__ prefill_cta(const prefill_params &params, prefill_shared<D> &shared, uint32_t t)
        : p(params), s(shared), group(threadIdx.x / 128), lane(threadIdx.x % 32),
          row(group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4), tile(t), head(blockIdx.y),
          entries(p.count[t * p.kv_heads + head])
    {
        const uint64_t place = ((uint64_t)tile * p.kv_heads + head) * p.room;
        entry = p.entry + place;
        mask = p.mask + place * p.tile_tokens;
        bias = p.bias + (uint64_t)head * ((p.a.summary.max_tokens + 63) / 64 * 64);
        const uint32_t first = p.first_row + tile * p.tile_tokens, end = p.first_row + p.rows;
        biased = p.a.selectors[p.a.row_selector[first]].bias;
        last = p.a.row_pos[min(first + p.tile_tokens, end) - 1];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            token[h] = (row + 8 * h) / p.shape.padded_heads;
            const uint32_t r = first + token[h];
            pos[h] = r < end ? p.a.row_pos[r] : -1;
            max[h] = -INFINITY, sum[h] = 0.0f;
        }
#pragma unroll
        for (int i = 0; i < D / 2; i++)
            acc[i] = 0.0f;
    }

    /* Start copying entry j. Rows beyond the tile's last arrive as zeros: what stands in the pool
     * there may be anything, even NaN, and 0 * NaN would show. */
    __device__ __forceinline__ void issue(uint32_t j)
    {
        const uint32_t stage = j % STAGES;
        const prefill_entry e = entry[j];
        const uint8_t *from = p.a.pool + (uint64_t)e.slot * p.a.block_bytes;
#pragma unroll
        for (int i = 0; i < KERN_BLOCK * D / 8 / THREADS; i++) {
            const uint32_t c = i * THREADS + threadIdx.x, r = c / (D / 8), chunk = c % (D / 8);
            const uint32_t bytes = e.block * KERN_BLOCK + (int)r <= last ? 16 : 0;
            const uint32_t to = r * 128 + ((chunk % 8) ^ (r & 7)) * 16;
            copy_async16_or_zero(shared_address(s.stage[stage][0][chunk / 8] + to), from + c * 16,
                                 bytes);
            copy_async16_or_zero(shared_address(s.stage[stage][1][chunk / 8] + to),
                                 from + KERN_BLOCK * D * 2 + c * 16, bytes);
        }
        if (biased && threadIdx.x < KERN_BLOCK / 4)
            copy_async16(shared_address(s.bias[stage] + threadIdx.x * 4),
                         bias + e.block * KERN_BLOCK + threadIdx.x * 4);
    }

    /* logit = q K^T of entry j, started. */
    __device__ __forceinline__ void start_logits(uint32_t j)
    {
        const uint32_t q = shared_address(s.query[group]);
        const uint32_t k = shared_address(s.stage[j % STAGES][0]);
#pragma unroll
        for (int i = 0; i < D / 16; i++) {
            const uint32_t at = i / 4 * 8192 + i % 4 * 32;
            wgmma_64x64(logit, wgmma_panel(q + at, 0), wgmma_panel(k + at, 0), i > 0);
        }
        wgmma_commit();
    }

    /* acc += weights times V of entry j, started. */
    __device__ __forceinline__ void start_values(uint32_t j)
    {
        const uint32_t v = shared_address(s.stage[j % STAGES][1]);
#pragma unroll
        for (int i = 0; i < 4; i++)
            wgmma_rows(acc, weight[i], wgmma_panel(v + i * 2048, 8192));
        wgmma_commit();
    }

    /* -inf where row h does not read column c of entry e. */
    __device__ __forceinline__ void hide(const prefill_entry &e, uint32_t j)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t m = mask[(uint64_t)j * p.tile_tokens + token[h]];
            const int left = pos[h] - e.block * KERN_BLOCK; /* columns up to it */
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const int c = 8 * n + 2 * (int)(lane % 4) + i;
                    if (!((m >> (n / 2)) & 1) || c > left) logit[4 * n + 2 * h + i] = -INFINITY;
                }
        }
    }

    /* Logits of entry j become weights against the running maximum; shrink: what the state before
     * is to be multiplied by. */
    __device__ __forceinline__ void weigh(uint32_t j, float (&shrink)[2])
    {
        const float *add = s.bias[j % STAGES];
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float2 b = make_float2(0.0f, 0.0f);
            if (biased) b = *(const float2 *)(add + 8 * n + 2 * (lane % 4));
            logit[4 * n] = fmaf(logit[4 * n], p.shape.scale, b.x);
            logit[4 * n + 1] = fmaf(logit[4 * n + 1], p.shape.scale, b.y);
            logit[4 * n + 2] = fmaf(logit[4 * n + 2], p.shape.scale, b.x);
            logit[4 * n + 3] = fmaf(logit[4 * n + 3], p.shape.scale, b.y);
        }
        const prefill_entry e = entry[j];
        if (!e.full) hide(e, j);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = max[h];
#pragma unroll
            for (int n = 0; n < 8; n++)
                top = fmaxf(top, fmaxf(logit[4 * n + 2 * h], logit[4 * n + 2 * h + 1]));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            const float from = top == -INFINITY ? 0.0f : top;
            shrink[h] = fast_exp2(max[h] - from); /* of -inf: 0 */
            max[h] = top;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    logit[4 * n + i] = fast_exp2(logit[4 * n + i] - from);
                    total += logit[4 * n + i];
                }
            sum[h] = fmaf(sum[h], shrink[h], total); /* this thread's columns */
        }
    }

    __device__ __forceinline__ void pack()
    {
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const __nv_bfloat162 two =
                    __floats2bfloat162_rn(logit[8 * i + 2 * r], logit[8 * i + 2 * r + 1]);
                weight[i][r] = *reinterpret_cast<const uint32_t *>(&two);
            }
    }

    __device__ __forceinline__ void shrink_values(const float (&shrink)[2])
    {
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            acc[4 * n] *= shrink[0], acc[4 * n + 1] *= shrink[0];
            acc[4 * n + 2] *= shrink[1], acc[4 * n + 3] *= shrink[1];
        }
    }

    __device__ void store()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[h] + __shfl_xor_sync(~0u, sum[h], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            const float by = total > 0.0f ? 1.0f / total : 0.0f;
            const uint32_t g = (row + 8 * h) % p.shape.padded_heads;
            if (pos[h] < 0 || g >= p.shape.group_heads) continue;
            const uint64_t r = p.first_row + tile * p.tile_tokens + token[h];
            const uint64_t to =
                (r * p.a.heads + head * p.shape.group_heads + g) * D + 2 * (lane % 4);
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                const float x = acc[4 * n + 2 * h] * by, y = acc[4 * n + 2 * h + 1] * by;
                if (p.a.out_bf16)
                    *(uint32_t *)(p.a.out_bf16 + to + 8 * n) = bf16_pack2(x, y);
                else
                    *(float2 *)(p.a.out + to + 8 * n) = make_float2(x, y);
            }
        }
    }

    __device__ void run()
    {
        float shrink[2];
#pragma unroll
        for (uint32_t j = 0; j < STAGES - 1; j++) {
            if (j < entries) issue(j);
            copy_async_commit();
        }
        prefill_load_query<D>(s.query, p.shape, p.a.q, p.a.row_stride,
                              p.first_row + tile * p.tile_tokens, head);
        copy_async_wait<STAGES - 2>();
        wgmma_publish();
        __syncthreads();
        if (entries == 0) {
            store();
            return;
        }
        wgmma_begin();
        start_logits(0);
        wgmma_wait<0>();
        weigh(0, shrink);
        pack();
        uint32_t j = 0;
#pragma unroll 1
        for (; j + 1 < entries; j++) {
            copy_async_wait<STAGES - 3>(); /* entry j + 1 is there */
            wgmma_publish();
            __syncthreads(); /* and entry j - 1 has been read by all */
            wgmma_begin();
            start_logits(j + 1);
            start_values(j);
            if (j + STAGES - 1 < entries) issue(j + STAGES - 1);
            copy_async_commit();
            wgmma_wait<1>();
            weigh(j + 1, shrink);
            wgmma_wait<0>();
            shrink_values(shrink);
            pack();
        }
        wgmma_begin();
        start_values(j);
        wgmma_wait<0>();
        store();
    }
};

#endif

template <int D>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ prefill_params p)
{
    cuda_begin();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t shared_bytes[];
    prefill_shared<D> &s = *reinterpret_cast<prefill_shared<D> *>(shared_bytes);
    prefill_cta<D> cta(p, s, p.tiles - 1 - blockIdx.x); /* the longest lists first */
    cta.run();
#endif
}

/* ---- launcher -------------------------------------------------------------------------------- */

/* Rows in waves whose unions fit the workspace. */
template <int D> status prefill_rows(cuda_stream *stream, prefill_params &p)
{
    const uint32_t blocks = cuda_blocks(p.a.summary.max_tokens, KERN_BLOCK);
    const uint64_t most = (uint64_t)p.tile_tokens * p.a.max_select;
    const uint64_t bias_bytes = (uint64_t)p.kv_heads * blocks * KERN_BLOCK * sizeof(float);
    p.room = most < blocks ? (uint32_t)most : blocks;
    const uint64_t list_bytes =
        (uint64_t)p.room * (sizeof(prefill_entry) + p.tile_tokens) + sizeof(uint32_t) + 32;
    const uint64_t space = CUDA_WORKSPACE_BYTES - 256;
    if (bias_bytes + list_bytes * p.kv_heads > space)
        return FAIL(UNSUPPORTED, "prefill on CUDA: %u tokens do not fit the workspace",
                    p.a.summary.max_tokens);
    uint64_t wave = (space - bias_bytes) / (list_bytes * p.kv_heads);
    const uint64_t need = cuda_blocks(p.a.rows, p.tile_tokens);
    if (wave > need) wave = need;
    p.bias = reinterpret_cast<float *>(stream->workspace);
    p.entry = reinterpret_cast<prefill_entry *>(stream->workspace + bias_bytes);
    p.count = reinterpret_cast<uint32_t *>(p.entry + wave * p.kv_heads * p.room);
    p.mask = reinterpret_cast<uint8_t *>(p.count + wave * p.kv_heads);
    const size_t bytes = sizeof(prefill_shared<D>), marks = UNITE_BLOCKS * p.tile_tokens;
    TRY_CUDA(cudaFuncSetAttribute(prefill_kernel<D>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    TRY_CUDA(cudaFuncSetAttribute(unite_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)(UNITE_BLOCKS * ROWS)));
    cuda_launch(stream, {dim3(64, p.kv_heads), 256}, widen_kernel, p);
    for (uint64_t tile = 0; tile < need; tile += wave) {
        p.tiles = (uint32_t)(need - tile < wave ? need - tile : wave);
        p.first_row = (uint32_t)(tile * p.tile_tokens);
        const uint64_t rest = p.a.rows - p.first_row, fit = (uint64_t)p.tiles * p.tile_tokens;
        p.rows = (uint32_t)(rest < fit ? rest : fit);
        const dim3 grid(p.tiles, p.kv_heads);
        cuda_launch(stream, {grid, UNITE_THREADS, marks}, unite_kernel, p);
        cuda_launch(stream, {grid, THREADS, bytes}, prefill_kernel<D>, p);
    }
    return cuda_launched("prefill");
}

} // namespace

status cuda_prefill_attend(cuda_stream *stream, const kern_attend_args *args)
{
    const uint32_t d = args->summary.head_dim;
    prefill_params p = {};
    p.a = *args;
    p.shape = prefill_shape_of(args->rows, args->heads, args->summary.kv_heads, d);
    p.kv_heads = p.shape.kv_heads;
    p.tile_tokens = p.shape.tile_tokens;
    return d == 64 ? prefill_rows<64>(stream, p) : prefill_rows<128>(stream, p);
}
