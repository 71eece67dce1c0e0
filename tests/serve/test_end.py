"""How `bwinfer serve` ends, in a process of its own."""
from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.e2e
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(sign: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blackwell_infer.cli.main", "serve", "--device", "numpy", "--port", "0"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}
    with subprocess.Popen(command, env=environ, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            said = process.stderr.readline()
            assert "serving demo on http://127.0.0.1:" in said
            with urllib.request.urlopen(said.split()[-1] + "/ready", timeout=30) as answer:
                assert answer.status == 200
            process.send_signal(sign)
            rest = process.stderr.read()
            assert process.wait(timeout=30) == 0, rest
        finally:
            process.kill()
