"""mma.sync of 8-, 6- and 4-bit floats on sm_120: kind::f8f6f4 and the block-scaled kinds (PTX ISA, "Block Scaling for
mma.sync"). Fragments as in matrix.py.

A scale belongs to one row of A (one column of B) and a run of k: the whole k at scale_vec::1X, halves at 2X, quarters
at 4X. A lane's scale word holds them from byte `byte-id` on. A's words come from two lanes of each group of four: lane
2 * thread-id gives row g, lane 2 * thread-id + 1 row g + 8; B's from the lane thread-id of each group. The words of the
other lanes are ignored. ue4m3 ignores its sign bit, 0x7F is NaN; ue8m0 is 2 ** (byte - 127), 0xFF is NaN.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.matrix import accumulator, columns_of, read, rows_of, together
from blackwell_infer.emulator.instructions.narrow import E2M1, E4M3, FORMATS, scale_value
from blackwell_infer.emulator.instructions.shape import Form, registers, shaped
from blackwell_infer.emulator.machine import Lanes, Machine, Step
from blackwell_infer.emulator.parse import Instruction, Operand, PtxError

F64 = np.float64
BYTES = np.arange(256, dtype=np.uint8)
PAIRS = np.stack([E2M1.decode(BYTES & 15), E2M1.decode(BYTES >> 4)], axis=1).astype(F64)
"""both values of a byte of packed e2m1, low nibble first"""
SINGLES = {name: f.decode(BYTES >> 2 & 15 if name == "e2m1" else BYTES).astype(F64) for name, f in FORMATS.items()}
"""the value of a byte with one element: e2m1 stands in bits 2 to 5"""
SCALES = {"ue4m3": E4M3.decode(BYTES & 127).astype(F64), "ue8m0": scale_value(BYTES).astype(F64)}


def packed(words: Any) -> Any:
    """Registers of eight e2m1 to their values."""
    return PAIRS[words.view(np.uint8)]


def single(kind: str) -> Callable[[Any], Any]:
    """Registers of four elements to their values."""
    table = SINGLES[kind]
    return lambda words: table[words.view(np.uint8)]


def selector(m: Machine, o: Operand, legal: range) -> Callable[[Lanes], int]:
    """A byte-id or thread-id: the same in all lanes, and legal."""
    source = m.reader(o, "u16")

    def run(lanes: Lanes) -> int:
        values = np.atleast_1d(source(lanes))
        chosen = int(values[0])
        if chosen not in legal:
            raise PtxError(f"scale selector {chosen} is not one of {list(legal)}")
        if (values != chosen).any():
            raise PtxError("the lanes disagree about a scale selector")
        return chosen
    return run


def scale_reader(m: Machine, word: Operand, ids: Operand, kind: str, size: int,
                 threads: int) -> Callable[[Lanes, int, int], Any]:
    """run(lanes, warps, i) -> scales [warps, 8, size] of the i-th lane that the selectors choose."""
    source, table = read(m, registers(word)[0]), SCALES[kind]
    byte = selector(m, ids.items[0], range(0, 4, size) if size > 1 else range(4))
    thread = selector(m, ids.items[1], range(threads))

    def run(lanes: Lanes, warps: int, i: int) -> Any:
        words = source(lanes, warps).reshape(warps, 8, 4)[:, :, thread(lanes) * (4 // threads) + i]
        first = byte(lanes)
        return table[np.ascontiguousarray(words).view(np.uint8).reshape(warps, 8, 4)[:, :, first : first + size]]
    return run


def scaled(tile: Any, scales: Any) -> Any:
    """[warps, rows, k] values times scales [warps, rows, n], each for k / n of them."""
    return tile * np.repeat(scales, tile.shape[2] // scales.shape[2], axis=2)


def multiply(decode_a: Any, decode_b: Any, scale: str = "", size: int = 0) -> Form:
    """mma.sync.aligned with float32 accumulators; `scale` and `size` are the scale type and the scales of a row."""

    def build(m: Machine, ins: Instruction) -> Step:
        d, a, b, c = ins.operands[:4]
        ra, rb, add = together(m, a), together(m, b), accumulator(m, d, c, "f32")
        if scale:
            scale_a = scale_reader(m, ins.operands[4], ins.operands[5], scale, size, 2)
            scale_b = scale_reader(m, ins.operands[6], ins.operands[7], scale, size, 4)

        def step(lanes: Lanes) -> None:
            w = len(m.warps(lanes))
            rows, columns = rows_of(decode_a(ra(lanes, w)), w), columns_of(decode_b(rb(lanes, w)), w)
            if scale:
                rows = scaled(rows, np.concatenate([scale_a(lanes, w, i) for i in range(2)], axis=1))
                columns = scaled(columns, scale_b(lanes, w, 0))
            add(lanes, w, rows, columns)
        return step
    return shaped("44241212" if scale else "4424", build)


def spellings(shape: str, kind: str, types: str) -> tuple[str, str]:
    """The assembler takes the kind before or after the shape."""
    return (f"mma.sync.aligned.{shape}.row.col.{kind}.{types}", f"mma.sync.aligned.{kind}.{shape}.row.col.{types}")


FP4 = (("mxf4", 2, "ue8m0"), ("mxf4nvf4", 2, "ue8m0"), ("mxf4nvf4", 4, "ue8m0"), ("mxf4nvf4", 4, "ue4m3"))
FORMS: dict[str, Form] = {
    **{s: multiply(packed, packed, scale, size) for kind, size, scale in FP4
       for s in spellings("m16n8k64", f"kind::{kind}.block_scale.scale_vec::{size}X", f"f32.e2m1.e2m1.f32.{scale}")},
    **{s: multiply(single(a), single(b), "ue8m0", 1) for a in FORMATS for b in FORMATS
       for s in spellings("m16n8k32", "kind::mxf8f6f4.block_scale.scale_vec::1X", f"f32.{a}.{b}.f32.ue8m0")},
    **{s: multiply(single(a), single(b)) for a in FORMATS for b in FORMATS
       for s in spellings("m16n8k32", "kind::f8f6f4", f"f32.{a}.{b}.f32")},
}
