"""The scheduler of the emulated device: basic blocks, branches, barriers, and the choice of what runs next.

The lanes at the lowest block run first, which makes diverged lanes of a warp meet again (min-PC reconvergence). With a
seed, random subsets of warps run instead, so that code which lacks a barrier reads what is not yet written. Warps that
branch backwards very often let others run first, so a loop that waits for another warp ends.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from blackwell_infer.emulator.barriers import NUMBERS, Barriers
from blackwell_infer.emulator.flow import doubtful
from blackwell_infer.emulator.instructions import FORMS
from blackwell_infer.emulator.instructions.shape import check_operands
from blackwell_infer.emulator.machine import EXITED, PATIENCE, Indices, Lanes, Machine, Step
from blackwell_infer.emulator.memory import Heap, LaneError
from blackwell_infer.emulator.parse import Entry, Instruction, Module, Operand, PtxError, parse_module

BRANCHES, RETURNS = frozenset({"bra", "bra.uni"}), frozenset({"ret", "exit", "ret.uni"})
SYNC = frozenset({"bar.sync", "barrier.sync.aligned", "barrier.cta.sync.aligned", "barrier.sync", "barrier.cta.sync",
                  "barrier.cta.sync.aligned.all", "bar.cta.sync"})
ARRIVE = frozenset({"bar.arrive", "bar.cta.arrive", "barrier.arrive.aligned", "barrier.cta.arrive.aligned",
                    "barrier.arrive", "barrier.cta.arrive"})
REDUCE = {f"{head}.red.{kind}{tail}.{out}": kind for kind, out in (("popc", "u32"), ("and", "pred"), ("or", "pred"))
          for head in ("bar", "bar.cta", "barrier", "barrier.cta") for tail in ("", ".aligned")}
UNALIGNED = frozenset({"barrier.sync", "barrier.cta.sync", "barrier.arrive", "barrier.cta.arrive"})
ENDS: Mapping[str, str] = {**dict.fromkeys(BRANCHES, "l"), **dict.fromkeys([*RETURNS, "trap"], ""),
                           **dict.fromkeys(SYNC, "r/r"), **dict.fromkeys(ARRIVE, "rr"),
                           **dict.fromkeys(REDUCE, "rrr/r")}
"""instructions that end a basic block, and their operands (`shape.check_operands`)"""
MISFITS = (PtxError, IndexError, KeyError, ValueError, TypeError)
"""what a builder of `FORMS` may raise for operands that it cannot use"""
LANES = 8192
"""lanes that run at once; larger grids run in several goes, as CTAs are independent"""
STALL = 100_000
"""blocks without a store, an arrival or an exit after which nothing is taken to make progress any more"""
WAITS = 5000
"""waits in vain at mbarriers after which the same is taken to hold"""
KEPT = 1 << 22
"""registers times lanes of the machines that stay built between launches"""
TEXTS = 1024
"""texts of PTX, and kernels, that stay read"""
AHEAD = 0.5
"""chance that in a random schedule not the lowest block runs but that of any warp, so that warps get far ahead"""
CONTINUE = 0.75
"""chance that a random subset of warps runs on after a block"""


class Program:
    """A kernel cut in basic blocks: (instructions, terminator or None) each. `watched` registers may be read before
    they are written."""

    def __init__(self, module: Module, entry: Entry) -> None:
        self.module, self.entry = module, entry
        code = entry.code
        for ins in code:
            check_known(entry.name, ins)
        starts = sorted({0, *entry.labels.values(), *(i + 1 for i, x in enumerate(code) if x.op in ENDS)})
        starts = [s for s in starts if s < len(code)]
        number = {s: i for i, s in enumerate(starts)}
        self.target = {name: number.get(at, len(starts)) for name, at in entry.labels.items()}
        self.blocks: list[tuple[tuple[Instruction, ...], Instruction | None]] = []
        graph: list[tuple[tuple[Instruction, ...], tuple[int, ...]]] = []
        for at, (a, b) in enumerate(zip(starts, [*starts[1:], len(code)], strict=True)):
            body = code[a:b]
            last = body[-1] if body[-1].op in ENDS else None
            self.blocks.append((body[:-1] if last else body, last))
            graph.append((body, self.following(at, last)))
        self.watched = doubtful(graph, entry.registers) if graph else set()

    def following(self, at: int, last: Instruction | None) -> tuple[int, ...]:
        if last is None or (last.op not in BRANCHES and last.op not in RETURNS and last.op != "trap"):
            return (at + 1,)
        through = (at + 1,) if last.guard else ()
        if last.op not in BRANCHES:
            return through
        name = last.operands[0].name
        if name not in self.target:
            raise PtxError(f"{label(self.entry.name, last)}: there is no label {name}")
        return (self.target[name], *through)


@lru_cache(maxsize=TEXTS)
def module_of(text: str) -> Module:
    """`parse_module`, once per text: many queues of one process run the same kernels."""
    return parse_module(text)


@lru_cache(maxsize=TEXTS)
def program_of(module: Module, name: str) -> Program:
    """A kernel of a module. PtxError: there is none of this name."""
    if name not in module.entries:
        raise PtxError(f"no kernel {name!r} in this module; it has {sorted(module.entries)}")
    return Program(module, module.entries[name])


class Emulator:
    """Runs launches against one heap. Machines stay built between launches of the same shape."""

    def __init__(self, heap: Heap) -> None:
        self.heap = heap
        self._runs: dict[tuple[Any, ...], Run] = {}

    def launch(self, module: Module, name: str, constants: Mapping[str, int], grid: tuple[int, int, int],
               block: tuple[int, int, int], params: bytes, dynamic: int = 0, seed: int | None = None) -> None:
        """Run a whole grid. `constants` are the addresses of the module's global variables, `params` the parameter
        block; `seed` turns on the random schedule.

        PtxError carries the kernel, the PTX line, the source line, the instruction, and what went wrong where.
        """
        program = program_of(module, name)
        total = grid[0] * grid[1] * grid[2]
        ctas = min(max(1, LANES // (-(-block[0] * block[1] * block[2] // 32) * 32)), total)
        shape = (id(module), name, block, ctas, dynamic)
        if shape not in self._runs:
            if sum(r.weight for r in self._runs.values()) > KEPT:
                self._runs.clear()
            self._runs[shape] = Run(program, self.heap, constants, block, ctas, dynamic)
        random = None if seed is None else np.random.default_rng(seed)
        with np.errstate(all="ignore"):
            for first in range(0, total, ctas):
                self._runs[shape].run(grid, first, min(ctas, total - first), params, random)


def launch(module: Module, name: str, heap: Heap, constants: Mapping[str, int], grid: tuple[int, int, int],
           block: tuple[int, int, int], params: bytes, dynamic: int = 0, seed: int | None = None) -> None:
    """One launch, see `Emulator.launch`."""
    Emulator(heap).launch(module, name, constants, grid, block, params, dynamic, seed)


class Run:
    """A program bound to a machine: runs sets of CTAs from start to exit."""

    def __init__(self, program: Program, heap: Heap, constants: Mapping[str, int], block: tuple[int, int, int],
                 ctas: int, dynamic: int) -> None:
        self.program = program
        self.m = Machine(program.entry, program.module, heap, constants, block, ctas, dynamic, program.watched)
        self.barriers = Barriers(self.m)
        self.reductions: dict[int, tuple[Callable[[Lanes, Any], None], str]] = {}
        self.random: np.random.Generator | None = None
        self.steps: list[Sequence[tuple[Instruction, Step]] | None] = [None] * len(program.blocks)
        self.ends: list[Callable[[Lanes], int]] = [self.ending(at) for at in range(len(program.blocks))]
        self.weight = len(program.entry.registers) * self.m.lanes

    def run(self, grid: tuple[int, int, int], first: int, count: int, params: bytes,
            random: np.random.Generator | None) -> None:
        m, last = self.m, len(self.program.blocks)
        m.bind(grid, first, count, params)
        self.barriers.reset()
        self.random = random
        stalled, seen = 0, m.progress
        while True:
            lanes, at, limit = self.choose(stalled > STALL // 2 or m.vain > WAITS // 2)
            if at < 0:
                break
            while True:
                if at >= last:
                    self.exit(lanes)
                    break
                following = self.block(lanes, at)
                if m.progress != seen:
                    stalled, m.vain, seen = 0, 0, m.progress
                else:
                    stalled += 1
                    if stalled > STALL or m.vain > WAITS:
                        raise self.stuck(at)
                if following < 0:
                    break
                if following >= limit or m.vain or stalled > STALL // 2 or (
                        random is not None and random.random() > CONTINUE):
                    m.place[... if lanes is None else lanes] = following
                    break
                at = following
        waiting = np.flatnonzero(m.place != EXITED)
        if len(waiting):
            lane = int(waiting[0])
            ins = self.program.blocks[int(self.barriers.resume[lane]) - 1][1]
            assert ins is not None
            raise PtxError(f"{self.label(ins)}: deadlock: {m.where(lane)} waits at barrier "
                           f"{self.barriers.number[lane]} that others never reach")
        try:
            m.asynchronous.check_end()
        except LaneError as e:
            raise PtxError(f"{m.entry.name}: {e}; {m.where(e.at)}") from e

    def choose(self, stalled: bool) -> tuple[Lanes, int, int]:
        """(lanes, block, limit) to run next; they may run on alone while they stay below block `limit`. Block -1: none
        can run."""
        place = self.m.place
        ready = place >= 0
        if not ready.any():
            return None, -1, -1
        limit = len(self.program.blocks) + 1
        if self.random is not None:
            warps = np.unique(np.flatnonzero(ready) // 32)
            chosen = warps[self.random.random(len(warps)) < 0.3]
            if not len(chosen):
                chosen = self.random.choice(warps, 1)
            mask = np.zeros(self.m.lanes // 32, bool)
            mask[chosen] = True
            ready &= np.repeat(mask, 32)
        elif self.m.spins.max() >= PATIENCE:
            epoch = self.m.spins.reshape(-1, 32).max(axis=1) // PATIENCE
            epoch[~ready.reshape(-1, 32).any(axis=1)] = np.iinfo(np.int64).max
            ready &= np.repeat(epoch == epoch.min(), 32)
        if stalled:                       # threads of one warp may wait for each other: try any order
            places = np.unique(place[ready])
            at = int(np.random.default_rng(int(self.m.progress) + int(self.m.spins.sum())).choice(places))
            limit = -1
        else:
            at = int(place[ready].min())
            if self.random is not None and self.random.random() < AHEAD:
                lowest = np.where(ready, place, np.iinfo(np.int64).max).reshape(-1, 32).min(axis=1)
                at = int(lowest[self.random.choice(chosen)])
                ready &= np.repeat(lowest == at, 32)
        here = ready & (place == at)
        n = np.flatnonzero(here)
        if len(n) == self.m.lanes:
            return None, at, limit
        others = place[ready & ~here]
        if len(others) and limit > 0:
            limit = int(others.min())
        lanes = slice(int(n[0]), int(n[-1]) + 1) if n[-1] - n[0] + 1 == len(n) else n
        return lanes, at, limit

    def stuck(self, at: int) -> PtxError:
        m = self.m
        lane = int(np.flatnonzero(m.place != EXITED)[0])
        body, end = self.program.blocks[at]
        ins = end or body[-1]
        return PtxError(f"{self.label(ins)}: deadlock: no thread stores, arrives or exits any more; {m.where(lane)} is "
                        "among those that still wait")

    # -- instructions -----------------------------------------------------------------------------------------------

    def label(self, ins: Instruction) -> str:
        return label(self.m.entry.name, ins)

    def build(self, at: int) -> Sequence[tuple[Instruction, Step]]:
        m, made = self.m, []
        for ins in self.program.blocks[at][0]:
            try:
                step = FORMS[ins.op](m, ins)
                made.append((ins, self.guarded(m.reader(guard_of(ins), "pred"), step) if ins.guard else step))
            except MISFITS as e:
                what = str(e) if isinstance(e, PtxError) else f"the operands do not fit this form ({e})"
                raise PtxError(f"{self.label(ins)}: {what}") from e
        self.steps[at] = made
        return made

    def guarded(self, predicate: Callable[[Lanes], Any], step: Step) -> Step:
        m = self.m

        def run(lanes: Lanes) -> None:
            p = predicate(lanes)
            if p.all():
                step(lanes)
            elif p.any():
                step(m.indices(lanes)[p])
        return run

    def fault(self, ins: Instruction, lanes: Lanes, e: PtxError) -> PtxError:
        """The error with its place in the program and among the threads."""
        where = ""
        if isinstance(e, LaneError):
            n = self.m.indices(lanes)
            where = f"; {self.m.where(int(n[min(e.at, len(n) - 1)]))}"
        return PtxError(f"{self.label(ins)}: {e}{where}")

    def block(self, lanes: Lanes, at: int) -> int:
        """Run a block; returns the next block if all lanes go there together, else -1 with their places set."""
        ins, m = None, self.m
        try:
            for ins, step in self.steps[at] or self.build(at):  # noqa: B007 - named in the errors below
                step(lanes)
            ins = self.program.blocks[at][1]
            return self.ends[at](lanes)
        except LaneError as e:
            if ins is None:
                raise
            if ins.guard:
                lanes = m.indices(lanes)[m.registers[ins.guard][... if lanes is None else lanes] ^ ins.negated]
            raise self.fault(ins, lanes, e) from e
        except PtxError as e:
            if ins is None or str(e).startswith(m.entry.name + ","):
                raise
            raise self.fault(ins, lanes, e) from e

    def ending(self, at: int) -> Callable[[Lanes], int]:
        """`end`, whose errors carry the place."""
        try:
            return self.end(at)
        except PtxError as e:
            ins = self.program.blocks[at][1]
            raise (self.fault(ins, None, e) if ins else e) from e

    def end(self, at: int) -> Callable[[Lanes], int]:
        """What happens after the last instruction of a block."""
        m, ins = self.m, self.program.blocks[at][1]
        if ins is None:
            return lambda lanes: at + 1
        if ins.op in BRANCHES:
            target = self.program.target[ins.operands[0].name]
            taken: Callable[[Lanes], int] = (lambda lanes: target) if target > at else (
                lambda lanes: self.back(lanes, target))
        elif ins.op in RETURNS:
            taken = self.exit
        elif ins.op == "trap":
            def taken(lanes: Lanes) -> int:
                raise LaneError("trap", 0)
        else:
            taken = self.barrier(ins, at)
        if not ins.guard:
            return taken
        predicate = m.reader(guard_of(ins), "pred")

        def run(lanes: Lanes) -> int:
            p = predicate(lanes)
            if p.all():
                return taken(lanes)
            if not p.any():
                return at + 1
            n = m.indices(lanes)
            m.place[n[~p]] = at + 1
            following = taken(n[p])
            if following >= 0:
                m.place[n[p]] = following
            return -1
        return run

    def back(self, lanes: Lanes, target: int) -> int:
        if lanes is not None:
            self.m.spins[lanes] += 1
        return target

    def exit(self, lanes: Lanes) -> int:
        self.m.place[... if lanes is None else lanes] = EXITED
        self.m.progress += 1
        self.opened(self.barriers.release())
        return -1

    def opened(self, go: Indices) -> None:
        """Lanes that leave a barrier which votes get its result."""
        for then, (result, kind) in self.reductions.items():
            here = self.barriers.resume[go] == then
            if here.any():
                result(go[here], self.barriers.reduce(go, kind)[here])

    def barrier(self, ins: Instruction, at: int) -> Callable[[Lanes], int]:
        m, barriers = self.m, self.barriers
        operands = ins.operands
        if ins.op in REDUCE:
            self.reductions[at + 1] = m.writer(operands[0]), REDUCE[ins.op]
            vote: Callable[[Lanes], Any] | None = m.reader(operands[-1], "pred")
            operands = operands[1:-1]
        else:
            vote = None
        number = m.reader(operands[0], "u32")
        count = m.reader(operands[1], "u32") if len(operands) > 1 else None
        wait, aligned = ins.op not in ARRIVE, ins.op not in UNALIGNED
        constant = operands[0].kind == "imm" and operands[0].value < NUMBERS

        def arrive(lanes: Lanes) -> int:
            n = m.indices(lanes)
            if vote is not None:
                barriers.vote[n] = vote(lanes)
            elif wait and count is None and lanes is None and constant:
                return at + 1                                       # every thread is here: the barrier opens at once
            if not wait:
                m.place[n] = at + 1
            self.opened(barriers.arrive(n, number(lanes), 0 if count is None else count(lanes), at + 1, wait, aligned))
            return -1
        return arrive


def label(entry: str, ins: Instruction) -> str:
    """Where an instruction stands, and what it is."""
    source = f" ({ins.source})" if ins.source else ""
    return f"{entry}, line {ins.line}{source}: {ins.text}"


def check_known(entry: str, ins: Instruction) -> None:
    """PtxError for a form that is not on the whitelist, whether or not it would be reached."""
    if ins.op not in ENDS and ins.op not in FORMS:
        raise PtxError(f"{label(entry, ins)}: the form {ins.op!r} is not known to the emulator; add it in "
                       "blackwell_infer/emulator/instructions")
    if ins.op in ENDS:
        try:
            check_operands(ins, ENDS[ins.op])
        except PtxError as e:
            raise PtxError(f"{label(entry, ins)}: {e}") from e


def guard_of(ins: Instruction) -> Operand:
    """The guard as an operand."""
    return Operand("reg", ins.guard, negated=ins.negated)
