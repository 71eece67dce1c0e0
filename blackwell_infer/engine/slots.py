"""Which slots of recurrent state the rows of a step continue and write.

Every running sequence has a slot of its own (`Sequence.home`, below `Limits.homes`), which its rows continue and write.
A row with guesses writes one more slot per guess (`Row.spares`), of those that no sequence lives in; `scheduler.commit`
then chooses the one after the last guess that holds: going back is choosing. A row that starts, or starts again after a
preemption, continues the empty state, so slots are never cleared. Steps run in order: a slot may be given to another
sequence as soon as the plan in which its owner no longer runs is made.
"""
from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from blackwell_infer.engine.scheduler import Row

EMPTY = -1

Ints = np.ndarray[Any, np.dtype[np.int32]]


def state_slots(rows: Items[Row]) -> tuple[Ints, Ints]:
    """(`Batch.state_from` [R], `Batch.state_to` [T]): a row continues its own state and leaves it after its last token
    that is no guess, and after every guess."""
    read = [row.home if row.start else EMPTY for row in rows]
    write = np.full(sum(len(row.tokens) for row in rows), EMPTY, np.int32)
    first = 0
    for row in rows:
        last = first + len(row.tokens)
        write[last - 1 - row.guesses : last] = (row.home, *row.spares)
        first = last
    return np.asarray(read, np.int32), write
