"""Builders for the common instruction shapes: a destination and one to three sources of given types."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

from blackwell_infer.emulator.machine import Lanes, Machine, Step
from blackwell_infer.emulator.parse import Instruction, Operand, PtxError

Form = Callable[[Machine, Instruction], Step]
Function = Callable[..., Any]


def op(kinds: tuple[str, ...], function: Function) -> Form:
    """dst = function(sources) with one type per source."""

    def build(m: Machine, ins: Instruction) -> Step:
        if len(ins.operands) != len(kinds) + 1:
            raise PtxError(f"{len(kinds) + 1} operands expected")
        put = m.writer(ins.operands[0])
        read = [m.reader(o, k) for o, k in zip(ins.operands[1:], kinds, strict=True)]
        if len(read) == 1:
            a = read[0]
            return lambda lanes: put(lanes, function(a(lanes)))
        if len(read) == 2:
            a, b = read
            return lambda lanes: put(lanes, function(a(lanes), b(lanes)))
        if len(read) == 3:
            a, b, c = read
            return lambda lanes: put(lanes, function(a(lanes), b(lanes), c(lanes)))
        return lambda lanes: put(lanes, function(*(r(lanes) for r in read)))
    return build


def nothing(m: Machine, ins: Instruction) -> Step:
    """An instruction without effect in the emulator."""

    def step(lanes: Lanes) -> None:
        return None
    return step


def shaped(wanted: str, form: Form) -> Form:
    """`form` behind a check of the operands, see `check_operands`."""

    def build(m: Machine, ins: Instruction) -> Step:
        check_operands(ins, wanted)
        return form(m, ins)
    return build


def check_operands(ins: Instruction, wanted: str) -> None:
    """PtxError unless the operands are those of `wanted`, one letter each: r a register or a constant, i a constant,
    l a label, p a register or a pair d|p, a an address, t a tensor's address with coordinates, 2 (any digit) a vector
    of so many (1: also without braces). Those after a / may be missing."""
    needed, _, more = wanted.partition("/")
    letters = needed + more
    if not len(needed) <= len(ins.operands) <= len(letters):
        raise PtxError(f"{len(ins.operands)} operands; {len(needed)}{f' to {len(letters)}' if more else ''} expected")
    for i, (o, letter) in enumerate(zip(ins.operands, letters, strict=False), 1):
        if not fits(o, letter):
            raise PtxError(f"operand {i} is no {MEANING.get(letter) or f'vector of {letter} registers'}")


MEANING = {"r": "register or constant", "i": "constant", "l": "label", "p": "register or pair of them",
           "a": "address in brackets", "t": "tensor map with coordinates in brackets"}


def fits(o: Operand, letter: str) -> bool:
    if letter.isdigit():
        return (o.kind == "vec" and len(o.items) == int(letter)) or (letter == "1" and o.kind in ("reg", "imm", "sink"))
    if letter in "at":
        return o.kind == "addr" and len(o.items) == (1 if letter == "a" else 2)
    return o.kind in {"r": ("reg", "imm", "sym", "sink"), "i": ("imm",), "l": ("sym",), "p": ("reg", "pair", "sink")}[
        letter]


def registers(o: Operand) -> tuple[Operand, ...]:
    """The items of a vector operand, or the operand itself."""
    return o.items if o.kind in ("vec", "pair") else (o,)
