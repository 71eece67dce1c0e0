"""The prefix cache on disk: one file per page of tokens, and one per kept recurrent state, in a folder.

A file is named by the digest of the model, of this version and layout, and of every token up to the end of its page: so
a name says all that its content depends on, a file never changes, and processes may share the folder. It is a saved
prefix (`engine.saved`), which is written beside its place, moved there when complete, and checked when it is read; its
note is its name. What is not as it should be is removed, and its tokens are read by the model as if it had not been
there. The files that were of use least recently go first.

Copies cost memory bandwidth, and disks are slower than memory, so what is written is chosen. While something runs, only
pages that another answer found in the memory are: they were of use once and are likely to be so again. What nobody came
back for is written when nothing runs, as long as the memory still has it, and when the engine ends in order. So prompts
that never repeat cost nothing, and `kill -9` loses what was used once since the engine last had nothing to do.

The stepping thread only begins copies, beside the step under way, takes them once they are there, and asks whether a
file is; one thread of this module's reads and writes.
"""
from __future__ import annotations

import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path

import msgspec
import numpy as np

from blackwell_infer import __version__
from blackwell_infer.engine import saved
from blackwell_infer.engine.places import Copies
from blackwell_infer.engine.runner import Runner
from blackwell_infer.engine.saved import SavedPrefix
from blackwell_infer.engine.scheduler import Limits, Sequence, State
from blackwell_infer.errors import RequestError
from blackwell_infer.kv.prefix import Key, paged
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.log import logger

QUEUED = 256 << 20
"""Bytes of copies that wait to be written, from which on no more are begun"""
TEXTS = 64
"""Texts of which pages may wait to be copied; the oldest is forgotten"""
BESIDE, ALONE = 4, 16
"""Pages copied at once beside a step, and when nothing runs"""
LOOKED = 64
"""Pages at which a step looks at most"""
PAUSE = 0.005
"""Seconds to wait for the disk when nothing runs"""
FLUSH = 30.0
"""Seconds in which an engine that ends copies what it can"""
RESCAN = 16
"""Writes after which the folder is measured again: other processes write there too"""
STALE = 60.0
"""Seconds after which an incomplete file is taken to be left over by a process that was killed"""
PAGES, STATES, PART = ".page", ".state", ".part"

Arrived = Callable[[SavedPrefix | None], None]


def names(model: str, keys: Items[Key], after: str = "") -> Iterator[str]:
    """The name of the end of each page, without the suffix; these pages follow the one of which `after` is the name."""
    start = f"{model}\n{__version__} {saved.VERSION} {PAGE}".encode()
    last = bytes.fromhex(after) if after else hashlib.blake2b(start, digest_size=20).digest()
    for key in keys:
        last = hashlib.blake2b(last + np.asarray(key, np.int32).tobytes(), digest_size=20).digest()
        yield last.hex()


class Text(msgspec.Struct, frozen=True):
    """Pages that may be worth a file: when they were of use (ns) and, once they were looked at, the names of their
    ends, and at how many that was."""

    keys: tuple[Key, ...]
    stamp: int
    ends: tuple[str, ...] = ()
    at: int = 0


class Copying(msgspec.Struct, frozen=True):
    """Copies under way, of these pages of a text and of the state after one of them."""

    keys: tuple[Key, ...]
    ends: tuple[str, ...]
    pages: tuple[int, ...]
    state: int | None
    stamp: int
    copies: Copies


class Disk:
    """The files in `folder`, of at most `limit` bytes, of the model with this identity (and device).

    `hit`, `left`, `copy`, and `fetch` are for the stepping thread.
    """

    def __init__(self, folder: Path, limit: int, model: str) -> None:
        self.folder = folder
        self.limit = limit
        self.model = model
        self.written = self.dropped = self.read = 0
        """pages and states written, and dropped because the disk was too slow or failed; pages read back"""
        self.nbytes = 0
        """bytes of all files, as far as known"""
        self._wanted: deque[Text] = deque()
        self._ended: deque[Text] = deque(maxlen=TEXTS)
        self._copying: Copying | None = None
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
        """Whether there is something to copy, now or once nothing runs."""
        return bool(self._wanted or self._ended or self._copying)

    def hit(self, begun: Iterable[Sequence]) -> None:
        """These sequences begin, some of them with pages that another one left in the memory: those are wanted. One
        that was preempted comes back to its own."""
        for s in begun:
            if s.keys and not s.answer:
                if len(self._wanted) == TEXTS:
                    self.dropped += len(self._wanted.popleft().keys)
                self._wanted.append(Text(s.keys, time.time_ns()))

    def left(self, keys: tuple[Key, ...]) -> None:
        """A text ended whose pages may be worth keeping."""
        if keys:
            self._ended.append(Text(keys, time.time_ns()))

    def copy(self, state: State, limits: Limits, runner: Runner, busy: bool) -> None:
        """Take copies that are there, and begin others: of pages that are wanted and that no file has; if nothing runs,
        of texts that ended, too. Waits only then, and not for long."""
        try:
            if self._copying is not None and busy and not self._copying.copies.ready:
                return
            self._take()
            texts = self._wanted if self._wanted or busy else self._ended
            if self._waiting >= QUEUED:
                self._rest(busy)
            elif texts:
                self._begin(state, limits, runner, texts, BESIDE if busy else ALONE)
            if not busy:
                self._take()
        except Exception as error:  # whatever a backend raises: what runs is not to suffer
            self.dropped += 1
            self._warn(error)

    def flush(self, state: State, limits: Limits, runner: Runner) -> None:
        """Copy all that there is to copy, have it written, and end the thread."""
        end = time.monotonic() + FLUSH
        while self.pending and time.monotonic() < end:
            self.copy(state, limits, runner, busy=False)
        self.close()

    def _rest(self, busy: bool) -> None:
        """Let the disk catch up, if there is nothing else to do."""
        with self._wake:
            if not busy and self._waiting >= QUEUED:
                self._wake.wait(PAUSE)

    def _begin(self, state: State, limits: Limits, runner: Runner, texts: deque[Text], most: int) -> None:
        """Begin to copy the next pages of the first text, up to `most` or up to the first state that is kept."""
        text = texts.popleft()
        held = state.prefix.match(text.keys)
        last = min(len(held), text.at + LOOKED)
        ends = text.ends + tuple(names(self.model, text.keys[len(text.ends) : last], "".join(text.ends[-1:])))
        new, slot, at = list[int](), None, text.at
        while at < last and len(new) < most and slot is None:
            if self._lacks(ends[at] + PAGES, text.stamp - at):
                new.append(at)
            if limits.stride > 1 and held[at] in state.prefix.states and self._lacks(ends[at] + STATES,
                                                                                     text.stamp - at):
                slot = state.prefix.states[held[at]].slot
            at += 1
        if new or slot is not None:
            copies = runner.copy_cache([held[i] for i in new], slot)
            self._copying = Copying(text.keys, ends, tuple(new), None if slot is None else at - 1, text.stamp, copies)
        if at < len(held):
            texts.appendleft(Text(text.keys, text.stamp, ends, at))

    def _take(self) -> None:
        """Have the copies written that were begun, waiting for them."""
        done, self._copying = self._copying, None
        if done is None:
            return
        pages, state = done.copies.result()
        for i, page in zip(done.pages, pages, strict=True):
            self._put(done.ends[i] + PAGES, SavedPrefix(done.keys[i], page), done.stamp - i)
        if done.state is not None:
            name = done.ends[done.state] + STATES
            self._put(name, SavedPrefix(done.keys[done.state], state), done.stamp - done.state)

    def fetch(self, state: State, limits: Limits, keys: tuple[Key, ...], arrived: Arrived) -> bool:
        """Begin to read what the cache lacks of these pages: `arrived` gets it on another thread, or None. False, and
        nothing is to come, if there is no file that would help."""
        held = state.prefix.match(keys)
        have = state.prefix.resumable(held) if limits.stride > 1 else len(held)
        if have == len(keys):
            return False
        ends, end, stamp = list[str](), 0, time.time_ns()
        for i, name in enumerate(names(self.model, keys)):
            ends.append(name)
            if i >= len(held) and self._missing(name + PAGES, stamp - i):
                break
            if i >= have and (limits.stride == 1 or not self._missing(name + STATES, stamp - i)):
                end = i + 1
        if end <= have:
            return False
        with self._wake:
            self._reads.append(lambda: arrived(self._gather(keys[:end], tuple(ends[:end]), min(len(held), end),
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
            self._wake.notify_all()

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
