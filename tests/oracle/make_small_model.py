"""Golden logits and selections of worker/small-model by the float64 oracle.

    python make_small_model.py           writes ../golden/small-model/ (needs NumPy and tokenizers)

golden.json   {"tokens", "positions", "vocab", "runs"}, a run {"name", "selector", "nll", "rows"}:
                selector  the fields of nosa.Selector (a kern_selector in C)
                nll       natural log loss of each token 1.. given those before, summed
                rows      for each position: "top" (ten largest logits, [id, value]), "lse" (log of
                          the sum of all exponentials) and "selections" [layer][KV head] =
                          {"blocks" in canonical order, "settled", "margin": [query, importance]};
                          "margin" is nosa.margins, null for none
logits.f32    little-endian float32 [runs, positions, vocab]
"""
import dataclasses
import io
import json
import lzma
import os
import tarfile

import numpy as np

import nosa

HERE = os.path.dirname(os.path.abspath(__file__))
SMALL = os.path.join(HERE, '..', '..', 'worker', 'small-model')
OUT = os.path.join(HERE, '..', 'golden', 'small-model')
TOKENS = 1500
POSITIONS = [255, 1087, 1151, 1152, 1499]
BUDGET = (1, 4, 10, 16)


def runs():
    yield 'full', nosa.full()
    for source in nosa.SOURCES:
        yield f'nosa16-{source}', nosa.nosa(BUDGET, source)
        yield f'infllmv2-16-{source}', nosa.infllmv2(BUDGET, source)
    yield 'window16', nosa.nosa((1, 14, 0, 16))


def first_text():
    with lzma.open(os.path.join(SMALL, 'cases.tar.xz')) as f:
        with tarfile.open(fileobj=io.BytesIO(f.read())) as tar:
            return json.loads(tar.extractfile('cases/text-16k.jsonl').readline())['text']


def run(model, tokens, sel):
    """-> (the run's JSON, logits at POSITIONS)."""
    picked = []
    x = model.prefill(tokens, sel, lambda layer, *parts: picked.append(parts))
    logits = model.logits(x)
    peak = logits.max(1, keepdims=True)
    lse = peak[:, 0] + np.log(np.exp(logits - peak).sum(1))
    rows = []
    for t in POSITIONS:
        selections = [[selection(parts, h, t) for h in range(model.kv_heads)] for parts in picked]
        best = np.argsort(-logits[t], kind='stable')[:10]
        rows.append({'top': [[int(i), round(logits[t, i], 7)] for i in best],
                     'lse': round(lse[t], 7), 'selections': selections})
    nll = (lse[:-1] - logits[np.arange(len(tokens) - 1), tokens[1:]]).sum()
    numbers = {key: value for key, value in dataclasses.asdict(sel).items() if key != 'near' or value}
    result = {'selector': numbers, 'nll': round(nll, 6), 'rows': rows}
    return result, logits[POSITIONS]


def selection(parts, h, t):
    chosen, late, margin = parts[0][h, t], parts[1][h, t], parts[2][h, :, t]
    settled = np.nonzero(chosen & ~late)[0].tolist()
    return {'blocks': settled + np.nonzero(late)[0].tolist(), 'settled': len(settled),
            'margin': [float(f'{m:.4g}') if np.isfinite(m) else None for m in margin]}


def main():
    from tokenizers import Tokenizer
    os.makedirs(OUT, exist_ok=True)
    tokenizer = Tokenizer.from_file(os.path.join(SMALL, 'tokenizer.json'))
    tokens = tokenizer.encode(first_text()).ids[:TOKENS]
    model, all_runs, logits = nosa.Model(SMALL), [], []
    for name, sel in runs():
        result, values = run(model, np.array(tokens), sel)
        all_runs.append({'name': name, **result})
        logits.append(values)
        print(name, 'nats a token', round(result['nll'] / (TOKENS - 1), 5), flush=True)
    np.array(logits).astype('<f4').tofile(os.path.join(OUT, 'logits.f32'))
    with open(os.path.join(OUT, 'golden.json'), 'w') as f:
        head = json.dumps(dict(tokens=tokens, positions=POSITIONS, vocab=len(logits[0][0])))
        f.write(head[:-1] + ', "runs": [\n' + ',\n'.join(map(json.dumps, all_runs)) + '\n]}\n')


if __name__ == '__main__':
    main()
