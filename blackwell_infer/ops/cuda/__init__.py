"""The ops on a queue, through kernels."""
from __future__ import annotations

from blackwell_infer.ops.cuda.table import CudaOps

__all__ = ["CudaOps"]
