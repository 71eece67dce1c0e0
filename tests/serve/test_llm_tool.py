"""The command-line tool `llm` as a client."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture
def home(tmp_path: Path, address: str) -> Path:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: demo\n  api_base: {address}/v1\n", encoding="utf-8")
    return tmp_path


def llm(home: Path, *words: str) -> str:
    """What the tool prints."""
    environ = {**os.environ, "LLM_USER_PATH": str(home), "OPENAI_API_KEY": "any"}
    done = subprocess.run([sys.executable, "-m", "llm", *words], capture_output=True, text=True, timeout=60,
                          check=False, env=environ, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whole_streamed_and_continued(home: Path) -> None:
    question = ("prompt", "-m", "local", "-o", "temperature", "0", "What is 12 times 12?")
    streamed = llm(home, *question)
    assert "144" in streamed
    assert llm(home, *question, "--no-stream") == streamed
    assert llm(home, "prompt", "-c", "-o", "temperature", "0", "Who are you?").strip()
    log = llm(home, "logs", "-n", "2", "--json")
    assert log.count('"conversation_id"') == 2 and "What is 12 times 12?" in log and "Who are you?" in log
    ids = {line for line in log.splitlines() if '"conversation_id"' in line}
    assert len(ids) == 1, "the second question did not continue the first's conversation"
