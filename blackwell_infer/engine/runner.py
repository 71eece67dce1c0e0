"""Runs a step's work on a backend and brings the results to the host. The engine above sees only this protocol."""
from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.device.queue import Memory, Pending
from blackwell_infer.engine import step
from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.guesses import MOST
from blackwell_infer.engine.head import HeadWork
from blackwell_infer.engine.packed import Packed, arrays_in_head, arrays_of, placed, placed_head
from blackwell_infer.engine.places import Arrays, Copies, read_places, write_places
from blackwell_infer.engine.state import DTYPES
from blackwell_infer.engine.step import Model
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Sampled, TokenMask, TokenState

MOST_TOP = 20
"""Most alternatives that a sampled token may report (`types.Sampling.logprobs`)"""


CHECKED = 1 + MOST
"""Most tokens that a step with guesses samples"""


class Result(msgspec.Struct, frozen=True):
    """What a step made, on the host: sampled tokens, log-probabilities [S] of scored ones, their logits [S, V], hidden
    states [E, H] of embedded ones."""

    sampled: Sampled | None
    logprobs: np.ndarray[Any, Any] | None
    logits: np.ndarray[Any, Any] | None
    hidden: np.ndarray[Any, Any] | None = None


class Flight(Protocol):
    """A step under way."""

    def choose(self, mask: TokenMask) -> None:
        """Tell the masks (host arrays) of a step with `Work.masked`: once, before `result`, and before the next launch.
        Until then the step runs as far as it goes without. DeviceError and its kind."""
        ...

    def result(self) -> Result:
        """Wait for the step. DeviceError and its kind if the backend failed."""
        ...


class Runner(Protocol):
    """One model on one backend."""

    @property
    def depth(self) -> int:
        """Steps that may be launched and not read when the next one is: 0 or 1. With 1, ids below 0 (`Batch.ids`) take
        tokens that the host has not seen."""
        ...

    def launch(self, work: Work) -> Flight:
        """Begin a step; it runs after all that were begun before. DeviceError and its kind if the backend fails."""
        ...

    def guess(self, work: HeadWork) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """What the head of the model guesses after the step that was launched last, see `engine.head.Guessing`."""
        ...

    def read_cache(self, pages: Items[int], state: int | None) -> Arrays:
        """Copies of pages of the cache, and of a kept recurrent state, by name (`engine.places`)."""
        ...

    def copy_cache(self, pages: Items[int], state: int | None) -> Copies:
        """Begin to copy the same beside the step under way, which must not write there."""
        ...

    def write_cache(self, pages: Items[int], state: int | None, arrays: Arrays) -> None:
        """Fill pages of the cache, and the slot of a kept state, with what `read_cache` gave, and wait for it.
        SessionError if the arrays are none of this model's; then nothing is written."""
        ...

    def close(self) -> None:
        """Release the backend. Idempotent."""
        ...


class Landing:
    """`Flight` over downloads: `words` is the block that `Ops.deliver_` wrote for `rows` rows, of which `count` are
    wanted, with `top` alternatives each; `choosing` begins to write it once masks are told."""

    def __init__(self, words: Pending | None, rows: int, count: int, top: int, logprobs: Pending | None = None,
                 logits: Pending | None = None, choosing: Callable[[TokenMask], Pending] | None = None,
                 hidden: Pending | None = None) -> None:
        self._words = words
        self._choosing = choosing
        self._shape = rows, count, top
        self._logprobs = logprobs
        self._logits = logits
        self._hidden = hidden

    def choose(self, mask: TokenMask) -> None:
        assert self._choosing is not None, "a step without masks waits for none"
        self._words, self._choosing = self._choosing(mask), None

    def result(self) -> Result:
        assert self._choosing is None, "the masks of this step were not told"
        return Result(sampled=None if self._words is None else delivered(self._words.result(), *self._shape),
                      logprobs=None if self._logprobs is None else self._logprobs.result(),
                      logits=None if self._logits is None else self._logits.result(),
                      hidden=None if self._hidden is None else self._hidden.result())


def delivered(words: np.ndarray[Any, Any], rows: int, count: int, top: int) -> Sampled:
    """The first `count` of `rows` results from the words of `Ops.deliver_`."""
    ids, values = words[2 * rows :].reshape(2, rows, top)
    return Sampled(words[:count], words[rows : rows + count].view(np.float32), ids[:count],
                   values[:count].view(np.float32))


def token_state(memory: Memory, slots: int) -> TokenState:
    """Room for the newest tokens of `slots` sequences, and for the results of steps that sample one token of each, or
    of a step with guesses."""
    results = max(slots, CHECKED)
    return TokenState(memory.zeros((slots,), np.int32), memory.zeros((results * (2 + 2 * MOST_TOP),), np.int32))


class Waiting:
    """What a step with masks leaves until they are told, and where they are put: `kept` [S, H] the hidden states of
    what is sampled, `mask` rows [S] and words [S, ceil(V / 32)]. One step at a time."""

    def __init__(self, memory: Memory, model: Model, rows: int) -> None:
        geometry = model.family.geometry(model.cfg)
        self._memory = memory
        self.kept = memory.zeros((rows, geometry.hidden), DTYPES[model.dtype])
        self._rows = memory.zeros((rows,), np.int32)
        self._words = memory.zeros((rows, -(-geometry.vocab // 32)), np.uint32)

    def mask(self, rows: int) -> TokenMask:
        """The masks of the first rows."""
        return TokenMask(self._rows[:rows], self._words[:rows])

    def tell(self, mask: TokenMask, rows: int) -> TokenMask:
        """Upload masks of at most `rows` rows, which is their number with padding: only as many as there are."""
        host, words = np.full(rows, -1, np.int32), np.asarray(mask.words)
        host[: mask.rows.shape[0]] = np.asarray(mask.rows)
        self._memory.upload(self._rows[:rows], host)
        if len(words):
            self._memory.upload(self._words[: len(words)], words)
        return self.mask(rows)


class ModelRunner:
    """`Runner` over any pair of `Memory` and `Ops`: HostMemory with ops.ref, or a queue with CudaOps on it. Every op is
    called, and every kernel launched, step by step."""

    depth = 0

    def __init__(self, memory: Memory, ops: Ops, model: Model) -> None:
        self.memory = memory
        self.ops = ops
        self.model = model
        slots = model.penalties.counts.shape[0]
        self.tokens = token_state(memory, slots)
        self.guesses = None if model.head is None else token_state(memory, slots)
        self.waiting = Waiting(memory, model, max(slots, CHECKED))

    def launch(self, work: Work) -> Landing:
        memory = self.memory
        self.reload(work)
        rows, top = (0, 0) if work.params is None else (work.batch.outputs.shape[0], work.params.top)
        kept = self.waiting.kept[:rows] if work.masked else None
        with memory.step():
            packed = Packed(arrays_of(work))
            looked = step.run(self.ops, self.model, self.tokens, placed(work, packed.views(memory.put(packed.buffer))),
                              kept)
            logprobs = None if looked.logprobs is None else memory.download(looked.logprobs)
            logits = memory.download(looked.logits) if work.want_logits and looked.logits is not None else None
            hidden = None if looked.hidden is None else memory.download(looked.hidden)

        def choose(mask: TokenMask) -> Pending:
            told = self.waiting.tell(mask, rows)
            with memory.step():  # the first one's memory may be another's by now
                here = placed(work, packed.views(memory.put(packed.buffer)))
                step.choose(self.ops, self.model, self.tokens, here, self.waiting.kept[:rows], told)
            return self.download(rows, top)

        if work.masked:
            return Landing(None, rows, rows, top, logprobs, logits, choose, hidden)
        return Landing(self.download(rows, top) if rows else None, rows, rows, top, logprobs, logits, hidden=hidden)

    def guess(self, work: HeadWork) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """See `engine.head.Guessing`; after a step that was launched last."""
        assert self.guesses is not None
        packed = Packed(arrays_in_head(work))
        with self.memory.step():
            step.guess(self.ops, self.model, self.guesses,
                       placed_head(work, packed.views(self.memory.put(packed.buffer))))
        return self.guessed(len(work.steps), work.slots.shape[0])

    def guessed(self, steps: int, rows: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
        """The tokens [steps, rows] that `step.guess` left."""
        if not rows:
            return np.zeros((steps, 0), np.int32)
        assert self.guesses is not None
        words = self.memory.download(self.guesses.block[: 2 * steps * rows]).result()
        return np.ascontiguousarray(words.reshape(steps, 2, rows)[:, 0])

    def reload(self, work: Work) -> None:
        """Set up the penalty slots of sequences that start."""
        if work.reloads:
            with self.memory.step():
                for r in work.reloads:
                    self.ops.penalty_load_(self.model.penalties, r.slot, self.memory.put(r.prompt),
                                           self.memory.put(r.answer))

    def read_cache(self, pages: Items[int], state: int | None) -> Arrays:
        return read_places(self.memory, self.model.kv, pages, self._slot(state))

    def copy_cache(self, pages: Items[int], state: int | None) -> Copies:
        return Copies(self.memory, self.model.kv, pages, self._slot(state))

    def write_cache(self, pages: Items[int], state: int | None, arrays: Arrays) -> None:
        write_places(self.memory, self.model.kv, pages, self._slot(state), arrays)
        self.memory.download(self.tokens.block[:1]).result()  # `copy_cache` waits for nothing

    def _slot(self, state: int | None) -> int | None:
        """Where the kept state of this number lies."""
        return None if state is None else self.model.homes + state

    def download(self, rows: int, top: int) -> Pending:
        """Begin to copy what a step delivered for so many rows."""
        return self.memory.download(self.tokens.block[: rows * (2 + 2 * top)])

    def close(self) -> None:
        self.memory.close()
