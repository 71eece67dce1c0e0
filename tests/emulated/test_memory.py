"""Loads, stores, atomics, and the faults of memory and programs that the emulator names."""
from __future__ import annotations

import numpy as np
import pytest
from emulated.snippet import run, text

from blackwell_infer.emulator.memory import Heap
from blackwell_infer.emulator.parse import PtxError, parse_module
from blackwell_infer.emulator.run import launch

SHARED = """.shared .align 16 .b8 tile[1024]; .reg .b32 %t, %mine; mov.u32 %t, tile; mad.lo.u32 %mine, %tid, 16, %t;"""
WORDS = {n: np.random.default_rng(i).integers(0, 2**32, 32, np.uint32) for i, n in enumerate("abcd")}


def test_vectors_of_two_and_four() -> None:
    got = run(SHARED + """st.shared.v4.b32 [%mine], {%a, %b, %c, %d}; ld.shared.v2.b64 {%x, %y}, [%mine];
        ld.shared.v2.b32 {%p, %q}, [%mine+8]; ld.shared.u8 %z, [%mine+5]; ld.shared.s16 %s, [%mine+2];""", WORDS,
              {"x": "b64", "y": "b64", "p": "b32", "q": "b32", "z": "b32", "s": "b32"})
    a, b, c, d = (WORDS[n].astype(np.uint64) for n in "abcd")
    assert np.array_equal(got["x"], b << np.uint64(32) | a) and np.array_equal(got["y"], d << np.uint64(32) | c)
    assert np.array_equal(got["p"], WORDS["c"]) and np.array_equal(got["q"], WORDS["d"])
    assert np.array_equal(got["z"], WORDS["b"] >> 8 & 255)
    high = (WORDS["a"] >> 16).astype(np.uint16).view(np.int16)
    assert np.array_equal(got["s"].view(np.int32), high.astype(np.int32))


def test_local_memory_belongs_to_each_lane() -> None:
    got = run(""".local .align 4 .b8 mine[8]; .reg .b64 %p; mov.u64 %p, mine; cvta.local.u64 %p, %p;
        st.b32 [%p+4], %a; ld.b32 %x, [%p+4];""", {"a": WORDS["a"]}, {"x": "b32"}, grid=1)["x"]
    assert np.array_equal(got, WORDS["a"])


def test_loads_past_the_first_cache() -> None:
    got = run(""".reg .b64 %at; mad.wide.u32 %at, %tid, 8, %memory; st.global.v2.b32 [%at], {%a, %b};
        ld.global.cg.v2.b32 {%x, %y}, [%at];""", {"a": WORDS["a"], "b": WORDS["b"]}, {"x": "b32", "y": "b32"}, grid=1)
    assert np.array_equal(got["x"], WORDS["a"]) and np.array_equal(got["y"], WORDS["b"])


def test_constants() -> None:
    got = run("""ld.const.b32 %d, [table+8];""", {}, {"d": "b32"},
              variables=".const .align 4 .b32 table[4] = {1, 2, 0xFFFFFFFF, 4};")["d"]
    assert (got == 0xFFFFFFFF).all()


@pytest.mark.parametrize(("name", "function"), [
    ("add", np.add), ("min", np.minimum), ("max", np.maximum), ("and", np.bitwise_and), ("or", np.bitwise_or),
    ("xor", np.bitwise_xor)])
@pytest.mark.parametrize("form", ["atom", "red"])
def test_atomics_of_all_lanes_on_one_word(name: str, function: np.ufunc, form: str) -> None:
    kind = "u32" if name in ("add", "min", "max") else "b32"
    op = f"atom.shared.{name}.{kind} %old, [%t], %a;" if form == "atom" else f"red.shared.{name}.{kind} [%t], %a;"
    got = run(SHARED + f""".reg .pred %p; setp.eq.u32 %p, %tid, 0; @%p st.shared.b32 [%t], 12345; bar.sync 0;
        mov.u32 %old, 0; {op} bar.sync 0; ld.shared.b32 %d, [%t];""", {"a": WORDS["a"]}, {"d": "b32", "old": "b32"})
    assert (got["d"] == function.reduce(np.concatenate([[np.uint32(12345)], WORDS["a"]]), dtype=np.uint32)).all()


def test_compare_and_swap_lets_one_lane_win() -> None:
    got = run(SHARED + """.reg .pred %p; setp.eq.u32 %p, %tid, 0; @%p st.shared.b32 [%t], 0; bar.sync 0;
        .reg .b32 %v; add.u32 %v, %tid, 1; atom.shared.cas.b32 %old, [%t], 0, %v; bar.sync 0;
        ld.shared.b32 %d, [%t];""",
              {}, {"d": "b32", "old": "b32"})
    winner = int(got["d"][0])
    assert (got["old"] == 0).sum() == 1 and got["old"][winner - 1] == 0


@pytest.mark.parametrize(("body", "message"), [
    ("ld.shared.b32 %d, [%t];", "reads 4 bytes of shared memory at 0x0 that nothing wrote"),
    ("st.shared.b32 [%mine+1010], %tid;", "misaligned access of 4 bytes"),
    ("st.shared.b32 [%mine+600], %tid;", "access of 4 bytes at offset 1032 of 1024 bytes of shared memory; "
                                         r"thread \(27, 0, 0\) of CTA \(0, 0, 0\)"),
    ("ld.global.b32 %d, [%memory+256];", "at offset 256 of an allocation of 256 bytes"),
    ("mov.u64 %memory, 64; ld.global.b32 %d, [%memory];", "no device address"),
    (".reg .b32 %never; add.u32 %d, %never, 1;", "register %never is read before anything is written"),
    (".reg .b32 %never; .reg .pred %q; setp.lt.u32 %q, %tid, 9; @%q mov.u32 %never, 1; add.u32 %d, %never, 1;",
     r"register %never .*; thread \(9, 0, 0\)"),
    ("trap;", "trap"),
    ("add.cc.u32 %d, %tid, 1;", "the form 'add.cc.u32' is not known to the emulator; add it in"),
    ("mul.f32 %d, %tid, {1, 2};", "operand 'vec' is not known"),
    ("ld.shared.b64 %d, [%t];", "does not fit a register|nothing wrote"),
    ("bra NOWHERE;", "no label NOWHERE"), ("bra;", "0 operands; 1 expected"),
    ("bar.sync;", "0 operands; 1 to 2 expected"),
    ("mov.u32 %d;", "2 operands expected"), ("selp.b32 %d, 1, 2;", "3 operands; 4 expected"),
    ("ld.shared.b32 %d, %t;", "operand 2 is no address in brackets"),
    ("ld.shared.v2.b32 %d, [%t];", "operand 1 is no vector of 2 registers"),
    ("ld.shared.b32 %d, [%t], %d;", "3 operands; 2 expected"), ("st.shared.b32 [%t];", "1 operands; 2 expected"),
    ("@%q mov.u32 %d, 1;", "operand '%q' is not known"), ("@%q bra E; E:", "operand '%q' is not known"),
    ("@%tid mov.u32 %d, 1;", "%tid is no predicate"), ("ld.param.u64 %at, [other];", "do not fit this form .*other"),
    ("atom.shared.and.f32 %d, [%t], %d;", "'atom.shared.and.f32' is not known"),
    ("red.shared.exch.b32 [%t], %d;", "'red.shared.exch.b32' is not known"),
    ("setp.lt.b32 %x, %d, %d;", "'setp.lt.b32' is not known"),
    ("setp.hi.s32 %x, %d, %d;", "'setp.hi.s32' is not known"),
    ("cp.async.ca.shared.global [%t], [%memory], 5;", "a copy of 5 bytes; .ca copies 4, 8 or 16, .cg 16"),
    ("cp.async.cg.shared.global [%t], [%memory], 8;", "a copy of 8 bytes"),
    ("cp.async.wait_group %d;", "operand 1 is no constant"),
    ("bra E; call absent; E:", "the form 'call' is not known"),
])
def test_faults_say_what_and_where(body: str, message: str) -> None:
    with pytest.raises(PtxError, match=message) as caught:
        run(SHARED + f" mov.u32 %d, 0; {body}", {}, {"d": "b32"})
    assert "k, line " in str(caught.value)


def test_an_unwritten_register_may_be_moved_but_not_used() -> None:
    """Compilers move values that nobody needs: only a use is a fault."""
    body = """.reg .b32 %never, %copy; .reg .pred %q; setp.lt.u32 %q, %tid, 9; mov.u32 %copy, %never; {}
        mov.u32 %d, %copy;"""
    with pytest.raises(PtxError, match="register %d is read before"):
        run(body.format(""), {}, {"d": "b32"})
    got = run(body.format("selp.b32 %copy, 3, %copy, %q; @!%q mov.u32 %copy, 4;"), {}, {"d": "b32"})["d"]
    assert np.array_equal(got, np.where(np.arange(32) < 9, 3, 4))


def test_access_after_free_is_an_error() -> None:
    heap = Heap()
    at = heap.allocate(256)
    module = parse_module(text(".reg .b32 %v; ld.global.b32 %v, [%memory];", {}, {}))
    heap.view(at, 256)[:] = 0
    launch(module, "k", heap, {}, (1, 1, 1), (32, 1, 1), at.to_bytes(8, "little"))
    heap.free(at)
    with pytest.raises(PtxError, match="memory that was freed"):
        launch(module, "k", heap, {}, (1, 1, 1), (32, 1, 1), at.to_bytes(8, "little"))


@pytest.mark.parametrize(("source", "message"), [
    ("nothing", "without a .target"),
    (".target sm_90\n.visible .entry k() { mov.u32", "line 2: PTX ends inside the kernel body"),
    (".target sm_90\n.visible .entry k() { .reg .quux %r<3>; ret; }", "register type .quux"),
    (".target sm_90\n.visible .entry k() {\n\n mov.u32 %r, (3); }", "line 4: cannot read the operands"),
    (".target sm_90\n\n.visible .entry k() {\n ret;", "line 3: PTX ends inside the kernel body"),
    (".target sm_90\n.visible .entry k() {\n ret;\n mov.u32 %r, 1\n }", "line 4: no semicolon closes 'mov.u32 %r, 1'"),
    (".target sm_90\n.global .u32 x[2] = {1, a};", "line 2: cannot read the values of variable x"),
    (".target sm_90\n.visible .entry k() {\n .shared .b99 x[4]; ret; }",
     "line 3: variable x has the unknown type .b99"),
    (".target sm_90\n.visible .entry k(.param .quux p) { ret; }", "parameter p has the unknown type .quux"),
    (".target sm_90\n.visible .entry k() { ret; }\n}\nret;", "line 3: cannot read '}' outside a kernel"),
    (".target sm_90\n.func f() { ret; }", "line 2: cannot read '.func f.*outside a kernel"),
    (".target sm_90\n.visible .entry k() {\n L: ret;\n L: ret; }", "line 4: label L stands twice")])
def test_malformed_text_is_refused_with_its_line(source: str, message: str) -> None:
    with pytest.raises(PtxError, match=message):
        parse_module(source)


def test_numbers_are_read_in_every_base() -> None:
    got = run("mov.u32 %a, 017; mov.u32 %b, 0x1F; add.u32 %c, %a, -3; mov.b32 %d, 0f3F800000;", {},
              dict.fromkeys("abcd", "b32"))
    assert [int(got[n][0]) for n in "abcd"] == [15, 31, 12, 0x3F800000]


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(PtxError, match=r"no kernel 'x'.*\['k'\]"):
        launch(parse_module(text("", {}, {})), "x", Heap(), {}, (1, 1, 1), (32, 1, 1), b"\0" * 8)
