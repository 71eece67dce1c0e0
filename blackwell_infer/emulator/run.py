"""The scheduler of the emulated device: basic blocks, branches, barriers, and the choice of what runs next."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from blackwell_infer.emulator.instructions import FORMS
from blackwell_infer.emulator.machine import EXITED, LANES, Lanes, Machine, Step
from blackwell_infer.emulator.memory import Heap
from blackwell_infer.emulator.parse import Entry, Instruction, Module, PtxError

ENDS = frozenset({"bra", "bra.uni", "ret", "exit", "ret.uni", "trap", "bar.sync", "barrier.sync",
                  "barrier.sync.aligned", "bar.arrive", "barrier.cta.sync.aligned.all"})
"""instructions that end a basic block"""


class Program:
    """A kernel cut in basic blocks: (instructions, terminator or None) each."""

    def __init__(self, entry: Entry) -> None:
        starts = sorted({0, *entry.labels.values(), *(i + 1 for i, x in enumerate(entry.code) if x.op in ENDS)})
        starts = [s for s in starts if s < len(entry.code)]
        self.target = {name: starts.index(at) if at < len(entry.code) else len(starts)
                       for name, at in entry.labels.items()}
        self.blocks: list[tuple[tuple[Instruction, ...], Instruction | None]] = []
        for a, b in zip(starts, [*starts[1:], len(entry.code)], strict=True):
            body = entry.code[a:b]
            last = body[-1] if body[-1].op in ENDS else None
            self.blocks.append((body[:-1] if last else body, last))


def launch(module: Module, name: str, heap: Heap, constants: dict[str, int], grid: tuple[int, int, int],
           block: tuple[int, int, int], params: bytes, dynamic: int = 0, seed: int | None = None) -> None:
    """Run a whole grid. `params` is the parameter block; `seed` turns on the random-warp schedule.

    PtxError carries the source line, the instruction and what went wrong.
    """
    if name not in module.entries:
        raise PtxError(f"no kernel {name!r} in this module; it has {sorted(module.entries)}")
    entry = module.entries[name]
    program = Program(entry)
    total = grid[0] * grid[1] * grid[2]
    padded = -(-block[0] * block[1] * block[2] // 32) * 32
    step = max(1, LANES // padded)
    with np.errstate(all="ignore"):
        for first in range(0, total, step):
            m = Machine(entry, module, heap, constants, grid, block, first, min(step, total - first), params, dynamic)
            _Run(m, program, seed).run()


class _Run:
    """One set of CTAs from start to exit."""

    def __init__(self, machine: Machine, program: Program, seed: int | None) -> None:
        self.m, self.program = machine, program
        self.random = None if seed is None else np.random.default_rng(seed)
        self.steps: list[Sequence[tuple[Instruction, Step]] | None] = [None] * len(program.blocks)

    def run(self) -> None:
        m, last = self.m, len(self.program.blocks)
        while True:
            lanes, at = self.choose()
            if at < 0:
                break
            while True:
                if at >= last:
                    self.exit(lanes)
                    break
                following = self.block(lanes, at)
                if following < 0 or lanes is not None or self.random is not None:
                    break
                at = following
        if (m.place != EXITED).any():
            stuck = int(np.flatnonzero(m.place != EXITED)[0])
            raise PtxError(f"{m.entry.name}: deadlock: thread {m.inside[stuck]} of CTA {m.cta[stuck]} waits at barrier "
                           f"{m.barrier[stuck]} that others never reach")

    def choose(self) -> tuple[Lanes, int]:
        """(lanes, block) to run next; block -1 when nothing can run."""
        place = self.m.place
        ready = place >= 0
        if not ready.any():
            return None, -1
        if self.random is not None:
            warps = np.unique(np.flatnonzero(ready) // 32)
            chosen = warps[self.random.random(len(warps)) < 0.3]
            if not len(chosen):
                chosen = self.random.choice(warps, 1)
            mask = np.zeros(self.m.lanes // 32, bool)
            mask[chosen] = True
            ready &= np.repeat(mask, 32)
        at = int(place[ready].min())
        here = ready & (place == at)
        return (None if here.all() else np.flatnonzero(here)), at

    def build(self, at: int) -> Sequence[tuple[Instruction, Step]]:
        m, made = self.m, []
        for ins in self.program.blocks[at][0]:
            form = FORMS.get(ins.op)
            if form is None:
                raise PtxError(f"{m.entry.name}, line {ins.line}: {ins.text}: the form {ins.op!r} is not known to the "
                               "emulator; add it in blackwell_infer/emulator/instructions")
            try:
                step = form(m, ins)
            except (PtxError, IndexError, KeyError) as e:
                raise PtxError(f"{m.entry.name}, line {ins.line}: {ins.text}: {e}") from e
            made.append((ins, self.guarded(ins, step) if ins.guard else step))
        self.steps[at] = made
        return made

    def guarded(self, ins: Instruction, step: Step) -> Step:
        m, predicate, negated = self.m, self.m.registers[ins.guard], ins.negated

        def run(lanes: Lanes) -> None:
            p = predicate if lanes is None else predicate[lanes]
            if negated:
                p = ~p
            if p.all():
                step(lanes)
            elif p.any():
                step(m.indices(lanes)[p])
        return run

    def block(self, lanes: Lanes, at: int) -> int:
        """Run a block; returns the next block if all lanes of the machine go there together, else -1."""
        m = self.m
        ins: Instruction | None = None
        try:
            for ins, step in self.steps[at] or self.build(at):  # noqa: B007 - named in the error below
                step(lanes)
        except PtxError as e:
            if ins is None or str(e).startswith(m.entry.name):
                raise
            raise PtxError(f"{m.entry.name}, line {ins.line}: {ins.text}: {e}") from e
        end = self.program.blocks[at][1]
        if end is None:
            m.place[... if lanes is None else lanes] = at + 1
            return at + 1
        n = m.indices(lanes)
        if end.guard:
            p = m.registers[end.guard][n]
            p = ~p if end.negated else p
            taken, rest = n[p], n[~p]
        else:
            taken, rest = n, n[:0]
        m.place[rest] = at + 1
        if len(taken):
            self.leave(end, taken, at)
        if lanes is None and (len(rest) == 0 or len(taken) == 0):
            following = m.place[0]
            return int(following) if (m.place == following).all() else -1
        return -1

    def leave(self, end: Instruction, taken: np.ndarray[Any, np.dtype[np.int64]], at: int) -> None:
        m = self.m
        if end.op.startswith("bra"):
            m.place[taken] = self.program.target[end.operands[0].name]
        elif end.op in ("ret", "exit", "ret.uni"):
            self.exit(taken)
        elif end.op == "trap":
            raise PtxError(f"{m.entry.name}, line {end.line}: trap")
        else:
            numbers = [o.value for o in end.operands if o.kind == "imm"]
            if len(numbers) != len(end.operands):
                raise PtxError(f"{m.entry.name}, line {end.line}: {end.text}: barrier operands must be constants")
            number, count = [*numbers, 0, 0][:2]
            if end.op == "bar.arrive":
                raise PtxError(f"{m.entry.name}, line {end.line}: bar.arrive is not emulated")
            m.arrive(taken, number, count, at + 1)

    def exit(self, lanes: Lanes) -> None:
        self.m.place[self.m.indices(lanes)] = EXITED
        self.m.release()
