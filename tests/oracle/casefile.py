"""The case files of kernels/README.md: write cases, run the C program on them, read its results.

A case is a Case, a result a list of Backend: what each of the program's backends computed.
"""
import dataclasses
import struct
import subprocess

import numpy as np

import nosa

COMPRESS, NO_ATTEND = 1, 2                  # flags: the program makes the windows; no attention
CHUNK = 1024                                # rows that are held against the oracle at once


@dataclasses.dataclass
class Case:
    name: str
    sel: nosa.Selector
    pos: np.ndarray                         # [R] ascending
    q: np.ndarray                           # [R, Hk, G, D] float32
    k: np.ndarray                           # [Hk, T, D] values of bf16, as v and u [Hk, T]
    v: np.ndarray
    u: np.ndarray
    kc: np.ndarray                          # [Hk, M, D]
    uc: np.ndarray                          # [Hk, M]
    flags: int = 0


@dataclasses.dataclass
class Backend:
    name: str
    kc: np.ndarray                          # None without COMPRESS
    uc: np.ndarray
    query: np.ndarray                       # [R, Hk, N] float32
    importance: np.ndarray
    count: np.ndarray                       # [R, Hk]
    settled: np.ndarray
    block: np.ndarray                       # [R, Hk, M]
    mask: np.ndarray
    out: np.ndarray                         # [R, Hk, G, D] float32, None with NO_ATTEND


def make(name, sel, shape, tokens, rows, seed, flags=NO_ATTEND, edges=()):
    """A random case. shape: (Hk, G, D). Keys and importance come in runs of 32 alike tokens, so
    that blocks differ as those of text do; rows are drawn from all positions, with the edges."""
    rng = np.random.default_rng(seed)
    kv_heads, group, d = shape

    def runs(*tail):
        kinds = rng.standard_normal((kv_heads, tokens // 32 + 1, *tail))
        return np.repeat(kinds, 32, 1)[:, :tokens]

    k = nosa.bf16(rng.standard_normal((kv_heads, tokens, d)) + 0.7 * runs(d))
    v = nosa.bf16(rng.standard_normal((kv_heads, tokens, d)))
    u = nosa.bf16(rng.standard_normal((kv_heads, tokens)) + runs())
    must = np.array([e for e in edges if e < tokens], int)
    rest = np.setdiff1d(np.arange(tokens), must)
    count = min(max(rows - len(must), 0), len(rest))
    pos = np.sort(np.concatenate([must, rng.choice(rest, count, replace=False)]))
    q = (2 * rng.standard_normal((len(pos), kv_heads, group, d))).astype(np.float32)
    return Case(name, sel, pos, q, k, v, u, *windows(k, u, sel), flags)


def windows(k, u, sel):
    """k [Hk, T, D], u [Hk, T] -> Kc [Hk, M, D], uc [Hk, M]."""
    kc = nosa.compress(k.transpose(1, 0, 2), sel).transpose(1, 0, 2)
    return kc, nosa.compress(u.T, sel).T


def bits(x):
    """Values of bf16 -> their uint16 bytes."""
    return (np.ascontiguousarray(x, np.float32).view(np.uint32) >> 16).astype('<u2').tobytes()


def values(x):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def write(path, case):
    rows, kv_heads, group, d = case.q.shape
    sel = case.sel
    head = (rows, kv_heads * group, kv_heads, d, case.k.shape[1], case.kc.shape[1], sel.window,
            sel.stride, sel.block, sel.init, sel.local, sel.query, sel.total, sel.fill, sel.bias,
            nosa.SOURCES.index(sel.source), 0, case.flags, sel.chunk, sel.raw, sel.near)
    with open(path, 'wb') as f:
        f.write(b'SHOALOC1' + struct.pack('<21I', *head))
        f.write(case.pos.astype('<i4').tobytes() + case.q.astype('<f4').tobytes())
        if not case.flags & COMPRESS:
            f.write(bits(case.kc) + bits(case.uc))
        f.write(bits(case.u) + bits(case.k) + bits(case.v))


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, dtype, *shape):
        count = int(np.prod(shape))
        out = np.frombuffer(self.data, dtype, count, self.at).reshape(shape)
        self.at += out.nbytes
        return out


def read(path, case):
    """-> [Backend]"""
    with open(path, 'rb') as f:
        reader = Reader(f.read())
    rows, kv_heads, group, d = case.q.shape
    assert reader.take('S8', 1)[0] == b'SHOALOR1'
    r, hq, hk, d2, blocks, most, count, backends, flags, _ = reader.take('<u4', 10).tolist()
    assert (r, hq, hk, d2, flags) == (rows, kv_heads * group, kv_heads, d, case.flags)
    assert blocks >= case.pos.max() // case.sel.block + 1 and count == case.kc.shape[1]
    out = []
    for _ in range(backends):
        name, kc, uc, result = reader.take('S16', 1)[0].decode(), None, None, None
        if flags & COMPRESS:
            kc = values(reader.take('<u2', hk, count, d))
            uc = values(reader.take('<u2', hk, count))
        scores = [reader.take('<f4', r, hk, blocks) for _ in range(2)]
        counts = [reader.take('<i4', r, hk) for _ in range(2)]
        chosen = reader.take('<i4', r, hk, most), reader.take('u1', r, hk, most)
        if not flags & NO_ATTEND:
            result = reader.take('<f4', r, hk, group, d)
        out.append(Backend(name, kc, uc, *scores, *counts, *chosen, result))
    assert reader.at == len(reader.data)
    return out


def run(program, case, folder):
    """The C program's backends on one case."""
    write(f'{folder}/cases', case)
    subprocess.run([program, 'oracle', f'{folder}/cases', f'{folder}/results'], check=True,
                   stdout=subprocess.DEVNULL)
    return read(f'{folder}/results', case)
