"""Bits a byte of worker/small-model for every selection source, in float32 NumPy.

    python evaluate_numpy.py [--texts 2] [--tokens 4096] [--budget 1,4,10,16] [--sources own,mid]

An independent cross-check of a worker's evaluation: shares no code with nosa.py and uses the
`tokenizers` package for ids. Same targets as small_model/evaluate.py: tokens 1.. of the last
--tokens tokens of each text's first 16384. K, V, u and the windows of both are rounded to bf16 as a
worker's are; everything else is float32. About half a minute a text and source at 4096 tokens on
one core.
"""
import argparse
import io
import json
import lzma
import math
import os
import tarfile
import time

import numpy as np

FOLDER = os.path.join(
    os.path.dirname(
        os.path.abspath(__file__)),
        '..',
        '..',
        'worker',
         'small-model')
LAYERS, HEADS, KV_HEADS, D, HIDDEN, THETA, BLOCK = 8, 8, 2, 64, 256, 1e5, 64
CHUNK = 256


def to_bf16(x):
    """Nearest, ties to even, still as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000).astype(np.uint32).view(np.float32)


def load():
    with open(os.path.join(FOLDER, 'model.safetensors'), 'rb') as f:
        raw = f.read()
    head = int.from_bytes(raw[:8], 'little')
    out = {}
    for name, entry in json.loads(raw[8:8 + head]).items():
        if name != '__metadata__':
            begin, end = entry['data_offsets']
            x = np.frombuffer(raw, np.uint16, (end - begin) // 2, 8 + head + begin)
            out[name] = (x.astype(np.uint32) << 16).view(np.float32).reshape(entry['shape'])
    return out


def norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-6)) * weight


def rope(x):
    """[T, heads, D] at positions 0.."""
    angle = np.arange(len(x))[:, None] * THETA ** (-np.arange(0, D, 2) / D)
    cos, sin = (f(angle)[:, None].astype(np.float32) for f in (np.cos, np.sin))
    a, b = x[..., :D // 2], x[..., D // 2:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], -1)


def means(x):
    """Over 32 tokens every 16, through running halves."""
    half = x.reshape(len(x) // 16, 16, *x.shape[1:]).mean(1, dtype=np.float32)
    return to_bf16((half[:-1] + half[1:]) * np.float32(0.5))


def pooled(x):
    """Windows [..., M] -> blocks [..., NB]: five windows from one before the block's first."""
    blocks = (x.shape[-1] + 1) // 4
    x = np.concatenate([np.full((*x.shape[:-1], 1), -np.inf, x.dtype), x,
                        np.full((*x.shape[:-1], 4), -np.inf, x.dtype)], -1)
    return np.stack([x[..., 4 * b:4 * b + 5].max(-1) for b in range(blocks)], -1)


def take(scores, count):
    """Mask of the best, ties to the smaller index: one stable sort of the negated scores."""
    mask = np.zeros(scores.shape, bool)
    np.put_along_axis(mask, np.argsort(-scores, -1, kind='stable')[..., :count], True, -1)
    return mask


def chosen_blocks(q, kc, uc, row, budget, lag):
    """q [G, C, D], kc [M, D], uc [M], row [C] -> [C, NB]"""
    init, local, query, total = budget
    seen = 16 * np.arange(len(kc)) + 31 <= (row - lag)[:, None]
    logits = np.where(seen, q @ kc.T / np.float32(math.sqrt(D)), np.float32(-1e30))
    p = np.exp(logits - logits.max(-1, keepdims=True)) * seen
    s = (p / np.maximum(p.sum(-1, keepdims=True), np.float32(1e-30))).sum(0)
    b, now = np.arange(len(uc) // 4 + 1), (row // BLOCK)[:, None]
    forced = ((b < init) | (b >= now - local)) & (b <= now)
    later = b > now

    def ranked(x, first):
        return np.where(later, -np.inf, np.where(first, np.inf, x))

    picks = forced | (take(ranked(pooled(np.where(seen, s, -np.inf)), forced), query) & ~later)
    by_u = pooled(np.where(seen, uc, -np.inf))
    return take(ranked(by_u, picks), total) & ~later


def layer_attention(q, chooser, k, v, u, budget, lag):
    """q, chooser [T, HEADS, D], k, v [T, KV_HEADS, D], u [T, KV_HEADS] -> [T, HEADS * D]"""
    tokens, group = len(q), HEADS // KV_HEADS
    kc, uc = means(k), means(u)
    out = np.empty((tokens, HEADS, D), np.float32)
    for begin in range(0, tokens, CHUNK):
        end = min(begin + CHUNK, tokens)
        row, upto = np.arange(begin, end), -(-end // BLOCK) * BLOCK
        windows = upto // 16 - 1
        for h in range(KV_HEADS):
            heads = slice(h * group, (h + 1) * group)
            keep = np.arange(upto) <= row[:, None]
            if budget is not None:
                c = chosen_blocks(chooser[begin:end, heads].transpose(1, 0, 2), kc[:windows, h],
                                  uc[:windows, h], row, budget, lag)
                keep &= np.repeat(c, BLOCK, 1)
            x = q[begin:end, heads].transpose(1, 0, 2) @ k[:upto, h].T / np.float32(math.sqrt(D))
            x = np.where(keep, x + u[:upto, h], np.float32(-1e30))
            w = np.exp(x - x.max(-1, keepdims=True))
            y = w @ v[:upto, h] / w.sum(-1, keepdims=True)
            out[begin:end, heads] = y.transpose(1, 0, 2)
    return out.reshape(tokens, -1)


def nats(weights, ids, budget, source):
    """Log loss of each of ids[1:] given those before it."""
    x = weights['model.embed_tokens.weight'][ids]
    before = None
    for n in range(LAYERS):
        w = {name.split(f'layers.{n}.')[1]: x for name,
     x in weights.items() if f'layers.{n}.' in name}

        def queries(residual):
            h = norm(residual, w['input_layernorm.weight'])
            return rope((h @ w['self_attn.q_proj.weight'].T).reshape(-1, HEADS, D))

        h = norm(x, w['input_layernorm.weight'])
        q = queries(x)
        k = to_bf16(rope((h @ w['self_attn.k_proj.weight'].T).reshape(-1, KV_HEADS, D)))
        v = to_bf16(h @ w['self_attn.v_proj.weight'].T)
        u = np.logaddexp(0, v @ w['self_attn.delta.weight'].T).astype(np.float32)
        u = to_bf16(w['self_attn.A'] * u)
        chooser = q
        if source == 'step':
            chooser = np.concatenate([q[:1], q[:-1]])
        elif source != 'own' and before is not None:
            chooser = queries(before)
        o = layer_attention(q, chooser, k, v.reshape(-1, KV_HEADS, D),
                            u, budget, int(source != 'own'))
        middle = x + o @ w['self_attn.o_proj.weight'].T
        before = x if source == 'input' else middle
        h = norm(middle, w['post_attention_layernorm.weight'])
        gate = h @ w['mlp.gate_proj.weight'].T
        up = h @ w['mlp.up_proj.weight'].T
        x = middle + (gate / (1 + np.exp(-gate)) * up) @ w['mlp.down_proj.weight'].T
    logits = norm(x, weights['model.norm.weight']) @ weights['model.embed_tokens.weight'].T
    peak = logits.max(1)
    lse = peak + np.log(np.exp(logits - peak[:, None]).sum(1))
    return (lse[:-1] - logits[np.arange(len(ids) - 1), ids[1:]]).astype(np.float64)


def main():
    from tokenizers import Tokenizer
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--texts', type=int, default=2)
    parser.add_argument('--tokens', type=int, default=4096)
    parser.add_argument('--budget', default='1,4,10,16', help='four counts, or full')
    parser.add_argument('--sources', default='own,mid,input,step')
    args = parser.parse_args()
    budget = None if args.budget == 'full' else tuple(map(int, args.budget.split(',')))
    with lzma.open(os.path.join(FOLDER, 'cases.tar.xz')) as f:
        with tarfile.open(fileobj=io.BytesIO(f.read())) as tar:
            lines = tar.extractfile('cases/text-16k.jsonl').read().decode().splitlines()
    tokenizer, weights = Tokenizer.from_file(os.path.join(FOLDER, 'tokenizer.json')), load()
    length = np.array([len(tokenizer.id_to_token(i)) if i else 0
                       for i in range(tokenizer.get_vocab_size())])
    for source in args.sources.split(','):
        total = size = 0
        for n, line in enumerate(lines[:args.texts]):
            start = time.time()
            ids = np.array(tokenizer.encode(json.loads(line)[
                           'text']).ids[16384 - args.tokens:16384])
            loss, count = nats(weights, ids, budget, source).sum(), length[ids[1:]].sum()
            total, size = total + loss, size + count
            print(f'{args.budget} {source} text {n}: {loss / math.log(2) / count:.5f} bits a byte '
                  f'({loss:.2f} nats, {count} bytes, {time.time() - start:.1f} s)', flush=True)
        print(f'{args.budget} {source}: {total / math.log(2) / size:.5f}', flush=True)


if __name__ == '__main__':
    main()
