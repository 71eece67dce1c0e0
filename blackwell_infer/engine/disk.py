"""The prefix cache on disk: one file per page of tokens, and one per kept recurrent state, in a folder.

A file is named by the digest of the model, of this version and layout, and of every token up to the end of its page: so
a name says all that its content depends on, a file never changes, and processes may share the folder. It is a saved
prefix (`engine.saved`), which is written beside its place, moved there when complete, and checked when it is read; its
note is its name. What is not as it should be is removed, and its tokens are read by the model as if it had not been
there. The files that were of use least recently go first.

The stepping thread only copies pages and asks whether a file is there; one thread of this module's reads and writes.
"""
from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path

import numpy as np

from blackwell_infer import __version__
from blackwell_infer.engine import saved
from blackwell_infer.engine.runner import Runner
from blackwell_infer.engine.saved import SavedPrefix
from blackwell_infer.engine.scheduler import Limits, State
from blackwell_infer.errors import RequestError
from blackwell_infer.kv.prefix import Key, paged
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.log import logger

QUEUED = 256 << 20
"""Bytes of copies that may wait to be written; what comes then is dropped"""
LEAVING = 64
"""Texts of which pages may wait to be copied; the oldest is dropped"""
BESIDE, ALONE = 4, 32
"""Pages copied at once beside a step, and when nothing runs"""
RESCAN = 16
"""Writes after which the folder is measured again: other processes write there too"""
STALE = 60.0
"""Seconds after which an incomplete file is taken to be left over by a process that was killed"""
PAGES, STATES, PART = ".page", ".state", ".part"

Arrived = Callable[[SavedPrefix | None], None]


def names(model: str, keys: Items[Key]) -> Iterator[str]:
    """The name of the end of each page, without the suffix."""
    last = hashlib.blake2b(f"{model}\n{__version__} {saved.VERSION} {PAGE}".encode(), digest_size=20).digest()
    for key in keys:
        last = hashlib.blake2b(last + np.asarray(key, np.int32).tobytes(), digest_size=20).digest()
        yield last.hex()


class Disk:
    """The files in `folder`, of at most `limit` bytes, of the model with this identity (and device).

    `left`, `copy`, `lacks` and `fetch` are for the stepping thread and do not wait for the disk.
    """

    def __init__(self, folder: Path, limit: int, model: str) -> None:
        self.folder = folder
        self.limit = limit
        self.model = model
        self.written = self.dropped = self.read = 0
        """pages and states written, and dropped because the disk was too slow or failed; pages read back"""
        self.nbytes = 0
        """bytes of all files, as far as known"""
        self._leaving: deque[tuple[tuple[Key, ...], tuple[str, ...], int, int]] = deque(maxlen=LEAVING)
        """(keys, their names, pages that were looked at, time in ns)"""
        self._wake = threading.Condition()
        self._reads: deque[Callable[[], None]] = deque()
        self._writes: deque[tuple[str, SavedPrefix, int]] = deque()
        self._queued: set[str] = set()
        self._waiting = 0
        self._closed = self._warned = False
        self._thread = threading.Thread(target=self._run, name="blackwell_infer disk", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> bool:
        """Whether there is something to copy."""
        return bool(self._leaving)

    def left(self, keys: tuple[Key, ...]) -> None:
        """A text ended whose pages may be worth keeping."""
        if keys:
            self._leaving.append((keys, tuple(names(self.model, keys)), 0, time.time_ns()))

    def copy(self, state: State, limits: Limits, runner: Runner, most: int) -> None:
        """Copy up to `most` pages of texts that ended, as far as the cache still has them and no file has."""
        try:
            self._copy(state, limits, runner, most)
        except Exception as error:  # whatever a backend raises: what runs is not to suffer
            self.dropped += 1
            self._warn(error)

    def flush(self, state: State, limits: Limits, runner: Runner) -> None:
        """Copy all that there is to copy, have it written, and end the thread."""
        while self._leaving:
            self.copy(state, limits, runner, ALONE)
        self.close()

    def _copy(self, state: State, limits: Limits, runner: Runner, most: int) -> None:
        while self._leaving and most > 0:
            keys, ends, at, stamp = self._leaving.popleft()
            held = state.prefix.match(keys)
            to = min(at + most, len(held))
            most -= max(to - at, 1)
            new = [i for i in range(at, to) if self._lacks(ends[i] + PAGES, stamp - i)]
            arrays = runner.read_cache([held[i] for i in new], None) if new else {}
            for row, i in enumerate(new):
                page = {name: array[row : row + 1].copy() for name, array in arrays.items()}
                self._put(ends[i] + PAGES, SavedPrefix(keys[i], page), stamp - i)
            for i in range(at, to):
                if limits.stride > 1 and held[i] in state.prefix.states and self._lacks(ends[i] + STATES, stamp - i):
                    found = runner.read_cache((), state.prefix.states[held[i]].slot)
                    only = {name: array for name, array in found.items() if not name.startswith("kv.")}
                    self._put(ends[i] + STATES, SavedPrefix(keys[i], only), stamp - i)
            if to < len(held):
                self._leaving.appendleft((keys, ends, to, stamp))

    def fetch(self, state: State, limits: Limits, keys: tuple[Key, ...], arrived: Arrived) -> bool:
        """Begin to read what the cache lacks of these pages: `arrived` gets it on another thread, or None. False, and
        nothing is to come, if there is no file that would help."""
        held = state.prefix.match(keys)
        have = state.prefix.resumable(held) if limits.stride > 1 else len(held)
        ends, end, stamp = tuple(names(self.model, keys)), 0, time.time_ns()
        for i, name in enumerate(ends):
            if i >= len(held) and self._missing(name + PAGES, stamp - i):
                break
            if i >= have and (limits.stride == 1 or not self._missing(name + STATES, stamp - i)):
                end = i + 1
        if end <= have:
            return False
        with self._wake:
            self._reads.append(lambda: arrived(self._gather(keys[:end], ends[:end], min(len(held), end),
                                                            limits.stride > 1)))
            self._wake.notify()
        return True

    def remove(self, prefix: SavedPrefix) -> None:
        """Files that were none of this model's after all."""
        for name in names(self.model, paged(prefix.tokens, PAGE)):
            self._unlink(name + PAGES)
            self._unlink(name + STATES)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _missing(self, name: str, stamp: int) -> bool:
        """Whether there is no such file; one that is there was of use now. Earlier pages are used later than later
        ones, which are worth nothing without them."""
        try:
            os.utime(self.folder / name, ns=(stamp, stamp))
        except OSError:
            return True
        return False

    def _lacks(self, name: str, stamp: int) -> bool:
        return name not in self._queued and self._missing(name, stamp)

    def _put(self, name: str, prefix: SavedPrefix, stamp: int) -> None:
        size = sum(array.nbytes for array in prefix.arrays.values())
        with self._wake:
            if self._waiting + size > QUEUED:
                self.dropped += 1
                return
            self._waiting += size
            self._queued.add(name)
            self._writes.append((name, prefix, stamp))
            self._wake.notify()

    def _run(self) -> None:
        self._trim(0)
        count = 0
        while True:
            with self._wake:
                while not self._reads and not self._writes and not self._closed:
                    self._wake.wait()
                if not self._reads and not self._writes:
                    return
                read = self._reads.popleft() if self._reads else None
                item = None if read is not None else self._writes.popleft()
            if read is not None:
                read()
            if item is not None:
                count += 1
                self._write(*item, measure=count % RESCAN == 0)

    def _write(self, name: str, prefix: SavedPrefix, stamp: int, measure: bool) -> None:
        size = sum(array.nbytes for array in prefix.arrays.values())
        room = size + 65536  # with the header
        path = self.folder / name
        try:
            if room > self.limit:
                raise RequestError(f"{path}: a page takes {room} bytes, more than prefix_disk_bytes")
            self.folder.mkdir(parents=True, exist_ok=True)
            if measure or self.nbytes + room > self.limit:
                self._trim(room)
            saved.write(path, prefix, self.model, name)
            os.utime(path, ns=(stamp, stamp))
            self.nbytes += path.stat().st_size
            self.written += 1
        except Exception as error:  # whatever fails here, the thread goes on
            self.dropped += 1
            self._warn(error)
        with self._wake:
            self._waiting -= size
            self._queued.discard(name)

    def _warn(self, error: Exception) -> None:
        """Once: what cannot be written now mostly cannot be written later."""
        if not self._warned:
            self._warned = True
            logger.warning("the prefix cache on disk cannot be written, and serving goes on without: %s", error)

    def _trim(self, room: int) -> None:
        """Measure the folder and make room, of what was of use least recently. Other files than these are left."""
        found: list[tuple[int, int, str]] = []
        try:
            with os.scandir(self.folder) as entries:
                for entry in entries:
                    if entry.name.endswith((PAGES, STATES, PART)):
                        about = entry.stat(follow_symlinks=False)
                        found.append((about.st_mtime_ns, about.st_size, entry.name))
        except OSError:  # gone, or going
            self.nbytes = sum(size for _, size, _ in found)
            return
        total = sum(size for _, size, _ in found)
        for used, size, name in sorted(found):
            stale = name.endswith(PART) and used < time.time_ns() - STALE * 1e9
            if stale or (total + room > self.limit and not name.endswith(PART)):
                self._unlink(name)
                total -= size
        self.nbytes = total

    def _gather(self, keys: tuple[Key, ...], ends: tuple[str, ...], first: int, state: bool) -> SavedPrefix | None:
        """Pages from `first` on, with the state after the last one; None if a file is gone or damaged: the next request
        finds less."""
        parts: list[SavedPrefix] = []
        wanted = [ends[i] + PAGES for i in range(first, len(keys))] + [ends[-1] + STATES] * state
        for i, name in enumerate(wanted):
            key = keys[min(first + i, len(keys) - 1)]
            path = self.folder / name
            try:
                found = saved.read(path, self.model)
                if saved.note_of(path) != name or found.tokens != key:
                    raise RequestError(f"{path}: is a copy of another file")
            except Exception as error:  # somebody waits for an answer, whatever the file holds
                logger.info("ignored: %s", error)
                self._unlink(name)
                return None
            parts.append(found)
        rest = parts.pop().arrays if state else {}
        try:
            pages = {name: np.concatenate([part.arrays[name] for part in parts])
                     for name in (parts[0].arrays if parts else ())}
        except (KeyError, ValueError, MemoryError) as error:
            logger.info("ignored: %s", error)
            return None
        self.read += len(parts)
        return SavedPrefix(tuple(t for key in keys for t in key), {**pages, **rest}, first)

    def _unlink(self, name: str) -> None:
        try:
            (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            logger.info("%s", error)
