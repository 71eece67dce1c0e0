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


def registers(o: Operand) -> tuple[Operand, ...]:
    """The items of a vector operand, or the operand itself."""
    return o.items if o.kind in ("vec", "pair") else (o,)
