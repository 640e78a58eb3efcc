"""Evaluate a trained model on the cases of cases.py.

    python evaluate.py MODEL CASES [--out FILE] [--only NAME,NAME,...] [--no-misses]

MODEL: folder with model.safetensors and tokenizer.json. Prints a table and writes one JSON file:
bits per byte, share of planted keys answered exactly (teacher-forced: all five argmaxes right,
the same as greedy decoding) and, for NOSA 16, misses per layer, KV head and token of an LRU pool.
NAME: a budget below, or budget-source with one of model.SOURCES, e.g. nosa16-step.
"""
import argparse
import json
import math

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer

from attention import select_masks
from model import SOURCES, Model

# (first blocks, blocks before the current one, query picks with the forced ones, total)
BUDGETS = {'full': None, 'nosa8': (1, 1, 5, 8), 'nosa12': (1, 3, 8, 12), 'nosa16': (1, 4, 10, 16),
           'nosa24': (1, 7, 15, 24), 'nosa32': (1, 9, 19, 32), 'window16': (1, 14, 0, 16),
           'query16': (1, 4, 16, 16), 'importance16': (1, 4, 6, 16)}
POOLS = (16, 18, 20, 24, 32)


def parse(name):
    """'nosa16-mid' -> (budget, source)"""
    budget, _, source = name.partition('-')
    assert source in ('', *SOURCES), name
    return BUDGETS[budget], source or 'own'


def padded(ids):
    """Token ids -> [1, T] on the GPU with T a multiple of 64; the zeros at the end see no one."""
    x = torch.tensor(ids + [0] * (-len(ids) % 64), device='cuda')
    return x[None]


@torch.no_grad()
def bits_per_byte(model, texts, token_bytes, budget, source, tokens):
    """Over targets 1.. of the last `tokens` tokens of each text's first 16384."""
    nats = size = 0.0
    for ids in texts:
        ids = ids[16384 - tokens:16384]
        hidden = model.hidden_states(padded(ids), budget, source=source)[0]
        target = torch.tensor(ids[1:], device='cuda')
        for i in range(0, tokens - 1, 4096):
            part = target[i:i + 4096]
            logits = model.logits(hidden[i:i + len(part)])
            nats += F.cross_entropy(logits, part, reduction='sum').item()
        size += token_bytes[target].sum().item()
    return nats / math.log(2) / size


@torch.no_grad()
def recall(model, encode, cases, budget, source):
    """-> for each case whether all five digits come out."""
    out = []
    for case in cases:
        prompt, whole = encode(case['prompt']), encode(case['prompt'] + case['answer'])
        digits = whole[len(prompt):]
        assert whole[:len(prompt)] == prompt and len(digits) == 5
        hidden = model.hidden_states(padded(whole), budget, source=source)[0]
        first = len(prompt) - 1
        best = model.logits(hidden[first:first + 5]).argmax(-1).tolist()
        out.append(best == digits)
    return out


@torch.no_grad()
def misses(model, texts, budget, start=4096):
    """LRU misses per (layer, KV head, token) from token `start` on, by pool size; pick turnover."""
    picked, turnover = [], []

    def tap(layer, q, k, u):
        mask, picks = select_masks(q, k, u, budget, want_picks=True)    # source own: no lag
        picked.append(mask[0].permute(2, 0, 1).bool())                  # [T, HK, NB]
        t = torch.arange(start + 1, 16384, device='cuda')
        t = t[t % 64 != 0]
        now, before = picks[0, ..., t].float(), picks[0, ..., t - 1].float()
        turnover.append(((now * (1 - before)).sum() / now.sum()).item())

    total = torch.zeros(len(POOLS), device='cuda')
    for ids in texts:
        picked.clear()
        model.hidden_states(padded(ids[:16384]), budget, tap=tap)
        chosen = torch.stack(picked, 1).flatten(1, 2)                   # [T, layers * HK, NB]
        rows = chosen.shape[1]
        last = torch.full(chosen.shape[1:], -1, device='cuda', dtype=torch.int32)
        for t in range(16384):
            if t >= start:
                when, block = last.topk(max(POOLS), -1)
                for i, pool in enumerate(POOLS):
                    kept = torch.zeros_like(chosen[t]).scatter_(-1, block[:, :pool],
                                                                when[:, :pool] >= 0)
                    total[i] += (chosen[t] & ~kept).sum() / rows
            last = torch.where(chosen[t], t, last)
    count = len(texts) * (16384 - start)
    return {pool: round(total[i].item() / count, 4) for i, pool in enumerate(POOLS)}, \
        round(sum(turnover) / len(turnover), 4)


def lines(path):
    with open(path) as f:
        return [json.loads(line) for line in f]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('model')
    parser.add_argument('cases')
    parser.add_argument('--out', default='evaluation.json')
    parser.add_argument('--only', help='names with commas between them')
    parser.add_argument('--no-misses', action='store_true')
    args = parser.parse_args()
    names = args.only.split(',') if args.only else list(BUDGETS)
    tokenizer = Tokenizer.from_file(f'{args.model}/tokenizer.json')
    encode = lambda text: tokenizer.encode(text).ids
    model = Model().cuda()
    model.load(load_file(f'{args.model}/model.safetensors'))
    token_bytes = torch.tensor([len(tokenizer.id_to_token(i)) if i else 0
                                for i in range(tokenizer.get_vocab_size())], device='cuda')
    texts = [encode(line['text'])[:16384] for line in lines(f'{args.cases}/text-16k.jsonl')]
    result = {'bits_per_byte': {}, 'keys': {}}

    def save():
        with open(args.out, 'w') as f:
            json.dump(result, f, indent=1)

    for tokens in (16384, 4096):
        for name in names:
            value = bits_per_byte(model, texts, token_bytes, *parse(name), tokens)
            result['bits_per_byte'][f'{name}@{tokens}'] = round(value, 4)
        now = {k: v for k, v in result['bits_per_byte'].items() if k.endswith(f'@{tokens}')}
        print(tokens, now, flush=True)
        save()
    for length in ('16k', '4k'):
        cases = lines(f'{args.cases}/keys-{length}.jsonl')
        for name in names:
            right = recall(model, encode, cases, *parse(name))
            groups = {}
            for case, ok in zip(cases, right):
                group = f"{case['kind']}, {1 + case['distractors']} keys"
                groups.setdefault(group, []).append(ok)
                if case['kind'] == 'trained':
                    groups.setdefault('trained', []).append(ok)
                    groups.setdefault(f"depth {int(case['depth'] * 4)}/4", []).append(ok)
            shares = {g: round(sum(x) / len(x), 3) for g, x in sorted(groups.items())}
            result['keys'][f'{name}@{length}'] = shares
            print(length, name, shares, flush=True)
        save()
    if args.no_misses:
        return
    result['misses'], result['pick_turnover'] = misses(model, texts[:3], BUDGETS['nosa16'])
    print('misses', result['misses'], 'pick turnover', result['pick_turnover'], flush=True)
    save()


if __name__ == '__main__':
    main()
