"""PyTorch's decode of the same model shape on this CPU: transformers' LlamaForCausalLM, dense attention, greedy.

    python3 peer_torch.py MODEL_DIR TOKENS...       one JSON line a context length: tokens/s of each run

The cache is filled with random keys and values, as `shoal-worker bench decode` fills its own. Both bf16 (as stored)
and f32 weights are tried and the faster one counts. Exit 77: PyTorch or transformers cannot be imported.
"""
import json
import os
import sys
import time

try:
    import torch
    import transformers
except ImportError as why:
    print(why, file=sys.stderr)
    sys.exit(77)

RUNS, STEPS = 5, 16


def cache_of(model, tokens):
    c = model.config
    cache = transformers.DynamicCache()
    shape = (1, c.num_key_value_heads, tokens, c.head_dim)
    for layer in range(c.num_hidden_layers):
        cache.update(torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype), layer)
    return cache


def decode(model, tokens):
    """tokens/s of RUNS stretches of STEPS steps"""
    cache, token, runs = cache_of(model, tokens), torch.tensor([[17]]), []
    for run in range(RUNS + 1):  # the first warms up
        begin = time.perf_counter()
        for _ in range(STEPS):
            out = model(input_ids=token, past_key_values=cache, use_cache=True)
            token = out.logits[:, -1:].argmax(-1)
        runs.append(STEPS / (time.perf_counter() - begin))
    return runs[1:]


def main():
    folder, lengths = sys.argv[1], [int(x) for x in sys.argv[2:]]
    torch.set_num_threads(os.cpu_count())
    transformers.utils.logging.set_verbosity_error()
    best = {}
    for dtype in (torch.bfloat16, torch.float32):
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        with torch.inference_mode():
            for tokens in lengths:
                runs = decode(model, tokens)
                if tokens not in best or sorted(runs)[RUNS // 2] > sorted(best[tokens][0])[RUNS // 2]:
                    best[tokens] = runs, str(dtype).split('.')[1]
    for tokens, (runs, dtype) in best.items():
        print(json.dumps({'tokens': tokens, 'runs': runs, 'dtype': dtype, 'threads': os.cpu_count(),
                          'peer': f'PyTorch {torch.__version__}, transformers {transformers.__version__}, {dtype}'}))


if __name__ == '__main__':
    main()
