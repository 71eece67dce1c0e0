"""Runs a step's work on a backend and brings the results to the host. The engine above sees only this protocol."""
from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.device.queue import Memory
from blackwell_infer.engine import step
from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.step import Model
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Sampled


class Result(msgspec.Struct, frozen=True):
    """What a step made, on the host: sampled tokens, log-probabilities [S] of scored ones, their logits [S, V]."""

    sampled: Sampled | None
    logprobs: np.ndarray[Any, Any] | None
    logits: np.ndarray[Any, Any] | None


class Runner(Protocol):
    """One model on one backend."""

    def run(self, work: Work) -> Result:
        """Run one step to its end. DeviceError and its kind if the backend fails."""
        ...

    def close(self) -> None:
        """Release the backend. Idempotent."""
        ...


class ModelRunner:
    """`Runner` over any pair of `Memory` and `Ops`: HostMemory with ops.ref, or a queue with CudaOps on it."""

    def __init__(self, memory: Memory, ops: Ops, model: Model) -> None:
        self.memory = memory
        self.ops = ops
        self.model = model

    def run(self, work: Work) -> Result:
        memory, ops, model = self.memory, self.ops, self.model
        sampled = scored = None
        with memory.step():
            for r in work.reloads:
                ops.penalty_load_(model.penalties, r.slot, memory.put(r.prompt), memory.put(r.answer))
            batch = put_arrays(memory, work.batch)
            hidden = step.forward(ops, model, batch)
            if work.params is not None:
                sampled = step.sample(ops, model, hidden, batch.outputs, put_arrays(memory, work.params))
            if len(work.scored):
                scored = step.score(ops, model, hidden, memory.put(work.scored), memory.put(work.targets))
            chosen = None if sampled is None else [memory.download(a) for a in (
                sampled.tokens, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)]
            logprobs = None if scored is None else memory.download(scored.logprobs)
            logits = memory.download(scored.logits) if scored is not None and work.want_logits else None
        return Result(
            sampled=None if chosen is None else Sampled(*(c.result() for c in chosen)),
            logprobs=None if logprobs is None else logprobs.result(),
            logits=None if logits is None else logits.result())

    def close(self) -> None:
        self.memory.close()


def put_arrays(memory: Memory, struct: Any) -> Any:
    """A copy of a struct whose host arrays are on the backend."""
    values = {name: memory.put(value) if isinstance(value, np.ndarray) else value
              for name, value in msgspec.structs.asdict(struct).items()}
    return type(struct)(**values)
