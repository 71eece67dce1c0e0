"""Launchers of ptx/activation: gates of the MLP, of attention's result, of the expert that all tokens share; and the
choice of rows."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost, moved
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.staged import plain, room, together
from blackwell_infer.types import Array

THREADS = 128
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
DEFINES = {"ACT": ("f32", "f16", "bf16")}


def taken(call: Call) -> Cost:
    """As many rows as are chosen, read and written."""
    return Cost(2 * call.nbytes("y") + call.nbytes("index"))


def gated(call: Call) -> Cost:
    """As many gates as values."""
    return Cost(2 * call.nbytes("x") + call.nbytes("y", "blocks"))


SWIGLU = Kernel("activation/swiglu.cu", "swiglu", (
    Param("gate_up", "in"), Param("y", "out"), Param("blocks", "out", "uint8"), Param("T", "i32"),
    Param("I", "i32")), DEFINES, cost=moved)
TAKE_ROWS = Kernel("activation/take_rows.cu", "take_rows", (
    Param("x", "in"), Param("index", "in", "int32"), Param("y", "out"), Param("T", "i32"), Param("H", "i32")), DEFINES,
    cost=taken)
SIGMOID_GATE = Kernel("activation/sigmoid_gate.cu", "sigmoid_gate", (
    Param("x", "in"), Param("gates", "in"), Param("y", "out"), Param("blocks", "out", "uint8"), Param("T", "i32"),
    Param("N", "i32"), Param("W", "i32")), DEFINES, cost=gated)
ADD_GATED = Kernel("activation/add_gated.cu", "add_gated", (
    Param("x", "in"), Param("y", "in"), Param("h", "in"), Param("gate", "in", "float32"), Param("out", "out"),
    Param("H", "i32")), DEFINES, cost=moved)
KERNELS = (SWIGLU, SIGMOID_GATE, ADD_GATED, TAKE_ROWS)


def swiglu(q: Queue, gate_up: Array) -> Array:
    tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    y = q.empty((tokens, width), gate_up.dtype)
    blocks = room(q, y)
    if tokens:
        grid = (tokens, -(-width // (8 * THREADS)), 1)
        q.launch(variant(q, SWIGLU, gate_up), grid, (THREADS, 1, 1), gate_up, y, blocks, tokens, width, pdl=True)
    return together(y, blocks)


def sigmoid_gate(q: Queue, x: Array, gates: Array) -> Array:
    tokens, width = x.shape
    y = q.empty((tokens, width), x.dtype)
    blocks = room(q, y)
    if tokens:
        q.launch(variant(q, SIGMOID_GATE, x), (tokens, -(-width // (8 * THREADS)), 1), (THREADS, 1, 1), plain(x),
                 plain(gates), y, blocks, tokens, width, gates.shape[1], pdl=True)
    return together(y, blocks)


def add_gated(q: Queue, x: Array, y: Array, h: Array, gate: Array) -> Array:
    tokens, width = x.shape
    out = q.empty((tokens, width), x.dtype)
    if tokens:
        q.launch(variant(q, ADD_GATED, x), (tokens, 1, 1), (min(-(-width // 256) * 32, 1024), 1, 1), plain(x), plain(y),
                 plain(h), gate, out, width, pdl=True)
    return out


def take_rows(q: Queue, x: Array, index: Array, out: Array | None = None) -> Array:
    """An index outside [0, T) gives a row of zeros."""
    rows, width = index.shape[0], x.shape[1]
    y = q.empty((rows, width), x.dtype) if out is None else out
    if rows:
        grid = (rows, -(-width * x.dtype.itemsize // (16 * THREADS)), 1)
        q.launch(variant(q, TAKE_ROWS, x), grid, (THREADS, 1, 1), plain(x), index, y, x.shape[0], width, pdl=True)
    return y


def variant(q: Queue, kernel: Kernel, x: Array) -> Variant:
    """The kernel for x's type. KernelError names what exists."""
    act = ACT.get(x.dtype.name)
    if act is None:
        raise KernelError(f"{kernel.entry}: no kernel for {x.dtype.name} on {q.arch}; it exists for {', '.join(ACT)}")
    return kernel.variant(ACT=act)
