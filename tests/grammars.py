"""Matchers for tests: which tokens may follow is drawn from a seed and from all tokens before."""
from __future__ import annotations

import random
import threading
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.engine.request import Request


class Drawn:
    """A `Matcher` over `vocab` tokens that ends after `length` of the first 256. One place of three leaves no choice,
    others `few` tokens. `refuses` from that many tokens on, whatever its mask says; `breaks` there by an exception."""

    def __init__(self, seed: int, vocab: int, length: int, few: int = 40, refuses: int = 1 << 30,
                 breaks: int = 1 << 30) -> None:
        self.seed, self.vocab, self.length, self.few = seed, vocab, length, few
        self.refuses, self.breaks = refuses, breaks
        self.said: list[int] = []
        self.thread = threading.get_ident()

    def allowed(self, said: list[int]) -> set[int]:
        draw = random.Random(f"{self.seed} {said}")
        return {draw.randrange(min(self.vocab, 256)) for _ in range(1 if draw.random() < 1 / 3 else self.few)}

    @property
    def ended(self) -> bool:
        return len(self.said) >= self.length

    def free(self, count: int) -> bool:
        return False

    def mask(self, out: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        assert not self.ended and out.shape == (-(-self.vocab // 32),)
        if len(self.said) >= self.breaks:
            raise ValueError("the grammar is broken")
        bits = np.zeros(len(out) * 32, np.uint8)
        bits[list(self.allowed(self.said))] = 1
        out[:] = np.packbits(bits, bitorder="little").view("<u4")

    def forced(self) -> tuple[int, ...]:
        found: list[int] = []
        while len(self.said) + len(found) < self.length and len(one := self.allowed(self.said + found)) == 1:
            found += one
        return tuple(found)

    def accept(self, tokens: tuple[int, ...]) -> int:
        for i, token in enumerate(tokens):
            if self.ended or len(self.said) >= self.refuses or token not in self.allowed(self.said):
                return i
            self.said.append(token)
        return len(tokens)

    def rollback(self, count: int) -> None:
        assert count <= len(self.said)
        del self.said[len(self.said) - count :]


def with_grammar(request: Request, matchers: list[Drawn], ends: frozenset[int]) -> Request:
    """A request whose choices follow these matchers."""
    return msgspec.structs.replace(request, matchers=tuple(matchers), stop_ids=request.stop_ids | ends)
