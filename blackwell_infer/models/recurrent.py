"""The mixer of a Gated DeltaNet layer (Yang, Kautz and Hatamizadeh, "Gated Delta Networks", 2024): its parameters, and
the op between its projections."""
from __future__ import annotations

import msgspec
import numpy as np

from blackwell_infer.errors import CheckpointError
from blackwell_infer.kv.recurrent import Recurrent, RecurrentSpec
from blackwell_infer.models import fused
from blackwell_infer.models.spec import Take
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.quant.format import Linear, Quantized
from blackwell_infer.types import Array


class DeltaMixer(msgspec.Struct, frozen=True):
    """`into` makes q, k, v, z, b and a of a hidden state, side by side; `out` [H, nv dv] takes what the op makes."""

    into: Linear
    delta: DeltaParams
    out: Linear


def build_delta(spec: RecurrentSpec, take: Take, base: str, hidden: int, eps: float, tiled: bool) -> DeltaMixer:
    """Ask for the tensors below `base`. `tiled`: value heads lie in the order of GGUF files."""
    inner = spec.heads * spec.value_dim
    parts = {"in_proj_qkv": spec.channels, "in_proj_z": inner, "in_proj_b": spec.heads, "in_proj_a": spec.heads}
    return DeltaMixer(
        into=take.linear([f"{base}{name}.weight" for name in parts], [(rows, hidden) for rows in parts.values()]),
        delta=DeltaParams(
            conv=taps(take, base + "conv1d.weight", spec), decay=decay(take, base, spec.heads),
            dt_bias=take.vector(base + "dt_bias", spec.heads),
            norm=take.vector(base + "norm.weight", spec.value_dim), eps=eps, key_heads=spec.key_heads, tiled=tiled),
        out=take.linear([base + "out_proj.weight"], [(hidden, inner)]))


def taps(take: Take, name: str, spec: RecurrentSpec) -> Array:
    """The convolution as float32 [channels, width]; it is stored so, or with a dimension of 1 between."""
    values, shape = take.host(name), (spec.channels, spec.width)
    if values is None:
        raise CheckpointError(f"tensor {name} {[shape[0], 1, shape[1]]} is missing; is the checkpoint complete?")
    if values.shape not in (shape, (shape[0], 1, shape[1])):
        raise CheckpointError(f"tensor {name} has shape {list(values.shape)}, the configuration asks for "
                              f"{[shape[0], 1, shape[1]]}")
    return take.constant(name, np.ascontiguousarray(values.reshape(shape)))


def decay(take: Take, base: str, heads: int) -> Array:
    """-exp(A_log) float32 [heads]; GGUF files hold it as `ssm_a`."""
    if take.has(base + "ssm_a"):
        return take.vector(base + "ssm_a", heads)
    name = base + "A_log"
    values = take.host(name)
    if values is None or values.shape != (heads,):
        found = "is missing" if values is None else f"has shape {list(values.shape)}, not {[heads]}"
        raise CheckpointError(f"tensor {name} {found}; is the checkpoint complete?")
    return take.constant(name, -np.exp(values))


def delta_mixer(ops: Ops, p: DeltaMixer, state: Recurrent, h: Array | Quantized, batch: Batch, dtype: str) -> Array:
    """The mixer of normed hidden states [T, H]; the batch's states are written to `state`."""
    return ops.linear(ops.gated_delta_(state, fused.linear(ops, h, p.into, None, dtype), batch, p.delta), p.out)
