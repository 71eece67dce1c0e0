"""One safetensors file: u64 header length, JSON header, data without holes. Parsed here so that weights are views;
`safetensors_header` is for files that are written.

Layout: the safetensors format description. The header maps names to {dtype, shape, data_offsets: [begin, end]} with
offsets from the end of the header; "__metadata__" holds strings.
"""
from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import numpy as np

from blackwell_infer.checkpoint.mapped import map_file, shorten
from blackwell_infer.errors import CheckpointError

DAMAGED = "the file is truncated or corrupt; download or convert it again"
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the reference implementation."""

BITS: Mapping[str, int] = MappingProxyType({
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
})
"""Bits per element of every dtype that the format knows."""

FIELDS = frozenset(("dtype", "shape", "data_offsets"))
"""What a header says of each tensor."""


class StoredTensor(msgspec.Struct, frozen=True, gc=False):
    """A tensor as the file has it; `begin` and `end` are offsets from the start of the file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int


class SafetensorsFile(msgspec.Struct, frozen=True):
    """An open file: its bytes and its tensors."""

    path: Path
    data: np.ndarray[Any, Any]
    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = MappingProxyType({})

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray[Any, Any]:
        """The tensor's bytes, uint8 [nbytes], a view of the mapped file."""
        return self.data[tensor.begin:tensor.end]


def read_safetensors(path: Path, remedy: str = DAMAGED) -> SafetensorsFile:
    """Open one file; reads the header only. `remedy` ends the message of an error.

    CheckpointError: truncated, no JSON, a name twice, an unknown dtype, a size that does not fit shape and dtype, an
    overlap, a hole, bytes left over.
    """
    data = map_file(path)

    def fail(what: str) -> NoReturn:
        raise CheckpointError(f"{path}: {what}; {remedy}")

    if len(data) < 8:
        fail(f"has {len(data)} bytes, too few for a safetensors file")
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > LARGEST_HEADER:
        fail(f"announces a header of {length} bytes, more than the {LARGEST_HEADER} allowed")
    if length > len(data) - 8:
        fail(f"announces a header of {length} bytes, but has {len(data)} in all")
    header = _header(data[8:8 + length].tobytes(), fail)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        fail("__metadata__ is no object of strings")
    tensors = {name: _tensor(name, entry, 8 + length, fail) for name, entry in header.items()}
    at = 8 + length
    for tensor in sorted(tensors.values(), key=lambda t: (t.begin, t.end)):
        if tensor.end > len(data) or tensor.begin != at:
            what = f"tensor {shorten(tensor.name)} at offset {tensor.begin}"
            if tensor.end > len(data):
                fail(f"{what} ends at {tensor.end}, the file has {len(data)} bytes")
            fail(f"{what} {'overlaps its neighbour' if tensor.begin < at else f'leaves a hole after {at}'}")
        at = tensor.end
    if at != len(data):
        fail(f"has {len(data) - at} bytes after the last tensor (offset {at})")
    return SafetensorsFile(path, data, MappingProxyType(tensors), MappingProxyType(metadata))


def safetensors_header(arrays: Mapping[str, tuple[str, np.ndarray[Any, Any]]], metadata: Mapping[str, str]) -> bytes:
    """What precedes the bytes of `arrays`, which follow in order; each comes with its dtype's name in `BITS`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, array) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _header(raw: bytes, fail: Callable[[str], NoReturn]) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            name = Counter(name for name, _ in pairs).most_common(1)[0][0]
            fail(f"the header names {shorten(name)} twice")
        return out

    def constant(text: str) -> NoReturn:
        fail(f"the header holds {text} where a size was expected")

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        fail(f"the header (offset 8) is no valid JSON ({str(error)[:80]})")
    if not isinstance(header, dict):
        fail("the header (offset 8) is no JSON object")
    return header


def sizes(numbers: Any) -> bool:
    """Whether this is a list of whole numbers that files may have."""
    if not isinstance(numbers, list):
        return False
    for n in numbers:  # noqa: SIM110 (a generator takes three times as long, and there may be 100 000 tensors)
        if type(n) is not int or not 0 <= n < 1 << 63:
            return False
    return True


def _tensor(name: str, entry: Any, base: int, fail: Callable[[str], NoReturn]) -> StoredTensor:
    def wrong(what: str) -> NoReturn:
        fail(f"tensor {shorten(name)}{what}")

    if not isinstance(entry, dict) or entry.keys() != FIELDS:
        wrong(": expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        wrong(f" has unknown dtype {shorten(str(dtype))}")
    if not (sizes(shape) and sizes(offsets)):
        wrong(": shape and data_offsets must be lists of whole numbers")
    if len(offsets) != 2 or len(shape) > 64:
        wrong(f": has {len(offsets)} offsets and {len(shape)} dimensions")
    bits = math.prod(shape) * BITS[dtype]
    if offsets[1] - offsets[0] != -(-bits // 8) or bits % 8:
        size = offsets[1] - offsets[0]
        wrong(f" at offset {base + offsets[0]}: {shorten(str(shape))} {dtype} does not take {size} bytes")
    return StoredTensor(name, tuple(shape), dtype, base + offsets[0], base + offsets[1])
