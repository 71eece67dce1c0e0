"""Cases of recurrent layers, see `ops.cases`."""
from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import msgspec
import numpy as np

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops.batch import DeltaParams
from blackwell_infer.ops.case import BF16, F16, F32, FLOOR, ROUNDED, ULP, Case, text
from blackwell_infer.ops.inputs import DTYPES, Bad, Kwargs, Random, activations, ragged

NAN, INF = float("nan"), float("inf")


class Heads(msgspec.Struct, frozen=True):
    """Key heads and value heads, and their widths."""

    nk: int
    nv: int
    dk: int
    dv: int


class Line(msgspec.Struct, frozen=True):
    """A row of a batch: whether it continues a state, its new tokens, which of them keep a state, and whether the last
    of these overwrites the state that the row continues."""

    past: bool
    new: int
    keeps: tuple[int, ...]
    here: bool = False


REAL, DENSE, TINY = Heads(16, 32, 128, 128), Heads(16, 48, 128, 128), Heads(2, 4, 16, 16)

STEP: tuple[Line, ...] = (Line(True, 1, (0,), True), Line(False, 1, (0,)), Line(True, 1, (0,)), Line(True, 1, ()))
VERIFY: tuple[Line, ...] = (
    Line(True, 4, (0, 1, 2, 3), True), Line(True, 9, tuple(range(9))), Line(False, 3, (0, 1, 2)), Line(True, 16, (15,)))
MIXED: tuple[Line, ...] = (
    Line(True, 70, (69,), True), Line(True, 2, (0, 1)), Line(False, 17, (16,)),
    Line(False, 130, (31, 63, 95, 127, 129)))
PADDED: tuple[Line, ...] = (Line(True, 1, (0,), True), Line(False, 1, (0,)), Line(False, 0, ()), Line(False, 0, ()))

DELTAS: tuple[tuple[str, str, Heads, tuple[Line, ...], int, bool, float, Bad], ...] = (
    # activations, state, heads, rows, padding tokens, tiled, largest decay, bad tokens
    (F32, F32, TINY, STEP, 0, False, 1.0, ()), (F32, F32, TINY, VERIFY, 3, False, 1.0, ()),
    (F32, F32, TINY, MIXED, 2, True, 1.0, ()), (F32, F32, Heads(1, 1, 8, 8), STEP, 1, False, 1.0, ()),
    (F32, F32, Heads(1, 3, 8, 32), VERIFY, 0, False, 1.0, ()),
    (F32, F32, Heads(3, 3, 24, 8), MIXED, 0, False, 1.0, ()),
    (F16, F32, Heads(5, 5, 32, 16), VERIFY, 1, False, 1.0, ()),
    (BF16, F32, Heads(3, 9, 12, 20), MIXED, 0, True, 1.0, ()), (BF16, F32, TINY, MIXED, 5, False, 1.0, ()),
    (F32, F32, TINY, MIXED, 0, False, 40.0, ()), (F32, F32, TINY, STEP, 0, False, 1.0, ((0, NAN), (2, INF))),
    (BF16, F32, Heads(2, 6, 32, 32), VERIFY, 2, False, 1.0, ((4, NAN),)),
    (F32, F32, Heads(1, 2, 128, 128), VERIFY, 1, False, 1.0, ()),
    (F16, F32, Heads(1, 2, 128, 128), STEP, 1, False, 1.0, ()),
    (BF16, F32, Heads(2, 4, 128, 128), STEP, 2, False, 1.0, ()),
    (BF16, F32, Heads(2, 6, 128, 128), VERIFY, 0, True, 1.0, ((3, NAN),)),
    (BF16, F32, Heads(1, 2, 128, 128), MIXED, 1, False, 1.0, ()),
    (F32, F32, Heads(1, 2, 128, 128), MIXED, 0, False, 30.0, ()),
    (F16, F32, Heads(1, 3, 64, 64), MIXED, 0, False, 1.0, ()),
    (BF16, F32, Heads(1, 3, 64, 128), VERIFY, 0, False, 1.0, ()),
    (BF16, BF16, Heads(1, 2, 128, 128), VERIFY, 0, False, 1.0, ()), (F16, F16, TINY, VERIFY, 2, False, 1.0, ()),
    (BF16, F16, TINY, MIXED, 0, False, 1.0, ()), (BF16, BF16, TINY, MIXED, 1, False, 1.0, ()),
    (F32, F32, TINY, PADDED, 2, False, 1.0, ()), (BF16, F32, Heads(1, 2, 128, 128), PADDED, 2, False, 1.0, ()),
    (BF16, F32, REAL, STEP[:1], 0, False, 1.0, ()), (BF16, F32, DENSE, (Line(True, 2, (0, 1)),), 0, False, 1.0, ()))


def listed() -> Iterable[Case]:
    """Every row of the table above as a case. A state of 16 bits may round to the other side after any token, and a
    result is a sum over such errors, as those of `ROUNDED`."""
    for i, (dtype, stored, heads, lines, padding, tiled, decay, bad) in enumerate(DELTAS):
        size = (heads.nk, heads.nv, heads.dk, heads.dv)
        name = text("gated_delta_", dtype, stored, size, f"R{len(lines)}", f"T{sum(r.new for r in lines)}",
                    *("tiled",) * tiled, *("bad",) * bool(bad), i)
        yield Case(name, "gated_delta_", partial(
            make_delta, dtype=dtype, stored=stored, heads=heads, lines=lines, padding=padding, tiled=tiled, decay=decay,
            bad=bad), max(ULP[dtype], ULP[stored]), FLOOR[dtype] if stored == F32 else ROUNDED[stored])


def make_delta(rng: Random, dtype: str, stored: str, heads: Heads, lines: tuple[Line, ...], padding: int,
               tiled: bool, decay: float, bad: Bad, width: int = 4) -> Kwargs:
    """Slots that no row continues hold NaN. `decay` is the largest factor of the log decays."""
    h, channels = heads, 2 * heads.nk * heads.dk + heads.nv * heads.dv
    batch, _ = ragged(rng, tuple((0, r.new) for r in lines), padding)
    slots = rng.permutation(len(lines) + sum(len(r.keeps) for r in lines) + 2).tolist()
    state = Recurrent(np.full((len(slots), width - 1, channels), NAN, DTYPES[dtype]),
                      np.full((len(slots), h.nv, h.dk, h.dv), NAN, DTYPES[stored]))
    source = np.full(len(lines), -1, np.int32)
    target = np.full(batch.ids.shape[0], -1, np.int32)
    for row, line in enumerate(lines):
        if line.past:
            source[row] = slots.pop()
            np.asarray(state.conv)[source[row]] = activations(rng, (width - 1, channels), dtype)
            np.asarray(state.state)[source[row]] = 0.3 * rng.standard_normal((h.nv, h.dk, h.dv))
        for t in line.keeps:
            target[batch.starts[row] + t] = source[row] if line.here and t == line.keeps[-1] else slots.pop()
    columns = channels + h.nv * h.dv + 2 * h.nv
    return {"state": state, "proj": activations(rng, (batch.ids.shape[0], columns), dtype, bad),
            "batch": msgspec.structs.replace(batch, state_from=source, state_to=target),
            "params": DeltaParams(
                conv=rng.uniform(-0.6, 0.6, (channels, width)).astype(np.float32),
                decay=-rng.uniform(0.01, decay, h.nv).astype(np.float32),
                dt_bias=rng.uniform(-2, 1, h.nv).astype(np.float32), norm=rng.uniform(-2, 2, h.dv).astype(np.float32),
                eps=1e-6, key_heads=h.nk, tiled=tiled)}
