/* kernels/wgmma.cuh - Hopper's warpgroup products: 64 rows by four warps, operands in swizzled
 * shared memory, bf16 in, float32 out. Only for code compiled for sm_90a.
 *
 * Shared memory is in panels of 64 columns (128 bytes a row), rows one after another; the 16-byte
 * chunk c of row r stands at c ^ (r % 8), which is the hardware's 128-byte swizzle. A panel begins
 * at a multiple of 1024 bytes. */
#ifndef KERNELS_WGMMA_CUH
#define KERNELS_WGMMA_CUH

#include "kernels/cuda.cuh"

/* The descriptor of a panel: groups of 8 rows stand 1024 bytes apart; `panel_bytes` to the next 64
 * columns, which only an operand that is contiguous along N steps over. */
__device__ __forceinline__ uint64_t wgmma_panel(uint32_t address, uint32_t panel_bytes)
{
    return (uint64_t)((address & 0x3ffffu) >> 4) | (uint64_t)(panel_bytes >> 4) << 16 |
           (uint64_t)(1024u >> 4) << 32 | 1ull << 62;
}

__device__ __forceinline__ void wgmma_begin()
{
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

__device__ __forceinline__ void wgmma_commit()
{
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

template <int PENDING> __device__ __forceinline__ void wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

/* What ordinary stores and cp.async wrote to shared memory, before the tensor cores read it. */
__device__ __forceinline__ void wgmma_publish()
{
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

#define WGMMA_D8(c, i)                                                                             \
    "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]),    \
        "+f"(c[i + 6]), "+f"(c[i + 7])
#define WGMMA_32                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"      \
    "%24,%25,%26,%27,%28,%29,%30,%31}"
#define WGMMA_64                                                                                   \
    "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,"      \
    "%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,"     \
    "%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}"

/* c[64 x 64] = (add ? c : 0) + a[64 x 16] b[64 x 16]^T, both rows contiguous along k. */
__device__ __forceinline__ void wgmma_64x64(float (&c)[32], uint64_t a, uint64_t b, int add)
{
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_32
                 ", %32, %33, p, 1, 1, 0, 0;\n}"
                 : WGMMA_D8(c, 0), WGMMA_D8(c, 8), WGMMA_D8(c, 16), WGMMA_D8(c, 24)
                 : "l"(a), "l"(b), "r"(add));
}

/* c[64 x 64] += a[64 x 16] b[16 x 64]: a in registers, b's rows contiguous along n. */
__device__ __forceinline__ void wgmma_rows(float (&c)[32], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WGMMA_32
                 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
                 : WGMMA_D8(c, 0), WGMMA_D8(c, 8), WGMMA_D8(c, 16), WGMMA_D8(c, 24)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

/* The same with 128 columns in two panels. */
__device__ __forceinline__ void wgmma_rows(float (&c)[64], const uint32_t (&a)[4], uint64_t b)
{
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " WGMMA_64
                 ", {%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
                 : WGMMA_D8(c, 0), WGMMA_D8(c, 8), WGMMA_D8(c, 16), WGMMA_D8(c, 24),
                   WGMMA_D8(c, 32), WGMMA_D8(c, 40), WGMMA_D8(c, 48), WGMMA_D8(c, 56)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
