"""`./tests/run bench`: measure everything that DESIGN and the READMEs give numbers for on this machine, with its peers in
the same run.

    python3 bench.py BUILD [GROUP...]     groups: store products ops decode prefill fetch peers (default: all)

Rows (schema shoal.bench/1) are appended to results/<group>-<date>.jsonl beside this file and drawn as tables at the end.
`value` is the median of `runs`; `ratio` is ours over the peer's, above 1 always better. A peer that is not here is left
out, and said. PyTorch is looked for in $SHOAL_PEER_PYTHON, else in this Python. Timing fails nothing: exit 1 only when a
program of ours did not run.
"""
import datetime
import json
import math
import os
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL = os.path.join(ROOT, 'worker', 'small-model')
GROUPS = ('products', 'ops', 'store', 'decode', 'prefill', 'fetch', 'peers')
RUNS = 5
CONTEXT_16K = 15872  # the small model has 16384 positions, and the steps need some


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


class Bench:
    def __init__(self, build):
        self.bin = os.path.join(build, 'bin')
        self.date = datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d')
        self.commit = subprocess.run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], text=True,
                                     capture_output=True).stdout.strip()
        self.rows, self.notes, self.failed, self.written = [], [], 0, 0
        self.device, self.ceiling = 'cpu', {}

    def note(self, text):
        self.notes.append(text)
        print('   ', text, flush=True)

    def keep(self, group, row):
        row.setdefault('schema', 'shoal.bench/1')
        row.setdefault('commit', self.commit)
        row['group'] = group
        self.rows.append(row)

    def row(self, group, bench, case, runs, unit, **more):
        """A row; higher is better unless more says otherwise. peer_value makes a ratio, bound a fraction."""
        higher = more.pop('higher_is_better', True)
        value = median(runs)
        row = {'schema': 'shoal.bench/1', 'bench': bench, 'case': case, 'value': value, 'unit': unit,
               'higher_is_better': higher}
        if more.get('bound'):
            row['bound'] = more.pop('bound')
            row['fraction'] = value / row['bound'] if higher else row['bound'] / value
        if more.get('peer_value'):
            more['ratio'] = value / more['peer_value'] if higher else more['peer_value'] / value
        row.update(more)
        row.update({'runs': runs, 'simulated': False, 'device': self.device, 'load': more.get('load', os.getloadavg()[0]),
                    'commit': self.commit, 'date': self.date})
        self.keep(group, row)
        return row

    def lines(self, argv, timeout=240, tries=2):
        """JSON lines of a program of ours; [] and a failure when it does not run. A busy machine may make a deadline
        pass, so a program gets a second try, which is noted."""
        argv = [os.path.join(self.bin, argv[0])] + argv[1:]
        try:
            done = subprocess.run(argv, text=True, capture_output=True, timeout=timeout)
        except (OSError, subprocess.TimeoutExpired) as why:
            self.failed += 1
            self.note(f'FAILED {os.path.basename(argv[0])}: {why}')
            return []
        if done.returncode != 0 and tries > 1:
            self.note(f'once more: {os.path.basename(argv[0])} {" ".join(argv[1:])}: {done.stderr.strip()[-200:]}')
            return self.lines([os.path.basename(argv[0])] + argv[1:], timeout, tries - 1)
        if done.returncode != 0:
            self.failed += 1
            self.note(f'FAILED {" ".join(argv)}: exit {done.returncode}: {done.stderr.strip()[-300:]}')
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{')]


# ---- the store -------------------------------------------------------------------------------------------------------

def ucx_once(size, count, env):
    """(GB/s, processor seconds per GiB) of one ucx_perftest, None when it fails"""
    port = str(free_port())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with subprocess.Popen(['ucx_perftest', '-p', port], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                          env=env) as server:
        try:
            time.sleep(0.3)
            warm = 300
            done = subprocess.run(['ucx_perftest', '127.0.0.1', '-p', port, '-t', 'ucp_am_bw', '-s', str(size), '-n',
                                   str(count), '-w', str(warm), '-f', '-v'], text=True, capture_output=True, env=env,
                                  timeout=20)
            server.wait(5)
            rate = float(done.stdout.strip().splitlines()[-1].split(',')[5]) * (1 << 20) / 1e9
        except (subprocess.TimeoutExpired, ValueError, IndexError):
            server.kill()
            return None
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rate, spent / ((count + warm) * size / (1 << 30))


def ucx_perftest(bench, size, kept):
    """RUNS more of UCX's default segments and of larger ones, kept as {how: [(GB/s, processor seconds per GiB)]}"""
    for how, more in (('default segments', {}),
                      ('72K segments', {'UCX_TCP_TX_SEG_SIZE': '72K', 'UCX_TCP_RX_SEG_SIZE': '144K'})):
        env = dict(os.environ, UCX_TLS='tcp', UCX_NET_DEVICES='lo', **more)
        got = [x for x in (ucx_once(size, 4000, env) for _ in range(RUNS)) if x]
        if len(got) < RUNS:
            bench.note(f'ucx_perftest {size} {how}: {RUNS - len(got)} of {RUNS} runs failed')
        kept.setdefault(how, []).extend(got)


def ucx_better(kept):
    """The better of the two: {'gbs', 'cpu', 'how'}; None when there is neither"""
    best = None
    for how, got in kept.items():
        if got and (best is None or median([x[0] for x in got]) > median(best['gbs'])):
            best = {'gbs': [x[0] for x in got], 'cpu': [x[1] for x in got], 'how': how}
    return best


def store_rows(bench, kept, ucx):
    for (op, block, window, batch), by in sorted(kept.items()):
        ours, sockets, tcp_ours, redis = by['shoal'], by['sockets'], by.get('shoal_tcp'), by.get('redis')
        case = f'{block >> 10} KiB, batch {batch}, window {window}'
        value, peers = median(ours['gbs']), {'sockets': sockets}
        if ucx.get(block):
            peers['ucx_perftest'] = ucx[block]
        peer = max(peers, key=lambda name: median(peers[name]['gbs']))
        more = {'peer': peer, 'peer_value': median(peers[peer]['gbs']), 'peer_runs': peers[peer]['gbs'],
                'cpu_s_per_gib': median(ours['cpu']), 'node_cpu_s_per_gib': median(ours['server_cpu']), 'load': ours['load'],
                'cpu_ratio': median(peers[peer]['cpu']) / median(ours['cpu']), 'request_us': median(ours['request_us']), 'bad_blocks': ours['bad']}
        others = [('shoal_tcp', tcp_ours), ('redis', redis)]
        for name, got in list(peers.items()) + [(name, got) for name, got in others if got]:
            more[f'{name}_gbs'], more[f'{name}_cpu_s_per_gib'] = median(got['gbs']), median(got['cpu'])
        if tcp_ours:
            more['shoal_tcp_runs'] = tcp_ours['gbs']
        if redis:
            more['ratio_redis'] = value / more['redis_gbs'] if more['redis_gbs'] else None
            more['redis_runs'] = redis['gbs']
        bench.row('store', f'store_{op}', case, ours['gbs'], 'GB/s', **more)


def group_store(bench):
    port, redis, ucx = free_port(), None, {32768: {}, 65536: {}}
    with_ucx = shutil.which('ucx_perftest')
    if not with_ucx:
        bench.note('no ucx_perftest (Debian: ucx-utils): the store is held against sockets alone')
    for size in ucx if with_ucx else ():  # before and after the store's own runs
        ucx_perftest(bench, size, ucx[size])
    if shutil.which('redis-server'):
        redis = subprocess.Popen(['redis-server', '--port', str(port), '--bind', '127.0.0.1', '--save', '',
                                  '--appendonly', 'no', '--dir', tempfile.gettempdir()], stdout=subprocess.DEVNULL)
        time.sleep(1)
    else:
        bench.note('no redis-server: no row has a Redis beside it')
    try:
        lines = bench.lines(['bench_store', '0.12'] + ([str(port), str(redis.pid)] if redis else []))
    finally:
        if redis:
            redis.terminate()
            redis.wait()
    kept = {}
    for line in lines:
        kept.setdefault((line['op'], line['block'], line['window'], line['batch']), {})[line['target']] = line
    kept = {key: by for key, by in kept.items() if 'shoal' in by and 'sockets' in by}
    for size in ucx if with_ucx else ():
        ucx_perftest(bench, size, ucx[size])
    store_rows(bench, kept, {size: ucx_better(ucx[size]) for size in ucx})


# ---- kernels ---------------------------------------------------------------------------------------------------------

def group_products(bench):
    os.environ.pop('OPENBLAS_CORETYPE', None)  # its own choice of kernels
    core = None
    for threads in sorted({1, os.cpu_count()}):
        ratios = []
        for line in bench.lines(['bench_kernels', str(threads)], timeout=1200):
            bench.device = line['device']
            if line['kind'] == 'ceiling':
                core = line.get('peer_core')
                if threads == 1:
                    ceilings(bench, line)
                continue
            work = 2e-3 * line['n'] * line['k'] * line['rows']  # flops / 1000: over us gives GF/s
            runs = [work / us for us in line['us']]
            peers = {name: line[key] for name, key in (('sgemm', 'gemm_us'), ('sgemv', 'gemv_us')) if key in line}
            more = {'threads': threads, 'weight_bytes': line['weight_bytes'], 'disturbed': line['disturbed']}
            if peers:
                best = min(peers, key=lambda name: median(peers[name]))
                more.update(peer=f'OpenBLAS {best}', peer_value=work / median(peers[best]), peer_core=core, peer_bytes=line['peer_bytes'],
                            peer_runs=[work / us for us in peers[best]])
            row = bench.row('products', f'linear_{threads}t', f'{line["model"]} {line["name"]} {line["n"]} x {line["k"]}, '
                            f'rows {line["rows"]}', runs, 'GF/s', **more)
            ratios.append(row.get('ratio'))
        if ratios and all(ratios):
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            bench.note(f'products against OpenBLAS, {threads} threads: geometric mean {mean:.2f}, least {min(ratios):.2f}; '
                       'its f32 weights take twice the memory of ours')
        elif ratios:
            bench.note('no OpenBLAS when this was built (Debian: libopenblas-dev): products have no peer')


def ceilings(bench, line):
    bench.ceiling = {'fma': max(line['fma_gflops']), 'read': max(line['read_gbs'])}
    bench.row('products', 'ceiling', 'fused multiply-adds, one thread', line['fma_gflops'], 'GF/s')
    bench.row('products', 'ceiling', 'memory reads, one thread', line['read_gbs'], 'GB/s')


def group_ops(bench):
    if not bench.ceiling:
        for line in bench.lines(['bench_kernels', '1', 'ceilings']):
            if line['kind'] == 'ceiling':
                bench.device = line['device']
                ceilings(bench, line)
    if not bench.ceiling:
        return
    for op in ('attend', 'score', 'select'):
        for line in bench.lines(['ops', 'perf', f'--only={op}', '--json']):
            bench.device = line['backend']
            flops, size = line['gflops'] * line['us'] * 1e3, line['gbytes'] * line['us'] * 1e3
            # What attend and score read again and again stays in cache here, so that their bound is arithmetic.
            bound = flops / (bench.ceiling['fma'] * 1e3) if flops else size / (bench.ceiling['read'] * 1e3)  # us
            bench.row('ops', op, line['case'], line['runs_us'], 'us', higher_is_better=False, bound=bound,
                      bound_of='flops' if flops else 'memory', gflops=line['gflops'], gbytes=line['gbytes'])


# ---- the worker ------------------------------------------------------------------------------------------------------

def worker_bench(bench, *flags):
    return bench.lines(['shoal-worker', 'bench', 'decode', '--quiet', '-o', 'json', '--model', MODEL, '--commit',
                        bench.commit] + [str(x) for x in flags])


def decode_at(bench, tokens, selector, *more):
    how = {'nosa16': ('--budget', '16'), 'full': ('--selector', 'full')}[selector]
    return worker_bench(bench, '--batch', 1, '--contexts', tokens, '--runs', RUNS, '--steps', 48, '--warm', 16,
                        '--label', 'small model', *how, *more)


def group_decode(bench):
    for tokens, name in ((4096, '4K'), (8192, '8K'), (CONTEXT_16K, '16K')):
        speed = {}
        for selector in ('nosa16', 'full'):
            for row in decode_at(bench, tokens, selector):
                if row['bench'] == 'decode':
                    speed[selector] = row
                    bench.keep('decode', row)
        if len(speed) == 2:
            nosa, full = speed['nosa16'], speed['full']
            bench.row('decode', 'nosa16_over_full', f'small model, {name}, tokens/s', nosa['runs'], 'tokens/s',
                      peer='our full attention', peer_value=full['value'], peer_runs=full['runs'])
    rows = decode_at(bench, CONTEXT_16K, 'nosa16', '--profile')
    ops = {row['op']: row for row in rows if row['bench'] == 'op'}
    step = next((row for row in rows if row['bench'] == 'step_bound'), None)
    for row in sorted(ops.values(), key=lambda r: -r['value']):
        bench.keep('decode', row)
    if step and 'linear' in ops:
        times = [whole / part for whole, part in zip(step['runs'], ops['linear']['runs'])]
        bench.row('decode', 'step_over_products', 'small model, 16K, nosa16: step time over its products alone', times,
                  'times', higher_is_better=False, step_ms=step['value'], products_ms=ops['linear']['value'],
                  beside_ops_ms=step['value'] - sum(row['value'] for row in ops.values()))


def group_prefill(bench):
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(os.path.join(MODEL, 'cases.tar.xz')) as cases:
            text = json.loads(cases.extractfile('cases/text-16k.jsonl').readline())['text']
        source = os.path.join(folder, 'in.jsonl')
        with open(source, 'w', encoding='utf-8') as f:
            body = {'model': 'small', 'prompt': text[:11000], 'max_tokens': 1, 'temperature': 0}
            f.write(json.dumps({'custom_id': 'a', 'method': 'POST', 'url': '/v1/completions', 'body': body}) + '\n')
        for name, how in (('nosa16', ['--budget', '16']), ('full', ['--selector', 'full'])):
            runs, tokens = [], 0
            for i in range(RUNS):
                got = bench.lines(['shoal-worker', 'decode', source, '--output', os.path.join(folder, f'{name}{i}'),
                                   '--model', MODEL, '--format', 'json', '--quiet'] + how)
                for line in got:
                    if line.get('schema') == 'shoal.decode/1' and line['ttft_ms_p50'] > 0:
                        tokens = line['prompt_tokens']
                        runs.append(tokens / line['ttft_ms_p50'] * 1e3)
            if runs:
                bench.row('prefill', 'prefill', f'small model, {name}, one prompt of {tokens} tokens', runs, 'tokens/s')


def group_fetch(bench):
    for rtt in (0, 50, 200, 1000):
        exposed = {}
        for how, flags in (('no prefetch', ['--no-prefetch']), ('prefetch', []), ('lookahead mid', ['--lookahead', 'mid']),
                           ('lookahead step', ['--lookahead', 'step'])):
            for row in worker_bench(bench, '--batch', 1, '--contexts', '8K', '--runs', RUNS, '--steps', 48, '--warm', 8,
                                    '--budget', 16, '--nodes', 3, '--rtt-us', rtt, *flags):
                if row['bench'] == 'exposed':
                    exposed[how] = row
                    row['case'] = f'small model, 8K, batch 1, nosa16, RTT {rtt} us, {how}'
                    bench.keep('fetch', row)
        base = exposed.get('no prefetch')
        for how in ('prefetch', 'lookahead mid', 'lookahead step'):
            if base and how in exposed and base['value'] > 0:
                hidden = [100 * (1 - ms / base['value']) for ms in exposed[how]['runs']]
                row = bench.row('fetch', 'fetch_hidden', f'RTT {rtt} us, {how}: of what steps wait without it', hidden, '%')
                row['simulated'] = True


def group_peers(bench):
    python = os.environ.get('SHOAL_PEER_PYTHON', sys.executable)
    try:
        done = subprocess.run([python, os.path.join(HERE, 'peer_torch.py'), MODEL, '4096', str(CONTEXT_16K)], text=True,
                              capture_output=True, timeout=180)
    except (OSError, subprocess.TimeoutExpired) as why:
        bench.note(f'no PyTorch row: {why}')
        return
    if done.returncode != 0:
        bench.note(f'no PyTorch row: {(done.stderr.strip().splitlines() or ["it ended without a word"])[-1]} '
                   '(SHOAL_PEER_PYTHON names a Python that has torch and transformers)')
        return
    for line in (json.loads(x) for x in done.stdout.splitlines() if x.startswith('{')):
        for selector in ('full', 'nosa16'):
            for row in decode_at(bench, line['tokens'], selector):
                if row['bench'] == 'decode':
                    bench.row('peers', 'decode_peer', f'small model, {line["tokens"]} tokens, batch 1, ours {selector}',
                              row['runs'], 'tokens/s', peer=line['peer'], peer_value=median(line['runs']),
                              peer_runs=line['runs'])
    bench.note('no llama.cpp row: PyPI has its Python binding as sources only, and the model must become GGUF first')


# ---- what is shown ---------------------------------------------------------------------------------------------------

def number(x):
    return '' if x is None else f'{x:.3g}' if abs(x) < 1000 else f'{x:.0f}'


def draw(rows, notes):
    for group in GROUPS:
        some = [row for row in rows if row['group'] == group]
        if not some:
            continue
        print(f'\n{group}\n')
        table = [('bench', 'case', 'median', 'least', 'most', 'unit', 'of bound', 'peer', 'peer median', 'ratio', 'more')]
        for row in some:
            more = ''
            if 'cpu_s_per_gib' in row:
                more = f'CPU s/GiB {number(row["cpu_s_per_gib"])}'
                for name in ('sockets', 'shoal_tcp', 'ucx_perftest', 'redis'):
                    if f'{name}_gbs' in row:
                        more += f'; {name} {number(row[name + "_gbs"])} GB/s, {number(row[name + "_cpu_s_per_gib"])}'
                if row.get('ratio_redis'):
                    more += f'; {number(row["ratio_redis"])} x Redis'
            elif 'bound_of' in row:
                more = f'bound of {row["bound_of"]}; {number(row["gflops"])} GF/s, {number(row["gbytes"])} GB/s'
            elif row['bench'] == 'op':
                more = f'{row["op"]}, {number(row["calls_a_step"])} calls'
            elif row['bench'] == 'exposed':
                more = f'of {number(row["fetch_ms"])} ms of fetches'
            elif 'products_ms' in row:
                more = f'step {number(row["step_ms"])} ms, products {number(row["products_ms"])} ms, beside ops ' \
                       f'{number(row["beside_ops_ms"])} ms'
            if row.get('simulated'):
                more += ' simulated'
            table.append((row['bench'], row['case'], number(row['value']), number(min(row['runs'])),
                          number(max(row['runs'])), row['unit'],
                          f'{100 * row["fraction"]:.0f} %' if row.get('fraction') else '', row.get('peer', ''),
                          number(row.get('peer_value')), number(row.get('ratio')), more.strip()))
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        for i, line in enumerate(table):
            print('| ' + ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() + ' |')
            if i == 0:
                print('|' + '|'.join('-' * (width + 2) for width in widths) + '|')
    for text in notes:
        print('note:', text)


def write(bench):
    """after each group: a run that is interrupted keeps what it has"""
    folder = os.path.join(HERE, 'results')
    os.makedirs(folder, exist_ok=True)
    some = {}
    for row in bench.rows[bench.written:]:
        some.setdefault(row['group'], []).append(row)
    bench.written = len(bench.rows)
    for name, rows in some.items():
        with open(os.path.join(folder, f'{name}-{bench.date}.jsonl'), 'a', encoding='utf-8') as f:
            for row in rows:
                f.write(json.dumps({k: v for k, v in row.items() if k != 'group' and v is not None}) + '\n')


def main():
    if len(sys.argv) < 2 or sys.argv[1].startswith('-') or set(sys.argv[2:]) - set(GROUPS):
        print(__doc__, file=sys.stderr)
        return 2
    bench = Bench(os.path.abspath(sys.argv[1]))
    for group in sys.argv[2:] or GROUPS:
        begin = time.time()
        print(f'-- {group} (load {os.getloadavg()[0]:.1f})', flush=True)
        globals()['group_' + group](bench)
        write(bench)
        print(f'   {time.time() - begin:.0f} s', flush=True)
    draw(bench.rows, bench.notes)
    print(f'\n{len(bench.rows)} rows, {bench.failed} programs failed; {os.cpu_count()} processors, commit {bench.commit}, '
          f'{bench.date}')
    return 1 if bench.failed else 0


if __name__ == '__main__':
    sys.exit(main())
