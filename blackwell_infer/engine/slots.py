"""Which slots of recurrent state the rows of a step continue and write.

Every running sequence has a number of its own below the batch limit (`Sequence.slot`) and owns `HISTORY` neighbouring
slots: enough for the states that its next step may have to go back to. A row that starts, or starts again after a
preemption, continues the empty state, so slots are never cleared. Steps run in order: a slot may be given to another
sequence as soon as the plan in which its owner no longer runs is made.
"""
from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from blackwell_infer.engine.scheduler import Row

HISTORY = 1
"""Slots of a sequence: one, as no step keeps more than the state after its last token"""
EMPTY = -1

Ints = np.ndarray[Any, np.dtype[np.int32]]


def slots_for(batch: int) -> int:
    """Slots that so many sequences need."""
    return batch * HISTORY


def own_slot(slot: int) -> int:
    """Where the state after everything that a sequence's steps have brought lies."""
    return slot * HISTORY


def state_slots(rows: Items[Row]) -> tuple[Ints, Ints]:
    """(`Batch.state_from` [R], `Batch.state_to` [T]): a row continues its own state and leaves it after its last
    token."""
    read = [own_slot(row.slot) if row.start else EMPTY for row in rows]
    write = np.full(sum(len(row.tokens) for row in rows), EMPTY, np.int32)
    write[np.cumsum([len(row.tokens) for row in rows]) - 1] = [own_slot(row.slot) for row in rows]
    return np.asarray(read, np.int32), write
