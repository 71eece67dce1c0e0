"""Gated DeltaNet over whole sequences in chunks of 64, in torch. B sequences, N chunks, h heads, C = 64.

Only the state goes from chunk to chunk; it is one batched product each. Everything else is done for all chunks at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK = 64
FORGET = -60.0
"""log decay at the start of a conversation: nothing of the one before stays"""


def unit_lower_inverse(a: Tensor) -> Tensor:
    """(I + a)^-1 for strictly lower a [..., 64, 64]: blocks of 8 by their (short) series, then pairs of blocks."""
    n, size = a.shape[-1], 8
    blocks = a.reshape(*a.shape[:-2], n // size, size, n // size, size)
    own = torch.diagonal(blocks, dim1=-4, dim2=-2).movedim(-1, -3)  # [..., 8, 8, 8]
    eye = torch.eye(size, dtype=a.dtype, device=a.device)
    square = own @ own
    inverse = (eye - own) @ (eye + square) @ (eye + square @ square)
    while size < n:
        blocks = a.reshape(*a.shape[:-2], n // size, size, n // size, size)
        below = torch.diagonal(blocks[..., 1::2, :, 0::2, :], dim1=-4, dim2=-2).movedim(-1, -3)
        first, second = inverse[..., 0::2, :, :], inverse[..., 1::2, :, :]
        corner = -(second @ below @ first)
        top = torch.cat([first, torch.zeros_like(first)], -1)
        inverse = torch.cat([top, torch.cat([corner, second], -1)], -2)
        size *= 2
    return inverse.squeeze(-3)


class UnitLowerInverse(torch.autograd.Function):
    """Its derivative needs two products, not those of the way to the inverse."""

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        inverse = unit_lower_inverse(a)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (inverse,) = ctx.saved_tensors
        back = inverse.transpose(-1, -2)
        return -(back @ grad @ back).tril(-1)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
    """o [B, T, h, dv] of q, k [B, T, h, dk] normalised (q scaled), v [B, T, h, dv], log decays g and beta [B, T, h].

    float32; T is a multiple of 64. The state before the first token is 0."""
    b, t, h, dk = q.shape
    dv, n = v.shape[-1], t // CHUNK

    def chunks(x: Tensor) -> Tensor:
        return x.reshape(b, n, CHUNK, h, -1).permute(1, 0, 3, 2, 4).reshape(n, b * h, CHUNK, -1)

    q, k, v, g, beta = chunks(q), chunks(k), chunks(v), chunks(g[..., None]), chunks(beta[..., None])
    total = g.cumsum(-2)  # [N, B h, C, 1]
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    decay = (total - total.transpose(-1, -2)).masked_fill(~lower, -torch.inf).exp()
    scores = (beta * k) @ k.transpose(-1, -2) * decay
    inverse = UnitLowerInverse.apply(scores.tril(-1))
    grown = total.exp()
    u = inverse @ (beta * v)
    w = inverse @ (beta * k * grown)
    last = total[..., -1:, :]
    kept = k * (last - total).exp()
    eye = torch.eye(dk, dtype=q.dtype, device=q.device)
    move = last.exp() * eye - kept.transpose(-1, -2) @ w  # [N, B h, dk, dk]
    add = kept.transpose(-1, -2) @ u  # [N, B h, dk, dv]
    state = torch.zeros(b * h, dk, dv, dtype=q.dtype, device=q.device)
    states = []
    for i in range(n):
        states.append(state)
        if i + 1 < n:
            state = torch.baddbmm(add[i], move[i], state)
    before = torch.stack(states)
    fresh = u - w @ before
    out = (q * grown) @ before + (q @ k.transpose(-1, -2) * decay) @ fresh
    return out.reshape(n, b, h, CHUNK, dv).permute(1, 0, 3, 2, 4).reshape(b, t, h, dv)
