"""Reference ops against plain float64 formulas that share no code with them, and their laws."""
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.kv.spec import PAGE, PagedKV
from blackwell_infer.ops import cases, inputs, ref
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.ref.quantize import dequantize
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import QUANTISES, Weight, input_scale
from blackwell_infer.quant.fragments import plain
from blackwell_infer.quant.tiled import unpaired

Values = np.ndarray[Any, Any]
BFLOAT = np.dtype(ml_dtypes.bfloat16)
EPSILON = {"float32": 2e-6, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place, relative (float32: a few, for the sums)"""


def of(op: str) -> list[cases.Case]:
    return [c for c in cases.CASES if c.op == op]


def names(case: cases.Case) -> str:
    return case.name


def outputs(case: cases.Case) -> dict[str, Values]:
    return cases.run_case(ref, case, lambda x: x, lambda x: x)


def close(got: Values, want: Values, dtype: str, floor: float) -> None:
    """`got` is `want` rounded once to dtype, up to float32 sums of size `floor`; NaN and infinities agree."""
    assert got.dtype == inputs.DTYPES[dtype]
    a = got.astype(np.float64)
    finite = np.isfinite(want)
    assert np.array_equal(np.isnan(a), np.isnan(want))
    assert np.array_equal(a[~finite], want[~finite], equal_nan=True)
    error = np.abs(a[finite] - want[finite])
    assert (error <= EPSILON[dtype] * np.abs(want[finite]) + floor).all(), error.max()


def dtype_of(x: Values) -> str:
    return next(name for name, d in inputs.DTYPES.items() if d == x.dtype)


def values(w: Weight) -> Values:
    """A matrix of any format and order as float32."""
    stored = plain(unpaired(w))
    return FORMATS[stored.format].dequantize(stored)


def exact_norm(x: Values, weight: Values, eps: float) -> Values:
    x64 = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return x64 / np.sqrt((x64 * x64).mean(-1, keepdims=True) + eps) * weight.astype(np.float64)


@pytest.mark.parametrize("case", of("rms_norm"), ids=names)
def test_rms_norm(case: cases.Case) -> None:
    k = cases.make(case)
    close(outputs(case)["out"], exact_norm(k["x"], k["weight"], k["eps"]), dtype_of(k["x"]), 1e-6)


@pytest.mark.parametrize("case", of("add_rms_norm"), ids=names)
def test_add_rms_norm(case: cases.Case) -> None:
    k, got = cases.make(case), outputs(case)
    dtype = dtype_of(k["x"])
    close(got["out.0"], k["x"].astype(np.float64) + k["residual"].astype(np.float64), dtype, 0)
    close(got["out.1"], exact_norm(got["out.0"], k["weight"], k["eps"]), dtype, 1e-6)


@pytest.mark.parametrize("case", of("linear") + of("logits"), ids=names)
def test_linear(case: cases.Case) -> None:
    """Against float64 products of the same operands; those of a paired weight are in codes."""
    k = cases.make(case)
    blocks = []
    for b in k["w"]:
        form = QUANTISES.get(b.format)
        x = k["x"] if form is None else dequantize(ref.quantize(k["x"], form, input_scale(b)))
        w = values(b).astype(np.float64)
        with np.errstate(invalid="ignore"):
            blocks.append(np.einsum("tk,nk->tn", x.astype(np.float64), w))
    want = np.concatenate(blocks, axis=1)
    if k.get("bias") is not None:
        want += k["bias"]
    close(outputs(case)["out"], want, "float32" if case.op == "logits" else dtype_of(k["x"]), 5e-6)


@pytest.mark.parametrize("case", of("swiglu"), ids=names)
def test_swiglu(case: cases.Case) -> None:
    x = cases.make(case)["gate_up"]
    gate, up = np.split(x.astype(np.float64), 2, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        want = gate * up / (1 + np.exp(-gate))
    tiny = np.abs(want) < 1e-36  # below the smallest float32 sigmoid
    close(outputs(case)["out"], np.where(tiny, 0.0, want), dtype_of(x), 1e-7)


@pytest.mark.parametrize("case", of("embed"), ids=names)
def test_embed(case: cases.Case) -> None:
    k = cases.make(case)
    table = values(k["table"])
    got = outputs(case)["out"]
    for row, token in zip(got, k["ids"], strict=True):
        want = table[token] if 0 <= token < len(table) else np.zeros(table.shape[1])
        assert np.array_equal(row, want.astype(inputs.DTYPES[k["dtype"]]))


@pytest.mark.parametrize("case", of("qkv_rope_append_"), ids=names)
def test_rope_is_complex_rotation(case: cases.Case) -> None:
    k, got = cases.make(case), outputs(case)
    batch, heads, before = k["batch"], k["heads"], np.asarray(k["kv"].data)
    kv_heads, dim = before.shape[2], before.shape[4]
    dtype, half = dtype_of(k["qkv"]), k["rope_table"].shape[2]
    width = (heads + 2 * kv_heads) * dim
    x = k["qkv"][:, :width].reshape(len(batch.rows), -1, dim).astype(np.float64)
    turn = (k["rope_table"][:, 0] + 1j * k["rope_table"][:, 1])[batch.positions]
    after = before.copy()

    def turned(part: Values, norm: Values | None) -> Values:
        if norm is not None:
            part = exact_norm(part, norm, k["eps"])
        with np.errstate(invalid="ignore"):
            z = (part[..., :half] + 1j * part[..., half : 2 * half]) * turn[:, None]
        # A NaN or infinity in one half of a pair reaches both results; complex products may pick another of the two.
        return np.concatenate((z.real, z.imag, part[..., 2 * half :]), axis=-1)

    q, keys = turned(x[:, :heads], k["q_norm"]), turned(x[:, heads : heads + kv_heads], k["k_norm"])
    values = x[:, heads + kv_heads :]
    for t, row in enumerate(batch.rows):
        if row < 0:
            assert not got["out"][t].any()
            continue
        finite = np.isfinite(q[t])
        close(np.where(finite, got["out"][t], 0).astype(got["out"].dtype), np.where(finite, q[t], 0), dtype, 2e-6)
        page, offset = batch.pages[row, batch.positions[t] // PAGE], batch.positions[t] % PAGE
        for side, want in ((0, keys[t]), (1, values[t])):
            have = got["handle.data"][page, side, :, offset]
            fine = np.isfinite(want)
            close(np.where(fine, have, 0).astype(have.dtype), np.where(fine, want, 0), dtype, 2e-6)
            after[page, side, :, offset] = have
    assert np.array_equal(after, got["handle.data"], equal_nan=True)  # nothing else was written


@pytest.mark.parametrize("case", of("attend"), ids=names)
def test_attention_is_dense_softmax(case: cases.Case) -> None:
    k, got = cases.make(case), outputs(case)["out"]
    q, batch, data = k["q"].astype(np.float64), k["batch"], np.asarray(k["kv"].data)
    group, want = q.shape[1] // data.shape[2], np.zeros(q.shape)
    for t, row in enumerate(batch.rows):
        if row < 0:
            continue
        p = int(batch.positions[t])
        seen = np.arange(max(0, p - k["window"] + 1) if k["window"] else 0, p + 1)
        keys, values = data[batch.pages[row, seen // PAGE], :, :, seen % PAGE].astype(np.float64).transpose(1, 2, 0, 3)
        for h in range(q.shape[1]):
            with np.errstate(invalid="ignore"):
                s = keys[h // group] @ q[t, h] * k["scale"]
                s = k["softcap"] * np.tanh(s / k["softcap"]) if k["softcap"] else s
                e = np.exp(s - s.max())
                want[t, h] = e / e.sum() @ values[h // group]
    close(got, want.reshape(got.shape), dtype_of(k["q"]), 5e-6)


@pytest.mark.parametrize("case", of("attention_"), ids=names)
def test_attention_is_the_append_and_then_attention(case: cases.Case) -> None:
    got, k = outputs(case), cases.make(case)
    q = ref.qkv_rope_append_(*(k[name] for name in ("kv", "qkv", "batch", "rope_table", "heads")), k["q_norm"],
                             k["k_norm"], k["eps"])
    want = np.asarray(ref.attend(q, k["kv"], k["batch"], k["scale"], k["window"], k["softcap"]))
    assert np.array_equal(got["out"], want, equal_nan=True)
    assert np.array_equal(got["handle.data"], np.asarray(k["kv"].data), equal_nan=True)


def test_bad_rows_are_alone() -> None:
    """The tables hold rows of NaN and infinity; they spoil no other row."""
    for case in cases.CASES:
        if "/bad" in case.name and case.op in ("rms_norm", "add_rms_norm", "linear", "swiglu"):
            x = next(iter(cases.make(case).values())).astype(np.float32)
            spoiled = ~np.isfinite(x).all(axis=1)
            for out in outputs(case).values():
                assert spoiled.any() and np.isfinite(out.astype(np.float32)[~spoiled]).all(), case.name


def test_values_behind_a_query_do_not_matter() -> None:
    """A later token of the same chunk may be NaN: tokens before it must not see it."""
    rng = np.random.default_rng(3)
    batch, pages = inputs.ragged(rng, ((3, 40),), 0)
    kv = inputs.cache(rng, batch, pages, 2, 16, "float32", 0.0)
    q = inputs.activations(rng, (40, 4, 16), "float32")
    clean = np.asarray(ref.attend(q, kv, batch, 0.25, 0))
    np.asarray(kv.data)[batch.pages[0, 30 // PAGE], :, :, 30 % PAGE] = np.nan
    got = np.asarray(ref.attend(q, kv, batch, 0.25, 0))
    assert np.allclose(got[:27], clean[:27], rtol=1e-5, atol=1e-6) and np.isnan(got[27:]).all()


@pytest.mark.parametrize("form", ["f32", "bf16", "q8_0", "q6_k"])
def test_a_rows_bits_do_not_depend_on_its_neighbours(form: str) -> None:
    rng = np.random.default_rng(5)
    w = (inputs.weight(rng, form, 333, 256),)
    x = inputs.activations(rng, (16, 256), "float32")
    together = np.asarray(ref.linear(x, w))
    for low, high in ((0, 1), (5, 6), (3, 10), (0, 15)):
        assert np.array_equal(np.asarray(ref.linear(x[low:high], w)), together[low:high])


def test_attention_of_a_row_does_not_depend_on_other_rows_or_pages() -> None:
    rng = np.random.default_rng(6)
    batch, pages = inputs.ragged(rng, ((300, 1), (0, 5), (40, 16), (0, 60)), 2)
    kv = inputs.cache(rng, batch, pages, 2, 32, "float32", np.nan)
    q = inputs.activations(rng, (len(batch.ids), 4, 32), "float32")
    together = np.asarray(ref.attend(q, kv, batch, 0.2, 0))
    for row in range(4):
        part = slice(int(batch.starts[row]), int(batch.starts[row + 1]))
        n = part.stop - part.start
        alone = Batch(
            ids=batch.ids[part], positions=batch.positions[part], rows=np.zeros(n, np.int32),
            starts=np.asarray([0, n], np.int32), lengths=batch.lengths[row : row + 1], pages=batch.pages[row : row + 1],
            outputs=np.zeros(0, np.int32), state_from=np.full(1, -1, np.int32), state_to=np.full(n, -1, np.int32),
            max_new=n, max_length=int(batch.lengths[row]))
        assert np.array_equal(np.asarray(ref.attend(q[part], kv, alone, 0.2, 0)), together[part])


def test_long_prompts_are_walked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from blackwell_infer.ops.ref import attention

    rng = np.random.default_rng(8)
    batch, pages = inputs.ragged(rng, ((20, 200),), 0)
    kv = inputs.cache(rng, batch, pages, 1, 16, "float32", np.nan)
    q = inputs.activations(rng, (200, 2, 16), "float32")
    whole = np.asarray(ref.attend(q, kv, batch, 0.25, 50))
    monkeypatch.setattr(attention, "SCORES", 1)
    assert np.allclose(np.asarray(ref.attend(q, kv, batch, 0.25, 50)), whole, rtol=1e-5, atol=1e-6)


def test_half_precision_cache_rounds_keys_once() -> None:
    rng = np.random.default_rng(9)
    batch, pages = inputs.ragged(rng, ((0, 3),), 0)
    kv = PagedKV("bf16", np.zeros((pages, 2, 1, PAGE, 8), BFLOAT))
    qkv = inputs.activations(rng, (3, 24), "float32")
    table = np.stack((np.ones((3, 4)), np.zeros((3, 4))), axis=1).astype(np.float32)
    ref.qkv_rope_append_(kv, qkv, batch, table, 1)
    stored = np.asarray(kv.data)[batch.pages[0, 0], :, 0, :3]
    assert np.array_equal(stored[0], qkv[:, 8:16].astype(BFLOAT))
    assert np.array_equal(stored[1], qkv[:, 16:].astype(BFLOAT))


def test_cases_cover_every_op_format_and_dtype() -> None:
    from blackwell_infer.ops.api import Ops

    wanted = {name for name in vars(Ops) if not name.startswith("_")}
    assert {c.op for c in cases.CASES} == wanted
    assert len({c.name for c in cases.CASES}) == len(cases.CASES)
    for op in ("embed", "linear"):
        seen = [c.name for c in of(op)]
        for part in (*inputs.DTYPES, *FORMATS):
            assert any(part in name.replace("+", "/").split("/") for name in seen), (op, part)


def test_check_reports_the_worst_element() -> None:
    case = of("rms_norm")[0]
    want = {"out": np.ones((2, 3), np.float32)}
    cases.check(case, want, {"out": want["out"] + np.float32(1e-6)})
    off = want["out"].copy()
    off[0, 0], off[1, 2] = 1.01, np.nan
    with pytest.raises(AssertionError, match=r"out\[1, 2\] is nan, expected 1.0; 2 of 6 elements"):
        cases.check(case, want, {"out": off})
    with pytest.raises(AssertionError, match="float64"):
        cases.check(case, want, {"out": want["out"].astype(np.float64)})
    with pytest.raises(AssertionError, match="outputs"):
        cases.check(case, want, {})
    tokens = {"out": np.asarray([3], np.int32)}
    with pytest.raises(AssertionError, match="is 4, expected 3"):
        cases.check(case, tokens, {"out": np.asarray([4], np.int32)})


def test_run_case_moves_every_array_and_returns_handles() -> None:
    case = next(c for c in of("sample_") if "penalties/V320" in c.name)
    moved: list[Values] = []
    got = cases.run_case(ref, case, lambda x: moved.append(x) or x.copy(), lambda x: x)
    assert list(got) == ["out.tokens", "out.logprobs", "out.top_ids", "out.top_logprobs", "handle.counts",
                         "handle.prompt"]
    assert len(moved) == 2 + 1 + 13
    before = cases.make(case)["state"].counts
    assert (got["handle.counts"] - before).sum() == 7  # rows with a slot and a usable logit

    placed: list[tuple[str, Weight]] = []

    def place(op: str, w: Weight) -> Weight:
        placed.append((op, w))
        return w

    cases.run_case(ref, of("linear")[0], lambda x: x, lambda x: x, place)
    assert [op for op, _ in placed] == ["linear"]
