"""The step as a function of device arrays: forward pass, logits of the rows that want them, sampling, scoring.

It reads nothing but its arguments and waits for nothing, so a device may record it and run it again.
"""
from __future__ import annotations

from typing import Any

import msgspec

from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.head import HeadWork
from blackwell_infer.kv.spec import KVState, PagedKV
from blackwell_infer.models.spec import Family
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.batch import Batch, PenaltyState, Sampled, SampleParams, TokenMask, TokenState
from blackwell_infer.types import Array


class Head(msgspec.Struct, frozen=True):
    """The head for guesses: `params` as its family built them, the keys and values of its layer.

    It reads the `hidden` states [S, H] of a step after that step is done; `order` [S] int32 counts 0, 1, 2 ...
    """

    params: Any
    kv: PagedKV
    hidden: Array
    order: Array


class Model(msgspec.Struct, frozen=True):
    """A loaded model on some backend: `params` as its family built them, caches, penalties, activation dtype."""

    family: Family
    cfg: Any
    params: Any
    kv: KVState
    penalties: PenaltyState
    dtype: str
    head: Head | None = None
    homes: int = 0
    """slots of recurrent states before the kept ones"""


class Looked(msgspec.Struct, frozen=True):
    """What a step found out of texts that are only looked at, where it was asked for: log-probabilities [S] float32 of
    targets, the logits [S, V] they come from, and hidden states [E, H] after the final norm."""

    logprobs: Array | None = None
    logits: Array | None = None
    hidden: Array | None = None


def run(ops: Ops, model: Model, tokens: TokenState, work: Work, kept: Array | None = None) -> Looked:
    """A whole step over the backend's arrays of `work`, from ids to delivered tokens.

    Of a step with masks it is the part that needs none: `kept` [N, H] takes the hidden states of what is sampled, and
    `choose` goes on from there.
    """
    batch = msgspec.structs.replace(work.batch, ids=ops.newest_tokens(tokens.newest, work.batch.ids))
    hidden = forward(ops, model, batch)
    if kept is not None:
        ops.take_rows(hidden, batch.outputs, kept)
    elif work.params is not None:
        ops.deliver_(tokens, sample(ops, model, hidden, batch.outputs, work.params), work.slots)
    if model.head is not None:
        tokens_here = batch.ids.shape[0]
        ops.take_rows(hidden, model.head.order[:tokens_here], model.head.hidden[:tokens_here])
    embedded = chosen(ops, hidden, work.embedded) if work.embedded.shape[0] else None
    if not work.scored.shape[0]:
        return Looked(hidden=embedded)
    values = logits(ops, model, hidden, work.scored)
    return Looked(ops.token_logprobs(values, work.targets), values, embedded)


def choose(ops: Ops, model: Model, tokens: TokenState, work: Work, kept: Array, mask: TokenMask) -> None:
    """The rest of a step with masks: logits of the hidden states that `run` kept, sampled and delivered."""
    assert work.params is not None
    values: Array = model.family.logits(ops, model.cfg, model.params, kept)
    params = msgspec.structs.replace(work.params, mask=mask)
    ops.deliver_(tokens, ops.sample_(model.penalties, values, params), work.slots)


def guess(ops: Ops, model: Model, tokens: TokenState, work: HeadWork) -> None:
    """The head's pass over the step before, and its guesses one after the other: `tokens.block` gets, for each, the
    tokens [G] and their log-probabilities [G]."""
    head, draft = model.head, model.family.draft
    assert head is not None and draft is not None
    h, rows = ops.take_rows(head.hidden, work.take), work.slots.shape[0]
    for i, batch in enumerate(work.steps):
        batch = msgspec.structs.replace(batch, ids=ops.newest_tokens(tokens.newest, batch.ids))
        h = draft.forward(ops, model.cfg, model.params, head.params, head.kv, batch, h, model.dtype)
        if not rows:
            break
        h = h if i else ops.take_rows(h, work.last)
        values = draft.logits(ops, model.cfg, model.params, head.params, h)
        sampled = ops.sample_(model.penalties, values, work.params)
        ops.deliver_(TokenState(tokens.newest, tokens.block[2 * i * rows : 2 * (i + 1) * rows]), sampled, work.slots)


def forward(ops: Ops, model: Model, batch: Batch) -> Array:
    """Hidden states [T, H] of every token of the batch; keys and values are appended to the caches."""
    hidden: Array = model.family.forward(ops, model.cfg, model.params, model.kv, batch, model.dtype)
    return hidden


def sample(ops: Ops, model: Model, hidden: Array, outputs: Array, params: SampleParams) -> Sampled:
    """One token for each row of `outputs` [N]."""
    return ops.sample_(model.penalties, logits(ops, model, hidden, outputs), params)


def logits(ops: Ops, model: Model, hidden: Array, wanted: Array) -> Array:
    """Float32 logits [N, V] of the tokens `wanted` [N] int32, ascending without repetition."""
    values: Array = model.family.logits(ops, model.cfg, model.params, chosen(ops, hidden, wanted))
    return values


def chosen(ops: Ops, hidden: Array, wanted: Array) -> Array:
    """Rows `wanted` [N] of hidden states, ascending without repetition: all of them need no copy."""
    return hidden if wanted.shape[0] == hidden.shape[0] else ops.take_rows(hidden, wanted)
