"""A float32 NumPy program in the place of the C one: what compare_select.py is tried on.

It has float32's rounding, in another order of summation than any backend, and no other merit.
"""
import dataclasses

import numpy as np

import nosa
from casefile import COMPRESS, NO_ATTEND, Backend, windows


def storage(chosen, late, pos, sel):
    """Selected blocks [R, NB] -> which units of 16 tokens [R, 4 * B], canonical list of storage
    blocks [R, B] (-1 pads), count, settled [R]. A storage block is 64 tokens."""
    def units(x):
        x = np.repeat(x, sel.block // 16, 1)
        x = np.pad(x, ((0, 0), (0, -x.shape[1] % 4)))
        return x & (np.arange(x.shape[1]) <= (pos // 16)[:, None])

    early = units(chosen & ~late).reshape(len(pos), -1, 4).any(2)
    every = units(chosen)
    blocks = every.reshape(len(pos), -1, 4).any(2)
    ids = np.arange(blocks.shape[1])
    if sel.near:                                # NSA: the window's blocks, whatever is selected
        window = (64 * ids + 63 > pos[:, None] - sel.near) & (64 * ids <= pos[:, None])
        early, blocks = early | window, blocks | window
    key = np.where(early, ids, np.where(blocks, ids + len(ids), 3 * len(ids)))
    order = np.sort(key, 1)
    order = np.where(order == 3 * len(ids), -1, order % len(ids))
    return every, order, blocks.sum(1), early.sum(1)


def emulate(case):
    """-> [Backend], one, as if a program had written it."""
    rows, kv_heads, group, d = case.q.shape
    sel, blocks = case.sel, -(-case.k.shape[1] // case.sel.block)
    kc, uc = (windows(case.k, case.u, sel) if case.flags & COMPRESS else (case.kc, case.uc))
    parts = []
    for h in range(kv_heads):
        visible = nosa.windows_mask(case.pos, kc.shape[1], sel)
        s = np.zeros(visible.shape, np.float32)
        if sel.raw:
            s = np.where(visible, case.q[:, h].sum(1) @ kc[h].astype(np.float32).T, 0)
        for g in range(0 if sel.raw else group):
            x = case.q[:, h, g] @ kc[h].astype(np.float32).T * np.float32(1 / np.sqrt(d))
            x = np.where(visible, x, -np.inf)
            e = np.exp(x - x.max(1, keepdims=True, initial=-1e30))
            s += e / np.maximum(e.sum(1, keepdims=True), np.float32(1e-30))
        query = nosa.block_scores(s, visible, sel, blocks)
        most = dataclasses.replace(sel, raw=False, near=0)
        fill = nosa.block_scores(np.broadcast_to(uc[h], s.shape), visible, most, blocks)
        chosen, late = nosa.choose(query, fill, case.pos, sel)
        every, order, count, settled = storage(chosen, late, case.pos, sel)
        nibble = (every.reshape(rows, -1, 4) * np.array([1, 2, 4, 8])).sum(2)
        mask = np.where(order >= 0, np.take_along_axis(nibble, np.maximum(order, 0), 1), 0)
        out = None
        if not case.flags & NO_ATTEND:
            out = nosa.attend_rows(case.q[:, h], case.k[h], case.v[h], case.u[h], chosen, case.pos,
                                   sel).astype(np.float32)
        ids, current = np.arange(blocks), (case.pos // sel.block)[:, None]
        must = (ids < sel.init) | (ids >= current - sel.local)
        query, fill = (np.where(ids > current, 0, np.where(must, np.inf, x)) for x in (query, fill))
        parts.append((query, fill, count, settled, order, mask, out))
    columns = [None if c[0] is None else np.stack(c, 1) for c in zip(*parts)]
    made = (kc, uc) if case.flags & COMPRESS else (None, None)
    return [Backend('numpy/float32', *made, *columns)]
