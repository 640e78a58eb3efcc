#!/usr/bin/env python3
"""The long runs: simulator seeds, fuzz inputs, planted bugs, on as many processes as there are cores.

    python3 tests/campaigns/soak.py FOLDER OUT.jsonl [--sim-seeds N] [--fuzz-inputs N] [--jobs N]
                                    [--seconds S] [--state DIR] [--only sim,fuzz,plants]
    python3 tests/campaigns/soak.py --bundle FOLDER [--only sim,fuzz,plants]

FOLDER is a build: bin/tests/sim, sim_NAME for the planted bugs (target sim_plants), and in FOLDER or
FOLDER-fuzz the fuzz targets. Or it is a bundle made by --bundle out of build/ and build-fuzz/: the
programs, the libraries that they need beside libc, first inputs and this script, so that another
x86-64 Linux with Python runs them.

Work is cut into units of about a minute. What was done is kept in the state folder (OUT.jsonl.state),
so a run that ended by --seconds or a signal goes on with the same command. OUT.jsonl is written anew
at each end, one row a campaign: seeds or inputs done, simulated hours, faults by kind, coverage,
what was found. Exit 0: everything asked for was done and nothing was found, 3: more is to be done,
1: something was found (a promise broken, a crash, a plant that nobody noticed).
"""
import argparse
import concurrent.futures
import ctypes
import datetime
import glob
import json
import math
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PLANT_SEEDS = 2000
SIM_UNIT = 400  # seeds: about 20 s
FUZZ_UNITS_PER_JOB = 2
# first inputs of each fuzz target, longest input
FUZZ = {
    'frames': ('binary', 16384), 'safetensors': ('binary', 4096), 'tokenizer': ('json', 4096),
    'config': ('yaml', 4096), 'batch': ('lines', 8192), 'messages': ('binary', 4096),
    'control': ('calls', 4096),
}


# ---- where things are ----------------------------------------------------------------------------

class Programs:
    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        places = [self.folder, self.folder + '-fuzz']
        self.env = dict(os.environ)
        library = os.path.join(self.folder, 'lib')
        if os.path.isdir(library):
            self.env['LD_LIBRARY_PATH'] = library
        self.fuzz = {}
        for place in places:
            for name in FUZZ:
                path = os.path.join(place, 'bin', 'tests', 'fuzz_' + name)
                if os.access(path, os.X_OK):
                    self.fuzz[name] = path
                    self.seeds = os.path.join(place, 'tests', 'fuzz', 'seeds')
        self.sim = os.path.join(self.folder, 'bin', 'tests', 'sim')
        self.plants = {os.path.basename(p)[4:]: p for p in
                       sorted(glob.glob(os.path.join(self.folder, 'bin', 'tests', 'sim_[A-Z]*')))}
        about = os.path.join(self.folder, 'about.json')
        if os.path.exists(about):
            with open(about) as f:
                self.commit = json.load(f)['commit']
        else:
            self.commit = commit_here()


def commit_here():
    said = subprocess.run(['git', '-C', ROOT, 'describe', '--always', '--dirty'], capture_output=True,
                          text=True)
    return said.stdout.strip()


def machine():
    try:
        with open('/proc/cpuinfo') as f:
            for line in f:
                if line.startswith('model name'):
                    return f'{line.split(":", 1)[1].strip()}, {os.cpu_count()} CPUs'
    except OSError:
        pass
    return f'{platform.machine()}, {os.cpu_count()} CPUs'


# ---- running one unit ----------------------------------------------------------------------------

running, running_lock = set(), threading.Lock()


def before_exec():
    os.nice(5)
    # AddressSanitizer of clang 14 and kernels with 32 random bits of mmap do not go together.
    ctypes.CDLL(None).personality(0x0040000)


def call(command, env, limit, folder):
    """(exit code, stdout, stderr); the code is None when it was ended by the limit."""
    child = subprocess.Popen(command, env=env, cwd=folder, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.PIPE, errors='replace', preexec_fn=before_exec)
    with running_lock:
        running.add(child)
    try:
        out, err = child.communicate(timeout=limit)
        return child.returncode, out, err
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        return None, out, err
    finally:
        with running_lock:
            running.discard(child)


def run_sim(programs, unit, left):
    first, last = unit['first'], unit['last']
    code, out, err = call([programs.sim, '--seeds', f'{first}..{last}', '--for',
                           str(max(1, int(left))), '--quiet'], programs.env, left + 120, '/')
    row = {'kind': 'sim', 'first': first, 'seeds': 0}
    lines = out.strip().splitlines()
    if lines and lines[-1].startswith('{'):
        row.update(totals=json.loads(lines[-1]))
        row['seeds'] = row['totals']['seeds']
    if code not in (0, None):
        found = re.findall(r'^seed (\d+): (.*)', err, re.M)
        seed = int(found[-1][0]) if found else first
        row['seeds'] = seed - first + 1
        row['found'] = [f'seed {seed}: {found[-1][1] if found else err[-200:]}']
    return row


def run_plant(programs, unit, left):
    name = unit['plant']
    code, _, err = call([programs.plants[name], '--seeds', f'1..{PLANT_SEEDS}', '--quiet'],
                        programs.env, left, '/')
    if code is None:
        return None
    found = re.findall(r'^seed (\d+): (.*)', err, re.M)
    row = {'kind': 'plant', 'plant': name, 'seed': int(found[-1][0]) if found else None}
    if found:
        row['why'] = found[-1][1]
    else:
        row['found'] = [f'plant {name} was not found within {PLANT_SEEDS} seeds']
    return row


def run_fuzz(programs, unit, left):
    name, runs = unit['target'], unit['runs']
    folder, length = FUZZ[name]
    place = os.path.join(unit['state'], 'fuzz', name)
    corpus, crashes = os.path.join(place, 'corpus'), os.path.join(place, 'crashes')
    os.makedirs(corpus, exist_ok=True)
    os.makedirs(crashes, exist_ok=True)
    code, _, err = call([programs.fuzz[name], f'-runs={runs}', f'-seed={unit["seed"]}',
                         f'-max_len={length}', f'-max_total_time={max(1, int(left))}',
                         '-timeout=20', '-rss_limit_mb=3072', '-print_final_stats=1',
                         f'-artifact_prefix={crashes}/', *unit['options'], corpus,
                         os.path.join(programs.seeds, folder)], programs.env, left + 90, place)
    row = {'kind': 'fuzz', 'target': name, 'inputs': 0}
    done = re.findall(r'stat::number_of_executed_units:\s*(\d+)', err)
    rate = re.findall(r'stat::average_exec_per_sec:\s*(\d+)', err)
    cover = re.findall(r'cov: (\d+) ft: (\d+) corp: (\d+)', err)
    if done:
        row['inputs'] = int(done[-1])
    if rate:
        row['rate'] = int(rate[-1])
    if cover:
        row['coverage'], row['features'], row['corpus'] = (int(x) for x in cover[-1])
    if code not in (0, None):
        artifact = re.findall(r'Test unit written to (\S+)', err)
        cause = re.findall(r'^(?:==\d+==)?\s*(?:ERROR|SUMMARY): (.*)', err, re.M)
        row['found'] = [f'{name}: {cause[-1] if cause else err[-300:]}'
                        f' ({os.path.basename(artifact[-1]) if artifact else "no artifact"})']
    return row


RUN = {'sim': run_sim, 'plant': run_plant, 'fuzz': run_fuzz}


# ---- what is to be done --------------------------------------------------------------------------

def leaks_are_seen(programs):
    """LeakSanitizer needs ptrace, which some containers refuse."""
    if not programs.fuzz:
        return True
    program = next(iter(programs.fuzz.values()))
    _, _, err = call([program, '-runs=20'], programs.env, 60, '/')
    return 'LeakSanitizer has encountered a fatal error' not in err and 'Tracer' not in err


def units_of(a, programs, done, options):
    units = []
    if 'plants' in a.only:
        have = {r['plant'] for r in done if r['kind'] == 'plant'}
        units += [{'kind': 'plant', 'plant': p} for p in programs.plants if p not in have]
    if 'sim' in a.only and os.access(programs.sim, os.X_OK):
        # Stretches of seeds that no row covers.
        at, stretches = a.first_seed, []
        for r in sorted((r for r in done if r['kind'] == 'sim'), key=lambda r: r['first']):
            if r['first'] > at:
                stretches.append((at, r['first']))
            at = max(at, r['first'] + r['seeds'])
        end = a.first_seed + a.sim_seeds
        stretches.append((at, end))
        for start, stop in stretches:
            for first in range(start, min(stop, end), SIM_UNIT):
                units.append({'kind': 'sim', 'first': first,
                              'last': min(first + SIM_UNIT, stop, end) - 1})
    if 'fuzz' in a.only:
        per_target = {}
        for name in programs.fuzz:
            left = a.fuzz_inputs - sum(r['inputs'] for r in done if r.get('target') == name)
            size = max(1000, math.ceil(a.fuzz_inputs / (a.jobs * FUZZ_UNITS_PER_JOB)))
            units_here = max(0, math.ceil(left / size))
            begun = sum(r.get('target') == name for r in done)
            per_target[name] = [{'kind': 'fuzz', 'target': name, 'runs': math.ceil(left / units_here),
                                 'seed': 1000 + begun + i, 'state': a.state, 'options': options}
                                for i in range(units_here)]
        # Targets take turns, so that a run cut short has some of each.
        while any(per_target.values()):
            units += [rows.pop() for rows in per_target.values() if rows]
    return units


def progress(text, last=False):
    if sys.stderr.isatty():
        print(f'\r\033[K{text}', end='\n' if last else '', file=sys.stderr, flush=True)
    elif last:
        print(text, file=sys.stderr, flush=True)


def describe(a, done, count, total, started):
    seeds = sum(r['seeds'] for r in done if r['kind'] == 'sim')
    inputs = sum(r['inputs'] for r in done if r['kind'] == 'fuzz')
    found = sum(len(r.get('found', [])) for r in done)
    return (f'{time.time() - started:.0f} s: {count}/{total} units, {seeds} seeds, '
            f'{inputs / 1e6:.2f} M inputs, {found} found')


def work(a, programs, done, log):
    started = time.time()
    until = started + a.seconds if a.seconds else math.inf
    options = [] if leaks_are_seen(programs) else ['-detect_leaks=0']
    if options:
        programs.env['ASAN_OPTIONS'] = 'detect_leaks=0'
    units = units_of(a, programs, done, options)
    queue, lock, count = iter(units), threading.Lock(), 0

    def worker():
        nonlocal count
        while True:
            with lock:
                unit = next(queue, None)
            left = min(until - time.time(), 86400)
            if unit is None or left < 2:
                return
            row = RUN[unit['kind']](programs, unit, left)
            with lock:
                count += 1
                if row is not None:
                    done.append(row)
                    print(json.dumps(row), file=log, flush=True)
                    for sentence in row.get('found', []):
                        progress(f'FOUND {sentence}', True)
                progress(describe(a, done, count, len(units), started))

    with concurrent.futures.ThreadPoolExecutor(a.jobs) as pool:
        workers = [pool.submit(worker) for _ in range(a.jobs)]
        for w in workers:
            w.result()
    progress(describe(a, done, count, len(units), started), True)
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {'wall_s': time.time() - started, 'cpu_s': usage.ru_utime + usage.ru_stime,
            'leaks_checked': not options}


# ---- rows ----------------------------------------------------------------------------------------

def sum_totals(rows):
    sums, faults = {}, {}
    for row in rows:
        for key, value in row.get('totals', {}).items():
            if key == 'faults':
                for kind, count in value.items():
                    faults[kind] = faults.get(kind, 0) + count
            elif isinstance(value, (int, float)) and key not in ('first_seed', 'last_seed', 'failed',
                                                                 'failed_seed', 'wall_s', 'seeds'):
                sums[key] = sums.get(key, 0) + value
    if 'simulated_hours' in sums:
        sums['simulated_hours'] = round(sums['simulated_hours'], 3)
    return {**sums, 'faults': faults}


def rows_of(a, programs, done, spent):
    base = {'schema': 'shoal.soak/1', 'date': datetime.date.today().isoformat(),
            'commit': programs.commit, 'machine': machine(), 'jobs': a.jobs}
    rows = []
    sims = [r for r in done if r['kind'] == 'sim']
    if sims:
        rows.append({**base, 'campaign': 'sim', 'first_seed': a.first_seed,
                     'seeds': sum(r['seeds'] for r in sims),
                     'found': [f for r in sims for f in r.get('found', [])],
                     'process_s': round(sum(r.get('totals', {}).get('wall_s', 0) for r in sims), 1),
                     **sum_totals(sims)})
    for name in FUZZ:
        mine = [r for r in done if r.get('target') == name]
        if not mine:
            continue
        rates = [r['rate'] for r in mine if r.get('rate')]
        rows.append({**base, 'campaign': 'fuzz', 'target': name,
                     'inputs': sum(r['inputs'] for r in mine),
                     'found': [f for r in mine for f in r.get('found', [])],
                     'execs_per_s': round(sum(rates) / len(rates)) if rates else None,
                     'coverage': max((r.get('coverage', 0) for r in mine)),
                     'features': max((r.get('features', 0) for r in mine)),
                     'corpus': max((r.get('corpus', 0) for r in mine)),
                     'leaks_checked': spent['leaks_checked']})
    for r in done:
        if r['kind'] == 'plant':
            rows.append({**base, 'campaign': 'plant', 'plant': r['plant'], 'seeds': r['seed'],
                         'why': r.get('why'), 'found': r.get('found', [])})
    return rows


def soak(a):
    programs = Programs(a.folder)
    os.makedirs(a.state, exist_ok=True)
    path = os.path.join(a.state, 'done.jsonl')
    done = []
    if os.path.exists(path):
        with open(path) as f:
            done = [json.loads(line) for line in f if line.endswith('\n')]

    def stop(*_):
        with running_lock:
            for child in running:
                child.kill()
        os._exit(130)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    with open(path, 'a') as log:
        spent = work(a, programs, done, log)
    rows = rows_of(a, programs, done, spent)
    with open(a.out, 'w') as f:
        for row in rows:
            print(json.dumps(row), file=f)
    for row in rows:
        short = {k: v for k, v in row.items() if k not in ('schema', 'date', 'commit', 'machine')}
        print(json.dumps(short))
    if any(row['found'] for row in rows):
        return 1
    return 3 if units_of(a, programs, done, []) else 0


# ---- the bundle ----------------------------------------------------------------------------------

def libraries(program):
    """Shared libraries beside those of libc, which are the other machine's own."""
    said = subprocess.run(['ldd', program], capture_output=True, text=True, check=True).stdout
    own = re.compile(r'lib(c|m|dl|rt|pthread|resolv)\.so|ld-linux|linux-vdso')
    return {m.group(1): m.group(2) for m in re.finditer(r'(\S+) => (/\S+)', said)
            if not own.search(m.group(1))}


def bundle(folder, only):
    programs = Programs(os.path.join(ROOT, 'build'))
    parts = {'sim': [programs.sim] if os.access(programs.sim, os.X_OK) else [],
             'plants': list(programs.plants.values()), 'fuzz': list(programs.fuzz.values())}
    if not all(parts[name] for name in only):
        sys.exit('soak.py: build the targets sim and sim_plants in build/, tests_fuzz in build-fuzz/')
    binary, library = os.path.join(folder, 'bin', 'tests'), os.path.join(folder, 'lib')
    for path in (binary, library):
        os.makedirs(path, exist_ok=True)
    needed = {}
    for program in sum((parts[name] for name in only), []):
        subprocess.run(['strip', '--strip-debug', '-o', os.path.join(binary, os.path.basename(program)),
                        program], check=True)
        needed.update(libraries(program))
    for name, path in needed.items():
        shutil.copyfile(path, os.path.join(library, name))
    if 'fuzz' in only:
        shutil.copytree(programs.seeds, os.path.join(folder, 'tests', 'fuzz', 'seeds'),
                        dirs_exist_ok=True)
    shutil.copyfile(os.path.abspath(__file__), os.path.join(folder, 'soak.py'))
    with open(os.path.join(folder, 'about.json'), 'w') as f:
        json.dump({'commit': programs.commit, 'made': datetime.datetime.now().isoformat()}, f)
    size = sum(os.path.getsize(os.path.join(d, n)) for d, _, names in os.walk(folder) for n in names)
    print(f'{folder}: {size / 2**20:.1f} MiB')


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('folder', nargs='?')
    parser.add_argument('out', nargs='?')
    parser.add_argument('--bundle', metavar='FOLDER')
    parser.add_argument('--sim-seeds', type=int, default=100000)
    parser.add_argument('--first-seed', type=int, default=1)
    parser.add_argument('--fuzz-inputs', type=int, default=10000000, help='of each target')
    parser.add_argument('--jobs', type=int, default=os.cpu_count())
    parser.add_argument('--seconds', type=float, help='stop in time to end by then')
    parser.add_argument('--state', help='folder of what was done already (OUT.jsonl.state)')
    parser.add_argument('--only', default='plants,sim,fuzz', type=lambda s: s.split(','))
    a = parser.parse_args()
    if a.bundle:
        bundle(a.bundle, a.only)
        return 0
    if a.folder is None or a.out is None:
        parser.error('FOLDER and OUT.jsonl are needed')
    a.state = os.path.abspath(a.state or a.out + '.state')
    return soak(a)


if __name__ == '__main__':
    sys.exit(main())
