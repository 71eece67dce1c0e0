"""The first command of the README: without a model, `chat` and `run` talk to the demo model."""
from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BWINFER = [sys.executable, "-m", "blackwell_infer.cli.main"]
GREEDY = ["--device", "numpy", "--temperature", "0"]

pytestmark = pytest.mark.e2e


@pytest.fixture
def command(tmp_path: Path) -> dict[str, Any]:
    """Arguments of subprocess calls: an environment without settings, in an empty folder."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BWINFER_")}
    environ |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path / "c"), "XDG_STATE_HOME": str(tmp_path / "s"),
                "XDG_CACHE_HOME": str(tmp_path / "k"), "TERM": "xterm"}
    return {"env": environ, "cwd": tmp_path, "timeout": 120, "check": False, "capture_output": True, "text": True}


def test_a_scripted_chat(command: dict[str, Any]) -> None:
    done = subprocess.run([*BWINFER, "chat", *GREEDY], input="What is 12 times 12?\nMy name is Anna.\n", **command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "12 × 12 = 144.\nNice to meet you, Anna!\n"


def test_one_prompt(command: dict[str, Any]) -> None:
    done = subprocess.run([*BWINFER, "run", "What is 17 plus 25?", *GREEDY], input="", **command)
    assert (done.returncode, done.stdout) == (0, "17 + 25 = 42.\n"), done.stderr
    piped = subprocess.run([*BWINFER, "run", *GREEDY], input="What is 84 - 37?\n", **command)
    assert (piped.returncode, piped.stdout) == (0, "84 - 37 = 47.\n"), piped.stderr


def test_a_conversation_in_a_terminal(command: dict[str, Any]) -> None:
    keys, terminal = pty.openpty()
    process = subprocess.Popen([*BWINFER, "chat", *GREEDY], stdin=terminal, stdout=terminal, stderr=terminal,
                               env=command["env"], cwd=command["cwd"], start_new_session=True)
    os.close(terminal)
    try:
        shown = until(keys, b"/help lists the commands")
        os.write(keys, b"What is 12 times 12?\r")
        shown += until(keys, b"144.")
        os.write(keys, b"/quit\r")
        drain(keys)
        assert process.wait(60) == 0, shown
        assert b"demo on numpy" in shown
    finally:
        process.kill()
        process.wait()
        os.close(keys)


def until(keys: int, wanted: bytes, seconds: float = 90) -> bytes:
    """What appears on the terminal up to some text."""
    shown, end = b"", time.monotonic() + seconds
    while wanted not in shown:
        assert select.select([keys], [], [], max(end - time.monotonic(), 0))[0], shown
        shown += os.read(keys, 4096)
    return shown


def drain(keys: int) -> None:
    """Read until nobody holds the terminal any more: Linux says EIO then."""
    try:
        while os.read(keys, 4096):
            pass
    except OSError:
        return
