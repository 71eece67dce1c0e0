"""The scheduler and its prefix cache: what a prompt that is known in part costs, and what gives way to what."""
from __future__ import annotations

import msgspec
import pytest
from test_scheduler import World, alone, unlike

from blackwell_infer.engine import scheduler
from blackwell_infer.engine.commit import commit
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.kv.prefix import Key, paged
from blackwell_infer.kv.spec import PAGE

DENSE = Limits(batch=4, step_tokens=512, score_tokens=64, pages=40, context=20 * PAGE, reuse=True)
HYBRID = Limits(batch=4, step_tokens=512, score_tokens=64, pages=40, context=20 * PAGE, reuse=True, stride=2 * PAGE,
                states=4)
lags = pytest.mark.parametrize("lag", [0, 1])


def keys(text: tuple[int, ...]) -> tuple[Key, ...]:
    return paged(text, PAGE)


def asked(world: World, id: int, prompt: tuple[int, ...], limit: int) -> tuple[int, list[int]]:
    """(tokens that were found in the cache, the answer) of one request to its end."""
    before = world.saved
    world.submit(id, prompt, limit)
    world.finish()
    assert world.out[id] == alone(prompt, limit)
    return world.saved - before, world.out[id]


@lags
def test_a_conversation_is_prefilled_from_where_it_goes_on(lag: int) -> None:
    world = World(DENSE, lag)
    text = unlike(1, 70)
    for turn in range(4):
        saved, answer = asked(world, turn, text, 20)
        assert saved == (0 if not turn else (len(text) - 7 - 1) // PAGE * PAGE)
        text = (*text, *answer, *unlike(turn, 7))[: 70 + 27 * (turn + 1)]
        text = text if len(answer) == 20 else (*text, *unlike(turn, 20))
        assert world.state.free.bit_count() + world.state.prefix.idle == DENSE.pages


@lags
def test_the_same_prompt_again_computes_its_last_token(lag: int) -> None:
    for limits, first in ((DENSE, 3 * PAGE), (HYBRID, 2 * PAGE)):
        world = World(limits, lag)
        prompt = unlike(1, 4 * PAGE)
        assert asked(world, 0, prompt, 1)[0] == 0
        assert asked(world, 1, prompt, 1)[0] == first, "the last page holds the token whose logits are wanted"
        assert asked(world, 2, (*prompt, 5), 1)[0] == (4 * PAGE if limits is DENSE else first)


@lags
def test_a_hybrid_resumes_from_the_end_of_an_answer(lag: int) -> None:
    world = World(HYBRID, lag)
    prompt = next(p for p in (unlike(i, 40) for i in range(900)) if len(alone(p, 200)) == 200)
    _, answer = asked(world, 0, prompt, 200)
    kept = world.state.prefix.states
    assert len(kept) == 1, "of an answer one state is kept, the newest; the prompt is shorter than a place"
    assert asked(world, 1, (*prompt, *answer, 3, 4), 5)[0] == 192
    assert asked(world, 2, (*prompt, *answer[:100], 3), 5)[0] == 0, "there is no state in the middle"
    assert asked(world, 3, (*prompt, *answer[:100], 4), 5)[0] == 128, "there is one where texts have parted before"


@lags
@pytest.mark.parametrize("limits", [DENSE, HYBRID])
def test_a_conversation_with_guesses_leaves_its_own_tokens_and_states(lag: int, limits: Limits) -> None:
    """Also those after a guess: `World` compares what is cached with what the pages and slots hold."""
    checking = msgspec.structs.replace(limits, checked=16)
    states = 0
    for seed in range(8):
        world = World(checking, lag, depth=5)
        text = unlike(seed, 40)
        for turn in range(4):
            before = world.state.prefix
            saved, answer = asked(world, turn, text, 90)
            known = before.match(keys(text[:-1]))
            assert saved == PAGE * (len(known) if limits is DENSE else before.resumable(known))
            text = (*text, *answer, *unlike(turn, 9))
            full = world.state.prefix.match(keys(text))
            assert len(full) >= (len(text) - 9 - 1) // PAGE, "all that was fed is there"
            states += world.state.prefix.resumable(full) * PAGE == (len(text) - 9 - 1) // (2 * PAGE) * 2 * PAGE
        assert 0 < world.held < world.checked
    assert limits is DENSE or states == 32, "the newest place of an answer is kept, whoever brought its token"


@lags
@pytest.mark.parametrize("limits", [DENSE, HYBRID])
def test_guesses_and_few_pages_preempt_and_lose_nothing(lag: int, limits: Limits) -> None:
    tight = msgspec.structs.replace(limits, pages=9, context=8 * PAGE, checked=16)
    world = World(tight, lag, depth=4)
    prompts = [p for p in (unlike(i, 64) for i in range(300)) if len(alone(p, 80)) == 80][:3]
    for id, prompt in enumerate(prompts):
        world.submit(id, prompt, 80)
    world.finish()
    assert world.preemptions > 0 and world.held > 0
    assert [world.out[id] for id in range(3)] == [alone(p, 80) for p in prompts]


def test_guesses_take_pages_that_only_the_cache_holds() -> None:
    limits = msgspec.structs.replace(DENSE, pages=8, context=8 * PAGE, checked=16)
    world = World(limits, depth=8)
    asked(world, 0, unlike(1, 6 * PAGE), 1)
    prompt = next(p for p in (unlike(i, 2 * PAGE - 2) for i in range(99)) if len(alone(p, 40)) == 40)
    world.submit(1, prompt, 40)
    world.step()
    full = msgspec.structs.replace(world.state, free=0, prefix=world.state.prefix)
    assert full.prefix.idle
    plan = scheduler.plan(full, limits, {1: (1,) * 8})
    assert plan.rows[0].guesses == 8 and plan.rows[0].new_pages == 1 and not plan.preempted


@lags
def test_states_give_way_to_newer_ones_and_those_of_use_stay(lag: int) -> None:
    world = World(HYBRID, lag)
    shared = unlike(0, 70)
    asked(world, 0, shared, 1)
    for id in range(1, 9):
        asked(world, 2 * id, unlike(id, 70), 1)
        assert asked(world, 2 * id + 1, shared, 1)[0] == 64
    assert len(world.state.prefix.states) == HYBRID.states
    assert asked(world, 98, unlike(8, 70), 1)[0] == 64 and asked(world, 99, unlike(1, 70), 1)[0] == 0


@lags
def test_a_state_that_is_kept_twice_is_read_before_its_slot_is_written(lag: int) -> None:
    """`World.run` asserts it: where two come to one place together, one goes on from a slot that is given back."""
    world = World(HYBRID, lag)
    prompt = next(p for p in (unlike(i, 60) for i in range(99)) if len(alone(p, 20)) == 20)
    for id in range(2):
        world.submit(id, prompt, 20)
    for id in range(2, 10):
        world.step()
        world.submit(id, unlike(id, 70), 1)
    world.finish()
    assert world.out[0] == world.out[1] == alone(prompt, 20)


@lags
def test_what_was_used_last_is_evicted_last_and_ends_before_beginnings(lag: int) -> None:
    world = World(DENSE, lag)
    for id in range(3):
        asked(world, id, unlike(id, 8 * PAGE + 1), 1)
    asked(world, 3, unlike(0, 8 * PAGE + 1), 1)
    assert world.state.prefix.idle == 24
    asked(world, 4, unlike(9, 19 * PAGE + 1), 1)
    assert world.state.prefix.idle == 39
    assert [len(world.state.prefix.match(tuple(unlike(i, 300)[j * PAGE : j * PAGE + PAGE] for j in range(8))))
            for i in range(3)] == [8, 4, 8]


@lags
def test_requests_that_run_share_pages(lag: int) -> None:
    limits = Limits(batch=8, step_tokens=512, score_tokens=64, pages=22, context=12 * PAGE, reuse=True)
    prompt = next(p for p in (unlike(i, 10 * PAGE + 1) for i in range(99)) if len(alone(p, 20)) == 20)
    world = World(limits, lag)
    for id in range(6):
        world.submit(id, prompt, 20)
        world.step()
        world.step()
    assert len(world.state.running) == 6 and world.saved == 5 * 10 * PAGE
    assert limits.pages - world.state.free.bit_count() == 16, "ten of all, and one of each"
    world.finish()
    assert all(world.out[id] == alone(prompt, 20) for id in range(6)) and world.preemptions == 0


@lags
def test_two_in_one_step_compute_for_themselves_and_leave_one_copy(lag: int) -> None:
    world = World(DENSE, lag)
    for id in range(2):
        world.submit(id, unlike(1, 70), 5)
    world.finish()
    assert world.saved == 0 and world.out[0] == world.out[1] == alone(unlike(1, 70), 5)
    assert world.state.prefix.total == 2


@lags
@pytest.mark.parametrize("limits", [DENSE, HYBRID])
def test_many_with_one_long_prompt_wait_for_the_first_to_read_it(lag: int, limits: Limits) -> None:
    wide = msgspec.structs.replace(limits, step_tokens=4096, pages=200, context=100 * PAGE, batch=8)
    world = World(wide, lag)
    prompt = next(p for p in (unlike(i, 700) for i in range(99)) if len(alone(p, 20)) == 20)
    for id in range(6):
        world.submit(id, prompt, 20)
    world.submit(6, unlike(5, 40), 5)
    world.step()
    assert [s.id for s in world.state.running] == [0]
    world.finish()
    assert world.saved == 5 * (640 if limits is HYBRID else 672) and world.launched <= 26
    assert all(world.out[id] == alone(prompt, 20) for id in range(6))
    assert world.first_step[6] <= 3 + lag


@lags
def test_what_is_preempted_goes_on_from_what_is_left_of_it(lag: int) -> None:
    limits = Limits(batch=4, step_tokens=512, score_tokens=64, pages=9, context=8 * PAGE, reuse=True)
    world = World(limits, lag)
    prompts = [p for p in (unlike(i, 64) for i in range(300)) if len(alone(p, 80)) == 80][:3]
    for id, prompt in enumerate(prompts):
        world.submit(id, prompt, 80)
    world.finish()
    assert world.preemptions > 0 and world.saved > 0
    assert [world.out[id] for id in range(3)] == [alone(p, 80) for p in prompts]


def test_a_step_that_failed_leaves_nothing_in_the_cache() -> None:
    world = World(HYBRID)
    world.submit(0, unlike(1, 70), 5)
    plan = scheduler.plan(world.state, world.limits)
    state = scheduler.begin(world.state, plan)
    assert state.prefix.free.bit_count() == HYBRID.states - 1
    state = scheduler.cancel(state, frozenset({0}))
    assert state.prefix.total == 0 and state.free.bit_count() == HYBRID.pages
    assert state.prefix.free.bit_count() == HYBRID.states


def test_no_usable_logits_leave_nothing_in_the_cache() -> None:
    state = scheduler.submit(scheduler.start(DENSE), DENSE, scheduler.Sequence(id=0, prompt=unlike(1, 70), limit=5))
    plan = scheduler.plan(state, DENSE)
    state, events = commit(scheduler.begin(state, plan), plan, [-1])
    assert events[0].finish == "error" and state.prefix.total == 0 and state.free.bit_count() == DENSE.pages
