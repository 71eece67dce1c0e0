"""What a step made of the sequences in it, once its tokens are known."""
from __future__ import annotations

from collections.abc import Sequence as Items

import msgspec

from blackwell_infer.engine.guesses import accepted
from blackwell_infer.engine.prefix import keys_of, let_go
from blackwell_infer.engine.sequences import Emitted, Finish, Plan, Row, Sequence, State, mask
from blackwell_infer.kv.prefix import Prefix
from blackwell_infer.kv.spec import PAGE


def commit(state: State, done: Plan, sampled: Items[int]) -> tuple[State, tuple[Emitted, ...]]:
    """The state after a step that was begun, and what it made. `sampled` holds the tokens of sampling rows, in order;
    -1 is a failure.

    Sequences that were cancelled or that ended while the step ran are skipped.
    """
    known = {s.id: s for s in (*state.running, *state.waiting)}
    prefix, ended, copies, events, sample = state.prefix, list[Sequence](), list[int](), list[Emitted](), 0
    for index, row in enumerate(done.rows):
        position, sample = sample, sample + row.sampled
        s = known.get(row.id)
        if s is None:
            continue
        finish: Finish | None = None
        held = 0
        if row.samples:
            own, guesses = sampled[position:sample], row.guessed
            held = accepted(guesses, own)
            s, unused = settled(s, row, held)
            prefix = prefix.give_slots(unused)
            for i, token in enumerate((*guesses[:held], own[held])):
                s = s if token < 0 else msgspec.structs.replace(s, answer=s.answer.append(token))
                finish = ending(s, token)
                events.append(Emitted(s.id, index, position + i, token, finish, i < held))
                if finish is not None:
                    break
        elif row.scores:
            finish = "scored" if row.end == len(s.prompt) else None
            events.append(Emitted(s.id, index, position, -1, finish))
        # The keys of guesses that do not hold, or that follow the end, are no keys of the sequence's tokens.
        end = min(row.end - row.guesses + held, s.length - s.ahead)
        if state.reuse and s.cached >= end and not row.scores and finish != "error":  # s was not preempted meanwhile
            s, prefix, double = remembered(s, end, prefix)
            copies += double
        known[s.id] = s
        if finish is not None:
            ended.append(known.pop(s.id))
    prefix, pages = let_go(prefix, ended)
    return msgspec.structs.replace(
        state, free=state.free | mask(pages + copies), prefix=prefix,
        waiting=tuple(known[s.id] for s in state.waiting if s.id in known),
        running=tuple(known[s.id] for s in state.running if s.id in known)), tuple(events)


def settled(s: Sequence, row: Row, held: int) -> tuple[Sequence, list[int]]:
    """A sequence that knows how many guesses of its row hold, and the slots of states after others, which it was to
    keep. One that lost its pages meanwhile has nothing cached."""
    s = msgspec.structs.replace(s, ahead=s.ahead - 1)
    if not row.guesses or s.slot < 0:
        return s, []
    cached = s.cached + held
    state = dict(row.snapshots).get(cached - row.start - 1, -1)
    s = msgspec.structs.replace(s, cached=cached, home=(row.home, *row.spares)[held], spares=(), state=state,
                                fresh=tuple((pages, slot) for pages, slot in s.fresh if pages * PAGE <= cached))
    return s, [slot for i, slot in row.snapshots if row.start + i >= cached]


def remembered(s: Sequence, end: int, prefix: Prefix) -> tuple[Sequence, Prefix, Items[int]]:
    """The sequence and the cache once the pages that a step filled with tokens up to `end`, and the states that it
    kept, are in the cache, and the sequence's own copies of pages that were there already: it goes on with those that
    are there."""
    full, own = end // PAGE, list[int]()
    if full > len(s.keys):
        keys = s.keys + keys_of(s, len(s.keys), full)
        prefix = prefix.extend(keys, len(s.keys), s.pages[:full])
        shared = prefix.match(keys)
        own = [page for page, other in zip(s.pages[:full], shared, strict=True) if page != other]
        s = msgspec.structs.replace(s, keys=keys, pages=shared + s.pages[full:], moved=s.moved or bool(own))
    for pages, slot in s.fresh:
        if pages > full:
            break
        prefix = prefix.keep(s.keys[:pages], slot)
        if s.trail:
            prefix = prefix.forget(s.keys[: s.trail])
        s = msgspec.structs.replace(s, fresh=s.fresh[1:], trail=pages if pages * PAGE > len(s.prompt) else 0)
    return s, prefix, own


def ending(s: Sequence, token: int) -> Finish | None:
    """Why a sequence ends after this token, if it does."""
    if token < 0:
        return "error"
    if token in s.stop_ids:
        return "stop"
    return "length" if len(s.answer) >= s.limit else None
