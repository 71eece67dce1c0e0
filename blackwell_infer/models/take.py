"""A dry run of loading: records what a family asks for and checks names and shapes, without reading a value."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.models.spec import Rows
from blackwell_infer.quant.format import Experts, Linear, Weight
from blackwell_infer.types import Array


class Stored(Protocol):
    """What is read of a checkpoint's tensor entry (`checkpoint.reader.TensorInfo` is one)."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def format(self) -> str: ...
    @property
    def nbytes(self) -> int: ...


class Need(msgspec.Struct, frozen=True, gc=False):
    """One parameter of a family: `nbytes` in memory once loaded, in its own `format` (vectors become float32)."""

    name: str
    shape: tuple[int, ...]
    format: str
    nbytes: int


class Block(msgspec.Struct, frozen=True):
    """A row block of a projection: a stored matrix of shape `stored`, or some of its rows."""

    name: str
    stored: tuple[int, int]
    rows: Rows | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.stored if self.rows is None else self.rows.shape(self.stored)


def blocks(names: Sequence[str], shapes: Sequence[tuple[int, int]], rows: Sequence[Rows | None]) -> list[Block]:
    """The blocks that `Take.linear` asks for."""
    return [Block(*block) for block in zip(names, shapes, rows or (None,) * len(names), strict=True)]


LAYERS = ("model.layers.", "model.language_model.layers.", "mtp.", "blk.")
"""What names of tensors of layers begin with"""


class Expect:
    """A `models.spec.Take` over tensor headers alone. `needs` fills up, by name, while a family's `build` runs.

    CheckpointError names a tensor that is missing or misshapen. The weights it hands out have no parts, the arrays
    hold zeros (ones for `host`).
    """

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self.tensors = tensors
        self.needs: dict[str, Need] = {}
        self.asked: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all parameters; one that is used twice (tied embeddings) counts once."""
        return sum(n.nbytes for n in self.needs.values())

    def check_complete(self) -> None:
        """UnsupportedModelError if a layer of the checkpoint has a weight or bias that was never asked for: without it
        the model would be another one. (Other tensors, such as buffers of frequencies, may be left over.)"""
        unread = sorted(name for name in self.tensors if name not in self.asked
                        and name.startswith(LAYERS)
                        and (name.endswith((".weight", ".bias")) or ".experts." in name))
        if unread:
            more = f" and {len(unread) - 1} others" if len(unread) > 1 else ""
            raise UnsupportedModelError(f"tensor {unread[0]}{more} would not be used: the configuration does not fit "
                                        "the weights, or this variant of the architecture is not supported")

    def stored(self, name: str, shape: tuple[int, ...]) -> Stored:
        """The header of a tensor; CheckpointError if it is missing or has another shape."""
        self.asked.add(name)
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"tensor {name} {list(shape)} is missing; is the checkpoint complete?")
        if tuple(info.shape) != shape:
            raise CheckpointError(f"tensor {name} has shape {list(info.shape)}, "
                                  f"the configuration asks for {list(shape)}")
        return info

    def matrix(self, name: str, shape: tuple[int, int]) -> Weight:
        info = self.stored(name, shape)
        self.needs[name] = Need(name, shape, info.format, info.nbytes)
        return Weight(info.format, shape, ())

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        return self.matrix(name, shape)

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        return tuple(self.block(block) for block in blocks(names, shapes, rows))

    def block(self, block: Block) -> Weight:
        """Checks the whole of the matrix that the block is taken from."""
        whole = self.matrix(block.name, block.stored)
        return Weight(whole.format, block.shape, ())

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        for name in last:
            self.matrix(name, (len(names) * shape[0] // len(last), shape[1]))
        every = count + bool(last)
        return tuple(Experts(Weight(self.stack(name, count, shape), (every * shape[0], shape[1]), ()), every)
                     for name in names)

    def joins(self, groups: Sequence[Sequence[str]]) -> bool:
        return False

    def stack(self, name: str, count: int, shape: tuple[int, int]) -> str:
        """The one format of a block of experts."""
        parts = members(name, count)
        size = (count, *shape) if parts == (name,) else shape
        forms = []
        for part in parts:
            info = self.stored(part, size)
            self.needs[part] = Need(part, size, info.format, info.nbytes)
            forms.append(info.format)
        if len(set(forms)) > 1:
            odd = next(part for part, form in zip(parts, forms, strict=True) if form != forms[0])
            raise UnsupportedModelError(f"tensor {odd} is {self.tensors[odd].format}, other experts of its layer are "
                                        f"{forms[0]}; experts of different formats in one layer are not supported")
        return forms[0]

    def vector(self, name: str, size: int, plus: float = 0.0) -> Array:
        self.stored(name, (size,))
        self.needs[name] = Need(name, (size,), "f32", 4 * size)
        return np.zeros(size, np.float32)

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Array:
        self.needs[name] = Need(name, value.shape, "f32", value.nbytes)
        return value

    def computed(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]]) -> Array:
        self.needs[name] = Need(name, shape, "f32", 4 * math.prod(shape))
        return np.broadcast_to(np.zeros((), np.float32), shape)

    def host(self, name: str) -> np.ndarray[Any, Any] | None:
        self.asked.add(name)
        info = self.tensors.get(name)
        return None if info is None else np.ones(info.shape, np.float32)

    def shape(self, name: str) -> tuple[int, ...] | None:
        self.asked.add(name)
        info = self.tensors.get(name)
        return None if info is None else tuple(info.shape)

    def has(self, name: str) -> bool:
        self.asked.add(name)
        return name in self.tensors


def members(name: str, count: int) -> tuple[str, ...]:
    """The tensors that a name of `Take.experts` stands for: one of each expert, or one of all."""
    return tuple(name.replace("{}", str(e)) for e in range(count)) if "{}" in name else (name,)
