"""A model family is data plus a few pure functions. Nothing here knows a device, a file format or a rank."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.kv.recurrent import RecurrentSpec
from blackwell_infer.kv.spec import CacheSpec, KVState, PagedKV
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch
from blackwell_infer.quant.format import Experts, Linear, Weight
from blackwell_infer.types import Array


class Rows(msgspec.Struct, frozen=True):
    """The rows `first` to `first + count` of every `period` rows of a stored matrix (queries and gates that lie head by
    head in one)."""

    period: int
    first: int
    count: int

    def of(self, rows: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Their numbers in a matrix of so many rows, a multiple of `period`."""
        every = np.arange(rows // self.period)[:, None] * self.period
        return (every + np.arange(self.first, self.first + self.count)).reshape(-1)

    def shape(self, stored: tuple[int, int]) -> tuple[int, int]:
        """Shape of what is taken."""
        return stored[0] // self.period * self.count, stored[1]


class Take(Protocol):
    """How a family asks for its parameters, once, by Hugging Face name. Loading, measuring and checking are three
    implementations of this protocol; CheckpointError names a missing or misshapen tensor."""

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        """A matrix that is looked up by row (embeddings)."""
        ...

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        """Row blocks of one fused projection; neighbours of equal format are joined.

        `rows` says which rows of each stored matrix make its block, None (or no `rows`) for all; a name may be there
        twice, for different rows."""
        ...

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        """Row blocks of `count` experts, each block of this shape, `top` of which a token goes to.

        `last` are matrices that make one more expert, number `count`, which every token goes to: the rows of all of
        them, in this order, are those of its blocks (only where `joins` says so). A name holds "{}" for the number of
        an expert, or is that of one tensor [count, *shape]. Blocks of equal format may be joined expert by expert.
        UnsupportedModelError: experts of one block differ in format.
        """
        ...

    def joins(self, groups: Sequence[Sequence[str]]) -> bool:
        """Whether this backend puts matrices into one at no cost, and those of each group are stored in one format."""
        ...

    def vector(self, name: str, size: int, plus: float = 0.0) -> Array:
        """A 1-D parameter as float32 (norm weights, biases), with `plus` added to every element."""
        ...

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Array:
        """Values put together from the checkpoint's (fused biases)."""
        ...

    def computed(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]]) -> Array:
        """A float32 table that follows from the configuration (rope). `make` runs only where the values are wanted."""
        ...

    def host(self, name: str) -> np.ndarray[Any, Any] | None:
        """A small tensor's values as float32 on the host, None if the checkpoint has no such tensor (rope_freqs)."""
        ...

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor as it is stored, None if the checkpoint has no such tensor (routers of pruned models)."""
        ...

    def has(self, name: str) -> bool:
        """Whether the checkpoint has this tensor (lm_head, or tied)."""
        ...


class Geometry(msgspec.Struct, frozen=True):
    """What the engine must know of a model besides its functions."""

    vocab: int
    hidden: int
    max_context: int
    cache: tuple[CacheSpec, ...]
    """one per attention layer; format "" takes the activation dtype"""
    recurrent: tuple[RecurrentSpec, ...] = ()
    """one per recurrent layer"""


class Draft(msgspec.Struct, frozen=True):
    """A head that guesses the token after the next one, from the next token and the hidden state before it."""

    cache: Callable[[Any], CacheSpec]
    """cache(cfg) -> the keys and values of its one attention layer, in a cache of its own"""
    build: Callable[[Any, Take], Any]
    """build(cfg, take) -> its parameters, None if the checkpoint has none; CheckpointError if it has some of them"""
    forward: Callable[[Ops, Any, Any, Any, PagedKV, Batch, Array, str], Array]
    """forward(ops, cfg, params, head, kv, batch, hidden [T, H], dtype) -> [T, H], for `logits` and for the next guess.

    `hidden` are final hidden states (or what this returned) of tokens whose positions `batch` has; `batch.ids` are the
    tokens that follow them."""
    logits: Callable[[Ops, Any, Any, Any, Array], Array]
    """logits(ops, cfg, params, head, what `forward` made [N, H]) -> [N, V] float32"""


class Family(msgspec.Struct, frozen=True):
    """`config` decodes Hugging Face config.json into the family's own frozen struct (typed errors name the field)."""

    name: str
    architectures: tuple[str, ...]
    config: Callable[[Mapping[str, Any]], Any]
    geometry: Callable[[Any], Geometry]
    build: Callable[[Any, Take, int], Any]
    """build(cfg, take, max_context) -> params"""
    forward: Callable[[Ops, Any, Any, KVState, Batch, str], Array]
    """forward(ops, cfg, params, state, batch, dtype) -> hidden states [T, H], after the final norm"""
    logits: Callable[[Ops, Any, Any, Array], Array]
    """logits(ops, cfg, params, hidden [N, H]) -> [N, V] float32"""
    draft: Draft | None = None
