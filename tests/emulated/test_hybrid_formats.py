"""Hybrids in the formats that they are published in, at the real head sizes: kernels against the reference."""
from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic_hybrid
from tooling import load_tool

from blackwell_infer import LLM

synthetic = load_tool("synthetic")
SMALL = {"layers": 2, "hidden": 256, "mlp": 256, "heads": 4, "kv_heads": 1, "vocab": 512, "context": 128,
         "delta": synthetic_hybrid.Delta(1, 2, every=2)}
TEXT = list(range(40, 64))


def logits(path: Path, device: str, dtype: str, step_tokens: int) -> np.ndarray:
    with LLM(path, device=device, dtype=dtype, max_context=64, max_batch=2, max_step_tokens=step_tokens) as llm:
        found = llm.score(TEXT, logits=True).logits
    assert found is not None
    return found


@pytest.mark.parametrize(("shape", "form"), [
    ("qwen3.6-35b-a3b", "q4_k_m"), *(pytest.param(*each, marks=pytest.mark.slow) for each in (
        ("qwen3.6-27b", "q4_k_m"), ("qwen3.6-35b-a3b", "hf-nvfp4"), ("qwen3.6-35b-a3b", "hf-fp8-block")))])
def test_logits_are_those_of_the_reference(shape: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                           pytestconfig: pytest.Config) -> None:
    """Steps of 7 tokens go through the kernels of decoding, one of all through those of prompts. Tokens go to all
    experts, so that roundings choose no others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    few = {"experts": 5, "top": 5} if "a3b" in shape else {}
    small = msgspec.structs.replace(synthetic.SHAPES[shape], **SMALL, **few)
    path = tmp_path / ("m.gguf" if form == "q4_k_m" else "m")
    if form == "q4_k_m":
        synthetic.write_gguf(small, synthetic.MIXES[form], path, 0)
    else:
        synthetic.write_folder(small, form, path, 0)
    want = logits(path, "numpy", "float32", 64)
    plain = np.square(logits(path, "numpy", "bfloat16", 64) - want).mean()
    for step_tokens in (7, 64):
        got = np.square(logits(path, "emulated", "bfloat16", step_tokens) - want).mean()
        assert got < 1.3**2 * plain, (step_tokens, got, plain)
