"""Texts that are scored: log-probabilities of their tokens, of the likeliest others in their places, and logits."""
from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.engine.runner import Result
from blackwell_infer.errors import OutOfMemoryError

Floats = np.ndarray[Any, np.dtype[np.float32]]
Ints = np.ndarray[Any, np.dtype[np.int32]]
BLOCK = 128
"""Logits of which the largest is looked for first"""


class Score(msgspec.Struct, frozen=True):
    """Teacher-forced scores of T tokens: `logprobs` [T] float32 holds log p(token i | tokens before it), 0.0 for the
    first, which nothing precedes. What was asked for: `logits` [T, V] float32, the model's after each token; `top_ids`
    [T, k] int32 and `top_logprobs` [T, k] float32, the likeliest tokens in the place of token i, best first, the lower
    id among equals (-1 and 0.0 in the place of the first)."""

    logprobs: Floats
    logits: Floats | None = None
    top_ids: Ints | None = None
    top_logprobs: Floats | None = None


class Scoring:
    """A text being scored. `result` is complete once every position is."""

    def __init__(self, id: int, tokens: tuple[int, ...], vocab: int, logits: bool, top: int = 0) -> None:
        self.id = id
        self.wants = "logits" if logits or top else "scores"
        self._tokens = np.asarray(tokens, np.int64)
        self._top = min(top, vocab)
        try:
            values = np.empty((len(tokens), vocab), np.float32) if logits else None
        except MemoryError:
            raise OutOfMemoryError(f"logits of {len(tokens)} tokens take {4 * len(tokens) * vocab} bytes on the host, "
                                   "which are not free; score shorter pieces") from None
        shape = (len(tokens), self._top)
        self.result = Score(np.zeros(len(tokens), np.float32), values, np.full(shape, -1, np.int32) if top else None,
                            np.zeros(shape, np.float32) if top else None)
        self.future: Future[Score] = Future()

    def take(self, start: int, first: int, count: int, result: Result) -> None:
        """Copy a chunk's scores, from `first` of a step's, to their positions from `start`; a text that was preempted
        is scored again, to the same places."""
        assert result.logprobs is not None
        values, found = result.logprobs[first : first + count], self.result
        following = slice(start + 1, min(start + count + 1, len(found.logprobs)))
        size = following.stop - following.start
        found.logprobs[following] = values[:size]
        if result.logits is None:
            return
        logits = result.logits[first : first + count]
        if found.logits is not None:
            found.logits[start : start + count] = logits
        if found.top_ids is not None and found.top_logprobs is not None and size:
            best = likeliest(logits[:size], self._top)
            own = np.take_along_axis(logits[:size], self._tokens[following, None], 1) - values[:size, None]
            found.top_ids[following] = best
            found.top_logprobs[following] = np.take_along_axis(logits[:size], best, 1) - own

    def finish(self) -> None:
        """Hand the scores to the caller."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(self.result)


def likeliest(logits: Floats, count: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The tokens [N, count] of the highest of logits [N, V], best first, the lower id among equals.

    They are among the blocks with the highest maxima, of which those with lower ids are taken among equals, and the
    rest that fills no block.
    """
    rows, vocab = logits.shape
    blocks = vocab // BLOCK
    maxima = logits[:, : blocks * BLOCK].reshape(rows, blocks, BLOCK).max(2)
    taken = np.sort(np.argsort(-maxima, 1, kind="stable")[:, :count], 1)
    inside = (taken[:, :, None] * BLOCK + np.arange(BLOCK)).reshape(rows, -1)
    tail = np.broadcast_to(np.arange(blocks * BLOCK, vocab), (rows, vocab - blocks * BLOCK))
    ids = np.concatenate((inside, tail), 1)
    order = np.argsort(-np.take_along_axis(logits, ids, 1), 1, kind="stable")[:, :count]
    return np.take_along_axis(ids, order, 1)
