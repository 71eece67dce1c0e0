"""ldmatrix, stmatrix and every mma shape against float64 sums over fragment maps that are written out here."""
from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from emulated.snippet import run

from blackwell_infer.emulator.parse import PtxError

RANDOM = np.random.default_rng
E2M1 = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
F8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "e3m2": ml_dtypes.float6_e3m2fn,
      "e2m3": ml_dtypes.float6_e2m3fn}


def a_place(lane: int, register: int, i: int, per: int) -> tuple[int, int]:
    """(row, k) of element i of A's register; `per` elements in a register (16 x 8 per fragment)."""
    row = lane // 4 + 8 * (register % 2)
    return row, per * (lane % 4) + i + 4 * per * (register // 2)


def b_place(lane: int, register: int, i: int, per: int) -> tuple[int, int]:
    """(k, column) of element i of B's register."""
    return per * (lane % 4) + i + 4 * per * register, lane // 4


def c_place(lane: int, register: int) -> tuple[int, int]:
    return lane // 4 + 8 * (register // 2), 2 * (lane % 4) + register % 2


def spread(matrix: np.ndarray, place: object, registers: int, per: int, bits: int) -> list[np.ndarray]:
    """Codes of a matrix as registers [32] uint32."""
    out = []
    for r in range(registers):
        words = np.zeros(32, np.uint32)
        for lane in range(32):
            for i in range(per):
                words[lane] |= np.uint32(int(matrix[place(lane, r, i, per)]) << bits * i)
        out.append(words)
    return out


def product(form: str, a: np.ndarray, b: np.ndarray, c: np.ndarray, per: int, extra: str = "",
            words: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """D of one warp; a [16, k], b [k, 8] are codes, `per` in a 32-bit register; c [16, 8]."""
    bits = 32 // per
    ra = spread(a, a_place, a.shape[1] // (4 * per) * 2, per, bits)
    rb = spread(b, b_place, a.shape[1] // (4 * per), per, bits)
    rc = [np.array([c[c_place(lane, r)] for lane in range(32)], c.dtype) for r in range(4)]
    inputs = {**{f"a{i}": v for i, v in enumerate(ra)}, **{f"b{i}": v for i, v in enumerate(rb)},
              **{f"c{i}": v for i, v in enumerate(rc)}, **(words or {})}

    def group(name: str, n: int) -> str:
        return "{" + ", ".join(f"%{name}{i}" for i in range(n)) + "}"

    body = f"{form} {group('d', 4)}, {group('a', len(ra))}, {group('b', len(rb))}, {group('c', 4)}{extra};"
    got = run(body, inputs, {f"d{i}": "b32" for i in range(4)})
    d = np.zeros((16, 8), c.dtype)
    for r in range(4):
        for lane in range(32):
            d[c_place(lane, r)] = got[f"d{r}"].view(c.dtype)[lane]
    return d


def accumulators(seed: int) -> np.ndarray:
    return RANDOM(seed).standard_normal((16, 8)).astype(np.float32)


@pytest.mark.parametrize(("kind", "k"), [("f16", 8), ("f16", 16), ("bf16", 8), ("bf16", 16)])
def test_half_precision(kind: str, k: int) -> None:
    dtype = np.float16 if kind == "f16" else ml_dtypes.bfloat16
    a, b = RANDOM(1).standard_normal((16, k)).astype(dtype), RANDOM(2).standard_normal((k, 8)).astype(dtype)
    c = accumulators(3)
    got = product(f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32", a.view(np.uint16), b.view(np.uint16),
                  c, 2)
    assert np.array_equal(got, (a.astype(float) @ b.astype(float) + c).astype(np.float32))


@pytest.mark.parametrize("k", [4, 8])
def test_tf32(k: int) -> None:
    a, b = RANDOM(1).standard_normal((16, k)).astype(np.float32), RANDOM(2).standard_normal((k, 8)).astype(np.float32)
    c, cut = accumulators(3), np.uint32(0xFFFFE000)
    got = product(f"mma.sync.aligned.m16n8k{k}.row.col.f32.tf32.tf32.f32", a.view(np.uint32), b.view(np.uint32), c, 1)
    wide = [(x.view(np.uint32) & cut).view(np.float32).astype(float) for x in (a, b)]
    assert np.array_equal(got, (wide[0] @ wide[1] + c).astype(np.float32))


@pytest.mark.parametrize("a_kind", ["s8", "u8"])
@pytest.mark.parametrize("b_kind", ["s8", "u8"])
def test_integers_wrap(a_kind: str, b_kind: str) -> None:
    types = {"s8": np.int8, "u8": np.uint8}
    a, b = RANDOM(1).integers(0, 256, (16, 32), np.uint8), RANDOM(2).integers(0, 256, (32, 8), np.uint8)
    c = RANDOM(3).integers(-2**31, 2**31, (16, 8)).astype(np.int32)
    c[0] = 2**31 - 1
    got = product(f"mma.sync.aligned.m16n8k32.row.col.s32.{a_kind}.{b_kind}.s32", a, b, c, 4)
    expected = a.view(types[a_kind]).astype(np.int64) @ b.view(types[b_kind]).astype(np.int64) + c
    assert np.array_equal(got, expected.astype(np.int32))


@pytest.mark.parametrize("a_kind", ["e4m3", "e5m2"])
@pytest.mark.parametrize("b_kind", ["e4m3", "e5m2"])
@pytest.mark.parametrize("kind", ["", ".kind::f8f6f4"])
def test_eight_bit_floats(a_kind: str, b_kind: str, kind: str) -> None:
    a = RANDOM(1).standard_normal((16, 32)).astype(F8[a_kind])
    b = RANDOM(2).standard_normal((32, 8)).astype(F8[b_kind])
    c = accumulators(3)
    got = product(f"mma.sync.aligned.m16n8k32.row.col{kind}.f32.{a_kind}.{b_kind}.f32", a.view(np.uint8),
                  b.view(np.uint8), c, 4)
    assert np.array_equal(got, (a.astype(float) @ b.astype(float) + c).astype(np.float32))


@pytest.mark.parametrize(("a_kind", "b_kind"), [("e2m1", "e4m3"), ("e4m3", "e2m1"), ("e3m2", "e2m3")])
def test_mixed_narrow_floats_ignore_their_padding(a_kind: str, b_kind: str) -> None:
    def decode(codes: np.ndarray, kind: str) -> np.ndarray:
        if kind == "e2m1":
            return E2M1[codes >> 2 & 15]
        return (codes & (255 if kind == "e4m3" else 63)).astype(np.uint8).view(F8[kind]).astype(float)

    a, b = RANDOM(1).integers(0, 120, (16, 32), np.uint8), RANDOM(2).integers(0, 120, (32, 8), np.uint8)
    c = accumulators(3)
    got = product(f"mma.sync.aligned.m16n8k32.row.col.kind::f8f6f4.f32.{a_kind}.{b_kind}.f32", a, b, c, 4)
    assert np.array_equal(got, (decode(a, a_kind) @ decode(b, b_kind) + c).astype(np.float32))


def scale_words(scales: np.ndarray, rows: object, byte: int, seed: int) -> np.ndarray:
    """Scale words [32]: rows(lane) is the row (or None) whose bytes the lane holds from `byte` on, the rest noise."""
    words = RANDOM(seed).integers(0, 256, (32, 4), np.uint8)
    for lane in range(32):
        row = rows(lane)
        if row is not None:
            words[lane, byte : byte + scales.shape[1]] = scales[row]
    return words.view(np.uint32).reshape(32)


FP4 = [("mxf4nvf4", 4, "ue4m3"), ("mxf4nvf4", 4, "ue8m0"), ("mxf4nvf4", 2, "ue8m0"), ("mxf4", 2, "ue8m0")]


def scale_codes(shape: tuple[int, int], kind: str, seed: int) -> np.ndarray:
    if kind == "ue8m0":
        return RANDOM(seed).integers(120, 134, shape).astype(np.uint8)
    return RANDOM(seed).integers(0, 127, shape).astype(np.uint8) | np.uint8(128)          # the sign does not count


def scale_numbers(codes: np.ndarray, kind: str) -> np.ndarray:
    if kind == "ue8m0":
        return 2.0 ** (codes.astype(float) - 127)
    return (codes & 127).view(ml_dtypes.float8_e4m3fn).astype(float)


@pytest.mark.parametrize(("kind", "size", "scale"), FP4)
@pytest.mark.parametrize("thread_a", [0, 1])
@pytest.mark.parametrize("thread_b", [0, 1, 2, 3])
def test_block_scaled_fp4(kind: str, size: int, scale: str, thread_a: int, thread_b: int) -> None:
    a, b, c = RANDOM(1).integers(0, 16, (16, 64)), RANDOM(2).integers(0, 16, (64, 8)), accumulators(3)
    sa, sb = scale_codes((16, size), scale, 4), scale_codes((8, size), scale, 5)
    byte = 2 if size == 2 and thread_a else 0

    def a_row(lane: int) -> int | None:
        t = lane % 4
        return lane // 4 + 8 * (t % 2) if t // 2 == thread_a else None

    def b_column(lane: int) -> int | None:
        return lane // 4 if lane % 4 == thread_b else None

    words = {"sa": scale_words(sa, a_row, byte, 6), "sb": scale_words(sb, b_column, 0, 7)}
    kind = f"kind::{kind}.block_scale.scale_vec::{size}X"
    form = f"mma.sync.aligned.m16n8k64.row.col.{kind}.f32.e2m1.e2m1.f32.{scale}"
    got = product(form, a, b, c, 8, f", {{%sa}}, {{{byte}, {thread_a}}}, {{%sb}}, {{0, {thread_b}}}", words)
    wide_a = E2M1[a] * np.repeat(scale_numbers(sa, scale), 64 // size, axis=1)
    wide_b = E2M1[b] * np.repeat(scale_numbers(sb, scale), 64 // size, axis=1).T
    assert np.array_equal(got, (wide_a @ wide_b + c).astype(np.float32))


@pytest.mark.parametrize(("a_kind", "b_kind"), [("e4m3", "e4m3"), ("e4m3", "e5m2"), ("e5m2", "e4m3")])
@pytest.mark.parametrize("byte", [0, 1, 2, 3])
def test_block_scaled_fp8(a_kind: str, b_kind: str, byte: int) -> None:
    a = RANDOM(1).standard_normal((16, 32)).astype(F8[a_kind])
    b = RANDOM(2).standard_normal((32, 8)).astype(F8[b_kind])
    c = accumulators(3)
    sa, sb = scale_codes((16, 1), "ue8m0", 4), scale_codes((8, 1), "ue8m0", 5)
    words = {"sa": scale_words(sa, lambda lane: lane // 4 + 8 * (lane % 2) if lane % 4 < 2 else None, byte, 6),
             "sb": scale_words(sb, lambda lane: lane // 4 if lane % 4 == 1 else None, 3 - byte, 7)}
    kind = "kind::mxf8f6f4.block_scale.scale_vec::1X"
    form = f"mma.sync.aligned.m16n8k32.row.col.{kind}.f32.{a_kind}.{b_kind}.f32.ue8m0"
    scales = f", {{%sa}}, {{{byte}, 0}}, {{%sb}}, {{{3 - byte}, 1}}"
    got = product(form, a.view(np.uint8), b.view(np.uint8), c, 4, scales, words)
    wide = (a.astype(float) * scale_numbers(sa, "ue8m0")) @ (b.astype(float) * scale_numbers(sb, "ue8m0").T)
    assert np.array_equal(got, (wide + c).astype(np.float32))


@pytest.mark.parametrize(("codes", "kind", "size"), [(0x7F, "ue4m3", 4), (0xFF, "ue4m3", 4), (0xFF, "ue8m0", 2)])
def test_a_nan_scale_makes_its_row_nan(codes: int, kind: str, size: int) -> None:
    a, b, c = np.full((16, 64), 2), np.full((64, 8), 2), np.zeros((16, 8), np.float32)
    one = 0x38 if kind == "ue4m3" else 127
    sa, sb = np.full((16, size), one, np.uint8), np.full((8, size), one, np.uint8)
    sa[5, 1] = codes
    words = {"sa": scale_words(sa, lambda lane: lane // 4 + 8 * (lane % 2) if lane % 4 < 2 else None, 0, 6),
             "sb": scale_words(sb, lambda lane: lane // 4 if lane % 4 == 0 else None, 0, 7)}
    form = f"mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::{size}X.f32.e2m1.e2m1.f32.{kind}"
    got = product(form, a, b, c, 8, ", {%sa}, {0, 0}, {%sb}, {0, 0}", words)
    assert np.isnan(got[5]).all()
    assert (np.delete(got, 5, axis=0) == 64).all()


@pytest.mark.parametrize("ids", ["{1, 0}, {%sb}, {0, 0}", "{0, 2}, {%sb}, {0, 0}", "{0, 0}, {%sb}, {0, 4}"])
def test_illegal_scale_selectors_are_errors(ids: str) -> None:
    a, b, c = np.zeros((16, 64), int), np.zeros((64, 8), int), np.zeros((16, 8), np.float32)
    words = {"sa": np.zeros(32, np.uint32), "sb": np.zeros(32, np.uint32)}
    form = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3"
    with pytest.raises(PtxError, match="scale selector"):
        product(form, a, b, c, 8, f", {{%sa}}, {ids}", words)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transpose", [False, True])
def test_load_and_store_matrix(count: int, transpose: bool) -> None:
    trans = ".trans" if transpose else ""
    values = RANDOM(1).integers(0, 2**32, (count, 32), np.uint32)
    group = "{" + ", ".join(f"%r{i}" for i in range(count)) + "}"
    fill = "\n".join(f"st.shared.b32 [%mine+{128 * i}], %v{i};" for i in range(count))
    inputs = {f"v{i}": values[i] for i in range(count)}
    setup = """.reg .b32 %mine, %row; .shared .align 16 .b8 tile[512]; .shared .align 16 .b8 copy[512];
        mov.u32 %mine, tile; mad.lo.u32 %mine, %tid, 4, %mine;"""
    got = run(f"""{setup} {fill} bar.sync 0; mov.u32 %row, tile; mad.lo.u32 %row, %tid, 16, %row;
        ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {group}, [%row];
        """, inputs, {f"r{i}": "b32" for i in range(count)})
    stored = values.view(np.uint16).reshape(count, 8, 8)
    for i in range(count):
        for lane in range(32):
            low, high = 2 * (lane % 4), 2 * (lane % 4) + 1
            pair = (stored[i, low, lane // 4], stored[i, high, lane // 4]) if transpose else (
                stored[i, lane // 4, low], stored[i, lane // 4, high])
            assert got[f"r{i}"][lane] == int(pair[0]) | int(pair[1]) << 16
    back = run(f""".reg .b32 %mine, %row; .shared .align 16 .b8 tile[512];
        mov.u32 %row, tile; mad.lo.u32 %row, %tid, 16, %row;
        stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%row], {group}; bar.sync 0;
        mov.u32 %mine, tile; mad.lo.u32 %mine, %tid, 4, %mine;
        """ + "\n".join(f"ld.shared.b32 %w{i}, [%mine+{128 * i}];" for i in range(count)),
        {f"r{i}": got[f"r{i}"] for i in range(count)}, {f"w{i}": "b32" for i in range(count)})
    assert all(np.array_equal(back[f"w{i}"], values[i]) for i in range(count))


def test_a_warp_instruction_needs_the_whole_warp() -> None:
    body = """.reg .pred %p; .reg .b32 %row; .shared .align 16 .b8 tile[512]; mov.u32 %row, tile;
        mad.lo.u32 %row, %tid, 16, %row; mov.u32 %d, 0; setp.lt.u32 %p, %tid, 16;
        @%p ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d}, [%row];"""
    with pytest.raises(PtxError, match="part of a warp"):
        run(body, {}, {"d": "b32"})
