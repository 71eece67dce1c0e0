"""The benchmark script in a process of its own, on a small checkpoint of the project."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.e2e


def test_the_benchmark_prints_consistent_figures() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "tools/bench.py", "tests/data/llama", "--device", "numpy", "--prompt", "20", "--new", "6",
             "--repeat", "1", "--bandwidth", "0.001"]
    done = subprocess.run([*words, "--json"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got["roofline_tokens_per_second"] == pytest.approx(1e9 / got["bytes_per_token"])
    assert got["share_of_roofline"] == pytest.approx(
        got["decode_tokens_per_second"] / got["roofline_tokens_per_second"])
    assert 0 < got["first_token_seconds"] < 30
    assert 0 <= got["peak_host_bytes"] < 1 << 30
    shown = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert shown.stdout.count("\n") == 8
    broken = subprocess.run([*words[:2], "absent"], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert (broken.returncode, broken.stderr.count("\n")) == (1, 1)
