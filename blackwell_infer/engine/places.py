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
