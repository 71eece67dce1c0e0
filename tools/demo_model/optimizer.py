"""Muon for matrices (orthogonalised momentum: Jordan, 2024; scaled as by Liu et al., 2025), Adam for the rest.

Masters are float32 and live here; `publish` writes what the model computes with into its parameters, through NVFP4 or
not, so that the gradient with respect to the rounded weights moves the masters (straight through).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .model import DemoModel
from .nvfp4 import stored

ADAM_ONLY = ("embed_tokens", "mlp.gate.", "shared_expert_gate", "conv1d", "in_proj_a", "in_proj_b")
MOMENTUM, BETAS, EPS, DECAY = 0.95, (0.9, 0.98), 1e-8, 0.05


@torch.no_grad()
def orthogonalise(g: Tensor) -> Tensor:
    """The nearest orthogonal matrix, about, by five steps of Newton and Schulz. g [..., rows, columns]."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)
    wide = x.shape[-1] >= x.shape[-2]
    x = x if wide else x.transpose(-1, -2)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.transpose(-1, -2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x if wide else x.transpose(-1, -2)).float()


class Optimizer:
    def __init__(self, model: DemoModel) -> None:
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = [p for _, p in model.named_parameters()]
        self.masters = [p.detach().float().clone() for p in self.parameters]
        self.muon = [p.ndim > 1 and not any(part in name for part in ADAM_ONLY) for name, p in model.named_parameters()]
        self.first = [torch.zeros_like(m) for m in self.masters]
        self.second = [
            torch.zeros_like(m) if not muon else torch.zeros(())
            for m, muon in zip(self.masters, self.muon, strict=True)
        ]
        self.count = 0

    @torch.no_grad()
    def step(self, rate: float) -> Tensor:
        """One step at this learning rate; returns the norm of the gradient. Gradients are cleared."""
        self.count += 1
        grads = [p.grad.float() for p in self.parameters]
        norm = torch.stack(torch._foreach_norm(grads)).norm()
        shrink = torch.clamp(1.0 / (norm + 1e-6), max=1.0)
        adam = [i for i, muon in enumerate(self.muon) if not muon]
        self._adam(adam, [grads[i] * shrink for i in adam], rate)
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, muon in enumerate(self.muon):
            if muon:
                groups.setdefault(tuple(self.masters[i].shape), []).append(i)
        for shape, members in groups.items():
            momentum = [self.first[i] for i in members]
            own = [grads[i] for i in members]
            torch._foreach_lerp_(momentum, own, 1 - MOMENTUM)
            ahead = torch.stack(torch._foreach_lerp(own, momentum, MOMENTUM))
            update = orthogonalise(ahead) * (0.2 * max(shape[-2:]) ** 0.5)
            for i, u in zip(members, update, strict=True):
                self.masters[i].mul_(1 - rate * DECAY).sub_(u, alpha=rate)
        for p in self.parameters:
            p.grad = None
        return norm

    def _adam(self, members: list[int], grads: list[Tensor], rate: float) -> None:
        first, second, masters = ([part[i] for i in members] for part in (self.first, self.second, self.masters))
        torch._foreach_lerp_(first, grads, 1 - BETAS[0])
        torch._foreach_lerp_(second, torch._foreach_mul(grads, grads), 1 - BETAS[1])
        for m, f, s in zip(masters, first, second, strict=True):
            size = (s / (1 - BETAS[1] ** self.count)).sqrt_().add_(EPS)
            m.addcdiv_(f / (1 - BETAS[0] ** self.count), size, value=-rate)

    @torch.no_grad()
    def publish(self, nvfp4: bool) -> None:
        for name, p, master in zip(self.names, self.parameters, self.masters, strict=True):
            p.copy_(stored(name, master) if nvfp4 else master)
