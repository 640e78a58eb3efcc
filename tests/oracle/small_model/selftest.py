"""Check attention, its gradients and the selection against plain NumPy and PyTorch on a GPU.

    python selftest.py          exits with 1 if a bound is exceeded
"""
import math
import sys

import numpy as np
import torch

from attention import BLOCK, attention, select, select_masks, windows

B, T, HQ, HK, D = 2, 3072, 8, 2, 64
G = HQ // HK
BUDGET = (1, 4, 10, 16)
ROWS = [0, 1, 14, 15, 30, 31, 62, 63, 64, 65, 127, 1000, 1022, 1023, 1024, 1025, 1087, 1088, 1089,
        1151, 1152, *range(1200, T, 61)]


def top(scores, count):
    """Indices of the largest scores; of equal ones the smaller index."""
    return np.argsort(-scores, kind='stable')[:count]


def reference_selection(q, kc, uc, i):
    """q [G, D], kc [M, D], uc [M] with only the windows complete at token i -> set of blocks."""
    init, local, query, total = BUDGET
    current = i // BLOCK
    blocks = range(current + 1)
    s = np.zeros(len(uc))
    if len(uc):
        logits = q @ kc.T / math.sqrt(D)
        p = np.exp(logits - logits.max(1, keepdims=True))
        s = (p / p.sum(1, keepdims=True)).sum(0)

    def pooled(x, b):
        part = x[max(4 * b - 1, 0):4 * b + 4]
        return part.max() if len(part) else -np.inf

    forced = {b for b in blocks if b < init or b >= current - local}
    by_query = np.array([np.inf if b in forced else pooled(s, b) for b in blocks])
    picks = forced | set(top(by_query, query).tolist())
    by_u = np.array([np.inf if b in picks else pooled(uc, b) for b in blocks])
    return set(top(by_u, total).tolist())


def reference_attention(q, k, v, u, blocks, i):
    """q [G, D], k and v [T, D], u [T] -> [G, D]."""
    t = np.concatenate([np.arange(BLOCK * b, BLOCK * b + BLOCK) for b in sorted(blocks)])
    t = t[t <= i]
    logits = q @ k[t].T / math.sqrt(D) + u[t]
    w = np.exp(logits - logits.max(1, keepdims=True))
    return (w @ v[t]) / w.sum(1, keepdims=True)


def random_case():
    """q, k, v, u with runs of 32 alike tokens, so that blocks differ."""
    def runs(*tail):
        return torch.randn(B, T // 32, 1, *tail, device='cuda').expand(
            B, T // 32, 32, *tail).reshape(B, T, *tail)
    q = torch.randn(B, T, HQ, D, device='cuda').bfloat16() * 2
    k = (torch.randn(B, T, HK, D, device='cuda') + 0.7 * runs(HK, D)).bfloat16()
    v = torch.randn(B, T, HK, D, device='cuda').bfloat16()
    u = torch.randn(B, T, HK, device='cuda') + runs(HK)
    return q, k, v, u


def check_rows(q, k, v, u, mask):
    """Compare chosen rows -> (rows, selections unlike in fp32, in bf16, largest output error)."""
    low = select(q, k, u, *BUDGET, 0)
    out, _ = attention(q, k, v, u, mask, True)
    kc, uc = windows(k).bfloat16(), windows(u).bfloat16()
    q, k, v, u, out, kc, uc = (x.double().cpu().numpy() for x in (q, k, v, u, out, kc, uc))
    mask, low = mask.cpu().numpy(), low.cpu().numpy()
    rows = wrong = wrong_low = 0
    error = 0.0
    for i in ROWS:
        complete = (i - 31) // 16 + 1 if i >= 31 else 0
        for b in range(B):
            for h in range(HK):
                heads = slice(h * G, h * G + G)
                want = reference_selection(q[b, i, heads], kc[b, :complete, h],
                                           uc[b, :complete, h], i)
                got = set(np.nonzero(mask[b, h, :, i])[0].tolist())
                rows += 1
                wrong += want != got
                wrong_low += want != set(np.nonzero(low[b, h, :, i])[0].tolist())
                o = reference_attention(q[b, i, heads], k[b, :, h], v[b, :, h], u[b, :, h], got, i)
                error = max(error, np.abs(o - out[b, i, heads]).max())
    return rows, wrong, wrong_low, error


def check_gradients(q, k, v, u, mask, sparse):
    """Relative errors of output, dq, dk, dv, du against dense autograd in fp32."""
    def relative(x, y):
        return ((x.float() - y).norm() / y.norm()).item()
    ours = [x.clone().requires_grad_() for x in (q, k, v, u)]
    out, _ = attention(*ours, mask, sparse)
    grad = torch.randn_like(out)
    out.backward(grad)
    q2, k2, v2, u2 = plain = [x.float().clone().requires_grad_() for x in (q, k, v, u)]
    s = torch.einsum('bthgd,bshd->bhgts', q2.view(B, T, HK, G, D), k2) / math.sqrt(D)
    s = s + u2.permute(0, 2, 1)[:, :, None, None, :]
    keep = torch.ones(T, T, device='cuda', dtype=torch.bool).tril()[None, None]
    if sparse:
        keep = keep & (mask.permute(0, 1, 3, 2).repeat_interleave(BLOCK, -1) > 0)
    p = s.masked_fill(~keep[:, :, None], float('-inf')).softmax(-1)
    want = torch.einsum('bhgts,bshd->bthgd', p, v2).reshape(B, T, HQ, D)
    want.backward(grad.float())
    return [relative(out, want)] + [relative(a.grad, b.grad) for a, b in zip(ours, plain)]


def main():
    torch.manual_seed(1)
    case = random_case()
    mask = select_masks(case[0], case[1], case[3], BUDGET, fp32=True)
    rows, wrong, wrong_low, error = check_rows(*case, mask)
    print(f'rows {rows}, other selection with fp32 scores {wrong}, with bf16 scores {wrong_low}, '
          f'largest output error {error:.4f}')
    good = wrong == 0 and wrong_low <= rows // 20 and error < 0.02
    for sparse in (False, True):
        errors = check_gradients(*case, mask, sparse)
        print('sparse' if sparse else 'dense ', 'relative error of out, dq, dk, dv, du:',
              ' '.join(f'{e:.4f}' for e in errors))
        good = good and max(errors) < 0.01
    print('ok' if good else 'FAILED')
    sys.exit(0 if good else 1)


if __name__ == '__main__':
    main()
