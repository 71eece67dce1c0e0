"""Parameters from a checkpoint into a backend's memory: implementations of `models.spec.Take`.

On the host every matrix becomes float32 once (a float32 file stays a view of its mapping); on a device the bytes are
uploaded as they are stored. A tensor that is asked for twice (tied embeddings) is loaded once.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.checkpoint.reader import TensorInfo
from blackwell_infer.device.queue import Memory, Queue
from blackwell_infer.engine.stack import Arrange, Pieces, one_matrix, ordered, stacked, tiled
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.log import Progress
from blackwell_infer.models.spec import Rows
from blackwell_infer.models.take import Block, Expect, blocks, members
from blackwell_infer.ops.api import Ops
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import PAIRED, Experts, Linear, Weight
from blackwell_infer.quant.tiled import paired
from blackwell_infer.types import Array

SMALL_STACK = 8 << 20
"""Bytes of the experts of a layer's block as float32, up to which the host dequantises them once and for all"""
Source = Callable[[str], Weight]
"""The stored matrix of a name, on the host."""


class Place(msgspec.Struct, frozen=True):
    """What becomes of a joined matrix on its backend. No format is both paired and arranged."""

    paired: bool
    """whether a projection meets quantised activations in codes where its format has such, which settles its order"""
    arrange: Arrange | None
    """puts a matrix into another order (a format that has none stays as it is); None: all stay as they are stored"""

    def pair(self, w: Weight, looked_up: bool) -> Weight:
        """A host matrix as quantised activations meet it; `looked_up`: rows are looked up in it."""
        return paired(w) if self.paired and not looked_up else w

    def ordered(self, w: Weight) -> Weight:
        """The backend's matrix in its order."""
        return w if self.arrange is None else self.arrange(w)


def arranger(ops: Ops, dtype: str) -> Arrange | None:
    """How a device arranges matrices: not at all for float32 activations, whose matmuls read them as stored."""
    return None if dtype == "float32" else ops.arrange


def placing(activations: str, arrange: Arrange | None = None) -> Place:
    """As the setting `activations` and the backend ask."""
    return Place(activations == "quantized", arrange)


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

    def __init__(self, memory: Memory, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter,
                 place: Place) -> None:
        self.memory = memory
        self.expect = Expect(tensors)
        self.source = source
        self.meter = meter
        self.place = place

    def values(self, name: str) -> np.ndarray[Any, Any]:
        """A stored tensor as float32."""
        weight = self.source(name)
        return FORMATS[weight.format].dequantize(weight).reshape(self.expect.tensors[name].shape)

    def vector(self, name: str, size: int, plus: float = 0.0) -> Array:
        self.expect.vector(name, size)
        values = self.values(name)
        return self.put(values + np.float32(plus) if plus else values)

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

    def groups(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None]) -> list[tuple[Block, ...]]:
        """A projection's blocks, those that become one matrix together: neighbours of one format."""
        groups: list[tuple[Block, ...]] = []
        for block in blocks(names, shapes, rows):
            form = self.expect.block(block).format
            stays = groups and self.expect.tensors[groups[-1][-1].name].format == form
            if stays and FORMATS[form].joins(tuple(b.shape for b in (*groups[-1], block))):
                groups[-1] = (*groups[-1], block)
            else:
                groups.append((block,))
        return groups

    def read(self, block: Block) -> Weight:
        """A block as it is stored. CheckpointError: rows that its format has only together with others."""
        whole = self.source(block.name)
        if block.rows is None:
            return whole
        try:
            return FORMATS[whole.format].take_rows(whole, block.rows.of(block.stored[0]))
        except CheckpointError as error:
            raise CheckpointError(f"tensor {block.name}: {error}") from error


class HostLoading(Loading):
    """Float32 matrices on the host; the blocks of a fused projection stay apart, so that nothing is copied. Matrices
    that meet quantised activations keep their bytes, joined as on a device: their inputs share a scale."""

    def __init__(self, memory: Memory, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter,
                 place: Place) -> None:
        super().__init__(memory, tensors, source, meter, place)
        self.loaded: dict[Block, Weight] = {}

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        self.expect.matrix(name, shape)
        return self.dense(Block(name, shape))

    def dense(self, block: Block) -> Weight:
        """A block as float32."""
        if block not in self.loaded:
            weight = self.read(block)
            if weight.format != "f32" or not weight.parts[0].flags.aligned:  # type: ignore[attr-defined]
                weight = Weight("f32", block.shape, (FORMATS[weight.format].dequantize(weight),))
            self.loaded[block] = weight
            self.meter.add(weight.nbytes)
        return self.loaded[block]

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        return tuple(w for group in self.groups(names, shapes, rows) for w in self.placed(group))

    def placed(self, group: tuple[Block, ...]) -> Linear:
        """One matrix that meets quantised activations, or each of the group as float32."""
        if self.expect.tensors[group[0].name].format in PAIRED and not self.loaded.keys() & set(group):
            whole = joined_on_host([self.read(block) for block in group])
            placed = self.place.pair(whole, False)
            if placed.format != whole.format:
                self.meter.add(placed.nbytes)
                return (placed,)
        return tuple(self.dense(block) for block in group)

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        """As they are stored: a token needs few of them, and the reference dequantises one at a time. Float32 where
        they are `small`."""
        assert not last
        found = self.expect.experts(names, count, top, shape)
        stacks = []
        for name, part in zip(names, found, strict=True):
            w = one_matrix(Pieces((name,), count, shape), part.weight.format, self.source)
            if small(count * math.prod(shape)):
                w = Weight("f32", w.shape, (FORMATS[w.format].dequantize(w),))
            stacks.append(Experts(w, count))
            self.meter.add(w.nbytes)
        return tuple(stacks)

    def joins(self, groups: Sequence[Sequence[str]]) -> bool:
        """Never: it would copy what lies in a mapped file."""
        return False


def small(elements: int) -> bool:
    """Whether all experts of a layer's block are so few numbers that the host keeps them as float32."""
    return 4 * elements <= SMALL_STACK


class DeviceLoading(Loading):
    """Matrices on a device in their own format; neighbours of one format become one matrix without a host copy.

    A format of several parts is joined, and paired, on the host, as not all of them are per row.
    """

    def __init__(self, queue: Queue, tensors: Mapping[str, TensorInfo], source: Source, meter: Meter,
                 place: Place) -> None:
        super().__init__(queue, tensors, source, meter, place)
        self.queue = queue
        self.loaded: dict[tuple[Block, ...], Weight] = {}

    def table(self, name: str, shape: tuple[int, int]) -> Weight:
        self.expect.matrix(name, shape)
        return self.joined((Block(name, shape),), looked_up=True)

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        return tuple(self.joined(group) for group in self.groups(names, shapes, rows))

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        found = self.expect.experts(names, count, top, shape, last)
        forms, every = [stack.weight.format for stack in found], found[0].count
        each = len(last) // len(names)
        pieces = [Pieces(tuple(names), count, shape, tuple(last))] if len(set(forms)) == 1 else [
            Pieces((name,), count, shape, tuple(last[i * each : (i + 1) * each])) for i, name in enumerate(names)]
        return tuple(Experts(self.stack(p, form), every) for p, form in zip(pieces, forms, strict=False))

    def joins(self, groups: Sequence[Sequence[str]]) -> bool:
        """Not if one of them would meet quantised activations by itself: experts do not, and both backends shall choose
        the same tokens."""
        tensors = self.expect.tensors
        forms = [{tensors[name].format if name in tensors else "" for name in group} for group in groups]
        return all(len(form) == 1 and not (self.place.paired and form & PAIRED.keys()) for form in forms)

    def stack(self, pieces: Pieces, form: str) -> Weight:
        """In fragment order where that is possible."""
        if self.place.arrange is not None and tiled(pieces, form):
            return ordered(self.queue, pieces, form, self.source, self.meter.add, self.place.arrange)
        return stacked(self.queue, pieces, form, self.source, self.meter.add)

    def joined(self, group: tuple[Block, ...], looked_up: bool = False) -> Weight:
        """One matrix of the rows of all blocks."""
        if group not in self.loaded:
            weights = [self.read(block) for block in group]
            if len(weights[0].parts) > 1:
                weights = [self.place.pair(joined_on_host(weights), looked_up)]
            self.loaded[group] = self.place.ordered(self.uploaded(weights))
        return self.loaded[group]

    def uploaded(self, weights: Sequence[Weight]) -> Weight:
        """Matrices one above the other on the device."""
        rows = sum(w.shape[0] for w in weights)
        parts = []
        for pieces in zip(*(w.parts for w in weights), strict=True):
            whole = self.queue.empty((sum(p.shape[0] for p in pieces), *pieces[0].shape[1:]), pieces[0].dtype)
            first = 0
            for block in pieces:
                host = np.asarray(block)
                self.queue.upload(whole[first : first + len(host)], host)
                self.meter.add(host.nbytes)
                first += len(host)
            parts.append(whole)
        return Weight(weights[0].format, (rows, weights[0].shape[1]), tuple(parts))


def joined_on_host(weights: list[Weight]) -> Weight:
    """One matrix of all rows; a single one as it is, without a copy."""
    return weights[0] if len(weights) == 1 else FORMATS[weights[0].format].concat(tuple(weights))


def hollow(tensors: Mapping[str, TensorInfo]) -> Source:
    """Matrices of the right shapes and types without memory behind them, for rehearsals."""

    @cache
    def blank(form: str, shape: tuple[int, int]) -> Weight:
        return Weight(form, shape, tuple(np.broadcast_to(np.zeros((), d), s) for s, d in FORMATS[form].layout(shape)))

    def weight(name: str) -> Weight:
        info = tensors[name]
        return blank(info.format, (math.prod(info.shape[:-1]), info.shape[-1]))

    return weight


class Measure(msgspec.Struct, frozen=True):
    """What a model's parameters take. Bytes as loaded; `decode` is what one decode step reads of them at least."""

    nbytes: int
    decode: int
    formats: dict[str, int]
    matrices: dict[str, int]
    """stored bytes of matrices by format"""
    parameters: int
    experts: tuple[tuple[int, int, int], ...] = ()
    """(bytes, experts of a token, of how many) of all experts, of which `decode` has those of one token"""


class Counting(Expect):
    """An `Expect` that knows which tensors a decode step streams (all but those only looked up by row)."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        super().__init__(tensors)
        self.streamed: set[str] = set()
        self.routed: dict[str, tuple[int, int]] = {}
        """experts that a token goes to, of how many, by tensor"""
        self.kept: set[str] = set()
        """tensors of experts that the host keeps as they are"""

    def linear(self, names: Sequence[str], shapes: Sequence[tuple[int, int]],
               rows: Sequence[Rows | None] = ()) -> Linear:
        self.streamed |= set(names)
        return super().linear(names, shapes, rows)

    def experts(self, names: Sequence[str], count: int, top: int, shape: tuple[int, int],
                last: Sequence[str] = ()) -> tuple[Experts, ...]:
        parts = [part for name in names for part in members(name, count)]
        self.routed |= dict.fromkeys(parts, (top, count))
        if not small(count * math.prod(shape)):
            self.kept |= set(parts)
        self.streamed |= {*parts, *last}
        return super().experts(names, count, top, shape, last)

    def vector(self, name: str, size: int, plus: float = 0.0) -> Array:
        self.streamed.add(name)
        return super().vector(name, size, plus)

    def constant(self, name: str, value: np.ndarray[Any, Any]) -> Array:
        self.streamed.add(name)
        return super().constant(name, value)

    def measure(self, dense: bool) -> Measure:
        """Sizes of what was asked for; `dense` counts matrices as the float32 that the host makes of them (of all but
        large stacks of experts)."""
        formats: dict[str, int] = {}
        matrices: dict[str, int] = {}
        sizes: dict[str, int] = {}
        parameters = 0
        for need in self.needs.values():
            count = int(np.prod(need.shape, dtype=np.int64))
            sizes[need.name] = 4 * count if dense and need.name not in self.kept else need.nbytes
            if need.name not in self.tensors:
                continue
            if need.format not in FORMATS:
                raise UnsupportedModelError(f"tensor {need.name} is stored in an unknown format; supported are "
                                            f"{', '.join(FORMATS)}")
            parameters += count
            formats[need.format] = formats.get(need.format, 0) + need.nbytes
            if len(need.shape) > 1:
                matrices[need.format] = matrices.get(need.format, 0) + need.nbytes
        streamed, experts = 0, dict[tuple[int, int], int]()
        for name in self.streamed:
            if name in self.routed:
                experts[self.routed[name]] = experts.get(self.routed[name], 0) + sizes[name]
            else:
                streamed += sizes[name]
        routed = tuple((size, top, count) for (top, count), size in sorted(experts.items()))
        return Measure(sum(sizes.values()), streamed + one_token(routed), formats, matrices, parameters, routed)


def one_token(experts: Iterable[tuple[int, int, int]]) -> int:
    """Bytes of `Measure.experts` that one token reads."""
    return sum(size * top // count for size, top, count in experts)
