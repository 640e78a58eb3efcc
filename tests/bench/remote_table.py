"""The table of remote rows: what every miss over a simulated network adds to a step, beside what it may add.

    python3 tests/bench/remote_table.py ROWS.jsonl [GEOMETRY]     (default: tests/bench/geometry/8b)

ROWS are the lines of `tests/bench/gpu-decode remote combos hide`. For each row a layer may wait for

    max(0, RTT + transfer - window) + 10 us

where transfer is its misses at the network's rate and window what the source of its selection leaves: nothing (own, also
with an early guess, which finds many of a layer's misses and seldom all), the MLP of the layer before (mid), a layer
(input, and the other half's where two halves take turns), a step (step). Windows are parts of the step with all blocks resident, by the bytes of the weights that they
read. The last lines name the fastest.
"""
import json
import os
import re
import sys

SLACK_US = 10
WINDOWS = ('own', 'mid', 'input', 'step')


def weights(geometry):
    """(layers, share of a step's weight bytes that the MLP of one layer reads, share of one layer)"""
    with open(os.path.join(geometry, 'config.json')) as f:
        c = json.load(f)
    hidden, head = c['hidden_size'], c.get('head_dim', c['hidden_size'] // c['num_attention_heads'])
    mlp = 3 * hidden * c['intermediate_size']
    attention = hidden * head * 2 * (c['num_attention_heads'] + c['num_key_value_heads'])
    layers = c['num_hidden_layers']
    whole = layers * (mlp + attention) + c['vocab_size'] * hidden
    return layers, mlp / whole, (mlp + attention) / whole


def read(path):
    """{case: {bench: row}} in the file's order; a case measured again counts once, the last time"""
    cases = {}
    with open(path) as f:
        for line in f:
            row = json.loads(line)
            if row.get('schema') == 'shoal.bench/1' and row['bench'] in ('decode', 'step_bound', 'exposed'):
                cases.setdefault(row['case'], {})[row['bench']] = row
    return {case: rows for case, rows in cases.items() if len(rows) == 3}


def table(cases, geometry):
    layers, mlp, layer = weights(geometry)
    resident = [rows for case, rows in cases.items() if case.startswith('all resident')]
    if not resident:
        raise SystemExit('no row "all resident" to compare with: run tests/bench/gpu-decode remote')
    base = resident[-1]['step_bound']['value']
    shares = dict(zip(WINDOWS, (0, mlp, layer, 1)))
    lines = [f'All blocks resident: {base:.2f} ms a step, batch {resident[-1]["decode"]["batch"]}. '
             f'Windows: MLP {base * mlp * 1e3:.0f} us, layer {base * layer * 1e3:.0f} us.', '',
             '| RTT, us | churn | selects by | without | misses | step, ms | over resident | a layer waits, us | may wait, us |',
             '| --- | --- | --- | --- | --- | --- | --- | --- | --- |']
    best = {}
    for case, rows in cases.items():
        found = re.search(r'churn ([\d.]+).*RTT ([\d.]+) us, ([\d.]+) Gb/s', case)
        if not found or not rows['decode']['simulated']:
            continue
        churn, rtt, gbit = (float(x) for x in found.groups())
        source = (re.search(r'lookahead (\w+)', case) or [None, 'own'])[1]
        guess = re.search(r'guess (\d+%)', case)
        by = source + (f', guess {guess[1]}' if guess else '')
        turns = 'two batches' in case
        by += ', two batches' if turns else ''
        off = ', '.join(x for x in ('prefetch', 'overlap', 'late merge') if f'no {x}' in case)
        transfer = rows['decode']['remote_bytes_a_step'] / layers / (gbit / 8 * 1e3)
        may = max(0, rtt + transfer - base * 1e3 * shares['input' if turns else source]) + SLACK_US
        waits = rows['exposed']['value'] * 1e3 / layers
        step = rows['step_bound']['value']
        mine = (step, by + (f', no {off}' if off else ''))
        best[rtt, churn] = min(best.get((rtt, churn), mine), mine)
        lines.append(f'| {rtt:g} | {churn:g} | {by} | {off} | {rows["decode"]["misses_a_head_and_step"]:.2f} | {step:.2f} | '
                     f'{step / base:.2f} | {waits:.1f} | {may:.1f}{"" if waits <= may else " (more)"} |')
    lines.append('')
    lines += [f'Fastest at {rtt:g} us, churn {churn:g}: {name}, {step / base:.3f} of all resident.'
              for (rtt, churn), (step, name) in sorted(best.items())]
    return '\n'.join(lines)


if __name__ == '__main__':
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    default = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'geometry', '8b')
    print(table(read(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else default))
