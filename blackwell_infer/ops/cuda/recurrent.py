"""Launchers of ptx/recurrent: Gated DeltaNet layers."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.ops.cuda.staged import plain, room, together
from blackwell_infer.types import Array

TAPS = 4
"""Width of the convolution (ptx/recurrent/delta.cuh)"""
COUNTERS = 16384
"""Groups of CTAs that a launch can count (ptx/recurrent/delta.cuh)"""
FEW = 16
"""Most tokens of a row that go token by token"""
ALIGNMENT = 16
"""Bytes that arrays read in wide loads begin at multiples of"""
MANY = 1 << 30
"""For `few`: rows of any length"""
CHUNK = 64
"""Tokens of a chunk (ptx/recurrent/chunk.cuh)"""
SOLVE_BYTES, PASS_BYTES, OUT_BYTES = 97280, 91664, 92672
"""Shared memory of the kernels of chunks"""
DIM, PARTS = 128, 4
"""Widths of the heads of the fast kernels, and most CTAs of one head (ptx/recurrent/step.cu, pass.ptx)"""
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ANY = tuple(ACT.values())
TYPES = {"ACT": ANY, "STATE": ANY}


def stepped(call: Call) -> Cost:
    """A state read and one written per row, what lies beside them, and two products with the state a token."""
    tokens, rows = call.shape("proj")[0], call.shape("from")[0]
    slots, nv, dk, dv = call.shape("state")
    states = 2 * rows * (call.nbytes("state") + call.nbytes("conv")) // slots
    return Cost(states + call.nbytes("proj", "taps", "out"), 6 * tokens * nv * dk * dv)


def few_stepped(call: Call) -> Cost:
    """The part of rows of up to `few` new tokens."""
    return stepped(call) if call.shape("proj")[0] <= call.number("few") * call.shape("from")[0] else Cost()


def mixed(call: Call) -> Cost:
    """Projections to tiles, and the states of rows."""
    return Cost(call.nbytes("proj", "taps", "tiles", "gates", "past"))


def solved(call: Call) -> Cost:
    """k and v to w and u: products of keys, then half a square matrix times 256 columns."""
    slots, nv, _, length, dim = call.shape("solved")
    return Cost(call.nbytes("tiles", "solved", "factors"), 4 * slots * nv * length * length * dim)


def passed(call: Call) -> Cost:
    """k, w, u and d once, a state a chunk; two products with states a chunk."""
    slots, nv, _, length, dim = call.shape("solved")
    return Cost(call.nbytes("states", "factors") + call.nbytes("solved") * 3 // 2 + call.nbytes("tiles") // 4,
                4 * slots * nv * length * dim * dim)


def finished(call: Call) -> Cost:
    """Queries, keys, states and d to results: a product with a state a chunk, and two with half a square matrix."""
    slots, nv, _, length, dim = call.shape("solved")
    return Cost(call.nbytes("proj", "out", "states") + call.nbytes("solved", "tiles") // 2,
                2 * slots * nv * length * dim * (dim + length))


ROW = (Param("proj", "in"), Param("taps", "in", "float32"), Param("decay", "in", "float32"),
       Param("bias", "in", "float32"), Param("weight", "in", "float32"), Param("conv", "inout"),
       Param("state", "inout"), Param("starts", "in", "int32"), Param("from", "in", "int32"),
       Param("to", "in", "int32"), Param("out", "out"))
SIZES = (Param("T", "i32"), Param("R", "i32"), Param("nk", "i32"), Param("nv", "i32"))
REST = (Param("tiled", "i32"), Param("few", "i32"), Param("first", "i32"), Param("eps", "f32"))
GENERIC = Kernel("recurrent/generic.cu", "delta_generic", (
    *ROW, *SIZES, Param("dk", "i32"), Param("dv", "i32"), *REST), TYPES, cost=stepped)
STEP = Kernel("recurrent/step.cu", "delta_step", (
    *ROW, Param("blocks", "out", "uint8"), Param("sums", "out", "float32"), *SIZES, *REST),
    {**TYPES, "PARTS": (2, 4)}, cost=few_stepped)
MIX = Kernel("recurrent/mix.cu", "delta_mix", (
    Param("proj", "in"), Param("taps", "in", "float32"), Param("decay", "in", "float32"),
    Param("bias", "in", "float32"), Param("conv", "in"), Param("state", "in"), Param("starts", "in", "int32"),
    Param("from", "in", "int32"), Param("tiles", "out", "float32"), Param("gates", "out", "float32"),
    Param("states", "out", "float32"),
    Param("past", "out"), Param("firsts", "out", "int32"), Param("R", "i32"), Param("nk", "i32"), Param("nv", "i32"),
    Param("few", "i32")), TYPES, cost=mixed)
SOLVE = Kernel("recurrent/solve.cu", "delta_solve", (
    Param("tiles", "in", "float32"), Param("gates", "in", "float32"), Param("starts", "in", "int32"),
    Param("solved", "out", "float32"), Param("factors", "out", "float32"), Param("R", "i32"), Param("nk", "i32"),
    Param("nv", "i32"), Param("tiled", "i32"), Param("few", "i32")), cost=solved)
PASS = Kernel("recurrent/pass.ptx", "delta_pass", (
    Param("tiles", "in", "float32"), Param("solved", "inout", "float32"), Param("factors", "in", "float32"),
    Param("states", "inout", "float32"), Param("starts", "in", "int32"), Param("firsts", "in", "int32"),
    Param("nk", "i32"), Param("nv", "i32"), Param("tiled", "i32"), Param("few", "i32")), cost=passed)
OUT = Kernel("recurrent/out.cu", "delta_out", (
    Param("proj", "in"), Param("weight", "in", "float32"), Param("conv", "inout"), Param("state", "inout"),
    Param("starts", "in", "int32"), Param("to", "in", "int32"), Param("out", "out"), Param("tiles", "in", "float32"),
    Param("gates", "in", "float32"), Param("states", "in", "float32"), Param("past", "in"),
    Param("solved", "in", "float32"), Param("R", "i32"), Param("nk", "i32"), Param("nv", "i32"), Param("tiled", "i32"),
    Param("few", "i32"), Param("eps", "f32")), TYPES, cost=finished)
KERNELS = (GENERIC, STEP, MIX, SOLVE, PASS, OUT)


def gated_delta_(q: Queue, state: Recurrent, proj: Array, batch: Batch, params: DeltaParams, few: int = FEW) -> Array:
    """See `ops.api.Ops.gated_delta_`; `few` is FEW, or MANY for results that do not depend on how many tokens come."""
    x, (_, nv, dk, dv) = plain(proj), state.state.shape
    tokens, rows, nk = x.shape[0], batch.state_from.shape[0], params.key_heads
    check(q, state, x, params)
    out = q.empty((tokens, nv * dv), x.dtype)
    if not tokens:
        return out
    types = {"ACT": ACT[x.dtype.name], "STATE": ACT[state.state.dtype.name]}
    arrays = (x, params.conv, params.decay, params.dt_bias, params.norm, state.conv, state.state, batch.starts,
              batch.state_from, batch.state_to, out)
    fast = (dk, dv) == (DIM, DIM)
    blocks = room(q, out) if fast and not nv % 2 and batch.max_new <= few else None
    sums = q.empty((tokens, nv, dv), np.float32) if fast else None
    most = COUNTERS // nv
    for first in range(0, rows + 1, most):
        count, tail = min(most, rows + 1 - first), (int(params.tiled), few, first, params.eps)
        if fast:
            parts = PARTS if rows * nv <= q.sm_count else PARTS // 2
            q.launch(STEP.variant(**types, PARTS=parts), (parts * nv, count, 1), (128, 1, 1), *arrays, blocks, sums,
                     tokens, rows, nk, nv, *tail, pdl=True)
        else:
            q.launch(GENERIC.variant(**types), (nv, count, 1), (min(-(-max(dk, dv) // 32) * 32, 256), 1, 1), *arrays,
                     tokens, rows, nk, nv, dk, dv, *tail, smem=generic_bytes(dk, dv), pdl=True)
    if fast and batch.max_new > few:
        in_chunks(q, state, x, batch, params, few, out)
    return together(out, blocks)


def in_chunks(q: Queue, state: Recurrent, x: Tensor, batch: Batch, params: DeltaParams, few: int, out: Tensor) -> None:
    """Rows of more than `few` tokens; heads of 128 by 128."""
    types = {"ACT": ACT[x.dtype.name], "STATE": ACT[state.state.dtype.name]}
    tokens, rows, nk, nv = x.shape[0], batch.state_from.shape[0], params.key_heads, state.state.shape[1]
    units, tiled = 2 * nk + nv, int(params.tiled)
    slots = (tokens + (CHUNK - 1) * min(rows, tokens // (few + 1))) // CHUNK
    if not slots:
        return
    tiles, gates = q.empty((slots, units, CHUNK, DIM), np.float32), q.empty((slots, nv, CHUNK, 2), np.float32)
    states, solved = q.empty((slots, nv, DIM, DIM), np.float32), q.empty((slots, nv, 2, CHUNK, DIM), np.float32)
    factors, past = q.empty((slots, nv, CHUNK, 2), np.float32), q.empty((rows, TAPS - 1, units * DIM), x.dtype)
    firsts = q.empty((rows,), np.int32)
    q.launch(MIX.variant(**types), (slots, units + 1 + nv, 1), (128, 1, 1), x, params.conv, params.decay,
             params.dt_bias, state.conv, state.state, batch.starts, batch.state_from, tiles, gates, states, past,
             firsts, rows, nk, nv, few, pdl=True)
    q.launch(SOLVE.variant(), (slots, nv, 1), (128, 1, 1), tiles, gates, batch.starts, solved, factors, rows, nk, nv,
             tiled, few, smem=SOLVE_BYTES, pdl=True)
    q.launch(PASS.variant(), (PARTS * nv, rows, 1), (256, 1, 1), tiles, solved, factors, states, batch.starts, firsts,
             nk, nv, tiled, few, smem=PASS_BYTES, pdl=True)
    q.launch(OUT.variant(**types), (slots, nv, 1), (128, 1, 1), x, params.norm, state.conv, state.state, batch.starts,
             batch.state_to, out, tiles, gates, states, past, solved, rows, nk, nv, tiled, few, params.eps,
             smem=OUT_BYTES, pdl=True)


def generic_bytes(dk: int, dv: int) -> int:
    """Shared memory of the generic kernel."""
    return 4 * (dk * dv + (TAPS + 1) * (2 * dk + dv) + dv)


def check(q: Queue, state: Recurrent, x: Array, params: DeltaParams) -> None:
    """KernelError: sizes or types that no kernel takes."""
    _, nv, dk, dv = state.state.shape
    width = params.conv.shape[1]
    if width != TAPS:
        raise KernelError(f"gated_delta_: the convolution has {width} taps; the kernels take {TAPS}")
    if nv % params.key_heads:
        raise KernelError(f"gated_delta_: {nv} value heads are no multiple of {params.key_heads} key heads")
    for what, array in (("activations", x), ("the state", state.state)):
        if array.dtype.name not in ACT:
            raise KernelError(f"gated_delta_: no kernel for {what} in {array.dtype.name}; there are {', '.join(ACT)}")
    for name, array in (("the taps", params.conv), ("the norm's weight", params.norm), ("the state", state.state),
                        ("the history", state.conv)):
        assert isinstance(array, Tensor)
        if array.ptr % ALIGNMENT:
            raise KernelError(f"gated_delta_: {name} at {array.ptr:#x} must begin at a multiple of {ALIGNMENT} bytes")
    if generic_bytes(dk, dv) > SHARED_LIMIT[q.arch]:
        raise KernelError(f"gated_delta_: a state of {dk} x {dv} takes {generic_bytes(dk, dv)} bytes of shared memory; "
                          f"{q.arch} has {SHARED_LIMIT[q.arch]}")
