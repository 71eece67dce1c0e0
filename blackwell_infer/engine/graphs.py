"""Decode steps in buckets: padded to few shapes, read from inputs that stay where they are, recorded once per shape.

A decode step has a result for every token: rows bring one, and perhaps guesses after it. Its bucket fixes the shapes of
all arrays, hence every launch.
The first step of a bucket runs op by op, which loads kernels and grows the arena; the second is recorded; from then on
a step is one upload, one launch and one download. Recorded and unrecorded steps launch the same, so they give the same
bits. Padding rows have row -1, no tokens in `starts`, slot -1 and temperature 0.
"""
from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.device.queue import Captured, Pending, Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.engine import step
from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.head import HeadWork, greedy
from blackwell_infer.engine.packed import Packed, arrays_in_head, arrays_of, fill, placed, placed_head
from blackwell_infer.engine.places import Arrays, Copies
from blackwell_infer.engine.runner import CHECKED, MOST_TOP, Landing, ModelRunner
from blackwell_infer.engine.scheduler import pages_for
from blackwell_infer.engine.step import Model
from blackwell_infer.errors import OutOfMemoryError
from blackwell_infer.log import logger
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch, SampleParams, TokenMask

SHORTEST = 256
"""Keys below which contexts are not told apart: attention has one split there."""
EXACT_ROWS = 8
"""Up to so many rows buckets are powers of two, beyond they are multiples of it."""


class Bucket(msgspec.Struct, frozen=True):
    """Shapes of a decode step: rows, most keys of a row, alternatives to report, biases of all rows together; with
    guesses, tokens of all rows, and most of one."""

    rows: int
    length: int
    top: int
    biases: int
    guessed: int = 0
    """tokens of all rows, 0 where each brings one"""
    most: int = 1
    masked: bool = False
    """in two parts, the second of which waits for masks"""

    @property
    def tokens(self) -> int:
        """Tokens, each of which has a result."""
        return self.guessed or self.rows


class Space(msgspec.Struct, frozen=True):
    """The buckets of a model that holds `batch` rows of `context` tokens."""

    batch: int
    context: int

    def rows(self, count: int) -> int:
        """The bucket of so many rows."""
        return min(doubled(count) if count <= EXACT_ROWS else -(-count // EXACT_ROWS) * EXACT_ROWS, self.batch)

    def length(self, longest: int) -> int:
        """The bucket of so many keys."""
        return min(max(doubled(longest), SHORTEST), self.context)

    @property
    def all_rows(self) -> tuple[int, ...]:
        """Every bucket of rows, ascending."""
        return tuple(sorted({self.rows(n) for n in range(1, self.batch + 1)}))

    @property
    def all_lengths(self) -> tuple[int, ...]:
        """Every bucket of lengths, ascending."""
        return tuple(sorted({self.length(1 << i) for i in range(self.context.bit_length() + 1)}))

    def bucket(self, work: Work) -> Bucket | None:
        """Where a step belongs; None if it is no decode step."""
        rows, tokens = work.batch.lengths.shape[0], work.batch.ids.shape[0]
        if work.params is None or tokens != work.params.slot.shape[0]:
            return None
        top, biases = work.params.top, work.params.bias_ids.shape[0]
        return Bucket(self.rows(rows), self.length(int(np.max(np.asarray(work.batch.lengths)))),
                      min(doubled(top), MOST_TOP) if top else 0, doubled(biases) if biases else 0,
                      doubled(tokens) if tokens > rows else 0, doubled(work.batch.max_new), work.masked)


def doubled(n: int) -> int:
    """The power of two at or above n >= 1."""
    return 1 << (n - 1).bit_length()


def padding(bucket: Bucket) -> Work:
    """A step of padding rows only."""
    rows, tokens = bucket.rows, bucket.tokens

    def ints(*shape: int, value: int = 0) -> np.ndarray[Any, np.dtype[np.int32]]:
        return np.full(shape, value, np.int32)

    def floats(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
        return np.full(tokens, value, np.float32)

    return Work(
        Batch(ids=ints(tokens), positions=ints(tokens), rows=ints(tokens, value=-1), starts=ints(rows + 1),
              lengths=ints(rows), pages=ints(rows, pages_for(bucket.length)),
              outputs=np.arange(tokens, dtype=np.int32), state_from=ints(rows, value=-1),
              state_to=ints(tokens, value=-1), max_new=bucket.most, max_length=bucket.length),
        SampleParams(temperature=floats(0), top_k=ints(tokens), top_p=floats(1), min_p=floats(0), repetition=floats(1),
                     presence=floats(0), frequency=floats(0), seed=np.zeros(tokens, np.uint64), position=ints(tokens),
                     slot=ints(tokens, value=-1), guess=ints(tokens, value=-1), bias_starts=ints(tokens + 1),
                     bias_ids=ints(bucket.biases), bias_values=np.zeros(bucket.biases, np.float32), top=bucket.top,
                     chained=bucket.guessed > 0),
        slots=ints(tokens, value=-1), reloads=(), scored=ints(0), targets=ints(0), want_logits=False)


class Inputs:
    """The arrays of a bucket: filled on the host, copied to `block`, read there by every step as `work`."""

    def __init__(self, queue: Queue, bucket: Bucket) -> None:
        blank = padding(bucket)
        self._blank = arrays_of(blank)
        self._packed = Packed(self._blank)
        self.block: Tensor = queue.empty(self._packed.buffer.shape, np.uint8)
        self.work = placed(blank, self._packed.views(self.block))

    def upload(self, queue: Queue, work: Work) -> None:
        """Bring a step's arrays to the device, padded."""
        fill(self._packed.host, arrays_of(work), self._blank)
        queue.upload(self.block, self._packed.buffer)


class Plate:
    """What is kept of a bucket: its inputs, whether it ran op by op, and the records of its parts once there are."""

    def __init__(self, inputs: Inputs, parts: int) -> None:
        self.inputs = inputs
        self.seen = [False] * parts
        self.graphs: list[Captured | None] = [None] * parts


class HeadBucket(msgspec.Struct, frozen=True):
    """Shapes of a head's work: rows, tokens of its pass over them, passes, most keys of a row."""

    rows: int
    tokens: int
    steps: int
    length: int


def head_bucket(work: HeadWork, space: Space) -> HeadBucket | None:
    """Where a head's work belongs; None if prompts are in it, or nothing is guessed."""
    whole, rows = work.steps[0], work.slots.shape[0]
    tokens = whole.ids.shape[0]
    if not rows or rows != whole.lengths.shape[0] or tokens > CHECKED:
        return None
    longest = max(int(np.max(np.asarray(batch.lengths))) for batch in work.steps)
    return HeadBucket(space.rows(rows), max(doubled(tokens), space.rows(rows)), len(work.steps), space.length(longest))


def head_padding(bucket: HeadBucket) -> HeadWork:
    """A head's work of padding rows only."""
    rows, table = bucket.rows, np.zeros((bucket.rows, pages_for(bucket.length)), np.int32)
    none = np.full(rows, -1, np.int32)

    def batch(tokens: int, most: int) -> Batch:
        zeros = np.zeros(tokens, np.int32)
        return Batch(ids=zeros, positions=zeros, rows=zeros - 1, starts=np.zeros(rows + 1, np.int32), lengths=none + 1,
                     pages=table, outputs=np.zeros(0, np.int32), state_from=none, state_to=zeros - 1, max_new=most,
                     max_length=bucket.length)

    return HeadWork((batch(bucket.tokens, bucket.tokens), *(batch(rows, 1) for _ in range(bucket.steps - 1))),
                    np.zeros(bucket.tokens, np.int32), none + 1, none, greedy(rows))


class HeadPlate:
    """`Inputs` and `Plate` of a head's work."""

    def __init__(self, queue: Queue, bucket: HeadBucket) -> None:
        blank = head_padding(bucket)
        self._blank = arrays_in_head(blank)
        self._packed = Packed(self._blank)
        self.block: Tensor = queue.empty(self._packed.buffer.shape, np.uint8)
        self.work = placed_head(blank, self._packed.views(self.block))
        self.seen = False
        self.graph: Captured | None = None

    def upload(self, queue: Queue, work: HeadWork) -> None:
        """Bring the arrays to the device, padded."""
        fill(self._packed.host, arrays_in_head(work), self._blank)
        queue.upload(self.block, self._packed.buffer)


class GraphRunner:
    """`Runner` on a queue: decode steps in buckets, recorded if `capture`; other steps as `ModelRunner` runs them.

    A step that finds no memory for its inputs or its record runs without; so do later new buckets (one logged line).
    """

    depth = 1

    def __init__(self, queue: Queue, ops: Ops, model: Model, context: int, capture: bool = True) -> None:
        self.queue = queue
        self.eager = ModelRunner(queue, ops, model)
        self.space = Space(model.penalties.counts.shape[0], context)
        self.nbytes = 0
        """bytes of device memory of all inputs and records"""
        self._capture = capture
        self._full = False
        self._plates: dict[Bucket, Plate] = {}
        self._heads: dict[HeadBucket, HeadPlate] = {}

    @property
    def captured(self) -> tuple[Bucket, ...]:
        """The buckets that are recorded."""
        return tuple(bucket for bucket, plate in self._plates.items() if None not in plate.graphs)

    def launch(self, work: Work) -> Landing:
        bucket = self.space.bucket(work)
        plate = None if bucket is None else self._plate(bucket)
        if bucket is None or plate is None:
            return self.eager.launch(work)
        self.eager.reload(work)
        plate.inputs.upload(self.queue, work)
        self._run(bucket, plate, 0)

        def choose(mask: TokenMask) -> Pending:
            self.eager.waiting.tell(mask, bucket.tokens)
            self._run(bucket, plate, 1)
            return self.eager.download(bucket.tokens, bucket.top)

        count = work.batch.ids.shape[0]
        if bucket.masked:
            return Landing(None, bucket.tokens, count, bucket.top, choosing=choose)
        return Landing(self.eager.download(bucket.tokens, bucket.top), bucket.tokens, count, bucket.top)

    def _run(self, bucket: Bucket, plate: Plate, part: int) -> None:
        """One part of a step: the record of it, or op by op."""
        graph = plate.graphs[part]
        if graph is None and plate.seen[part] and self._capture and not self._full:
            graph = plate.graphs[part] = self._recorded(bucket, plate, part)
        if graph is not None:
            graph.run()
        else:
            with self.queue.step():
                self._step(bucket, plate, part)
            plate.seen[part] = True

    def guess(self, work: HeadWork) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """See `engine.head.Guessing`: recorded in buckets like decode steps, where every row guesses."""
        bucket = head_bucket(work, self.space)
        plate = None if bucket is None else self._head_plate(bucket)
        if bucket is None or plate is None:
            return self.eager.guess(work)
        plate.upload(self.queue, work)
        if plate.graph is None and plate.seen and self._capture and not self._full:
            try:
                plate.graph = self.queue.capture(lambda: self._guess(plate))
                self.nbytes += plate.graph.nbytes
            except OutOfMemoryError as error:
                self._stop(Bucket(bucket.rows, bucket.length, 0, 0), error)
        if plate.graph is not None:
            plate.graph.run()
        else:
            with self.queue.step():
                self._guess(plate)
            plate.seen = True
        return self.eager.guessed(bucket.steps, bucket.rows)[:, : work.slots.shape[0]]

    def read_cache(self, pages: Items[int], state: int | None) -> Arrays:
        return self.eager.read_cache(pages, state)

    def copy_cache(self, pages: Items[int], state: int | None) -> Copies:
        return self.eager.copy_cache(pages, state)

    def write_cache(self, pages: Items[int], state: int | None, arrays: Arrays) -> None:
        self.eager.write_cache(pages, state, arrays)

    def close(self) -> None:
        self._plates.clear()
        self._heads.clear()
        self.eager.close()

    def _plate(self, bucket: Bucket) -> Plate | None:
        """The bucket's plate, made on first use; None if there is no memory for it."""
        plate = self._plates.get(bucket)
        if plate is None and not self._full:
            try:
                plate = self._plates[bucket] = Plate(Inputs(self.queue, bucket), 1 + bucket.masked)
                self.nbytes += plate.inputs.block.nbytes
            except OutOfMemoryError as error:
                self._stop(bucket, error)
        return plate

    def _step(self, bucket: Bucket, plate: Plate, part: int) -> None:
        on = self.eager
        kept = on.waiting.kept[: bucket.tokens] if bucket.masked else None
        if kept is not None and part:
            step.choose(on.ops, on.model, on.tokens, plate.inputs.work, kept, on.waiting.mask(bucket.tokens))
        else:
            step.run(on.ops, on.model, on.tokens, plate.inputs.work, kept)

    def _head_plate(self, bucket: HeadBucket) -> HeadPlate | None:
        """As `_plate`, for the head."""
        plate = self._heads.get(bucket)
        if plate is None and not self._full:
            try:
                plate = self._heads[bucket] = HeadPlate(self.queue, bucket)
                self.nbytes += plate.block.nbytes
            except OutOfMemoryError as error:
                self._stop(Bucket(bucket.rows, bucket.length, 0, 0), error)
        return plate

    def _guess(self, plate: HeadPlate) -> None:
        assert self.eager.guesses is not None
        step.guess(self.eager.ops, self.eager.model, self.eager.guesses, plate.work)

    def _recorded(self, bucket: Bucket, plate: Plate, part: int) -> Captured | None:
        try:
            graph = self.queue.capture(lambda: self._step(bucket, plate, part))
        except OutOfMemoryError as error:
            self._stop(bucket, error)
            return None
        self.nbytes += graph.nbytes
        logger.debug("recorded decode steps of %d rows up to %d keys: %d graphs, %d bytes", bucket.rows, bucket.length,
                     len(self.captured), self.nbytes)
        return graph

    def _stop(self, bucket: Bucket, error: OutOfMemoryError) -> None:
        """From now on new buckets run op by op."""
        self._full = True
        logger.warning("no memory for a graph of %d rows up to %d keys beside %d others (%d bytes): such steps and new "
                       "buckets run kernel by kernel, slower (%s)", bucket.rows, bucket.length, len(self.captured),
                       self.nbytes, error)
