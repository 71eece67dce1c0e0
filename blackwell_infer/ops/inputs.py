"""Random inputs of every op, as NumPy arrays, Weights, Batch and PagedKV: what the cases of `ops.cases` are made of."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from blackwell_infer.kv.spec import PAGE, PagedKV
from blackwell_infer.ops.batch import Batch, PenaltyState, Routing, Sampled, SampleParams, TokenMask, TokenState
from blackwell_infer.ops.ref.quantize import quantize
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import QUANTISES, Experts, Weight
from blackwell_infer.quant.fragments import SUFFIX, fragmented
from blackwell_infer.quant.tiled import paired

Values = np.ndarray[Any, Any]
Random = np.random.Generator
Kwargs = dict[str, Any]
Bad = tuple[tuple[int, float], ...]
"""(row, value): numbers such as NaN to put into rows"""
Rows = tuple[tuple[int, int], ...]
"""(past, new) tokens of each row of a batch"""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
STORAGE: Mapping[str, str] = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
DENSE: Mapping[str, str] = {form: dtype for dtype, form in STORAGE.items()}


def activations(rng: Random, shape: tuple[int, ...], dtype: str, bad: Bad = ()) -> Values:
    """Standard normal values; `bad` puts a number into the middle of a row."""
    x = rng.standard_normal(shape).astype(DTYPES[dtype])
    for row, value in bad:
        x[row, shape[1] // 2] = value
    return x


HALVES = {"q8_0": ((0, 127),), "q4_0": ((0, 8),), "q4_k": ((0, 472), (2, 63)), "q5_k": ((0, 976), (2, 63)),
          "q6_k": ((208, 2048),)}
"""Byte offset of each float16 scale of a block, and the divisor that brings weights to size 1"""


SCALED = {"nvfp4": (16, 3.0), "nvfp4_f16": (16, 3.0), "mxfp4": (32, 3.0), "mxfp8": (32, 120.0), "fp8": (1, 120.0),
          "fp8_block": (1, 120.0)}
"""Elements of a block, and the deviation of random codes, of formats whose codes and scales lie apart"""


def scaled_weight(rng: Random, form: str, rows: int, cols: int) -> Weight:
    """A matrix of size about 1/sqrt(cols) with every finite code; E4M3 scales take all sizes, others differ by 8."""
    block, deviation = SCALED[form]
    size, width, spread = cols**-0.5 / deviation, cols // block, 2.0 ** rng.integers(-3, 1, (rows, cols // block))
    scales: Mapping[str, Callable[[], tuple[Values, ...]]] = {
        "nvfp4": lambda: (rng.integers(0x01, 0x7F, (rows, width)).astype(np.uint8),),
        "nvfp4_f16": lambda: ((spread * rng.uniform(1, 2, (rows, width))).astype(np.float16),),
        "mxfp4": lambda: ((np.log2(spread) + np.rint(np.log2(size)) + 127).astype(np.uint8),),
        "mxfp8": lambda: ((np.log2(spread) + np.rint(np.log2(size)) + 127).astype(np.uint8),),
        "fp8": lambda: (),
        "fp8_block": lambda: (rng.uniform(size / 2, size, (-(-rows // 128), -(-cols // 128))).astype(np.float32),)}
    factors = rng.uniform(0.5, 1, rows).astype(np.float32) * np.float32(size / 120 if form == "nvfp4" else size)
    codes = rng.integers(0, 256, (rows, cols if deviation > 3 else cols // 2), np.uint8)
    if deviation > 3:
        codes[codes & 0x7F == 0x7F] = 0
    inputs = {"nvfp4": (np.zeros(1, np.float32),), "fp8": (np.zeros(1, np.float32),)}
    rest = (factors,) if form in ("nvfp4", "nvfp4_f16", "fp8") else ()
    return Weight(form, (rows, cols), (codes, *scales[form](), *rest, *inputs.get(form, ())))


def weight(rng: Random, form: str, rows: int, cols: int) -> Weight:
    """A matrix of size about 1/sqrt(cols). Blocks hold random bits, so that every code and sub-scale occurs."""
    size = cols**-0.5
    if form.endswith(SUFFIX):
        return fragmented(weight(rng, form.removesuffix(SUFFIX), rows, cols))
    if form in QUANTISES:
        return paired(scaled_weight(rng, QUANTISES[form], rows, cols))
    if form in SCALED:
        return scaled_weight(rng, form, rows, cols)
    if form not in HALVES:
        return Weight(form, (rows, cols), ((rng.standard_normal((rows, cols)) * size).astype(DTYPES[DENSE[form]]),))
    f = FORMATS[form]
    blocks = rng.integers(0, 256, (rows * cols // f.block, f.block_bytes), np.uint8)
    for offset, divisor in HALVES[form]:
        scale = rng.uniform(0.5, 1.0, len(blocks)) * rng.choice((-1.0, 1.0), len(blocks)) * size / divisor
        blocks[:, offset : offset + 2] = scale.astype("<f2")[:, None].view(np.uint8)
    return f.read(blocks.reshape(-1), (rows, cols))


def ragged(rng: Random, rows: Rows, padding: int) -> tuple[Batch, int]:
    """A batch of (past, new) rows and the number of pages of a cache for it; pages are scattered, 3 stay unused."""
    new = [n for _, n in rows]
    lengths = [past + n for past, n in rows]
    used = [-(-length // PAGE) for length in lengths]
    scattered = rng.permutation(sum(used) + 3)
    pages = np.zeros((len(rows), max(used) + 2), np.int32)
    for i, count in enumerate(used):
        pages[i, :count] = scattered[sum(used[:i]) : sum(used[: i + 1])]
    total = sum(new)
    positions = [past + j for past, n in rows for j in range(n)] + [0] * padding
    starts = np.concatenate(([0], np.cumsum(new)))
    batch = Batch(
        ids=rng.integers(0, 100, total + padding).astype(np.int32), positions=np.asarray(positions, np.int32),
        rows=np.asarray([i for i, n in enumerate(new) for _ in range(n)] + [-1] * padding, np.int32),
        starts=starts.astype(np.int32), lengths=np.asarray(lengths, np.int32), pages=pages,
        outputs=(starts[1:] - 1).astype(np.int32), state_from=np.full(len(rows), -1, np.int32),
        state_to=np.full(len(positions), -1, np.int32), max_new=max(new), max_length=max(lengths))
    return batch, len(scattered)


def cache(rng: Random, batch: Batch, pages: int, kv_heads: int, dim: int, dtype: str, junk: float) -> PagedKV:
    """Every slot that a row of the batch owns holds normal values, all others `junk`."""
    data = np.full((pages, 2, kv_heads, PAGE, dim), junk, DTYPES[dtype])
    table = np.asarray(batch.pages)
    for row, length in enumerate(np.asarray(batch.lengths)):
        at = np.arange(length)
        data[table[row, at // PAGE], :, :, at % PAGE] = rng.standard_normal((length, 2, kv_heads, dim))
    return PagedKV(STORAGE[dtype], data)


def make_embed(rng: Random, dtype: str, form: str, vocab: int, hidden: int, ids: tuple[int, ...]) -> Kwargs:
    return {"table": weight(rng, form, vocab, hidden), "ids": np.asarray(ids, np.int32), "dtype": dtype}


def make_arrange(rng: Random, form: str, rows: int, cols: int) -> Kwargs:
    return {"w": weight(rng, form, rows, cols)}


def make_norm(rng: Random, dtype: str, tokens: int, hidden: int, bad: Bad) -> Kwargs:
    return {"x": activations(rng, (tokens, hidden), dtype, bad),
            "weight": rng.uniform(-2, 2, hidden).astype(np.float32), "eps": 1e-5}


def make_add_norm(rng: Random, dtype: str, tokens: int, hidden: int, bad: Bad) -> Kwargs:
    return {"x": activations(rng, (tokens, hidden), dtype, bad), "residual": activations(rng, (tokens, hidden), dtype),
            "weight": rng.uniform(-2, 2, hidden).astype(np.float32), "eps": 1e-6}


def make_linear(rng: Random, dtype: str, forms: tuple[str, ...], tokens: int, cols: int, rows: tuple[int, ...],
                bias: bool, bad: Bad) -> Kwargs:
    w = tuple(weight(rng, form, n, cols) for form, n in zip(forms, rows, strict=True))
    return {"x": activations(rng, (tokens, cols), dtype, bad), "w": w,
            "bias": rng.standard_normal(sum(rows)).astype(np.float32) if bias else None}


def make_logits(rng: Random, dtype: str, form: str, tokens: int, cols: int, vocab: int) -> Kwargs:
    return {"x": activations(rng, (tokens, cols), dtype), "w": (weight(rng, form, vocab, cols),)}


def make_swiglu(rng: Random, dtype: str, tokens: int, inner: int, bad: Bad) -> Kwargs:
    x = activations(rng, (tokens, 2 * inner), dtype, bad)
    x[0, : min(inner, 4)] = np.asarray([0.0, 90.0, -90.0, 1e-4])[: min(inner, 4)]
    return {"gate_up": x}


def make_quantize(rng: Random, dtype: str, form: str, tokens: int, cols: int, recorded: float, bad: Bad) -> Kwargs:
    """Rows of very different sizes, so that scales take many values; `recorded` is inputs[0], 0 for none."""
    x = activations(rng, (tokens, cols), dtype, bad)
    x = (x.astype(np.float32) * np.exp2(rng.integers(-12, 6, (tokens, 1)))).astype(DTYPES[dtype])
    x[:, : cols // 3] *= (rng.random((tokens, 1)) < 0.7).astype(x.dtype)
    return {"x": x, "form": form, "inputs": np.full(1, recorded, np.float32) if recorded >= 0 else None}


FUSED: Mapping[str, str] = {"rms_norm_quantize": "norm", "add_rms_norm_quantize": "add_norm", "swiglu_quantize": "gate"}


def make_fused(rng: Random, maker: str, dtype: str, form: str, tokens: int, cols: int) -> Kwargs:
    """Inputs of the op before the quantiser, and the quantiser's own."""
    if maker == "gate":
        made = make_swiglu(rng, dtype, tokens, cols, ())
    else:
        made = (make_norm if maker == "norm" else make_add_norm)(rng, dtype, tokens, cols, ())
    return {**made, "form": form, "inputs": np.full(1, 2.0**-7, np.float32) if form == "nvfp4" else None}


def make_linear_quantized(rng: Random, form: str, dtype: str, tokens: int, cols: int, rows: tuple[int, ...], bias: bool,
                          residual: bool, bad: Bad) -> Kwargs:
    x = quantize(activations(rng, (tokens, cols), "float32", bad), form, np.full(1, 2.0**-8, np.float32))
    return {"x": x, "w": tuple(paired(weight(rng, form, n, cols)) for n in rows), "dtype": dtype,
            "bias": rng.standard_normal(sum(rows)).astype(np.float32) if bias else None,
            "residual": activations(rng, (tokens, sum(rows)), dtype) if residual else None}


def make_route(rng: Random, dtype: str, form: str, tokens: int, hidden: int, count: int, top: int, norm: bool,
               step: float, bad: Bad, shared: bool = False) -> Kwargs:
    """The last of the router's `count` rows is the shared expert's if there is one. With `step` logits are exact and
    equal in many places: x selects multiples of it from the router's rows."""
    x = activations(rng, (tokens, hidden), dtype, bad)
    router = weight(rng, form, count, hidden)
    if step:
        x = np.zeros((tokens, hidden), x.dtype)
        x[np.arange(tokens), rng.integers(0, hidden, tokens)] = 1
        for row, value in bad:
            x[row, 0] = value
        rows = np.rint(rng.standard_normal((count, hidden))).astype(np.float32) * np.float32(step)
        router = Weight(form, router.shape, (rows.astype(router.parts[0].dtype),))
    return {"x": x, "router": (router,), "top": top, "norm": norm, "shared": shared}


def make_experts(rng: Random, dtype: str, forms: tuple[str, ...], down: str, tokens: int, hidden: int, inner: int,
                 count: int, top: int, idle: int, bad: Bad) -> Kwargs:
    """Routing to all but the last `idle` experts, the first ones far more often; weights that do not add up to 1."""
    share = np.append(1.0 / np.arange(1, count - idle + 1), np.zeros(idle))
    chosen = np.stack([rng.choice(count, top, replace=False, p=share / share.sum()) for _ in range(tokens)])
    rows = count * (2 * inner // len(forms))
    return {"x": activations(rng, (tokens, hidden), dtype, bad),
            "routing": Routing(chosen.astype(np.int32), rng.uniform(0, 1, (tokens, top)).astype(np.float32)),
            "gate_up": tuple(Experts(weight(rng, form, rows, hidden), count) for form in forms),
            "down": Experts(weight(rng, down, count * hidden, inner), count)}


def make_take_rows(rng: Random, dtype: str, tokens: int, hidden: int, index: tuple[int, ...]) -> Kwargs:
    return {"x": activations(rng, (tokens, hidden), dtype), "index": np.asarray(index, np.int32)}


def make_rope(rng: Random, dtype: str, heads: tuple[int, int], dim: int, rotated: int, rows: Rows,
              padding: int, norms: bool, bad: Bad, spare: int = 0) -> Kwargs:
    """`spare` more heads of NaN stand behind q, k and v: they are somebody else's."""
    batch, pages = ragged(rng, rows, padding)
    angles = np.arange(int(np.asarray(batch.lengths).max()))[:, None] * 1e4 ** (-np.arange(rotated // 2) * 2 / rotated)
    width = (heads[0] + 2 * heads[1]) * dim
    others = np.full((batch.ids.shape[0], spare * dim), np.nan, DTYPES[dtype])
    scales = rng.uniform(0.5, 2, (2, dim)).astype(np.float32)
    return {"kv": cache(rng, batch, pages, heads[1], dim, dtype, 3.0),
            "qkv": np.hstack((activations(rng, (batch.ids.shape[0], width), dtype, bad), others)), "batch": batch,
            "rope_table": np.stack((np.cos(angles), np.sin(angles)), axis=1).astype(np.float32), "heads": heads[0],
            "q_norm": scales[0] if norms else None, "k_norm": scales[1] if norms else None, "eps": 1e-6}


def make_attend(rng: Random, dtype: str, heads: tuple[int, int], dim: int, rows: Rows,
                padding: int, window: int, junk: float, bad: tuple[tuple[int, int, float], ...],
                softcap: float = 0.0) -> Kwargs:
    """`bad` holds (row, position, value): one component of that token's keys and values."""
    batch, pages = ragged(rng, rows, padding)
    kv = cache(rng, batch, pages, heads[1], dim, dtype, junk)
    for row, position, value in bad:
        np.asarray(kv.data)[batch.pages[row, position // PAGE], :, :, position % PAGE, dim // 2] = value
    return {"q": activations(rng, (batch.ids.shape[0], heads[0], dim), dtype), "kv": kv, "batch": batch,
            "scale": dim**-0.5, "window": window, "softcap": softcap}


def make_attention(rng: Random, dtype: str, heads: tuple[int, int], dim: int, rotated: int, rows: Rows, padding: int,
                   window: int, softcap: float, norms: bool, junk: float,
                   bad: tuple[tuple[int, int, float], ...], spare: int = 0) -> Kwargs:
    """`spare` as in `make_rope`; `bad` as in `make_attend`, of tokens that are in the cache already; slots of new
    tokens hold `junk`."""
    made = make_rope(rng, dtype, heads, dim, rotated, rows, padding, norms, (), spare)
    batch, data = made["batch"], np.asarray(made["kv"].data)
    for row, (past, new) in enumerate(rows):
        at = np.arange(past, past + new)
        data[batch.pages[row, at // PAGE], :, :, at % PAGE] = junk
    for row, position, value in bad:
        data[batch.pages[row, position // PAGE], :, :, position % PAGE, dim // 2] = value
    return {**made, "scale": dim**-0.5, "window": window, "softcap": softcap}


SETTINGS: Mapping[str, tuple[float, type[np.generic]]] = {
    "temperature": (1.0, np.float32), "top_k": (0, np.int32), "top_p": (1.0, np.float32), "min_p": (0.0, np.float32),
    "repetition": (1.0, np.float32), "presence": (0.0, np.float32), "frequency": (0.0, np.float32),
    "seed": (0, np.uint64), "position": (0, np.int32), "slot": (-1, np.int32), "guess": (-1, np.int32)}


def make_sample(rng: Random, vocab: int, rows: tuple[Mapping[str, Any], ...], top: int) -> Kwargs:
    """One mapping per row: settings, plus `bias` {id: value}, `step` (logits are multiples of it: ties), `at` {id:
    logit}, `fill` (every logit), and `only` ids that the mask leaves or a share `allowed` of all."""
    logits = (rng.standard_normal((len(rows), vocab)) * 3).astype(np.float32)
    bias: list[tuple[int, float]] = []
    starts = [0]
    for i, row in enumerate(rows):
        step = row.get("step", 0)
        logits[i] = np.rint(logits[i] / step) * step if step else logits[i]
        logits[i] = row.get("fill", logits[i])
        for token, value in row.get("at", {}).items():
            logits[i, token] = value
        bias += row.get("bias", {}).items()
        starts.append(len(bias))
    columns = {name: np.asarray([row.get(name, default) for row in rows], kind)
               for name, (default, kind) in SETTINGS.items()}
    if "seed" not in rows[0]:
        columns["seed"] = rng.integers(0, 2**64, len(rows), np.uint64)
        columns["position"] = rng.integers(0, 5000, len(rows)).astype(np.int32)
    state = PenaltyState(rng.poisson(0.3, (len(rows) + 1, vocab)).astype(np.int32),
                         (rng.random((len(rows) + 1, vocab)) < 0.2).astype(np.uint8))
    return {"state": state, "logits": logits, "params": SampleParams(
        **columns, mask=make_mask(rng, vocab, rows), bias_starts=np.asarray(starts, np.int32),
        bias_ids=np.asarray([b[0] for b in bias], np.int32), bias_values=np.asarray([b[1] for b in bias], np.float32),
        top=top, chained=bool((columns["guess"] >= 0).any()))}


def make_mask(rng: Random, vocab: int, rows: tuple[Mapping[str, Any], ...]) -> TokenMask | None:
    """The mask of rows with `only` or `allowed`, in an order of its own, with junk beyond the vocabulary and in a row
    that nobody reads. None without such rows."""
    masked = [i for i, row in enumerate(rows) if "only" in row or "allowed" in row][::-1]
    if not masked:
        return None
    bits = rng.random((len(masked) + 1, -(-vocab // 32) * 32)) < 0.5
    index = np.full(len(rows), -1, np.int32)
    for at, i in enumerate(masked, 1):
        index[i] = at
        bits[at, :vocab] = rng.random(vocab) < rows[i].get("allowed", 0)
        bits[at, list(rows[i].get("only", ()))] = True
    return TokenMask(index, np.packbits(bits, axis=1, bitorder="little").view("<u4"))


def make_penalty(rng: Random, vocab: int, slot: int, prompt: int, answer: int) -> Kwargs:
    state = PenaltyState(rng.integers(0, 9, (3, vocab)).astype(np.int32),
                         rng.integers(0, 2, (3, vocab)).astype(np.uint8))
    return {"state": state, "slot": slot, "prompt": rng.integers(0, vocab, prompt).astype(np.int32),
            "answer": rng.integers(0, min(vocab, 7), answer).astype(np.int32)}


def make_logprobs(rng: Random, vocab: int, targets: tuple[int, ...]) -> Kwargs:
    return {"logits": (rng.standard_normal((len(targets), vocab)) * 4).astype(np.float32),
            "targets": np.asarray(targets, np.int32)}


def make_newest(rng: Random, slots: int, tokens: int) -> Kwargs:
    return {"newest": rng.integers(-1, 1 << 20, slots).astype(np.int32),
            "ids": rng.integers(-slots, 1 << 20, tokens).astype(np.int32) * (rng.random(tokens) < 0.9)}


def make_deliver(rng: Random, slots: tuple[int, ...], top: int, spare: int) -> Kwargs:
    n = len(slots)
    sampled = Sampled(rng.integers(-1, 1 << 20, n).astype(np.int32), rng.standard_normal(n).astype(np.float32),
                      rng.integers(-1, 1 << 20, (n, top)).astype(np.int32),
                      rng.standard_normal((n, top)).astype(np.float32))
    state = TokenState(rng.integers(0, 99, max(slots) + 3).astype(np.int32),
                       rng.integers(0, 99, n * (2 + 2 * top) + spare).astype(np.int32))
    return {"state": state, "sampled": sampled, "slots": np.asarray(slots, np.int32)}
