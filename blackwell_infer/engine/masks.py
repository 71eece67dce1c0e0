"""Grammars of the answers under way: what the next tokens may be, along the guesses of a step, and what they must be.

A mask is made on the host while the device runs the step that needs it up to its logits. A matcher stands after every
token of its answer that the host has read; guesses are walked and taken back.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blackwell_infer.engine.sequences import Plan, Row
from blackwell_infer.errors import BlackwellInferError, ModelOutputError
from blackwell_infer.log import logger
from blackwell_infer.ops.batch import TokenMask
from blackwell_infer.types import Matcher

Words = np.ndarray[Any, np.dtype[np.uint32]]


class Grammars:
    """Matchers by sequence id, on the engine's thread. `ends` are the model's own end tokens; it may have logits for
    fewer tokens than its tokenizer knows."""

    def __init__(self, vocab: int, ends: frozenset[int]) -> None:
        self._width = -(-vocab // 32)
        self._end = np.zeros(self._width, np.uint32)
        for id in (id for id in ends if id < vocab):
            self._end[id // 32] |= np.uint32(1 << id % 32)
        self._matchers: dict[int, Matcher] = {}

    def add(self, id: int, matcher: Matcher) -> None:
        """Follow an answer from its beginning."""
        self._matchers[id] = matcher

    def drop(self, id: int) -> None:
        """Forget one, if it has a grammar."""
        self._matchers.pop(id, None)

    def concern(self, plan: Plan) -> bool:
        """Whether a step may sample a token that a grammar limits. One token before its rows may be unknown yet."""
        return any(row.samples and row.id in self._matchers and not self._matchers[row.id].free(row.sampled + 1)
                   for row in plan.rows)

    def accept(self, id: int, token: int) -> bool:
        """Take in a token that was chosen; whether the answer is over because nothing can follow and the model has no
        token that says so. ModelOutputError if the grammar does not allow it."""
        matcher = self._matchers.get(id)
        if matcher is None:
            return False
        try:
            allowed, over = matcher.accept((token,)) == 1, matcher.ended and not self._end.any()
        except Exception as error:
            raise broken(error) from error
        if not allowed:
            raise ModelOutputError(f"token {token} was chosen, but the grammar of the answer does not go on with it")
        return bool(over)

    def fitting(self, id: int, guesses: tuple[int, ...]) -> tuple[int, ...]:
        """The first guesses that the grammar allows, at most up to an end token; the matcher stays where it is."""
        matcher = self._matchers.get(id)
        if matcher is None:
            return guesses
        body = next((i for i, token in enumerate(guesses) if self._is_end(token)), len(guesses))
        try:
            count = matcher.accept(guesses[:body])
            matcher.rollback(count)
        except Exception as error:  # its mask will fail, too, and end the answer
            logger.debug("the grammar of an answer failed at guesses: %s", error)
            return ()
        return guesses[: body + 1] if count == body else guesses[:count]

    def forced(self, id: int) -> tuple[int, ...]:
        """What must come next of an answer, as far as its grammar knows."""
        matcher = self._matchers.get(id)
        try:
            return () if matcher is None else matcher.forced()
        except Exception as error:  # as above
            logger.debug("the grammar of an answer failed at what it forces: %s", error)
            return ()

    def masks(self, plan: Plan) -> tuple[TokenMask, Mapping[int, BlackwellInferError]]:
        """What the sampled tokens of a step that was launched may be, and the answers whose grammar failed. Every token
        that the host could read has been accepted."""
        index, words, failed, at = list[int](), list[Words](), dict[int, BlackwellInferError](), 0
        for row in plan.rows:
            if not row.samples:
                continue
            index += [-1] * row.sampled
            matcher = self._matchers.get(row.id)
            try:
                made = [] if matcher is None or matcher.free(row.sampled) else self._along(matcher, row)
            except Exception as error:  # whatever a grammar raises ends its answer, not the others
                failed[row.id], made = broken(error), []
            index[at : at + len(made)] = range(len(words), len(words) + len(made))
            words += made
            at += row.sampled
        stacked = np.stack(words) if words else np.zeros((0, self._width), np.uint32)
        return TokenMask(np.asarray(index, np.int32), stacked), failed

    def _along(self, matcher: Matcher, row: Row) -> list[Words]:
        """Masks after a row's newest token and each guess that the grammar allows: what follows others is void."""
        found, accepted = list[Words](), 0
        try:
            for guess in (*row.guessed, None):
                found.append(self._mask(matcher))
                if guess is None or self._is_end(guess) or matcher.accept((guess,)) != 1:
                    break
                accepted += 1
        finally:
            if accepted:
                matcher.rollback(accepted)
        return found

    def _mask(self, matcher: Matcher) -> Words:
        if matcher.ended:
            return self._end
        words = np.zeros(self._width, np.uint32)
        matcher.mask(words)
        return words

    def _is_end(self, token: int) -> bool:
        return bool(self._end[token // 32] >> np.uint32(token % 32) & 1)


def broken(error: Exception) -> BlackwellInferError:
    """The failure of a matcher as one of ours, with it as the cause."""
    if isinstance(error, BlackwellInferError):
        return error
    wrapped = ModelOutputError(f"the grammar of the answer failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
