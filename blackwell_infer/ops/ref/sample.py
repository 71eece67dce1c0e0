"""Sampling, exactly: integer arithmetic and float32 operations rounded one by one, so all backends give equal tokens.

Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""
from __future__ import annotations

from typing import Any

import numpy as np

from blackwell_infer.ops.batch import VOID, PenaltyState, Sampled, SampleParams, TokenMask, TokenState
from blackwell_infer.types import Array

F32 = np.float32
LARGEST = np.finfo(np.float32).max
MASS_BITS = 40
"""A probability mass is the integer floor(e * 2^40) with e in [0, 1]; 2^18 of them sum below 2^58."""
TAYLOR = tuple(F32(1.0 / f) for f in (5040, 720, 120, 24, 6, 2, 1, 1))
"""exp's Taylor coefficients, highest first: on |r| <= ln(2)/2 the first one left out is below 6e-9"""
LOG2E, LN2_HIGH, LN2_LOW = F32(1.4426950408889634), F32(0.693359375), F32(-2.12194440e-4)
"""ln 2 in two parts; n * LN2_HIGH is exact in float32 for the n that occur"""
UNDERFLOW = F32(-80.0)

Floats = np.ndarray[Any, np.dtype[np.float32]]


def usable(z: Floats) -> Floats:
    """NaN becomes -inf (never chosen), +inf the largest float32, -0 becomes +0 so that equal values have equal bits."""
    z = np.where(np.isnan(z), F32(-np.inf), z).astype(F32)
    return np.minimum(z, LARGEST) + F32(0.0)


def exp_f32(x: Floats) -> Floats:
    """exp(x) for x <= 0 with a fixed sequence of float32 operations, each rounded on its own; below -80 it is 0."""
    safe = np.maximum(x, UNDERFLOW)
    n = np.rint(safe * LOG2E)
    r = (safe - n * LN2_HIGH) - n * LN2_LOW
    p = np.full_like(r, TAYLOR[0])
    for c in TAYLOR[1:]:
        p = p * r + c
    scale = ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return np.where(x < UNDERFLOW, F32(0.0), p * scale)


def masses(z: Floats, largest: np.float32) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Integer probability mass of each z relative to the largest one."""
    return (exp_f32(z - largest) * F32(2.0**MASS_BITS)).astype(np.uint64)


def philox(seed: int, position: int) -> int:
    """First 64 bits of Philox4x32-10 with key `seed` (64 bits) and counter (position, 0, 0, 0)."""
    low = 0xFFFFFFFF
    c = [position & low, 0, 0, 0]
    k0, k1 = seed & low, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & low, (a >> 32) ^ c[3] ^ k1, a & low]
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return c[0] | c[1] << 32


def nucleus_target(total: int, top_p: np.float32) -> int:
    """floor(total * floor(top_p * 2^24) / 2^24) as the device computes it, at least 1."""
    p24 = int(top_p * F32(2.0**24))
    return max((total >> 24) * p24 + (((total & 0xFFFFFF) * p24) >> 24), 1)


def allowed(mask: TokenMask, i: int, vocab: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which of the tokens [V] row i may choose."""
    row = int(np.asarray(mask.rows)[i])
    if row < 0:
        return np.ones(vocab, np.bool_)
    words = np.ascontiguousarray(np.asarray(mask.words)[row], "<u4")
    return np.unpackbits(words.view(np.uint8), count=vocab, bitorder="little").astype(np.bool_)


def adjust(logits: Floats, params: SampleParams, i: int, state: PenaltyState) -> Floats:
    """Row i after mask, bias, penalties and temperature."""
    z = usable(logits)
    if params.mask is not None:
        z = np.where(allowed(params.mask, i, len(z)), z, F32(-np.inf))
    bias_starts, bias_ids, bias_values = map(np.asarray, (params.bias_starts, params.bias_ids, params.bias_values))
    for j in range(int(bias_starts[i]), int(bias_starts[i + 1])):
        if 0 <= bias_ids[j] < len(z):
            z[bias_ids[j]] += F32(bias_values[j])
    slot = int(params.slot[i])
    if slot >= 0:
        counts, prompt = np.asarray(state.counts[slot]), np.asarray(state.prompt[slot])
        r = F32(params.repetition[i])
        seen = (counts > 0) | (prompt != 0)
        z = np.where(seen, np.where(z > 0, z / r, z * r), z)
        z = z - F32(params.frequency[i]) * counts.astype(F32)
        z = np.where(counts > 0, z - F32(params.presence[i]), z)
    temperature = F32(params.temperature[i])
    if temperature > 0:
        z = z / temperature
    return usable(z)


def draw(z: Floats, params: SampleParams, i: int) -> int:
    """One token of row i's adjusted logits by the filters and the draw that `ops.api` describes."""
    largest = z.max()
    mass = masses(z, largest)
    keep = z > -np.inf
    top_k, top_p, min_p = int(params.top_k[i]), F32(params.top_p[i]), F32(params.min_p[i])
    if 0 < top_k < int(keep.sum()):
        keep &= z >= np.partition(z, -top_k)[-top_k]
    if min_p > 0:
        keep &= exp_f32(z - largest) >= min_p
    if top_p < 1:
        order = np.argsort(-z[keep], kind="stable")
        kept = z[keep][order]
        running = np.cumsum(mass[keep][order])
        reached = int(np.searchsorted(running, np.uint64(nucleus_target(int(running[-1]), top_p))))
        keep &= z >= kept[min(reached, len(kept) - 1)]
    running = np.cumsum(np.where(keep, mass, np.uint64(0)))
    point = philox(int(params.seed[i]), int(params.position[i])) * int(running[-1]) >> 64
    return int(np.searchsorted(running, np.uint64(point), side="right"))


def log_softmax(z: Floats) -> Floats:
    """log softmax of one row of usable logits."""
    largest = z.max()
    total = np.exp(z - largest).sum(dtype=np.float64)
    logp: Floats = (z - largest) - F32(np.log(total))
    return logp


def sample_(state: PenaltyState, logits: Array, params: SampleParams) -> Sampled:
    raw = np.asarray(logits)
    rows, top = raw.shape[0], params.top
    tokens, logprobs = np.full(rows, -1, np.int32), np.full(rows, -np.inf, F32)
    top_ids, top_logprobs = np.full((rows, top), -1, np.int32), np.full((rows, top), -np.inf, F32)
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        for i in range(rows):
            guess = int(params.guess[i])
            if guess >= 0 and tokens[i - 1] != guess:
                tokens[i] = VOID
                continue
            z = adjust(raw[i], params, i, state)
            plain = usable(raw[i])
            if plain.max() > -np.inf:
                logp = log_softmax(plain)
                if top:
                    best = np.argsort(-plain, kind="stable")[:top]
                    best = best[plain[best] > -np.inf]
                    top_ids[i, : len(best)], top_logprobs[i, : len(best)] = best, logp[best]
            if z.max() > -np.inf:
                tokens[i] = int(z.argmax()) if params.temperature[i] <= 0 else draw(z, params, i)
                logprobs[i] = logp[tokens[i]] if plain.max() > -np.inf else F32(-np.inf)
                if params.slot[i] >= 0:
                    np.asarray(state.counts[int(params.slot[i])])[tokens[i]] += 1
    return Sampled(tokens, logprobs, top_ids, top_logprobs)


def newest_tokens(newest: Array, ids: Array) -> Array:
    given = np.asarray(ids)
    return np.where(given < 0, np.asarray(newest)[np.where(given < 0, -1 - given, 0)], given).astype(np.int32)


def deliver_(state: TokenState, sampled: Sampled, slots: Array) -> None:
    fields = (sampled.tokens, sampled.logprobs, sampled.top_ids, sampled.top_logprobs)
    words = np.concatenate([np.asarray(field).reshape(-1).view(np.int32) for field in fields])
    np.asarray(state.block)[: len(words)] = words
    chosen = np.asarray(slots) >= 0
    np.asarray(state.newest)[np.asarray(slots)[chosen]] = np.asarray(sampled.tokens)[chosen]


def penalty_load_(state: PenaltyState, slot: int, prompt: Array, answer: Array) -> None:
    counts, flags = np.asarray(state.counts[slot]), np.asarray(state.prompt[slot])
    counts[:], flags[:] = 0, 0
    flags[np.asarray(prompt)] = 1
    np.add.at(counts, np.asarray(answer), 1)


def token_logprobs(logits: Array, targets: Array) -> Array:
    raw, wanted = np.asarray(logits), np.asarray(targets)
    out = np.zeros(len(wanted), F32)
    with np.errstate(over="ignore", invalid="ignore"):
        for i in np.flatnonzero(wanted >= 0):
            out[i] = log_softmax(usable(raw[i]))[wanted[i]]
    return out
