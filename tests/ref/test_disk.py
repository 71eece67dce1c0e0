"""The prefix cache on disk: what a restart finds, and that nothing wrong is ever believed."""
from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_prefix import DATA, asking, at_rest, said, text

from blackwell_infer import LLM
from blackwell_infer.engine import saved
from blackwell_infer.kv.spec import PAGE

TOKENS = text(1, 150)
Open = Callable[..., LLM]


def make(name: str, folder: Path, **settings: Any) -> LLM:
    model = name if name == "demo" else str(DATA / name)
    return LLM(model, **{"device": "numpy", "max_context": 256, "max_step_tokens": 16, "prefix_disk": str(folder),
                         "dtype": "float32", **settings})


@pytest.fixture(params=("llama", "qwen3_5"))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def one(name: str = request.param, **settings: Any) -> LLM:
        return make(name, tmp_path / "cache", **settings)
    one.hybrid = request.param != "llama"  # type: ignore[attr-defined]
    return one


@pytest.fixture
def folder(opened: Open, tmp_path: Path) -> Path:
    """The files of 150 tokens."""
    with opened() as llm:
        llm.generate(TOKENS, asking(1))
    return tmp_path / "cache"


def fresh(opened: Open) -> Any:
    with opened(prefix_cache=False, prefix_disk="") as llm:
        return said(llm.generate(TOKENS, asking(20)))


def found(opened: Open, **settings: Any) -> tuple[int, Any]:
    with opened(**settings) as llm:
        out = llm.generate(TOKENS, asking(20))
        return out.usage.cached_tokens, said(out)


def test_a_restart_finds_what_was_read_to_the_bit(opened: Open, folder: Path) -> None:
    assert len([*folder.glob("*.page")]) == 4
    expected = fresh(opened)
    with opened() as llm:
        out = llm.generate(TOKENS, asking(20))
        assert said(out) == expected and out.usage.cached_tokens == 128
        stats = at_rest(llm)
        assert stats.prompt_tokens == 150 - 128 and stats.disk_read == 4


@pytest.mark.parametrize("name", ["demo"])
def test_the_demo_model_too(name: str, tmp_path: Path) -> None:
    prompt = text(3, 80)
    with make(name, tmp_path, dtype="auto") as llm:
        expected = said(llm.generate(prompt, asking(6)))
    with make(name, tmp_path, dtype="auto") as llm:
        out = llm.generate(prompt, asking(6))
    assert out.usage.cached_tokens == 64 and said(out) == expected


def test_another_model_or_setting_finds_nothing_and_removes_nothing(opened: Open, folder: Path) -> None:
    before = {p.name for p in folder.iterdir()}
    for change in ({"name": "mistral"}, {"dtype": "bfloat16"}):
        with opened(**change) as llm:
            assert llm.generate(TOKENS, asking(1)).usage.cached_tokens == 0
    assert before < {p.name for p in folder.iterdir()}


def test_another_version_finds_nothing(opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved, "VERSION", "2")
    assert found(opened)[0] == 0


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-9] + bytes((b[-9] ^ 4,)) + b[-8:],
                                    lambda b: b.replace(b'"version": "1"', b'"version": "9"').replace(
                                        b'"version":"1"', b'"version":"9"')])
def test_a_damaged_file_is_ignored_and_removed(opened: Open, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    expected, files = fresh(opened), sorted(folder.iterdir())
    for path in files:
        whole = path.read_bytes()
        assert damage(whole) != whole
        path.write_bytes(damage(whole))
        old = path.read_bytes()
        assert found(opened) in [(n, expected) for n in range(0, 160, PAGE)]
        assert not path.exists() or path.read_bytes() != old


def test_a_file_under_anothers_name_is_removed(opened: Open, folder: Path) -> None:
    expected, files = fresh(opened), sorted(folder.glob("*.page"))
    bad = files[1].read_bytes()
    files[0].write_bytes(bad)
    assert found(opened) == (0, expected)
    assert files[0].read_bytes() != bad


def test_the_limit_is_kept_and_strangers_are_left(opened: Open, folder: Path) -> None:
    (folder / "mine.txt").write_text("mine")
    size = max(p.stat().st_size for p in folder.iterdir())
    limit = 65536 + 3 * size
    with opened(prefix_disk_bytes=limit) as llm:
        for seed in range(4):
            llm.generate(text(seed + 20, 100), asking(1))
    assert sum(p.stat().st_size for p in folder.iterdir()) <= limit + 4
    assert (folder / "mine.txt").read_text() == "mine"


def test_what_memory_had_no_room_for_comes_back(opened: Open) -> None:
    with opened(kv_pages=8, max_batch=2) as llm:
        expected = said(llm.generate(TOKENS, asking(4)))
        for seed in range(3):
            llm.generate(text(seed + 70, 200), asking(1))
        out = llm.generate(TOKENS, asking(4))
        assert said(out) == expected and out.usage.cached_tokens == 128 and llm.stats().disk_read


def test_what_a_killed_process_left_half_written_goes_in_time(opened: Open, folder: Path) -> None:
    old, new = folder / "a.page.0.part", folder / "b.page.0.part"
    old.write_bytes(b"x")
    new.write_bytes(b"x")
    os.utime(old, (0, 0))
    with opened() as llm:
        llm.generate(TOKENS, asking(1))
    assert not old.exists() and new.exists()


def test_two_share_a_folder(opened: Open, tmp_path: Path) -> None:
    expected = fresh(opened)
    with opened() as one, opened() as two:
        outs = [llm.generate(TOKENS, asking(20)) for llm in (one, two)]
        assert [said(out) for out in outs] == [expected] * 2
    assert found(opened) == (128, expected)
    assert not [*(tmp_path / "cache").glob("*.part")]


def test_the_folder_may_go_at_any_time(opened: Open, folder: Path) -> None:
    expected = fresh(opened)
    with opened() as llm:
        shutil.rmtree(folder)
        assert said(llm.generate(TOKENS, asking(20))) == expected
    assert len([*folder.glob("*.page")]) == 5


def test_a_folder_that_cannot_be_written_is_said_once(opened: Open, tmp_path: Path,
                                                      caplog: pytest.LogCaptureFixture) -> None:
    expected = fresh(opened)
    (tmp_path / "cache").write_text("a file")
    with opened() as llm:
        assert said(llm.generate(TOKENS, asking(20))) == expected
    assert sum("cannot be written" in r.message for r in caplog.records) == 1


def test_a_full_disk_is_said_once(opened: Open, folder: Path, monkeypatch: pytest.MonkeyPatch,
                                  caplog: pytest.LogCaptureFixture) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with opened() as llm:
        llm.generate(text(8, 150), asking(1))
        llm.generate(TOKENS, asking(1))
    assert sum("No space left" in r.message for r in caplog.records) == 1
    assert not [*folder.glob("*.part")]


WRITER = """
import sys
from blackwell_infer import LLM, Sampling
llm = LLM(sys.argv[1], device="numpy", dtype="float32", max_context=256, max_step_tokens=16, prefix_disk=sys.argv[2])
print("ready", flush=True)
for seed in range(1000):
    llm.generate([3 + (i * 7 + seed * (i > 40)) % 240 for i in range(150)], Sampling(temperature=0, max_tokens=1))
"""


def killed(name: str, folder: Path, times: int) -> int:
    """Kill a process that writes, at random moments; what the next one says is what it says without the files. How
    often a file was cut off."""
    draw = random.Random(5)
    prompts = [[3 + (i * 7 + seed * (i > 40)) % 240 for i in range(150)] for seed in range(3)]
    with make(name, folder, prefix_cache=False) as llm:
        expected = [said(llm.generate(prompt, asking(8))) for prompt in prompts]
    hits = cut = 0
    for _ in range(times):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(DATA / name), str(folder)], stdout=subprocess.PIPE,
                                  env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        time.sleep(draw.uniform(0, 0.4))
        writer.kill()
        writer.wait()
        writer.stdout.close()
        cut += any(folder.glob("*.part"))
        with make(name, folder) as llm:
            outs = [llm.generate(prompt, asking(8)) for prompt in prompts]
        assert [said(out) for out in outs] == expected
        hits += sum(out.usage.cached_tokens > 64 for out in outs)
        for path in sorted(folder.iterdir())[:: draw.choice((1, 2, 3))]:  # so that the next one writes, too
            path.unlink()
        for path in folder.glob("*.part"):
            path.unlink()
    assert hits
    return cut


def test_a_process_beside_that_writes_and_one_that_makes_room_do_no_harm(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with make("qwen3_5", folder, prefix_cache=False) as llm:
        expected = said(llm.generate(TOKENS, asking(8)))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(DATA / "qwen3_5"), str(folder)],
                              stdout=subprocess.PIPE,
                              env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])})
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
        for seed in range(6):
            with make("qwen3_5", folder, prefix_disk_bytes=400_000) as llm:
                assert said(llm.generate(TOKENS, asking(8))) == expected
                llm.generate(text(seed + 40, 120), asking(1))
                assert llm.stats().disk_dropped == 0
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()


def test_a_killed_writer_leaves_nothing_wrong(tmp_path: Path) -> None:
    killed("qwen3_5", tmp_path / "cache", 5)


@pytest.mark.slow
def test_a_hundred_killed_writers_leave_nothing_wrong(tmp_path: Path) -> None:
    assert killed("qwen3_5", tmp_path / "cache", 100), "no kill came while a file was written"
