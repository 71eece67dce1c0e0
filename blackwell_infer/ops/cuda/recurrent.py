"""Launchers of ptx/recurrent: Gated DeltaNet layers."""
from __future__ import annotations

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops.batch import Batch, DeltaParams
from blackwell_infer.ops.cuda.staged import plain
from blackwell_infer.types import Array

TAPS = 4
"""Width of the convolution (ptx/recurrent/delta.cuh)"""
COUNTERS = 16384
"""Groups of CTAs that a launch can count (ptx/recurrent/delta.cuh)"""
FEW = 16
"""Most tokens of a row that go token by token"""
MANY = 1 << 30
ACT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
ANY = tuple(ACT.values())


def stepped(call: Call) -> Cost:
    """A state read and one written per row, what lies beside them, and two products with the state a token."""
    (tokens, columns), (slots, _, channels) = call.shape("proj"), call.shape("conv")
    rows = call.shape("from")[0]
    _, nv, dk, dv = call.shape("state")
    states = 2 * rows * (call.nbytes("state") + call.nbytes("conv")) // slots
    return Cost(states + call.nbytes("proj", "taps", "out"), 6 * tokens * nv * dk * dv)


ROW = (Param("proj", "in"), Param("taps", "in", "float32"), Param("decay", "in", "float32"),
       Param("bias", "in", "float32"), Param("weight", "in", "float32"), Param("conv", "inout"), Param("state", "inout"),
       Param("starts", "in", "int32"), Param("from", "in", "int32"), Param("to", "in", "int32"), Param("out", "out"))
SIZES = (Param("T", "i32"), Param("R", "i32"), Param("nk", "i32"), Param("nv", "i32"))
GENERIC = Kernel("recurrent/generic.cu", "delta_generic", (
    *ROW, *SIZES, Param("dk", "i32"), Param("dv", "i32"), Param("tiled", "i32"), Param("lowest", "i32"),
    Param("highest", "i32"), Param("first", "i32"), Param("eps", "f32")), {"ACT": ANY, "STATE": ANY}, cost=stepped)
KERNELS = (GENERIC,)


def gated_delta_(q: Queue, state: Recurrent, proj: Array, batch: Batch, params: DeltaParams) -> Array:
    """See `ops.api.Ops.gated_delta_`."""
    x, (_, nv, dk, dv), rows = plain(proj), state.state.shape, batch.state_from.shape[0]
    tokens, nk = x.shape[0], params.key_heads
    check(q, state, x, params)
    out = q.empty((tokens, nv * dv), x.dtype)
    if not tokens:
        return out
    kernel = GENERIC.variant(ACT=ACT[x.dtype.name], STATE=ACT[state.state.dtype.name])
    most = COUNTERS // nk
    for first in range(0, rows + 1, most):
        q.launch(kernel, (nv, min(most, rows + 1 - first), 1), (min(-(-max(dk, dv) // 32) * 32, 256), 1, 1), x,
                 params.conv, params.decay, params.dt_bias, params.norm, state.conv, state.state, batch.starts,
                 batch.state_from, batch.state_to, out, tokens, rows, nk, nv, dk, dv, int(params.tiled), 1, MANY, first,
                 params.eps, smem=generic_bytes(dk, dv), pdl=True)
    return out


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
