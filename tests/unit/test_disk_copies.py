"""When the prefix cache on disk copies what: beside a step what was hit, the rest once nothing runs; never waiting."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import LIMITS

from blackwell_infer.config import EngineConfig
from blackwell_infer.engine import disk as module
from blackwell_infer.engine.disk import ALONE, BESIDE, Disk, names
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.load import Loaded, load
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.scheduler import Sequence as Answer
from blackwell_infer.engine.scheduler import State
from blackwell_infer.engine.stream import Stream
from blackwell_infer.engine.tokens import TokenLog
from blackwell_infer.kv.prefix import Key, Prefix, paged
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.log import silent
from blackwell_infer.types import Sampling

DATA = Path(__file__).resolve().parents[1] / "data"
KEYS = paged(range(40 * PAGE), PAGE)


class Copies:
    """Copies that are there when the test says so."""

    def __init__(self, pages: Sequence[int], state: int | None) -> None:
        self.pages, self.state, self.ready, self.waited = list(pages), state, False, False

    def result(self) -> Any:
        self.waited = not self.ready
        one = np.zeros((1, 2), np.float32)
        return [{"kv.0": one} for _ in self.pages], {} if self.state is None else {"state.0": one}


class Runner:
    def __init__(self) -> None:
        self.begun: list[Copies] = []

    def copy_cache(self, pages: Sequence[int], state: int | None) -> Copies:
        self.begun.append(Copies(pages, state))
        return self.begun[-1]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path / "cache", 1 << 30, "a model")
    yield made
    made.close()


def holding(keys: Sequence[Key]) -> State:
    """A cache that holds these pages."""
    return State(free=0, prefix=Prefix().insert(keys, range(100, 100 + len(keys))))


def hit(disk: Disk, keys: Sequence[Key], **more: Any) -> None:
    disk.hit([Answer(id=1, prompt=(1,), limit=9, keys=tuple(keys), **more)])


def written(disk: Disk, count: int) -> set[str]:
    """The files, once there are so many."""
    end = time.monotonic() + 20
    while disk.written < count and time.monotonic() < end:
        time.sleep(0.01)
    return {path.name for path in disk.folder.glob("*")}


def test_while_something_runs_only_what_was_hit_is_copied_and_never_waited_for(disk: Disk) -> None:
    runner, state = Runner(), holding(KEYS)
    disk.left(KEYS)
    for _ in range(5):
        disk.copy(state, LIMITS, runner, busy=True)
    assert not runner.begun and disk.pending
    hit(disk, KEYS[:6])
    for _ in range(5):
        disk.copy(state, LIMITS, runner, busy=True)
    assert [c.pages for c in runner.begun] == [list(range(100, 100 + BESIDE))], "one copy at a time"
    runner.begun[0].ready = True
    disk.copy(state, LIMITS, runner, busy=True)
    assert [c.pages for c in runner.begun][1:] == [[104, 105]]
    runner.begun[1].ready = True
    disk.copy(state, LIMITS, runner, busy=True)
    assert written(disk, 6) == {name + ".page" for name in list(names("a model", KEYS))[:6]}
    assert not any(c.waited for c in runner.begun) and len(runner.begun) == 2


def test_when_nothing_runs_the_rest_is_copied(disk: Disk) -> None:
    runner, state = Runner(), holding(KEYS[:35])
    disk.left(KEYS)
    while disk.pending:
        disk.copy(state, LIMITS, runner, busy=False)
    assert [len(c.pages) for c in runner.begun] == [ALONE, ALONE, 3]
    assert len(written(disk, 35)) == 35
    disk.left(KEYS)
    while disk.pending:
        disk.copy(state, LIMITS, runner, busy=False)
    assert len(runner.begun) == 3, "files that are there are not written again"


def test_an_answer_that_was_preempted_is_no_hit(disk: Disk) -> None:
    hit(disk, KEYS[:3], answer=TokenLog().append(5))
    hit(disk, ())
    assert not disk.pending
    hit(disk, KEYS[:3])
    assert disk.pending


def test_a_slow_disk_is_not_filled_further_and_nothing_is_lost(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUEUED", 1)
    monkeypatch.setattr(disk, "_waiting", 1)
    runner, state = Runner(), holding(KEYS[:9])
    hit(disk, KEYS[:3])
    disk.left(KEYS[:9])
    for busy in (True, False):
        disk.copy(state, LIMITS, runner, busy)
    assert not runner.begun and disk.pending and not disk.dropped
    monkeypatch.setattr(disk, "_waiting", 0)
    disk.flush(state, LIMITS, runner)
    assert len(written(disk, 9)) == 9 and not disk.dropped


def test_an_end_does_not_wait_for_ever(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FLUSH", 0.05)
    monkeypatch.setattr(disk, "_waiting", module.QUEUED)
    disk.left(KEYS)
    disk.flush(holding(KEYS), LIMITS, Runner())
    assert disk.written == 0


def test_copies_that_fail_are_told_once_and_others_go_on(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Runner):
        def copy_cache(self, pages: Sequence[int], state: int | None) -> Copies:
            raise MemoryError("none left")

    for _ in range(2):
        hit(disk, KEYS[:3])
        disk.copy(holding(KEYS), LIMITS, Broken(), busy=True)
    assert sum("none left" in r.message for r in caplog.records) == 1 and disk.dropped == 2 and not disk.pending
    hit(disk, KEYS[:3])
    disk.copy(holding(KEYS), LIMITS, Runner(), busy=False)
    assert len(written(disk, 3)) == 3


def test_too_many_hits_forget_the_oldest(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TEXTS", 2)
    for count in (4, 2, 3):
        hit(disk, KEYS[:count])
    runner = Runner()
    for _ in range(9):
        disk.copy(holding(KEYS), LIMITS, runner, busy=False)
    assert disk.dropped == 4 and len(written(disk, 3)) == 3


class Steps:
    """An engine that the test steps, and its folder."""

    def __init__(self, name: str, folder: Path) -> None:
        self.found: Loaded = load(str(DATA / name), EngineConfig(
            device="numpy", dtype="float32", max_context=256, max_batch=4, max_step_tokens=64, prefix_disk=str(folder)),
            silent)
        self.engine: Engine = self.found.engine()
        self.folder = folder

    def ask(self, first: int, length: int, count: int) -> Stream:
        tokens = [3 + (first + i * 7) % 240 for i in range(length)]
        return Stream(self.engine, make_request(self.found.text, self.found.info.vocab, tokens, Sampling(
            temperature=0, max_tokens=count, ignore_eos=True), {}))

    def until_over(self, stream: Stream) -> None:
        finished = self.engine.stats().finished
        while self.engine.stats().finished == finished:
            assert self.engine.step()
        list(stream)

    def files(self, kind: str = "page") -> int:
        return len([*self.folder.glob(f"*.{kind}")])


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_an_engine_with_work_writes_what_came_back_and_later_the_rest(name: str, tmp_path: Path) -> None:
    steps = Steps(name, tmp_path / "cache")
    engine = steps.engine
    running = steps.ask(200, 8, 240)
    for first in (1, 90):
        steps.until_over(steps.ask(first, 150, 1))
    for _ in range(5):
        engine.step()
    assert engine.stats().running == 1 and steps.files() == engine.stats().disk_written == 0
    steps.until_over(steps.ask(1, 150, 1))
    for _ in range(200):
        engine.step()
        if engine.stats().disk_written >= 4 + (name == "qwen3_5"):
            break
        time.sleep(0.01)
    assert engine.stats().running == 1, "the other answer goes on"
    assert steps.files() == 4 and steps.files("state") == (name == "qwen3_5")
    running.close()
    engine.close()
    engine.run()
    assert steps.files() >= 8, "an orderly end writes what the memory still holds"
    steps.found.runner.close()
