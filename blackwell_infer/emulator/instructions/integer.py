"""Integer, logic, comparison and data movement: PTX ISA sections 9.7.1, 9.7.2, 9.7.6 to 9.7.8 and mov, selp, prmt."""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions.shape import Form, op, registers, shaped
from blackwell_infer.emulator.machine import NUMPY, Lanes, Machine, Step
from blackwell_infer.emulator.parse import Instruction, PtxError

SIGNED, UNSIGNED = ("s16", "s32", "s64"), ("u16", "u32", "u64")
INTEGERS = SIGNED + UNSIGNED
WIDE = {"s16": "s32", "u16": "u32", "s32": "s64", "u32": "u64"}


def divide(a: Any, b: Any) -> Any:
    """Quotient truncated to zero; division by zero gives all ones as the hardware does."""
    a, b = np.broadcast_arrays(a, b)
    safe = np.where(b == 0, np.ones_like(b), b)
    q = a // safe
    if a.dtype.kind == "i":
        q = q + ((a % safe != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
    return np.where(b == 0, np.array(-1).astype(a.dtype), q).astype(a.dtype)


def remainder(a: Any, b: Any) -> Any:
    a, b = np.broadcast_arrays(a, b)
    return np.where(b == 0, a, a - divide(a, b) * b).astype(a.dtype)


def multiply_high(a: Any, b: Any) -> Any:
    a, b = np.broadcast_arrays(a, b)
    bits = a.dtype.itemsize * 8
    if bits < 64:
        return (a.astype(f"{a.dtype.kind}8") * b.astype(f"{a.dtype.kind}8") >> bits).astype(a.dtype)
    return ((a.astype(object) * b.astype(object)) >> 64).astype(a.dtype)


def wide_product(kind: str) -> Any:
    target = NUMPY[WIDE[kind]]
    return lambda a, b: np.asarray(a).astype(target) * np.asarray(b).astype(target)


def wide_sum(kind: str) -> Any:
    product = wide_product(kind)
    return lambda a, b, c: product(a, b) + c


def shift_left(a: Any, n: Any) -> Any:
    bits = np.asarray(a).dtype.itemsize * 8
    n = np.asarray(n)
    return np.where(n >= bits, 0, a << np.minimum(n, bits - 1).astype(np.asarray(a).dtype)).astype(np.asarray(a).dtype)


def shift_right(a: Any, n: Any) -> Any:
    a, n = np.asarray(a), np.asarray(n)
    bits = a.dtype.itemsize * 8
    moved = a >> np.minimum(n, bits - 1).astype(a.dtype)
    return moved if a.dtype.kind == "i" else np.where(n >= bits, 0, moved).astype(a.dtype)


def funnel_left(low: Any, high: Any, n: Any) -> Any:
    both = np.asarray(high).astype(np.uint64) << np.uint64(32) | np.asarray(low).astype(np.uint64)
    return (both << (np.asarray(n).astype(np.uint64) & np.uint64(31)) >> np.uint64(32)).astype(np.uint32)


def funnel_right(low: Any, high: Any, n: Any) -> Any:
    both = np.asarray(high).astype(np.uint64) << np.uint64(32) | np.asarray(low).astype(np.uint64)
    return (both >> (np.asarray(n).astype(np.uint64) & np.uint64(31))).astype(np.uint32)


def ones(n: Any) -> Any:
    """The n low bits, n 0 to 64, as uint64."""
    n = np.asarray(n).astype(np.uint64)
    return np.where(n >= 64, ~np.uint64(0), (np.uint64(1) << n % np.uint64(64)) - np.uint64(1))


def extract(a: Any, start: Any, length: Any) -> Any:
    """bfe: a bit field; signed types fill it up with its highest bit (or the word's, if that comes first)."""
    a = np.asarray(a)
    bits = a.dtype.itemsize * 8
    start, length = np.asarray(start).astype(np.int64) & 255, np.asarray(length).astype(np.int64) & 255
    wide = a.astype(np.int64 if a.dtype.kind == "i" else np.uint64).view(np.uint64)
    mask = ones(np.clip(bits - start, 0, length))
    field = wide >> np.minimum(start, 63).astype(np.uint64) & mask
    if a.dtype.kind == "i":
        top = wide >> np.clip(start + length - 1, 0, bits - 1).astype(np.uint64) & np.uint64(1)
        field = np.where((length > 0) & (top != 0), field | ~mask, field)
    return field.astype(a.dtype)


def insert(a: Any, b: Any, start: Any, length: Any) -> Any:
    """bfi: the low `length` bits of a go into b at `start`."""
    dtype = np.asarray(b).dtype if np.asarray(b).ndim else np.asarray(a).dtype
    bits = dtype.itemsize * 8
    start, length = np.asarray(start).astype(np.uint64) & np.uint64(255), np.asarray(length).astype(np.uint64)
    length = np.minimum(length & np.uint64(255), np.uint64(bits))
    start = np.asarray(start)
    mask = np.where(start < bits, ones(length) << np.minimum(start, np.uint64(63)) & ones(bits), np.uint64(0))
    a, b = np.asarray(a).astype(np.uint64), np.asarray(b).astype(np.uint64)
    return ((b & ~mask) | (a << np.minimum(start, np.uint64(63)) & mask)).astype(dtype)


def reverse_bits(a: Any) -> Any:
    a = np.atleast_1d(np.asarray(a))
    bits = np.unpackbits(a[:, None].view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(a.dtype)[:, 0]


def count_bits(a: Any) -> Any:
    return np.bitwise_count(np.asarray(a)).astype(np.uint32)


def leading_zeros(a: Any) -> Any:
    a = np.atleast_1d(np.asarray(a))
    bits = np.unpackbits(a[:, None].view(np.uint8), axis=1, bitorder="little")[:, ::-1]
    return np.where(bits.any(1), bits.argmax(1), bits.shape[1]).astype(np.uint32)


def find_highest(a: Any) -> Any:
    """bfind: position of the highest one bit, or all ones."""
    z, width = leading_zeros(a), np.asarray(a).dtype.itemsize * 8
    return np.where(z == width, np.uint32(0xFFFFFFFF), np.uint32(width - 1) - z).astype(np.uint32)


def find_shift(a: Any) -> Any:
    """bfind.shiftamt: the left shift that brings the highest one bit to the top, or all ones."""
    z, width = leading_zeros(a), np.asarray(a).dtype.itemsize * 8
    return np.where(z == width, np.uint32(0xFFFFFFFF), z).astype(np.uint32)


def permute(a: Any, b: Any, selector: Any) -> Any:
    """prmt.b32, default mode: each nibble picks a byte of {b, a}; bit 3 replicates its sign."""
    both = np.asarray(b).astype(np.uint64) << np.uint64(32) | np.asarray(a).astype(np.uint64)
    out = np.zeros(np.broadcast_shapes(both.shape, np.shape(selector)), np.uint64)
    for i in range(4):
        nibble = np.asarray(selector).astype(np.uint64) >> np.uint64(4 * i) & np.uint64(15)
        byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        out |= np.where(nibble & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return out.astype(np.uint32)


def lookup3(a: Any, b: Any, c: Any, table: Any) -> Any:
    """lop3: any boolean function of three bits; table bit (a<<2 | b<<1 | c)."""
    t, out = int(np.asarray(table).ravel()[0]), np.uint32(0)
    for i in range(8):
        if t >> i & 1:
            out = out | ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c))
    return out


EQUAL: dict[str, Any] = {"eq": np.equal, "ne": np.not_equal}
COMPARE: dict[str, Any] = {**EQUAL, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
COMPARISONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("b16", "b32", "b64"), EQUAL), **dict.fromkeys(SIGNED, COMPARE),
    **{k: {**COMPARE, "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal} for k in UNSIGNED}}
"""comparisons of each type"""
COMBINE: dict[str, Any] = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}


def set_predicate(kind: str, compare: Any, combine: Any) -> Form:
    """setp, optionally combined with a predicate; the second destination gets the complement."""

    def build(m: Machine, ins: Instruction) -> Step:
        targets = [m.writer(o) for o in registers(ins.operands[0])]
        a, b = m.reader(ins.operands[1], kind), m.reader(ins.operands[2], kind)
        c = m.reader(ins.operands[3], "pred") if combine is not None else None

        def step(lanes: Lanes) -> None:
            r = compare(a(lanes), b(lanes))
            other = ~np.asarray(r)
            if c is not None:
                p = c(lanes)
                r, other = combine(r, p), combine(other, p)
            targets[0](lanes, r)
            if len(targets) > 1:
                targets[1](lanes, other)
        return step
    return shaped("prr" if combine is None else "prrr", build)


def move(kind: str) -> Form:
    """mov: a register, or the parts of a wide register packed or unpacked."""

    def build(m: Machine, ins: Instruction) -> Step:
        if len(ins.operands) != 2:
            raise PtxError("2 operands expected")
        dst, src = ins.operands
        if dst.kind == "vec":
            parts = [m.writer(o) for o in dst.items]
            read, piece = m.reader(src, kind), np.dtype(f"u{NUMPY[kind].itemsize // len(parts)}")

            def unpack(lanes: Lanes) -> None:
                v = np.ascontiguousarray(np.atleast_1d(read(lanes))).view(piece).reshape(-1, len(parts))
                for i, put in enumerate(parts):
                    put(lanes, v[:, i])
            return unpack
        put = m.writer(dst)
        if src.kind == "vec":
            width = NUMPY[kind].itemsize * 8 // len(src.items)
            reads = [m.reader(o, f"b{width}", unwritten=True) for o in src.items]
            written = [m.known(o) for o in src.items]

            def values(lanes: Lanes) -> Any:
                out = np.asarray(reads[0](lanes)).astype(NUMPY[kind])
                for i, r in enumerate(reads[1:], 1):
                    out = out | np.asarray(r(lanes)).astype(NUMPY[kind]) << NUMPY[kind].type(i * width)
                return out

            def known(lanes: Lanes) -> Any:  # compilers pack a value with a part that nobody reads
                found = written[0](lanes)
                for w in written[1:]:
                    found = found | w(lanes)
                return found
            return m.moving(dst, known, put, values)
        return m.moving(dst, m.known(src), put, m.reader(src, kind, unwritten=True))
    return build


def select(kind: str) -> Form:
    """selp: a where the predicate holds, else b."""

    def build(m: Machine, ins: Instruction) -> Step:
        dst, first, second, predicate = ins.operands
        put, p = m.writer(dst), m.reader(predicate, "pred")
        a, b = m.reader(first, kind, unwritten=True), m.reader(second, kind, unwritten=True)
        known_a, known_b = m.known(first), m.known(second)
        return m.moving(dst, lambda lanes: np.where(p(lanes), known_a(lanes), known_b(lanes)), put,
                        lambda lanes: np.where(p(lanes), a(lanes), b(lanes)))
    return shaped("rrrr", build)


FORMS: dict[str, Form] = {
    **{f"mov.{k}": move(k) for k in NUMPY if k not in ("b8", "u8", "s8", "f16")},
    **{f"add.{k}": op((k, k), lambda a, b: a + b) for k in INTEGERS},
    **{f"sub.{k}": op((k, k), lambda a, b: a - b) for k in INTEGERS},
    **{f"mul.lo.{k}": op((k, k), lambda a, b: a * b) for k in INTEGERS},
    **{f"mul.hi.{k}": op((k, k), multiply_high) for k in INTEGERS},
    **{f"mul.wide.{k}": op((k, k), wide_product(k)) for k in WIDE},
    **{f"mad.lo.{k}": op((k, k, k), lambda a, b, c: a * b + c) for k in INTEGERS},
    **{f"mad.wide.{k}": op((k, k, WIDE[k]), wide_sum(k)) for k in WIDE},
    **{f"mad.hi.{k}": op((k, k, k), lambda a, b, c: multiply_high(a, b) + c) for k in ("s32", "u32")},
    **{f"div.{k}": op((k, k), divide) for k in INTEGERS},
    **{f"rem.{k}": op((k, k), remainder) for k in INTEGERS},
    **{f"min.{k}": op((k, k), np.minimum) for k in INTEGERS},
    **{f"max.{k}": op((k, k), np.maximum) for k in INTEGERS},
    **{f"abs.{k}": op((k,), np.abs) for k in SIGNED},
    **{f"neg.{k}": op((k,), lambda a: -np.asarray(a)) for k in SIGNED},
    **{f"and.{k}": op((k, k), np.bitwise_and) for k in ("b16", "b32", "b64", "pred")},
    **{f"or.{k}": op((k, k), np.bitwise_or) for k in ("b16", "b32", "b64", "pred")},
    **{f"xor.{k}": op((k, k), np.bitwise_xor) for k in ("b16", "b32", "b64", "pred")},
    **{f"not.{k}": op((k,), np.invert) for k in ("b16", "b32", "b64", "pred")},
    **{f"shl.{k}": op((k, "u32"), shift_left) for k in ("b16", "b32", "b64")},
    **{f"shr.{k}": op((k, "u32"), shift_right) for k in (*INTEGERS, "b16", "b32", "b64")},
    **{f"shf.l.{mode}.b32": op(("u32", "u32", "u32"), funnel_left) for mode in ("wrap",)},
    **{f"shf.r.{mode}.b32": op(("u32", "u32", "u32"), funnel_right) for mode in ("wrap",)},
    **{f"bfe.{k}": op((k, "u32", "u32"), extract) for k in ("u32", "s32", "u64", "s64")},
    **{f"bfi.{k}": op((k, k, "u32", "u32"), insert) for k in ("b32", "b64")},
    **{f"brev.{k}": op((k,), reverse_bits) for k in ("b32", "b64")},
    **{f"popc.{k}": op((k,), count_bits) for k in ("b32", "b64")},
    **{f"clz.{k}": op((k,), leading_zeros) for k in ("b32", "b64")},
    **{f"bfind.{k}": op((k,), find_highest) for k in ("u32", "u64")},
    **{f"bfind.shiftamt.{k}": op((k,), find_shift) for k in ("u32", "u64")},
    "prmt.b32": op(("b32", "b32", "b32"), permute),
    "lop3.b32": op(("b32", "b32", "b32", "b32"), lookup3),
    **{f"selp.{k}": select(k) for k in (*INTEGERS, "b16", "b32", "b64", "f32", "f64")},
    **{f"setp.{c}.{k}": set_predicate(k, f, None) for k, some in COMPARISONS.items() for c, f in some.items()},
    **{f"setp.{c}.{b}.{k}": set_predicate(k, f, g) for k, some in COMPARISONS.items() for c, f in some.items()
       for b, g in COMBINE.items()},
}
