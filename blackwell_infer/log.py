"""The package's logger and progress reporting. The library prints nothing itself: callers pass a `Progress`."""
from __future__ import annotations

import logging
from typing import Protocol

logger = logging.getLogger("blackwell_infer")


class Progress(Protocol):
    """Receives the advance of long work: `stage` names it, `done` of `total` are in `unit` (bytes, kernels, tokens)."""

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None: ...


def silent(stage: str, done: int, total: int, unit: str) -> None:
    """A `Progress` that shows nothing."""
