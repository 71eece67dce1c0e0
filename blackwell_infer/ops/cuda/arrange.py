"""Launchers of ptx/linear/arrange.cu and dense.cu: matrices into fragment order (quant/fragments.py), and their
rows out of it as activations."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost, elements, moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.cuda.parts import WEIGHT, pointers
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, SUFFIX
from blackwell_infer.quant.lanes import COLS, ROWS
from blackwell_infer.types import Array

ACTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def rows_cost(call: Call) -> Cost:
    """The bytes of the rows that come out, and of what goes in for them."""
    out, w = call.args["out"], call.args["w"]
    assert isinstance(out, Array) and isinstance(w, Array)
    stored = w.shape[0] * elements(out) // (-(-call.number("V") // ROWS) * ROWS * call.number("tiles") * COLS)
    return Cost(call.nbytes("out", "ids") + stored)


ARRANGE = Kernel("linear/arrange.cu", "arrange", (
    *WEIGHT, Param("out", "out", "uint8"), Param("N", "i32"), Param("K", "i32"), Param("tiles", "i32")),
    {"FORMAT": tuple(FRAGMENTS)}, cost=moved)
FRAGMENT_ROWS = Kernel("linear/dense.cu", "fragment_rows", (
    Param("w", "in", "uint8"), Param("ids", "in", "int32"), Param("out", "out"), Param("first", "i32"),
    Param("V", "i32"), Param("K", "i32"), Param("tiles", "i32")),
    {"FORMAT": tuple(FRAGMENTS), "ACT": tuple(ACTS.values())}, cost=rows_cost)
KERNELS = (ARRANGE, FRAGMENT_ROWS)


def arrange(q: Queue, w: Weight, out: Array | None = None) -> Weight:
    """w in fragment order, a copy, in `out` if given; a format that has none stays as it is. KernelError: `out` is of
    another size."""
    form = FRAGMENTS.get(w.format)
    if form is None:
        return w
    (n, k), tiles = w.shape, -(-w.shape[1] // COLS)
    count = -(-n // ROWS) * tiles
    if out is None:
        out = q.empty((count * form.tile_bytes,), np.uint8)
    elif out.shape != (count * form.tile_bytes,):
        raise KernelError(f"arrange: {w.format} {list(w.shape)} takes {count * form.tile_bytes} bytes in tiles, "
                          f"there are {list(out.shape)}")
    if count:
        q.launch(ARRANGE.variant(FORMAT=w.format), (-(-count // 4), 1, 1), (128, 1, 1), *pointers(w), out, n, k, tiles)
    return Weight(w.format + SUFFIX, w.shape, (out,))


def fragment_rows(q: Queue, op: str, w: Weight, ids: Array | None, first: int, out: Tensor) -> None:
    """Rows `ids`, or `first` and following, of w in fragment order into out [n, K]."""
    (count, k), act = out.shape, ACTS.get(out.dtype.name)
    if act is None:
        raise KernelError(f"{op}: no kernel for {w.format} weights and {out.dtype.name} activations on {q.arch}; there "
                          f"are kernels for activations {', '.join(ACTS)}")
    if out.size:
        q.launch(FRAGMENT_ROWS.variant(FORMAT=w.format.removesuffix(SUFFIX), ACT=act), (count, -(-k // 1024), 1),
                 (256, 1, 1), w.parts[0], ids, out, first, w.shape[0], k, -(-k // COLS), pdl=True)
