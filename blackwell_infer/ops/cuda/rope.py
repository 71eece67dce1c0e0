"""Launcher of ptx/rope: head norms, rotary embedding and the append to the paged cache in one launch."""
from __future__ import annotations

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.spec import PagedKV
from blackwell_infer.ops.batch import Batch
from blackwell_infer.types import Array

WARPS = 4
MAX_DIM = 512
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
FORMATS = {"f32": "f32", "f16": "f16", "bf16": "bf16"}


def appended(call: Call) -> Cost:
    """qkv, its angles and norms are read; queries, keys and values written."""
    (tokens, _, dim), cache = call.shape("q"), call.args["cache"]
    assert cache is not None and not isinstance(cache, int | float)
    angles = 4 * tokens * 2 * call.number("half")
    kept = tokens * 2 * call.number("kv_heads") * dim * cache.dtype.itemsize
    made = call.nbytes("q") * (call.number("heads") + 2 * call.number("kv_heads")) // call.number("heads")
    return Cost(made + call.nbytes("rows", "positions", "q", "q_norm", "k_norm") + angles + kept)


QKV_ROPE_APPEND = Kernel("rope/qkv_rope_append.cu", "qkv_rope_append", (
    Param("qkv", "in"), Param("rows", "in", "int32"), Param("positions", "in", "int32"), Param("pages", "in", "int32"),
    Param("table", "in", "float32"), Param("q_norm", "in", "float32"), Param("k_norm", "in", "float32"),
    Param("q", "out"), Param("cache", "inout"), Param("P", "i32"), Param("columns", "i32"), Param("heads", "i32"),
    Param("kv_heads", "i32"), Param("D", "i32"), Param("half", "i32"), Param("eps", "f32")),
    {"ACT": ("f32", "f16", "bf16"), "KV": ("f32", "f16", "bf16")}, cost=appended)
KERNELS = (QKV_ROPE_APPEND,)


def qkv_rope_append_(q: Queue, kv: PagedKV, qkv: Array, batch: Batch, rope_table: Array, heads: int,
                     q_norm: Array | None = None, k_norm: Array | None = None, eps: float = 0.0) -> Array:
    tokens, kv_heads, dim = qkv.shape[0], kv.data.shape[2], kv.data.shape[4]
    act, storage = ACT.get(qkv.dtype.name), FORMATS.get(kv.format)
    if act is None or storage is None or dim % 2 or not 8 <= dim <= MAX_DIM:
        raise KernelError(f"qkv_rope_append_: no kernel for {qkv.dtype.name}, cache {kv.format}, head_dim {dim} on "
                          f"{q.arch}; it exists for {', '.join(ACT)}, cache {', '.join(FORMATS)}, "
                          f"even head_dim 8 to {MAX_DIM}")
    out = q.empty((tokens, heads, dim), qkv.dtype)
    if tokens:
        units = heads + 2 * kv_heads
        q.launch(QKV_ROPE_APPEND.variant(ACT=act, KV=storage), (tokens, -(-units // WARPS), 1), (WARPS * 32, 1, 1),
                 qkv, batch.rows, batch.positions, batch.pages, rope_table, q_norm, k_norm, out, kv.data,
                 batch.pages.shape[1], qkv.shape[1], heads, kv_heads, dim, rope_table.shape[2], eps,
                 smem=WARPS * -(-dim // 4) * 16, pdl=True)
    return out
