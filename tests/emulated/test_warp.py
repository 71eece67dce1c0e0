"""Warp-wide exchange, barriers, divergence: what lanes see of each other."""
from __future__ import annotations

import numpy as np
import pytest
from emulated.snippet import run
from hypothesis import given, settings
from hypothesis import strategies as st

from blackwell_infer.emulator.parse import PtxError

LANE = np.arange(32, dtype=np.uint32)


def source(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """(lane read, whether in range) by the pseudo-code of the ISA."""
    segment, clamp = c >> 8 & 31, c & 31
    top = lane & segment | clamp & ~segment
    low = lane & segment
    j = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": low | b & ~segment & 31}[mode]
    good = j >= top if mode == "up" else j <= top
    return (j if good else lane), good


@settings(max_examples=40, deadline=None)
@given(mode=st.sampled_from(["up", "down", "bfly", "idx"]), b=st.integers(0, 31),
       width=st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_shuffles(mode: str, b: int, width: int) -> None:
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    got = run(f"shfl.sync.{mode}.b32 %d|%p, %a, {b}, {c}, 0xFFFFFFFF;", {"a": LANE * 3}, {"d": "b32", "p": "pred"})
    for lane in range(32):
        j, good = source(mode, lane, b, c)
        assert (got["d"][lane], got["p"][lane]) == (3 * j, good)


@settings(max_examples=40, deadline=None)
@given(yes=st.integers(0, 2**32 - 1), active=st.integers(1, 2**32 - 1))
def test_votes_among_some_lanes(yes: int, active: int) -> None:
    def mask(bits: int) -> np.ndarray:
        return np.array([bits >> i & 1 for i in range(32)], np.uint32)

    body = f""".reg .pred %p, %q, %in; setp.ne.u32 %q, %in_word, 0; setp.ne.u32 %p, %yes, 0;
        mov.u32 %ballot, 7; setp.ne.u32 %any, 0, 0; setp.ne.u32 %all, 0, 0; @!%q bra E;
        vote.sync.ballot.b32 %ballot, %p, {active}; vote.sync.any.pred %any, %p, {active};
        vote.sync.all.pred %all, %p, {active}; E:"""
    got = run(body, {"yes": mask(yes), "in_word": mask(active)}, {"ballot": "b32", "any": "pred", "all": "pred"})
    inside = mask(active).astype(bool)
    assert (got["ballot"] == np.where(inside, yes & active, 7)).all()
    assert (got["any"] == (inside & (yes & active != 0))).all()
    assert (got["all"] == (inside & (yes & active == active))).all()


def test_a_mask_with_absent_lanes_is_an_error() -> None:
    with pytest.raises(PtxError, match=r"elsewhere in the program; thread \(0, 0, 0\)"):
        run(""".reg .pred %p; mov.u32 %d, 0; setp.ge.u32 %p, %tid, 16; @%p bra E;
            shfl.sync.bfly.b32 %d, %tid, 1, 31, 0xFFFFFFFF; E:""", {}, {"d": "b32"})


@pytest.mark.parametrize(("body", "message"), [
    ("shfl.sync.bfly.b32 %d, %tid, 1, 31, 0xFFFF;", r"leaves out a lane that runs it; thread \(16, 0, 0\)"),
    ("vote.sync.any.pred %p, %p, 0xFFFF;", "leaves out a lane that runs it"),
    ("redux.sync.add.u32 %d, %tid, 0xFFFF;", "leaves out a lane that runs it"),
    ("@!%p bra E; shfl.sync.bfly.b32 %d, %tid, 16, 31, 0xFFFF; E:",
     "a shuffle reads lane 16, which does not take part"),
    ("@%p bra E; shfl.sync.down.b32 %d, %tid, 1, 31, 0xFFFF0000; bra E; E:", ""),
])
def test_a_mask_must_fit_the_lanes_that_run(body: str, message: str) -> None:
    body = f".reg .pred %p; mov.u32 %d, 0; setp.lt.u32 %p, %tid, 16; {body}"
    if not message:
        assert run(body, {}, {"d": "b32"})["d"][16:31].tolist() == list(range(17, 32))
        return
    with pytest.raises(PtxError, match=message):
        run(body, {}, {"d": "b32"})


def test_a_vote_for_agreement() -> None:
    for limit, expected in ((0, True), (5, False), (32, True)):
        got = run(f".reg .pred %p; setp.lt.u32 %p, %tid, {limit}; vote.sync.uni.pred %d, %p, 0xFFFFFFFF;", {},
                  {"d": "pred"})["d"]
        assert (got == expected).all()


@pytest.mark.parametrize(("name", "function"), [("add", np.sum), ("min", np.min), ("max", np.max)])
@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_reductions(name: str, function: object, kind: str) -> None:
    a = np.random.default_rng(0).integers(0, 2**32, 64, np.uint32)
    got = run(f"redux.sync.{name}.{kind} %d, %a, 0xFFFFFFFF;", {"a": a}, {"d": "b32"}, block=64)["d"]
    typed = a.view(np.int32) if kind == "s32" else a
    expected = [int(function(typed[i : i + 32].astype(np.int64))) % 2**32 for i in (0, 32)]
    assert got.tolist() == np.repeat(expected, 32).tolist()


def test_election_and_active_mask() -> None:
    got = run(""".reg .pred %q; .reg .b32 %who; mov.u32 %m, 0; setp.ne.u32 %p, 0, 0; setp.lt.u32 %q, %tid, 5; @%q bra E;
        activemask.b32 %m; elect.sync %who|%p, 0xFFFFFFE0; E:""", {}, {"m": "b32", "p": "pred"})
    assert (got["m"] == np.where(LANE < 5, 0, 0xFFFFFFE0)).all()
    assert np.flatnonzero(got["p"]).tolist() == [5]


def test_diverged_lanes_meet_again() -> None:
    """Lanes leave a loop after different counts; the shuffle behind it sees all of them."""
    got = run(""".reg .pred %p; .reg .b32 %i; mov.u32 %i, 0; and.b32 %n, %tid, 7;
        L: setp.ge.u32 %p, %i, %n; @%p bra E; add.u32 %i, %i, 1; bra L; E:
        shfl.sync.idx.b32 %d, %i, 7, 31, 0xFFFFFFFF;""",
              {}, {"d": "b32", "n": "b32"})
    assert (got["d"] == 7).all() and (got["n"] == LANE % 8).all()


def test_nested_scopes_shadow_registers_and_labels() -> None:
    scope = """{{ .reg .b32 t; .reg .pred p; mov.u32 t, {0}; W: add.u32 t, t, 1; setp.lt.u32 p, t, {1}; @p bra W;
        mov.u32 {2}, t; }}"""
    got = run(scope.format(0, 5, "%d") + scope.format(10, 13, "%e"), {}, {"d": "b32", "e": "b32"})
    assert (got["d"] == 5).all() and (got["e"] == 13).all()


EXCHANGE = """.shared .align 4 .b32 words[128]; .reg .b32 %here, %other, %n;
    mov.u32 %here, words; mad.lo.u32 %here, %tid, 4, %here; st.shared.b32 [%here], %tid; {between}
    mov.u32 %other, words; xor.b32 %n, %tid, 32; mad.lo.u32 %other, %n, 4, %other; ld.shared.b32 %d, [%other];"""


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
@pytest.mark.parametrize("between", ["bar.sync 0;", "barrier.cta.sync 1, 128;", """.reg .b32 %b; mov.u32 %b, 3;
    bar.sync %b, 128;""", "bar.arrive 4, 128; bar.sync 5;"])
def test_barriers_order_warps(seed: int | None, between: str) -> None:
    if "arrive" in between:
        between = """.reg .pred %p; setp.lt.u32 %p, %tid, 64; @%p bra A; bar.sync 4, 128; bra B; A: bar.arrive 4, 128;
            B: bar.sync 5;"""
    got = run(EXCHANGE.format(between=between), {}, {"d": "b32"}, block=128, grid=3, seed=seed)["d"]
    assert np.array_equal(got, np.tile(np.arange(128) ^ 32, 3))


def test_a_missing_barrier_shows_as_an_unwritten_read() -> None:
    caught = 0
    for seed in range(8):
        try:
            run(EXCHANGE.format(between=""), {}, {"d": "b32"}, block=128, seed=seed)
        except PtxError as e:
            assert "nothing wrote" in str(e)
            caught += 1
    assert caught >= 4


@pytest.mark.parametrize(("body", "message"), [
    ("setp.ge.u32 %p, %tid, 32; @%p bra E; bar.sync 1, 64; E:",
     "k, line .*bar.sync 1, 64: deadlock: thread .* waits at barrier 1"),
    ("setp.ge.u32 %p, %tid, 16; @%p bra E; bar.sync 1, 32; E:", "part of a warp is at an aligned barrier"),
    ("bar.sync 16;", "barrier 16 does not exist"), ("bar.sync 0, 33;", "multiple of 32"),
    ("bar.sync 0, 32;", "more threads arrive"), ("L: bra L;", "deadlock: no thread stores"),
])
def test_faults_of_barriers_are_named(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        run(f".reg .pred %p; mov.u32 %d, 0; {body}", {}, {"d": "b32"}, block=64)


@pytest.mark.parametrize("seed", [None, 3])
def test_barriers_count_votes(seed: int | None) -> None:
    got = run(""".reg .pred %p; setp.lt.u32 %p, %tid, 37; bar.red.popc.u32 %n, 0, %p; bar.red.or.pred %any, 0, %p;
        bar.red.and.pred %all, 0, %p;""", {}, {"n": "b32", "any": "pred", "all": "pred"}, block=64, grid=2, seed=seed)
    assert (got["n"] == 37).all() and got["any"].all() and not got["all"].any()


def test_exited_threads_do_not_hold_up_a_barrier() -> None:
    got = run("""mov.u32 %d, 0; .reg .pred %p; setp.ge.u32 %p, %tid, 40; @%p bra OUT; bar.sync 0; mov.u32 %d, 1;
        OUT:""",
              {}, {"d": "b32"}, block=40)["d"]
    assert (got == 1).all()


@pytest.mark.parametrize("seed", [None, 0])
def test_a_spinning_warp_lets_the_writer_run(seed: int | None) -> None:
    """The waiting loop stands before the store that ends it."""
    got = run(""".shared .align 4 .b32 flag; .reg .pred %p; .reg .b32 %f, %v; mov.u32 %f, flag; setp.eq.u32 %p, %tid, 0;
        @%p st.shared.b32 [%f], 0; bar.sync 0; setp.ge.u32 %p, %tid, 32; @%p bra WRITE;
        WAIT: ld.volatile.shared.b32 %v, [%f]; setp.eq.u32 %p, %v, 0; @%p bra WAIT; mov.u32 %d, %v; bra E;
        WRITE: st.volatile.shared.b32 [%f], 9; mov.u32 %d, 9; E:""", {}, {"d": "b32"}, block=64, seed=seed)["d"]
    assert (got == 9).all()
