"""Which slots of recurrent state the rows of a step continue and write.

Every running sequence has a number of its own below the batch limit (`Sequence.slot`) and owns `HISTORY` neighbouring
slots: enough for the states that its next step may have to go back to. A row that starts, or starts again after a
preemption, continues the empty state, so slots are never cleared. Steps run in order: a slot may be given to another
sequence as soon as the plan in which its owner no longer runs is made.

Behind those of the sequences lie the slots for kept states (`Prefix.states`). A token whose state is kept writes there
instead of to its sequence's slot, and if it is the last of its row, the next row goes on from there.
"""
from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from blackwell_infer.engine.scheduler import Row

HISTORY = 1
"""Slots of a sequence: one, as no step keeps more than the state after its last token"""
EMPTY = -1
STRIDE = 64
"""Tokens between places where a state may be kept: those of a chunk of `Ops.gated_delta_`, so that what follows is cut
into the same chunks as if it had come in one row with what precedes. Prompts are cut at such places too."""

Ints = np.ndarray[Any, np.dtype[np.int32]]


def slots_for(batch: int) -> int:
    """Slots that so many sequences need."""
    return batch * HISTORY


def own_slot(slot: int) -> int:
    """Where the state after everything that a sequence's steps have brought lies."""
    return slot * HISTORY


def kept_slot(batch: int, number: int) -> int:
    """Where a kept state lies, behind the slots of so many sequences."""
    return slots_for(batch) + number


def states_to_keep(batch: int) -> int:
    """Slots for kept states beside those of so many sequences: for the ends of prompts, and the newest places of some
    answers. States of large models take 60 to 150 MB; fewer are taken where they would crowd out pages."""
    return batch // 2 + 4


def state_slots(rows: Items[Row], batch: int) -> tuple[Ints, Ints]:
    """(`Batch.state_from` [R], `Batch.state_to` [T]): a row continues its own state or a kept one, and leaves it after
    its last token and where it is to be kept."""
    read = [kept_slot(batch, row.state) if row.state >= 0 else own_slot(row.slot) if row.start else EMPTY
            for row in rows]
    write = np.full(sum(len(row.tokens) for row in rows), EMPTY, np.int32)
    first = 0
    for row in rows:
        write[first + len(row.tokens) - 1] = own_slot(row.slot)
        for i, slot in row.snapshots:
            write[first + i] = kept_slot(batch, slot)
        first += len(row.tokens)
    return np.asarray(read, np.int32), write
