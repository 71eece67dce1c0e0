"""Quantised checkpoints through the whole engine: loading, placing on a device, and the tokens of the CUDA ops."""
from __future__ import annotations

from pathlib import Path

import pytest
from tooling import load_tool

from blackwell_infer import LLM, Sampling

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("modelopt-nvfp4", "modelopt-mixed", "compressed-tensors-nvfp4", "lynn", "mxfp4", "mxfp8", "fp8-tensor",
           "fp8-channel", "fp8-block")


def answer(model: Path, device: str) -> tuple[int, ...]:
    with LLM(model, device=device, dtype="float32", max_context=64, max_batch=2, max_step_tokens=32) as llm:
        return llm.generate("Once upon", Sampling(temperature=0, max_tokens=3, ignore_eos=True)).token_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_equal_the_reference(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    load_tool("quantize_hf").convert(ROOT / "tests" / "data" / "qwen3", tmp_path / "model", layout)
    assert answer(tmp_path / "model", "emulated") == answer(tmp_path / "model", "numpy")
