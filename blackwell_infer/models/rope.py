"""Rotary frequencies of a configuration, as a table of cosines and sines per position.

Scalings: none (Su et al., "RoFormer", 2021), linear (Chen et al., "Extending context window ... positional
interpolation", 2023), llama3 (frequency bands of the Llama 3.1 release), and the divisors of `rope_freqs.weight` in
GGUF files.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import numpy as np

from blackwell_infer.errors import CheckpointError, UnsupportedModelError

SUPPORTED = ("default", "linear", "llama3")
POSITIONS = 4096
"""Rows of a table that are computed at once"""

Positive = Annotated[float, msgspec.Meta(gt=0)]
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """How positions turn into angles. `dim` leading dimensions of each head are rotated."""

    kind: str
    dim: int
    theta: float
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_context: float = 0.0


class RopeFields(msgspec.Struct, frozen=True):
    """`rope_scaling` or `rope_parameters` of config.json; both spellings of the kind occur."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    original_max_position_embeddings: Annotated[int, msgspec.Meta(gt=0)] | None = None


def read_rope(fields: Mapping[str, Any], head_dim: int, theta: float | None, partial: float | None) -> Rope:
    """Decode `rope_scaling` / `rope_parameters` ({} if absent); `theta` and `partial` are their top-level spellings."""
    if any(isinstance(value, Mapping) for value in fields.values()):
        raise UnsupportedModelError(f"config field rope_parameters is keyed by layer type ({', '.join(fields)}), "
                                    "which no supported family uses")
    try:
        f = msgspec.convert(dict(fields), RopeFields)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config field rope_scaling/rope_parameters: {error}") from error
    kind = f.rope_type or f.type or "default"
    if kind not in SUPPORTED:
        raise UnsupportedModelError(f"rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    needed = {"default": (), "linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor",
                                                               "original_max_position_embeddings")}[kind]
    missing = [name for name in needed if fields.get(name) is None]
    if missing:
        raise CheckpointError(f"config field rope_scaling/rope_parameters of type {kind!r} lacks {', '.join(missing)}")
    if kind == "llama3" and f.low_freq_factor == f.high_freq_factor:
        raise CheckpointError("config field rope_scaling/rope_parameters: low_freq_factor equals high_freq_factor")
    dim = int(head_dim * (f.partial_rotary_factor or partial or 1.0))
    if dim < 2 or dim % 2:
        raise CheckpointError(f"config field partial_rotary_factor rotates {dim} of {head_dim} dimensions, "
                              "which is not an even number above 0")
    return Rope(kind=kind, dim=dim, theta=f.rope_theta or theta or 10000.0, factor=f.factor or 1.0,
                low_freq_factor=f.low_freq_factor or 1.0, high_freq_factor=f.high_freq_factor or 1.0,
                original_context=float(f.original_max_position_embeddings or 0))


def frequencies(rope: Rope, divisors: np.ndarray[Any, Any] | None) -> Floats:
    """Angle per position of each pair, [dim / 2]. `divisors` already contain a llama3 scaling."""
    inv = rope.theta ** (-np.arange(0, rope.dim, 2) / rope.dim)
    if divisors is not None:
        if divisors.shape != inv.shape or not (np.isfinite(divisors).all() and (divisors > 0).all()):
            raise CheckpointError(f"tensor rope_freqs.weight must hold {len(inv)} positive numbers, "
                                  f"it has shape {list(divisors.shape)}")
        inv = inv / divisors.astype(np.float64)
    if rope.kind == "linear":
        return np.asarray(inv / rope.factor)
    if rope.kind == "llama3" and divisors is None:
        turns = rope.original_context * inv / (2 * np.pi)
        keep = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
        keep = np.clip(keep, 0.0, 1.0)
        return np.asarray(inv * keep + inv / rope.factor * (1.0 - keep))
    return np.asarray(inv)


def rope_table(angles: Floats, context: int) -> np.ndarray[Any, Any]:
    """Cosines (0) and sines (1) of `frequencies` [dim / 2] per position, [context, 2, dim / 2] float32.

    Angles are computed in float64, some positions at a time so that they take little memory beside the table.
    """
    table = np.empty((context, 2, len(angles)), np.float32)
    for first in range(0, context, POSITIONS):
        part = table[first : first + POSITIONS]
        turns = np.arange(first, first + len(part))[:, None] * angles
        part[:, 0], part[:, 1] = np.cos(turns), np.sin(turns)
    return table
