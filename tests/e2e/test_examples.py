"""Every script of examples/ runs in a process of its own, on a small model, and prints what it promises."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served import serving

from blackwell_infer import LLM
from blackwell_infer.config import ServeConfig
from blackwell_infer.serve.host import Host

ROOT = Path(__file__).resolve().parents[2]
TRAINED = ROOT.parent / "shared" / "data" / "models" / "stories260K" / "stories260K.gguf"
MODEL = TRAINED if TRAINED.is_file() else ROOT / "tests" / "data" / "llama"

pytestmark = pytest.mark.e2e


def run(name: str, *words: str) -> list[str]:
    """Lines that an example prints, given a model."""
    return run_plain(name, str(MODEL), *words, "--device", "numpy")


def run_plain(name: str, *words: str) -> list[str]:
    """Lines that an example prints."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("BWINFER_")} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-W", "error", str(ROOT / "examples" / name), *words],
                          capture_output=True, text=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_all_examples_are_tested_and_short() -> None:
    scripts = sorted(p.name for p in (ROOT / "examples").glob("*.py"))
    assert scripts == ["anthropic_client.py", "asyncio_batch.py", "batch_file.py", "openai_async.py",
                       "openai_client.py", "score_text.py", "script.py"]
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


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with LLM(device="numpy") as llm, serving(Host(llm, "demo", ServeConfig())) as found:
        yield found


def test_openai_client(address: str) -> None:
    whole, streamed, call, told, parsed = run_plain("openai_client.py", address)
    assert "144" in whole and streamed == whole
    assert call.startswith("get_weather {'city': ") and told
    assert parsed.startswith("City(name=")


def test_openai_async(address: str) -> None:
    lines = run_plain("openai_async.py", address)
    assert len(lines) == 3 and "144" in lines[0] and "15" in lines[1]


def test_anthropic_client(address: str) -> None:
    whole, streamed = run_plain("anthropic_client.py", address)
    assert "144" in whole and "144" in streamed
