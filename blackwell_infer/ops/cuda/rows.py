"""Launchers of ptx/linear/rows.cu: rows of a weight matrix as activations (embedding, dequantisation)."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.arrange import fragment_rows, fragment_tiles
from blackwell_infer.ops.cuda.parts import WEIGHT, pointers
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import SUFFIX
from blackwell_infer.types import Array

FORMATS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k", "nvfp4", "nvfp4_f16", "mxfp4", "mxfp8", "fp8",
           "fp8_block")
ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def looked_up(call: Call) -> Cost:
    """As many rows of the V of a weight as the result has, and the result."""
    stored = call.nbytes("w", "scales", "factors") * call.shape("out")[0] // call.number("V")
    return Cost(stored + call.nbytes("ids", "out"))


WEIGHT_ROWS = Kernel("linear/rows.cu", "weight_rows", (
    *WEIGHT, Param("ids", "in", "int32"), Param("out", "out"), Param("first", "i32"), Param("V", "i32"),
    Param("K", "i32")), {"FORMAT": FORMATS, "ACT": tuple(ACTS.values())}, cost=looked_up)

ROWS = {(form, dtype): WEIGHT_ROWS.variant(FORMAT=form, ACT=act) for form in FORMATS for dtype, act in ACTS.items()}


def embed(q: Queue, table: Weight, ids: Array, dtype: str) -> Array:
    """Rows of `table` [V, H] at ids [T] int32 -> [T, H] of dtype; an id outside [0, V) gives zeros."""
    tokens, hidden = ids.shape[0], table.shape[1]
    out = q.empty((tokens, hidden), np.dtype(dtype))
    if table.format.endswith(SUFFIX):
        fragment_rows(q, "embed", table, ids, out)
    else:
        weight_rows(q, "embed", table, ids, 0, out)
    return out


def dequantize(q: Queue, w: Weight, first: int, out: Tensor) -> None:
    """Rows `first`, a multiple of 16, and following of w [N, K] into out [n, K]."""
    if w.format.endswith(SUFFIX):
        fragment_tiles(q, "dequantize", w, first, out)
    else:
        weight_rows(q, "dequantize", w, None, first, out)


def weight_rows(q: Queue, op: str, w: Weight, ids: Array | None, first: int, out: Tensor) -> None:
    """Rows `ids`, or `first` and following, of w as it is stored into out [n, K]."""
    (count, k), rows = out.shape, w.shape[0]
    v = choose(q, op, ROWS, w.format, out.dtype)
    work = k // 8 if k % 8 == 0 else k
    threads = min(-(-work // 32) * 32, 256)
    if out.size:
        q.launch(v, (count, 1, 1), (threads, 1, 1), *pointers(w), ids, out, first, rows, k, pdl=True)


def choose(q: Queue, op: str, table: Mapping[tuple[str, str], Variant], form: str, dtype: np.dtype[Any]) -> Variant:
    """The variant for a weight format and an activation type. KernelError names what is missing and what exists."""
    v = table.get((form, dtype.name))
    if v is None:
        formats, dtypes = (sorted({key[i] for key in table}) for i in (0, 1))
        raise KernelError(f"{op}: no kernel for {form} weights and {dtype.name} activations on {q.arch}; there are "
                          f"kernels for weights {', '.join(formats)} and activations {', '.join(dtypes)}")
    return v
