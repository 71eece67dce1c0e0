"""Parameters from a checkpoint into a backend's memory: implementations of `models.spec.Take`.

On the host every matrix becomes float32 once (a float32 file stays a view of its mapping); on a device the bytes are
uploaded as they are stored. A tensor that is asked for twice (tied embeddings) is loaded once.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.device.queue import Memory, Queue
from blackwell_infer.engine.stack import Arrange, Pieces, one_matrix, ordered, stacked, tiled
from blackwell_infer.errors import UnsupportedModelError
from blackwell_infer.log import Progress
from blackwell_infer.models.take import Expect, members
from blackwell_infer.ops.api import Ops
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Linear, Weight
from blackwell_infer.types import Array

Source = Callable[[str], Weight]
"""The stored matrix of a name, on the host."""


class Meter:
    """Adds up loaded bytes and reports them."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total = total
        self.progress = progress
        self.done = 0

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        self.progress("loading weights", min(self.done, self.total), self.total, "bytes")


class Loading:
    """What both backends share: checks of names and shapes, small tensors, and what is read of each kind."""

    def __init__(self, memory: Memory, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter) -> None:
        self.memory = memory
        self.expect = Expect(tensors)
        self.source = source
        self.meter = meter

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A stored tensor as float32."""
        weight = self.source(name)
        return FORMATS[weight.format].dequantize(weight).reshape(self.expect.tensors[name].shape)

    def vector(self, name: str, size: int) -> Array:
        self.expect.vector(name, size)
        return self.put(self.values(name))

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Array:
        self.expect.constant(name, value)
        return self.put(value)

    def computed(self, name: str, shape: tuple[int, ...], make: Callable[[], np.ndarray[Any, Any]]) -> Array:
        self.expect.computed(name, shape, make)
        return self.put(make())

    def host(self, name: str) -> np.ndarray[Any, Any] | None:
        return self.values(name) if self.expect.has(name) else None

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self.expect.shape(name)

    def has(self, name: str) -> bool:
        return self.expect.has(name)

    def put(self, value: np.ndarray[Any, Any]) -> Array:
        array = self.memory.put(value)
        self.meter.add(value.nbytes)
        return array


class HostLoading(Loading):
    """Float32 matrices on the host; the blocks of a fused projection stay apart, so that nothing is copied."""

    def __init__(self, memory: Memory, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter) -> None:
        super().__init__(memory, tensors, source, meter)
        self.loaded: dict[str, Weight] = {}

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        self.expect.matrix(name, shape)
        if name not in self.loaded:
            weight = self.source(name)
            if weight.format != "f32" or not weight.parts[0].flags.aligned:  # type: ignore[attr-defined]
                weight = Weight("f32", shape, (FORMATS[weight.format].dequantize(weight),))
            self.loaded[name] = weight
            self.meter.add(weight.nbytes)
        return self.loaded[name]

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Linear:
        return tuple(self.table(name, shape) for name, shape in zip(names, shapes, strict=True))

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int]) -> tuple[Experts, ...]:
        """As they are stored: a token needs few of them, and the reference dequantises one at a time."""
        found = self.expect.experts(names, count, top, shape)
        stacks = tuple(Experts(one_matrix(Pieces((name,), count, shape), part.weight.format, self.source), count)
                       for name, part in zip(names, found, strict=True))
        for stack in stacks:
            self.meter.add(stack.weight.nbytes)
        return stacks


class DeviceLoading(Loading):
    """Matrices on a device in their own format; neighbours of one format become one matrix without a host copy.

    `arrange` puts a matrix into the order in which the device multiplies; None: all stay as they are stored.
    """

    def __init__(self, queue: Queue, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter,
                 arrange: Arrange | None) -> None:
        super().__init__(queue, tensors, source, meter)
        self.queue = queue
        self.arrange = arrange
        self.loaded: dict[tuple[str, ...], Weight] = {}

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        self.expect.matrix(name, shape)
        return self.joined((name,))

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Linear:
        shape_of = dict(zip(names, shapes, strict=True))
        for name, shape in shape_of.items():
            self.expect.matrix(name, shape)
        groups: list[list[str]] = []
        for name in names:
            form = self.expect.tensors[name].format
            stays = groups and self.expect.tensors[groups[-1][-1]].format == form
            if stays and FORMATS[form].joins(tuple(shape_of[n] for n in (*groups[-1], name))):
                groups[-1].append(name)
            else:
                groups.append([name])
        return tuple(self.joined(tuple(group)) for group in groups)

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int]) -> tuple[Experts, ...]:
        forms = [stack.weight.format for stack in self.expect.experts(names, count, top, shape)]
        groups = [tuple(names)] if len(set(forms)) == 1 else [(name,) for name in names]
        return tuple(Experts(self.stack(Pieces(group, count, shape), form), count)
                     for group, form in zip(groups, forms, strict=False))

    def stack(self, pieces: Pieces, form: str) -> Weight:
        """In fragment order where that is possible."""
        if self.arrange is not None and tiled(pieces, form):
            return ordered(self.queue, pieces, form, self.source, self.meter.add, self.arrange)
        return stacked(self.queue, pieces, form, self.source, self.meter.add)

    def joined(self, names: tuple[str, ...]) -> Weight:
        """One matrix of the rows of all names."""
        if names not in self.loaded:
            weights = [self.source(name) for name in names]
            if len(weights) > 1 and len(weights[0].parts) > 1:  # small parts are not all per row: join on the host
                weights = [FORMATS[weights[0].format].concat(tuple(weights))]
            rows = sum(w.shape[0] for w in weights)
            parts = []
            for blocks in zip(*(w.parts for w in weights), strict=True):
                whole = self.queue.empty((sum(b.shape[0] for b in blocks), *blocks[0].shape[1:]), blocks[0].dtype)
                first = 0
                for block in blocks:
                    host = np.asarray(block)
                    self.queue.upload(whole[first : first + len(host)], host)
                    self.meter.add(host.nbytes)
                    first += len(host)
                parts.append(whole)
            stored = Weight(weights[0].format, (rows, weights[0].shape[1]), tuple(parts))
            self.loaded[names] = stored if self.arrange is None else self.arrange(stored)
        return self.loaded[names]


def arranger(ops: Ops, dtype: str) -> Arrange | None:
    """What a device does to matrices at load: arranges them, but for float32 activations, whose matmuls read them as
    they are stored."""
    return None if dtype == "float32" else ops.arrange


def hollow(tensors: Mapping[str, TensorInfo]) -> Source:
    """Matrices of the right shapes and types without memory behind them, for rehearsals."""

    def weight(name: str) -> Weight:
        info = tensors[name]
        rows, cols = math.prod(info.shape[:-1]), info.shape[-1]
        layout = FORMATS[info.format].layout((rows, cols))
        return Weight(info.format, (rows, cols), tuple(np.broadcast_to(np.zeros((), d), s) for s, d in layout))

    return weight


class Measure(msgspec.Struct, frozen=True):
    """What a model's parameters take. Bytes as loaded; `decode` is what one decode step reads of them at least."""

    nbytes: int
    decode: int
    formats: dict[str, int]
    matrices: dict[str, int]
    """stored bytes of matrices by format"""
    parameters: int


class Counting(Expect):
    """An `Expect` that knows which tensors a decode step streams (all but those only looked up by row)."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        super().__init__(tensors)
        self.streamed: set[str] = set()
        self.routed: dict[str, tuple[int, int]] = {}
        """experts that a token goes to, of how many, by tensor"""

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> Linear:
        self.streamed |= set(names)
        return super().linear(names, shapes)

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int]) -> tuple[Experts, ...]:
        parts = [part for name in names for part in members(name, count)]
        self.routed |= dict.fromkeys(parts, (top, count))
        self.streamed |= set(parts)
        return super().experts(names, count, top, shape)

    def vector(self, name: str, size: int) -> Array:
        self.streamed.add(name)
        return super().vector(name, size)

    def measure(self, dense: bool) -> Measure:
        """Sizes of what was asked for; `dense` counts matrices as the float32 that the host makes of them (of all but
        experts)."""
        formats: dict[str, int] = {}
        matrices: dict[str, int] = {}
        sizes: dict[str, int] = {}
        parameters = 0
        for need in self.needs.values():
            count = int(np.prod(need.shape, dtype=np.int64))
            sizes[need.name] = 4 * count if dense and need.name not in self.routed else need.nbytes
            if need.name not in self.tensors:
                continue
            if need.format not in FORMATS:
                raise UnsupportedModelError(f"tensor {need.name} is stored in an unknown format; supported are "
                                            f"{', '.join(FORMATS)}")
            parameters += count
            formats[need.format] = formats.get(need.format, 0) + need.nbytes
            if len(need.shape) > 1:
                matrices[need.format] = matrices.get(need.format, 0) + need.nbytes
        streamed = 0
        for name in self.streamed:
            top, count = self.routed.get(name, (1, 1))
            streamed += sizes[name] * top // count
        return Measure(sum(sizes.values()), streamed, formats, matrices, parameters)
