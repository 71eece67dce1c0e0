#!/usr/bin/env python3
"""How far a backend is from exact arithmetic: against the same stored weights evaluated in float64, token by token.

    python tools/accuracy.py model.gguf --text ../shared/data/corpora/tinyshakespeare.txt --device cuda
    python tools/accuracy.py tests/data/qwen3 tests/data/qwen3_moe_pruned --device cuda      # random tokens

Teacher-forced over --tokens tokens, in pieces as long as the context. Rows of the table: NumPy with activations rounded
to bfloat16 after every op (plain bfloat16 arithmetic, the yardstick), and the device, in the type that it takes by
itself or --dtype, with steps of up to 16 tokens (which decode as generation does) and of up to 4096. `distance` is the
root mean square of the error of logits, each token's mean taken out, over that of the logits. Exits with 1 if a row is
more than 5 % farther away than the yardstick (two orders of its own additions differ by as much over 500 tokens), has a
mean Kullback-Leibler divergence of 1e-3 or more, or agrees in the best token in less than 99 %; where the yardstick
itself does not, as with random weights: clearly less often than it.
"""
from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from blackwell_infer import LLM
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.load import load
from blackwell_infer.errors import BlackwellInferError, RequestError
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.kv.spec import KVState, PagedKV
from blackwell_infer.log import silent
from blackwell_infer.ops.batch import Batch, DeltaParams, Routing
from blackwell_infer.ops.ref.experts import expert
from blackwell_infer.ops.ref.linear import dense
from blackwell_infer.quant.format import Experts, Linear, Weight

Doubles = np.ndarray[Any, np.dtype[np.float64]]
STEPS = (16, 4096)
"""Most tokens of a step: the kernels of few rows alone, and those of many"""
BEST, DIVERGENCE, SLACK = 0.99, 1e-3, 0.05
COLUMNS = ("model", "arithmetic", "distance", "best token", "mean KL", "largest KL")


class Exact:
    """The part of `ops.api.Ops` that forward passes use, in float64. A batch is one row that begins at position 0."""

    def embed(self, table: Weight, ids: Any, dtype: str) -> Doubles:
        return np.asarray(dense(table)[np.asarray(ids)], np.float64)

    def rms_norm(self, x: Any, weight: Any, eps: float) -> Doubles:
        mean = np.square(x).mean(axis=-1, keepdims=True)
        return np.asarray(x / np.sqrt(mean + eps) * np.asarray(weight, np.float64))

    def add_rms_norm(self, x: Any, residual: Any, weight: Any, eps: float) -> tuple[Doubles, Doubles]:
        return x + residual, self.rms_norm(x + residual, weight, eps)

    def linear(self, x: Any, w: Linear, bias: Any = None) -> Doubles:
        y: Doubles = np.concatenate([x @ dense(block).astype(np.float64).T for block in w], axis=1)
        return y if bias is None else y + np.asarray(bias, np.float64)

    def logits(self, x: Any, w: Linear) -> Doubles:
        return self.linear(x, w)

    def swiglu(self, gate_up: Any) -> Doubles:
        gate, up = np.split(gate_up, 2, axis=1)
        return np.asarray(gate / (1 + np.exp(-gate)) * up)

    def sigmoid_gate(self, x: Any, gates: Any) -> Doubles:
        return np.asarray(x / (1 + np.exp(-gates[:, gates.shape[1] - x.shape[1] :])))

    def add_gated(self, x: Any, y: Any, h: Any, gate: Any) -> Doubles:
        return np.asarray(x + y / (1 + np.exp(-(h @ np.asarray(gate, np.float64))))[:, None])

    def gated_delta_(self, state: Recurrent, proj: Any, batch: Batch, params: DeltaParams) -> Doubles:
        taps, decay, bias, norm = (np.asarray(x, np.float64) for x in (
            params.conv, params.decay, params.dt_bias, params.norm))
        (channels, width), tokens, nk, nv, dv = taps.shape, len(proj), params.key_heads, len(decay), len(norm)
        dk = (channels - nv * dv) // (2 * nk)
        inputs, z, beta, a = np.split(proj, np.cumsum((channels, nv * dv, nv)), axis=1)
        inputs = np.concatenate((np.zeros((width - 1, channels)), inputs))
        u = sum(inputs[i : i + tokens] * taps[:, i] for i in range(width))
        u = u / (1 + np.exp(-u))
        heads = np.arange(nv) % nk if params.tiled else np.arange(nv) // (nv // nk)
        q, k = (x.reshape(tokens, nk, dk)[:, heads] for x in (u[:, : nk * dk], u[:, nk * dk : 2 * nk * dk]))
        q, k = (x / np.sqrt(np.square(x).sum(axis=-1, keepdims=True) + 1e-6) for x in (q, k))
        v, shares = u[:, 2 * nk * dk :].reshape(tokens, nv, dv), np.exp(decay * np.logaddexp(0, a + bias))
        s, o = np.zeros((nv, dk, dv)), np.empty((tokens, nv, dv))
        for t in range(tokens):
            s = s * shares[t, :, None, None]
            d = (v[t] - np.einsum("hk,hkv->hv", k[t], s)) / (1 + np.exp(-beta[t]))[:, None]
            s = s + k[t, :, :, None] * d[:, None]
            o[t] = np.einsum("hk,hkv->hv", q[t], s) * dk**-0.5
        y = self.rms_norm(o, norm, params.eps).reshape(tokens, nv * dv)
        return np.asarray(y * z / (1 + np.exp(-z)))

    def route(self, x: Any, router: Linear, top: int, norm: bool, shared: bool = False) -> Routing:
        assert not shared  # the host does not join experts
        z = self.linear(x, router)
        chosen = np.argsort(-z, axis=1, kind="stable")[:, :top]
        mass = np.exp(z - z.max(axis=1, keepdims=True))
        weights = np.take_along_axis(mass / mass.sum(axis=1, keepdims=True), chosen, axis=1)
        return Routing(chosen, weights / weights.sum(axis=1, keepdims=True) if norm else weights)

    def experts(self, x: Any, routing: Routing, gate_up: tuple[Experts, ...], down: Experts) -> Doubles:
        ids, weights = np.asarray(routing.experts), np.asarray(routing.weights)
        y = np.zeros((len(x), down.rows))
        for e in np.unique(ids):
            token, slot = np.nonzero(ids == e)
            matrices = [expert(part, int(e)).astype(np.float64).T for part in (*gate_up, down)]
            both = np.concatenate([x[token] @ m for m in matrices[:-1]], axis=1)
            y[token] += weights[token, slot, None] * (self.swiglu(both) @ matrices[-1])
        return y

    def attention_(self, kv: PagedKV, qkv: Any, batch: Batch, rope_table: Any, heads: int, scale: float, window: int,
                   softcap: float = 0.0, q_norm: Any = None, k_norm: Any = None, eps: float = 0.0) -> Doubles:
        _, _, kv_heads, _, dim = kv.data.shape
        tokens = len(qkv)
        parts = qkv[:, : (heads + 2 * kv_heads) * dim].reshape(tokens, heads + 2 * kv_heads, dim)
        q, k, v = np.split(parts, (heads, heads + kv_heads), axis=1)
        q, k = (x if w is None else self.rms_norm(x, w, eps) for x, w in ((q, q_norm), (k, k_norm)))
        table = np.asarray(rope_table, np.float64)[:tokens]  # [T, 2, d/2]
        q, k = (rotated(x, table[:, None, 0], table[:, None, 1]) for x in (q, k))
        k, v = (np.repeat(x, heads // kv_heads, axis=1) for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k, optimize=True) * scale
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        distance = np.arange(tokens)[:, None] - np.arange(tokens)
        scores[:, (distance < 0) | ((distance >= window) if window > 0 else False)] = -np.inf
        mass = np.exp(scores - scores.max(axis=2, keepdims=True))
        out = np.einsum("hqk,khd->qhd", mass / mass.sum(axis=2, keepdims=True), v, optimize=True)
        return np.asarray(out.reshape(tokens, heads * dim))


def rotated(x: Doubles, cos: Doubles, sin: Doubles) -> Doubles:
    """Rotary embedding in half-split order: cos and sin are [T, 1, d/2]."""
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin, x[..., 2 * half :]), axis=-1)


def exact_logits(model: str, pieces: Sequence[np.ndarray[Any, Any]]) -> list[Doubles]:
    """Logits [T, V] after every token of each piece."""
    longest = max(len(ids) for ids in pieces)
    config = EngineConfig(device="numpy", dtype="float32", max_context=longest, max_batch=1)
    found = load(model, config, silent)
    runner: Any = found.runner
    family, cfg, params, nothing = runner.model.family, runner.model.cfg, runner.model.params, np.zeros(0, np.int32)
    held = runner.model.kv
    caches = KVState(tuple(PagedKV("f64", kv.data[:1]) for kv in held.layers), held.recurrent)
    out = []
    for ids in pieces:
        n = len(ids)
        batch = Batch(ids, np.arange(n), np.zeros(n, np.int32), np.array((0, n)), np.array((n,)), nothing, nothing,
                      nothing, nothing, n, n)
        ops = Exact()
        out.append(family.logits(ops, cfg, params, family.forward(ops, cfg, params, caches, batch, "float64")))
    runner.close()
    return out


class Distance(msgspec.Struct, frozen=True):
    """Errors of one arithmetic over all tokens, see the table's columns."""

    distance: float
    best: float
    mean: float
    largest: float

    def misses(self, yardstick: Distance) -> bool:
        """Whether a bar is missed: one that plain arithmetic itself misses counts from there. A divergence grows with
        the square of the distance."""
        return (self.distance > yardstick.distance * (1 + SLACK) or self.best < min(BEST, yardstick.best - SLACK)
                or not self.mean < max(DIVERGENCE, yardstick.mean * (1 + SLACK) ** 2))


def measured(model: str, pieces: Sequence[np.ndarray[Any, Any]], exact: Sequence[Doubles],
             settings: dict[str, Any]) -> Distance:
    """One arithmetic against the exact logits."""
    errors, sizes, best, divergences = 0.0, 0.0, 0, []
    longest = max(len(ids) for ids in pieces)
    with LLM(model, max_context=longest, max_batch=1, **settings) as llm:
        for ids, want in zip(pieces, exact, strict=True):
            logits = llm.score(ids.tolist(), logits=True).logits
            assert logits is not None
            got, true = (z - z.mean(axis=1, keepdims=True) for z in (logits.astype(np.float64), want))
            errors, sizes = errors + np.square(got - true).sum(), sizes + np.square(true).sum()
            best += int((got.argmax(axis=1) == true.argmax(axis=1)).sum())
            p, q = logs(true), logs(got)
            divergences.append((np.exp(p) * (p - q)).sum(axis=1))
    all_of = np.concatenate(divergences)
    return Distance(math.sqrt(errors / sizes), best / len(all_of), float(all_of.mean()), float(all_of.max()))


def logs(z: Doubles) -> Doubles:
    """Log-probabilities of logits [T, V]."""
    shifted = z - z.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def token_pieces(model: str, text: str | None, count: int, longest: int) -> list[np.ndarray[Any, Any]]:
    """`count` tokens of the text, or random ones, in pieces of the context's length or `longest`."""
    with LLM(model, device="numpy", max_batch=1) as llm:
        info = llm.info()
        if text is None:
            ids = np.random.default_rng(0).integers(0, info.vocab, max(count, 0))
        else:
            ids = np.asarray(llm.tokenizer.encode(text[: 16 * max(count, 0)])[: max(count, 0)])
        size = min(info.max_context, longest)
    if not len(ids):
        raise RequestError(f"there is not one token to score: --tokens {count}, a text of {len(text or '')} characters")
    return [ids[first : first + size].astype(np.int32) for first in range(0, len(ids), size)]


def rows(model: str, text: str | None, count: int, device: str, longest: int,
         dtype: str = "auto") -> Iterator[tuple[str, Distance]]:
    """The yardstick, then the device's rows."""
    pieces = token_pieces(model, text, count, longest)
    exact = exact_logits(model, pieces)
    plain = {"device": "numpy", "dtype": "bfloat16"}
    yield "NumPy, bfloat16", measured(model, pieces, exact, plain)
    for step in STEPS:
        settings = {"device": device, "dtype": dtype, "max_step_tokens": step}
        yield f"{device}, steps of up to {step}", measured(model, pieces, exact, settings)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="checkpoints: files, folders or hub ids")
    parser.add_argument("--text", type=Path, help="text to score (default: random tokens)")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--longest", type=int, default=512, metavar="N", help="most tokens of a piece")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="type of activations on the device")
    args = parser.parse_args(argv)
    missed = False
    print("| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", sep="\n")
    try:
        text = args.text.read_text(encoding="utf-8") if args.text else None
        for model in args.models:
            yardstick = None
            for name, d in rows(model, text, args.tokens, args.device, args.longest, args.dtype):
                yardstick = yardstick or d
                cells = (Path(model).name, name, f"{d.distance:.2e}", f"{100 * d.best:.2f} %", f"{d.mean:.2e}",
                         f"{d.largest:.2e}")
                missed |= d is not yardstick and d.misses(yardstick)
                print("| " + " | ".join(cells) + " |", flush=True)
    except (BlackwellInferError, OSError) as error:
        print(f"accuracy: {error}", file=sys.stderr)
        return 2
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
