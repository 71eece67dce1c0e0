"""Launchers of ptx/recurrent: Gated DeltaNet layers."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.types import Array


def gated_delta_(q: Queue, state: Recurrent, proj: Array, batch: Batch, params: DeltaParams) -> Array:
    """See `ops.api.Ops.gated_delta_`."""
    raise KernelError(f"gated_delta_: no kernel on {q.arch}; the NumPy backend has it")
