"""The oracle's SSA, MoBA and NSA held against themselves, their papers' limits and literal twins.

    python3 test_selectors.py [SEED]    prints 'N passed, N failed', exits 1 when one failed
"""
import sys
import tempfile

import numpy as np

import nosa
import test_nosa
from nosa import Decoder, bf16

SEED = int(sys.argv[1]) if len(sys.argv) > 1 else 1


def gated_model(rng):
    with tempfile.TemporaryDirectory() as folder:
        return test_nosa.tiny_model(rng, folder, gate=True)


def streamed_top(scores, k, width):
    """The search of SSA's released kernel as it runs: a sorted buffer of `width`, of which each
    further chunk of `width` blocks leaves the better half and brings its own."""
    def ranked(ids):
        return sorted(ids, key=lambda b: (-scores[b], b))

    buffer = ranked(range(min(width, len(scores))))
    for first in range(width, len(scores), width):
        chunk = ranked(range(first, min(first + width, len(scores))))
        buffer = ranked(buffer[:width // 2] + chunk[:width // 2])
    return set(buffer[:k])


def a_budget_that_holds_everything_is_full_attention():
    rng = np.random.default_rng(SEED)
    model = gated_model(rng)
    tokens = rng.integers(0, 50, 300)
    want = model.logits(model.prefill(tokens, nosa.Selector(0, 0, 0, nosa.EVERYTHING, bias=False)))
    for sel in (nosa.ssa(19), nosa.ssa(10, 32), nosa.moba(5, 64)):
        got = model.logits(model.prefill(tokens, sel))
        assert np.abs(got - want).max() < 1e-12
    got = model.logits(model.prefill(tokens, nosa.ssa(8)))
    assert np.abs(got - want)[:128].max() < 1e-12 and np.abs(got - want)[128:].max() > 1e-6
    plain = model.w.pop('model.layers.1.self_attn.g_proj.weight')
    assert np.abs(model.logits(model.prefill(tokens, nosa.ssa(19))) - want).max() > 1e-3
    model.w['model.layers.1.self_attn.g_proj.weight'] = plain


def decode_equals_prefill_row_by_row():
    rng = np.random.default_rng(SEED + 1)
    model = gated_model(rng)
    tokens = rng.integers(0, 50, 420)
    for sel in (nosa.ssa(8), nosa.ssa(16, 16, 16), nosa.ssa(6, 16, source='mid'), nosa.moba(3, 32),
                nosa.nsa(8, near=50), nosa.nsa(16, 16, 130, 16, 'step'), nosa.nsa_overlap(4, 100)):
        picked = {}
        x = model.prefill(tokens, sel, lambda layer, *parts: picked.update({layer: parts[:2]}))
        logits, decoder = model.logits(x), Decoder(model, sel)
        for t, token in enumerate(tokens):
            assert np.abs(decoder.step(token) - logits[t]).max() < 1e-9, (sel, t)
            for layer, heads in enumerate(decoder.selected):
                for h, (blocks, settled) in enumerate(heads):
                    chosen, late = (part[h, t] for part in picked[layer])
                    assert set(np.nonzero(chosen)[0]) == set(blocks), (sel, t)
                    assert set(np.nonzero(late)[0]) == set(blocks[settled:]), (sel, t)


def the_normaliser_has_complete_blocks_and_the_current_one_always_wins():
    rng = np.random.default_rng(SEED + 2)
    sel, g, d = nosa.ssa(5), 3, 8
    k, q = bf16(rng.standard_normal((400, d))), 2 * rng.standard_normal((400, g, d))
    kc = nosa.compress(k, sel)
    for t in (14, 15, 16, 31, 159, 160, 254, 255, 256, 399):
        blocks = t // 16 + 1
        s = [q[t] @ bf16(k[16 * c:16 * c + 16].mean(0)) / np.sqrt(d) for c in range((t + 1) // 16)]
        e = np.exp(np.array(s).reshape(-1, g))
        value = (e / e.sum(0)).sum(1) if len(e) else np.zeros(0)
        value = np.append(value[:t // 16], np.inf)
        want = set(np.argsort(-value, kind='stable')[:5])
        got, settled = nosa.select_row(q[t], kc, np.zeros(len(kc)), t, sel)
        assert set(got) == want and t // 16 in got and len(got) == min(5, blocks), t
        assert blocks <= 5 or got[:settled] == [t // 16]
        more, _ = nosa.select_row(q[t], kc, np.zeros(len(kc)), t, nosa.ssa(9))
        assert set(got) <= set(more)


def the_truncated_search_is_that_of_a_buffer_of_one_chunk():
    rng = np.random.default_rng(SEED + 3)
    for blocks in (1, 15, 16, 17, 31, 32, 33, 47, 48, 100, 129):
        for k in (4, 8, 12, 16):
            scores = rng.integers(0, 30, blocks).astype(float)
            scores[-1] = np.inf
            sel = nosa.ssa(k, 16, 16)
            want = streamed_top(scores, k, 16)
            assert set(nosa.top_picks(scores.tolist(), sel)) == want
            if blocks > k:
                pos = np.array([16 * blocks - 1])
                chosen, _ = nosa.choose(scores[None], scores[None], pos, sel)
                assert set(np.nonzero(chosen[0])[0]) == want
            if k <= 8:
                assert want == set(nosa.top(scores.tolist(), k))
    scores = rng.standard_normal(80)
    counts = [len(nosa.top_picks(scores[:b + 1].tolist(), nosa.ssa(16, 16, 16)))
              for b in range(16, 32)]
    assert counts == [9, 10, 11, 12, 13, 14, 15, *[16] * 9]


def moba_ranks_blocks_by_the_plain_product_with_their_mean():
    rng = np.random.default_rng(SEED + 4)
    d = 8
    k, q = bf16(rng.standard_normal((2100, d))), rng.standard_normal((2100, 1, d))
    for sel in (nosa.moba(3, 64), nosa.moba(3, 256)):
        kc = nosa.compress(k, sel)
        pos = np.arange(0, 2100, 7)
        chosen, late, _ = nosa.select_rows(q[pos], kc, np.zeros(len(kc)), pos, sel, 2100 // sel.block + 1)
        for n, t in enumerate(pos):
            current = t // sel.block
            value = [(q[t] @ np.array([bf16(k[a:a + sel.window].mean(0)) for a in
                      range(sel.block * b, sel.block * (b + 1), sel.window)]).mean(0))[0]
                     for b in range(current)]
            want = {current, *np.argsort(-np.array(value), kind='stable')[:2].tolist()}
            got = set(nosa.select_row(q[t], kc, np.zeros(len(kc)), t, sel)[0])
            assert got == set(np.nonzero(chosen[n])[0]) == want, (sel, t)


def nsa_is_the_gated_sum_of_three_attentions():
    rng = np.random.default_rng(SEED + 5)
    d = 8
    k, v = (bf16(rng.standard_normal((420, d))) for _ in range(2))
    q, pos = 2 * rng.standard_normal((420, 3, d)), np.arange(420)
    for near in (1, 50, 128, 1000):
        sel = nosa.nsa(6, 16, near)
        kc, vc = nosa.compress(k, sel), nosa.compress(v, sel)
        coarse, by = nosa.coarse_rows(q, kc, vc, pos, sel), nosa.near_rows(q, k, v, pos, sel)
        for t in (0, 14, 15, 16, 31, 49, 50, 51, 127, 128, 399, 419):
            want = np.zeros((2, 3, d))
            for g in range(3):
                for n, (keys, values) in enumerate((
                        ([k[16 * c:16 * c + 16].mean(0) for c in range((t + 1) // 16)],
                         [v[16 * c:16 * c + 16].mean(0) for c in range((t + 1) // 16)]),
                        (k[max(0, t - near + 1):t + 1], v[max(0, t - near + 1):t + 1]))):
                    w = [np.exp(q[t, g] @ bf16(key) / np.sqrt(d)) for key in keys]
                    for weight, value in zip(w, values):
                        want[n, g] += weight * bf16(value) / sum(w)
            assert np.abs(coarse[t] - want[0]).max() < 1e-12 and np.abs(by[t] - want[1]).max() < 1e-12
            assert np.abs(nosa.coarse_row(q[t], kc, vc, t, sel) - want[0]).max() < 1e-12
            assert np.abs(nosa.near_row(q[t], k, v, t, sel) - want[1]).max() < 1e-12
        assert (coarse[:15] == 0).all() and (coarse[15] != 0).all()
    everything = np.ones((420, 1), bool)
    whole = nosa.attend_rows(q, k, v, np.zeros(420), everything, pos, nosa.Selector(block=1024))
    assert np.abs(by - whole).max() < 1e-12                 # the window holds all
    one = nosa.Selector(0, 0, 1, 1, False, False, window=1, stride=1, near=1)
    assert np.abs(nosa.coarse_rows(q, k, v, pos, one) - whole).max() < 1e-12
    model = gated_model(rng)
    tokens, gate = rng.integers(0, 50, 300), model.gate
    three = model.prefill(tokens, nosa.nsa(6, near=50))
    assert np.abs(three - model.prefill(tokens, nosa.ssa(6))).max() > 1e-3
    model.gate = lambda x, layer, branch=1: gate(x, layer) * (branch == 1)
    assert np.abs(model.prefill(tokens, nosa.nsa(6, near=50))
                  - model.prefill(tokens, nosa.ssa(6))).max() < 1e-12
    model.gate = lambda x, layer, branch=1: gate(x, layer, 2) * (branch == 2)
    other = model.prefill(tokens, nosa.nsa(6, near=300))    # the sliding branch alone, over all
    model.gate = lambda x, layer, branch=1: gate(x, layer, 2)
    assert np.abs(other - model.prefill(tokens, nosa.ssa(19))).max() < 1e-9


def nsa_ranks_overlapping_windows_by_its_double_sum():
    rng = np.random.default_rng(SEED + 6)
    sel, d = nosa.nsa_overlap(6, 100), 8
    k, q = bf16(rng.standard_normal((1500, d))), 2 * rng.standard_normal((1500, 3, d))
    kc = nosa.compress(k, sel)
    assert nosa.shares(0, sel).tolist() == [2, 2, 2, 1]     # nothing before block 0
    assert nosa.shares(5, sel).tolist() == [1, 2, 2, 2, 1]
    pos = np.arange(1500)
    chosen, _, _ = nosa.select_rows(q, kc, np.zeros(len(kc)), pos, sel, 24)
    for t in (383, 384, 447, 448, 700, 1023, 1037, 1038, 1039, 1499):
        p = {}
        for g in range(3):                                  # window j: tokens 16 j .. 16 j + 31
            e = [np.exp(q[t, g] @ c / np.sqrt(d)) for c in kc[:(t - 31) // 16 + 1]]
            for j, value in enumerate(e):
                p[j] = p.get(j, 0) + value / sum(e)
        current = t // 64
        score = [sum(p.get(4 * b + 3 - m - n, 0) for m in range(4) for n in range(2))
                 for b in range(current)]
        rest = sorted(range(1, current - 1), key=lambda b: (-score[b], b))
        want = {0, current - 1, current, *rest[:3]}
        assert set(nosa.select_row(q[t], kc, np.zeros(len(kc)), t, sel)[0]) == want, t
        assert set(np.nonzero(chosen[t])[0]) == want, t


def main():
    print(f'seed {SEED}')
    failed, tests = 0, (a_budget_that_holds_everything_is_full_attention,
                        decode_equals_prefill_row_by_row,
                        the_normaliser_has_complete_blocks_and_the_current_one_always_wins,
                        the_truncated_search_is_that_of_a_buffer_of_one_chunk,
                        moba_ranks_blocks_by_the_plain_product_with_their_mean,
                        nsa_is_the_gated_sum_of_three_attentions,
                        nsa_ranks_overlapping_windows_by_its_double_sum)
    for function in tests:
        try:
            function()
            print('ok    ', function.__name__, flush=True)
        except AssertionError as error:
            failed += 1
            print('FAILED', function.__name__, error, flush=True)
    print(f'{len(tests) - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
