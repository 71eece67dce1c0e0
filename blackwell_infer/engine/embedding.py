"""One vector for a text: hidden states after the final norm, pooled and scaled to length 1. H is the model's width."""
from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Literal, get_args

import numpy as np

from blackwell_infer.engine.runner import Result
from blackwell_infer.errors import ModelOutputError, RequestError

Pooling = Literal["last", "mean"]
"""The hidden state of the last token, or the mean of all tokens'"""
Vector = np.ndarray[Any, np.dtype[np.float32]]


def check_pooling(pooling: str) -> None:
    """RequestError if there is no such pooling."""
    if pooling not in get_args(Pooling):
        raise RequestError(f"pooling is {pooling!r}; it is one of {', '.join(get_args(Pooling))}")


class Embedding:
    """A text whose vector [H] float32 is to come. Its chunks arrive in order; a text that was
    preempted begins again."""

    wants = "hidden"

    def __init__(self, id: int, pooling: Pooling) -> None:
        self.id = id
        self.future: Future[Vector] = Future()
        self._pooling = pooling
        self._pooled = np.zeros(0)

    def take(self, start: int, first: int, count: int, result: Result) -> None:
        """Rows first ... first + count of a step's hidden states are those of tokens from `start`."""
        assert result.hidden is not None
        values = result.hidden[first : first + count].astype(np.float64)
        if self._pooling == "last":
            self._pooled = values[-1]
        else:
            total = values.sum(axis=0)
            self._pooled = total if start == 0 else self._pooled + total  # the direction of the mean

    def finish(self) -> None:
        """Hand the vector to the caller, or ModelOutputError if the model's numbers are none."""
        if not self.future.set_running_or_notify_cancel():
            return
        if np.isfinite(self._pooled).all():
            self.future.set_result(scaled(self._pooled))
        else:
            self.future.set_exception(ModelOutputError(
                "the model gave no usable hidden states: some are NaN or infinite; are the weights intact?"))


def scaled(vector: np.ndarray[Any, Any]) -> Vector:
    """A vector of length 1 in the same direction; zeros stay as they are."""
    length = np.linalg.norm(vector.astype(np.float64))
    return np.asarray(vector / length if length else vector, np.float32)
