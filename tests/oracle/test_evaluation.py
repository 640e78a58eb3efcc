"""Ten cases of the small model's evaluation through the worker: keys that NOSA finds and a window does not.

    python3 tests/oracle/test_evaluation.py BUILD

All cases, with PyTorch's figures as bounds, are a campaign: tests/campaigns/evaluate.py. Its result on file has
97 % of the keys at 4K for NOSA 16, and 1 % for the last 16 blocks alone.
"""
import json
import os
import subprocess
import sys
import tarfile
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(ROOT, 'worker', 'small-model')
CASES = 10


def right(worker, cases, budget):
    done = subprocess.run([worker, 'eval', cases, '--model', MODEL, '--task', 'keys', '--kind', 'trained', '--limit',
                           str(CASES), '--budget', budget, '--device-pool', '16MiB', '--quiet', '--format', 'json'],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])['files'][0]
    assert result['cases'] == CASES and result['failed'] == 0, result
    return result['right']


def main():
    worker = os.path.join(sys.argv[1], 'bin', 'shoal-worker')
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(os.path.join(MODEL, 'cases.tar.xz')) as tar:
            tar.extractall(folder)
        cases = os.path.join(folder, 'cases', 'keys-4k.jsonl')
        for name, budget, least, most in (('nosa 16', '16', 9, CASES), ('the last 16 blocks', '1,14,0,16', 0, 1)):
            found = right(worker, cases, budget)
            good = least <= found <= most
            failed += not good
            print(f'{"ok    " if good else "FAILED"} {name}: {found} of {CASES} keys, expected {least} to {most}', flush=True)
    print(f'{2 - failed} passed, {failed} failed')
    sys.exit(1 if failed else 0)


if __name__ == '__main__':
    main()
