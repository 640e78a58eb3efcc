"""Selections and attention of the kernels' backends against the float64 oracle.

    python3 compare_select.py PROGRAM        PROGRAM: build/bin/ops (kernels/README.md)
    python3 compare_select.py --emulate      float32 NumPy in its place
    options: --rows N (at least so many random rows, default 100000), --seed S

Each of more than 10^5 random rows, every edge position among them in each case, must select what
the oracle selects, in the canonical order, wherever the oracle's scores are further apart than
float32 can confuse; at least 99 % of the selections must be such. Pooled scores must lie within
that bound, importance must be equal, attention over the program's own selection within a bound of
its own. Controls show that the bounds are tight: a dropped block, u shifted by a token and windows
shifted by a token must each be noticed.

The bound. u = 2^-24. chain(n) is the longest chain of roundings in a sum of n terms: n in any
order, n / 16 + 4 with sixteen lanes and a tree, which is how the CPU levels sum
(kernels/README.md). A logit sums D products, one fma each, and is scaled: |error| <= (chain(D) + 2)
u |q| |k| / sqrt(D) =: d (Cauchy-Schwarz for the sum of absolute products). exp(x - max) adds the
subtraction's rounding, |x - max| u <= 2 L u with L = |q| |k| / sqrt(D), and the polynomial's, taken
as 2^-22; numerator and denominator of the softmax both have these, the denominator sums M terms,
then there is a division and a sum over G heads. The relative error of a score is below
    e = 2 (d + 2 L u + 2^-22) + (chain(M) + G + 2) u
and since every term of a sum is positive, so is that of the group's score and of a maximum of
scores. Two sets of scores cannot be confused when (low - high) / (low + high) > e (nosa.margins).
Plain products (MoBA) have an absolute bound, products alone, and low - high > 2 bounds.
Importance windows are given as bf16 to both sides, so their comparison is exact, ties included. For
attention the same e holds with keys for windows and tokens for M (the bias adds one rounding, |u|
u, the accumulation over N tokens in any order N u): |error| <= (e + (N + 2) u) * sum(w |v|) /
sum(w).
"""
import argparse
import dataclasses
import math
import sys
import tempfile
import time

import numpy as np

import casefile
import nosa
from casefile import CHUNK, COMPRESS, NO_ATTEND
from emulate import emulate, storage

EDGES = [0, 1, 14, 15, 16, 30, 31, 32, 46, 47, 48, 62, 63, 64, 65, 127, 128, 1086, 1087, 1088, 1151,
         1152, 1153, 2110, 2111, 2112, 4094, 4095, 4096, 4097, 4110, 4111, 4112, 4159, 4160]
U = 2.0**-24
EXP_ERROR = 2.0**-22
JUDGED_SHARE = 0.99
CAUGHT_SHARE = 0.99


def cases(rows, seed):
    """Generator of cases until `rows` rows have been given, every kind at least once."""
    budget, small = (1, 4, 10, 16), (2, 4, 64)
    published = ((2, 16, 128), 8192)
    kinds = [
        ('nosa 64, G 16, D 128', nosa.nosa(), *published, NO_ATTEND),
        ('infllmv2 64, G 16, D 128', nosa.infllmv2(), *published, NO_ATTEND),
        *((f'nosa {b[3]}', nosa.nosa(b), small, 4480, NO_ATTEND)
          for b in ((1, 1, 5, 8), (1, 3, 8, 12), budget, (1, 7, 15, 24), (1, 9, 19, 32))),
        *((f'nosa 16, {source}', nosa.nosa(budget, source), small, 4480, NO_ATTEND)
          for source in ('mid', 'step')),
        ('infllmv2 16', nosa.infllmv2(budget), small, 4480, NO_ATTEND),
        ('window 16', nosa.nosa((1, 14, 0, 16)), small, 4480, NO_ATTEND),
        ('importance 16', nosa.nosa((1, 4, 6, 16)), small, 4480, NO_ATTEND),
        ('query 16', nosa.nosa((1, 4, 16, 16)), small, 4480, NO_ATTEND),
        ('own windows', nosa.nosa(budget), small, 4480, NO_ATTEND | COMPRESS),
        ('blocks of 16 by 16', nosa.Selector(0, 0, 16, 16, False, False, window=16, block=16),
         small, 4480, NO_ATTEND),
        ('ssa 12', nosa.ssa(12), small, 4480, NO_ATTEND),
        ('ssa 16 by chunks', nosa.ssa(16, 16, 16), small, 4480, NO_ATTEND),
        ('nsa 12, window 100', nosa.nsa(12, near=100), small, 4480, NO_ATTEND),
        ('nsa 16 by chunks', nosa.nsa(16, near=128, chunk=16, source='mid'), small, 4480, NO_ATTEND),
        ('nsa 16, windows that overlap', nosa.nsa_overlap(), small, 4480, NO_ATTEND),
        ('moba 3 of 256', nosa.moba(3, 256), (3, 1, 64), 4480, NO_ATTEND),
        ('blocks of 32', nosa.Selector(1, 3, 12, 20, block=32), small, 4480, NO_ATTEND),
        ('blocks of 128', nosa.Selector(1, 2, 6, 10, block=128), small, 4480, NO_ATTEND),
        ('G 1', nosa.nosa(budget), (3, 1, 64), 4480, NO_ATTEND),
        ('G 3, D 128', nosa.nosa(budget), (2, 3, 128), 4480, NO_ATTEND),
        ('G 5', nosa.nosa(budget, 'input'), (1, 5, 64), 4480, NO_ATTEND),
    ]
    given = n = 0
    while given < rows or n < len(kinds):
        # the large ones once, they take the plain reference as long as all others together
        name, sel, shape, tokens, flags = kinds[n if n < len(kinds) else 2 + n % (len(kinds) - 2)]
        case = casefile.make(name, sel, shape, tokens, 4096, seed + n, flags, EDGES)
        given, n = given + len(case.pos), n + 1
        yield case


def attention_cases(seed):
    kinds = [('nosa 16', nosa.nosa((1, 4, 10, 16)), (2, 4, 64), 4480),
             ('full with bias', nosa.full(), (2, 4, 64), 4480),
             ('infllmv2 16', nosa.infllmv2((1, 4, 10, 16)), (2, 3, 64), 4480),
             ('nosa 64, G 16, D 128', nosa.nosa(), (1, 16, 128), 6144),
             ('blocks of 16', nosa.Selector(1, 1, 12, 24, block=16), (2, 2, 64), 4480),
             ('blocks of 128', nosa.Selector(1, 2, 6, 10, block=128), (2, 1, 128), 4480),
             ('nsa 12, window 300', nosa.nsa(12, near=300), (2, 2, 64), 4480),
             ('moba 3 of 512', nosa.moba(3, 512), (2, 1, 64), 4480)]
    for n, (name, sel, shape, tokens) in enumerate(kinds):
        yield casefile.make(name, sel, shape, tokens, 320, seed + 1000 + n, COMPRESS, EDGES)


def chain(terms, lanes):
    """Roundings that one term of a sum may go through."""
    return terms if lanes == 1 else terms / lanes + math.log2(lanes) + 1


def relative_bound(q, k, terms, lanes):
    """e of the head of this file for rows q [R, G, D] against vectors k [n, D]; terms [R]."""
    d, group = q.shape[2], q.shape[1]
    length = np.sqrt((k * k).sum(1).max()) if len(k) else 0.0
    most = np.sqrt((q * q).sum(2)).max(1) * length / math.sqrt(d)
    products = (chain(d, lanes) + 2) * U * most
    return 2 * (products + 2 * most * U + EXP_ERROR) + (chain(terms, lanes) + group + 2) * U


def lanes_of(backend):
    return 16 if backend.name.startswith('cpu') else 1


def raw_bound(q, k, sel, lanes):
    """As much for plain products (MoBA), absolute: D products, G heads and the windows of a block,
    each sum in one order or another."""
    d, group = q.shape[2], q.shape[1]
    length = np.sqrt((k * k).sum(1).max()) if len(k) else 0.0
    most = np.sqrt((q * q).sum(2)).max(1) * length * group
    return (chain(d, lanes) + group + sel.block / sel.stride + 2) * U * most


class Oracle:
    """What float64 says of one KV head's rows of a case, from given windows."""

    def __init__(self, case, h, rows, kc, uc, lanes):
        self.pos, self.sel = case.pos[rows], case.sel
        q = case.q[rows, h].astype(np.float64)
        blocks = -(-case.k.shape[1] // self.sel.block)
        s = nosa.window_scores(q, kc, self.pos, self.sel)
        visible = nosa.windows_mask(self.pos, len(kc), self.sel)
        self.query = nosa.block_scores(s, visible, self.sel, blocks)
        most = dataclasses.replace(self.sel, raw=False, near=0) # importance is a maximum always
        self.fill = nosa.block_scores(np.broadcast_to(uc, s.shape), visible, most, blocks)
        self.chosen, self.late = nosa.choose(self.query, self.fill, self.pos, self.sel)
        self.margin, _ = nosa.margins(s, uc, self.chosen, self.late, self.pos, self.sel)
        self.bound = relative_bound(q, kc, visible.sum(1), lanes)
        if self.sel.raw:
            self.bound = raw_bound(q, kc, self.sel, lanes)
        if self.sel.near:                                   # a sum over a block's windows
            self.bound += (self.sel.block + self.sel.window) / self.sel.stride * U
        self.judged = self.margin > (2 if self.sel.raw else 1) * self.bound
        ids, current = np.arange(blocks), (self.pos // self.sel.block)[:, None]
        self.current = current
        self.free = (ids >= self.sel.init) & (ids < current - self.sel.local)
        self.decides = (current[:, 0] >= self.sel.limit) & self.free.any(1)

    def compare(self, backend, h, rows):
        """-> dictionary of booleans [R]: True where the backend is as it should be."""
        units, order, count, settled = storage(self.chosen, self.late, self.pos, self.sel)
        width = min(order.shape[1], backend.block.shape[2])
        block, mask = backend.block[rows, h], backend.mask[rows, h]
        got = np.zeros((len(block), units.shape[1] // 4 + 1), np.int32)
        np.put_along_axis(got, np.where(block >= 0, block, got.shape[1] - 1), mask, 1)
        got = (got[:, :-1, None] >> np.arange(4) & 1).reshape(len(block), -1).astype(bool)
        got &= np.arange(got.shape[1]) <= (self.pos // 16)[:, None]
        same = (got == units).all(1) & (backend.count[rows, h] == count)
        ordered = ((block[:, :width] == order[:, :width]).all(1) & (block[:, width:] == -1).all(1)
                   & (order[:, width:] == -1).all(1) & (backend.settled[rows, h] == settled))
        blocks = self.free.shape[1]
        fill = backend.importance[rows, h, :blocks]
        visible = np.arange(blocks) <= self.current
        alike = ((fill == self.fill) | ~self.free) & ((fill == np.inf) | ~visible | self.free)
        return {'selection': same, 'order': ordered,
                'score': self.scores(backend.query[rows, h, :blocks]),
                'importance': alike.all(1) | (~self.decides if not self.sel.fill else False)}

    def scores(self, query):
        """Pooled scores within the bound, forced blocks +inf, where the row needs any."""
        if not self.sel.query:
            return np.ones(len(self.pos), bool)
        with np.errstate(invalid='ignore'):
            size = 1.0 if self.sel.raw else self.query
            near = np.abs(query - self.query) <= self.bound[:, None] * size
        near |= query == self.query
        visible = np.arange(query.shape[1]) <= self.current
        forced = (query == np.inf) | ~visible | self.free
        return ((near | ~self.free) & forced).all(1) | ~self.decides


class Tally:
    """Counts over all cases of one backend."""

    def __init__(self):
        self.rows = self.selections = self.judged = self.choosing = self.judged_choosing = 0
        self.wrong = dict.fromkeys(('selection', 'order', 'score', 'importance', 'windows'), 0)

    def good(self):
        return not any(self.wrong.values()) and self.judged >= JUDGED_SHARE * self.selections


def windows_as_stored(case, backend):
    """The windows that a backend made are the oracle's but for rounding: 32 terms summed in float32
    may fall the other way when a mean lies within 32 u of the middle between two bf16 numbers."""
    wrong = 0
    for got, want, source in ((backend.kc, case.kc, case.k), (backend.uc, case.uc, case.u)):
        step = np.abs(np.nextafter(want.astype(np.float32), np.float32(np.inf)) - want) * 2**16
        size = 32 * U * np.abs(source).max()
        wrong += (np.abs(got - want) > step + size).sum() + ((got != want).mean() > 1e-3)
    return wrong


def judge(tally, case, backend, results, kc=None, uc=None):
    """Hold one backend's selections of a case against the oracle."""
    if backend.kc is not None:
        tally.wrong['windows'] += windows_as_stored(case, backend)
    tally.rows += len(case.pos)
    lanes = lanes_of(backend)
    for h in range(case.k.shape[0]):
        for n, begin in enumerate(range(0, len(case.pos), CHUNK)):
            rows = slice(begin, begin + CHUNK)
            key = (h, n, lanes, backend.kc is None or backend.kc.tobytes() + backend.uc.tobytes())
            if key not in results:
                stored = case if backend.kc is None else backend
                results[key] = Oracle(case, h, rows, stored.kc[h], stored.uc[h], lanes)
            oracle = results[key]
            good = oracle.compare(backend, h, rows)
            tally.selections += len(oracle.judged)
            tally.judged += oracle.judged.sum()
            tally.choosing += oracle.decides.sum()
            tally.judged_choosing += (oracle.decides & oracle.judged).sum()
            for what in ('selection', 'order'):
                tally.wrong[what] += (~good[what] & oracle.judged).sum()
            for what in ('score', 'importance'):
                tally.wrong[what] += (~good[what]).sum()


def attention(case, backend, h, rows, drop=None, u=None):
    """-> (output error / bound) [R], largest over heads and dimensions, over the backend's own
    selection. drop [R]: a storage block left out (-1: none); u: another importance."""
    sel, pos, tokens = case.sel, case.pos[rows], np.arange(case.k.shape[1])
    q, k, v = case.q[rows, h].astype(np.float64), case.k[h], case.v[h]
    u = case.u[h] if u is None else u
    units = np.zeros((len(pos), -(-len(tokens) // 64) + 1, 4), bool)
    block, mask = backend.block[rows, h], backend.mask[rows, h]
    part = mask[:, :, None] >> np.arange(4) & 1
    np.put_along_axis(units, np.where(block >= 0, block, units.shape[1] - 1)[:, :, None], part, 1)
    if drop is not None:
        units[np.arange(len(pos)), drop] = False
    keep = units.reshape(len(pos), -1)[:, tokens // 16] & (tokens <= pos[:, None])
    count = keep.sum(1)
    bound = relative_bound(q, k, count, lanes_of(backend))
    bound += (2 * np.abs(u).max() + count + 2) * U
    worst = np.zeros(len(pos))
    for g in range(q.shape[1]):
        logits = q[:, g] @ k.T / math.sqrt(q.shape[2]) + (u if sel.bias else 0.0)
        logits = np.where(keep, logits, -np.inf)
        w = np.exp(logits - logits.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        error = np.abs(backend.out[rows, h, g] - w @ v) / (bound[:, None] * (w @ np.abs(v)))
        worst = np.maximum(worst, error.max(1))
    return worst


class Controls:
    """Shares of rows in which a deliberate mistake is noticed."""

    def __init__(self):
        self.caught = {}

    def add(self, name, noticed):
        count, total = self.caught.get(name, (0, 0))
        self.caught[name] = (count + int(noticed.sum()), total + len(noticed))

    def attention(self, case, backend, h, rows, rng):
        pos = case.pos[rows]
        which = (rng.random(len(pos)) * backend.count[rows, h]).astype(int)
        drop = backend.block[rows, h][np.arange(len(pos)), which]
        mask = backend.mask[rows, h] != 0       # NSA's window brings blocks with nothing selected
        many = (mask.sum(1) > 1) & mask[np.arange(len(pos)), which]
        safe = np.where(many, drop, -1)         # index -1: the pad, so that nothing is dropped
        error = attention(case, backend, h, rows, drop=safe)
        self.add('attention, one selected block dropped', error[many] > 1)
        if case.sel.bias:
            shifted = np.concatenate([case.u[h][:1], case.u[h][:-1]])
            error = attention(case, backend, h, rows, u=shifted)
            self.add('attention, u shifted by a token', error[pos > 0] > 1)

    def windows(self, case, backend):
        """Windows made one token late: scores, importance and stored windows must not pass."""
        late = [np.concatenate([x[:, :1], x[:, :-1]], 1) for x in (case.k, case.u)]
        kc, uc = casefile.windows(*late, case.sel)
        for h in range(case.k.shape[0]):
            for begin in range(0, len(case.pos), CHUNK):
                rows = slice(begin, begin + CHUNK)
                keys = Oracle(case, h, rows, kc[h], case.uc[h], lanes_of(backend))
                good = keys.compare(backend, h, rows)
                on = keys.decides
                self.add('scores, windows shifted by a token', ~good['score'][on])
                fill = Oracle(case, h, rows, case.kc[h], uc[h], lanes_of(backend))
                fill = fill.compare(backend, h, rows)
                self.add('importance, u windows shifted by a token', ~fill['importance'][on])
                self.add('(selections changed by either, for information)',
                         ~(good['selection'] & fill['selection'])[on])

    def report(self):
        good = True
        for name, (count, total) in sorted(self.caught.items()):
            share = count / max(total, 1)
            judged = not name.startswith('(')
            good &= not judged or share >= CAUGHT_SHARE
            print(f'control: {name}: noticed in {count} of {total} rows ({100 * share:.2f} %)')
        return good


def judge_attention(run, seed):
    """-> (largest error in units of the bound for each backend, Controls)."""
    worst, controls, rng = {}, Controls(), np.random.default_rng(seed)
    for case in attention_cases(seed):
        for n, backend in enumerate(run(case)):
            for h in range(case.k.shape[0]):
                rows = slice(0, len(case.pos))
                error = np.nan_to_num(attention(case, backend, h, rows), nan=1e9).max()
                worst[backend.name] = max(worst.get(backend.name, 0.0), float(error))
                if n == 0:
                    controls.attention(case, backend, h, rows, rng)
    return worst, controls


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('program', nargs='?')
    parser.add_argument('--emulate', action='store_true')
    parser.add_argument('--rows', type=int, default=100000)
    parser.add_argument('--seed', type=int, default=1)
    args = parser.parse_args()
    if bool(args.program) == args.emulate:
        parser.error('give a program or --emulate')
    print(f'seed {args.seed}')
    start, tallies = time.time(), {}
    with tempfile.TemporaryDirectory() as folder:
        run = emulate if args.emulate else lambda case: casefile.run(args.program, case, folder)
        worst, controls = judge_attention(run, args.seed)
        for case in cases(args.rows, args.seed):
            backends, results = run(case), {}
            for backend in backends:
                judge(tallies.setdefault(backend.name, Tally()), case, backend, results)
            if case.name in ('nosa 16', 'nosa 32') and tallies[backends[0].name].rows < 10 * 4096:
                controls.windows(case, backends[0])
            print(f'{time.time() - start:6.1f} s  {case.name}: {len(case.pos)} rows', flush=True)
    failed = 0
    for name, t in tallies.items():
        good = t.good() and worst[name] <= 1
        failed += not good
        print(f'{"ok    " if good else "FAILED"} {name}: {t.rows} rows, {t.selections} selections, '
              f'{t.judged} judged ({100 * t.judged / t.selections:.3f} %; of the {t.choosing} with '
              f'a choice {100 * t.judged_choosing / t.choosing:.3f} %), wrong: {t.wrong}; '
              f'attention {worst[name]:.3f} of its bound')
    good = controls.report()
    failed += not good
    print(f'{len(tallies) + 1 - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
