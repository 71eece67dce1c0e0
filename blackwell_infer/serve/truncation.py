"""Conversations that are longer than the context: the oldest turns go first."""
from __future__ import annotations

from collections.abc import Iterator

import msgspec

from blackwell_infer.serve.conversation import Ask, count
from blackwell_infer.serve.host import Host
from blackwell_infer.types import Message


def fitted(host: Host, ask: Ask) -> Ask:
    """The question with as many of its newest turns as leave room for the answer: for `max_tokens`, but no more than
    half of the context. Where not even the last turn fits, it is left as it is, and refused like any other."""
    context = host.llm.info().max_context
    room = context - min(ask.sampling.max_tokens or 1, context // 2)
    found = [ask, *(msgspec.structs.replace(ask, messages=messages) for messages in shorter(ask.messages))]
    low, high = 0, len(found)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if count(host, found[middle]) <= room else (middle + 1, high)
    return found[low] if low < len(found) else ask


def shorter(messages: tuple[Message, ...]) -> Iterator[tuple[Message, ...]]:
    """Ever fewer of the messages: without the oldest turns, then, within the user's last turn, without the oldest calls
    and their results. What the system says stays, and so do the user's last words and all that stands behind the last
    call."""
    first = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    asked = [i for i in range(first, len(messages)) if messages[i].role == "user"]
    for i in asked:
        if i > first:
            yield messages[:first] + messages[i:]
    last = asked[-1] if asked else first - 1
    for i in [i for i in range(last + 1, len(messages)) if messages[i].role == "assistant"][1:]:
        yield messages[:first] + messages[last : last + 1] * bool(asked) + messages[i:]
