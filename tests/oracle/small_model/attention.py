"""Block-sparse attention with an importance bias (Triton, forward and backward) and NOSA selection.

Shapes used everywhere: B sequences, T tokens (a multiple of 64), HQ query heads, HK KV heads,
G = HQ / HK, D = head size, NB = T / 64 blocks, M = T / 16 - 1 complete windows.

    q    [B, T, HQ, D]  bf16        k, v [B, T, HK, D]  bf16
    u    [B, T, HK]     fp32        importance, added to the attention logits
    mask [B, HK, NB, T] uint8       1 where the token's queries attend to the block

A budget is a tuple (init, local, query, total) of block counts: the first `init` blocks and the
current one with the `local` before it are forced; `query` counts the picks by query score, forced
ones included (0: no query scores); `total` is what importance fills the selection up to.
"""
import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
BLOCK = 64


@triton.jit
def _load_block(k_ptr, v_ptr, u_ptr, kv_base, u_base, n, HK: tl.constexpr, D: tl.constexpr):
    """K and V [64, D] of block n of one KV head, and its u [64] in units of log 2."""
    cols = n * 64 + tl.arange(0, 64)
    off = kv_base + cols[:, None] * (HK * D) + tl.arange(0, D)[None, :]
    u = tl.load(u_ptr + u_base + cols * HK) * 1.4426950408889634
    return tl.load(k_ptr + off), tl.load(v_ptr + off), u


@triton.jit
def _logits(q, k, u, n, tok, picked, scale_log2, SPARSE: tl.constexpr):
    """Logits [BM, 64] in units of log 2 and the mask of those that count."""
    cols = n * 64 + tl.arange(0, 64)
    s = tl.dot(q, tl.trans(k)) * scale_log2 + u[None, :]
    mask = cols[None, :] <= tok[:, None]
    if SPARSE:
        mask = mask & (picked[:, None] > 0)
    return s, mask


@triton.jit
def _fwd_tile(q, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok, picked, m, l, acc, scale_log2,
              HK: tl.constexpr, D: tl.constexpr, SPARSE: tl.constexpr):
    """One online-softmax step: maximum m [BM], sum l [BM], weighted values acc [BM, D]."""
    k, v, u = _load_block(k_ptr, v_ptr, u_ptr, kv_base, u_base, n, HK, D)
    s, mask = _logits(q, k, u, n, tok, picked, scale_log2, SPARSE)
    s = tl.where(mask, s, -1e30)
    m_new = tl.maximum(m, tl.max(s, 1))
    p = tl.where(mask, tl.exp2(s - m_new[:, None]), 0.0)
    alpha = tl.exp2(m - m_new)
    l = l * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None] + tl.dot(p.to(v.dtype), v)
    return m_new, l, acc


@triton.jit
def _fwd(q_ptr, k_ptr, v_ptr, u_ptr, mask_ptr, o_ptr, lse_ptr, T, NB, scale_log2,
         HQ: tl.constexpr, HK: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
         BT: tl.constexpr, SPARSE: tl.constexpr):
    """One program: BT tokens times the G query heads of one KV head (longest rows first)."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // HK
    h = bh % HK
    BM: tl.constexpr = BT * G
    rows = tl.arange(0, BM)
    tok = tile * BT + rows // G
    head = h * G + rows % G
    q_off = ((b * T + tok) * HQ + head)[:, None] * D + tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + q_off)
    m = tl.full([BM], -1e30, tl.float32)
    l = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, D], tl.float32)
    kv_base = b * T * HK * D + h * D
    u_base = b * T * HK + h
    mask_base = (b * HK + h) * NB * T
    for n in range(0, (tile * BT + BT - 1) // 64 + 1):
        if SPARSE:
            picked = tl.load(mask_ptr + mask_base + n * T + tok).to(tl.int32)
            if tl.max(picked, 0) > 0:
                m, l, acc = _fwd_tile(q, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok, picked,
                                      m, l, acc, scale_log2, HK, D, True)
        else:
            m, l, acc = _fwd_tile(q, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok, tok,
                                  m, l, acc, scale_log2, HK, D, False)
    tl.store(o_ptr + q_off, (acc / l[:, None]).to(q.dtype))
    tl.store(lse_ptr + (b * T + tok) * HQ + head, m + tl.log2(l))


@triton.jit
def _dq_tile(q, do, lse, delta, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok, picked, dq,
             scale_log2, HK: tl.constexpr, D: tl.constexpr, SPARSE: tl.constexpr):
    k, v, u = _load_block(k_ptr, v_ptr, u_ptr, kv_base, u_base, n, HK, D)
    s, mask = _logits(q, k, u, n, tok, picked, scale_log2, SPARSE)
    p = tl.where(mask, tl.exp2(s - lse[:, None]), 0.0)
    ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
    return dq + tl.dot(ds.to(k.dtype), k)


@triton.jit
def _bwd_dq(q_ptr, k_ptr, v_ptr, u_ptr, mask_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr,
            T, NB, scale_log2, scale,
            HQ: tl.constexpr, HK: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
            BT: tl.constexpr, SPARSE: tl.constexpr):
    """Same grid as _fwd; delta = sum(do * o) per row."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // HK
    h = bh % HK
    BM: tl.constexpr = BT * G
    rows = tl.arange(0, BM)
    tok = tile * BT + rows // G
    head = h * G + rows % G
    q_off = ((b * T + tok) * HQ + head)[:, None] * D + tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + q_off)
    do = tl.load(do_ptr + q_off)
    lse = tl.load(lse_ptr + (b * T + tok) * HQ + head)
    delta = tl.load(delta_ptr + (b * T + tok) * HQ + head)
    dq = tl.zeros([BM, D], tl.float32)
    kv_base = b * T * HK * D + h * D
    u_base = b * T * HK + h
    mask_base = (b * HK + h) * NB * T
    for n in range(0, (tile * BT + BT - 1) // 64 + 1):
        if SPARSE:
            picked = tl.load(mask_ptr + mask_base + n * T + tok).to(tl.int32)
            if tl.max(picked, 0) > 0:
                dq = _dq_tile(q, do, lse, delta, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok,
                              picked, dq, scale_log2, HK, D, True)
        else:
            dq = _dq_tile(q, do, lse, delta, k_ptr, v_ptr, u_ptr, kv_base, u_base, n, tok,
                          tok, dq, scale_log2, HK, D, False)
    tl.store(dq_ptr + q_off, (dq * scale).to(q.dtype))


@triton.jit
def _dkv_tile(k, v, u, q_ptr, do_ptr, lse_ptr, delta_ptr, t0, b, h, n, picked, dk, dv, du,
              T, scale_log2, HQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
              BT: tl.constexpr, SPARSE: tl.constexpr):
    BM: tl.constexpr = BT * G
    rows = tl.arange(0, BM)
    tok = t0 + rows // G
    head = h * G + rows % G
    q_off = ((b * T + tok) * HQ + head)[:, None] * D + tl.arange(0, D)[None, :]
    q = tl.load(q_ptr + q_off)
    do = tl.load(do_ptr + q_off)
    lse = tl.load(lse_ptr + (b * T + tok) * HQ + head)
    delta = tl.load(delta_ptr + (b * T + tok) * HQ + head)
    s, mask = _logits(q, k, u, n, tok, picked, scale_log2, SPARSE)
    p = tl.where(mask, tl.exp2(s - lse[:, None]), 0.0)
    dv += tl.dot(tl.trans(p.to(q.dtype)), do)
    ds = p * (tl.dot(do, tl.trans(v)) - delta[:, None])
    du += tl.sum(ds, 0)
    dk += tl.dot(tl.trans(ds.to(q.dtype)), q)
    return dk, dv, du


@triton.jit
def _bwd_dkv(q_ptr, k_ptr, v_ptr, u_ptr, mask_ptr, do_ptr, lse_ptr, delta_ptr,
             dk_ptr, dv_ptr, du_ptr, T, NB, scale_log2, scale,
             HQ: tl.constexpr, HK: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
             BT: tl.constexpr, SPARSE: tl.constexpr):
    """One program: one block of one KV head, over all later query tiles."""
    n = tl.program_id(0)
    bh = tl.program_id(1)
    b = bh // HK
    h = bh % HK
    cols = n * 64 + tl.arange(0, 64)
    rows = tl.arange(0, BT * G)
    off = b * T * HK * D + h * D + cols[:, None] * (HK * D) + tl.arange(0, D)[None, :]
    k = tl.load(k_ptr + off)
    v = tl.load(v_ptr + off)
    u_off = b * T * HK + h + cols * HK
    u = tl.load(u_ptr + u_off) * 1.4426950408889634
    dk = tl.zeros([64, D], tl.float32)
    dv = tl.zeros([64, D], tl.float32)
    du = tl.zeros([64], tl.float32)
    mask_base = (b * HK + h) * NB * T + n * T
    for t0 in range(n * 64, T, BT):
        if SPARSE:
            picked = tl.load(mask_ptr + mask_base + t0 + rows // G).to(tl.int32)
            if tl.max(picked, 0) > 0:
                dk, dv, du = _dkv_tile(k, v, u, q_ptr, do_ptr, lse_ptr, delta_ptr, t0, b, h, n,
                                       picked, dk, dv, du, T, scale_log2, HQ, G, D, BT, True)
        else:
            dk, dv, du = _dkv_tile(k, v, u, q_ptr, do_ptr, lse_ptr, delta_ptr, t0, b, h, n,
                                   rows, dk, dv, du, T, scale_log2, HQ, G, D, BT, False)
    tl.store(dk_ptr + off, (dk * scale).to(k.dtype))
    tl.store(dv_ptr + off, dv.to(k.dtype))
    tl.store(du_ptr + u_off, du)


@torch.library.custom_op("nosa::attention", mutates_args=())
def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, u: torch.Tensor,
              mask: torch.Tensor, sparse: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention with logits q.k / sqrt(D) + u -> (output like q, base-2 LSE [B, T, HQ]).

    With sparse=False the mask is not read and every earlier token counts.
    """
    q, k, v, u = q.contiguous(), k.contiguous(), v.contiguous(), u.contiguous()
    B, T, HQ, D = q.shape
    HK = k.shape[2]
    o = torch.empty_like(q)
    lse = torch.empty(B, T, HQ, device=q.device, dtype=torch.float32)
    tokens = 16 if sparse else 32
    _fwd[(T // tokens, B * HK)](
        q, k, v, u, mask, o, lse, T, T // BLOCK, LOG2_E / math.sqrt(D),
        HQ, HK, HQ // HK, D, tokens, sparse, num_warps=4, num_stages=2 if sparse else 3)
    return o, lse


@attention.register_fake
def _(q, k, v, u, mask, sparse):
    return (torch.empty_like(q, memory_format=torch.contiguous_format),
            torch.empty(q.shape[:3], device=q.device, dtype=torch.float32))


@torch.library.custom_op("nosa::attention_backward", mutates_args=())
def attention_backward(
        do: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, u: torch.Tensor,
        mask: torch.Tensor, o: torch.Tensor, lse: torch.Tensor, sparse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v (bf16) and u (fp32), shaped like them."""
    do, q, k, v, u = (x.contiguous() for x in (do, q, k, v, u))
    B, T, HQ, D = q.shape
    HK = k.shape[2]
    delta = (do.float() * o.float()).sum(-1)
    dq, dk, dv, du = (torch.empty_like(x) for x in (q, k, v, u))
    tokens, warps = (16, 4) if sparse else (32, 8)
    shape = (T, T // BLOCK, LOG2_E / math.sqrt(D), 1 / math.sqrt(D), HQ, HK, HQ // HK, D)
    _bwd_dq[(T // tokens, B * HK)](
        q, k, v, u, mask, do, lse, delta, dq, *shape, tokens, sparse,
        num_warps=warps, num_stages=2)
    _bwd_dkv[(T // BLOCK, B * HK)](
        q, k, v, u, mask, do, lse, delta, dk, dv, du, *shape, tokens, sparse,
        num_warps=warps, num_stages=2)
    return dq, dk, dv, du


@attention_backward.register_fake
def _(do, q, k, v, u, mask, o, lse, sparse):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format)
                 for x in (q, k, v, u))


def _save_for_backward(ctx, inputs, output):
    q, k, v, u, mask, ctx.sparse = inputs
    ctx.save_for_backward(q, k, v, u, mask, *output)


def _backward(ctx, do, _dlse):
    q, k, v, u, mask, o, lse = ctx.saved_tensors
    return *attention_backward(do, q, k, v, u, mask, o, lse, ctx.sparse), None, None


attention.register_autograd(_backward, setup_context=_save_for_backward)


def windows(x):
    """Means over 32 tokens every 16, complete windows only: [B, T, ...] -> [B, M, ...] fp32."""
    half = x.float().unflatten(1, (-1, 16)).mean(2)
    return (half[:, :-1] + half[:, 1:]) * 0.5


def pool(x):
    """Maximum over the windows that intersect each block: [N, C, M] -> [N, C, NB]."""
    return F.max_pool1d(x, 5, 4, 1, ceil_mode=True)


def _query_scores(q, kc, row, first):
    """Block scores of a chunk of queries. q [B, HK, G * C, D] (scaled), kc [B, HK, D, M],
    row [C] = last token whose windows each query sees -> [B, HK, C, blocks] fp32."""
    B, HK, _, M = kc.shape
    C = len(row)
    s = torch.matmul(q, kc).view(B, HK, -1, C, M)
    visible = (16 * torch.arange(M, device=q.device) + 31)[None] <= row[:, None]
    s.masked_fill_(~visible, float('-inf'))
    p = torch.softmax(s, -1, dtype=torch.float32).sum(2)
    if first:                                   # rows that see no window yet
        p = torch.nan_to_num(p, nan=0.0)
    p.masked_fill_(~visible, float('-inf'))
    return pool(p.view(1, -1, M)).view(B, HK, C, -1)


def _top(scores, count, hidden):
    """Boolean mask of the `count` best blocks of each row, without the hidden ones."""
    best = scores.topk(min(count, scores.shape[-1]), -1, sorted=False).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True) & ~hidden


def select_masks(q, k, u, budget, lag=0, fp32=False, want_picks=False, chunk=1024):
    """NOSA selection for every token -> mask [B, HK, NB, T] (and the free query picks alike).

    lag=1: a query sees only the windows complete one token earlier (lookahead, see model.py).
    fp32=True scores in fp32 instead of bf16, for comparison with a reference.
    """
    init, local, query, total = budget
    B, T, HQ, D = q.shape
    HK = k.shape[2]
    dev = q.device
    dtype = torch.float32 if fp32 else q.dtype
    kc = windows(k).to(q.dtype).to(dtype).permute(0, 2, 3, 1)
    uc = pool(windows(u).to(torch.bfloat16).float().permute(0, 2, 1))          # [B, HK, NB]
    qs = (q.to(dtype) / math.sqrt(D)).view(B, T, HK, HQ // HK, D).permute(0, 2, 3, 1, 4)
    mask = torch.zeros(B, HK, T // BLOCK, T, dtype=torch.uint8, device=dev)
    picks = torch.zeros_like(mask) if want_picks else None
    for t0 in range(0, T, chunk):
        t1 = min(T, t0 + chunk)
        n = t1 // BLOCK
        shape = (B, HK, t1 - t0, n)
        row = torch.arange(t0, t1, device=dev)
        block = torch.arange(n, device=dev)[None]
        current = (row // BLOCK)[:, None]
        future = block > current
        forced = ((block < init) | (block >= current - local)) & ~future
        everything = t1 <= total * BLOCK
        if everything:
            mask[:, :, :n, t0:t1] = (~future).expand(shape).transpose(2, 3).to(torch.uint8)
            if not want_picks:
                continue
        chosen = forced.expand(shape)
        if query > 0:
            s = _query_scores(qs[:, :, :, t0:t1].reshape(B, HK, -1, D),
                              kc[..., :t1 // 16 - 1], row - lag, t0 == 0)
            s = s.masked_fill(forced, float('inf')).masked_fill(future, float('-inf'))
            chosen = _top(s, query, future)
        if want_picks:
            picks[:, :, :n, t0:t1] = (chosen & ~forced).transpose(2, 3).to(torch.uint8)
        if everything:
            continue
        s = uc[:, :, None, :n].expand(shape)
        s = s.masked_fill(chosen | forced, float('inf')).masked_fill(future, float('-inf'))
        mask[:, :, :n, t0:t1] = _top(s, total, future).transpose(2, 3).to(torch.uint8)
    return (mask, picks) if want_picks else mask


@torch.library.custom_op("nosa::select", mutates_args=())
def select(q: torch.Tensor, k: torch.Tensor, u: torch.Tensor,
           init: int, local: int, query: int, total: int, lag: int) -> torch.Tensor:
    """select_masks as one opaque operator, so that torch.compile leaves it alone."""
    return select_masks(q, k, u, (init, local, query, total), lag)


@select.register_fake
def _(q, k, u, init, local, query, total, lag):
    B, T = q.shape[:2]
    return torch.empty(B, k.shape[2], T // BLOCK, T, dtype=torch.uint8, device=q.device)
