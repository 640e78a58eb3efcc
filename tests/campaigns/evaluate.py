"""The small model's whole evaluation with the C worker, beside what PyTorch measured.

    python3 tests/campaigns/evaluate.py BUILD OUT.json [--jobs N] [--only NAME@LENGTH,...]

Runs BUILD/bin/shoal-worker eval on the cases of worker/small-model/cases.tar.xz, many processes of
one thread each (an interrupted run goes on where it was: OUT.cases), and compares bits a byte (bound 0.003) and planted keys (bound 5 points) with
worker/small-model/evaluation.json. Hours of one core: a campaign, not a test; its result is on file
in tests/bench/results. Exits 1 when a bound is exceeded.
"""
import argparse
import collections
import concurrent.futures
import datetime
import json
import os
import platform
import subprocess
import sys
import tarfile
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODEL = os.path.join(ROOT, 'worker', 'small-model')
# name -> arguments of eval; those that PyTorch measured carry its name
RUNS = {
    'full': ['--selector', 'full'],
    'nosa16': ['--budget', '16'],
    'window16': ['--budget', '1,14,0,16'],
    'nosa16-mid': ['--budget', '16', '--lookahead', 'mid'],
    'nosa16-input': ['--budget', '16', '--lookahead', 'input'],
    'nosa16-step': ['--budget', '16', '--lookahead', 'step'],
    'nosa24': ['--budget', '24'],
    'nosa24-mid': ['--budget', '24', '--lookahead', 'mid'],
}
POOL = {'full': '68MiB'}


def split(cases, folder):
    """One file a case -> [(task, length, path)]."""
    out = []
    for name in ('text-16k', 'keys-16k', 'keys-4k'):
        task, length = name.split('-')
        with open(os.path.join(cases, name + '.jsonl')) as f:
            for i, line in enumerate(f):
                if task == 'keys' and json.loads(line)['kind'] != 'trained':
                    continue
                path = os.path.join(folder, f'{name}-{i}.jsonl')
                with open(path, 'w') as one:
                    one.write(line)
                out.append((task, length, path))
                if task == 'text':
                    out.append((task, '4k', path))
    return out


def run(worker, name, task, length, path):
    command = [worker, 'eval', '--model', MODEL, path, '--task', task, '--threads', '1',
               '--max-num-seqs', '1', '--device-pool', POOL.get(name, '8MiB'), '--format', 'json',
               '--tokens', {'16k': '16384', '4k': '4096'}[length], *RUNS[name]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f'{" ".join(command)}: {done.stderr.strip()}')
    return name, task, length, json.loads(done.stdout.strip().splitlines()[-1])


def key(job):
    name, task, length, path = job
    return f'{name} {task} {length} {os.path.basename(path)}'


def read_done(path):
    """Cases that an interrupted run has on file: OUT.cases."""
    if not os.path.exists(path):
        return {}
    with open(path) as f:
        return dict(json.loads(line) for line in f)


def judge(name, length, bits, share, known):
    """Sentences about what is outside its bound."""
    wrong = []
    tokens = {'16k': 16384, '4k': 4096}[length]
    want_bits = known['bits_per_byte'].get(f'{name}@{tokens}')
    want_share = known['keys'].get(f'{name}@{length}', {}).get('trained')
    if want_bits is not None and bits is not None and abs(bits - want_bits) > 0.003:
        wrong.append(f'{name}@{length}: {bits:.4f} bits a byte, PyTorch {want_bits}')
    if want_share is not None and share is not None and abs(share - want_share) > 0.05 + 1e-9:
        wrong.append(f'{name}@{length}: {share:.3f} of keys, PyTorch {want_share}')
    if name == 'window16' and length == '16k' and share is not None and share > 0.05:
        wrong.append(f'window16@16k: {share:.3f} of keys: the control should be at most 0.05')
    return wrong, want_bits, want_share


def summarise(results, known):
    rows, wrong = [], []
    for (name, length), by_task in sorted(results.items()):
        row = {'name': name, 'length': length}
        text, keys = by_task.get('text', []), by_task.get('keys', [])
        bits = share = None
        if text:
            files = [r['files'][0] for r in text]
            bits = sum(f['nats'] for f in files) / 0.6931471805599453 / sum(f['bytes'] for f in files)
            row.update(texts=len(text), bits_per_byte=round(bits, 4))
        if keys:
            share = sum(r['files'][0]['right'] for r in keys) / len(keys)
            row.update(keys=len(keys), right=round(share, 3))
        bad, want_bits, want_share = judge(name, length, bits, share, known)
        row.update(pytorch_bits_per_byte=want_bits, pytorch_right=want_share)
        rows.append(row)
        wrong += bad
    return rows, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('build')
    parser.add_argument('out')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('--only', help='comma-separated NAME@LENGTH')
    parser.add_argument('--limit', type=int, help='cases of each task and length')
    args = parser.parse_args()
    worker = os.path.join(args.build, 'bin', 'shoal-worker')
    with open(os.path.join(MODEL, 'evaluation.json')) as f:
        known = json.load(f)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(os.path.join(MODEL, 'cases.tar.xz')) as tar:
            tar.extractall(folder)
        work = split(os.path.join(folder, 'cases'), folder)
        wanted = args.only.split(',') if args.only else [f'{n}@{k}' for n in RUNS for k in ('16k', '4k')]
        jobs, taken = [], collections.Counter()
        for want in wanted:
            name, length = want.split('@')
            for task, k, path in work:
                taken[want, task] += k == length
                if k == length and (args.limit is None or taken[want, task] <= args.limit):
                    jobs.append((name, task, length, path))
        results = collections.defaultdict(lambda: collections.defaultdict(list))
        done = read_done(args.out + '.cases')
        for job in jobs:
            if key(job) in done:
                results[job[0], job[2]][job[1]].append(done[key(job)])
        jobs = [job for job in jobs if key(job) not in done]
        with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool, \
                open(args.out + '.cases', 'a') as log:
            running = {pool.submit(run, worker, *job): job for job in jobs}
            for n, future in enumerate(concurrent.futures.as_completed(running), 1):
                name, task, length, result = future.result()
                results[name, length][task].append(result)
                print(json.dumps([key(running[future]), result]), file=log, flush=True)
                if n % 20 == 0 or n == len(jobs):
                    print(f'{n}/{len(jobs)} cases', file=sys.stderr, flush=True)
    rows, wrong = summarise(results, known)
    commit = subprocess.run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], capture_output=True,
                            text=True).stdout.strip()
    with open(args.out, 'w') as f:
        for row in rows:
            row.update(schema='shoal.evaluation/1', commit=commit, machine=platform.processor() or
                       platform.machine(), date=datetime.date.today().isoformat())
            print(json.dumps(row), file=f)
            print(json.dumps(row))
    if args.limit is not None:
        print('bounds hold for all cases only: not judged', file=sys.stderr)
        wrong = []
    for sentence in wrong:
        print(sentence, file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == '__main__':
    main()
