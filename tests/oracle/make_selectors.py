"""Small random checkpoints for SSA, MoBA and NSA, with golden logits and selections by the float64 oracle.

    python3 make_selectors.py            writes ../golden/selectors/NAME/ (needs NumPy only; seeded)

ssa     a Llama with SSA's output gate (g_proj, 3 rows a query head) in the configuration of the
        released models (model_type llama-nsa); blocks of 16 tokens, groups of 2 heads
nsa     the same with a window: NSA as the SSA paper trains it, three gated branches; the window is
        no multiple of a block
nsa-overlap  NSA in its paper's geometry: overlapping windows, blocks of 64, two more forced
moba    as many KV heads as query heads, blocks of 256 tokens, which are two means of 128 keys
Each folder holds config.json, model.safetensors and golden.json, logits.f32 as make_small_model.py
writes them; a run also has "choice", the selector and budget as a user says them.
logits_rounded.f32: the same runs with activations rounded to bf16 before every product with a
weight, as a GPU's matrix units take them; a run's "margin_rounded" is the least margin of its
selections by query at each position, over layers and KV heads (null: nothing to confuse). Rounding turns a selection over here and there, which on random weights
moves a logit by more than its standard deviation; such a backend is held against these.
"""
import json
import os
import struct

import numpy as np

import make_small_model
import nosa

OUT = os.path.join(make_small_model.HERE, '..', 'golden', 'selectors')
COMMON = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, vocab_size=48,
              num_attention_heads=4, head_dim=64, rms_norm_eps=1e-5, rope_theta=10000.0,
              max_position_embeddings=2048, tie_word_embeddings=True, torch_dtype='bfloat16',
              architectures=['LlamaForCausalLM'])
TOKENS = 900
POSITIONS = [127, 128, 142, 143, 255, 256, 383, 511, 512, 639, 640, 767, 768, 830, 897]
CASES = {
    'ssa': (dict(model_type='llama-nsa', num_key_value_heads=2, block_size=16, block_counts=8,
                 window_size=0, inference_mode='sparse'),
            [('ssa 8', ('ssa', None), nosa.ssa(8)), ('ssa 24', ('ssa', '24'), nosa.ssa(24)),
             ('ssa 8 mid', ('ssa', None), nosa.ssa(8, source='mid')),
             ('ssa 16 by chunks', ('ssa-chunked', '16'), nosa.ssa(16, 16, 16)),
             ('full', ('full', None), nosa.Selector(0, 0, 0, nosa.EVERYTHING, bias=False))]),
    'moba': (dict(model_type='llama', num_key_value_heads=4,
                  sparse_config=dict(type='moba', block_size=256, topk=2)),
             [('moba 2', (None, None), nosa.moba(2, 256)),
              ('moba 3', ('moba', '3'), nosa.moba(3, 256))]),
    'nsa': (dict(model_type='llama-nsa', num_key_value_heads=2, block_size=16, block_counts=8,
                 window_size=100, inference_mode='sparse'),
            [('nsa 8', (None, None), nosa.nsa(8, near=100)),
             ('nsa 24', ('nsa', '24'), nosa.nsa(24, near=100)),
             ('nsa 8 mid', ('nsa', None), nosa.nsa(8, near=100, source='mid')),
             ('nsa 16 by chunks', ('nsa-chunked', '16'), nosa.nsa(16, near=100, chunk=16))]),
    'nsa-overlap': (dict(model_type='llama-nsa', num_key_value_heads=2,
                         sparse_config=dict(type='nsa', kernel_size=32, kernel_stride=16,
                                            block_size=64, init_blocks=1, local_blocks=1, topk=6,
                                            window_size=200, compression='mean')),
                    [('nsa 6', (None, None), nosa.nsa_overlap(6, 200)),
                     ('nsa 4 input', ('nsa', '4'), nosa.nsa_overlap(4, 200, 'input'))]),
}


def weights(rng, config):
    """{name: values of bf16}: products of queries and keys large enough that blocks differ."""
    c, d = config, config['head_dim']
    hidden, ffn = c['hidden_size'], c['intermediate_size']
    q, kv = c['num_attention_heads'] * d, c['num_key_value_heads'] * d
    out = {'model.embed_tokens.weight': rng.standard_normal((c['vocab_size'], hidden)) / 4,
           'model.norm.weight': 1 + 0.2 * rng.standard_normal(hidden)}
    for n in range(c['num_hidden_layers']):
        p = f'model.layers.{n}.'
        shapes = {'self_attn.q_proj': (q, hidden), 'self_attn.k_proj': (kv, hidden),
                  'self_attn.v_proj': (kv, hidden), 'self_attn.o_proj': (hidden, q),
                  'mlp.gate_proj': (ffn, hidden), 'mlp.up_proj': (ffn, hidden),
                  'mlp.down_proj': (hidden, ffn)}
        if c['model_type'] == 'llama-nsa':
            shapes['self_attn.g_proj'] = (3 * c['num_attention_heads'], hidden)
        for name, shape in shapes.items():
            gain = 1.6 if name.endswith(('q_proj', 'k_proj')) else 1.0
            out[p + name + '.weight'] = rng.standard_normal(shape) * gain / np.sqrt(shape[1])
        for name in ('input_layernorm', 'post_attention_layernorm'):
            out[p + name + '.weight'] = 1 + 0.2 * rng.standard_normal(hidden)
    return out


def write_checkpoint(folder, config, tensors):
    header, data = {}, b''
    for name, x in tensors.items():
        raw = (nosa.bf16(x).astype(np.float32).view(np.uint32) >> 16).astype('<u2').tobytes()
        header[name] = {'dtype': 'BF16', 'shape': x.shape,
                        'data_offsets': [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    head += b' ' * (-len(head) % 8)
    with open(os.path.join(folder, 'model.safetensors'), 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head + data)
    with open(os.path.join(folder, 'config.json'), 'w') as f:
        json.dump(config, f, indent=2)
        f.write('\n')


def least_margins(rows):
    """Of the runs' JSON: the closest selection by query at each position."""
    each = [[head['margin'][0] for layer in row['selections'] for head in layer] for row in rows]
    return [min((m for m in margins if m is not None), default=None) for margins in each]


def run(model, tokens, sel):
    make_small_model.POSITIONS = POSITIONS
    return make_small_model.run(model, tokens, sel)


def main():
    for seed, (name, (more, runs)) in enumerate(CASES.items()):
        folder, rng = os.path.join(OUT, name), np.random.default_rng(seed)
        os.makedirs(folder, exist_ok=True)
        config = {**COMMON, **more}
        write_checkpoint(folder, config, weights(rng, config))
        tokens = rng.integers(0, COMMON['vocab_size'], TOKENS)
        model, all_runs, logits, rounded = nosa.Model(folder), [], [], []
        model_rounded = nosa.Model(folder, activation=nosa.bf16)
        for title, (selector, budget), sel in runs:
            result, values = run(model, tokens, sel)
            choice = dict(selector=selector, budget=budget, lookahead=sel.source)
            result_rounded, values_rounded = run(model_rounded, tokens, sel)
            all_runs.append({'name': title, 'choice': choice, **result,
                             'margin_rounded': least_margins(result_rounded['rows'])})
            logits.append(values)
            rounded.append(values_rounded)
            print(name, title, 'nats a token', round(result['nll'] / (TOKENS - 1), 5), flush=True)
        np.array(logits).astype('<f4').tofile(os.path.join(folder, 'logits.f32'))
        np.array(rounded).astype('<f4').tofile(os.path.join(folder, 'logits_rounded.f32'))
        with open(os.path.join(folder, 'golden.json'), 'w') as f:
            head = json.dumps(dict(tokens=tokens.tolist(), positions=POSITIONS,
                                   vocab=COMMON['vocab_size']))
            f.write(head[:-1] + ', "runs": [\n' + ',\n'.join(map(json.dumps, all_runs)) + '\n]}\n')


if __name__ == '__main__':
    main()
