"""The arrays of a step side by side in one buffer, so that they reach the backend in one copy."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.head import HeadWork

ALIGN = 16
Host = np.ndarray[Any, Any]
OWN = ("slots", "scored", "targets", "embedded")
"""Arrays of `Work` that stand beside its batch and its sampling parameters"""


class Packed:
    """Named arrays in `buffer` [B] uint8; `host` holds them as views of it, to be filled."""

    def __init__(self, arrays: Mapping[str, Host]) -> None:
        self._places: dict[str, tuple[int, int, np.dtype[Any], tuple[int, ...]]] = {}
        at = 0
        for name, array in arrays.items():
            self._places[name] = (at, at + array.nbytes, array.dtype, array.shape)
            at = -(-(at + array.nbytes) // ALIGN) * ALIGN
        self.buffer = np.zeros(max(at, ALIGN), np.uint8)
        self.host = self.views(self.buffer)
        for name, array in arrays.items():
            self.host[name][...] = array

    def views(self, block: Any) -> dict[str, Any]:
        """The arrays in a copy of the buffer, on the host or a device."""
        return {name: block[first:last].view(dtype).reshape(*shape)
                for name, (first, last, dtype, shape) in self._places.items()}


def fill(host: Mapping[str, Host], given: Mapping[str, Host], blank: Mapping[str, Host]) -> None:
    """Write a step's arrays into larger ones, padded from `blank`. What counts up stays at its last number; `outputs`
    are all tokens, and rows of block tables that nobody reads stay as they are."""
    for name, values in given.items():
        kind = name.rpartition(".")[2]
        count = values.shape[0]
        if kind == "pages":
            host[name][:count, : values.shape[1]] = values
        elif kind != "outputs":
            host[name][:count] = values
            host[name][count:] = values[-1] if kind in ("starts", "bias_starts") else blank[name][count:]


def arrays_of(work: Work) -> dict[str, Host]:
    """Every array of a step that its ops read, by name."""
    found = arrays_in(work.batch) | {name: getattr(work, name) for name in OWN}
    return found if work.params is None else found | arrays_in(work.params)


def arrays_in_head(work: HeadWork) -> dict[str, Host]:
    """Every array of a head's work, by name."""
    found = arrays_in(work) | arrays_in(work.params)
    return found | {f"{i}.{name}": array for i, batch in enumerate(work.steps)
                    for name, array in arrays_in(batch).items()}


def placed_head(work: HeadWork, arrays: Mapping[str, Any]) -> HeadWork:
    """The same work over other arrays."""
    steps = tuple(msgspec.structs.replace(batch, **{name: arrays[f"{i}.{name}"] for name in arrays_in(batch)})
                  for i, batch in enumerate(work.steps))
    return msgspec.structs.replace(
        work, steps=steps, **{name: arrays[name] for name in arrays_in(work)},
        params=msgspec.structs.replace(work.params, **{name: arrays[name] for name in arrays_in(work.params)}))


def arrays_in(struct: msgspec.Struct) -> dict[str, Host]:
    """The arrays among a struct's fields."""
    return {name: value for name, value in msgspec.structs.asdict(struct).items() if isinstance(value, np.ndarray)}


def placed(work: Work, arrays: Mapping[str, Any]) -> Work:
    """The same step over other arrays."""
    def over(struct: Any) -> Any:
        return msgspec.structs.replace(struct, **{n: arrays[n] for n in struct.__struct_fields__ if n in arrays})

    return msgspec.structs.replace(work, batch=over(work.batch), **{name: arrays[name] for name in OWN},
                                   params=None if work.params is None else over(work.params))
