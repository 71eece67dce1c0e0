"""Pages and states of a model's caches as host arrays, by name: `kv.L` [pages, 2, kv_heads, PAGE, head_dim] of the
L-th attention layer, `conv.L` [width - 1, channels] and `state.L` [heads, key_dim, value_dim] of the L-th recurrent
layer."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from blackwell_infer.device.queue import Memory
from blackwell_infer.errors import SessionError
from blackwell_infer.kv.spec import KVState
from blackwell_infer.types import Array

Arrays = Mapping[str, np.ndarray[Any, Any]]


def runs(pages: Items[int]) -> Iterator[tuple[int, int, int]]:
    """(index, first page, number of pages) of pages that follow one another: one copy each."""
    first = 0
    for i in range(1, len(pages) + 1):
        if i == len(pages) or pages[i] != pages[i - 1] + 1:
            yield first, pages[first], i - first
            first = i


def states(kv: KVState, slot: int | None) -> dict[str, Array]:
    """The arrays of a slot."""
    if slot is None:
        return {}
    return {f"{name}.{i}": array[slot] for i, layer in enumerate(kv.recurrent)
            for name, array in (("conv", layer.conv), ("state", layer.state))}


def read_places(memory: Memory, kv: KVState, pages: Items[int], slot: int | None) -> Arrays:
    """Copies of pages, and of a slot if one is given."""
    found: dict[str, np.ndarray[Any, Any]] = {}
    for i, layer in enumerate(kv.layers):
        out = found[f"kv.{i}"] = np.empty((len(pages), *layer.data.shape[1:]), layer.data.dtype)
        for at, page, count in runs(pages):
            out[at : at + count] = memory.download(layer.data[page : page + count]).result()
    return found | {name: memory.download(array).result() for name, array in states(kv, slot).items()}


class Copies:
    """Pages and a slot on their way to the host, beside what runs (`device.queue.Memory.fetch`)."""

    def __init__(self, memory: Memory, kv: KVState, pages: Items[int], slot: int | None) -> None:
        spans = [(f"kv.{i}", at, layer.data[page : page + count]) for i, layer in enumerate(kv.layers)
                 for at, page, count in runs(pages)]
        state = states(kv, slot)
        self._count = len(pages)
        self._spans = [(name, at) for name, at, _ in spans]
        self._names = list(state)
        self._fetch = memory.fetch([*(array for *_, array in spans), *state.values()])

    @property
    def ready(self) -> bool:
        """Whether `result` would not wait."""
        return self._fetch.ready

    def result(self) -> tuple[list[Arrays], Arrays]:
        """The arrays of each page, with one page each, and those of the slot, as `read_places` names them."""
        found = self._fetch.result()
        pages: list[dict[str, np.ndarray[Any, Any]]] = [{} for _ in range(self._count)]
        for (name, at), array in zip(self._spans, found, strict=False):
            for i in range(len(array)):
                pages[at + i][name] = array[i : i + 1]
        return list(pages), dict(zip(self._names, found[len(self._spans) :], strict=True))


def write_places(memory: Memory, kv: KVState, pages: Items[int], slot: int | None, arrays: Arrays) -> None:
    """Fill pages and a slot. SessionError, and nothing is written, unless the arrays are those of such a model."""
    expected = {f"kv.{i}": ((len(pages), *layer.data.shape[1:]), layer.data.dtype) for i, layer in enumerate(kv.layers)}
    expected |= {name: (array.shape, array.dtype) for name, array in states(kv, slot).items()}
    for name in sorted(expected.keys() | arrays.keys()):
        got = (arrays[name].shape, arrays[name].dtype) if name in arrays else None
        if got != expected.get(name):
            raise SessionError(f"{name} is {shown(got)}, and {shown(expected.get(name))} in this model: the cache "
                               "belongs to another one")
    for i, layer in enumerate(kv.layers):
        for at, page, count in runs(pages):
            memory.upload(layer.data[page : page + count], arrays[f"kv.{i}"][at : at + count])
    for name, array in states(kv, slot).items():
        memory.upload(array, arrays[name])


def shown(array: tuple[tuple[int, ...], np.dtype[Any]] | None) -> str:
    """Shape and type in a message."""
    return "absent" if array is None else f"{list(array[0])} {array[1].name}"
