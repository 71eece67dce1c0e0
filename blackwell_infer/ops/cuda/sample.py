"""Launchers of ptx/sample: sampling, penalties and teacher-forced log-probabilities."""
from __future__ import annotations

import numpy as np

from blackwell_infer.device.queue import Queue
from blackwell_infer.errors import DeviceError
from blackwell_infer.kernels.cost import Call, Cost, moved
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.ops.batch import PenaltyState, Sampled, SampleParams, TokenState
from blackwell_infer.types import Array

THREADS = 512
CHUNK, CHUNK_THREADS = 4096, 256
"""ids that one CTA adjusts, and its threads"""
WORDS = 256
"""32-bit words that one CTA copies, and rows that one settles"""
SOURCE = "sample/sample.cu"


def adjusted(call: Call) -> Cost:
    """Logits of greedy rows without biases and penalties: nothing else is large, scratch stays untouched."""
    return Cost(call.nbytes("logits", "best_parts", "plain_parts", "sum_parts", "temperature", "slot", "bias_starts"))


def picked(call: Call) -> Cost:
    """What sample_adjust left of greedy rows, their tokens, and a pass over the logits for each alternative."""
    parts = call.nbytes("best_parts", "plain_parts", "sum_parts", "tokens", "logprobs", "top_ids", "top_logprobs")
    return Cost(parts + call.number("top") * call.nbytes("logits"))


def settled(call: Call) -> Cost:
    """Guesses, slots and tokens; few rows become void."""
    return Cost(call.nbytes("guess", "slot", "tokens"))


def cleared(call: Call) -> Cost:
    """One slot's counts and flags."""
    return Cost(call.number("V") * 5)


def counted(call: Call) -> Cost:
    """The ids, a flag for each of the prompt, and a count for each of the answer, read and written."""
    return Cost(call.nbytes("prompt_ids", "answer_ids") + call.number("n_prompt") + 8 * call.number("n_answer"))


def chosen(call: Call) -> Cost:
    """Ids in and out; the newest tokens are few."""
    return Cost(call.nbytes("ids", "out"))


def delivered(call: Call) -> Cost:
    """Every result once in and once out."""
    return Cost(2 * call.nbytes("tokens", "logprobs", "top_ids", "top_logprobs") + 2 * call.nbytes("slots"))


ADJUST = Kernel(SOURCE, "sample_adjust", (
    Param("logits", "in", "float32"), Param("scratch", "out", "float32"), Param("temperature", "in", "float32"),
    Param("repetition", "in", "float32"), Param("presence", "in", "float32"), Param("frequency", "in", "float32"),
    Param("slot", "in", "int32"), Param("bias_starts", "in", "int32"), Param("bias_ids", "in", "int32"),
    Param("bias_values", "in", "float32"), Param("counts", "in", "int32"), Param("prompt", "in", "uint8"),
    Param("guess", "in", "int32"), Param("mask_rows", "in", "int32"), Param("mask_words", "in", "uint32"),
    Param("best_parts", "out", "uint64"), Param("plain_parts", "out", "uint64"), Param("sum_parts", "out", "float32"),
    Param("V", "i32")), cost=adjusted)
PICK = Kernel(SOURCE, "sample_pick", (
    Param("logits", "in", "float32"), Param("scratch", "in", "float32"), Param("best_parts", "in", "uint64"),
    Param("plain_parts", "in", "uint64"), Param("sum_parts", "in", "float32"), Param("temperature", "in", "float32"),
    Param("top_k", "in", "int32"), Param("top_p", "in", "float32"), Param("min_p", "in", "float32"),
    Param("seed", "in", "uint64"), Param("position", "in", "int32"), Param("slot", "in", "int32"),
    Param("counts", "inout", "int32"), Param("tokens", "out", "int32"), Param("logprobs", "out", "float32"),
    Param("top_ids", "out", "int32"), Param("top_logprobs", "out", "float32"), Param("V", "i32"), Param("top", "i32"),
    Param("parts", "i32")), cost=picked)
SETTLE = Kernel(SOURCE, "sample_settle", (
    Param("guess", "in", "int32"), Param("slot", "in", "int32"), Param("counts", "inout", "int32"),
    Param("tokens", "inout", "int32"), Param("logprobs", "inout", "float32"), Param("top_ids", "inout", "int32"),
    Param("top_logprobs", "inout", "float32"), Param("N", "i32"), Param("V", "i32"), Param("top", "i32")),
    cost=settled)
TOKEN_LOGPROBS = Kernel("sample/score.cu", "token_logprobs", (
    Param("logits", "in", "float32"), Param("targets", "in", "int32"), Param("out", "out", "float32"),
    Param("V", "i32")), cost=moved)
PENALTY_CLEAR = Kernel("sample/penalty.cu", "penalty_clear", (
    Param("counts", "out", "int32"), Param("prompt", "out", "uint8"), Param("slot", "i32"), Param("V", "i32")),
    cost=cleared)
PENALTY_COUNT = Kernel("sample/penalty.cu", "penalty_count", (
    Param("counts", "inout", "int32"), Param("prompt", "inout", "uint8"), Param("prompt_ids", "in", "int32"),
    Param("answer_ids", "in", "int32"), Param("slot", "i32"), Param("n_prompt", "i32"), Param("n_answer", "i32"),
    Param("V", "i32")), cost=counted)
NEWEST = Kernel("sample/tokens.cu", "newest_tokens", (
    Param("newest", "in", "int32"), Param("ids", "in", "int32"), Param("out", "out", "int32"), Param("T", "i32")),
    cost=chosen)
DELIVER = Kernel("sample/tokens.cu", "deliver_tokens", (
    Param("tokens", "in", "int32"), Param("logprobs", "in", "float32"), Param("top_ids", "in", "int32"),
    Param("top_logprobs", "in", "float32"), Param("slots", "in", "int32"), Param("newest", "inout", "int32"),
    Param("block", "out", "int32"), Param("N", "i32"), Param("top", "i32")), cost=delivered)
KERNELS = (ADJUST, PICK, SETTLE, TOKEN_LOGPROBS, PENALTY_CLEAR, PENALTY_COUNT, NEWEST, DELIVER)


def sample_(q: Queue, state: PenaltyState, logits: Array, params: SampleParams) -> Sampled:
    rows, vocab = logits.shape
    out = Sampled(q.empty((rows,), np.int32), q.empty((rows,), np.float32), q.empty((rows, params.top), np.int32),
                  q.empty((rows, params.top), np.float32))
    parts = -(-vocab // CHUNK)
    scratch, sums = q.empty((rows, vocab), np.float32), q.empty((rows, parts), np.float32)
    best, plain = q.empty((rows, parts), np.uint64), q.empty((rows, parts), np.uint64)
    masks = (None, None) if params.mask is None else (params.mask.rows, params.mask.words)
    q.launch(ADJUST.variant(), (parts, rows, 1), (CHUNK_THREADS, 1, 1), logits, scratch, params.temperature,
             params.repetition, params.presence, params.frequency, params.slot, params.bias_starts, params.bias_ids,
             params.bias_values, state.counts, state.prompt, params.guess if params.chained else None, *masks,
             best, plain, sums, vocab, pdl=True)
    q.launch(PICK.variant(), (rows, 1, 1), (THREADS, 1, 1), logits, scratch, best, plain, sums, params.temperature,
             params.top_k, params.top_p, params.min_p, params.seed, params.position, params.slot,
             None if params.chained else state.counts, out.tokens, out.logprobs, out.top_ids, out.top_logprobs, vocab,
             params.top, parts, pdl=True)
    if params.chained:
        q.launch(SETTLE.variant(), (-(-rows // WORDS), 1, 1), (WORDS, 1, 1), params.guess, params.slot, state.counts,
                 out.tokens, out.logprobs, out.top_ids, out.top_logprobs, rows, vocab, params.top, pdl=True)
    return out


def newest_tokens(q: Queue, newest: Array, ids: Array) -> Array:
    out = q.empty(ids.shape, np.int32)
    if ids.shape[0]:
        q.launch(NEWEST.variant(), (-(-ids.shape[0] // WORDS), 1, 1), (WORDS, 1, 1), newest, ids, out, ids.shape[0],
                 pdl=True)
    return out


def deliver_(q: Queue, state: TokenState, sampled: Sampled, slots: Array) -> None:
    rows, top = sampled.top_ids.shape
    if rows * (2 + 2 * top) > state.block.shape[0]:
        raise DeviceError(f"deliver_: {rows} results with {top} alternatives each do not fit {state.block.shape[0]} "
                          "words")
    if rows:
        q.launch(DELIVER.variant(), (-(-rows * (2 + 2 * top) // WORDS), 1, 1), (WORDS, 1, 1), sampled.tokens,
                 sampled.logprobs, sampled.top_ids, sampled.top_logprobs, slots, state.newest, state.block, rows, top,
                 pdl=True)


def penalty_load_(q: Queue, state: PenaltyState, slot: int, prompt: Array, answer: Array) -> None:
    vocab, n_prompt, n_answer = state.counts.shape[1], prompt.shape[0], answer.shape[0]
    block = (THREADS, 1, 1)
    q.launch(PENALTY_CLEAR.variant(), (-(-vocab // THREADS), 1, 1), block, state.counts, state.prompt, slot, vocab,
             pdl=True)
    blocks = -(-max(n_prompt, n_answer) // THREADS)
    if blocks:
        q.launch(PENALTY_COUNT.variant(), (blocks, 1, 1), block, state.counts, state.prompt, prompt, answer, slot,
                 n_prompt, n_answer, vocab, pdl=True)


def token_logprobs(q: Queue, logits: Array, targets: Array) -> Array:
    rows, vocab = logits.shape
    out = q.empty((rows,), np.float32)
    q.launch(TOKEN_LOGPROBS.variant(), (rows, 1, 1), (THREADS, 1, 1), logits, targets, out, vocab, pdl=True)
    return out
