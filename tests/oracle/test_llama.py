"""The oracle's forward pass against Hugging Face's on the checkpoints of tests/golden/llama.

    python3 test_llama.py               prints 'N passed, N failed'

Without rounding of K and V both compute the same formula, one in float64 and one in float32 (angles
of up to 200 radians carry 1e-5 of float32 error): bound 1e-4 of the logits' standard deviation.
With rounding a value near the middle of two bf16 numbers may fall either way, 2^-8 of that value
apart: bound 0.01. Any program that stores K and V in bf16 can be held to the second file with the
second bound.
"""
import json
import os
import sys

import numpy as np

import nosa

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'golden', 'llama')
BOUNDS = {'logits': (None, 1e-4), 'logits_stored': (nosa.bf16, 0.01)}


def compare(name, kind, store):
    """-> largest difference in units of the logits' standard deviation."""
    folder = os.path.join(GOLDEN, name)
    with open(os.path.join(folder, 'golden.json')) as f:
        golden = json.load(f)
    model = nosa.Model(folder, store)
    got = model.logits(model.prefill(golden['tokens'], nosa.full())[golden['rows']])
    want = np.fromfile(os.path.join(folder, kind + '.f32'), '<f4').reshape(got.shape)
    return np.abs(got - want).max() / want.std()


def main():
    passed = failed = 0
    for name in sorted(os.listdir(GOLDEN)):
        for kind, (store, bound) in BOUNDS.items():
            error = compare(name, kind, store)
            good = error < bound
            passed, failed = passed + good, failed + (not good)
            print('ok    ' if good else 'FAILED', name, kind, f'{error:.2e} of {bound:.0e}')
        # the control: keys and values that are not rounded must not pass for rounded ones
        error = compare(name, 'logits_stored', None)
        good = error > BOUNDS['logits_stored'][1]
        passed, failed = passed + good, failed + (not good)
        print('ok    ' if good else 'FAILED', name, f'unrounded state is told apart: {error:.2e}')
    print(f'{passed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
