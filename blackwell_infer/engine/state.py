"""A family with a decoded configuration and a dtype: builds the parameters and caches of a backend."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer.device.queue import Memory
from blackwell_infer.engine.step import Head, Model
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.kv.spec import PAGE, CacheSpec, KVState, PagedKV
from blackwell_infer.models.spec import Family, Geometry, Take
from blackwell_infer.ops.batch import PenaltyState

DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
FORMAT_OF = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
DTYPE_OF = {form: dtype for dtype, form in FORMAT_OF.items()}


class Build(msgspec.Struct, frozen=True):
    """What determines a model besides the bytes of its tensors."""

    family: Family
    cfg: Any
    dtype: str
    activations: str = "full"
    """the setting: "full", or "quantized" where a matrix's format allows it"""
    reproducible: bool = False
    """the setting: bits of a row depend on nothing beside it"""
    state_dtype: str = "float32"
    """the setting: how recurrent states are stored"""
    head: bool = False
    """whether the head for guesses is loaded, which the checkpoint then has"""

    @property
    def geometry(self) -> Geometry:
        found = self.family.geometry(self.cfg)
        return msgspec.structs.replace(found, recurrent=tuple(
            msgspec.structs.replace(spec, precision=FORMAT_OF[self.state_dtype]) for spec in found.recurrent))

    @property
    def caches(self) -> tuple[CacheSpec, ...]:
        """Of the attention layers, and of the head's."""
        return self.geometry.cache + self.head_cache

    @property
    def head_cache(self) -> tuple[CacheSpec, ...]:
        """Of the head for guesses, if it is loaded."""
        return (self.family.draft.cache(self.cfg),) if self.head and self.family.draft is not None else ()

    def kind(self, spec: CacheSpec) -> np.dtype[Any]:
        """Element type of one layer's cache."""
        return DTYPES[DTYPE_OF[spec.format] if spec.format else self.dtype]

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return sum(spec.page_bytes(self.kind(spec).itemsize) for spec in self.caches)

    def penalty_bytes(self, slots: int) -> int:
        """Bytes of the penalty state: an int32 count and a flag per slot and token of the vocabulary."""
        return slots * self.geometry.vocab * 5

    def head_bytes(self, tokens: int) -> int:
        """Bytes of the hidden states that the head for guesses takes of a step, if it is loaded."""
        return self.head * tokens * (self.geometry.hidden * DTYPES[self.dtype].itemsize + 4)

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot of recurrent state over all layers; 0 for models without."""
        return sum(spec.slot_bytes(DTYPES[self.dtype].itemsize) for spec in self.geometry.recurrent)

    def state_bytes(self, count: int) -> int:
        """Bytes of so many recurrent states, over all layers."""
        return count * self.slot_bytes

    def model(self, memory: Memory, take: Take, context: int, slots: int, pages: int, kept: int = 0,
              spares: int = 0, tokens: int = 0) -> Model:
        """Load parameters through `take` and allocate caches of `pages` pages and states of `slots` sequences, with
        `spares` recurrent ones besides and `kept` ones behind, all zero; the head for guesses takes steps of up to
        `tokens`."""
        params = self.family.build(self.cfg, take, context)
        layers = tuple(self.paged(memory, pages, spec) for spec in self.geometry.cache)
        count, head = slots + spares + kept, None
        for spec in self.head_cache:
            assert self.family.draft is not None
            most = max(tokens, slots)
            head = Head(self.family.draft.build(self.cfg, take), self.paged(memory, pages, spec),
                        memory.zeros((most, self.geometry.hidden), DTYPES[self.dtype]),
                        memory.put(np.arange(most, dtype=np.int32)))
        recurrent = tuple(
            Recurrent(memory.zeros((count, spec.width - 1, spec.channels), DTYPES[self.dtype]),
                      memory.zeros((count, spec.heads, spec.key_dim, spec.value_dim), DTYPES[DTYPE_OF[spec.precision]]))
            for spec in self.geometry.recurrent)
        penalties = PenaltyState(counts=memory.zeros((slots, self.geometry.vocab), np.int32),
                                 prompt=memory.zeros((slots, self.geometry.vocab), np.uint8))
        return Model(self.family, self.cfg, params, KVState(layers, recurrent), penalties, self.dtype, head,
                     slots + spares)

    def paged(self, memory: Memory, pages: int, spec: CacheSpec) -> PagedKV:
        """The cache of one layer."""
        return PagedKV(spec.format or FORMAT_OF[self.dtype],
                       memory.zeros((pages, 2, spec.kv_heads, PAGE, spec.head_dim), self.kind(spec)))
