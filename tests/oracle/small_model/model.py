"""A small Llama-like decoder with NOSA attention, its selection losses and its tensor names.

B sequences, T tokens, H hidden size; other letters as in attention.py. Weights are kept in fp32,
one stacked tensor per kind ([layers, ...]); compute and residual stream are bf16, u is fp32.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from attention import BLOCK, attention, pool, select, windows

TRAINED_BUDGET = (1, 4, 10, 16)         # "NOSA 16", see attention.py for the four numbers
# Where the selection's query comes from; all but 'own' are known before the row's own layer starts:
# the previous layer's residual after its attention, its input, or the token before. The model is
# not trained for them. Layer 0 has no previous layer and uses its own query.
SOURCES = ('own', 'mid', 'input', 'step')

ATTENTION_WEIGHTS = ('q_proj', 'k_proj', 'v_proj', 'o_proj')
MLP_WEIGHTS = ('gate_proj', 'up_proj', 'down_proj')


def rms_norm(x, weight, eps=1e-6):
    """fp32 statistics, cast, then multiply by the weight in the compute type."""
    f = x.float()
    return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype) * weight.to(x.dtype)


class Model(nn.Module):
    """Default shape: 8,001,808 parameters."""

    def __init__(self, vocab=4096, layers=8, hidden=256, heads=8, kv_heads=2, head_dim=64,
                 ffn=704, theta=1e5, max_tokens=16384):
        super().__init__()
        self.layers, self.heads, self.kv_heads, self.head_dim = layers, heads, kv_heads, head_dim
        q_size, kv_size = heads * head_dim, kv_heads * head_dim

        def weight(*shape, std):
            return nn.Parameter(torch.randn(*shape) * std)

        self.embed = weight(vocab, hidden, std=0.04)            # also the output matrix
        self.q_proj = weight(layers, q_size, hidden, std=hidden ** -0.5)
        self.k_proj = weight(layers, kv_size, hidden, std=hidden ** -0.5)
        self.v_proj = weight(layers, kv_size, hidden, std=hidden ** -0.5)
        self.o_proj = weight(layers, hidden, q_size, std=0.3 * q_size ** -0.5)
        self.gate_proj = weight(layers, ffn, hidden, std=hidden ** -0.5)
        self.up_proj = weight(layers, ffn, hidden, std=hidden ** -0.5)
        self.down_proj = weight(layers, hidden, ffn, std=0.3 * ffn ** -0.5)
        self.norm_attention = nn.Parameter(torch.ones(layers, hidden))
        self.norm_mlp = nn.Parameter(torch.ones(layers, hidden))
        self.norm_out = nn.Parameter(torch.ones(hidden))
        # From A = 0 the bias is the same for every token and delta never gets a gradient.
        self.A = nn.Parameter(torch.full((layers, kv_heads), 0.5))
        self.delta = weight(layers, kv_heads, kv_size, std=0.05)
        freq = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angle = torch.arange(max_tokens).float()[:, None] * freq
        self.register_buffer('cos', angle.cos(), persistent=False)
        self.register_buffer('sin', angle.sin(), persistent=False)

    @staticmethod
    def rotate(x, cos, sin):
        """Half-split rotation of x [..., heads, D] by cos, sin broadcast to [..., 1, D / 2]."""
        a, b = x.float().chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    def importance(self, layer, v):
        """u [B, T, HK] fp32 from values v [B, T, HK * D]."""
        return self.A[layer] * F.softplus(F.linear(v.float(), self.delta[layer]))

    def queries(self, layer, h):
        """Normed input [B, T, H] -> rotated queries [B, T, HQ, D]."""
        B, T = h.shape[:2]
        q = F.linear(h, self.q_proj[layer].to(h.dtype)).view(B, T, self.heads, self.head_dim)
        return self.rotate(q, self.cos[:T, None], self.sin[:T, None])

    def hidden_states(self, tokens, budget, inputs=None, tap=None, source='own'):
        """tokens [B, T] -> normed output [B, T, H] bf16.

        budget: None for full attention with the bias, else see attention.py.
        inputs: a list that gets each layer's normed input (detached) appended.
        tap(layer, q, k, u): called before each selection with the query that selects.
        source: one of SOURCES.
        """
        B, T = tokens.shape
        bf16 = torch.bfloat16
        x = F.embedding(tokens, self.embed).to(bf16)
        names = ATTENTION_WEIGHTS + MLP_WEIGHTS
        w = {name: getattr(self, name).to(bf16).unbind(0) for name in names}
        cos, sin = self.cos[:T, None], self.sin[:T, None]
        no_mask = torch.zeros(1, dtype=torch.uint8, device=tokens.device)
        ahead = None                            # the residual that 'mid' or 'input' selects from
        for i in range(self.layers):
            h = rms_norm(x, self.norm_attention[i])
            if inputs is not None:
                inputs.append(h.detach())
            q = self.queries(i, h)
            k = F.linear(h, w['k_proj'][i]).view(B, T, self.kv_heads, self.head_dim)
            v = F.linear(h, w['v_proj'][i])
            u = self.importance(i, v)
            k = self.rotate(k, cos, sin)
            v = v.view(B, T, self.kv_heads, self.head_dim)
            if budget is None:
                o, _ = attention(q, k, v, u, no_mask, False)
            else:
                chooser = q
                if source == 'step':
                    chooser = torch.cat([q[:, :1], q[:, :-1]], 1)
                elif ahead is not None:
                    chooser = self.queries(i, rms_norm(ahead, self.norm_attention[i]))
                if tap is not None:
                    tap(i, chooser, k, u)
                mask = select(chooser.detach(), k.detach(), u.detach(),
                              *budget, int(source != 'own'))
                o, _ = attention(q, k, v, u, mask, True)
            if source == 'input':
                ahead = x
            x = x + F.linear(o.reshape(B, T, -1), w['o_proj'][i])
            if source == 'mid':
                ahead = x
            h = rms_norm(x, self.norm_mlp[i])
            gated = F.silu(F.linear(h, w['gate_proj'][i])) * F.linear(h, w['up_proj'][i])
            x = x + F.linear(gated, w['down_proj'][i])
        return rms_norm(x, self.norm_out)

    def logits(self, hidden):
        """[..., H] bf16 -> [..., vocab] fp32."""
        return F.linear(hidden, self.embed.to(torch.bfloat16)).float()

    def forward(self, tokens, targets, weights, budget, want_inputs=False):
        """tokens, targets [B, T]; weights [B, T] uint8 per target.

        Returns the weighted loss, the plain loss over targets of weight 1 (no gradient) and, if
        wanted, the layers' normed inputs for selection_losses.
        """
        inputs = [] if want_inputs else None
        logits = self.logits(self.hidden_states(tokens, budget, inputs))
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1),
                               reduction='none')
        w = weights.reshape(-1).float()
        plain = (loss.detach() * (w == 1)).sum() / (w == 1).sum()
        weighted = (loss * w).sum() / w.sum()
        return (weighted, plain, inputs) if want_inputs else (weighted, plain)

    def selection_losses(self, layer, h, rows, init=1, local=4):
        """Teach one layer's selection to find its own far attention.

        h [B, T, H]: the layer's normed input, detached. rows [B, S]: sampled query positions.
        Teacher: full attention without bias, summed to blocks outside the forced ones.
        Students: the query scores (gradient to q_proj, k_proj of this layer) and pooled
        importance (gradient to A, delta). Returns both losses and five numbers for the log:
        the losses, the share of far attention in the best 4 blocks by query score and in the
        best 6 by importance, and the far share of all attention.
        """
        bf16 = torch.bfloat16
        B, T, H = h.shape
        S, NB, M = rows.shape[1], T // BLOCK, T // 16 - 1
        HK, D = self.kv_heads, self.head_dim
        G = self.heads // HK
        scale = 1 / math.sqrt(D)
        q = F.linear(h.gather(1, rows[..., None].expand(-1, -1, H)), self.q_proj[layer].to(bf16))
        q = self.rotate(q.view(B, S, self.heads, D), self.cos[rows][:, :, None],
                        self.sin[rows][:, :, None])
        q = q.view(B, S, HK, G, D).permute(0, 2, 3, 1, 4).reshape(B, HK, G * S, D)
        k = F.linear(h, self.k_proj[layer].to(bf16)).view(B, T, HK, D)
        k = self.rotate(k, self.cos[:T, None], self.sin[:T, None])
        v = F.linear(h, self.v_proj[layer].detach().to(bf16))
        u = self.importance(layer, v)
        block = torch.arange(NB, device=h.device)
        far = (block >= init) & (block < (rows // BLOCK)[:, None, :, None] - local)
        at = rows[:, None, None, :, None]
        with torch.no_grad():
            s = (q @ k.permute(0, 2, 3, 1)).view(B, HK, G, S, T) * scale
            s.masked_fill_(torch.arange(T, device=h.device) > at, float('-inf'))
            p = torch.softmax(s, -1, dtype=torch.float32).mean(2)
            teacher = p.view(B, HK, S, NB, BLOCK).sum(-1) * far
            del s, p
        s = (q @ windows(k).to(bf16).permute(0, 2, 3, 1)).view(B, HK, G, S, M).float() * scale
        s = s.masked_fill(16 * torch.arange(M, device=h.device) + 31 > at, -1e4)
        p = torch.softmax(s, -1).mean(2)
        p = pool(p.reshape(1, -1, M)).view(B, HK, S, NB) * far
        log_p = torch.log(p / (p.sum(-1, keepdim=True) + 1e-9) + 1e-6)
        query_loss = -(teacher * log_p).sum(-1).mean()
        s = pool(windows(u).permute(0, 2, 1))[:, :, None].expand(B, HK, S, NB)
        s = s.masked_fill(~far, -1e4)
        importance_loss = -(teacher * torch.log_softmax(s, -1)).sum(-1).mean()
        with torch.no_grad():
            total = teacher.sum().clamp_min(1e-6)
            by_query = teacher.gather(-1, p.topk(4, -1).indices).sum() / total
            by_importance = teacher.gather(-1, s.topk(6, -1).indices).sum() / total
            info = torch.stack([query_loss, importance_loss, by_query, by_importance,
                                teacher.sum(-1).mean()])
        return query_loss, importance_loss, info

    def _named(self):
        """(name in the checkpoint, view of our tensor) pairs."""
        yield 'model.embed_tokens.weight', self.embed
        yield 'model.norm.weight', self.norm_out
        for i in range(self.layers):
            prefix = f'model.layers.{i}.'
            yield prefix + 'input_layernorm.weight', self.norm_attention[i]
            yield prefix + 'post_attention_layernorm.weight', self.norm_mlp[i]
            for name in ATTENTION_WEIGHTS:
                yield f'{prefix}self_attn.{name}.weight', getattr(self, name)[i]
            for name in MLP_WEIGHTS:
                yield f'{prefix}mlp.{name}.weight', getattr(self, name)[i]
            yield prefix + 'self_attn.A', self.A[i]
            yield prefix + 'self_attn.delta.weight', self.delta[i]

    def export(self):
        """Checkpoint: a dictionary of bf16 tensors with Hugging Face names."""
        return {name: x.detach().to(torch.bfloat16).cpu().clone() for name, x in self._named()}

    @torch.no_grad()
    def load(self, tensors):
        for name, x in self._named():
            x.copy_(tensors[name])
