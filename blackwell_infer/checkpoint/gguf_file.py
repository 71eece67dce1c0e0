"""One GGUF file: header, metadata and tensor table, every bound checked before anything is allocated.

Layout (GGUF specification, versions 2 and 3, little-endian): "GGUF", u32 version, u64 tensors, u64 pairs; pairs of
key string, u32 type, value; per tensor its name, u32 dimensions, u64 sizes (innermost first), u32 type, u64 offset into
the data section, which begins at the next multiple of general.alignment. A string is a u64 length and UTF-8 bytes.
"""
from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import numpy as np

from blackwell_infer.checkpoint.mapped import map_file, shorten
from blackwell_infer.errors import CheckpointError

DAMAGED = "the file is truncated or corrupt; download or convert it again"

SCALARS: Mapping[int, struct.Struct] = MappingProxyType({
    0: struct.Struct("<B"), 1: struct.Struct("<b"), 2: struct.Struct("<H"), 3: struct.Struct("<h"),
    4: struct.Struct("<I"), 5: struct.Struct("<i"), 6: struct.Struct("<f"), 7: struct.Struct("<?"),
    10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d"),
})
STRING, ARRAY = 8, 9
_U32, _U64 = SCALARS[4], SCALARS[10]

TYPES: Mapping[int, tuple[str, int, int]] = MappingProxyType({
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144), 13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210),
    16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
    24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
    29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36),
})
"""Every tensor type with a known layout: name, elements of a block, bytes of a block. Which of them can be read is
`quant.FORMATS`' business; the rest is here so that sizes can be checked and types named."""


class Field(msgspec.Struct, frozen=True):
    """Where a metadata value lies. `kind` is the value's type, of the elements if `count` is not None (an array)."""

    kind: int
    count: int | None
    offset: int
    end: int


class StoredTensor(msgspec.Struct, frozen=True):
    """A tensor as the file has it: `shape` in NumPy order, `offset` from the start of the file.

    `nbytes` is None if the type is unknown, and then only the offset has been checked.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int
    nbytes: int | None


class Metadata(Mapping[str, Any]):
    """A file's key-value pairs. Values are decoded when first asked for: vocabularies cost nothing until then.

    Numbers, booleans and strings come as Python values, arrays as lists. CheckpointError if a string is not UTF-8.
    """

    def __init__(self, path: Path, data: np.ndarray[Any, Any], fields: Mapping[str, Field]) -> None:
        self._path = path
        self._view = data.data
        self._fields = fields
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            self._decoded[key] = self._decode(key, self._fields[key])
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def _decode(self, key: str, field: Field) -> Any:
        if field.kind == STRING:
            strings = self._strings(key, field)
            return strings if field.count is not None else strings[0]
        if field.count is None:
            return SCALARS[field.kind].unpack_from(self._view, field.offset)[0]
        code = SCALARS[field.kind].format
        values = np.frombuffer(self._view[field.offset:field.end], np.dtype(code))
        return values.tolist()

    def _strings(self, key: str, field: Field) -> list[str]:
        view, at, out = self._view, field.offset, []
        for index in range(1 if field.count is None else field.count):
            start = at + 8
            at = start + _U64.unpack_from(view, at)[0]
            try:
                out.append(str(view[start:at], "utf-8"))
            except UnicodeDecodeError as error:
                raise CheckpointError(
                    f"{self._path}: metadata {shorten(key)}, string {index} at offset {start} is not UTF-8; {DAMAGED}"
                ) from error
        return out


class GGUFFile(msgspec.Struct, frozen=True):
    """An open file: its bytes, its metadata and its tensors by stored name."""

    path: Path
    data: np.ndarray[Any, Any]
    metadata: Metadata
    tensors: Mapping[str, StoredTensor]

    def bytes_of(self, tensor: StoredTensor) -> np.ndarray[Any, Any]:
        """The tensor's bytes, uint8 [nbytes], a view of the mapped file. Only for tensors of a known type."""
        if tensor.nbytes is None:
            raise CheckpointError(f"{self.path}: tensor {shorten(tensor.name)} has {tensor.kind}, of unknown size")
        return self.data[tensor.offset:tensor.offset + tensor.nbytes]


class _Cursor:
    """Reads forward through the header; every read is checked against the end of the file."""

    def __init__(self, path: Path, data: np.ndarray[Any, Any]) -> None:
        self.path = path
        self.view = data.data
        self.at = 0

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {what}")

    @property
    def left(self) -> int:
        return len(self.view) - self.at

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes; returns where they begin."""
        if count > self.left:
            self.fail(f"{what} at offset {self.at} needs {count} bytes, {self.left} are left; {DAMAGED}")
        start, self.at = self.at, self.at + count
        return start

    def number(self, form: struct.Struct, what: str) -> int:
        start = self.skip(form.size, what)
        return int(form.unpack_from(self.view, start)[0])

    def string(self, what: str) -> str:
        length = self.number(_U64, what)
        start = self.skip(length, what)
        try:
            return str(self.view[start:self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what} at offset {start} is not UTF-8; {DAMAGED}") from error

    def skip_strings(self, count: int, what: str) -> None:
        """Step over `count` strings: one look at each length, nothing decoded."""
        view, at, read = self.view, self.at, _U64.unpack_from
        try:
            for _ in range(count):
                at += 8 + read(view, at)[0]
        except (struct.error, OverflowError):
            self.fail(f"{what}: a string at offset {at} lies beyond the end of the file; {DAMAGED}")
        self.skip(at - self.at, what)


def read_gguf(path: Path) -> GGUFFile:
    """Open one GGUF file (of a split model, one part). Reads the header only.

    CheckpointError says what is wrong, at which offset: no GGUF, big-endian, another version, truncated, an offset
    beyond the file, overlapping tensors, names that occur twice.
    """
    data = map_file(path)
    cursor = _Cursor(path, data)
    if bytes(data[:4]) != b"GGUF":
        cursor.fail(f"is no GGUF file (begins with {bytes(data[:4])!r}); give a .gguf file or a Hugging Face folder")
    cursor.skip(4, "the magic number")
    version = cursor.number(_U32, "the version")
    if version not in (2, 3):
        if version and not version & 0xFFFF:
            cursor.fail("is a big-endian GGUF file; convert it to little-endian")
        cursor.fail(f"is GGUF version {version}; versions 2 and 3 are supported, convert the model again")
    tensor_count = cursor.number(_U64, "the tensor count")
    pair_count = cursor.number(_U64, "the metadata count")
    # A pair takes at least 8 + 4 + 1 bytes and a tensor 8 + 4 + 8 + 4 + 8: refuse absurd counts before looping.
    if pair_count * 13 + tensor_count * 32 > cursor.left:
        cursor.fail(f"announces {tensor_count} tensors and {pair_count} metadata pairs in {len(data)} bytes; {DAMAGED}")
    fields: dict[str, Field] = {}
    for _ in range(pair_count):
        key = cursor.string("a metadata key")
        if key in fields:
            cursor.fail(f"metadata {shorten(key)} occurs twice (offset {cursor.at}); {DAMAGED}")
        fields[key] = _field(cursor, key)
    metadata = Metadata(path, data, fields)
    heads = [_tensor(cursor) for _ in range(tensor_count)]
    start = -(-cursor.at // _alignment(cursor, metadata)) * _alignment(cursor, metadata)
    tensors = _place(cursor, heads, start, len(data))
    return GGUFFile(path, data, metadata, MappingProxyType(tensors))


def _field(cursor: _Cursor, key: str) -> Field:
    what = f"metadata {shorten(key)}"
    kind = cursor.number(_U32, what)
    count: int | None = None
    if kind == ARRAY:
        kind = cursor.number(_U32, what)
        count = cursor.number(_U64, what)
    start = cursor.at
    if kind == STRING:
        if count is not None and count * 8 > cursor.left:
            cursor.fail(f"{what} at offset {start} announces {count} strings, more than the file can hold; {DAMAGED}")
        cursor.skip_strings(1 if count is None else count, what)
    elif kind in SCALARS:
        cursor.skip(SCALARS[kind].size * (1 if count is None else count), what)
    else:
        cursor.fail(f"{what} at offset {start} has unknown type {kind}; {DAMAGED}")
    return Field(kind, count, start, cursor.at)


def _alignment(cursor: _Cursor, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or value < 1 or value & (value - 1):
        cursor.fail(f"metadata 'general.alignment' is {value!r}, no power of two; {DAMAGED}")
    return value


def _tensor(cursor: _Cursor) -> StoredTensor:
    """One row of the tensor table; `offset` is still relative to the data section."""
    name = cursor.string("a tensor name")
    what = f"tensor {shorten(name)}"
    count = cursor.number(_U32, what)
    if not 1 <= count <= 4:
        cursor.fail(f"{what} at offset {cursor.at} has {count} dimensions, not 1 to 4; {DAMAGED}")
    sizes = [cursor.number(_U64, what) for _ in range(count)]
    kind = cursor.number(_U32, what)
    offset = cursor.number(_U64, what)
    if math.prod(sizes) >= 1 << 63 or 0 in sizes:
        cursor.fail(f"{what} at offset {cursor.at} has impossible sizes {sizes}; {DAMAGED}")
    name_of_kind, block, block_bytes = TYPES.get(kind, (f"type {kind}", 0, 0))
    nbytes = None
    if block:
        if sizes[0] % block:
            cursor.fail(f"{what} has rows of {sizes[0]}, no multiple of a {name_of_kind} block of {block}; {DAMAGED}")
        nbytes = math.prod(sizes) // block * block_bytes
    return StoredTensor(name, tuple(reversed(sizes)), name_of_kind, offset, nbytes)


def _place(cursor: _Cursor, heads: list[StoredTensor], start: int, size: int) -> dict[str, StoredTensor]:
    """Turn offsets absolute and check that every tensor lies inside the file and over no other."""
    tensors: dict[str, StoredTensor] = {}
    for head in heads:
        what = f"tensor {shorten(head.name)}"
        if head.name in tensors:
            cursor.fail(f"{what} occurs twice; {DAMAGED}")
        offset = start + head.offset
        end = offset + (head.nbytes or 0)
        if end > size:
            cursor.fail(f"{what} lies at offset {offset} to {end}, the file has {size} bytes; {DAMAGED}")
        tensors[head.name] = msgspec.structs.replace(head, offset=offset)
    last = start
    for tensor in sorted(tensors.values(), key=lambda t: t.offset):
        if tensor.offset < last:
            cursor.fail(f"tensor {shorten(tensor.name)} at offset {tensor.offset} overlaps its neighbour; {DAMAGED}")
        last = tensor.offset + (tensor.nbytes or 0)
    return tensors
