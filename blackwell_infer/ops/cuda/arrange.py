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


def tiles_cost(call: Call) -> Cost:
    """The tiles that are read, and what comes out."""
    return Cost(call.nbytes("w", "out"))


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
    Param("w", "in", "uint8"), Param("ids", "in", "int32"), Param("out", "out"), Param("V", "i32"), Param("K", "i32"),
    Param("tiles", "i32")), {"FORMAT": tuple(FRAGMENTS), "ACT": tuple(ACTS.values())}, cost=rows_cost)
FRAGMENT_TILES = Kernel("linear/dense.cu", "fragment_tiles", (
    Param("w", "in", "uint8"), Param("out", "out"), Param("rows", "i32"), Param("K", "i32"), Param("tiles", "i32")),
    {"FORMAT": tuple(FRAGMENTS), "ACT": tuple(ACTS.values())}, cost=tiles_cost)
KERNELS = (ARRANGE, FRAGMENT_ROWS, FRAGMENT_TILES)


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


def fragment_rows(q: Queue, op: str, w: Weight, ids: Array, out: Tensor) -> None:
    """Rows `ids` of w in fragment order into out [n, K]."""
    (count, k), act = out.shape, act_of(q, op, w, out)
    if out.size:
        q.launch(FRAGMENT_ROWS.variant(FORMAT=w.format.removesuffix(SUFFIX), ACT=act), (count, -(-k // 1024), 1),
                 (256, 1, 1), w.parts[0], ids, out, w.shape[0], k, -(-k // COLS), pdl=True)


def fragment_tiles(q: Queue, op: str, w: Weight, first: int, out: Tensor) -> None:
    """Rows `first`, a multiple of 16, and following of w in fragment order into out [n, K]."""
    (count, k), act, form = out.shape, act_of(q, op, w, out), w.format.removesuffix(SUFFIX)
    assert first % ROWS == 0
    wide = -(-k // COLS)
    tiles, size = -(-count // ROWS) * wide, FRAGMENTS[form].tile_bytes
    if out.size:
        begin = first // ROWS * wide * size
        q.launch(FRAGMENT_TILES.variant(FORMAT=form, ACT=act), (-(-tiles // 4), 1, 1), (128, 1, 1),
                 w.parts[0][begin:begin + tiles * size], out, count, k, wide, pdl=True)


def act_of(q: Queue, op: str, w: Weight, out: Tensor) -> str:
    """The kernels' name for the type of `out`. KernelError: there is none."""
    act = ACTS.get(out.dtype.name)
    if act is None:
        raise KernelError(f"{op}: no kernel for {w.format} weights and {out.dtype.name} activations on {q.arch}; there "
                          f"are kernels for activations {', '.join(ACTS)}")
    return act
