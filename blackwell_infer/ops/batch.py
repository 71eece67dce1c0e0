"""The ragged batch of one step and the settings of its sampling, as plain arrays (host or device)."""
from __future__ import annotations

import msgspec

from blackwell_infer.types import Array


class Batch(msgspec.Struct, frozen=True):
    """Tokens of all rows of a step, row after row. Padding tokens (row -1) may follow; they write and read nothing.

    `max_new` and `max_length` bound the per-row token and key counts; grids are sized from them, never from the data.
    """

    ids: Array
    """[T] int32 token ids; to the engine's first op, -1 - s stands for the newest token of slot s"""
    positions: Array
    """[T] int32 position of each token in its own row"""
    rows: Array
    """[T] int32 row of each token, -1 for padding; tokens of a row are adjacent and in order"""
    starts: Array
    """[R+1] int32 first token of each row; starts[R] is the number of real tokens"""
    lengths: Array
    """[R] int32 keys of each row once this step's tokens are appended (last position + 1)"""
    pages: Array
    """[R, P] int32 block table; unused entries are 0"""
    outputs: Array
    """[N] int32 token indices whose logits are wanted"""
    state_from: Array
    """[R] int32 slot whose recurrent state a row continues, -1 for an empty state (all zeros)"""
    state_to: Array
    """[T] int32 slot that gets the recurrent state after this token, -1 for none. May be the row's `state_from`; no two
    tokens of a step write one slot, and none writes what another row continues. Models without recurrent layers read
    neither."""
    max_new: int
    max_length: int


class Routing(msgspec.Struct, frozen=True):
    """Which experts each of T tokens goes to, best first, and how much each of them counts."""

    experts: Array
    """[T, top] int32"""
    weights: Array
    """[T, top] float32"""


class DeltaParams(msgspec.Struct, frozen=True):
    """Parameters of one Gated DeltaNet layer, see `Ops.gated_delta_`; nv value heads of width dv."""

    conv: Array
    """[channels, width] float32: taps of the convolution, the last is the current token's"""
    decay: Array
    """[nv] float32: -exp(A_log)"""
    dt_bias: Array
    """[nv] float32"""
    norm: Array
    """[dv] float32: weight of the norm of the result"""
    eps: float
    key_heads: int
    tiled: bool = False
    """value head j takes key head j % nk, not j // (nv / nk)"""


class TokenMask(msgspec.Struct, frozen=True):
    """Which tokens N sampled rows may choose."""

    rows: Array
    """[N] int32: row of `words`, -1 for every token"""
    words: Array
    """[M, ceil(V / 32)] uint32: bit i % 32 of word i // 32 is token i"""


class SampleParams(msgspec.Struct, frozen=True):
    """Sampling settings of N rows, see `types.Sampling`. Arrays are [N] unless said."""

    temperature: Array
    """float32; 0 is greedy"""
    top_k: Array
    """int32; 0 is off"""
    top_p: Array
    """float32"""
    min_p: Array
    """float32"""
    repetition: Array
    """float32"""
    presence: Array
    """float32"""
    frequency: Array
    """float32"""
    seed: Array
    """uint64: Philox key"""
    position: Array
    """int32: absolute position that the sampled token will take; Philox counter"""
    slot: Array
    """int32: row of the PenaltyState, -1 when the row has no penalties"""
    guess: Array
    """[N] int32: the guess that was fed before this row's logits came out, which the row before must choose for this
    one to count; -1 for none"""
    bias_starts: Array
    """[N+1] int32: range of each row in bias_ids"""
    bias_ids: Array
    """[B] int32"""
    bias_values: Array
    """[B] float32"""
    top: int = 0
    """alternatives to report per row (0 to 20)"""
    chained: bool = False
    """whether there are guesses"""
    mask: TokenMask | None = None
    """None lets every row choose every token"""


VOID = -2
"""Stands for a token that was not sampled, because a guess before it does not hold"""


class Sampled(msgspec.Struct, frozen=True):
    """Result of sampling N rows."""

    tokens: Array
    """[N] int32; -1 where a row has no usable logit, -2 (`VOID`) where a guess before it does not hold"""
    logprobs: Array
    """[N] float32: log-softmax of the unmodified logits at the chosen token"""
    top_ids: Array
    """[N, top] int32, best first, lowest id first among equals"""
    top_logprobs: Array
    """[N, top] float32"""


class TokenState(msgspec.Struct, frozen=True):
    """What steps leave on the device: `newest` [S] int32, the token sampled last in each slot, from which the next step
    takes its ids; `block` [W] int32, the results of the last step in the order of `Sampled` (see `Ops.deliver_`)."""

    newest: Array
    block: Array


class PenaltyState(msgspec.Struct, frozen=True):
    """What penalties count, one row per slot: `counts` [S, V] int32 of the answer, `prompt` [S, V] uint8 flags."""

    counts: Array
    prompt: Array
