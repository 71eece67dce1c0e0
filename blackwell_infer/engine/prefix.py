"""What sequences take from the prefix cache and leave there."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from blackwell_infer.kv.prefix import Key, Prefix
from blackwell_infer.kv.spec import PAGE

WORTH = 512
"""Tokens for which waiting for another sequence to read them beats reading them beside it: a step costs this or so"""

if TYPE_CHECKING:
    from blackwell_infer.engine.scheduler import Limits, Sequence


def keys_of(s: Sequence, first: int, last: int) -> tuple[Key, ...]:
    """The tokens of pages first..last-1 of a sequence, all of which are known."""
    return tuple(s.tokens(i * PAGE, (i + 1) * PAGE) for i in range(first, last))


def resumed(s: Sequence, limits: Limits, prefix: Prefix) -> tuple[Sequence, Prefix]:
    """A waiting sequence that holds what the cache has of it, and the cache.

    Its last token is left out, since its logits are wanted; so is everything after the last kept state, if the model
    has recurrent layers. Scored texts want all logits.
    """
    if not limits.reuse or s.score:
        return s, prefix
    keys = keys_of(s, 0, (s.length - 1) // PAGE)
    pages = prefix.match(keys)
    count, state, branch = len(pages), -1, 0
    if limits.stride > 1:
        count, branch = prefix.resumable(pages), len(pages) * PAGE
        if count:
            state, prefix = prefix.states[pages[count - 1]].slot, prefix.touch(pages[count - 1])
    found = msgspec.structs.replace(s, cached=count * PAGE, pages=pages[:count], keys=keys[:count], state=state,
                                    branch=branch)
    return found, prefix.acquire(found.keys)


def coming(s: Sequence, others: Iterable[Sequence], limits: Limits) -> bool:
    """Whether a sequence had better wait: an older one is about to leave at least `WORTH` tokens more in the cache than
    `s` holds there."""
    if not limits.reuse or s.score:
        return False
    for other in others:
        most = min(s.length - 1, other.length - other.ahead) // PAGE
        if other.score or most * PAGE - s.cached < WORTH or len(other.keys) >= most:
            continue
        pages = next((i for i in range(most) if keys_of(s, i, i + 1) != keys_of(other, i, i + 1)), most)
        reach = pages * PAGE
        if limits.stride > 1:  # where the other one's state will be kept
            place = (other.length - 1) // limits.stride * limits.stride
            reach = place if place <= reach and limits.states else 0
        if reach - s.cached >= WORTH and len(other.keys) * PAGE < reach:
            return True
    return False


def let_go(prefix: Prefix, gone: Iterable[Sequence]) -> tuple[Prefix, list[int]]:
    """The cache after sequences left, and the pages that were theirs alone."""
    pages: list[int] = []
    for s in gone:
        pages += s.pages[len(s.keys) :]
        prefix = prefix.release(s.keys).give_slots([slot for _, slot in s.fresh])
    return prefix, pages


def snapshot_ends(s: Sequence, end: int, limits: Limits) -> list[int]:
    """Numbers of tokens after which the state of a sequence is worth keeping, of those that a row up to `end` brings.

    That is the last place before the end of what is prefilled, from where the same prompt or a longer one would go on;
    the place where another text went the same way before; and every place of the answer.
    """
    if not limits.states or s.score:
        return []
    last = s.length - 1 if s.pending > 1 else end
    places = {tokens // limits.stride * limits.stride for tokens in (last, s.branch)}
    return sorted(place for place in places if s.cached < place <= end)
