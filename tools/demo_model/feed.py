"""Training batches from processes of their own. What a batch holds depends on the seed alone, not on who is faster."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .bpe import Vocabulary
from .data import books, rows


@dataclass(frozen=True)
class Targets:
    """Where a loss is taken: flat positions, the tokens that should be predicted there, and weights that sum to 1."""

    at: Tensor
    ids: Tensor
    weights: Tensor


@dataclass(frozen=True)
class Step:
    """ids and conversation numbers [B, T]; what to predict from t: t + 1, and t + 2 by the MTP head."""

    ids: Tensor
    number: Tensor
    next: Targets
    after: Targets


def produce(out: Any, tokenizer: Path, corpora: Path | None, seed: int, worker: int, count: int, length: int) -> None:
    source = rows(Vocabulary(tokenizer), seed, worker, length, books(corpora)[0])
    while True:
        out.put(np.stack([next(source) for _ in range(count)]))


def targets(batch: np.ndarray, ahead: int, device: torch.device) -> Targets:
    weight, number = batch[:, 1].astype(np.float32) / 10, batch[:, 2]
    wanted = np.zeros_like(weight)
    wanted[:, :-ahead] = weight[:, ahead:] * (number[:, ahead:] == number[:, :-ahead])
    following = np.zeros_like(batch[:, 0])
    following[:, :-ahead] = batch[:, 0, ahead:]
    (at,) = np.nonzero(wanted.reshape(-1))
    weights = wanted.reshape(-1)[at]
    return Targets(
        move(at, device),
        move(following.reshape(-1)[at].astype(np.int64), device),
        move(weights / weights.sum(), device),
    )


def move(x: np.ndarray, device: torch.device) -> Tensor:
    made = torch.from_numpy(np.ascontiguousarray(x))
    return made.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else made


def step_of(batch: np.ndarray, device: torch.device) -> Step:
    """From uint16 [B, 3, T]."""
    return Step(
        move(batch[:, 0].astype(np.int64), device),
        move(batch[:, 2].astype(np.int32), device),
        targets(batch, 1, device),
        targets(batch, 2, device),
    )


class Feed:
    """Starts `workers` processes (before CUDA is touched: they are forked); iterate over batches, then `close`."""

    def __init__(self, tokenizer: Path, corpora: Path | None, seed: int, workers: int, batch: int, length: int) -> None:
        if batch % workers:
            raise ValueError(f"a batch of {batch} rows cannot be shared by {workers} workers; choose a multiple")
        context = multiprocessing.get_context("fork")
        self.queues = [context.Queue(4) for _ in range(workers)]
        self.processes = [
            context.Process(
                target=produce, args=(q, tokenizer, corpora, seed, i, batch // workers, length), daemon=True
            )
            for i, q in enumerate(self.queues)
        ]
        for process in self.processes:
            process.start()

    def batches(self) -> Iterator[np.ndarray]:
        ready: queue.Queue[np.ndarray] = queue.Queue(6)

        def collect() -> None:
            while True:
                ready.put(np.concatenate([q.get() for q in self.queues]))

        threading.Thread(target=collect, daemon=True).start()
        while True:
            yield ready.get()

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
