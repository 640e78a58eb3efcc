"""Decode attention of PyTorch on this GPU, for gpu_bench --peer: lines "case<TAB>microseconds".

Each case tries scaled_dot_product_attention in two forms (grouped heads as given, and the group's heads as
query rows of their KV head) under each backend, over contiguous bf16 keys and values, and keeps the fastest.
"""
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
import torch.nn.functional as F

CASES = [  # name, batch, query heads, KV heads, D, tokens
    ("Hk=8 128K B=1", 1, 32, 8, 128, 131072),
    ("Hk=2 128K B=4", 4, 32, 2, 128, 131072),
    ("Hk=2 128K B=16", 16, 32, 2, 128, 131072),
    ("Hk=2 32K B=16", 16, 32, 2, 128, 32768),
    ("Hk=2 16K B=64", 64, 32, 2, 128, 16384),
    ("Hk=8 32K B=16", 16, 32, 8, 128, 32768),
]
PROMPTS = [  # causal, batch 1: name, query heads, KV heads, D, tokens
    ("prefill 64K", 32, 2, 128, 65536),
    ("prefill 128K", 32, 2, 128, 131072),
]
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]


def microseconds(work, runs=7, each=3):
    for _ in range(2):
        work()
    times = []
    for _ in range(runs):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(each):
            work()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / each)
    return sorted(times)[runs // 2]


def prompts():
    for name, heads, kv_heads, dim, tokens in PROMPTS:
        make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        q, k, v = make(1, heads, tokens, dim), make(1, kv_heads, tokens, dim), make(1, kv_heads, tokens, dim)
        wide = [x.repeat_interleave(heads // kv_heads, 1) for x in (k, v)]
        best = None
        for backend in BACKENDS[:2]:
            for form in (lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
                         lambda: F.scaled_dot_product_attention(q, *wide, is_causal=True)):
                try:
                    with sdpa_kernel(backend):
                        us = microseconds(form, runs=5, each=1)
                except RuntimeError:
                    continue
                best = us if best is None else min(best, us)
        if best is not None:
            print(f"{name}\t{best:.2f}", flush=True)
        del q, k, v, wide
        torch.cuda.empty_cache()


def main():
    prompts()
    for name, batch, heads, kv_heads, dim, tokens in CASES:
        make = lambda *shape: torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
        k, v = make(batch, kv_heads, tokens, dim), make(batch, kv_heads, tokens, dim)
        q = make(batch, heads, 1, dim)
        grouped = q.view(batch, kv_heads, heads // kv_heads, dim)
        best = None
        for backend in BACKENDS:
            for form in (lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
                         lambda: F.scaled_dot_product_attention(grouped, k, v)):
                try:
                    with sdpa_kernel(backend):
                        us = microseconds(form)
                except RuntimeError:
                    continue
                best = us if best is None else min(best, us)
        if best is not None:
            print(f"{name}\t{best:.2f}", flush=True)
        del k, v, q, grouped
        torch.cuda.empty_cache()


main()
