"""Shape of the state of recurrent layers and the handle that ops write to."""
from __future__ import annotations

from typing import Literal

import msgspec

from blackwell_infer.types import Array


class RecurrentSpec(msgspec.Struct, frozen=True):
    """State of one Gated DeltaNet layer: `heads` value heads (nv) share `key_heads` heads (nk) of queries and keys.

    `precision` is how the state is stored; it is float32 while it is computed with.
    """

    heads: int
    key_heads: int
    key_dim: int
    value_dim: int
    width: int = 4
    """Taps of the convolution"""
    precision: Literal["f32", "bf16", "f16"] = "f32"

    @property
    def channels(self) -> int:
        """Channels of the convolution: queries, keys, values."""
        return 2 * self.key_heads * self.key_dim + self.heads * self.value_dim

    def slot_bytes(self, activation: int) -> int:
        """Bytes of one slot, given the bytes of an activation."""
        state = self.heads * self.key_dim * self.value_dim * (4 if self.precision == "f32" else 2)
        return state + (self.width - 1) * self.channels * activation


class Recurrent(msgspec.Struct, frozen=True):
    """The states of one layer in S slots.

    A slot may be read before the kernels ahead of the op are done: what reads a slot belongs to a later step than what
    wrote it.
    """

    conv: Array
    """[S, width - 1, channels] of the activation dtype: the last inputs of the convolution, oldest first"""
    state: Array
    """[S, nv, dk, dv] float32, float16 or bfloat16"""
