"""A cached prefix at rest: its tokens, pages and recurrent state in one safetensors file, with a note of the caller's.

The file's `__metadata__` says which format and version it is, which model it belongs to, and the digests (BLAKE2b) of
the note and of everything behind the header. It is written beside its place and moved there when it is complete.
"""
from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer import __version__
from blackwell_infer.checkpoint.safetensors_file import SafetensorsFile, read_safetensors, safetensors_header
from blackwell_infer.engine.places import Arrays
from blackwell_infer.engine.runner import Runner
from blackwell_infer.engine.scheduler import Limits, State, mask
from blackwell_infer.errors import CheckpointError, RequestError, SessionError
from blackwell_infer.kv.prefix import paged
from blackwell_infer.kv.spec import PAGE

FORMAT = "blackwell_infer.prefix"
VERSION = "1"
DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType({
    "F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype(np.int32)})
NAMES = {dtype: name for name, dtype in DTYPES.items()}
DAMAGED = "the file is damaged"
OFF = "prefix_cache is off, so there is no cache to save or to load into; switch it on"


class SavedPrefix(msgspec.Struct, frozen=True):
    """Whole pages of `tokens` and what the caches hold of them (`engine.places`), from page `first` on."""

    tokens: tuple[int, ...]
    arrays: Arrays
    first: int = 0


def take(state: State, limits: Limits, runner: Runner, tokens: tuple[int, ...]) -> SavedPrefix:
    """Copies of what the prefix cache holds of `tokens`, up to where one could go on. RequestError: it is off."""
    if not limits.reuse:
        raise RequestError(OFF)
    pages = state.prefix.match(paged(tokens, PAGE))
    kept = None
    if limits.stride > 1:
        pages = pages[: state.prefix.resumable(pages)]
        kept = state.prefix.states[pages[-1]].slot if pages else None
    return SavedPrefix(tokens[: len(pages) * PAGE], runner.read_cache(pages, kept) if pages else {})


def bring(state: State, limits: Limits, runner: Runner, saved: SavedPrefix) -> State:
    """The state with a prefix in its cache. SessionError: it is none of this model's; RequestError: the cache is off,
    or what runs leaves no room."""
    if not limits.reuse:
        raise RequestError(OFF)
    keys = paged(saved.tokens, PAGE)
    if not keys:
        return state
    there = state.prefix.match(keys)
    if len(there) < saved.first:
        raise RequestError(f"the {saved.first} pages before those that were saved are not in the cache any more")
    prefix = state.prefix.acquire(keys[: len(there)])
    lacking = len(keys) - len(there) - state.free.bit_count()
    if lacking > prefix.idle:
        raise RequestError(f"the saved cache needs {len(keys) - len(there)} pages and "
                           f"{state.free.bit_count() + prefix.idle} are not in use; wait, or raise kv_pages")
    free = state.free
    if lacking > 0:
        prefix, evicted = prefix.evict(lacking)
        free |= mask(evicted)
    new = [page for page in range(limits.pages) if free >> page & 1][: len(keys) - len(there)]
    slot = None
    if limits.stride > 1:
        prefix, slot = prefix.take_slot({s.state for s in state.running})
        if slot is None:
            raise RequestError("no slot for a recurrent state is free; wait, or raise max_batch")
    runner.write_cache(new, slot, {name: array[len(there) - saved.first :] if name.startswith("kv.") else array
                                   for name, array in saved.arrays.items()})
    prefix = prefix.extend(keys, len(there), (*there, *new))
    if slot is not None:
        prefix = prefix.keep(keys, slot)
    return msgspec.structs.replace(state, free=free & ~mask(new), prefix=prefix.release(keys))


def write(path: Path, saved: SavedPrefix, model: str, note: str) -> None:
    """Write a file. RequestError if that fails; what was there before then stays."""
    arrays = {"tokens": np.asarray(saved.tokens, np.int32)} | {
        name: np.ascontiguousarray(array) for name, array in saved.arrays.items()}
    data = hashlib.blake2b(digest_size=32)
    for array in arrays.values():
        data.update(flat(array))
    header = safetensors_header({name: (NAMES[array.dtype], array) for name, array in arrays.items()}, {
        "format": FORMAT, "version": VERSION, "package": __version__, "model": model, "note": note,
        "note_digest": digest(note), "data_digest": data.hexdigest()})
    beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")  # other processes may write the same
    try:
        with beside.open("wb") as file:
            file.write(header)
            for array in arrays.values():
                file.write(flat(array))
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise RequestError(f"{path}: cannot be written: {error.strerror}") from None


def flat(array: np.ndarray[Any, Any]) -> Any:
    """The bytes of an array, as a buffer."""
    return array.reshape(-1).view(np.uint8)


def digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()


def opened(path: Path) -> SafetensorsFile:
    """A file that `write` made, as far as its header tells. SessionError says what else it is."""
    try:
        file = read_safetensors(path, DAMAGED)
    except CheckpointError as error:
        raise SessionError(str(error)) from None
    about = file.metadata
    if about.get("format") != FORMAT:
        raise SessionError(f"{path}: is a safetensors file, but not a saved session")
    if about.get("version") != VERSION:
        raise SessionError(f"{path}: has version {about.get('version', '(none)')[:20]} of the format of sessions, "
                           f"written by package version {about.get('package', '(unknown)')[:20]}; this package, "
                           f"{__version__}, reads version {VERSION}")
    return file


def note_of(path: Path) -> str:
    """The note of a file, which is read whatever has become of the rest. SessionError if it is damaged itself."""
    about = opened(path).metadata
    note = about.get("note", "")
    if about.get("note_digest") != digest(note):
        raise SessionError(f"{path}: its note does not match its digest; {DAMAGED}")
    return note


def read(path: Path, model: str) -> SavedPrefix:
    """A prefix of the model with this identity. SessionError: another model's, or damaged."""
    file = opened(path)
    if file.metadata.get("model") != model:
        raise SessionError(f"{path}: was saved with another model, or with another dtype, state_dtype, activations or "
                           "reproducible setting")
    data = hashlib.blake2b(digest_size=32)
    start = min((t.begin for t in file.tensors.values()), default=len(file.data))
    data.update(flat(file.data[start:]))
    if file.metadata.get("data_digest") != data.hexdigest():
        raise SessionError(f"{path}: its data does not match its digest; {DAMAGED}")
    arrays = {}
    for name, tensor in file.tensors.items():
        if tensor.dtype not in DTYPES:
            raise SessionError(f"{path}: {name[:40]} has type {tensor.dtype}; {DAMAGED}")
        arrays[name] = file.bytes_of(tensor).view(DTYPES[tensor.dtype]).reshape(tensor.shape)
    tokens = arrays.pop("tokens", None)
    if tokens is None or tokens.ndim != 1 or tokens.dtype != np.int32 or len(tokens) % PAGE:
        raise SessionError(f"{path}: holds no tokens of whole pages; {DAMAGED}")
    return SavedPrefix(tuple(tokens.tolist()), arrays)
