"""The whitelist: every exact opcode form the emulator executes. An unknown form is an error that names it."""
from __future__ import annotations

from collections.abc import Mapping

from blackwell_infer.emulator.instructions import bulk, convert, floating, integer, matrix, memory, narrow, scaled, warp
from blackwell_infer.emulator.instructions.shape import Form

FORMS: Mapping[str, Form] = {**integer.FORMS, **floating.FORMS, **convert.FORMS, **memory.FORMS, **warp.FORMS,
                             **matrix.FORMS, **narrow.FORMS, **scaled.FORMS, **bulk.FORMS}
