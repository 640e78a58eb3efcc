/* kernels/xxh3.cuh - copy a block and take its XXH3-64 under a seed, in one pass, by one CTA.
 *
 * XXH3 (xxHash, Yann Collet; specification in doc/xxhash_spec.md of that project) for inputs beyond
 * 240 bytes: eight 64-bit accumulators take stripes of 64 bytes; after each block of 16 stripes (1
 * KiB) they are scrambled. What a stripe adds does not depend on the accumulators, so
 *
 *   warp:   the sum of 16 stripes of one 1 KiB block; lane l holds bytes 16 l .. 16 l + 15 and 512
 * more, which is accumulators 2 (l % 4) and + 1 of stripes l / 4 and l / 4 + 8; butterfly over l /
 * 4 chain:  eight lanes, one an accumulator, add those sums in order and scramble between them
 *
 * The last stripe of the input uses its own key offset and is not followed by a scramble. Sizes:
 * whole KiB up to 64 KiB. */
#ifndef KERNELS_XXH3_CUH
#define KERNELS_XXH3_CUH

#include "kernels/cuda.cuh"

constexpr uint32_t XXH_BLOCK = 1024, XXH_BLOCKS_MAX = 64, XXH_THREADS = 256;
constexpr uint64_t XXH_P32_1 = 0x9E3779B1u, XXH_P32_2 = 0x85EBCA77u, XXH_P32_3 = 0xC2B2AE3Du;
constexpr uint64_t XXH_P64_1 = 0x9E3779B185EBCA87u, XXH_P64_2 = 0xC2B2AE3D27D4EB4Fu,
                   XXH_P64_3 = 0x165667B19E3779F9u, XXH_P64_4 = 0x85EBCA77C2B2AE63u,
                   XXH_P64_5 = 0x27D4EB2F165667C5u;

/* The published secret as little-endian words. */
static __device__ const uint64_t XXH_SECRET[24] = {
    0xbe4ba423396cfeb8u, 0x1cad21f72c81017cu, 0xdb979083e96dd4deu, 0x1f67b3b7a4a44072u,
    0x78e5c0cc4ee679cbu, 0x2172ffcc7dd05a82u, 0x8e2443f7744608b8u, 0x4c263a81e69035e0u,
    0xcb00c391bb52283cu, 0xa32e531b8b65d088u, 0x4ef90da297486471u, 0xd8acdea946ef1938u,
    0x3f349ce33f76faa8u, 0x1d4f0bc7c7bbdcf9u, 0x3159b4cd4be0518au, 0x647378d9c97e9fc8u,
    0xc3ebd33483acc5eau, 0xeb6313faffa081c5u, 0x49daf0b751dd0d17u, 0x9e68d429265516d3u,
    0xfca1477d58be162bu, 0xce31d07ad1b8f88fu, 0x280416958f3acb45u, 0x7e404bbbcafbd7afu,
};

static __device__ const uint64_t XXH_START[8] = {XXH_P32_3, XXH_P64_1, XXH_P64_2, XXH_P64_3,
                                                 XXH_P64_4, XXH_P32_2, XXH_P64_5, XXH_P32_1};

struct xxh_shared {
    uint64_t secret[24]; /* unseeded: xxh_begin */
    uint64_t digest;
};

/* Sums of the 1 KiB blocks of an input, in shared memory. */
typedef uint64_t (*xxh_sums)[8];

/* Once a kernel, by all threads of the CTA. */
__device__ __forceinline__ void xxh_begin(xxh_shared &s)
{
    if (threadIdx.x < 24) s.secret[threadIdx.x] = XXH_SECRET[threadIdx.x];
    __syncthreads();
}

/* A word of the secret as `seed` changes it: even words grow by it, odd ones shrink. */
__device__ __forceinline__ uint64_t xxh_word(const xxh_shared &s, uint32_t word, uint64_t seed)
{
    return s.secret[word] + (word & 1 ? 0 - seed : seed);
}

/* Eight bytes of the seeded secret at byte offset 8 word + shift / 8. */
__device__ __forceinline__ uint64_t xxh_key(const xxh_shared &s, uint32_t word, uint32_t shift,
                                            uint64_t seed)
{
    return (xxh_word(s, word, seed) >> shift) | (xxh_word(s, word + 1, seed) << (64 - shift));
}

__device__ __forceinline__ void xxh_take(uint64_t &a0, uint64_t &a1, uint64_t v0, uint64_t v1,
                                         uint64_t key0, uint64_t key1)
{
    const uint64_t x0 = v0 ^ key0, x1 = v1 ^ key1;
    a0 += v1 + (uint64_t)(uint32_t)x0 * (uint32_t)(x0 >> 32);
    a1 += v0 + (uint64_t)(uint32_t)x1 * (uint32_t)(x1 >> 32);
}

__device__ __forceinline__ uint64_t xxh_fold(uint64_t a, uint64_t b)
{
    return (a * b) ^ __umul64hi(a, b);
}

/* Loads that may come from pinned host memory: past the caches, each byte once. */
__device__ __forceinline__ uint4 load_once(const void *from)
{
    uint4 v;
    asm volatile("ld.global.cv.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(from));
    return v;
}

/* Sum of one 1 KiB block's stripes, for lanes 0 .. 3 two accumulators each, into shared memory. */
__device__ __forceinline__ void xxh_block_sum(xxh_shared &s, uint64_t (&sum)[8], bool last,
                                              uint64_t seed, uint4 low, uint4 high)
{
    const uint32_t lane = threadIdx.x % 32, pair = 2 * (lane % 4), stripe = lane / 4;
    uint64_t a0 = 0, a1 = 0;
    const uint64_t v0 = low.x | (uint64_t)low.y << 32, v1 = low.z | (uint64_t)low.w << 32;
    const uint64_t w0 = high.x | (uint64_t)high.y << 32, w1 = high.z | (uint64_t)high.w << 32;
    xxh_take(a0, a1, v0, v1, xxh_word(s, stripe + pair, seed),
             xxh_word(s, stripe + pair + 1, seed));
    uint64_t key0 = xxh_word(s, stripe + 8 + pair, seed);
    uint64_t key1 = xxh_word(s, stripe + 8 + pair + 1, seed);
    if (last && stripe == 7) { /* byte offset 192 - 64 - 7 = 121 */
        key0 = xxh_key(s, 15 + pair, 8, seed);
        key1 = xxh_key(s, 16 + pair, 8, seed);
    }
    xxh_take(a0, a1, w0, w1, key0, key1);
#pragma unroll
    for (int i = 4; i < 32; i <<= 1) {
        a0 += __shfl_xor_sync(~0u, a0, i);
        a1 += __shfl_xor_sync(~0u, a1, i);
    }
    if (lane < 4) sum[pair] = a0, sum[pair + 1] = a1;
}

/* Lanes 0 .. 7 of one warp, an accumulator each: through `blocks` blocks that are followed by a
 * scramble. */
__device__ __forceinline__ uint64_t xxh_chain(const xxh_shared &s, xxh_sums sum, uint32_t blocks,
                                              uint64_t seed)
{
    const uint32_t lane = threadIdx.x % 8;
    uint64_t acc = XXH_START[lane];
    const uint64_t key = xxh_word(s, 16 + lane, seed);
#pragma unroll 4
    for (uint32_t b = 0; b < blocks; b++) {
        acc += sum[b][lane];
        acc = ((acc ^ (acc >> 47)) ^ key) * XXH_P32_1;
    }
    return acc;
}

/* The same lanes, when all of an input of `bytes` is in their accumulators: its digest. */
__device__ __forceinline__ uint64_t xxh_avalanche(const xxh_shared &s, uint64_t acc, uint32_t bytes,
                                                  uint64_t seed)
{
    acc ^= xxh_key(s, 1 + threadIdx.x % 8, 24, seed); /* byte offset 11 */
    uint64_t h = xxh_fold(acc, __shfl_xor_sync(0xffu, acc, 1));
    h += __shfl_xor_sync(0xffu, h, 2);
    h += __shfl_xor_sync(0xffu, h, 4);
    h += bytes * XXH_P64_1;
    h = (h ^ (h >> 37)) * 0x165667919E3779F9u;
    return h ^ (h >> 32);
}

/* Of an input of whole KiB, the sums of whose last block hold its last stripe. */
__device__ __forceinline__ uint64_t xxh_finish(const xxh_shared &s, xxh_sums sum, uint32_t bytes,
                                               uint64_t seed)
{
    const uint32_t last = bytes / XXH_BLOCK - 1;
    return xxh_avalanche(s, xxh_chain(s, sum, last, seed) + sum[last][threadIdx.x % 8], bytes,
                         seed);
}

/* What one thread holds of a piece of 16 KiB: 16 bytes at two places of two 1 KiB blocks. */
struct xxh_piece {
    uint4 v[2][2];
};
constexpr uint32_t XXH_PIECE_BLOCKS = 2 * XXH_THREADS / 32;

/* Blocks first .. first + XXH_PIECE_BLOCKS - 1 of an input of `blocks` 1 KiB blocks. */
__device__ __forceinline__ void xxh_load(xxh_piece &p, const uint8_t *from, uint32_t first,
                                         uint32_t blocks)
{
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t b = first + threadIdx.x / 32 + i * (XXH_THREADS / 32);
        if (b >= blocks) continue;
        p.v[i][0] = load_once(from + b * XXH_BLOCK + lane * 16);
        p.v[i][1] = load_once(from + b * XXH_BLOCK + 512 + lane * 16);
    }
}

/* Store the piece (NULL: not), and add its blocks' sums when VERIFY. */
template <bool VERIFY>
__device__ __forceinline__ void xxh_store(xxh_shared &s, xxh_sums sum, const xxh_piece &p,
                                          uint8_t *to, uint32_t first, uint32_t blocks,
                                          uint64_t seed)
{
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t b = first + threadIdx.x / 32 + i * (XXH_THREADS / 32);
        const uint32_t at = b * XXH_BLOCK + threadIdx.x % 32 * 16;
        if (b >= blocks) continue;
        if (to) *(uint4 *)(to + at) = p.v[i][0], *(uint4 *)(to + at + 512) = p.v[i][1];
        if (VERIFY) xxh_block_sum(s, sum[b], b + 1 == blocks, seed, p.v[i][0], p.v[i][1]);
    }
}

/* By a CTA of XXH_THREADS: move a block of `bytes` (to NULL: only read it), its stripes' sums into
 * `sum` when VERIFY. `now` holds the block's first piece; the first of the block at `next` (NULL:
 * none) is loaded into it meanwhile, so that loads never stop between blocks. */
template <bool VERIFY>
__device__ __forceinline__ void xxh_move(xxh_shared &s, xxh_sums sum, xxh_piece &now,
                                         const uint8_t *from, uint8_t *to, uint32_t bytes,
                                         uint64_t seed, const uint8_t *next)
{
    const uint32_t blocks = bytes / XXH_BLOCK;
    for (uint32_t first = 0; first < blocks; first += XXH_PIECE_BLOCKS) {
        xxh_piece after = now;
        if (first + XXH_PIECE_BLOCKS < blocks)
            xxh_load(after, from, first + XXH_PIECE_BLOCKS, blocks);
        else if (next)
            xxh_load(after, next, 0, blocks);
        xxh_store<VERIFY>(s, sum, now, to, first, blocks, seed);
        now = after;
    }
}

/* Move one block, and return its digest under `seed` to every thread when VERIFY. */
template <bool VERIFY>
__device__ uint64_t xxh_copy(xxh_shared &s, xxh_sums sum, const uint8_t *from, uint8_t *to,
                             uint32_t bytes, uint64_t seed)
{
    xxh_piece piece = {};
    if (VERIFY) __syncthreads(); /* the previous digest has been read */
    xxh_load(piece, from, 0, bytes / XXH_BLOCK);
    xxh_move<VERIFY>(s, sum, piece, from, to, bytes, seed, nullptr);
    if (!VERIFY) return 0;
    __syncthreads();
    if (threadIdx.x < 8) {
        const uint64_t digest = xxh_finish(s, sum, bytes, seed);
        if (threadIdx.x == 0) s.digest = digest;
    }
    __syncthreads();
    return s.digest;
}

#endif
