"""`bwinfer bench` in a process of its own, on a small checkpoint of the project."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


def bench(*words: str, model: str = "tests/data/llama") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blackwell_infer.cli.main", "bench", model, "--device", "numpy", "--repeat", "2",
               *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_figures_are_consistent(tmp_path: Path) -> None:
    done = bench("-p", "20,40", "-n", "6", "-d", "0,30", "-b", "1,3", "--bandwidth", "0.001", "--phases", "all",
                 "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    got = json.loads((tmp_path / "out.json").read_text())
    assert (got["model"], got["device"], got["dtype"]) == ("llama", "numpy", "float32")
    assert 0 < got["load_seconds"] < 30 and 0 <= got["peak_host_bytes"] < 1 << 30
    assert [(r["test"], r["tokens"], r["depth"], r["batch"]) for r in got["rows"]] == [
        ("prompt", 20, 0, 1), ("prompt", 40, 0, 1), ("prompt", 20, 0, 3), ("prompt", 40, 0, 3),
        ("decode", 6, 0, 1), ("decode", 6, 30, 1), ("decode", 6, 0, 3), ("decode", 6, 30, 3)]
    for row in got["rows"]:
        assert len(row["rates"]) == 2 and min(row["rates"]) <= row["rate"] <= max(row["rates"])
        assert 0 < row["seconds"] < 30
        if row["test"] == "decode":
            assert row["roofline_share"] == pytest.approx(row["step_bytes"] * row["rate"] / row["batch"] / 1e9)
    shallow, deep = (row for row in got["rows"] if row["test"] == "decode" and row["batch"] == 3)
    assert deep["step_bytes"] > shallow["step_bytes"]
    assert len(got["profiles"]) == 4
    for profile in got["profiles"]:
        assert all(phase["us"] is None and phase["cost"]["nbytes"] > 0 for phase in profile["phases"])
    lines = done.stdout.splitlines()
    assert sum(line.startswith("llama  numpy   float32") for line in lines) == 8
    assert sum(line.startswith("sum of the phases") for line in lines) == 4


def test_json_on_standard_output_stands_alone() -> None:
    done = bench("-p", "0", "-n", "4", "--phases", "none", "--json", "-")
    got = json.loads(done.stdout)
    assert [row["test"] for row in got["rows"]] == ["decode"] and got["profiles"] == []
    assert got["bandwidth"] is None and got["rows"][0]["roofline_share"] is None


def test_what_does_not_fit_is_said_in_its_row() -> None:
    done = bench("-p", "16", "-n", "4", "-d", "0,200", "--max-context", "64", "--phases", "none")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if " 200 " in line)
    assert "tokens of context, max_context is 64" in row


@pytest.mark.parametrize(("words", "said"), [
    (("-p", "x"), "invalid"), (("-b", "0"), "--batch 0"), (("--repeat", "0"), "invalid"), (("-d", "-4"), "")])
def test_wrong_usage_is_one_line(words: tuple[str, ...], said: str) -> None:
    done = bench(*words)
    assert done.returncode in (1, 2) and done.stderr.count("\n") == 1 and said in done.stderr


def test_a_model_that_is_not_there_is_one_line() -> None:
    broken = bench(model="absent")
    assert (broken.returncode, broken.stderr.count("\n")) == (1, 1)
