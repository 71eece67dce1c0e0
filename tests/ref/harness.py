"""A minimal engine for tests: loads a checkpoint whole and runs one row on the reference ops, cut into any chunks."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.checkpoint.reader import Checkpoint
from blackwell_infer.engine.stack import Pieces, one_matrix
from blackwell_infer.errors import CheckpointError
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.kv.spec import PAGE, CacheSpec, KVState, PagedKV
from blackwell_infer.models.registry import find_family
from blackwell_infer.models.spec import Rows
from blackwell_infer.ops import ref
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.ref.product import DTYPES
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Linear, Weight

SLOTS = 3


class Load:
    """A `models.spec.Take` that reads every parameter into host memory, in its own format."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        if name not in self.checkpoint.tensors:
            raise CheckpointError(f"tensor {name} is missing")
        weight = self.checkpoint.weight(name)
        assert weight.shape == shape, (name, weight.shape, shape)
        return weight

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        out = []
        for name, shape, chosen in zip(names, shapes, rows or (None,) * len(names), strict=True):
            whole = self.table(name, shape)
            out.append(whole if chosen is None else FORMATS[whole.format].take_rows(whole, chosen.of(shape[0])))
        return tuple(out)

    def joins(self, groups: Sequence[Sequence[str]]) -> bool:
        return False

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        assert not last
        out = []
        for name in names:
            first = self.checkpoint.tensors[name.replace("{}", "0")]
            assert first.shape in (shape, (count, *shape)), (name, first.shape)
            out.append(Experts(one_matrix(Pieces((name,), count, shape), first.format, self.checkpoint.weight), count))
        return tuple(out)

    def vector(self, name: str, size: int, plus: float = 0.0) -> np.ndarray[Any, Any]:
        values = self.host(name)
        assert values is not None and values.shape == (size,), name
        return values + np.float32(plus)

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return value

    def computed(self, name: str, shape: tuple[int, ...],
                 make: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        value = make()
        assert value.shape == shape and value.dtype == np.float32
        return value

    def host(self, name: str) -> np.ndarray[Any, Any] | None:
        if name not in self.checkpoint.tensors:
            return None
        weight = self.checkpoint.weight(name)
        return FORMATS[weight.format].dequantize(weight).reshape(self.checkpoint.tensors[name].shape)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.checkpoint.tensors[name].shape if name in self.checkpoint.tensors else None

    def has(self, name: str) -> bool:
        return name in self.checkpoint.tensors


class Model:
    """One checkpoint and one row's cache of `context` tokens, its pages in shuffled order."""

    def __init__(self, path: Path, dtype: str = "float32", context: int = 512, head: str = "") -> None:
        self.checkpoint = open_checkpoint(path, head)
        self.config: Mapping[str, Any] = self.checkpoint.config
        self.family = find_family(self.config)
        self.cfg = self.family.config(self.config)
        self.dtype = dtype
        self.context = min(context, self.family.geometry(self.cfg).max_context)
        self.load = Load(self.checkpoint)
        self.params = self.family.build(self.cfg, self.load, self.context)
        self.reset()

    def reset(self) -> None:
        """Forget the row."""
        pages = -(-self.context // PAGE)
        self.table = np.random.default_rng(7).permutation(pages).astype(np.int32)[None]
        self.state = KVState(tuple(
            self.cache(pages, c) for c in self.family.geometry(self.cfg).cache), tuple(
            Recurrent(np.full((SLOTS, s.width - 1, s.channels), np.nan, DTYPES[self.dtype]),
                      np.full((SLOTS, s.heads, s.key_dim, s.value_dim), np.nan, np.float32))
            for s in self.family.geometry(self.cfg).recurrent))
        self.length = 0

    def cache(self, pages: int, spec: CacheSpec) -> PagedKV:
        return PagedKV(self.dtype, np.full((pages, 2, spec.kv_heads, PAGE, spec.head_dim), np.nan, DTYPES[self.dtype]))

    def batch(self, ids: Sequence[int]) -> Batch:
        """Tokens of the row from `length` on; its state stays in one slot."""
        n = len(ids)
        return Batch(
            ids=np.asarray(ids, np.int32), positions=np.arange(self.length, self.length + n, dtype=np.int32),
            rows=np.zeros(n, np.int32), starts=np.asarray([0, n], np.int32),
            lengths=np.asarray([self.length + n], np.int32), pages=self.table, outputs=np.arange(n, dtype=np.int32),
            state_from=np.asarray([SLOTS - 1 if self.length else -1], np.int32),
            state_to=np.asarray([-1] * (n - 1) + [SLOTS - 1], np.int32), max_new=n, max_length=self.length + n)

    def feed(self, ids: Sequence[int]) -> np.ndarray[Any, Any]:
        """Append tokens to the row; logits [n, V] of all of them."""
        batch = self.batch(ids)
        self.length += len(ids)
        hidden = self.family.forward(ref, self.cfg, self.params, self.state, batch, self.dtype)
        return np.asarray(self.family.logits(ref, self.cfg, self.params, hidden))

    def prefill(self, ids: Sequence[int], chunk: int) -> np.ndarray[Any, Any]:
        """Start over with a prompt, `chunk` tokens at a time; logits [n, V]."""
        self.reset()
        return np.concatenate([self.feed(ids[i : i + chunk]) for i in range(0, len(ids), chunk)])

    def greedy(self, ids: Sequence[int], count: int, chunk: int = 1 << 30) -> list[int]:
        """`count` tokens after a prompt, each the highest logit."""
        last = self.prefill(ids, chunk)[-1]
        out = [int(last.argmax())]
        while len(out) < count:
            out.append(int(self.feed(out[-1:])[-1].argmax()))
        return out
