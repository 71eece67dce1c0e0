"""Launchers of ptx/attention: causal attention over a paged cache.

Tensor cores serve f16 and bf16 with head_dim 64, 128 and 256; a row of up to `FEW` new tokens goes through the decode
kernel and a longer one through the prefill kernel, chosen on the device row by row, so that a row's bits depend on no
other row. Everything else goes through the generic kernel, one query at a time.
"""
from __future__ import annotations

import math

import msgspec
import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.spec import PagedKV
from blackwell_infer.ops.batch import Batch
from blackwell_infer.types import Array

SPLIT = 256
"""Keys of one split (ptx/attention/softmax.cuh)"""
FEW = 16
"""New tokens of a row up to which the decode kernel serves it"""
PARTS_BYTES = 64 << 20
"""Most scratch memory for splits that run side by side; beyond it each query tile walks its splits in order"""
THREADS = 128
MAX_DIM = 512
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ANY = ("f32", "f16", "bf16")
HALVES = ("f16", "bf16")


class Tile(msgspec.Struct, frozen=True):
    """Queries and keys of one prefill tile."""

    rows: int
    keys: int


TILES = {64: Tile(128, 64), 128: Tile(128, 64), 256: Tile(64, 32)}
"""head_dim -> tile of the tensor-core kernels"""
TENSOR = {("float16", "f16"): "f16", ("bfloat16", "bf16"): "bf16"}
"""(activation, cache) -> type of the tensor-core kernels"""
GENERIC = {
    ("float32", "f32"): ("f32", "f32"), ("float32", "f16"): ("f32", "f16"), ("float32", "bf16"): ("f32", "bf16"),
    ("float16", "f32"): ("f16", "f32"), ("float16", "f16"): ("f16", "f16"), ("float16", "bf16"): ("f16", "bf16"),
    ("bfloat16", "f32"): ("bf16", "f32"), ("bfloat16", "f16"): ("bf16", "f16"),
    ("bfloat16", "bf16"): ("bf16", "bf16")}
"""(activation, cache) -> types of the generic kernel"""


def attended(call: Call) -> Cost:
    """Keys and values of every row once, queries, results, and the splits that are in use."""
    (tokens, heads, dim), (rows, width) = call.shape("q"), call.shape("pages")
    _, _, kv_heads, page, _ = call.shape("cache")
    room = width * page
    keys = call.keys(rows, room, call.number("window"))
    parts = call.nbytes("parts_o", "parts_ml") if "parts_o" in call.args else 0
    nbytes = keys * 2 * kv_heads * dim * element(call, "cache") + call.nbytes("q", "out", "pages")
    # A row's queries are its newest tokens: on average half of them see each other.
    pairs = keys * tokens / rows - tokens * (tokens / rows - 1) / 2
    return Cost(nbytes + parts * keys // (rows * room), int(4 * heads * dim * pairs))


def element(call: Call, name: str) -> int:
    """Bytes of one element of an array."""
    value = call.args[name]
    assert value is not None and not isinstance(value, int | float)
    return value.dtype.itemsize


def few_attended(call: Call) -> Cost:
    """The part of rows of up to `few` new tokens."""
    return attended(call) if call.shape("q")[0] <= call.number("few") * call.shape("pages")[0] else Cost()


def many_attended(call: Call) -> Cost:
    """The part of rows of more than `few` new tokens."""
    return Cost() if call.shape("q")[0] <= call.number("few") * call.shape("pages")[0] else attended(call)


def combined(call: Call) -> Cost:
    """Results of the splits that are in use, of tokens that are a row each, and the whole."""
    tokens, room = call.shape("out")[0], call.number("S") * SPLIT
    parts = call.nbytes("parts_o", "parts_ml") * call.keys(tokens, room, call.number("window"))
    return Cost(parts // (tokens * room) + call.nbytes("out"))


PARTS = (Param("parts_o", "out", "float32"), Param("parts_ml", "out", "float32"))
RAGGED = (
    Param("q", "in"), Param("cache", "in"), Param("starts", "in", "int32"), Param("positions", "in", "int32"),
    Param("pages", "in", "int32"), Param("out", "out"))
DECODE = Kernel("attention/decode.cu", "attend_decode", (
    *RAGGED, *PARTS, Param("T", "i32"), Param("R", "i32"), Param("P", "i32"), Param("heads", "i32"),
    Param("kv_heads", "i32"), Param("few", "i32"), Param("scale", "f32"), Param("window", "i32")),
    {"ACT": HALVES, "D": (64, 128, 256)}, cost=few_attended)
PREFILL = Kernel("attention/prefill.cu", "attend_prefill", (
    *RAGGED, Param("lengths", "in", "int32"), Param("P", "i32"), Param("heads", "i32"), Param("kv_heads", "i32"),
    Param("few", "i32"), Param("scale", "f32"), Param("window", "i32")),
    {"ACT": HALVES, "D": (64, 128, 256), "ROWS": (64, 128), "KEYS": (32, 64)},
    lambda d: TILES[int(d["D"])] == Tile(int(d["ROWS"]), int(d["KEYS"])), cost=many_attended)
GENERAL = Kernel("attention/generic.cu", "attend_generic", (
    Param("q", "in"), Param("cache", "in"), Param("rows", "in", "int32"), Param("positions", "in", "int32"),
    Param("pages", "in", "int32"), Param("out", "out"), *PARTS, Param("P", "i32"), Param("kv_heads", "i32"),
    Param("D", "i32"), Param("scale", "f32"), Param("window", "i32")), {"ACT": ANY, "KV": ANY},
    cost=attended)
COMBINE = Kernel("attention/combine.cu", "attend_combine", (
    Param("parts_o", "in", "float32"), Param("parts_ml", "in", "float32"), Param("rows", "in", "int32"),
    Param("positions", "in", "int32"), Param("out", "out"), Param("S", "i32"), Param("D", "i32"),
    Param("window", "i32")), {"ACT": ANY}, cost=combined)
KERNELS = (DECODE, PREFILL, GENERAL, COMBINE)


def attend(q: Queue, x: Array, kv: PagedKV, batch: Batch, scale: float, window: int) -> Array:
    """See `ops.api.Ops.attend`; x is the query array. KernelError: no kernel for these types, or scale <= 0."""
    tokens, heads, dim = x.shape
    if not scale > 0:
        raise KernelError(f"attend: the scale of the scores is {scale}; it must be positive")
    key = (x.dtype.name, kv.format)
    if key not in GENERIC or dim % 2 or not 8 <= dim <= MAX_DIM:
        raise KernelError(f"attend: no kernel for {x.dtype.name}, cache {kv.format}, head_dim {dim} on {q.arch}; it "
                          f"exists for {', '.join(ACT)}, cache {', '.join(ANY)}, even head_dim 8 to {MAX_DIM}")
    out = q.empty((tokens, heads * dim), x.dtype)
    if not tokens:
        return out
    tile = TILES.get(dim)
    if key in TENSOR and tile is not None:
        _tensor(q, TENSOR[key], tile, x, kv, batch, scale * math.log2(math.e), window, out)
    else:
        _generic(q, GENERIC[key], x, kv, batch, scale * math.log2(math.e), window, out)
    return out


def _tensor(q: Queue, act: str, tile: Tile, x: Array, kv: PagedKV, batch: Batch, scale: float, window: int,
            out: Array) -> None:
    tokens, heads, dim = x.shape
    kv_heads, rows, width = kv.data.shape[2], batch.pages.shape[0], batch.pages.shape[1]
    group = heads // kv_heads
    splits = _splits(tokens, heads, dim, batch.max_length) if batch.max_new <= FEW else 1
    parts_o, parts_ml = _parts(q, tokens, heads, splits, dim)
    tiles = -(-min(batch.max_new, FEW) * group // 16)
    ragged = (x, kv.data, batch.starts, batch.positions, batch.pages, out)
    if batch.max_new > FEW:
        grid = (-(-batch.max_new * group // tile.rows), kv_heads, rows)
        variant = PREFILL.variant(ACT=act, D=dim, ROWS=tile.rows, KEYS=tile.keys)
        q.launch(variant, grid, (2 * tile.rows, 1, 1), *ragged, batch.lengths, width, heads, kv_heads, FEW, scale,
                 window, smem=(tile.rows + 4 * tile.keys) * dim * 2, pdl=True)
    grid = (splits, kv_heads * tiles, rows if splits > 1 else rows + 1)
    q.launch(DECODE.variant(ACT=act, D=dim), grid, (THREADS * -(-dim // 128), 1, 1), *ragged, parts_o, parts_ml, tokens,
             rows, width, heads, kv_heads, FEW, scale, window, smem=352 * dim + 512, pdl=True)
    _combine(q, act, parts_o, parts_ml, batch, out, splits, heads, dim, window)


def _generic(q: Queue, types: tuple[str, str], x: Array, kv: PagedKV, batch: Batch, scale: float, window: int,
             out: Array) -> None:
    tokens, heads, dim = x.shape
    splits = _splits(tokens, heads, dim, batch.max_length)
    parts_o, parts_ml = _parts(q, tokens, heads, splits, dim)
    q.launch(GENERAL.variant(ACT=types[0], KV=types[1]), (tokens, heads, splits), (THREADS, 1, 1), x, kv.data,
             batch.rows, batch.positions, batch.pages, out, parts_o, parts_ml, batch.pages.shape[1],
             kv.data.shape[2], dim, scale, window, smem=-(-dim // 4) * 16, pdl=True)
    _combine(q, types[0], parts_o, parts_ml, batch, out, splits, heads, dim, window)


def _splits(tokens: int, heads: int, dim: int, keys: int) -> int:
    """Splits that run side by side: all of them if their results fit in PARTS_BYTES, else one CTA walks them."""
    splits = -(-keys // SPLIT)
    return splits if tokens * heads * splits * (dim + 2) * 4 <= PARTS_BYTES else 1


def _parts(q: Queue, tokens: int, heads: int, splits: int, dim: int) -> tuple[Array | None, Array | None]:
    """Scratch for the results of splits, if there is more than one."""
    if splits <= 1:
        return None, None
    return q.empty((tokens, heads, splits, dim), np.float32), q.empty((tokens, heads, splits, 2), np.float32)


def _combine(q: Queue, act: str, parts_o: Array | None, parts_ml: Array | None, batch: Batch, out: Array, splits: int,
             heads: int, dim: int, window: int) -> None:
    if parts_o is not None:
        q.launch(COMBINE.variant(ACT=act), (out.shape[0], heads, 1), (THREADS, 1, 1), parts_o, parts_ml, batch.rows,
                 batch.positions, out, splits, dim, window, pdl=True)
