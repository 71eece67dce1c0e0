"""Launchers of ptx/recurrent: Gated DeltaNet layers."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
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
MANY = 1 << 30
"""For `few`: rows of any length"""
DIM, PARTS = 128, 4
"""Widths of the heads of the fast kernels, and CTAs of one head (ptx/recurrent/step.cu)"""
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ANY = tuple(ACT.values())


def stepped(call: Call) -> Cost:
    """A state read and one written per row, what lies beside them, and two products with the state a token."""
    tokens, rows = call.shape("proj")[0], call.shape("from")[0]
    slots, nv, dk, dv = call.shape("state")
    states = 2 * rows * (call.nbytes("state") + call.nbytes("conv")) // slots
    return Cost(states + call.nbytes("proj", "taps", "out"), 6 * tokens * nv * dk * dv)


ROW = (Param("proj", "in"), Param("taps", "in", "float32"), Param("decay", "in", "float32"),
       Param("bias", "in", "float32"), Param("weight", "in", "float32"), Param("conv", "inout"), Param("state", "inout"),
       Param("starts", "in", "int32"), Param("from", "in", "int32"), Param("to", "in", "int32"), Param("out", "out"))
SIZES = (Param("T", "i32"), Param("R", "i32"), Param("nk", "i32"), Param("nv", "i32"))
REST = (Param("tiled", "i32"), Param("few", "i32"), Param("first", "i32"), Param("eps", "f32"))
GENERIC = Kernel("recurrent/generic.cu", "delta_generic", (
    *ROW, *SIZES, Param("dk", "i32"), Param("dv", "i32"), *REST), {"ACT": ANY, "STATE": ANY}, cost=stepped)
STEP = Kernel("recurrent/step.cu", "delta_step", (
    *ROW, Param("blocks", "out", "uint8"), Param("sums", "out", "float32"), *SIZES, *REST), {"ACT": ANY, "STATE": ANY}, cost=stepped)
KERNELS = (GENERIC, STEP)


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
    blocks = room(q, out) if fast and not nv % 2 else None
    sums = q.empty((tokens, nv, dv), np.float32) if fast else None
    most = COUNTERS // nv
    for first in range(0, rows + 1, most):
        count, tail = min(most, rows + 1 - first), (int(params.tiled), few, first, params.eps)
        if fast:
            q.launch(STEP.variant(**types), (PARTS * nv, count, 1), (128, 1, 1), *arrays, blocks, sums, tokens, rows,
                     nk, nv, *tail, pdl=True)
        else:
            q.launch(GENERIC.variant(**types), (nv, count, 1), (min(-(-max(dk, dv) // 32) * 32, 256), 1, 1), *arrays,
                     tokens, rows, nk, nv, dk, dv, *tail, smem=generic_bytes(dk, dv), pdl=True)
    return together(out, blocks)


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
    if generic_bytes(dk, dv) > SHARED_LIMIT[q.arch]:
        raise KernelError(f"gated_delta_: a state of {dk} x {dv} takes {generic_bytes(dk, dv)} bytes of shared memory; "
                          f"{q.arch} has {SHARED_LIMIT[q.arch]}")
