"""The model in torch, for training: Qwen3_5MoeForCausalLM with its MTP head, parameter names as in the checkpoint.

Rows hold several conversations one after another; attention, convolution and state do not reach across their borders.
All experts are computed and weighted, most with 0: two large products, which a GPU likes better than routing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .delta import FORGET, gated_delta
from .shape import Shape


@dataclass(frozen=True)
class Borders:
    """Of the conversations in rows. `same` [3, B, T, 1]: tokens t - 1, t - 2, t - 3 belong to that of t; `first`
    [B, T, 1]; `mask` [B, 1, T, T]: t may attend to s; `cos`, `sin` [T, rotary / 2]."""

    same: Tensor
    first: Tensor
    mask: Tensor
    cos: Tensor
    sin: Tensor


def borders(number: Tensor, shape: Shape) -> Borders:
    """From the number of the conversation of every token [B, T]."""
    t = number.shape[1]
    same = torch.stack(
        [F.pad(number[:, s:] == number[:, :-s], (s, 0)) for s in range(1, shape.linear_conv_kernel_dim)]
    )[..., None]
    causal = torch.ones(t, t, dtype=torch.bool, device=number.device).tril()
    mask = ((number[:, :, None] == number[:, None, :]) & causal)[:, None]
    half = shape.rotary // 2
    angle = torch.arange(t, device=number.device)[:, None] * shape.rope_theta ** (
        -torch.arange(half, device=number.device) / half
    )
    return Borders(same, ~same[0], mask, angle.cos(), angle.sin())


class Norm(nn.Module):
    """RMS norm, times 1 + weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        return (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps) * (1 + self.weight)).to(x.dtype)


class GatedNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x float32."""
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return (y * F.silu(gate.float())).to(gate.dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Delta(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        h, nv = shape.hidden_size, shape.linear_num_value_heads
        keys, values = shape.linear_num_key_heads * shape.linear_key_head_dim, nv * shape.linear_value_head_dim
        self.in_proj_qkv, self.in_proj_z = linear(h, 2 * keys + values), linear(h, values)
        self.in_proj_b, self.in_proj_a = linear(h, nv), linear(h, nv)
        self.conv1d = nn.Module()
        self.conv1d.weight = nn.Parameter(torch.empty(2 * keys + values, 1, shape.linear_conv_kernel_dim))
        self.A_log, self.dt_bias = nn.Parameter(torch.empty(nv)), nn.Parameter(torch.empty(nv))
        self.norm, self.out_proj = GatedNorm(shape.linear_value_head_dim, shape.rms_norm_eps), linear(values, h)

    def forward(self, x: Tensor, at: Borders) -> Tensor:
        s = self.shape
        b, t, _ = x.shape
        u = self.in_proj_qkv(x)
        taps = self.conv1d.weight[:, 0].to(u.dtype)
        mixed = u * taps[:, -1]
        for back in range(1, taps.shape[1]):
            mixed = mixed + F.pad(u[:, :-back], (0, 0, back, 0)) * at.same[back - 1] * taps[:, -1 - back]
        keys = s.linear_num_key_heads * s.linear_key_head_dim
        q, k, v = F.silu(mixed).float().split([keys, keys, u.shape[-1] - 2 * keys], -1)
        repeat = s.linear_num_value_heads // s.linear_num_key_heads
        q, k = (y.view(b, t, s.linear_num_key_heads, -1).repeat_interleave(repeat, 2) for y in (q, k))
        q, k = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6) for y in (q, k))
        beta = torch.sigmoid(self.in_proj_b(x).float())
        g = -self.A_log.exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        g = torch.where(at.first, FORGET, g)
        o = gated_delta(q * s.linear_key_head_dim**-0.5, k, v.view(b, t, s.linear_num_value_heads, -1), g, beta)
        y = self.norm(o, self.in_proj_z(x).view(b, t, s.linear_num_value_heads, -1))
        return self.out_proj(y.reshape(b, t, -1))


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        h, hd, nh, nkv = shape.hidden_size, shape.head_dim, shape.num_attention_heads, shape.num_key_value_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(h, 2 * nh * hd),
            linear(h, nkv * hd),
            linear(h, nkv * hd),
            linear(nh * hd, h),
        )
        self.q_norm, self.k_norm = Norm(hd, shape.rms_norm_eps), Norm(hd, shape.rms_norm_eps)

    def forward(self, x: Tensor, at: Borders) -> Tensor:
        s = self.shape
        b, t, _ = x.shape
        q, gate = self.q_proj(x).view(b, t, s.num_attention_heads, 2 * s.head_dim).chunk(2, -1)
        k, v = (p(x).view(b, t, s.num_key_value_heads, s.head_dim) for p in (self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q), at), rotate(self.k_norm(k), at)
        repeat = s.num_attention_heads // s.num_key_value_heads
        k, v = (y.repeat_interleave(repeat, 2).transpose(1, 2) for y in (k, v))
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=at.mask)
        o = o.transpose(1, 2) * torch.sigmoid(gate)
        return self.o_proj(o.reshape(b, t, -1))


def rotate(x: Tensor, at: Borders) -> Tensor:
    """Pairs (j, j + rotary / 2) of the first dimensions of x [B, T, heads, head_dim]; the rest stays."""
    half = at.cos.shape[-1]
    cos, sin = at.cos[:, None].to(x.dtype), at.sin[:, None].to(x.dtype)
    a, b, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


class Experts(nn.Module):
    """The experts' matrices, as one tensor each."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        e, i, h = shape.num_experts, shape.moe_intermediate_size, shape.hidden_size
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.empty(e, 2 * i, h)), nn.Parameter(torch.empty(e, h, i))


class Gated(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = (
            linear(hidden, width),
            linear(hidden, width),
            linear(width, hidden),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Mixture(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.gate, self.experts = linear(shape.hidden_size, shape.num_experts), Experts(shape)
        self.shared_expert = Gated(shape.hidden_size, shape.shared_expert_intermediate_size)
        self.shared_expert_gate = linear(shape.hidden_size, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(y, imbalance): the latter is 1 if every expert has its share of tokens and of probability."""
        e, k = self.shape.num_experts, self.shape.num_experts_per_tok
        flat = x.reshape(-1, x.shape[-1])
        chances = torch.softmax(self.gate(flat).float(), -1)
        best, chosen = chances.topk(k, -1)
        weights = torch.zeros_like(chances).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        share = torch.zeros_like(chances).scatter(-1, chosen, 1.0 / k).mean(0)
        imbalance = e * (share * chances.mean(0)).sum()
        up = F.linear(flat, self.experts.gate_up_proj.flatten(0, 1)).view(flat.shape[0], e, 2, -1)
        act = F.silu(up[:, :, 0]) * up[:, :, 1] * weights.to(x.dtype)[..., None]
        y = act.flatten(1) @ self.experts.down_proj.transpose(1, 2).flatten(0, 1)
        y = y + torch.sigmoid(self.shared_expert_gate(flat)) * self.shared_expert(flat)
        return y.view_as(x), imbalance


class Layer(nn.Module):
    def __init__(self, shape: Shape, kind: str) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = (
            Norm(shape.hidden_size, shape.rms_norm_eps) for _ in range(2)
        )
        if kind == "full_attention":
            self.self_attn = Attention(shape)
        else:
            self.linear_attn = Delta(shape)
        self.full = kind == "full_attention"
        self.mlp = Mixture(shape)

    def forward(self, x: Tensor, at: Borders) -> tuple[Tensor, Tensor]:
        mixer = self.self_attn if self.full else self.linear_attn
        x = x + mixer(self.input_layernorm(x), at)
        y, imbalance = self.mlp(self.post_attention_layernorm(x))
        return x + y, imbalance


class Body(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape, kind) for kind in shape.layer_types)
        self.norm = Norm(shape.hidden_size, shape.rms_norm_eps)


class Drafter(nn.Module):
    """The MTP head: from the final state at t and the token at t + 1, the token at t + 2."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        h, eps = shape.hidden_size, shape.rms_norm_eps
        self.fc = linear(2 * h, h)
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden, self.norm = Norm(h, eps), Norm(h, eps), Norm(h, eps)
        self.layers = nn.ModuleList([Layer(shape, "full_attention")])


class DemoModel(nn.Module):
    def __init__(self, shape: Shape, dtype: torch.dtype = torch.float32) -> None:
        """Matrices get `dtype`; embedding, norms, convolution and decays are float32."""
        super().__init__()
        self.shape, self.dtype = shape, dtype
        self.model, self.mtp = Body(shape), Drafter(shape)
        for name, p in self.named_parameters():
            if p.ndim > 1 and "embed" not in name and "conv1d" not in name:
                p.data = p.data.to(dtype)

    def embed(self, ids: Tensor) -> Tensor:
        return self.model.embed_tokens(ids).to(self.dtype)

    def hidden(self, ids: Tensor, at: Borders) -> tuple[Tensor, Tensor]:
        """(states after the last norm [B, T, H], sum of imbalances)."""
        x = self.embed(ids)
        uneven = x.new_zeros((), dtype=torch.float32)
        for layer in self.model.layers:
            x, imbalance = layer(x, at)
            uneven = uneven + imbalance
        return self.model.norm(x), uneven

    def draft(self, ids: Tensor, hidden: Tensor, at: Borders) -> tuple[Tensor, Tensor]:
        """States of the MTP head at t, from hidden[t] and ids[t + 1]; the last position of a row means nothing."""
        following = F.pad(ids[:, 1:], (0, 1))
        m = self.mtp
        x = m.fc(torch.cat([m.pre_fc_norm_embedding(self.embed(following)), m.pre_fc_norm_hidden(hidden)], -1))
        x, imbalance = m.layers[0](x, at)
        return m.norm(x), imbalance

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.model.embed_tokens.weight.to(self.dtype).T


@torch.no_grad()
def initialize(model: DemoModel, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "A_log":
            value = torch.empty(p.shape).uniform_(1, 16, generator=g).log()
        elif leaf == "dt_bias":
            dt = torch.exp(torch.empty(p.shape).uniform_(math.log(0.001), math.log(0.1), generator=g))
            value = dt + torch.log(-torch.expm1(-dt))
        elif "conv1d" in name:
            value = torch.empty(p.shape).uniform_(-0.5, 0.5, generator=g)
        elif p.ndim == 1:
            continue
        elif "embed_tokens" in name:
            value = 0.03 * torch.randn(p.shape, generator=g)
        else:
            last = leaf == "down_proj" or any(part in name for part in ("out_proj", "o_proj", "down_proj"))
            value = torch.randn(p.shape, generator=g) * (0.25 if last else 0.6) * p.shape[-1] ** -0.5
        p.copy_(value)
