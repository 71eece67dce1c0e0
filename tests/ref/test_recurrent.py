"""The Gated DeltaNet op against a float64 loop, and its laws: forms, chunks, slots, rows, padding."""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops import cases, ref
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.cases_recurrent import Heads, Line, make_delta
from blackwell_infer.ops.ref import recurrent

Values = np.ndarray[Any, Any]
CASES = [c for c in cases.CASES if c.op == "gated_delta_"]
HEADS = Heads(2, 4, 16, 24)


def copied(state: Recurrent) -> Recurrent:
    return Recurrent(np.array(state.conv), np.array(state.state))


def exact(state: Recurrent, proj: Values, batch: Batch, params: Any) -> tuple[Values, dict[int, Values]]:
    """Outputs and states by slot, in float64 and without a thought for speed: section by section of the paper."""
    channels, (nv, dk, dv), nk = state.conv.shape[2], state.state.shape[1:], params.key_heads
    x, out, after = proj.astype(np.float64), np.zeros((len(proj), nv * dv)), {}
    for row in range(len(batch.starts) - 1):
        slot = batch.state_from[row]
        past = np.zeros((3, channels)) if slot < 0 else np.array(state.conv[slot], np.float64)
        s = np.zeros((nv, dk, dv)) if slot < 0 else np.array(state.state[slot], np.float64)
        for t in range(batch.starts[row], batch.starts[row + 1]):
            past = np.concatenate((past, x[t : t + 1, :channels]))
            u = (past * params.conv.T).sum(0)
            u /= 1 + np.exp(-u)
            past = past[1:]
            q, k = u[: nk * dk].reshape(nk, dk), u[nk * dk : 2 * nk * dk].reshape(nk, dk)
            z, b, a = np.split(x[t, channels:], (nv * dv, nv * dv + nv))
            for j in range(nv):
                i = j % nk if params.tiled else j * nk // nv
                unit_q, unit_k = (h[i] / np.sqrt((h[i] ** 2).sum() + 1e-6) for h in (q, k))
                s[j] *= np.exp(params.decay[j] * np.log1p(np.exp(a[j] + params.dt_bias[j])))
                v = u[2 * nk * dk :].reshape(nv, dv)[j]
                s[j] += np.outer(unit_k, (v - unit_k @ s[j]) / (1 + np.exp(-b[j])))
                o = unit_q / np.sqrt(dk) @ s[j]
                gate = z[j * dv : (j + 1) * dv]
                out[t, j * dv : (j + 1) * dv] = (o / np.sqrt((o**2).mean() + params.eps) * params.norm * gate
                                                 / (1 + np.exp(-gate)))
            if batch.state_to[t] >= 0:
                after[int(batch.state_to[t])] = s.copy()
    return out, after


@pytest.mark.parametrize("case", [c for c in CASES if "float32/float32" in c.name and "bad" not in c.name],
                         ids=lambda c: c.name)
def test_it_is_the_delta_rule(case: cases.Case) -> None:
    made = cases.make(case)
    want, states = exact(**made)
    got = np.asarray(ref.gated_delta_(**made))
    assert np.allclose(got, want, rtol=1e-4, atol=2e-5)
    for slot, s in states.items():
        assert np.abs(made["state"].state[slot] - s).max() <= 2e-6


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
def test_up_to_16_tokens_have_the_same_bits_one_by_one_and_all_at_once(stored: str) -> None:
    made = make_delta(np.random.default_rng(1), "bfloat16", stored, HEADS, (Line(True, 16, tuple(range(16))),), 0,
                      False, 1.0, ())
    state, batch, proj = copied(made["state"]), made["batch"], made["proj"]
    together = np.asarray(ref.gated_delta_(**made))
    source = int(batch.state_from[0])
    for t, slot in enumerate(batch.state_to):
        one = msgspec.structs.replace(
            batch, starts=np.asarray([0, 1], np.int32), rows=np.zeros(1, np.int32),
            state_from=np.asarray([source], np.int32), state_to=np.asarray([slot], np.int32))
        y = np.asarray(ref.gated_delta_(state, proj[t : t + 1], one, made["params"]))
        assert np.array_equal(y[0], together[t])
        source = int(slot)
    for mine, all_at_once in zip((state.conv, state.state), (made["state"].conv, made["state"].state), strict=True):
        assert np.array_equal(np.asarray(mine).view(np.uint8), np.asarray(all_at_once).view(np.uint8))


def test_chunks_equal_token_by_token_up_to_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (Line(True, 300, (63, 100, 299)), Line(False, 65, (64,)), Line(True, 17, (16,)))
    made = make_delta(np.random.default_rng(2), "float32", "float32", HEADS, lines, 0, False, 20.0, ())
    state = copied(made["state"])
    chunks = np.asarray(ref.gated_delta_(**made))
    monkeypatch.setattr(recurrent, "FEW", 1000)
    walked = np.asarray(ref.gated_delta_(**made | {"state": state}))
    assert np.allclose(chunks, walked, rtol=1e-4, atol=1e-5)
    assert np.nanmax(np.abs(np.asarray(made["state"].state) - state.state)) <= 1e-6


def test_a_row_depends_on_no_other_and_padding_gives_zeros() -> None:
    lines = (Line(True, 3, (2,)), Line(True, 40, (39,)), Line(False, 1, (0,)))
    made = make_delta(np.random.default_rng(3), "float32", "float32", HEADS, lines, 4, False, 1.0, ())
    before, batch = copied(made["state"]), made["batch"]
    together = np.asarray(ref.gated_delta_(**made))
    assert not together[batch.starts[-1] :].any()
    for row in range(3):
        part = slice(int(batch.starts[row]), int(batch.starts[row + 1]))
        alone = msgspec.structs.replace(
            batch, starts=np.asarray([0, part.stop - part.start], np.int32), state_from=batch.state_from[row : row + 1],
            state_to=batch.state_to[part])
        assert np.array_equal(np.asarray(ref.gated_delta_(copied(before), made["proj"][part], alone, made["params"])),
                              together[part])


def test_equal_keys_without_decay_are_inverted_well() -> None:
    lower = np.tril(np.ones((64, 64), np.float32), -1)
    inverse = recurrent.inverted(lower)
    assert np.array_equal(inverse, np.eye(64) - np.eye(64, k=-1))
