"""Golden logits of small random checkpoints, by Hugging Face transformers on the CPU.

    pip install torch transformers safetensors
    python make_llama.py                 writes ../golden/llama/NAME/

Each folder is a checkpoint as save_pretrained leaves it (config.json in the older form of published
checkpoints but for one), and
  golden.json         {"tokens", "rows", "vocab"}: the input ids and the rows whose logits are kept
  logits.f32          little-endian float32 [rows, vocab]: bf16 weights, float32 mathematics, eager
  logits_stored.f32   the same with rotated keys and values rounded to bf16 before attention, as a
                      store of bf16 blocks keeps them: comparable far more closely

transformers has no MiniCPM: `minicpm` is its Llama with longrope and the three scalings of MiniCPM
(arXiv 2404.06395, section 3: embeddings times scale_emb, every branch times scale_depth /
sqrt(layers), the last hidden state over hidden_size / dim_model_base) put in by hooks.
"""
import json
import math
import os
import shutil

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..', 'golden', 'llama')
TOKENS, VOCAB = 200, 320
COMMON = dict(vocab_size=VOCAB, hidden_act='silu', bos_token_id=1, eos_token_id=2,
              attention_bias=False, mlp_bias=False)
LONG = [1.0 + 0.02 * n * n for n in range(32)]          # one factor for each pair of a head of 64

CASES = {
    'untied': dict(hidden_size=64, intermediate_size=112, num_hidden_layers=3,
                   num_attention_heads=4, num_key_value_heads=2, head_dim=64, rms_norm_eps=1e-5,
                   rope_theta=10000.0,
                   max_position_embeddings=512, tie_word_embeddings=False),
    'tied-llama3': dict(hidden_size=96, intermediate_size=96, num_hidden_layers=2,
                        num_attention_heads=6, num_key_value_heads=2, head_dim=64,
                        rms_norm_eps=1e-5, rope_theta=500000.0,
                        max_position_embeddings=2048, tie_word_embeddings=True,
                        rope_scaling=dict(rope_type='llama3', factor=32.0, low_freq_factor=1.0,
                                          high_freq_factor=4.0,
                                          original_max_position_embeddings=64)),
    'linear': dict(hidden_size=64, intermediate_size=80, num_hidden_layers=2, num_attention_heads=2,
                   num_key_value_heads=1, head_dim=128, rms_norm_eps=1e-6, rope_theta=10000.0,
                   max_position_embeddings=1024, tie_word_embeddings=False,
                   rope_scaling=dict(rope_type='linear', factor=4.0)),
    'minicpm': dict(hidden_size=128, intermediate_size=96, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=2, rms_norm_eps=1e-6,
                    rope_theta=10000.0,
                    max_position_embeddings=512, tie_word_embeddings=False,
                    rope_scaling=dict(rope_type='longrope', long_factor=LONG, short_factor=LONG,
                                      original_max_position_embeddings=256)),
}
SHARDED = 'untied'
NEW_FORM = 'linear'             # keeps transformers 5's rope_parameters and dtype in config.json
MINICPM = dict(scale_emb=12, scale_depth=1.4, dim_model_base=32)


EAGER = modeling_llama.eager_attention_forward


def stored_attention(module, query, key, value, *args, **more):
    key, value = (x.to(torch.bfloat16).to(x.dtype) for x in (key, value))
    return EAGER(module, query, key, value, *args, **more)


def make_model(config, seed):
    """Random weights large enough for attention to be far from uniform, rounded to bf16."""
    model = LlamaForCausalLM(config)
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=rng))
            else:
                gain = 1.6 if 'q_proj' in name or 'k_proj' in name else 1.0
                p.copy_(torch.randn(p.shape, generator=rng) * gain / math.sqrt(p.shape[1]))
    return model.to(torch.bfloat16).to(torch.float32).eval()


def scale_as_minicpm(model, config):
    """MiniCPM's three scalings as hooks on a Llama."""
    branch = MINICPM['scale_depth'] / math.sqrt(config.num_hidden_layers)
    model.model.embed_tokens.register_forward_hook(lambda m, i, o: o * MINICPM['scale_emb'])
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(lambda m, i, o: o * branch)
        layer.mlp.down_proj.register_forward_hook(lambda m, i, o: o * branch)
    width = config.hidden_size / MINICPM['dim_model_base']
    model.model.norm.register_forward_hook(lambda m, i, o: o / width)


def write_config(folder, name, case):
    """The keys that published checkpoints of the family have."""
    path = os.path.join(folder, 'config.json')
    if name == NEW_FORM:
        return
    minicpm = name == 'minicpm'
    config = dict(architectures=['MiniCPMForCausalLM' if minicpm else 'LlamaForCausalLM'],
                  model_type='minicpm' if minicpm else 'llama', **COMMON, **case,
                  torch_dtype='bfloat16')
    if minicpm:
        config.update(MINICPM)
    with open(path, 'w') as f:
        json.dump(config, f, indent=2)


def main():
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    os.umask(0o022)
    for seed, (name, case) in enumerate(CASES.items()):
        folder = os.path.join(OUT, name)
        config = LlamaConfig(**COMMON, **json.loads(json.dumps(case)))
        model = make_model(config, seed)
        model.to(torch.bfloat16).save_pretrained(folder, **(
            dict(max_shard_size='150KB') if name == SHARDED else {}))
        model = model.to(torch.float32)
        # .to(bfloat16) also rounded the rotary frequencies: make them anew
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        if name == 'minicpm':
            scale_as_minicpm(model, config)
        write_config(folder, name, case)
        for file in os.listdir(folder):
            os.chmod(os.path.join(folder, file), 0o644)
        tokens = np.random.RandomState(seed).randint(3, VOCAB, TOKENS).tolist()
        rows = sorted({*range(8), *range(8, TOKENS, 6), 63, 64, 127, 128, 191, 192, TOKENS - 1})
        model.set_attn_implementation('eager')
        for kind, attention in (('logits', EAGER), ('logits_stored', stored_attention)):
            modeling_llama.eager_attention_forward = attention
            with torch.no_grad():
                logits = model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
            logits[rows].astype('<f4').tofile(os.path.join(folder, kind + '.f32'))
            print(name, kind, 'standard deviation', round(float(logits.std()), 3))
        with open(os.path.join(folder, 'golden.json'), 'w') as f:
            json.dump(dict(tokens=tokens, rows=rows, vocab=VOCAB), f)


if __name__ == '__main__':
    main()
