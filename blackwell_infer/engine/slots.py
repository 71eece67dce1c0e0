"""Which slots of recurrent state the rows of a step continue and write.

Every running sequence has a slot of its own (`Sequence.home`, below `Limits.homes`), which its rows continue and write.
A row with guesses writes one more slot per guess (`Row.spares`), of those that no sequence lives in; `commit.commit`
then chooses the one after the last guess that holds: going back is choosing. A row that starts, or starts again after a
preemption, continues the empty state, so slots are never cleared. Steps run in order: a slot may be given to another
sequence as soon as the plan in which its owner no longer runs is made.

Behind those of the sequences lie the slots for kept states (`Prefix.states`). A token whose state is kept writes there
instead, be it a guess or not, and if it is the last of its row that holds, the next row goes on from there.
"""
from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from blackwell_infer.engine.scheduler import Row

EMPTY = -1
STRIDE = 64
"""Tokens between places where a state may be kept: those of a chunk of `Ops.gated_delta_`, so that what follows is cut
into the same chunks as if it had come in one row with what precedes. Prompts are cut at such places too."""

KEPT = 256
"""States that are kept where memory allows"""

Ints = np.ndarray[Any, np.dtype[np.int32]]


def states_to_keep(batch: int) -> int:
    """Slots for kept states beside those of so many sequences. A prompt can only go on where a state was kept, so they
    are what a prefix cache hits: docs/server.md, "A trace replayed", has figures. States of large models take 60 to
    150 MB; fewer are taken where they would crowd out pages (`capacity.KEPT_SHARE`)."""
    return max(KEPT, batch)


def state_slots(rows: Items[Row], homes: int) -> tuple[Ints, Ints]:
    """(`Batch.state_from` [R], `Batch.state_to` [T]): a row continues its own state or a kept one, and leaves it after
    its last token that is no guess, after every guess, and where it is to be kept (behind the `homes`)."""
    read = [homes + row.state if row.state >= 0 else row.home if row.start else EMPTY for row in rows]
    write = np.full(sum(len(row.tokens) for row in rows), EMPTY, np.int32)
    first = 0
    for row in rows:
        last = first + len(row.tokens)
        write[last - 1 - row.guesses : last] = (row.home, *row.spares)
        for i, slot in row.snapshots:
            write[first + i] = homes + slot
        first = last
    return np.asarray(read, np.int32), write
