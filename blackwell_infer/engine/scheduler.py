"""Which tokens run in the next step: pure functions over plain data, `plan` and `begin`; `engine.commit` is the third.

`begin` is the state once a planned step was launched, `commit` the one once its tokens are known. Steps may be planned
and begun before the last one is committed: a sequence is then taken to go on, its token is `UNKNOWN` to the host, and
if that token ends it, what later steps did for it is dropped.

A row may bring guesses after its newest token (`extend`). They are checked by what is sampled after each token
(`engine.guesses.accepted`), and the sequence is not planned again before `commit` knows how many of them hold.

A sequence is one answer (or one text to score). It waits, runs, and may be preempted: its pages are taken away and it
waits again with the tokens it has, which are prefilled anew when it is admitted again (recompute). Nothing that was
emitted is lost or repeated.

A page that is full, and whose step was read, goes into the prefix cache (`kv.prefix`): a sequence that is admitted
starts after the longest beginning it finds there. What nobody holds is evicted when a page is needed and none is free.
Invariants between steps:

- a page is free, or in the prefix cache, or belongs to one sequence; nobody writes to what is in the cache;
- of two that wait, the one of higher priority, or of equal ones the older, is admitted first; nobody loses pages to
  make room for one that waits, but what runs takes them from those that come after it;
- a step advances some sequence, and what stands in the way of the first one is bounded, so every sequence ends, unless
  ones of higher priority never cease to come.
"""
from __future__ import annotations

from bisect import insort
from collections.abc import Mapping
from collections.abc import Sequence as Items

import msgspec

from blackwell_infer.engine.guesses import leveled
from blackwell_infer.engine.prefix import coming, let_go, resumed, snapshot_ends
from blackwell_infer.engine.sequences import (
    UNKNOWN,
    Limits,
    Plan,
    Row,
    Sequence,
    State,
    mask,
    pages_for,
)
from blackwell_infer.errors import QueueFullError, RequestError
from blackwell_infer.kv.prefix import Prefix
from blackwell_infer.kv.spec import PAGE

__all__ = ["UNKNOWN", "Limits", "Plan", "Row", "Sequence", "State", "admitted", "begin", "cancel", "check_queue",
           "mask", "pages_for", "plan", "rank", "shares", "start", "submit"]

LEAST_SHARE = 256
"""Tokens below which a step's prefill budget is not divided further."""

EVICTED = 128
"""When a page must be evicted, so many go that this times as many would empty the cache: looking for them takes time"""

def start(limits: Limits) -> State:
    """Nothing runs and every page is free."""
    return State(free=(1 << limits.pages) - 1, prefix=Prefix(free=(1 << limits.states) - 1), reuse=limits.reuse)


def admitted(limits: Limits, sequence: Sequence) -> Sequence:
    """The sequence with its answer limited by the context. RequestError if it can never run."""
    room = min(limits.context, limits.pages * PAGE)
    asked = len(sequence.prompt)
    if not asked:
        raise RequestError("the prompt is empty; give at least one token")
    if asked > room or (asked == room and not sequence.score):
        raise RequestError(f"the prompt has {asked} tokens and the context holds {room}, prompt and answer together; "
                           f"shorten the prompt or raise {'max_context' if room == limits.context else 'kv_pages'}")
    return sequence if sequence.score else msgspec.structs.replace(sequence, limit=min(sequence.limit, room - asked))


def submit(state: State, limits: Limits, sequence: Sequence) -> State:
    """Queue a sequence behind all others of its priority. RequestError if it can never run."""
    waiting = list(state.waiting)
    insort(waiting, admitted(limits, sequence), key=rank)
    return msgspec.structs.replace(state, waiting=tuple(waiting))


def check_queue(limits: Limits, present: int, more: int) -> None:
    """QueueFullError if so many more sequences find no room beside the `present` ones that run or wait."""
    if limits.queue is not None and present + more > limits.batch + limits.queue:
        raise QueueFullError(f"{present} answers run or wait and {more} more were asked for; {limits.batch} run at "
                             f"once and {limits.queue} may wait: try again later, or raise max_queue")


def cancel(state: State, ids: frozenset[int]) -> State:
    """Forget sequences, wherever they stand; unknown ids are none of its business."""
    prefix, pages = let_go(state.prefix, [s for s in state.running if s.id in ids])
    return msgspec.structs.replace(state, free=state.free | mask(pages), prefix=prefix,
                                   waiting=tuple(s for s in state.waiting if s.id not in ids),
                                   running=tuple(s for s in state.running if s.id not in ids))


def plan(state: State, limits: Limits, guesses: Mapping[int, tuple[int, ...]] | None = None) -> Plan:
    """The next step: decode rows first, then chunks of prompts in order of rank, new ones among them.

    Prompts share the tokens that decoding leaves: the first takes half, the next half of the rest, and so on; what is
    left over goes to the first one first. So a long prompt advances in every step and short ones behind it wait little.
    A sequence without a free page takes those of the last running one (recompute later). `guesses` by sequence id
    come last, into what is left of the step.
    """
    draft = Draft(state, limits)
    for s in state.running:
        ready = s.pending == 1 and not s.score and not s.full and not s.spares
        if ready and draft.budget > 0 and s.id not in draft.preempted:
            draft.decode(s)
    prompts = [s for s in state.running if (s.pending > 1 or s.score) and s.id not in draft.preempted]
    prompts = sorted(prompts + draft.admissible(prompts), key=rank)
    for s, share in zip(prompts, shares(draft.wanted(prompts), draft.budget), strict=True):
        if s.id in draft.preempted or (not share and s.slot >= 0):
            continue
        if not share or not draft.prefill(s, share):
            break
    draft.extend(guesses or {})
    return draft.plan()


def rank(s: Sequence) -> tuple[int, int]:
    """`Sequence.rank`, for sorting."""
    return s.rank


def shares(wanted: Items[int], budget: int) -> list[int]:
    """Tokens of each prompt, first ones first; they sum to at most `budget`."""
    given = []
    for want in wanted:
        given.append(min(want, max(-(-budget // 2), min(budget, LEAST_SHARE))))
        budget -= given[-1]
    for i, want in enumerate(wanted):
        more = min(want - given[i], budget)
        given[i] += more
        budget -= more
    return given


class Draft:
    """A plan in the making; lives within one call of `plan`."""

    def __init__(self, state: State, limits: Limits) -> None:
        self.state = state
        self.limits = limits
        self.free = state.free
        self.prefix = state.prefix
        self.found: dict[int, Sequence] = {}
        """waiting sequences that might be admitted, holding what the cache has of them"""
        self.budget = limits.step_tokens
        self.running = list(state.running)
        self.preempted: dict[int, Sequence] = {}
        self.rows: dict[int, Row] = {}

    @property
    def room(self) -> int:
        """Pages that are free or can be made so without taking them from anybody."""
        return self.free.bit_count() + self.prefix.idle

    def drop(self, s: Sequence) -> None:
        """Preempt a running sequence."""
        self.preempted[s.id] = s
        self.prefix, pages = let_go(self.prefix, [s])
        self.free |= mask(pages)

    def take(self, count: int) -> tuple[int, ...]:
        """The lowest free pages; some more are evicted from the cache at once if there are too few."""
        lacking = count - self.free.bit_count()
        if lacking > 0:
            self.prefix, evicted = self.prefix.evict(max(lacking, self.limits.pages // EVICTED))
            self.free |= mask(evicted)
        taken = []
        for _ in range(count):
            low = self.free & -self.free
            taken.append(low.bit_length() - 1)
            self.free ^= low
        return tuple(taken)

    def preempt_last(self, than: Sequence) -> bool:
        """Take the pages of the last running sequence, if it comes after `than` and has no row yet."""
        victim = self.running[-1] if self.running else None
        if victim is None or victim.rank <= than.rank or victim.id in self.rows:
            return False
        self.running.pop()
        self.drop(victim)
        return True

    def decode(self, s: Sequence) -> None:
        """One token of a running sequence, if there is a page for it."""
        need = max(pages_for(s.cached + 1) - len(s.pages), 0)
        while self.room < need:
            if not self.preempt_last(s):
                self.running.pop()  # it is the last one itself
                self.drop(s)
                return
        self.add(s, 1, need)

    def wanted(self, prompts: Items[Sequence]) -> list[int]:
        """Tokens that each prompt could take; scored ones share `score_tokens`, oldest first."""
        found, left = [], self.limits.score_tokens
        for s in prompts:
            found.append(min(s.pending, left) if s.score else s.pending)
            left -= found[-1] if s.score else 0
        return found

    def admissible(self, prompts: Items[Sequence]) -> list[Sequence]:
        """Waiting sequences, in order, whose whole prompt fits the free pages beside what is running, from the end of
        what is cached of them.

        One page per running sequence is spared, so that admitting one does not preempt it at once.
        """
        if self.preempted:
            return []
        spared = sum(max(pages_for(s.length) - len(s.pages), 0) for s in prompts)
        for s in self.state.waiting:
            running = len(self.running) + len(self.found)
            if running >= self.limits.batch or s.ahead:
                break
            before = self.prefix
            hit, self.prefix = resumed(s, self.limits, before)
            need = pages_for(s.length) - len(hit.pages)
            if need + running + spared > self.room or coming(hit, (*self.running, *self.found.values()), self.limits):
                self.prefix = before
                break
            spared += need
            self.found[s.id] = hit
        return list(self.found.values())

    def prefill(self, s: Sequence, count: int) -> bool:
        """Up to `count` tokens of a prompt, as pages allow. False if it found too few: younger ones must wait."""
        over = (s.cached + count) % self.limits.stride
        count -= over if s.cached + count < s.length and over < count else 0
        have = len(s.pages) * PAGE - s.cached
        need = max(pages_for(s.cached + count) - len(s.pages), 0)
        while self.room < need:
            if not self.preempt_last(s):
                break
        got = min(need, self.room)
        fits = min(count, have + got * PAGE)
        if fits:
            self.add(s, fits, got)
        return fits == count

    def add(self, s: Sequence, count: int, new: int) -> None:
        """Give the sequence a row with `new` pages; admit it if it waits."""
        waits = s.slot < 0
        if waits:
            used = {r.slot for r in self.running}
            homes = self.lived_in()
            s = msgspec.structs.replace(s, slot=next(i for i in range(self.limits.batch) if i not in used),
                                        home=next(i for i in range(self.limits.homes) if i not in homes))
            insort(self.running, s, key=rank)
            self.found[s.id] = s
        end = s.cached + count
        self.rows[s.id] = Row(
            id=s.id, slot=s.slot, tokens=s.tokens(s.cached, end), start=s.cached, pages=s.pages + self.take(new),
            new_pages=new, restart=waits, samples=end == s.length and not s.score, scores=s.score, moved=s.moved,
            state=s.state, snapshots=self.snapshots(s, s.cached, end), home=s.home)
        self.budget -= count

    def extend(self, guesses: Mapping[int, tuple[int, ...]]) -> None:
        """Append guesses to rows that bring one known token, as many as the step has tokens left: never at the cost of
        another sequence's pages. All that sample take pages without an owner for what they reach, if nobody waits."""
        reach = 0 if self.state.waiting else self.limits.reach
        if not guesses and not reach:
            return
        found = {s.id: s for s in self.running}
        rows = [row for row in self.rows.values() if row.samples]
        wanted = []
        for row in rows:
            s = found[row.id]
            fits = len(row.tokens) == 1 and not s.ahead and not row.restart
            wanted.append(min(len(guesses.get(s.id, ())), s.limit - len(s.answer) - 1) if fits else 0)
        left = min(self.limits.checked - sum(len(row.tokens) for row in self.rows.values()), self.budget)
        homes = self.lived_in()
        spares = [i for i in range(self.limits.homes) if i not in homes]
        for row, count in zip(rows, leveled(wanted, left), strict=True):
            end = min(row.end + max(count, 0) + reach, self.limits.context)
            new = min(max(pages_for(end) - len(row.pages), 0), self.room)
            pages = row.pages + self.take(new)
            fitting = min(count, len(pages) * PAGE - row.end, len(spares))
            chosen, spares = tuple(spares[:fitting]), spares[fitting:]
            after = msgspec.structs.replace(found[row.id], cached=row.end)
            kept = self.snapshots(after, row.start, row.end + fitting) if fitting else ()
            self.rows[row.id] = msgspec.structs.replace(
                row, tokens=row.tokens + guesses.get(row.id, ())[:fitting], pages=pages, new_pages=row.new_pages + new,
                guesses=fitting, spares=chosen, snapshots=row.snapshots + kept)

    def lived_in(self) -> set[int]:
        """Slots of recurrent states that running sequences own."""
        return {i for s in self.running for i in (s.home, *s.spares)}

    def snapshots(self, s: Sequence, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """The states to keep of tokens up to `end` in a row from `start`, as far as there are slots: not those that are
        about to be read."""
        found = []
        for place in snapshot_ends(s, end, self.limits):
            spared = {r.state for r in (*self.running, *self.found.values())}
            self.prefix, slot = self.prefix.take_slot(spared)
            if slot is not None:
                found.append((place - start - 1, slot))
        return tuple(found)

    def plan(self) -> Plan:
        self.prefix, _ = let_go(self.prefix, [s for s in self.found.values() if s.id not in self.rows])
        return Plan(tuple(self.rows[i] for i in sorted(self.rows)), tuple(sorted(self.preempted)),
                    tuple(s for s in self.found.values() if s.id in self.rows), self.free, self.prefix)


def begin(state: State, plan: Plan) -> State:
    """The state once a plan of it was launched: pages and slots are taken, sampled tokens are ahead."""
    lost, fresh = set(plan.preempted), {s.id for s in plan.admitted}
    after = {s.id: s for s in (*state.running, *plan.admitted) if s.id not in lost}
    for row in plan.rows:
        s = after[row.id]
        kept = tuple(((row.start + i + 1) // PAGE, slot) for i, slot in row.snapshots)
        last = dict(row.snapshots).get(len(row.tokens) - 1 - row.guesses, -1)
        after[s.id] = msgspec.structs.replace(
            s, cached=row.end - row.guesses, pages=row.pages, slot=row.slot, ahead=s.ahead + row.samples, home=row.home,
            spares=row.spares, fresh=s.fresh + kept, state=last, moved=False)
    waiting = tuple(s for s in state.waiting if s.id not in fresh) if fresh else state.waiting
    back = [emptied(s) for s in state.running if s.id in lost]
    return msgspec.structs.replace(
        state, free=plan.free, prefix=plan.prefix, running=tuple(sorted(after.values(), key=rank)),
        waiting=tuple(sorted((*back, *waiting), key=rank)) if back else waiting)


def emptied(s: Sequence) -> Sequence:
    """A sequence that lost its pages and waits again."""
    return Sequence(id=s.id, prompt=s.prompt, limit=s.limit, stop_ids=s.stop_ids, score=s.score, answer=s.answer,
                    ahead=s.ahead, priority=s.priority)
