"""Misses of the device pool with the C worker, beside the LRU pool that PyTorch simulated.

    python3 tests/campaigns/misses.py BUILD OUT.jsonl [--jobs N]

Decodes the first three texts of 16,384 tokens of worker/small-model/cases.tar.xz one token a step from token 4,096 on,
with NOSA 16 and pools of 16 to 32 slots a (layer, KV head), and counts the blocks that a step needed and the pool did
not hold. PyTorch's numbers are `misses` in worker/small-model/evaluation.json. Minutes of a core a pool: a campaign,
not a test; its result is on file in tests/bench/results.
"""
import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import subprocess
import tarfile
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(ROOT, 'worker', 'small-model')
BUDGET = 16
MARGINS = {16: '0%', 20: '25%', 24: '50%', 32: '100%'}  # pool slots -> margin over the selection
TEXTS = 3


def run(worker, slots, text):
    command = [worker, 'eval', '--model', MODEL, text, '--task', 'text', '--threads', '1', '--budget', str(BUDGET),
               '--max-num-seqs', '1', '--device-pool', '8MiB', '--tokens', '16384', '--decode-from', '4096',
               '--no-prefetch', '--victim-margin', MARGINS[slots], '--format', 'json']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command)}: {done.stderr.strip()}')
    return slots, json.loads(done.stdout.strip().splitlines()[-1])['misses']


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    args = parser.parse_args()
    with open(os.path.join(MODEL, 'evaluation.json')) as f:
        known = json.load(f)['misses']
    commit = subprocess.run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], capture_output=True,
                            text=True).stdout.strip()
    found = {slots: [] for slots in MARGINS}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(os.path.join(MODEL, 'cases.tar.xz')) as tar:
            tar.extractall(folder)
        texts = []
        with open(os.path.join(folder, 'cases', 'text-16k.jsonl')) as f:
            for i, line in zip(range(TEXTS), f):
                texts.append(os.path.join(folder, f'{i}.jsonl'))
                with open(texts[-1], 'w') as one:
                    one.write(line)
        worker = os.path.join(args.build, 'bin', 'shoal-worker')
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
            for slots, misses in pool.map(lambda job: run(worker, *job), [(s, t) for s in MARGINS for t in texts]):
                found[slots].append(misses)
    with open(args.out, 'w') as f:
        for slots, runs in found.items():
            row = {'schema': 'shoal.misses/1', 'slots': slots, 'texts': len(runs),
                   'tokens': sum(r['tokens'] for r in runs),
                   'misses': round(sum(r['mean'] for r in runs) / len(runs), 3), 'pytorch_misses': known[str(slots)],
                   'by_layer': [round(sum(x) / len(runs), 3) for x in zip(*(r['by_layer'] for r in runs))],
                   'commit': commit, 'machine': platform.processor() or platform.machine(),
                   'date': datetime.date.today().isoformat()}
            print(json.dumps(row), file=f)
            print(json.dumps(row))


if __name__ == '__main__':
    main()
