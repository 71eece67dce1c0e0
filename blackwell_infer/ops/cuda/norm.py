"""Launchers of ptx/norm: RMS norm, alone and after the residual sum."""
from __future__ import annotations

from blackwell_infer.device.queue import Dim, Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import moved
from blackwell_infer.kernels.kernel import Kernel, Param, Variant
from blackwell_infer.ops.cuda.staged import plain, room, together
from blackwell_infer.quant.lanes import COLS
from blackwell_infer.types import Array

SOURCE = "norm/rms_norm.cu"
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
DEFINES = {"ACT": ("f32", "f16", "bf16")}

RMS_NORM = Kernel(SOURCE, "rms_norm", (
    Param("x", "in"), Param("weight", "in", "float32"), Param("y", "out"), Param("blocks", "out", "uint8"),
    Param("T", "i32"), Param("H", "i32"),
    Param("eps", "f32")), DEFINES, cost=moved)
RMS_NORM_PAIR = Kernel(SOURCE, "rms_norm_pair", (
    Param("a", "in"), Param("b", "in"), Param("weight_a", "in", "float32"), Param("weight_b", "in", "float32"),
    Param("y", "out"), Param("blocks", "out", "uint8"), Param("T", "i32"), Param("H", "i32"), Param("eps", "f32")),
    DEFINES, cost=moved)
ADD_RMS_NORM = Kernel(SOURCE, "add_rms_norm", (
    Param("x", "in"), Param("residual", "in"), Param("weight", "in", "float32"), Param("s", "out"), Param("y", "out"),
    Param("blocks", "out", "uint8"), Param("T", "i32"), Param("H", "i32"), Param("eps", "f32")), DEFINES, cost=moved)
KERNELS = (RMS_NORM, RMS_NORM_PAIR, ADD_RMS_NORM)


def rms_norm(q: Queue, x: Array, weight: Array, eps: float) -> Array:
    tokens, width = x.shape
    y = q.empty((tokens, width), x.dtype)
    blocks = room(q, y)
    if tokens:
        grid, block = geometry(tokens, width)
        q.launch(variant(q, RMS_NORM, x), grid, block, x, weight, y, blocks, tokens, width, eps, pdl=True)
    return together(y, blocks)


def rms_norm_pair(q: Queue, a: Array, b: Array, weight_a: Array, weight_b: Array, eps: float) -> Array:
    tokens, width = a.shape
    y = q.empty((tokens, 2 * width), a.dtype)
    blocks = None if width % COLS else room(q, y)
    if tokens:
        (grid, _, _), block = geometry(tokens, width, 512)
        q.launch(variant(q, RMS_NORM_PAIR, a), (grid, 2, 1), block, plain(a), plain(b), weight_a, weight_b, y, blocks,
                 tokens, width, eps, pdl=True)
    return together(y, blocks)


def add_rms_norm(q: Queue, x: Array, residual: Array, weight: Array, eps: float) -> tuple[Array, Array]:
    tokens, width = x.shape
    s, y = q.empty((tokens, width), x.dtype), q.empty((tokens, width), x.dtype)
    blocks = room(q, y)
    if tokens:
        grid, block = geometry(tokens, width)
        q.launch(variant(q, ADD_RMS_NORM, x), grid, block, x, residual, weight, s, y, blocks, tokens, width, eps,
                 pdl=True)
    return s, together(y, blocks)


def geometry(tokens: int, width: int, most: int = 1024) -> tuple[Dim, Dim]:
    """Grid and block: 8 elements a thread, up to `most` threads, a row a CTA; rows of up to 256 elements take a warp
    each, 8 to a CTA."""
    threads = min(-(-width // 256) * 32, most)
    rows = 8 if threads == 32 else 1
    return (-(-tokens // rows), 1, 1), (threads, rows, 1)


def variant(q: Queue, kernel: Kernel, x: Array) -> Variant:
    """The kernel for x's type. KernelError names what exists."""
    act = ACT.get(x.dtype.name)
    if act is None:
        raise KernelError(f"{kernel.entry}: no kernel for {x.dtype.name} on {q.arch}; it exists for {', '.join(ACT)}")
    return kernel.variant(ACT=act)
