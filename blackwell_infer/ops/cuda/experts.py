"""The MLPs of routed experts. Few tokens: every (token, slot) pair reads its own expert (expert_rows.py). More, over
weights in fragment order: pairs of an expert read it together, with the same bits (expert_medium.py). Many: pairs are
sorted by expert and go through grouped matmuls (expert_groups.py), unless they shall have the bits of few. The number
of tokens alone decides."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import expert_groups, expert_medium, expert_rows
from blackwell_infer.ops.cuda.staged import plain
from blackwell_infer.quant.format import Experts
from blackwell_infer.types import Array

FEW = 16
"""Most tokens whose pairs go one by one: a token's bits then do not depend on the others."""
KERNELS = (*expert_rows.KERNELS, *expert_medium.KERNELS, *expert_groups.KERNELS)


def experts(q: Queue, x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts,
            reproducible: bool = False) -> Array:
    """x [T, H] -> [T, H]; `reproducible`: any number of tokens pair by pair.

    KernelError: no kernel for a format or type, or shapes that do not fit together."""
    check(x, routing, gate_up, down)
    x = plain(x)
    if x.shape[0] > FEW and expert_medium.takes(x.shape[0] * routing.experts.shape[1], (*gate_up, down), x.dtype):
        return expert_medium.experts(q, x, routing, gate_up, down)
    if x.shape[0] > FEW and not reproducible and expert_groups.supported(x, down):
        return expert_groups.experts(q, x, routing, gate_up, down)
    return expert_rows.experts(q, x, routing, gate_up, down)


def check(x: Array, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> None:
    """KernelError names the shapes that do not fit together."""
    (tokens, hidden), inner = x.shape, down.weight.shape[1]
    counts = {part.count for part in (*gate_up, down)}
    if (len(counts) != 1 or any(part.weight.shape[1] != hidden for part in gate_up)
            or sum(part.rows for part in gate_up) != 2 * inner or len(gate_up) not in (1, 2)
            or gate_up[0].rows != 2 * inner // len(gate_up) or routing.experts.shape[0] != tokens):
        parts = ", ".join(f"{part.count} experts [{part.rows}, {part.weight.shape[1]}]" for part in (*gate_up, down))
        raise KernelError(f"experts: {parts} do not fit {tokens} tokens of {hidden} elements, routing of "
                          f"{routing.experts.shape[0]}")
