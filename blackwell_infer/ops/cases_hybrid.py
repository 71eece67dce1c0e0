"""Cases of what hybrids have beside recurrent layers, see `ops.cases`: gated attention, an expert that all tokens
share, and the head that guesses the token after the next."""
from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import numpy as np

from blackwell_infer.ops.case import BF16, F16, F32, FLOOR, ROUNDED, ULP, Case, text
from blackwell_infer.ops.inputs import Bad, Kwargs, Random, Rows, activations, make_attention, make_rope, make_route

NAN, INF = float("nan"), float("inf")
BAD: Bad = ((1, NAN), (3, INF), (5, -INF))
RAGGED: Rows = ((0, 5), (40, 1), (0, 33), (63, 2), (31, 1), (7, 17), (0, 1), (100, 33))

GATES: tuple[tuple[str, int, int, int, Bad], ...] = (
    # dtype, T, N, columns before the gates, bad rows
    (F32, 1, 64, 128, ()), (F32, 7, 172, 3, BAD), (F16, 16, 512, 0, ()), (F16, 9, 100, 300, BAD),
    (BF16, 1, 4096, 5120, ()), (BF16, 16, 256, 512, BAD), (BF16, 130, 1032, 8, ()), (BF16, 6, 13, 7, BAD))

SHARED: tuple[tuple[str, int, int, Bad], ...] = (
    # dtype, T, H, bad rows
    (F32, 1, 64, ()), (F32, 7, 172, BAD), (F16, 17, 256, BAD), (BF16, 1, 2048, ()), (BF16, 6, 100, BAD),
    (BF16, 130, 512, ()), (BF16, 3, 8200, ()))

ROUTES: tuple[tuple[str, str, int, int, int, int, bool, float, Bad], ...] = (
    # dtype, format of the router, T, H, its rows, top, norm, step (logits are multiples of it: ties), bad rows
    (F32, "f32", 9, 64, 8, 3, True, 0, BAD), (F32, "f32", 4, 32, 2, 1, False, 0, ()),
    (BF16, "bf16", 1, 2048, 257, 8, True, 0, ()), (BF16, "f32", 16, 264, 257, 8, True, 0, BAD),
    (F16, "bf16", 13, 64, 250, 31, False, 0.25, BAD), (F16, "bf16", 3, 64, 250, 32, False, 0.25, ()),
    (BF16, "f32", 66, 32, 41, 4, True, 0.5, BAD), (F32, "f32", 40, 32, 301, 10, False, 0.5, ()))

PAIRS: tuple[tuple[str, int, int, Bad], ...] = (
    # dtype, T, H, bad rows
    (F32, 1, 64, ()), (F32, 7, 172, BAD), (F16, 16, 256, BAD), (BF16, 1, 2048, ()), (BF16, 9, 512, BAD),
    (BF16, 40, 100, ()), (BF16, 2, 8448, ()))

ATTENTIONS: tuple[tuple[str, tuple[int, int], int, int, Rows], ...] = (
    # dtype, (heads, kv_heads), D, d, rows; of each head a gate stands behind q, k and v
    (F32, (4, 2), 32, 8, RAGGED), (BF16, (4, 2), 32, 8, ((0, 1), (33, 1))),
    (BF16, (8, 1), 256, 64, ((300, 1), (33, 4), (0, 2))), (F16, (4, 2), 128, 32, ((700, 1), (31, 1))),
    (BF16, (4, 2), 64, 16, ((0, 33), (40, 1))))


def listed() -> Iterable[Case]:
    """Every row of the tables above as a case."""
    for dtype, t, n, before, bad in GATES:
        yield Case(text("sigmoid_gate", dtype, f"T{t}", f"N{n}", f"W{n + before}", *("bad" for _ in bad[:1])),
                   "sigmoid_gate", partial(make_gate, dtype=dtype, tokens=t, width=n, before=before, bad=bad),
                   ULP[dtype], FLOOR[dtype])
    for dtype, t, h, bad in SHARED:
        yield Case(text("add_gated", dtype, f"T{t}", f"H{h}", *("bad" for _ in bad[:1])), "add_gated",
                   partial(make_shared, dtype=dtype, tokens=t, hidden=h, bad=bad), ULP[dtype], FLOOR[dtype])
    for dtype, form, t, h, count, most, normed, step, bad in ROUTES:
        name = text("route", dtype, form, f"T{t}", f"H{h}", f"E{count - 1}", f"top{most}", "shared",
                    *("norm",) * normed, *("ties",) * bool(step), *("bad" for _ in bad[:1]))
        yield Case(name, "route", partial(
            make_route, dtype=dtype, form=form, tokens=t, hidden=h, count=count, top=most, norm=normed, step=step,
            bad=bad, shared=True), 1e-5, 1e-6)
    for dtype, t, h, bad in PAIRS:
        yield Case(text("rms_norm_pair", dtype, f"T{t}", f"H{h}", *("bad" for _ in bad[:1])), "rms_norm_pair",
                   partial(make_pair, dtype=dtype, tokens=t, hidden=h, bad=bad), ULP[dtype], FLOOR[dtype])
    for i, (dtype, heads, d, rotated, rows) in enumerate(ATTENTIONS):
        name = text(dtype, heads, f"D{d}", f"d{rotated}", f"R{len(rows)}", "gates", i)
        yield Case(f"qkv_rope_append_/{name}", "qkv_rope_append_", partial(
            make_rope, dtype=dtype, heads=heads, dim=d, rotated=rotated, rows=rows, padding=2, norms=True, bad=(),
            spare=heads[0]), ULP[dtype], FLOOR[dtype])
        yield Case(f"attention_/{name}", "attention_", partial(
            make_attention, dtype=dtype, heads=heads, dim=d, rotated=rotated, rows=rows, padding=2, window=0,
            softcap=0.0, norms=True, junk=NAN, bad=(), spare=heads[0]), ULP[dtype], ROUNDED[dtype])


def make_gate(rng: Random, dtype: str, tokens: int, width: int, before: int, bad: Bad) -> Kwargs:
    """Gates from shut to open; the columns before them are of no concern."""
    gates = activations(rng, (tokens, before + width), dtype)
    gates[:, :before] = NAN
    gates[0, before : before + 4] = np.asarray([0.0, 90.0, -90.0, 1e-4])
    return {"x": activations(rng, (tokens, width), dtype, bad), "gates": gates}


def make_shared(rng: Random, dtype: str, tokens: int, hidden: int, bad: Bad) -> Kwargs:
    x, y, h = (activations(rng, (tokens, hidden), dtype) for _ in range(3))
    for row, value in bad:
        (x, y, h)[row % 3][row, hidden // 2] = value
    return {"x": x, "y": y, "h": h, "gate": (rng.standard_normal(hidden) * hidden**-0.5).astype(np.float32)}


def make_pair(rng: Random, dtype: str, tokens: int, hidden: int, bad: Bad) -> Kwargs:
    weights = rng.uniform(-2, 2, (2, hidden)).astype(np.float32)
    a, b = (activations(rng, (tokens, hidden), dtype, rows) for rows in (bad, bad[1:]))
    return {"a": a, "b": b,
            "weight_a": weights[0], "weight_b": weights[1], "eps": 1e-6}
