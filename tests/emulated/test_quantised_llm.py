"""Quantised checkpoints through the whole engine: loading, placing on a device, and the tokens of the CUDA ops."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tooling import load_tool

from blackwell_infer import LLM, Sampling

ROOT = Path(__file__).resolve().parents[2]
LAYOUTS = ("modelopt-nvfp4", "modelopt-mixed", "compressed-tensors-nvfp4", "lynn", "mxfp4", "mxfp8", "fp8-tensor",
           "fp8-channel", "fp8-block")


LOSSY = {"modelopt-nvfp4": {"nvfp4"}, "modelopt-mixed": {"nvfp4", "fp8"}, "compressed-tensors-nvfp4": {"nvfp4"},
         "lynn": set(), "mxfp8": {"mxfp8"}, "fp8-tensor": {"fp8"}, "fp8-block": {"fp8_block"}}
"""formats of each layout that quantised activations go with"""


def answer(model: Path, device: str, tokens: int = 3, activations: str = "full") -> tuple[int, ...]:
    with LLM(model, device=device, dtype="float32", max_context=64, max_batch=2, max_step_tokens=32,
             activations=activations) as llm:
        return llm.generate("Once upon", Sampling(temperature=0, max_tokens=tokens, ignore_eos=True)).token_ids


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokens_equal_the_reference(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    load_tool("quantize_hf").convert(ROOT / "tests" / "data" / "qwen3", tmp_path / "model", layout)
    assert answer(tmp_path / "model", "emulated") == answer(tmp_path / "model", "numpy")


def logits(model: Path, device: str, activations: str) -> np.ndarray[Any, Any]:
    """Of a text that a model of random weights scores in one step."""
    with LLM(model, device=device, dtype="float32", activations=activations, max_context=64, max_batch=2,
             max_step_tokens=32) as llm:
        assert llm.info().activations == activations
        found = llm.score(range(3, 30), logits=True).logits
    assert found is not None
    return found


@pytest.mark.parametrize("layout", LOSSY)
def test_quantised_activations_give_the_same_logits_on_both_backends(
        layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """`down_proj` has rows of 160 elements, which NVFP4 activations do not fit: it stays as it is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    model = tmp_path / "model"
    load_tool("quantize_hf").convert(ROOT / "tests" / "data" / "llama", model, layout, peak=8.0)
    full, lossy = (logits(model, "numpy", activations) for activations in ("full", "quantized"))
    assert (np.abs(lossy - full).max() > 0.05) == bool(LOSSY[layout])
    assert np.abs(logits(model, "emulated:sm_120f", "quantized") - lossy).max() < 2e-3


@pytest.mark.parametrize("kind", ["modelopt-mixed", "nvfp4"])
def test_quantised_activations_decode_in_recorded_steps(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        pytestconfig: pytest.Config) -> None:
    """From the third token on, a step is what was recorded of the second. One model is a GGUF file of type 40."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    source, model = ROOT / "tests" / "data" / "llama", tmp_path / ("m.gguf" if kind == "nvfp4" else "m")
    if kind == "nvfp4":
        load_tool("hf_to_gguf").convert(source, model, kind=kind, tokenizer=True)
    else:
        load_tool("quantize_hf").convert(source, model, kind)
    expected = answer(model, "numpy", 6, "quantized")
    assert expected != answer(model, "numpy", 6)
    assert answer(model, "emulated", 6, "quantized") == expected
