"""Which tokens run in the next step: three pure functions, `plan`, `begin` and `commit`, over plain data.

`begin` is the state once a planned step was launched, `commit` the one once its tokens are known. Steps may be planned
and begun before the last one is committed: a sequence is then taken to go on, its token is `UNKNOWN` to the host, and
if that token ends it, what later steps did for it is dropped.

A sequence is one answer (or one text to score). It waits, runs, and may be preempted: its pages are taken away and it
waits again with the tokens it has, which are prefilled anew when it is admitted again (recompute). Nothing that was
emitted is lost or repeated.

A page that is full, and whose step was read, goes into the prefix cache (`kv.prefix`): a sequence that is admitted
starts after the longest beginning it finds there. What nobody holds is evicted when a page is needed and none is free.
Invariants between steps:

- a page is free, or in the prefix cache, or belongs to one sequence; nobody writes to what is in the cache;
- every running sequence is older than every waiting one, so a waiting one is never overtaken;
- a step advances some sequence, and what stands in the way of the oldest one is bounded, so every sequence ends.
"""
from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Literal

import msgspec

from blackwell_infer.engine.prefix import coming, keys_of, let_go, resumed, snapshot_ends
from blackwell_infer.engine.tokens import TokenLog
from blackwell_infer.errors import RequestError
from blackwell_infer.kv.prefix import Key, Prefix
from blackwell_infer.kv.spec import PAGE

LEAST_SHARE = 256
"""Tokens below which a step's prefill budget is not divided further."""

UNKNOWN = -1
"""Stands for a token that was sampled and that the host has not read yet."""

EVICTED = 128
"""When a page must be evicted, so many go that this times as many would empty the cache: looking for them takes time"""

Finish = Literal["stop", "length", "error", "scored"]


class Limits(msgspec.Struct, frozen=True):
    """What one step may hold: rows, tokens, tokens of scored texts (their logits take memory), pages of the cache.

    `reuse`: pages are cached and shared. `stride` is 1, or for models with recurrent layers the tokens between places
    where a state may be kept, at which prompts are cut too; `states` are the slots for such states.
    """

    batch: int
    step_tokens: int
    score_tokens: int
    pages: int
    context: int
    reuse: bool = False
    stride: int = 1
    states: int = 0


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """One answer under way. Ids grow with arrival. `cached` tokens of prompt and answer have keys in `pages`.

    `limit` is the most answer tokens; `score` marks a text whose tokens are only looked at. `slot` is the sequence's
    own number below `Limits.batch` while it runs. `ahead` tokens follow the answer that no commit has told yet.

    Its first pages are those of `keys` in the prefix cache; `moved` if some of them are new to the runner. `state` is
    the slot for kept states that its next row continues (-1: its own state); `fresh` are (pages, slot) of states that a
    step under way keeps, `trail` the pages before the last state that was kept of its answer, `branch` the tokens
    before a place where one is worth a slot because another text went the same way.
    """

    id: int
    prompt: tuple[int, ...]
    limit: int
    stop_ids: frozenset[int] = frozenset()
    score: bool = False
    answer: TokenLog = msgspec.field(default_factory=TokenLog)
    cached: int = 0
    pages: tuple[int, ...] = ()
    slot: int = -1
    ahead: int = 0
    keys: tuple[Key, ...] = ()
    moved: bool = False
    state: int = -1
    fresh: tuple[tuple[int, int], ...] = ()
    trail: int = 0
    branch: int = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer, those ahead included."""
        return len(self.prompt) + len(self.answer) + self.ahead

    @property
    def full(self) -> bool:
        """Whether the answer has as many tokens as it may, those ahead included."""
        return len(self.answer) + self.ahead >= self.limit

    @property
    def pending(self) -> int:
        """Tokens without keys and values yet: 1 while it decodes."""
        return self.length - self.cached

    def tokens(self, first: int, last: int) -> tuple[int, ...]:
        """Tokens first..last-1 of prompt and answer, `UNKNOWN` for those ahead."""
        n = len(self.prompt)
        known = self.prompt[first:last] + (self.answer.part(max(first - n, 0), last - n) if last > n else ())
        return known + (UNKNOWN,) * (last - first - len(known))


class State(msgspec.Struct, frozen=True):
    """Everything the scheduler knows. Both tuples are in order of arrival; `free` has bit p set if page p is free."""

    free: int
    waiting: tuple[Sequence, ...] = ()
    running: tuple[Sequence, ...] = ()
    prefix: Prefix = Prefix()
    reuse: bool = False


class Row(msgspec.Struct, frozen=True):
    """One sequence's part of a step: `tokens` at positions from `start`, and what is wanted of them.

    `pages` is the whole block table, whose last `new_pages` were taken for this step; `moved` if others changed too.
    `restart` marks the first row after an admission: what the runner knows of the slot is out of date. The row goes on
    from its slot's state, or the kept one `state`; `snapshots` are (index of a token, slot that keeps the state then).
    """

    id: int
    slot: int
    tokens: tuple[int, ...]
    start: int
    pages: tuple[int, ...]
    new_pages: int
    restart: bool
    samples: bool
    scores: bool
    moved: bool = False
    state: int = -1
    snapshots: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)


class Plan(msgspec.Struct, frozen=True):
    """The rows of a step, oldest sequence first, the ids of sequences that lose their pages before it, and the
    sequences that it admits. `free` and `prefix` are as they are once it began."""

    rows: tuple[Row, ...]
    preempted: tuple[int, ...] = ()
    admitted: tuple[Sequence, ...] = ()
    free: int = 0
    prefix: Prefix = Prefix()


class Emitted(msgspec.Struct, frozen=True):
    """What a step did for one sequence: a sampled token (-1: none could be chosen) or scored positions, and its end.

    `row` indexes `Plan.rows`; `sample` counts the sampling rows before it.
    """

    id: int
    row: int
    sample: int
    token: int = -1
    finish: Finish | None = None


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


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
    """Queue a sequence behind all others. RequestError if it can never run."""
    return msgspec.structs.replace(state, waiting=(*state.waiting, admitted(limits, sequence)))


def cancel(state: State, ids: frozenset[int]) -> State:
    """Forget sequences, wherever they stand; unknown ids are none of its business."""
    prefix, pages = let_go(state.prefix, [s for s in state.running if s.id in ids])
    return msgspec.structs.replace(state, free=state.free | mask(pages), prefix=prefix,
                                   waiting=tuple(s for s in state.waiting if s.id not in ids),
                                   running=tuple(s for s in state.running if s.id not in ids))


def mask(pages: Iterable[int]) -> int:
    """The set of pages as bits."""
    listed = list(pages)
    bits = bytearray(max(listed, default=0) // 8 + 1)
    for page in listed:
        bits[page >> 3] |= 1 << (page & 7)
    return int.from_bytes(bits, "little")


def plan(state: State, limits: Limits) -> Plan:
    """The next step: decode rows first, then chunks of prompts in order of arrival, then new admissions.

    Prompts share the tokens that decoding leaves: the oldest takes half, the next half of the rest, and so on; what is
    left over goes to the oldest first. So a long prompt advances in every step and short ones behind it wait little.
    A sequence without a free page takes those of the youngest running one (recompute later).
    """
    draft = Draft(state, limits)
    for s in state.running:
        if s.pending == 1 and not s.score and not s.full and draft.budget > 0 and s.id not in draft.preempted:
            draft.decode(s)
    prompts = [s for s in state.running if (s.pending > 1 or s.score) and s.id not in draft.preempted]
    prompts += draft.admissible(prompts)
    for s, share in zip(prompts, shares(draft.wanted(prompts), draft.budget), strict=True):
        if s.id in draft.preempted or (not share and s.slot >= 0):
            continue
        if not share or not draft.prefill(s, share):
            break
    return draft.plan()


def shares(wanted: Items[int], budget: int) -> list[int]:
    """Tokens of each prompt, oldest first; they sum to at most `budget`."""
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

    def preempt_youngest(self, than: int) -> bool:
        """Take the pages of the youngest running sequence, if it is younger than `than` and has no row yet."""
        victim = self.running[-1] if self.running else None
        if victim is None or victim.id <= than or victim.id in self.rows:
            return False
        self.running.pop()
        self.drop(victim)
        return True

    def decode(self, s: Sequence) -> None:
        """One token of a running sequence, if there is a page for it."""
        need = pages_for(s.cached + 1) - len(s.pages)
        while self.room < need:
            if not self.preempt_youngest(s.id):
                self.running.pop()  # it is the youngest itself
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
        spared = sum(pages_for(s.length) - len(s.pages) for s in prompts)
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
        need = pages_for(s.cached + count) - len(s.pages)
        while self.room < need:
            if not self.preempt_youngest(s.id):
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
            s = msgspec.structs.replace(s, slot=next(i for i in range(self.limits.batch) if i not in used))
            self.running.append(s)
            self.found[s.id] = s
        end = s.cached + count
        self.rows[s.id] = Row(
            id=s.id, slot=s.slot, tokens=s.tokens(s.cached, end), start=s.cached, pages=s.pages + self.take(new),
            new_pages=new, restart=waits, samples=end == s.length and not s.score, scores=s.score, moved=s.moved,
            state=s.state, snapshots=self.snapshots(s, end))
        self.budget -= count

    def snapshots(self, s: Sequence, end: int) -> tuple[tuple[int, int], ...]:
        """The states to keep of tokens up to `end`, as far as there are slots: not those that are about to be read."""
        found = []
        for place in snapshot_ends(s, end, self.limits):
            spared = {r.state for r in (*self.running, *self.found.values())}
            self.prefix, slot = self.prefix.take_slot(spared)
            if slot is not None:
                found.append((place - s.cached - 1, slot))
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
        last = dict(row.snapshots).get(len(row.tokens) - 1, -1)
        after[s.id] = msgspec.structs.replace(
            s, cached=row.end, pages=row.pages, slot=row.slot, ahead=s.ahead + row.samples, fresh=s.fresh + kept,
            state=last, moved=False)
    waiting = tuple(s for s in state.waiting if s.id not in fresh) if fresh else state.waiting
    back = [emptied(s) for s in state.running if s.id in lost]
    return msgspec.structs.replace(
        state, free=plan.free, prefix=plan.prefix, running=tuple(after[i] for i in sorted(after)),
        waiting=tuple(sorted((*back, *waiting), key=lambda s: s.id)) if back else waiting)


def emptied(s: Sequence) -> Sequence:
    """A sequence that lost its pages and waits again."""
    return Sequence(id=s.id, prompt=s.prompt, limit=s.limit, stop_ids=s.stop_ids, score=s.score, answer=s.answer,
                    ahead=s.ahead)


def commit(state: State, done: Plan, sampled: Items[int]) -> tuple[State, tuple[Emitted, ...]]:
    """The state after a step that was begun, and what it made. `sampled` holds one token per sampling row, in order; -1
    is a failure.

    Sequences that were cancelled or that ended while the step ran are skipped.
    """
    known = {s.id: s for s in (*state.running, *state.waiting)}
    prefix, ended, copies, events, sample = state.prefix, list[Sequence](), list[int](), [], 0
    for index, row in enumerate(done.rows):
        position, sample = sample, sample + row.samples
        if row.id not in known:
            continue
        s = known[row.id]
        token = sampled[position] if row.samples else -1
        failed = row.samples and token < 0
        if state.reuse and s.cached >= row.end and not row.scores and not failed:  # s was not preempted meanwhile
            s, prefix, own = remembered(s, row, prefix)
            copies += own
        finish: Finish | None = None
        if row.samples:
            answer = s.answer if token < 0 else s.answer.append(token)
            s = msgspec.structs.replace(s, answer=answer, ahead=s.ahead - 1)
            finish = ending(s, token)
        elif row.scores and row.end == len(s.prompt):
            finish = "scored"
        known[s.id] = s
        if row.samples or row.scores:
            events.append(Emitted(s.id, index, position, token, finish))
        if finish is not None:
            ended.append(known.pop(s.id))
    prefix, pages = let_go(prefix, ended)
    return msgspec.structs.replace(
        state, free=state.free | mask(pages + copies), prefix=prefix,
        waiting=tuple(known[s.id] for s in state.waiting if s.id in known),
        running=tuple(known[s.id] for s in state.running if s.id in known)), tuple(events)


def remembered(s: Sequence, row: Row, prefix: Prefix) -> tuple[Sequence, Prefix, Items[int]]:
    """The sequence and the cache once the pages that a step filled, and the states that it kept, are in the cache, and
    the sequence's own copies of pages that were there already: it goes on with those that are there."""
    full, own = row.end // PAGE, list[int]()
    if full > len(s.keys):
        keys = s.keys + keys_of(s, len(s.keys), full)
        prefix = prefix.extend(keys, len(s.keys), s.pages[:full])
        shared = prefix.match(keys)
        own = [page for page, other in zip(s.pages[:full], shared, strict=True) if page != other]
        s = msgspec.structs.replace(s, keys=keys, pages=shared + s.pages[full:], moved=s.moved or bool(own))
    for pages, slot in s.fresh:
        if pages > full:
            break
        prefix = prefix.keep(s.keys[:pages], slot)
        if s.trail:
            prefix = prefix.forget(s.keys[: s.trail])
        s = msgspec.structs.replace(s, fresh=s.fresh[1:], trail=pages if pages * PAGE > len(s.prompt) else 0)
    return s, prefix, own


def ending(s: Sequence, token: int) -> Finish | None:
    """Why a sequence ends after this token, if it does."""
    if token < 0:
        return "error"
    if token in s.stop_ids:
        return "stop"
    return "length" if len(s.answer) >= s.limit else None
