"""How far the GPU is from exact arithmetic, over 2 000 tokens of each model (tools/accuracy.py)."""
from __future__ import annotations

from pathlib import Path

import pytest
from tooling import load_tool

from blackwell_infer.device.info import list_devices

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    found = list_devices()
    if not found.devices:
        pytest.skip(found.reason)


@pytest.mark.parametrize("model", ["llama", "mistral", "qwen3", "mixtral", "qwen3_moe_pruned", "qwen3_5",
                                   "qwen3_5_moe"])
def test_no_farther_from_exact_than_plain_bfloat16(model: str) -> None:
    (_, plain), *rows = load_tool("accuracy").rows(str(DATA / model), None, 2000, "cuda", 256)
    for name, found in rows:
        assert not found.misses(plain), (name, found, plain)
