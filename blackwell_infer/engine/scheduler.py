"""Which tokens run in the next step: three pure functions, `plan`, `begin` and `commit`, over plain data.

`begin` is the state once a planned step was launched, `commit` the one once its tokens are known. Steps may be planned
and begun before the last one is committed: a sequence is then taken to go on, its token is `UNKNOWN` to the host, and
if that token ends it, what later steps did for it is dropped.

A row may bring guesses after its newest token (`extend`). They are checked by what is sampled after each token
(`engine.guesses.accepted`), and the sequence is not planned again before `commit` knows how many of them hold.

A sequence is one answer (or one text to score). It waits, runs, and may be preempted: its pages are taken away and it
waits again with the tokens it has, which are prefilled anew when it is admitted again (recompute). Nothing that was
emitted is lost or repeated. Invariants between steps:

- no page belongs to two sequences; a page is free or owned;
- every running sequence is older than every waiting one, so a waiting one is never overtaken;
- a step advances some sequence, and what stands in the way of the oldest one is bounded, so every sequence ends.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Items
from typing import Any, Literal

import msgspec

from blackwell_infer.engine.guesses import accepted, leveled
from blackwell_infer.engine.tokens import TokenLog
from blackwell_infer.errors import RequestError
from blackwell_infer.kv.spec import PAGE

LEAST_SHARE = 256
"""Tokens below which a step's prefill budget is not divided further."""

UNKNOWN = -1
"""Stands for a token that was sampled and that the host has not read yet."""

Finish = Literal["stop", "length", "error", "scored"]


class Limits(msgspec.Struct, frozen=True):
    """What one step may hold: rows, tokens, tokens of scored texts (their logits take memory), pages of the cache.

    A step that brings guesses has at most `checked` tokens. Rows that sample take pages for `reach` tokens beyond, if
    there are free ones: guesses are made there.
    """

    batch: int
    step_tokens: int
    score_tokens: int
    pages: int
    context: int
    checked: int = 0
    reach: int = 0

    @property
    def spares(self) -> int:
        """Slots of recurrent states beside one per sequence: as many as guesses of a step may write."""
        return max(self.checked - 1, 0)

    @property
    def homes(self) -> int:
        """Slots of recurrent states of all sequences."""
        return self.batch + self.spares


class Sequence(msgspec.Struct, frozen=True, kw_only=True):
    """One answer under way. Ids grow with arrival. `cached` tokens of prompt and answer have keys in `pages`.

    `limit` is the most answer tokens; `score` marks a text whose tokens are only looked at. `slot` is the sequence's
    own number below `Limits.batch` while it runs. `ahead` tokens follow the answer that no commit has told yet.
    `home` is the slot below `Limits.homes` where its recurrent state lies. While a step checks guesses of it, `spares`
    are the slots of `Row.spares`; nothing else counts those guesses.
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
    home: int = -1
    spares: tuple[int, ...] = ()

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


class Row(msgspec.Struct, frozen=True):
    """One sequence's part of a step: `tokens` at positions from `start`, and what is wanted of them.

    `pages` is the whole block table, whose last `new_pages` were taken for this step. `restart` marks the first row
    after an admission: what the runner knows of the slot is out of date.

    The last `guesses` tokens are guesses: a token is sampled after each of them, too. The recurrent state after the
    last token that is none goes to the slot `home`, those after guesses to `spares`.
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
    home: int = 0
    guesses: int = 0
    spares: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    @property
    def sampled(self) -> int:
        """How many tokens are sampled."""
        return self.samples * (1 + self.guesses)

    @property
    def guessed(self) -> tuple[int, ...]:
        """The guesses."""
        return self.tokens[len(self.tokens) - self.guesses :]


class Plan(msgspec.Struct, frozen=True):
    """The rows of a step, oldest sequence first, and the ids of sequences that lose their pages before it."""

    rows: tuple[Row, ...]
    preempted: tuple[int, ...] = ()


class Emitted(msgspec.Struct, frozen=True):
    """What a step did for one sequence: a sampled token (-1: none could be chosen) or scored positions, and its end.

    `row` indexes `Plan.rows`; `sample` counts the tokens sampled before it. A row with guesses emits one for each
    token; `guessed`: it was a guess that holds.
    """

    id: int
    row: int
    sample: int
    token: int = -1
    finish: Finish | None = None
    guessed: bool = False


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


def start(limits: Limits) -> State:
    """Nothing runs and every page is free."""
    return State(free=(1 << limits.pages) - 1)


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
    gone = [s for s in state.running if s.id in ids]
    return State(free=state.free | mask(p for s in gone for p in s.pages),
                 waiting=tuple(s for s in state.waiting if s.id not in ids),
                 running=tuple(s for s in state.running if s.id not in ids))


def mask(pages: Iterable[int]) -> int:
    """The set of pages as bits."""
    listed = list(pages)
    bits = bytearray(max(listed, default=0) // 8 + 1)
    for page in listed:
        bits[page >> 3] |= 1 << (page & 7)
    return int.from_bytes(bits, "little")


def plan(state: State, limits: Limits, guesses: Mapping[int, tuple[int, ...]] | None = None) -> Plan:
    """The next step: decode rows first, then chunks of prompts in order of arrival, then new admissions.

    Prompts share the tokens that decoding leaves: the oldest takes half, the next half of the rest, and so on; what is
    left over goes to the oldest first. So a long prompt advances in every step and short ones behind it wait little.
    A sequence without a free page takes those of the youngest running one (recompute later). `guesses` by sequence id
    come last, into what is left of the step.
    """
    draft = Draft(state, limits)
    for s in state.running:
        ready = s.pending == 1 and not s.score and not s.full and not s.spares
        if ready and draft.budget > 0 and s.id not in draft.preempted:
            draft.decode(s)
    prompts = [s for s in state.running if (s.pending > 1 or s.score) and s.id not in draft.preempted]
    prompts += draft.admissible(prompts)
    for s, share in zip(prompts, shares(draft.wanted(prompts), draft.budget), strict=True):
        if s.id in draft.preempted or (not share and s.slot >= 0):
            continue
        if not share or not draft.prefill(s, share):
            break
    draft.extend(guesses or {})
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
        self.budget = limits.step_tokens
        self.running = list(state.running)
        self.preempted: dict[int, Sequence] = {}
        self.rows: dict[int, Row] = {}

    def take(self, count: int) -> tuple[int, ...]:
        """The lowest free pages."""
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
        self.preempted[victim.id] = victim
        self.free |= mask(victim.pages)
        return True

    def decode(self, s: Sequence) -> None:
        """One token of a running sequence, if there is a page for it."""
        need = max(pages_for(s.cached + 1) - len(s.pages), 0)
        while self.free.bit_count() < need:
            if not self.preempt_youngest(s.id):
                self.running.pop()  # it is the youngest itself
                self.preempted[s.id] = s
                self.free |= mask(s.pages)
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
        """Waiting sequences, in order, whose whole prompt fits the free pages beside what is running.

        One page per running sequence is spared, so that admitting one does not preempt it at once.
        """
        if self.preempted:
            return []
        found: list[Sequence] = []
        room = self.free.bit_count() - sum(max(pages_for(s.length) - len(s.pages), 0) for s in prompts)
        for s in self.state.waiting:
            running = len(self.running) + len(found)
            need = pages_for(s.length)
            if running >= self.limits.batch or need + running > room or s.ahead:
                break
            room -= need
            found.append(s)
        return found

    def prefill(self, s: Sequence, count: int) -> bool:
        """Up to `count` tokens of a prompt, as pages allow. False if it found too few: younger ones must wait."""
        have = len(s.pages) * PAGE - s.cached
        need = max(pages_for(s.cached + count) - len(s.pages), 0)
        while self.free.bit_count() < need:
            if not self.preempt_youngest(s.id):
                break
        got = min(need, self.free.bit_count())
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
            self.running.append(s)
        end = s.cached + count
        self.rows[s.id] = Row(
            id=s.id, slot=s.slot, tokens=s.tokens(s.cached, end), start=s.cached, pages=s.pages + self.take(new),
            new_pages=new, restart=waits, samples=end == s.length and not s.score, scores=s.score, home=s.home)
        self.budget -= count

    def extend(self, guesses: Mapping[int, tuple[int, ...]]) -> None:
        """Append guesses to rows that bring one known token, as many as the step has tokens left: never at the cost of
        another sequence's pages. All that sample take free pages for what they reach."""
        if not guesses and not self.limits.reach:
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
            end = min(row.end + max(count, 0) + self.limits.reach, self.limits.context)
            new = min(max(pages_for(end) - len(row.pages), 0), self.free.bit_count())
            pages = row.pages + self.take(new)
            fitting = min(count, len(pages) * PAGE - row.end, len(spares))
            chosen, spares = tuple(spares[:fitting]), spares[fitting:]
            self.rows[row.id] = msgspec.structs.replace(
                row, tokens=row.tokens + guesses.get(row.id, ())[:fitting], pages=pages, new_pages=row.new_pages + new,
                guesses=fitting, spares=chosen)

    def lived_in(self) -> set[int]:
        """Slots of recurrent states that running sequences own."""
        return {i for s in self.running for i in (s.home, *s.spares)}

    def plan(self) -> Plan:
        return Plan(tuple(self.rows[i] for i in sorted(self.rows)), tuple(sorted(self.preempted)))


def begin(state: State, plan: Plan) -> State:
    """The state once a plan of it was launched: pages and slots are taken, sampled tokens are ahead."""
    state = msgspec.structs.replace(state, **without_pages(state, plan)) if plan.preempted else state
    fresh = {row.id for row in plan.rows if row.restart}
    after = {s.id: s for s in state.running} | {s.id: s for s in state.waiting if s.id in fresh}
    free = state.free
    for row in plan.rows:
        s = after[row.id]
        if row.new_pages:
            free &= ~mask(row.pages[len(row.pages) - row.new_pages :])
        after[s.id] = msgspec.structs.replace(
            s, cached=row.end - row.guesses, pages=row.pages, slot=row.slot, ahead=s.ahead + row.samples, home=row.home,
            spares=row.spares)
    return State(free=free, waiting=tuple(s for s in state.waiting if s.id not in fresh) if fresh else state.waiting,
                 running=tuple(after[i] for i in sorted(after)))


def commit(state: State, done: Plan, sampled: Items[int]) -> tuple[State, tuple[Emitted, ...]]:
    """The state after a step that was begun, and what it made. `sampled` holds the tokens of sampling rows, in order;
    -1 is a failure.

    Sequences that were cancelled or that ended while the step ran are skipped.
    """
    known = {s.id: s for s in (*state.running, *state.waiting)}
    free, events, sample = state.free, list[Emitted](), 0
    for index, row in enumerate(done.rows):
        position, sample = sample, sample + row.sampled
        s = known.get(row.id)
        if s is None or not (row.samples or row.scores):
            continue
        finish: Finish | None = None
        if row.samples:
            own, guesses = sampled[position:sample], row.guessed
            held = accepted(guesses, own)
            s = settled(s, row, held)
            for i, token in enumerate((*guesses[:held], own[held])):
                s = s if token < 0 else msgspec.structs.replace(s, answer=s.answer.append(token))
                finish = ending(s, token)
                events.append(Emitted(s.id, index, position + i, token, finish, i < held))
                if finish is not None:
                    break
            known[s.id] = s
        else:
            finish = "scored" if row.end == len(s.prompt) else None
            events.append(Emitted(s.id, index, position, -1, finish))
        if finish is not None:
            del known[s.id]
            free |= mask(s.pages)
    return State(free=free, waiting=tuple(known[s.id] for s in state.waiting if s.id in known),
                 running=tuple(known[s.id] for s in state.running if s.id in known)), tuple(events)


def settled(s: Sequence, row: Row, held: int) -> Sequence:
    """A sequence that knows how many guesses of its row hold. One that lost its pages meanwhile has nothing cached."""
    s = msgspec.structs.replace(s, ahead=s.ahead - 1)
    if not row.guesses or s.slot < 0:
        return s
    return msgspec.structs.replace(s, cached=s.cached + held, home=(row.home, *row.spares)[held], spares=())


def without_pages(state: State, done: Plan) -> dict[str, Any]:
    """The fields of a state whose preempted sequences wait again, without pages."""
    lost = [s for s in state.running if s.id in done.preempted]
    back = [msgspec.structs.replace(s, cached=0, pages=(), slot=-1, home=-1, spares=()) for s in lost]
    return {"free": state.free | mask(p for s in lost for p in s.pages),
            "running": tuple(s for s in state.running if s.id not in done.preempted),
            "waiting": tuple(sorted((*back, *state.waiting), key=lambda s: s.id))}


def ending(s: Sequence, token: int) -> Finish | None:
    """Why a sequence ends after this token, if it does."""
    if token < 0:
        return "error"
    if token in s.stop_ids:
        return "stop"
    return "length" if len(s.answer) >= s.limit else None
