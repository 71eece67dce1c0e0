"""Every script of examples/ runs in a process of its own, on a small model, and prints what it promises."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT.parent / "shared" / "data" / "models" / "stories260K" / "stories260K.gguf"
MODEL = TRAINED if TRAINED.is_file() else ROOT / "tests" / "data" / "llama"

pytestmark = pytest.mark.e2e


def run(name: str, *words: str) -> list[str]:
    """Lines that an example prints."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BWINFER_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "error", str(ROOT / "examples" / name), str(MODEL), *words,
                           "--device", "numpy"], capture_output=True, text=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_all_examples_are_tested_and_short() -> None:
    scripts = sorted(p.name for p in (ROOT / "examples").glob("*.py"))
    assert scripts == ["asyncio_batch.py", "batch_file.py", "score_text.py", "script.py"]
    assert all(len((ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()) < 40 for name in scripts)


def test_script() -> None:
    text = "\n".join(run("script.py"))
    assert "[length, 32 tokens]" in text or "[stop, " in text
    if MODEL == TRAINED:
        assert text.startswith(", there was a little girl named Lily.")


def test_asyncio_batch() -> None:
    lines = run("asyncio_batch.py")
    assert [line[:26] for line in lines[:4]] == [f"There was a child named {n}."[:26] for n in ("Lily", "Tom", "Mia",
                                                                                             "Ben")]
    words = lines[-1].strip("[]").split()
    assert int(words[0]) < int(words[3]), "the tasks did not run in one batch"


def test_batch_file(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Once upon a time\nThe cat\n\nA dog", encoding="utf-8")
    answers = [json.loads(line) for line in run("batch_file.py", str(tmp_path / "prompts.txt"), "--max-tokens", "8")]
    assert [a["prompt"] for a in answers] == ["Once upon a time", "The cat", "A dog"]
    assert all(a["text"] and a["finish_reason"] in ("length", "stop") for a in answers)


def test_score_text() -> None:
    lines = run("score_text.py", "Once upon a time there was a little girl.")
    count, perplexity = int(lines[0].split()[0]), float(lines[0].split()[-1])
    assert count > 5 and perplexity > 1
    logprobs = [float(line.split()[0]) for line in lines[1:]]
    assert len(logprobs) == 5 and logprobs == sorted(logprobs) and logprobs[0] < 0
