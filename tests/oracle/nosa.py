"""Natively offloadable sparse attention and a whole Llama-like forward pass, in float64.

Written from the mathematics (NOSA, arXiv 2510.13602; InfLLM-V2, arXiv 2509.24663; RoPE, arXiv
2104.09864), not from any kernel: what every backend is held to. Slow on purpose, NumPy only.

Letters: T tokens, Hq query heads, Hk KV heads, G = Hq / Hk, D head size, M windows, NB selection
blocks, R rows (queries), pos the position of a row. Stored state (K, V, u, Kc, uc) is rounded to
bf16 before its first use, as a store of bf16 blocks requires; all else stays float64.

There are two forms of everything that selects or attends: one row at a time, spelled out
(`select_row`, `attend_row`, used by `Decoder`), and all rows at once (`select_rows`, `attend_rows`,
used by `Model.prefill`). test_nosa.py holds them against each other.
"""
import dataclasses
import json
import math
import os
import struct

import numpy as np

SOURCES = ('own', 'mid', 'input', 'step')
EVERYTHING = 2**32 - 1
INF = float('inf')


# ---- numbers -------------------------------------------------------------------------------------

def bf16(x):
    """x rounded to the nearest bfloat16 (ties to even), as float64. Overflow is not handled."""
    x = np.asarray(x, np.float64)
    _, exponent = np.frexp(x)
    quantum = np.ldexp(1.0, np.maximum(exponent, -125) - 8)     # 8 significant bits, subnormals
    return np.rint(x / quantum) * quantum


def softplus(x):
    return np.logaddexp(0.0, x)


def silu(x):
    return x / (1.0 + np.exp(-x))


# ---- selector ------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True)
class Selector:
    """score -> pool -> force -> select -> attend, as numbers. Counts are in selection blocks.

    init: first blocks, local: blocks before the current one; both always selected, as is the
    current one. query: best by query score, forced ones counted (0: none by query). total: what
    importance fills the selection up to (fill=False: nothing beyond the query picks).
    bias: u is added to the attention logits.
    chunk: 0 for the exact best; W for the truncated search of SSA's released kernel (W / 2 best of
    all before the last aligned W blocks and W / 2 best of those). raw: scores are plain products
    and a block's score their mean over its windows (MoBA), not a softmax and a maximum.
    near: tokens of NSA's sliding branch, the row's own among them. Above 0 a row has three branches,
    each with a gate: the windows' means, the selection, the last `near` tokens; and a block's score
    is the sum of its windows' scores, each times the strides that it shares with the block.
    """
    init: int = 1
    local: int = 16
    query: int = 33
    total: int = 64
    fill: bool = True
    bias: bool = True
    source: str = 'own'
    window: int = 32
    stride: int = 16
    block: int = 64
    chunk: int = 0
    raw: bool = False
    near: int = 0

    def __post_init__(self):
        assert self.source in SOURCES
        assert self.window >= self.stride > 0 and self.block % self.stride == 0
        free = self.init == self.local == 0 and not self.fill
        assert not self.chunk or (free and self.chunk % 2 == 0 and self.query <= self.chunk)

    @property
    def limit(self):
        """Most blocks a row selects."""
        return self.total if self.fill else min(self.query, self.total)


def nosa(budget=(1, 16, 33, 64), source='own'):
    return Selector(*budget, source=source)


def infllmv2(budget=(1, 16, 64, 64), source='own'):
    """InfLLM-V2: no importance anywhere, every block beyond the forced ones by query score."""
    init, local, _, total = budget
    return Selector(init, local, total, total, fill=False, bias=False, source=source)


def ssa(blocks=16, size=16, chunk=0, source='own'):
    """SSA (arXiv 2511.20102): `blocks` of `size` tokens by the group's summed softmax over block
    means, the current one among them; nothing else is forced. MoBA in that paper is the same."""
    return Selector(0, 0, blocks, blocks, False, False, source, size, size, size, chunk)


def nsa(blocks=16, size=16, near=128, chunk=0, source='own'):
    """NSA (arXiv 2502.11089) as the SSA paper trains it: SSA's selection beside attention to the
    means of all complete blocks and to the last `near` tokens. Keys and values are shared, means are
    plain, windows do not overlap."""
    return Selector(0, 0, blocks, blocks, False, False, source, size, size, size, chunk, near=near)


def nsa_overlap(blocks=16, near=512, source='own'):
    """NSA in its paper's geometry: windows of 32 every 16, blocks of 64, the first and the one before
    the current always selected. Its learned compression is a plain mean here."""
    return Selector(1, 1, blocks, blocks, False, False, source, near=near)


def moba(blocks=3, size=512, source='own'):
    """MoBA (arXiv 2502.13189): `blocks` of `size` tokens by q . mean(K), the current one among them.
    It selects for each query head, so every query head has its KV head here. Means of more than 128
    keys are means of stored means."""
    part = min(size, 128)
    return Selector(0, 0, blocks, blocks, False, False, source, part, part, size, 0, True)


def full():
    """Every earlier token, with the bias u where the checkpoint has one."""
    return Selector(0, 0, 0, EVERYTHING)


def windows_complete(tokens, sel):
    """Windows that lie wholly inside the first `tokens` tokens."""
    return max(0, (tokens - sel.window) // sel.stride + 1)


def windows_visible(pos, sel):
    """Windows a row at `pos` may score. A selection source other than its own layer's state is
    known before the row's key is, so it sees only what was complete one token earlier."""
    return windows_complete(pos + (sel.source == 'own'), sel)


def windows_of_block(b, sel):
    """[low, high): the windows that share at least one token with selection block b."""
    low = (b * sel.block - sel.window) // sel.stride + 1
    return max(low, 0), (b + 1) * sel.block // sel.stride


def forced(b, current, sel):
    return b < sel.init or b >= current - sel.local


# ---- state made from keys and values -------------------------------------------------------------

def importance(v, a, delta):
    """v [..., Hk, D] (stored values), a [Hk], delta [Hk, Hk * D] -> u [..., Hk], to be stored."""
    flat = v.reshape(*v.shape[:-2], -1)
    return a * softplus(flat @ delta.T)


def compress(x, sel):
    """x [T, ...] -> means over each complete window [M, ...], bf16."""
    count = windows_complete(len(x), sel)
    means = [x[sel.stride * j:sel.stride * j + sel.window].mean(0) for j in range(count)]
    return bf16(np.array(means).reshape(count, *x.shape[1:]))


# ---- one row -------------------------------------------------------------------------------------

def top(scores, count):
    """Indices of the `count` largest; of equal ones the smaller index."""
    order = sorted(range(len(scores)), key=lambda b: (-scores[b], b))
    return order[:count]


def top_picks(scores, sel):
    """The query's picks of blocks 0 .. current, forced ones at +inf."""
    last = (len(scores) - 1) // sel.chunk * sel.chunk if sel.chunk else 0
    if last == 0:
        return top(scores, sel.query)
    half = sel.chunk // 2
    kept = top(scores[:last], half) + [last + b for b in top(scores[last:], half)]
    return sorted(kept, key=lambda b: (-scores[b], b))[:sel.query]


def score_row(q, kc, sel):
    """q [G, D], kc [M, D] visible windows -> s [M], the group's summed softmax."""
    if len(kc) == 0:
        return np.zeros(0)
    if sel.raw:
        return (q @ kc.T).sum(0)
    logits = q @ kc.T / math.sqrt(q.shape[1])
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).sum(0)


def shares(b, sel):
    """How many strides' worth of tokens each window of block b shares with it (NSA, equation 9: 1, 2,
    2, 2, 1 for windows of 32 every 16 and blocks of 64)."""
    start = np.arange(*windows_of_block(b, sel)) * sel.stride
    end = np.minimum(start + sel.window, (b + 1) * sel.block)
    return (end - np.maximum(start, b * sel.block)) / sel.stride


def pool_row(x, b, sel):
    """Maximum (raw: mean, NSA: weighed sum) of x over the visible windows that touch block b; -inf
    without any."""
    low, high = windows_of_block(b, sel)
    part = x[low:high]
    if len(part) == 0:
        return -INF
    if sel.near:
        return part @ shares(b, sel)[:len(part)]
    return part.sum() * sel.stride / sel.block if sel.raw else part.max()


def select_row(q, kc, uc, pos, sel):
    """q [G, D]; kc [>= M, D] and uc [>= M] of the KV head -> (blocks in canonical order, settled).

    Canonical order: forced and importance-filled blocks, ascending, then the free query picks,
    ascending; `settled` counts the first part. Where every visible block fits, the query decides
    nothing and all are settled.
    """
    current = pos // sel.block
    blocks = range(current + 1)
    if current < sel.limit:
        return list(blocks), current + 1
    m = windows_visible(pos, sel)
    must = {b for b in blocks if forced(b, current, sel)}
    assert len(must) <= sel.limit
    picks = set(must)
    if sel.query:
        s = score_row(q, kc[:m], sel)
        by_query = [INF if b in must else pool_row(s, b, sel) for b in blocks]
        picks |= set(top_picks(by_query, sel))
    chosen = picks
    if sel.fill:
        by_u = [INF if b in picks else pool_row(uc[:m], b, sel) for b in blocks]
        chosen = set(top(by_u, sel.total))
    late = picks - must
    settled = sorted(chosen - late)
    return settled + sorted(late & chosen), len(settled)


def attend_row(q, k, v, u, blocks, pos, sel):
    """q [G, D]; k, v [T, D], u [T] of the KV head -> [G, D]. Softmax of q.k / sqrt(D) + u."""
    t = np.concatenate([np.arange(sel.block * b, sel.block * (b + 1)) for b in sorted(blocks)])
    t = t[t <= pos]
    logits = q @ k[t].T / math.sqrt(q.shape[1])
    if sel.bias:
        logits = logits + u[t]
    w = np.exp(logits - logits.max(1, keepdims=True))
    return (w @ v[t]) / w.sum(1, keepdims=True)


def soft_row(q, k, v):
    """q [G, D]; k, v [N, D] -> [G, D]: softmax of q.k / sqrt(D) over all N; nothing of none."""
    if len(k) == 0:
        return np.zeros(q.shape)
    logits = q @ k.T / math.sqrt(q.shape[1])
    w = np.exp(logits - logits.max(1, keepdims=True))
    return (w @ v) / w.sum(1, keepdims=True)


def coarse_row(q, kc, vc, pos, sel):
    """NSA's compressed branch: the means of every window complete at the row, whatever selected."""
    count = windows_complete(pos + 1, sel)
    return soft_row(q, kc[:count], vc[:count])


def near_row(q, k, v, pos, sel):
    """NSA's sliding branch: the last `near` tokens, the row's own among them."""
    first = max(0, pos + 1 - sel.near)
    return soft_row(q, k[first:pos + 1], v[first:pos + 1])


# ---- all rows ------------------------------------------------------------------------------------

def block_scores(s, visible, sel, blocks):
    """s [..., M] -> [..., blocks]: maximum (raw: mean, NSA: weighed sum) over the visible windows of
    each block."""
    s = np.where(visible, s, -INF)
    out = np.full((*s.shape[:-1], blocks), -INF)
    for b in range(blocks):
        low, high = windows_of_block(b, sel)
        if low >= s.shape[-1]:
            continue
        part = s[..., low:high]
        some = np.isfinite(part)
        seen = np.where(some, part, 0)
        if sel.raw:
            total = seen.sum(-1) * sel.stride / sel.block
        elif sel.near:
            total = seen @ shares(b, sel)[:part.shape[-1]]
        else:
            total = part.max(-1)
        out[..., b] = np.where(some.any(-1), total, -INF)
    return out


def best(scores, count):
    """Boolean mask of the `count` best of the last axis; of equal ones the smaller index."""
    order = np.argsort(-scores, -1, kind='stable')[..., :count]
    out = np.zeros(scores.shape, bool)
    np.put_along_axis(out, order, True, -1)
    return out


def windows_mask(pos, count, sel):
    """[R, count]: the windows each row may score."""
    return np.arange(count) < np.array([windows_visible(p, sel) for p in pos])[:, None]


def window_scores(q, kc, pos, sel):
    """q [R, G, D], kc [M, D], pos [R] -> s [R, M], 0 where not visible. Each head's softmax is over
    the visible windows, then the heads of the group are summed (InfLLM-V2, stage 1)."""
    visible = windows_mask(pos, len(kc), sel)
    s = np.zeros(visible.shape)
    if sel.raw:
        return np.where(visible, q.sum(1) @ kc.T, 0.0)
    for g in range(q.shape[1]):
        logits = np.where(visible, q[:, g] @ kc.T / math.sqrt(q.shape[2]), -INF)
        p = np.exp(logits - logits.max(1, keepdims=True, initial=-1e300))
        s += p / np.maximum(p.sum(1, keepdims=True), 1e-300)
    return s


def choose(by_query, by_u, pos, sel):
    """Pooled scores [R, NB] -> (chosen, late) boolean [R, NB]; late: the free query picks."""
    b = np.arange(by_query.shape[1])
    current = (pos // sel.block)[:, None]
    future = b > current
    must = ((b < sel.init) | (b >= current - sel.local)) & ~future
    everything = current < sel.limit
    picks = must
    if sel.query:
        s = np.where(must, INF, by_query)
        s[future] = -INF
        last = current // sel.chunk * sel.chunk if sel.chunk else np.zeros_like(current)
        old, half = b < last, sel.chunk // 2
        kept = (best(np.where(old, s, -INF), half) & old) | (best(np.where(old, -INF, s), half)
                                                            & ~old) | (last == 0)
        picks = must | (best(np.where(kept, s, -INF), sel.query) & kept & ~future)
    chosen = picks
    if sel.fill:
        s = np.where(picks, INF, by_u)
        s[future] = -INF
        chosen = best(s, sel.total) & ~future
    late = picks & ~must & chosen
    return np.where(everything, ~future, chosen), late & ~everything


def rivals(s, visible, inside, outside, sel):
    """Window scores s [R, M]; inside, outside boolean [R, NB] -> two pairs (low, high) [2, 2, R]
    that must not cross for the selection to stay; low is inf or high -inf where there is none.

    The first pair: the lowest block score inside, and the highest window score outside. But
    neighbouring blocks share windows: where the window that decides the lowest block inside also
    touches blocks outside with larger ids, those lose the tie with it whatever the value is, so the
    window is left out. Then it must not pass any other block inside either: the second pair.
    """
    rows, ids = np.arange(len(s)), np.arange(inside.shape[1])
    bounds = np.array([windows_of_block(b, sel) for b in ids])
    j = np.arange(s.shape[1])
    touch = (j >= bounds[:, :1]) & (j < bounds[:, 1:])                      # [NB, M]
    s = np.where(visible, s, -INF)
    pooled = np.where(inside, block_scores(s, visible, sel, len(ids)), INF)
    worst = pooled.argmin(1)
    decides = np.where(touch[worst], s, -INF).argmax(1)
    theirs = outside & touch[:, decides].T
    first = np.where(theirs, ids, len(ids)).min(1)                          # smallest id outside
    shared = (first > worst) & (first < len(ids))
    touched = (outside.astype(np.float32) @ touch.astype(np.float32)) > 0
    touched[rows, decides] &= ~shared
    others = inside & ~(touch[:, decides].T & (ids < first[:, None]))
    return ((pooled[rows, worst], np.where(touched, s, -INF).max(1, initial=-INF)),
            (np.where(others, pooled, INF).min(1), np.where(shared, s[rows, decides], -INF)))


def margins(s, uc, chosen, late, pos, sel):
    """How far the selection of each row [R] is from another one -> (query, importance).

    s [R, M] from window_scores, uc [M]. query: (low - high) / (low + high) of what was picked and
    what was not: any relative error of scores below it leaves the picks as they are. importance:
    low - high of what was filled and what was left out. inf where there is nothing to confuse.
    """
    b = np.arange(chosen.shape[1])
    current = (pos // sel.block)[:, None]
    free = (b >= sel.init) & (b < current - sel.local) & (current >= sel.limit)
    visible = windows_mask(pos, len(uc), sel)
    if len(uc) == 0:
        return np.full((2, len(pos)), INF)

    def gap(scores, inside, outside, relative):
        least = np.full(len(pos), INF)
        if sel.window == sel.stride or sel.near:            # no window has two blocks, or sums
            pooled = block_scores(scores, visible, sel, len(b))
            pairs = [(np.where(inside, pooled, INF).min(1), np.where(outside, pooled, -INF).max(1))]
        else:
            pairs = rivals(scores, visible, inside, outside, sel)
        for low, high in pairs:
            some = np.isfinite(low) & np.isfinite(high)
            low, high = np.where(some, low, 1.0), np.where(some, high, 0.0)
            size = low + high if relative else 1.0
            least = np.where(some, np.minimum(least, (low - high) / size), least)
        return least

    query = gap(s, late, free & ~late, not sel.raw)
    if sel.chunk:                                           # two searches, and the best of both
        assert sel.query == sel.chunk
        old = b < current // sel.chunk * sel.chunk
        query = np.minimum(*(gap(s, late & part, free & ~late & part, True) for part in (old, ~old)))
    if not sel.fill:
        return query, np.full(len(pos), INF)
    return query, gap(np.broadcast_to(uc, s.shape), free & chosen & ~late, free & ~chosen, False)


def select_rows(q, kc, uc, pos, sel, blocks):
    """As select_row, for many rows of one KV head -> (chosen, late) [R, blocks], margins
    (query, importance) [R]."""
    s, visible = window_scores(q, kc, pos, sel), windows_mask(pos, len(kc), sel)
    by_query = block_scores(s, visible, sel, blocks)
    by_u = block_scores(np.broadcast_to(uc, s.shape), visible, sel, blocks)
    chosen, late = choose(by_query, by_u, pos, sel)
    return chosen, late, margins(s, uc, chosen, late, pos, sel)


def attend_rows(q, k, v, u, chosen, pos, sel):
    """q [R, G, D], k, v [T, D], u [T], chosen [R, NB] -> [R, G, D]."""
    tokens = np.arange(len(k))
    mask = chosen[:, tokens // sel.block] & (tokens <= pos[:, None])
    out = np.empty(q.shape)
    for g in range(q.shape[1]):
        logits = q[:, g] @ k.T / math.sqrt(q.shape[2])
        if sel.bias:
            logits = logits + u
        logits = np.where(mask, logits, -INF)
        w = np.exp(logits - logits.max(1, keepdims=True))
        out[:, g] = (w @ v) / w.sum(1, keepdims=True)
    return out


def soft_rows(q, k, v, mask):
    """q [R, G, D], k, v [N, D], mask [R, N] -> [R, G, D]; a row that sees nothing gets 0."""
    logits = np.where(mask[:, None], q @ k.T / math.sqrt(q.shape[2]), -INF)
    w = np.exp(logits - logits.max(2, keepdims=True, initial=-1e300))
    return (w @ v) / np.maximum(w.sum(2, keepdims=True), 1e-300)


def coarse_rows(q, kc, vc, pos, sel):
    """As coarse_row, for many rows of one KV head."""
    count = np.array([windows_complete(p + 1, sel) for p in pos])[:, None]
    return soft_rows(q, kc, vc, np.arange(len(kc)) < count)


def near_rows(q, k, v, pos, sel):
    """As near_row, for many rows of one KV head."""
    tokens = np.arange(len(k))
    return soft_rows(q, k, v, (tokens <= pos[:, None]) & (tokens > pos[:, None] - sel.near))


# ---- RoPE ----------------------------------------------------------------------------------------

def rope_frequencies(config):
    """-> (angle per position [D / 2], factor on cos and sin) for default, linear, llama3 and
    longrope (the short factors: positions within the original length)."""
    d = head_dim(config)
    scaling = config.get('rope_parameters') or config.get('rope_scaling') or {}
    theta = scaling.get('rope_theta', config.get('rope_theta', 10000.0))
    kind = scaling.get('rope_type', scaling.get('type', 'default'))
    freq = theta ** (-np.arange(0, d, 2) / d)
    if kind == 'linear':
        return freq / scaling['factor'], 1.0
    if kind == 'llama3':
        low, high = scaling['low_freq_factor'], scaling['high_freq_factor']
        wave = 2 * math.pi / freq
        turns = scaling['original_max_position_embeddings'] / wave
        smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return freq * ((1 - smooth) / scaling['factor'] + smooth), 1.0
    if kind == 'longrope':
        short, wide = scaling['short_factor'], scaling['long_factor']
        limit = config['max_position_embeddings']
        original = scaling.get('original_max_position_embeddings',
                               config.get('original_max_position_embeddings', limit))
        ratio = limit / original
        factor = scaling.get('attention_factor')
        if factor is None:
            factor = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
        assert short == wide or limit == original, 'length-dependent factors are not static'
        return freq / np.array(short), factor
    assert kind == 'default', kind
    return freq, 1.0


def rotate(x, pos, rope):
    """Half-split rotation of x [R, heads, D] at positions pos [R]."""
    freq, factor = rope
    angle = np.asarray(pos, np.float64)[:, None, None] * freq
    cos, sin = np.cos(angle) * factor, np.sin(angle) * factor
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


# ---- checkpoint ----------------------------------------------------------------------------------

def head_dim(config):
    return config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']


def read_safetensors(path):
    """-> {name: float64 array}. bf16, float16 and float32 only."""
    with open(path, 'rb') as f:
        raw = f.read()
    size, = struct.unpack('<Q', raw[:8])
    out = {}
    for name, entry in json.loads(raw[8:8 + size]).items():
        if name == '__metadata__':
            continue
        begin, end = entry['data_offsets']
        data = raw[8 + size + begin:8 + size + end]
        if entry['dtype'] == 'BF16':
            x = (np.frombuffer(data, '<u2').astype(np.uint32) << 16).view(np.float32)
        else:
            x = np.frombuffer(data, {'F32': '<f4', 'F16': '<f2'}[entry['dtype']])
        out[name] = x.astype(np.float64).reshape(entry['shape'])
    return out


class Model:
    """A Hugging Face directory of the Llama or MiniCPM4 family, with or without A and delta.

    store: how K, V and u are rounded when they are stored (None: not at all, for comparison with
    programs that keep them in float32).
    activation: how the left side of every product with a weight is rounded (None: not at all; bf16
    for programs whose matrix units take bf16).
    """

    def __init__(self, folder, store=bf16, activation=None):
        self.store = store or (lambda x: x)
        self.activation = activation or (lambda x: x)
        with open(os.path.join(folder, 'config.json')) as f:
            self.config = c = json.load(f)
        index = os.path.join(folder, 'model.safetensors.index.json')
        files = ['model.safetensors']
        if os.path.exists(index):
            with open(index) as f:
                files = sorted(set(json.load(f)['weight_map'].values()))
        self.w = {}
        for name in files:
            self.w.update(read_safetensors(os.path.join(folder, name)))
        self.layers, self.heads = c['num_hidden_layers'], c['num_attention_heads']
        self.kv_heads = c.get('num_key_value_heads') or self.heads
        self.d, self.eps = head_dim(c), c.get('rms_norm_eps', 1e-6)
        self.rope = rope_frequencies(c)
        # MiniCPM (arXiv 2404.06395): embeddings scaled, branches damped by depth, logits by width
        self.embed_scale = c.get('scale_emb', 1.0)
        self.branch_scale = c['scale_depth'] / math.sqrt(self.layers) if 'scale_depth' in c else 1.0
        self.logit_scale = c['dim_model_base'] / c['hidden_size'] if 'dim_model_base' in c else 1.0

    def linear(self, x, layer, name):
        prefix = f'model.layers.{layer}.{name}'
        y = self.activation(x) @ self.w[prefix + '.weight'].T
        return y + self.w[prefix + '.bias'] if prefix + '.bias' in self.w else y

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.w[name + '.weight']

    def queries(self, x, layer, pos):
        """Residual x [R, hidden] through the layer's norm, q_proj and RoPE -> [R, Hk, G, D]."""
        h = self.norm(x, f'model.layers.{layer}.input_layernorm')
        q = self.linear(h, layer, 'self_attn.q_proj').reshape(len(x), self.heads, self.d)
        return rotate(q, pos, self.rope).reshape(len(x), self.kv_heads, -1, self.d)

    def keys_values(self, x, layer, pos):
        """-> k, v [R, Hk, D] and u [R, Hk] as stored."""
        h = self.norm(x, f'model.layers.{layer}.input_layernorm')
        shape = (len(x), self.kv_heads, self.d)
        k = self.linear(h, layer, 'self_attn.k_proj').reshape(shape)
        k = self.store(rotate(k, pos, self.rope))
        v = self.store(self.linear(h, layer, 'self_attn.v_proj').reshape(shape))
        a = self.w.get(f'model.layers.{layer}.self_attn.A')
        if a is None:
            return k, v, np.zeros(shape[:2])
        delta = self.w[f'model.layers.{layer}.self_attn.delta.weight']
        return k, v, self.store(importance(v, a, delta))

    def gate(self, x, layer, branch=1):
        """Gate of a branch, one number a query head, from the layer's normed input: logistic of one
        of every three rows of g_proj (0: compressed, 1: selected, the only one of SSA, 2: sliding)
        -> [R, Hk, G, 1]; 1 without g_proj."""
        if f'model.layers.{layer}.self_attn.g_proj.weight' not in self.w:
            return 1.0
        h = self.norm(x, f'model.layers.{layer}.input_layernorm')
        g = self.linear(h, layer, 'self_attn.g_proj')[:, branch::3]
        return (1.0 / (1.0 + np.exp(-g))).reshape(len(x), self.kv_heads, -1, 1)

    def gated(self, x, layer, o, coarse, near, sel):
        """The selection's output times its gate, and NSA's other two branches times theirs."""
        o = o * self.gate(x, layer)
        if sel.near:
            o = o + coarse * self.gate(x, layer, 0) + near * self.gate(x, layer, 2)
        return o

    def embed(self, tokens):
        return self.w['model.embed_tokens.weight'][tokens] * self.embed_scale

    def after_attention(self, x, o, layer):
        """Residual and attention output [R, Hk, G, D] -> residual before the MLP."""
        return x + self.linear(o.reshape(len(x), -1), layer, 'self_attn.o_proj') * self.branch_scale

    def after_mlp(self, x, layer):
        h = self.norm(x, f'model.layers.{layer}.post_attention_layernorm')
        gate, up = self.linear(h, layer, 'mlp.gate_proj'), self.linear(h, layer, 'mlp.up_proj')
        return x + self.linear(silu(gate) * up, layer, 'mlp.down_proj') * self.branch_scale

    def logits(self, x):
        head = self.w.get('lm_head.weight')
        if head is None or self.config.get('tie_word_embeddings'):
            head = self.w['model.embed_tokens.weight']
        return self.activation(self.norm(x, 'model.norm')) @ head.T * self.logit_scale

    def selection_queries(self, own, layer, pos, sel, previous):
        """The queries that select, as Selector.source says. previous: residuals of the layer
        before, {'mid': after its attention, 'input': at its start}, None for layer 0."""
        if sel.source == 'step':
            return np.concatenate([own[:1], own[:-1]])
        if sel.source == 'own' or previous is None:
            return own
        return self.queries(previous[sel.source], layer, pos)

    def prefill(self, tokens, sel, tap=None):
        """All rows at once -> residual [T, hidden] after the last layer (see logits).

        tap(layer, chosen, late, margin): selections [Hk, T, NB] and margins [Hk, 2, T] of a layer.
        """
        pos = np.arange(len(tokens))
        blocks = (len(tokens) - 1) // sel.block + 1
        x, previous = self.embed(np.asarray(tokens)), None
        for layer in range(self.layers):
            q = self.queries(x, layer, pos)
            k, v, u = self.keys_values(x, layer, pos)
            kc, uc = compress(k, sel), compress(u, sel)
            vc = compress(v, sel) if sel.near else None
            sq = self.selection_queries(q, layer, pos, sel, previous)
            o, coarse, near, picked = np.empty(q.shape), np.zeros(q.shape), np.zeros(q.shape), []
            for h in range(self.kv_heads):
                picked.append(select_rows(sq[:, h], kc[:, h], uc[:, h], pos, sel, blocks))
                o[:, h] = attend_rows(q[:, h], k[:, h], v[:, h], u[:, h], picked[-1][0], pos, sel)
                if sel.near:
                    coarse[:, h] = coarse_rows(q[:, h], kc[:, h], vc[:, h], pos, sel)
                    near[:, h] = near_rows(q[:, h], k[:, h], v[:, h], pos, sel)
            if tap:
                tap(layer, *(np.array(part) for part in zip(*picked)))
            mid = self.after_attention(x, self.gated(x, layer, o, coarse, near, sel), layer)
            previous = {'mid': mid, 'input': x}
            x = self.after_mlp(mid, layer)
        return x


class Decoder:
    """One token at a time, from nothing or after any number of earlier steps."""

    def __init__(self, model, sel):
        self.model, self.sel, self.pos = model, sel, 0
        shape = (0, model.kv_heads, model.d)
        self.k = [np.zeros(shape) for _ in range(model.layers)]
        self.v = [np.zeros(shape) for _ in range(model.layers)]
        self.u = [np.zeros(shape[:2]) for _ in range(model.layers)]
        self.kc = [np.zeros(shape) for _ in range(model.layers)]
        self.vc = [np.zeros(shape) for _ in range(model.layers)]
        self.uc = [np.zeros(shape[:2]) for _ in range(model.layers)]
        self.last = [None] * model.layers                   # each layer's query of the step before
        self.selected = []                                  # of the last step: [layer][KV head]

    def append(self, layer, k, v, u):
        """Store a token and the window that it completes, if any."""
        self.k[layer] = np.concatenate([self.k[layer], k])
        self.v[layer] = np.concatenate([self.v[layer], v])
        self.u[layer] = np.concatenate([self.u[layer], u])
        first = self.pos + 1 - self.sel.window
        if first >= 0 and first % self.sel.stride == 0:
            for made, of in ((self.kc, self.k), (self.vc, self.v), (self.uc, self.u)):
                mean = bf16(of[layer][first:].mean(0))[None]
                made[layer] = np.concatenate([made[layer], mean])

    def step(self, token):
        """-> logits [vocab] for the token after."""
        m, sel, pos = self.model, self.sel, np.array([self.pos])
        x, previous, self.selected = m.embed(np.array([token])), None, []
        for layer in range(m.layers):
            q = m.queries(x, layer, pos)
            self.append(layer, *m.keys_values(x, layer, pos))
            if sel.source == 'step':
                sq = q if self.last[layer] is None else self.last[layer]
                self.last[layer] = q
            else:
                sq = m.selection_queries(q, layer, pos, sel, previous)
            o, coarse, near = np.empty(q.shape), np.zeros(q.shape), np.zeros(q.shape)
            self.selected = [*self.selected, []]
            for h in range(m.kv_heads):
                picked = select_row(sq[0, h], self.kc[layer][:, h], self.uc[layer][:, h],
                                    self.pos, sel)
                o[0, h] = attend_row(q[0, h], self.k[layer][:, h], self.v[layer][:, h],
                                     self.u[layer][:, h], picked[0], self.pos, sel)
                if sel.near:
                    coarse[0, h] = coarse_row(q[0, h], self.kc[layer][:, h], self.vc[layer][:, h],
                                              self.pos, sel)
                    near[0, h] = near_row(q[0, h], self.k[layer][:, h], self.v[layer][:, h],
                                          self.pos, sel)
                self.selected[-1].append(picked)
            mid = m.after_attention(x, m.gated(x, layer, o, coarse, near, sel), layer)
            previous = {'mid': mid, 'input': x}
            x = m.after_mlp(mid, layer)
        self.pos += 1
        return m.logits(x)[0]
