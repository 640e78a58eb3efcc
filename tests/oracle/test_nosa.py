"""The oracle held against itself, against the paper's limits and against a brute-force twin.

    python3 test_nosa.py [SEED]         prints 'N passed, N failed', exits 1 when one failed
"""
import json
import math
import os
import struct
import sys
import tempfile

import numpy as np

import nosa
from nosa import Decoder, Model, Selector, bf16

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1
BUDGET = (1, 1, 4, 6)
# rows around window and block ends, and where the published budget starts to choose and to drop
EDGES = [0, 1, 14, 15, 16, 30, 31, 32, 46, 47, 48, 62, 63, 64, 65, 127, 128, 1086, 1087, 1088, 1151,
         1152, 1153, 2110, 2111, 2112, 4094, 4095, 4096, 4097, 4110, 4111, 4112, 4159, 4160]
TESTS = []


def test(function):
    TESTS.append(function)
    return function


# ---- brute force: scalars and tokens, nothing shared ---------------------------------------------

def brute_select(q, k, u, pos, sel):
    """q [G][D]; k [T][D], u [T] of tokens, not windows -> set of blocks. Windows are made here."""
    seen = pos + 1 if sel.source == 'own' else pos
    starts = [t for t in range(0, seen, sel.stride) if t + sel.window <= seen]
    kc = [[float(bf16(math.fsum(k[t + n][d] for n in range(sel.window)) / sel.window))
           for d in range(len(q[0]))] for t in starts]
    uc = [float(bf16(math.fsum(u[t + n] for n in range(sel.window)) / sel.window)) for t in starts]
    s = [0.0] * len(starts)
    for head in q:
        e = [math.exp(math.fsum(a * b for a, b in zip(head, key)) / math.sqrt(len(head)))
             for key in kc]
        for j, value in enumerate(e):
            s[j] += value / math.fsum(e)
    current = pos // sel.block
    rank_q, rank_u = {}, {}
    for b in range(current + 1):
        tokens = set(range(b * sel.block, (b + 1) * sel.block))
        touching = [j for j, t in enumerate(starts) if tokens & set(range(t, t + sel.window))]
        must = b < sel.init or current - b <= sel.local
        rank_q[b] = (not must, -max((s[j] for j in touching), default=-math.inf), b)
        rank_u[b] = (not must, -max((uc[j] for j in touching), default=-math.inf), b)
    must = {b for b, rank in rank_q.items() if not rank[0]}
    picks = set(sorted(rank_q, key=rank_q.get)[:sel.query]) | must
    if not sel.fill:
        return picks
    rest = sorted((b for b in rank_u if b not in picks), key=rank_u.get)
    return picks | set(rest[:max(0, sel.total - len(picks))])


def brute_attend(q, k, v, u, blocks, pos, sel):
    out = []
    for head in q:
        w = {t: math.exp(math.fsum(a * b for a, b in zip(head, k[t])) / math.sqrt(len(head))
                         + (u[t] if sel.bias else 0.0))
             for t in range(pos + 1) if t // sel.block in blocks}
        total = math.fsum(w.values())
        out.append([math.fsum(w[t] * v[t][d] for t in w) / total for d in range(len(head))])
    return np.array(out)


# ---- cases ---------------------------------------------------------------------------------------

def rows(rng, tokens, d=16, g=3):
    """Keys and importance with runs of 32 alike tokens, so that blocks differ."""
    runs = np.repeat(rng.standard_normal((tokens // 32 + 1, d)), 32, 0)[:tokens]
    k = bf16(rng.standard_normal((tokens, d)) + 0.7 * runs)
    u = bf16(rng.standard_normal(tokens)
             + np.repeat(rng.standard_normal(tokens // 32 + 1), 32)[:tokens])
    return rng.standard_normal((tokens, g, d)) * 2, k, bf16(rng.standard_normal((tokens, d))), u


def tiny_model(rng, folder, a=0.7, gate=False, **more):
    """A random checkpoint on disk: 2 layers, 4 query and 2 KV heads of 16."""
    config = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=50,
                  num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
                  rope_theta=10000.0, max_position_embeddings=4096, tie_word_embeddings=True,
                  **more)
    shapes = {'model.embed_tokens.weight': (50, 32), 'model.norm.weight': (32,)}
    for n in range(2):
        p = f'model.layers.{n}.'
        shapes |= {p + 'input_layernorm.weight': (32,),
                   p + 'post_attention_layernorm.weight': (32,),
                   p + 'self_attn.q_proj.weight': (64, 32), p + 'self_attn.k_proj.weight': (32, 32),
                   p + 'self_attn.v_proj.weight': (32, 32), p + 'self_attn.o_proj.weight': (32, 64),
                   p + 'mlp.gate_proj.weight': (48, 32), p + 'mlp.up_proj.weight': (48, 32),
                   p + 'mlp.down_proj.weight': (32, 48), p + 'self_attn.A': (2,),
                   p + 'self_attn.delta.weight': (2, 32)}
        if gate:
            shapes[p + 'self_attn.g_proj.weight'] = (12, 32)
    header, data = {}, b''
    for name, shape in shapes.items():
        x = rng.standard_normal(shape) * (0.5 if len(shape) == 2 else 0.1) + (len(shape) == 1)
        if name.endswith('self_attn.A'):
            x = np.full(shape, a)
        bits = (bf16(x).astype(np.float32).view(np.uint32) >> 16).astype('<u2').tobytes()
        header[name] = {'dtype': 'BF16', 'shape': shape,
                        'data_offsets': [len(data), len(data) + len(bits)]}
        data += bits
    head = json.dumps(header).encode()
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head + data)
    with open(os.path.join(folder, 'config.json'), 'w') as f:
        json.dump(config, f)
    return Model(folder)


# ---- tests ---------------------------------------------------------------------------------------

@test
def bf16_rounds_to_nearest_even():
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-40, -1 - 2**-9, 0.0, 2.0**-133])
    want = np.array([1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0, 0.0, 2.0**-133])
    assert (bf16(x) == want).all()
    bits = np.arange(1, 0x7f7f, dtype=np.uint32) << 16
    exact = bits.view(np.float32).astype(np.float64)
    assert (bf16(exact) == exact).all()


@test
def a_window_is_visible_at_the_token_that_completes_it():
    sel = nosa.nosa()
    assert [nosa.windows_visible(i, sel) for i in (0, 30, 31, 46, 47, 63)] == [0, 0, 1, 1, 2, 3]
    early = nosa.nosa(source='mid')
    assert [nosa.windows_visible(i, early) for i in (31, 32, 47, 48)] == [0, 1, 1, 2]


@test
def the_windows_of_a_block_are_those_that_touch_it():
    for window, stride, block in ((32, 16, 64), (16, 16, 16),
                                  (64, 64, 64), (32, 16, 128), (32, 16, 16)):
        sel = Selector(window=window, stride=stride, block=block)
        for b in range(5):
            low, high = nosa.windows_of_block(b, sel)
            touch = [j for j in range(99) if stride * j < (b + 1) * block
                     and stride * j + window > b * block]
            assert list(range(low, high)) == touch


@test
def one_row_and_all_rows_select_alike_at_every_edge():
    rng = np.random.default_rng(SEED)
    q, k, v, u = rows(rng, 4200)
    for sel in (nosa.nosa(), nosa.nosa((1, 4, 10, 16)), nosa.infllmv2((1, 4, 10, 16)),
                nosa.nosa((1, 14, 0, 16)), nosa.nosa((1, 4, 6, 16)), nosa.nosa((1, 4, 16, 16)),
                nosa.nosa((1, 4, 10, 16), 'step'),
                Selector(0, 0, 16, 16, fill=False, bias=False, window=16, block=16)):
        kc, uc = nosa.compress(k, sel), nosa.compress(u, sel)
        pos = np.array(EDGES)
        chosen, late, _ = nosa.select_rows(q[pos], kc, uc, pos, sel, 4200 // sel.block + 1)
        for n, i in enumerate(EDGES):
            blocks, settled = nosa.select_row(q[i], kc, uc, i, sel)
            assert set(np.nonzero(chosen[n])[0]) == set(blocks), (sel, i)
            assert set(np.nonzero(late[n])[0]) == set(blocks[settled:]), (sel, i)
            assert len(blocks) == min(sel.limit, i // sel.block + 1)
            assert i // sel.block in blocks and (sel.init == 0 or 0 in blocks)
            assert blocks[:settled] == sorted(blocks[:settled])


@test
def brute_force_agrees():
    rng = np.random.default_rng(SEED + 1)
    q, k, v, u = rows(rng, 1200, 8, 2)
    for sel in (nosa.nosa(BUDGET), nosa.nosa((2, 3, 8, 12), 'mid'), nosa.infllmv2((1, 2, 0, 9)),
                nosa.nosa((1, 4, 0, 8)),
                Selector(1, 1, 6, 9, window=16, block=16), Selector(1, 0, 3, 5, block=128)):
        kc, uc = nosa.compress(k, sel), nosa.compress(u, sel)
        for i in (0, 31, 63, 64, 511, 512, 575, 640, 767, 1005, 1007, 1008, 1151, 1152, 1199):
            blocks, _ = nosa.select_row(q[i], kc, uc, i, sel)
            plain = [x.tolist() for x in (q[i], k, v, u)]
            assert set(blocks) == brute_select(plain[0], plain[1], plain[3], i, sel), (sel, i)
            if i in (31, 640, 1199):
                got = nosa.attend_row(q[i], k, v, u, blocks, i, sel)
                want = brute_attend(*plain, blocks, i, sel)
                assert np.abs(got - want).max() < 1e-12


@test
def margins_tell_how_near_another_selection_is():
    rng = np.random.default_rng(SEED + 8)
    q, k, v, u = rows(rng, 1500, 8, 2)
    pos = np.arange(1000, 1500)
    for sel in (nosa.nosa(BUDGET), nosa.nosa((1, 1, 6, 8)), nosa.infllmv2((1, 2, 0, 9))):
        kc, uc = nosa.compress(k, sel), nosa.compress(u, sel)
        visible = nosa.windows_mask(pos, len(kc), sel)
        s = nosa.window_scores(q[pos], kc, pos, sel)
        chosen, late, (query, fill) = nosa.select_rows(q[pos], kc, uc, pos, sel, 24)
        assert (query >= 0).all() and (fill >= 0).all() and np.isfinite(query).all()

        def picks(scores):
            by_query = nosa.block_scores(scores, visible, sel, 24)
            return nosa.choose(by_query, np.zeros((500, 24)), pos, sel)[1]

        def disturbed(factor):
            signs = rng.choice((-1, 1), s.shape)
            return (picks(s * (1 + factor * query[:, None] * signs)) != late).any(1)

        # any error below the margin leaves the picks alone, one of three times the margin does not
        assert not any(disturbed(0.999).any() for _ in range(20))
        assert (sum(disturbed(3) for _ in range(20)) > 0).mean() > 0.9


@test
def ties_go_to_the_smaller_block():
    sel = nosa.nosa(BUDGET)
    q, k, u = np.zeros((1, 4)), np.ones((1000, 4)), np.ones(1000)
    blocks, settled = nosa.select_row(q, nosa.compress(k, sel), nosa.compress(u, sel), 999, sel)
    assert blocks == [0, 2, 3, 14, 15, 1] and settled == 5


@test
def decode_equals_prefill_row_by_row():
    rng = np.random.default_rng(SEED + 2)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(rng, folder)
    tokens = rng.integers(0, 50, 600)
    for sel in (nosa.nosa(BUDGET), nosa.infllmv2(BUDGET), nosa.full(), nosa.nosa(BUDGET, 'mid'),
                nosa.nosa(BUDGET, 'input'), nosa.nosa(BUDGET, 'step')):
        picked = {}
        x = model.prefill(tokens, sel, lambda layer, *parts: picked.update({layer: parts[:2]}))
        logits, decoder, worst = model.logits(x), Decoder(model, sel), 0.0
        for t, token in enumerate(tokens):
            worst = max(worst, np.abs(decoder.step(token) - logits[t]).max())
            for layer, heads in enumerate(decoder.selected):
                for h, (blocks, settled) in enumerate(heads):
                    chosen, late = (part[h, t] for part in picked[layer])
                    assert set(np.nonzero(chosen)[0]) == set(blocks), (sel, t)
                    assert set(np.nonzero(late)[0]) == set(blocks[settled:]), (sel, t)
        assert worst < 1e-9, (sel, worst)


@test
def a_zero_selects_as_infllmv2_when_queries_pick_everything():
    rng = np.random.default_rng(SEED + 3)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(rng, folder, a=0.0)
    tokens, got = rng.integers(0, 50, 1300), []
    for sel in (nosa.nosa((1, 1, 6, 6)), nosa.infllmv2((1, 1, 6, 6))):
        picks = []
        logits = model.logits(model.prefill(tokens, sel, lambda *x: picks.append(x[1])))
        got.append((logits, np.array(picks)))
    assert (got[0][1] == got[1][1]).all() and np.abs(got[0][0] - got[1][0]).max() < 1e-12


@test
def a_constant_importance_shifts_nothing():
    rng = np.random.default_rng(SEED + 4)
    q, k, v, u = rows(rng, 1000)
    sel = nosa.nosa(BUDGET)
    pos = np.arange(1000)
    kc, uc = nosa.compress(k, sel), nosa.compress(u, sel)
    base, *_ = nosa.select_rows(q, kc, uc, pos, sel, 16)
    other, *_ = nosa.select_rows(q, kc, uc + 4, pos, sel, 16)
    assert (base == other).all()
    one = nosa.attend_rows(q, k, v, u, base, pos, sel)
    assert np.abs(one - nosa.attend_rows(q, k, v, u + 4, base, pos, sel)).max() < 1e-12


@test
def within_the_budget_everything_equals_full_attention():
    rng = np.random.default_rng(SEED + 5)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(rng, folder)
    tokens = rng.integers(0, 50, 64 * 6 + 5)
    want = model.logits(model.prefill(tokens, nosa.full()))
    for source in nosa.SOURCES:
        got = model.logits(model.prefill(tokens, nosa.nosa(BUDGET, source)))
        assert np.abs(got[:384] - want[:384]).max() < 1e-12       # the first 6 blocks: all fits
        assert np.abs(got[384:] - want[384:]).max() > 1e-6        # the next row drops a block


@test
def sources_differ_only_where_they_should():
    rng = np.random.default_rng(SEED + 6)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model(rng, folder)
    tokens, picks = rng.integers(0, 50, 1200), {}
    for source in nosa.SOURCES:
        model.prefill(tokens, nosa.nosa(BUDGET, source),
                      lambda layer, chosen, *_: picks.update({(source, layer): chosen}))
    # layer 0 of mid and input uses its own query: only the window just completed is missing
    assert (picks['mid', 0] == picks['input', 0]).all()
    unlike = (picks['mid', 0] != picks['own', 0]).any(-1).any(0)
    assert unlike.any() and set(np.nonzero(unlike)[0] % 16) == {15}
    assert (picks['step', 0] != picks['own', 0]).any()
    assert (picks['mid', 1] != picks['input', 1]).any()


@test
def the_published_budget_drops_nothing_before_token_4096():
    rng = np.random.default_rng(SEED + 7)
    q, k, v, u = rows(rng, 4200, 8, 1)
    sel = nosa.nosa()
    kc, uc = nosa.compress(k, sel), nosa.compress(u, sel)
    pos = np.array([1151, 1152, 4095, 4096])
    chosen, *_ = nosa.select_rows(q[pos], kc, uc, pos, sel, 66)
    assert chosen.sum(1).tolist() == [18, 19, 64, 64]


def main():
    print(f'seed {SEED}')
    failed = 0
    for function in TESTS:
        try:
            function()
            print('ok    ', function.__name__, flush=True)
        except AssertionError as error:
            failed += 1
            print('FAILED', function.__name__, error, flush=True)
    print(f'{len(TESTS) - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
