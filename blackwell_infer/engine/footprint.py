"""Memory that this process takes on the host."""
from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

STATUS = Path("/proc/self/status")


def resident() -> int:
    """RssAnon + RssShmem in bytes: pages of mapped files belong to the page cache and do not count."""
    fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


class PeakMemory:
    """Most bytes that `resident` grows by while the context is open, looked at every 5 ms."""

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self._peak = max(self._peak, resident())

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        self._peak = max(self._peak, resident())

    @property
    def grown(self) -> int:
        return self._peak - self._start
