"""Properties of `plan`, `begin` and `commit` with a made-up model whose next token is a hash of everything before it.

Each holds when a step is read before the next one is planned (lag 0) and when it is read after that one was launched,
with guesses and without: the world knows what comes and guesses it, but for some that are wrong.
"""
from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from collections.abc import Sequence as Items

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blackwell_infer.engine import scheduler
from blackwell_infer.engine.commit import commit
from blackwell_infer.engine.scheduler import UNKNOWN, Limits, Plan, Row, Sequence, State, shares
from blackwell_infer.engine.tokens import TokenLog
from blackwell_infer.errors import QueueFullError, RequestError
from blackwell_infer.kv.prefix import Node
from blackwell_infer.kv.spec import PAGE

VOCAB = 50
STOP = frozenset({7})


def model(tokens: Items[int]) -> int:
    return follower(tuple(tokens))


@functools.lru_cache(1 << 16)
def follower(tokens: tuple[int, ...]) -> int:
    return int.from_bytes(hashlib.blake2b(repr(tokens).encode(), digest_size=4).digest(), "big") % VOCAB


def alone(prompt: tuple[int, ...], limit: int) -> list[int]:
    """What the made-up model answers without any scheduler."""
    answer: list[int] = []
    while len(answer) < limit and not (answer and answer[-1] in STOP):
        answer.append(model((*prompt, *answer)))
    return answer


def texts(node: Node, before: tuple[int, ...] = ()) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Each page of a tree, and all tokens up to its end."""
    for key, page in zip(node.keys, node.pages, strict=True):
        before = (*before, *key)
        yield page, before
    for child in node.children.values():
        yield from texts(child, before)


def every_page(node: Node) -> list[int]:
    return [*node.pages, *(p for child in node.children.values() for p in every_page(child))]


class World:
    """A scheduler with a cache that remembers what was written where, and each slot's newest token, as a GPU would: of
    a token itself and a hash of what it saw before, as keys and values are; of a recurrent state all tokens that went
    into it. `lag` steps are launched and not read when the next one is planned. `depth` guesses are made for every
    sequence, 3 of 4 right."""

    def __init__(self, limits: Limits, lag: int = 0, depth: int = 0) -> None:
        self.limits = limits
        self.lag = lag
        self.depth = depth
        self.random = random.Random(3)
        self.checked = self.held = 0
        self.flights: list[tuple[Plan, list[int]]] = []
        self.newest: dict[int, int] = {}
        self.state = scheduler.start(limits)
        self.cache: dict[tuple[int, int], tuple[int, int]] = {}
        self.states: dict[tuple[str, int], tuple[int, ...]] = {}
        self.saved = 0
        """tokens that were not prefilled"""
        self.out: dict[int, list[int]] = {}
        self.ends: dict[int, str] = {}
        self.scored: dict[int, list[int]] = {}
        self.first_step: dict[int, int] = {}
        self.steps = 0
        self.launched = 0
        self.preemptions = 0

    def submit(self, id: int, prompt: tuple[int, ...], limit: int, score: bool = False, priority: int = 0) -> None:
        self.state = scheduler.submit(self.state, self.limits, Sequence(
            id=id, prompt=prompt, limit=limit, stop_ids=STOP, score=score, priority=priority))
        self.out[id], self.scored[id] = [], []

    def run(self, plan: Plan) -> list[int]:
        """Write the tokens of a step, read each row back through its block table, and sample."""
        sampled = []
        reads = {i: self.state_of(row) for i, row in enumerate(plan.rows)}
        kept = [slot for row in plan.rows for _, slot in row.snapshots]
        assert len(set(kept)) == len(kept) and not set(kept) & {row.state for row in plan.rows}, "all read, then write"
        for i, row in enumerate(plan.rows):
            assert UNKNOWN not in row.tokens or (self.lag and row.tokens == (UNKNOWN,))
            tokens = [self.newest[row.slot] if token == UNKNOWN else token for token in row.tokens]
            for at, token in enumerate(tokens, row.start):
                before = self.cache[row.pages[(at - 1) // PAGE], (at - 1) % PAGE] if at else (0, 0)
                self.cache[row.pages[at // PAGE], at % PAGE] = token, hash((before, token))
            own = len(tokens) - 1 - row.guesses
            writes = {own + j: ("own", slot) for j, slot in enumerate((row.home, *row.spares))}
            for j, place in (writes | {j: ("kept", slot) for j, slot in row.snapshots}).items():
                self.states[place] = (*reads[i], *tokens[: j + 1])
        for i, row in enumerate(plan.rows):
            seen = self.seen(row)
            assert self.limits.stride == 1 or seen == list(reads[i])[: row.start] + seen[row.start :]
            if row.samples:
                sampled += [model(seen[:end]) for end in range(row.end - row.guesses, row.end + 1)]
                self.newest[row.slot] = sampled[-1]
            if row.scores:
                self.scored[row.id] = seen
        return sampled

    def guesses(self) -> dict[int, tuple[int, ...]]:
        """What comes next for every sequence that is known so far, some of it wrong."""
        found = {}
        for s in self.state.running:
            tokens = list(s.tokens(0, s.length - s.ahead))
            for _ in range(self.depth):
                tokens.append(model(tokens) if self.random.random() < 0.75 else self.random.randrange(VOCAB))
            found[s.id] = tuple(tokens[s.length - s.ahead :])
        return found

    def state_of(self, row: Row) -> tuple[int, ...]:
        """What a row continues."""
        if self.limits.stride == 1:
            return ()
        place = ("kept", row.state) if row.state >= 0 else ("own", row.home)
        state = self.states[place] if row.start else ()
        assert len(state) == row.start
        return state

    def seen(self, row: Row) -> list[int]:
        """The tokens of a row as its pages have them, each of which saw those before it."""
        tokens, before = [], (0, 0)
        for i in range(row.end):
            token, mark = self.cache[row.pages[i // PAGE], i % PAGE]
            assert mark == hash((before, token)), "a page of another text"
            tokens.append(token)
            before = token, mark
        return tokens

    def step(self, cancel: frozenset[int] = frozenset()) -> None:
        if self.flights and self.depth and self.random.random() < 0.5:
            self.land(frozenset())  # as the engine does where there is something to guess
        plan = scheduler.plan(self.state, self.limits, self.guesses())
        self.check_plan(plan)
        if plan.rows:
            self.flights.append((plan, self.run(plan)))
            self.launched += 1
            self.state = scheduler.begin(self.state, plan)
            self.check_state()
            self.preemptions += len(plan.preempted)
            self.saved += sum(row.start for row in plan.rows if row.restart)
        self.steps += 1
        for row in plan.rows:
            self.first_step.setdefault(row.id, self.steps)
        if cancel:
            self.state = scheduler.cancel(self.state, cancel)
        if len(self.flights) > (self.lag if plan.rows else 0):
            self.land(cancel)

    def land(self, cancel: frozenset[int]) -> None:
        """Read the oldest step that was not read."""
        plan, sampled = self.flights.pop(0)
        self.state, events = commit(self.state, plan, sampled)
        for e in events:
            assert e.id not in self.ends and e.id not in cancel
            self.held += e.guessed
            if e.token >= 0:
                assert e.token == sampled[e.sample]
                self.out[e.id].append(e.token)
            if e.finish:
                self.ends[e.id] = e.finish
        self.check_state()

    def check_plan(self, plan: Plan) -> None:
        busy = bool(self.state.running or self.state.waiting)
        assert bool(plan.rows) == busy or self.flights, "some sequence advances in every step"
        assert all(not s.full for s in self.state.running if s.id in {r.id for r in plan.rows if r.samples})
        assert sum(len(r.tokens) for r in plan.rows) <= self.limits.step_tokens
        assert sum(len(r.tokens) for r in plan.rows if r.scores) <= self.limits.score_tokens
        assert len(plan.rows) <= self.limits.batch
        written = [p for r in plan.rows for p in r.pages[r.start // PAGE : scheduler.pages_for(r.end)]]
        assert len(written) == len(set(written)) and all(0 <= p < self.limits.pages for r in plan.rows for p in r.pages)
        assert not set(written) & set(every_page(plan.prefix.root)), "what is cached is only read"
        assert all(not r.pages[-1:] or plan.free >> p & 1 == 0 for r in plan.rows for p in r.pages)
        assert all(r.end % self.limits.stride == 0 or r.samples or len(r.tokens) < self.limits.stride
                   for r in plan.rows if not r.scores)
        assert all(len(r.pages) == scheduler.pages_for(r.end) or len(r.pages) * PAGE >= r.end for r in plan.rows)
        assert len({r.slot for r in plan.rows}) == len(plan.rows)
        written = [slot for r in plan.rows for slot in (r.home, *r.spares)]
        assert len(written) == len(set(written)) and all(0 <= slot < self.limits.homes for slot in written)
        staying = {s.home for s in self.state.running if s.id not in plan.preempted}  # the others begin anew
        assert not staying & {slot for r in plan.rows for slot in r.spares}
        guesses = sum(r.guesses for r in plan.rows)
        self.checked += guesses
        assert not guesses or sum(len(r.tokens) for r in plan.rows) <= self.limits.checked
        assert not {r.id for r in plan.rows} & set(plan.preempted)

    def check_state(self) -> None:
        s = self.state
        cached = every_page(s.prefix.root)
        owned = [p for q in (*s.running, *s.waiting) for p in q.pages if p not in set(cached)]
        assert len(cached) == len(set(cached)) == s.prefix.total
        assert len(owned) == len(set(owned))
        assert scheduler.mask([*owned, *cached]) & s.free == 0
        assert len(owned) + len(cached) + s.free.bit_count() == self.limits.pages, "a page leaked"
        for page, text in texts(s.prefix.root):
            assert [self.cache[page, i][0] for i in range(PAGE)] == list(text[-PAGE:]), "a guess is in the cache"
            assert page not in s.prefix.states or self.states["kept", s.prefix.states[page].slot] == text
        held = {p for q in s.running for p in s.prefix.match(q.keys)}
        assert s.prefix.idle == len(cached) - len(held)
        slots = [k.slot for k in s.prefix.states.values()] + [x for q in s.running for _, x in q.fresh]
        assert len(set(slots)) == len(slots)
        assert len(slots) + s.prefix.free.bit_count() == self.limits.states, "a slot for states leaked"
        for queue in (s.running, s.waiting):
            ranks = [(-q.priority, q.id) for q in queue]
            assert ranks == sorted(ranks)
        for priority in {q.priority for q in s.waiting}:
            waiting = [q.id for q in s.waiting if q.priority == priority]
            running = [q.id for q in s.running if q.priority <= priority and q.id > waiting[0]]
            assert all(q.priority < priority for q in s.running if q.id in running), "one that waits was overtaken"
        assert all(q.pages == q.keys == q.fresh == () and q.cached == 0 for q in s.waiting)
        assert all(q.slot == q.state == q.home == -1 and not q.spares for q in s.waiting)
        homes = [slot for q in s.running for slot in (q.home, *q.spares)]
        assert len(homes) == len(set(homes)), "two sequences share a recurrent state"
        slots = [q.slot for q in s.running]
        assert len(set(slots)) == len(slots) <= self.limits.batch and all(0 <= x < self.limits.batch for x in slots)

    def finish(self, bound: int = 20000) -> None:
        while self.state.running or self.state.waiting or self.flights:
            self.step()
            assert self.steps < bound, "a sequence does not end"
        assert self.state.free.bit_count() + self.state.prefix.idle == self.limits.pages
        assert self.limits.reuse or not self.state.prefix.total


plain = st.builds(
    Limits, batch=st.integers(1, 6), step_tokens=st.integers(1, 90), score_tokens=st.integers(1, 40),
    pages=st.integers(1, 12), context=st.integers(2, 12 * PAGE), reuse=st.booleans(),
    checked=st.integers(0, 16), reach=st.integers(0, 40))
hybrid = st.builds(
    Limits, batch=st.integers(1, 6), step_tokens=st.integers(1, 200), score_tokens=st.integers(1, 40),
    pages=st.integers(1, 12), context=st.integers(2, 12 * PAGE), reuse=st.just(True), stride=st.just(2 * PAGE),
    states=st.integers(0, 5), checked=st.integers(0, 16), reach=st.integers(0, 40))
limits = st.one_of(plain, hybrid)
request = st.tuples(st.integers(1, 150), st.integers(1, 70), st.booleans())


def prompt_of(id: int, length: int) -> tuple[int, ...]:
    """Some prompts begin like others, for as long as they go."""
    return tuple((id % 4 * 31 + i * i) % VOCAB for i in range(length))


def unlike(id: int, length: int) -> tuple[int, ...]:
    return tuple((id * 31 + i * i) % VOCAB for i in range(length))


@settings(max_examples=150, deadline=None)
@given(limits, st.lists(request, min_size=1, max_size=10), st.integers(0, 1), st.integers(0, 8), st.booleans(),
       st.data())
def test_every_sequence_answers_as_if_it_were_alone(limits: Limits, wanted: list[tuple[int, int, bool]], lag: int,
                                                    depth: int, levels: bool, data: st.DataObject) -> None:
    world = World(limits, lag, depth)
    room = min(limits.context, limits.pages * PAGE)
    accepted: dict[int, tuple[int, int, bool]] = {}
    cancelled: set[int] = set()
    for id, (length, limit, score) in enumerate(wanted):
        if length > room or (length == room and not score):
            with pytest.raises(RequestError, match=f"{length} tokens and the context holds {room}"):
                world.submit(id, prompt_of(id, length), limit, score)
            continue
        world.submit(id, prompt_of(id, length), limit, score, data.draw(st.integers(0, 2)) if levels else 0)
        accepted[id] = (length, limit, score)
        for _ in range(data.draw(st.integers(0, 3))):
            gone = data.draw(st.frozensets(st.integers(0, id), max_size=1)) if id % 3 == 2 else frozenset()
            world.step(gone & accepted.keys() - world.ends.keys())
            cancelled |= gone & accepted.keys() - world.ends.keys()
    world.finish()
    for id, (length, limit, score) in accepted.items():
        expected = [] if score else alone(prompt_of(id, length), min(limit, room - length))
        if id in cancelled:
            assert world.out[id] == expected[: len(world.out[id])] and id not in world.ends
        elif score:
            assert world.scored[id] == list(prompt_of(id, length)) and world.ends[id] == "scored"
        else:
            assert world.out[id] == expected
            assert world.ends[id] == ("stop" if expected[-1] in STOP else "length")


@settings(max_examples=60, deadline=None)
@given(limits, st.lists(request, min_size=2, max_size=8), st.integers(0, 1), st.integers(0, 4))
def test_admission_is_in_order_of_arrival(limits: Limits, wanted: list[tuple[int, int, bool]], lag: int,
                                          depth: int) -> None:
    world = World(limits, lag, depth)
    room = min(limits.context, limits.pages * PAGE)
    for id, (length, limit, score) in enumerate(wanted):
        world.submit(id, prompt_of(id, min(length, max(room - 1, 1))), limit, score)
    world.finish()
    firsts = [world.first_step[id] for id in range(len(wanted))]
    assert firsts == sorted(firsts)


@settings(max_examples=60, deadline=None)
@given(limits, st.lists(st.tuples(request, st.integers(-1, 2)), min_size=2, max_size=8), st.integers(0, 1),
       st.integers(0, 4))
def test_of_those_that_wait_higher_priorities_are_admitted_first(
        limits: Limits, wanted: list[tuple[tuple[int, int, bool], int]], lag: int, depth: int) -> None:
    world = World(limits, lag, depth)
    room = min(limits.context, limits.pages * PAGE)
    for id, ((length, limit, score), priority) in enumerate(wanted):
        world.submit(id, prompt_of(id, min(length, max(room - 1, 1))), limit, score, priority)
    world.finish()
    order = sorted(range(len(wanted)), key=lambda id: (-wanted[id][1], id))
    firsts = [world.first_step[id] for id in order]
    assert firsts == sorted(firsts)


def test_what_runs_takes_pages_from_lower_priorities_and_never_from_higher() -> None:
    limits = Limits(batch=3, step_tokens=64, score_tokens=64, pages=5, context=128)
    found = [p for p in (unlike(i, 20) for i in range(100)) if len(alone(p, 60)) == 60]
    world, lost = World(limits), set[int]()
    for id, priority in enumerate((0, 5, 0)):
        world.submit(id, found[id], 60, priority=priority)
    while world.state.running or world.state.waiting:
        lost |= set(scheduler.plan(world.state, limits).preempted)
        world.step()
    assert lost and 1 not in lost and world.first_step[1] <= world.first_step[0]
    assert {id: world.out[id] for id in range(3)} == {id: alone(found[id], 60) for id in range(3)}


def test_a_queue_is_bounded_beside_what_runs() -> None:
    limits = Limits(batch=3, step_tokens=8, score_tokens=8, pages=8, context=64, queue=2)
    for present in range(7):
        for more in range(1, 7):
            if present + more <= 5:
                scheduler.check_queue(limits, present, more)
            else:
                with pytest.raises(QueueFullError, match="2 may wait"):
                    scheduler.check_queue(limits, present, more)
    scheduler.check_queue(msgspec.structs.replace(limits, queue=None), 10**9, 1000)


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("lag", [0, 1])
def test_too_few_pages_preempt_the_youngest_and_lose_nothing(lag: int, depth: int) -> None:
    world = World(Limits(batch=4, step_tokens=64, score_tokens=64, pages=5, context=128, checked=16), lag, depth)
    found = [p for p in (unlike(i, 20) for i in range(100)) if len(alone(p, 60)) == 60]
    prompts = dict(enumerate(found[:4]))
    for id, prompt in prompts.items():
        world.submit(id, prompt, 60)
    world.finish()
    assert world.preemptions > 0
    assert {id: world.out[id] for id in prompts} == {id: alone(p, 60) for id, p in prompts.items()}


def test_a_long_prompt_advances_in_every_step_and_short_ones_do_not_wait_for_it() -> None:
    world = World(Limits(batch=8, step_tokens=1024, score_tokens=64, pages=1000, context=20000))
    world.submit(0, prompt_of(0, 10000), 4)
    for id in range(1, 30):
        world.submit(id, prompt_of(id, 40), 8)
    world.finish()
    assert world.first_step[1] == 1 and 1 in world.ends
    assert world.steps < 40
    assert max(world.first_step.values()) < 30


def test_shares_of_a_budget() -> None:
    assert shares([5000, 5000, 10], 4096) == [2048 + 1014, 1024, 10]
    assert shares([100, 100], 64) == [64, 0]
    assert shares([10, 5000, 5000], 2000) == [10, 995 + 497, 498]
    assert shares([], 5) == [] and shares([3, 3], 0) == [0, 0]


def test_decoding_goes_before_prompts() -> None:
    world = World(Limits(batch=4, step_tokens=8, score_tokens=8, pages=64, context=512))
    world.submit(0, prompt_of(0, 8), 20)
    world.step()
    world.submit(1, prompt_of(1, 100), 2)
    plan = scheduler.plan(world.state, world.limits)
    assert [(r.id, len(r.tokens)) for r in plan.rows] == [(0, 1), (1, 7)]


@pytest.mark.parametrize("lag", [0, 1])
def test_guesses_save_steps(lag: int) -> None:
    found = [p for p in (prompt_of(i, 9) for i in range(100)) if len(alone(p, 40)) == 40]
    steps = []
    for depth in (0, 4):
        world = World(Limits(batch=2, step_tokens=64, score_tokens=8, pages=16, context=128, checked=16), lag, depth)
        for id, prompt in enumerate(found[:2]):
            world.submit(id, prompt, 40)
        world.finish()
        assert world.out == {id: alone(prompt, 40) for id, prompt in enumerate(found[:2])}
        steps.append(world.launched)
    assert steps[0] == 40 and steps[1] < 32 and 0 < world.held < world.checked


def test_guesses_take_what_a_step_has_left_and_no_pages_of_others() -> None:
    world = World(Limits(batch=4, step_tokens=12, score_tokens=8, pages=3, context=96, checked=10))
    found = [p for p in (prompt_of(i, 30) for i in range(100)) if len(alone(p, 40)) == 40]
    for id, prompt in enumerate(found[:2]):
        world.submit(id, prompt[: 3 if id else 30], 40)
    for _ in range(4):
        world.step()
    rows = {s.id: s for s in world.state.running}
    wide = {0: (1,) * 9, 1: (2,) * 9}
    plan = scheduler.plan(world.state, world.limits, wide)
    assert [r.guesses for r in plan.rows] == [4, 4], "evenly, up to 10 tokens"
    assert scheduler.plan(world.state, world.limits, {1: wide[1]}).rows[0].guesses == 0
    assert scheduler.plan(world.state, world.limits, {1: wide[1]}).rows[1].guesses == 8
    scarce = msgspec.structs.replace(world.state, free=0)
    plan = scheduler.plan(scarce, world.limits, wide)
    room = [len(rows[id].pages) * PAGE - rows[id].cached - 1 for id in (0, 1)]
    assert [r.guesses for r in plan.rows] == [min(4, n) for n in room] and not plan.preempted
    short = msgspec.structs.replace(world.state, running=tuple(
        msgspec.structs.replace(s, limit=len(s.answer) + 2) for s in world.state.running))
    assert [r.guesses for r in scheduler.plan(short, world.limits, wide).rows] == [1, 1], "no more than may be answered"


def test_a_failed_sample_ends_only_its_own_sequence() -> None:
    limits = Limits(batch=2, step_tokens=32, score_tokens=8, pages=8, context=64)
    state: State = scheduler.start(limits)
    for id in range(2):
        state = scheduler.submit(state, limits, Sequence(id=id, prompt=(1, 2), limit=3))
    plan = scheduler.plan(state, limits)
    state, events = commit(scheduler.begin(state, plan), plan, [-1, 4])
    assert [(e.id, e.token, e.finish) for e in events] == [(0, -1, "error"), (1, 4, None)]
    assert [s.id for s in state.running] == [1]


def test_a_sequence_that_ended_unseen_wastes_one_row_and_no_more() -> None:
    limits = Limits(batch=2, step_tokens=32, score_tokens=8, pages=8, context=64)
    world = World(limits, lag=1)
    prompt = next(p for p in (unlike(i, 9) for i in range(200)) if 2 <= len(alone(p, 20)) < 20)
    world.submit(0, prompt, 20)
    world.finish()
    assert world.out[0] == alone(prompt, 20) and world.ends[0] == "stop"
    assert world.launched == len(world.out[0]) + 1, "one row ran for nothing, while the end was on its way"
    world = World(limits, lag=1)
    world.submit(0, prompt, 2)
    world.finish()
    assert world.out[0] == alone(prompt, 2) and world.launched == 2, "the last token of an answer is foreseen"


def test_an_empty_prompt_is_refused() -> None:
    limits = Limits(batch=2, step_tokens=32, score_tokens=8, pages=8, context=64)
    with pytest.raises(RequestError, match="empty"):
        scheduler.submit(scheduler.start(limits), limits, Sequence(id=0, prompt=(), limit=3))


@given(st.lists(st.integers(0, 99)), st.lists(st.integers(0, 99)))
def test_a_token_log_is_a_value(left: list[int], right: list[int]) -> None:
    root = TokenLog((1, 2))
    a = b = root
    for token in left:
        a = a.append(token)
    for token in right:
        b = b.append(token)
    assert list(root) == [1, 2] and list(a) == [1, 2, *left] and list(b) == [1, 2, *right]
    assert (a == b) == (left == right) and (left != right or hash(a) == hash(b))
    assert a.part(1, 3) == tuple([1, 2, *left][1:3]) and len(b) == 2 + len(right)


def test_long_answers_cost_the_same_per_token() -> None:
    limits = Limits(batch=1, step_tokens=32, score_tokens=8, pages=4096, context=4096 * PAGE)
    state = scheduler.submit(scheduler.start(limits), limits, Sequence(id=0, prompt=(1,), limit=10**6))
    for _ in range(3000):
        plan = scheduler.plan(state, limits)
        assert len(plan.rows[0].tokens) == 1
        state, _ = commit(scheduler.begin(state, plan), plan, [3])
    answer = state.running[0].answer
    assert len(answer) == 3000
    assert msgspec.structs.replace(state.running[0], cached=0).tokens(2998, 3001) == (3, 3, 3)
