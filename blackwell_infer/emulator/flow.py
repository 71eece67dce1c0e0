"""Which registers may be read before they are written: definite assignment over the basic blocks of a kernel.

Only the registers found here are watched while the kernel runs, so the check costs nothing elsewhere.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from blackwell_infer.emulator.parse import Instruction, Operand

NO_DESTINATION = ("st.", "red.", "bar.sync", "bar.arrive", "barrier.sync", "barrier.cta.sync", "barrier.cta.arrive",
                  "barrier.arrive", "cp.", "stmatrix.", "fence.", "membar.", "prefetch", "griddepcontrol.", "bra",
                  "ret", "exit", "trap", "nanosleep.", "mbarrier.init.", "mbarrier.inval.", "mbarrier.expect_tx.",
                  "mbarrier.complete_tx.", "bar.warp.sync", "setmaxnreg.")
"""instructions whose first operand is a source"""


def names(o: Operand) -> Iterator[str]:
    if o.kind == "reg":
        yield o.name
    for item in o.items:
        yield from names(item)


def uses(ins: Instruction) -> tuple[list[str], list[str]]:
    """(registers read, registers written)."""
    at = 0 if ins.op.startswith(NO_DESTINATION) else 1
    written = [n for o in ins.operands[:at] for n in names(o)]
    read = [n for o in ins.operands[at:] for n in names(o)]
    return ([ins.guard, *read] if ins.guard else read), written


def is_copy(ins: Instruction) -> bool:
    """Whether an instruction only moves registers: it may move one that was never written (compilers emit such moves
    for values that are not used), and the target then counts as unwritten too."""
    return ins.op.startswith(("mov.", "selp.")) and all(o.kind != "vec" for o in ins.operands)


class Effect(msgspec.Struct, frozen=True, gc=False):
    """An instruction as bit masks of registers: `checked` are read, `moved` are copied to `written`."""

    checked: int
    moved: int
    written: int
    guarded: bool

    def after(self, known: int) -> int:
        """The definitely written registers after the instruction."""
        if self.moved & ~known:
            return known & ~self.written
        return known if self.guarded else known | self.written


def effect(ins: Instruction, bit: Mapping[str, int]) -> Effect:
    read, written = (sum({bit.get(n, 0) for n in part}) for part in uses(ins))
    moved = 0
    if is_copy(ins):
        moved = sum({bit.get(n, 0) for o in ins.operands[1:3] for n in names(o)})
        read = sum({bit.get(n, 0) for n in [*(n for o in ins.operands[3:] for n in names(o)), ins.guard]})
    return Effect(read, moved, written, bool(ins.guard))


def doubtful(blocks: Sequence[tuple[Sequence[Instruction], Sequence[int]]], registers: Mapping[str, int]) -> set[str]:
    """Registers with a read that some path reaches without a write. Blocks are (instructions, successors); successors
    past the last block mean the end of the kernel."""
    bit = {name: 1 << i for i, name in enumerate(registers)}
    effects = [[effect(ins, bit) for ins in code] for code, _ in blocks]
    known = [0, *[(1 << len(bit)) - 1] * (len(blocks) - 1)]
    queue, seen = [0], {0}
    while queue:
        at = queue.pop()
        out = known[at]
        for e in effects[at]:
            out = e.after(out)
        for following in blocks[at][1]:
            if following < len(blocks):
                met = known[following] & out
                if met != known[following] or following not in seen:
                    known[following] = met
                    seen.add(following)
                    queue.append(following)
    found = 0
    for at in seen:
        now = known[at]
        for e in effects[at]:
            found |= (e.checked | e.moved) & ~now
            now = e.after(now)
    return {name for name, mask in bit.items() if found & mask}
