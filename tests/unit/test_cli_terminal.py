"""Line editing on a terminal: multi-line entries, history on disk, the status line; and bars while loading."""
from __future__ import annotations

import io
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from blackwell_infer.cli import prompt
from blackwell_infer.cli.progress import Bars


def typed(text: str, history: Path) -> str:
    """What a prompt returns when these keys are pressed."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(text)
        return prompt.terminal(history, lambda: "status")("> ")


def test_alt_enter_breaks_the_line_and_enter_sends(tmp_path: Path) -> None:
    assert typed("one\x1b\rtwo\r", tmp_path / "state" / "history") == "one\ntwo"


def test_lines_come_back_from_the_history_of_an_earlier_session(tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    assert typed("first\r", history) == "first"
    assert typed("\x1b[A\r", history) == "first"
    assert history.stat().st_mode & 0o077 == 0


def test_a_history_that_cannot_be_written_is_said_and_not_needed(
        tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert typed("hi\r", tmp_path / "file" / "history") == "hi"
    assert "history is not kept" in caplog.text


def test_ctrl_c_and_ctrl_d_reach_the_loop(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        typed("\x03", tmp_path / "history")
    assert typed("abc\x03def\r", tmp_path / "history") == "def"  # what was typed is discarded first
    with pytest.raises(EOFError):
        typed("\x04", tmp_path / "history")


def test_bars_show_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, drawn in ((Screen(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with Bars() as bars:
            bars("loading", 1 << 20, 1 << 21, "bytes")
            bars("compiling", 1, 0, "kernels")
        assert ("loading" in stream.getvalue()) is drawn
