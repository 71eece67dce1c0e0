"""Launchers of ptx/attention: causal attention over a paged cache, and the fusion with what stands before it.

Tensor cores serve f16 and bf16 with head_dim 64, 128, 256 and 512; a row of up to `FEW` new tokens goes through the
decode kernel and a longer one through the prefill kernel (head_dim 512: the generic one), chosen on the device row by
row, so that a row's bits depend on no other row. Everything else goes through the generic kernel, one query at a time.
`few`, an argument of the launchers, is FEW, or MANY for results that do not depend on how many tokens come at once.
"""
from __future__ import annotations

import math

import msgspec
import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.spec import PagedKV
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.cuda.rope import qkv_rope_append_
from blackwell_infer.ops.cuda.staged import room, together
from blackwell_infer.quant.lanes import COLS
from blackwell_infer.types import Array

SPLIT = 256
"""Keys of one split (ptx/attention/softmax.cuh)"""
FEW = 16
"""New tokens of a row up to which the decode kernel serves it"""
MANY = 1 << 30
"""For `few`: rows of any length"""
PARTS_BYTES = 64 << 20
"""Most scratch memory for splits that run side by side; beyond it each query tile walks its splits in order"""
JOINED = 16
"""Splits of a bucket up to which the decode kernel merges them itself, by the CTA that arrives last; more are merged by
a launch of their own, in which every head has a CTA"""
COUNTERS = 16384
"""Groups of CTAs that the decode kernel can count (ptx/attention/decode.cu)"""
FUSED_SHARED = min(SHARED_LIMIT.values())
"""Shared memory up to which norms, rotation and append are fused into the decode kernel: the same on every
architecture"""
RESERVED = 1024
"""Bytes of shared memory left to the decode kernel's own barriers and sums"""
THREADS = 128
COMBINING = 768
"""Threads of attend_combine"""
MAX_DIM = 512
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ANY = ("f32", "f16", "bf16")
HALVES = ("f16", "bf16")


class Tile(msgspec.Struct, frozen=True):
    """Queries and keys of one prefill tile."""

    rows: int
    keys: int


TILES = {64: Tile(128, 64), 128: Tile(128, 64), 256: Tile(64, 32)}
"""head_dim -> tile of the prefill kernel"""
DECODED = (64, 128, 256, 512)
"""head_dims of the decode kernel"""
QUERIES = (8, 16)
"""Queries of one decode tile"""
LARGE = (64, 128)
"""head_dims with both tiles; of more the large one does not fit in registers"""
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
    (tokens, wide), (rows, width) = call.shape("out"), call.shape("pages")
    _, _, kv_heads, page, dim = call.shape("cache")
    heads = wide // dim
    room = width * page
    keys = call.keys(rows, room, call.number("window"))
    parts = call.nbytes("parts_o", "parts_ml") if "parts_o" in call.args else 0
    nbytes = keys * 2 * kv_heads * dim * element(call, "cache") + call.nbytes("q", "out", "pages")
    if "qkv" in call.args:
        made = call.nbytes("qkv") // max(call.number("columns"), 1) * (heads + 2 * kv_heads) * dim
        nbytes += made + call.nbytes("q_norm", "k_norm")
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
    return attended(call) if call.shape("out")[0] <= call.number("few") * call.shape("pages")[0] else Cost()


def many_attended(call: Call) -> Cost:
    """The part of rows of more than `few` new tokens."""
    return Cost() if call.shape("out")[0] <= call.number("few") * call.shape("pages")[0] else attended(call)


def combined(call: Call) -> Cost:
    """Results of the splits that are in use, of tokens that are a row each, and the whole."""
    tokens, room = call.shape("out")[0], call.number("S") * SPLIT
    parts = call.nbytes("parts_o", "parts_ml") * call.keys(tokens, room, call.number("window"))
    return Cost(parts // (tokens * room) + call.nbytes("out"))


PARTS = (Param("parts_o", "out", "float32"), Param("parts_ml", "out", "float32"))
SCORES = (Param("scale", "f32"), Param("cap", "f32"))
DECODE = Kernel("attention/decode.cu", "attend_decode", (
    Param("q", "in"), Param("qkv", "in"), Param("cache", "inout"), Param("starts", "in", "int32"),
    Param("positions", "in", "int32"), Param("pages", "in", "int32"), Param("angles", "in", "float32"),
    Param("q_norm", "in", "float32"), Param("k_norm", "in", "float32"), Param("out", "out"),
    Param("blocks", "out", "uint8"), *PARTS, Param("T", "i32"), Param("R", "i32"), Param("P", "i32"),
    Param("columns", "i32"), Param("heads", "i32"), Param("kv_heads", "i32"), Param("few", "i32"), Param("half", "i32"),
    Param("room", "i32"), Param("stages", "i32"), Param("joins", "i32"), *SCORES, Param("eps", "f32"),
    Param("window", "i32")), {"ACT": HALVES, "D": DECODED, "QUERIES": QUERIES},
    lambda d: int(d["D"]) in LARGE or d["QUERIES"] == QUERIES[0], cost=few_attended)
PREFILL = Kernel("attention/prefill.cu", "attend_prefill", (
    Param("q", "in"), Param("cache", "in"), Param("starts", "in", "int32"), Param("positions", "in", "int32"),
    Param("pages", "in", "int32"), Param("out", "out"), Param("lengths", "in", "int32"), Param("P", "i32"),
    Param("heads", "i32"), Param("kv_heads", "i32"), Param("few", "i32"), *SCORES, Param("window", "i32")),
    {"ACT": HALVES, "D": (64, 128, 256), "ROWS": (64, 128), "KEYS": (32, 64), "CAPPED": (0, 1)},
    lambda d: TILES[int(d["D"])] == Tile(int(d["ROWS"]), int(d["KEYS"])), cost=many_attended)
GENERAL = Kernel("attention/generic.cu", "attend_generic", (
    Param("q", "in"), Param("cache", "in"), Param("rows", "in", "int32"), Param("starts", "in", "int32"),
    Param("positions", "in", "int32"), Param("pages", "in", "int32"), Param("out", "out"), *PARTS, Param("P", "i32"),
    Param("kv_heads", "i32"), Param("D", "i32"), Param("few", "i32"), *SCORES, Param("window", "i32")),
    {"ACT": ANY, "KV": ANY}, cost=attended)
COMBINE = Kernel("attention/combine.cu", "attend_combine", (
    Param("parts_o", "in", "float32"), Param("parts_ml", "in", "float32"), Param("rows", "in", "int32"),
    Param("positions", "in", "int32"), Param("out", "out"), Param("blocks", "out", "uint8"), Param("T", "i32"),
    Param("heads", "i32"), Param("S", "i32"), Param("D", "i32"), Param("columns", "i32"), Param("window", "i32")),
    {"ACT": ANY}, cost=combined)
KERNELS = (DECODE, PREFILL, GENERAL, COMBINE)


class Fusion(msgspec.Struct, frozen=True):
    """What the decode kernel needs to make queries, keys and values itself, see `ops.api.Ops.attention_`."""

    qkv: Array
    angles: Array
    q_norm: Array | None
    k_norm: Array | None
    eps: float


class Scores(msgspec.Struct, frozen=True):
    """How products become scores, in base 2: a factor, then cap * tanh if `cap` is not 0; `window` as in the op."""

    scale: float
    cap: float
    window: int


def scores(scale: float, softcap: float, window: int) -> Scores:
    """KernelError: a scale that is not positive, or a soft cap below 0."""
    if not scale > 0 or not softcap >= 0:
        raise KernelError(f"attend: the scale of the scores is {scale} and their soft cap {softcap}; the scale must be "
                          "positive, the cap positive or 0 for none")
    base = math.log2(math.e)
    return Scores(scale / softcap, softcap * base, window) if softcap else Scores(scale * base, 0.0, window)


def attention_(q: Queue, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int, scale: float,
               window: int, softcap: float, q_norm: Array | None, k_norm: Array | None, eps: float,
               few: int = FEW) -> Array:
    """See `ops.api.Ops.attention_`: one launch or two if no row brings more than `FEW` tokens and pairs of dims turn in
    fours, with the bits of the two ops."""
    tokens, dim = qkv.shape[0], kv.data.shape[4]
    act = TENSOR.get((qkv.dtype.name, kv.format))
    walks = _splits(tokens, heads, dim, batch.max_length) == 1 and batch.max_length > SPLIT
    if (act is None or dim not in DECODED or batch.max_new > FEW or not tokens or rope_table.shape[2] % 4
            or _shared(dim, 1, batch.max_new, walks, QUERIES[0]) > FUSED_SHARED):
        x = qkv_rope_append_(q, kv, qkv, batch, rope_table, heads, q_norm, k_norm, eps)
        return attend(q, x, kv, batch, scale, window, softcap, few)
    out = q.empty((tokens, heads * dim), qkv.dtype)
    return _decode(q, act, Fusion(qkv, rope_table, q_norm, k_norm, eps), None, kv, batch,
                   scores(scale, softcap, window), out, FEW)


def attend(q: Queue, x: Array, kv: PagedKV, batch: Batch, scale: float, window: int, softcap: float = 0.0,
           few: int = FEW) -> Array:
    """See `ops.api.Ops.attend`; x is the query array. KernelError: no kernel for these types, or a bad scale."""
    tokens, heads, dim = x.shape
    how = scores(scale, softcap, window)
    key = (x.dtype.name, kv.format)
    if key not in GENERIC or dim % 2 or not 8 <= dim <= MAX_DIM:
        raise KernelError(f"attend: no kernel for {x.dtype.name}, cache {kv.format}, head_dim {dim} on {q.arch}; it "
                          f"exists for {', '.join(ACT)}, cache {', '.join(ANY)}, even head_dim 8 to {MAX_DIM}")
    out = q.empty((tokens, heads * dim), x.dtype)
    if not tokens:
        return out
    if key not in TENSOR or dim not in DECODED:
        _generic(q, GENERIC[key], x, kv, batch, how, out, 0)
        return out
    if batch.max_new > few and dim in TILES:
        _prefill(q, TENSOR[key], x, kv, batch, how, out)
    elif batch.max_new > few:
        _generic(q, GENERIC[key], x, kv, batch, how, out, FEW)
    return _decode(q, TENSOR[key], None, x, kv, batch, how, out, few)


def _shared(dim: int, stages: int, new: int, walks: bool, queries: int) -> int:
    """Bytes of dynamic shared memory of the decode kernel; `new` is 0 if queries are given."""
    sets, step = max(4 * 128 // max(dim, 128), 1), 16 if dim > 256 else 32
    ring = stages * sets * 2 * step * dim * 2
    return ring + 2 * queries * dim + 4 * dim * new + dim * (8 * queries if walks else 16 if new else 0)


def _decode(q: Queue, act: str, made: Fusion | None, x: Array | None, kv: PagedKV, batch: Batch, how: Scores,
            out: Tensor, few: int) -> Array:
    """Rows of up to `few` new tokens: with `made` from qkv, else from the queries x. They come back staged if there
    are no other rows and the columns of a KV head's queries are whole blocks."""
    tokens, kv_heads, dim = out.shape[0], kv.data.shape[2], kv.data.shape[4]
    heads, rows, width = out.shape[1] // dim, batch.pages.shape[0], batch.pages.shape[1]
    group, most = heads // kv_heads, min(batch.max_new, few)
    splits = _splits(tokens, heads, dim, batch.max_length) if batch.max_new <= few else 1
    parts_o, parts_ml = _parts(q, tokens, heads, splits, dim)
    blocks = None if group * dim % COLS or batch.max_new > few else room(q, out)
    walks, new = splits == 1 and batch.max_length > SPLIT, batch.max_new if made else 0
    # Both sizes of a tile give the same bits; the larger one reads keys and values once for more queries.
    queries = QUERIES[dim in LARGE and most * group > QUERIES[0]]
    groups = kv_heads * -(-most * group // queries)
    joins = splits == 1 or (splits <= JOINED and rows * groups <= COUNTERS)
    # A CTA that has an SM to itself may as well hold all its keys at once.
    deep = (splits * groups * rows <= q.sm_count
            and _shared(dim, 2, new, walks, queries) <= SHARED_LIMIT[q.arch] - RESERVED)
    stages = 2 if deep else 1
    q.launch(DECODE.variant(ACT=act, D=dim, QUERIES=queries), (splits, groups, rows + joins),
             (THREADS, 1, 1), x, made.qkv if made else None, kv.data, batch.starts, batch.positions, batch.pages,
             made.angles if made else None, made.q_norm if made else None, made.k_norm if made else None, out,
             blocks if joins else None, parts_o, parts_ml, tokens, rows, width,
             made.qkv.shape[1] if made else 0, heads, kv_heads, few,
             made.angles.shape[2] if made else 0, new, stages, int(joins), how.scale, how.cap,
             made.eps if made else 0.0, how.window, smem=_shared(dim, stages, new, walks, queries), pdl=True)
    if not joins:
        _combine(q, act, parts_o, parts_ml, batch, out, blocks, splits, dim, how.window)
    return together(out, blocks)


def _prefill(q: Queue, act: str, x: Array, kv: PagedKV, batch: Batch, how: Scores, out: Array) -> None:
    heads, dim = x.shape[1:]
    tile, kv_heads, rows = TILES[dim], kv.data.shape[2], batch.pages.shape[0]
    grid = (-(-batch.max_new * (heads // kv_heads) // tile.rows), kv_heads, rows)
    variant = PREFILL.variant(ACT=act, D=dim, ROWS=tile.rows, KEYS=tile.keys, CAPPED=int(how.cap > 0))
    q.launch(variant, grid, (2 * tile.rows, 1, 1), x, kv.data, batch.starts, batch.positions, batch.pages, out,
             batch.lengths, batch.pages.shape[1], heads, kv_heads, FEW, how.scale, how.cap, how.window,
             smem=(tile.rows + 4 * tile.keys) * dim * 2, pdl=True)


def _generic(q: Queue, types: tuple[str, str], x: Array, kv: PagedKV, batch: Batch, how: Scores, out: Tensor,
             few: int) -> None:
    """Rows of more than `few` new tokens."""
    tokens, heads, dim = x.shape
    splits = 1 if few else _splits(tokens, heads, dim, batch.max_length)
    parts_o, parts_ml = _parts(q, tokens, heads, splits, dim)
    q.launch(GENERAL.variant(ACT=types[0], KV=types[1]), (tokens, heads, splits), (THREADS, 1, 1), x, kv.data,
             batch.rows, batch.starts, batch.positions, batch.pages, out, parts_o, parts_ml, batch.pages.shape[1],
             kv.data.shape[2], dim, few, how.scale, how.cap, how.window, smem=-(-dim // 4) * 16, pdl=True)
    _combine(q, types[0], parts_o, parts_ml, batch, out, None, splits, dim, how.window)


def _splits(tokens: int, heads: int, dim: int, keys: int) -> int:
    """Splits that run side by side: all of them if their results fit in PARTS_BYTES, else one CTA walks them."""
    splits = -(-keys // SPLIT)
    return splits if tokens * heads * splits * (dim + 2) * 4 <= PARTS_BYTES else 1


def _parts(q: Queue, tokens: int, heads: int, splits: int, dim: int) -> tuple[Array | None, Array | None]:
    """Scratch for the results of splits, if there is more than one."""
    if splits <= 1:
        return None, None
    return q.empty((tokens, heads, splits, dim), np.float32), q.empty((tokens, heads, splits, 2), np.float32)


def _combine(q: Queue, act: str, parts_o: Array | None, parts_ml: Array | None, batch: Batch, out: Tensor,
             blocks: Tensor | None, splits: int, dim: int, window: int) -> None:
    """A CTA takes as many of up to 4 heads as fill a block of 256 columns, or a block of a head."""
    if parts_o is None:
        return
    tokens, wide = out.shape
    columns = COLS if dim >= COLS or (dim >= COLS // 4 and COLS % dim == 0) else dim
    grid = wide // dim * -(-dim // columns) if dim > columns else -(-wide // columns)
    q.launch(COMBINE.variant(ACT=act), (tokens, grid, 1), (COMBINING, 1, 1), parts_o, parts_ml, batch.rows,
             batch.positions, out, blocks, tokens, wide // dim, splits, dim, columns, window, pdl=True)
