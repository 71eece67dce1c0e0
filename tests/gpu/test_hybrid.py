"""Hybrids on the GPU at hand: goldens in both precisions, recorded steps as unrecorded ones, the real head sizes.

`tests/ref/test_hybrid_llm.py` runs here too (its cases with "cuda" carry the same marker).
"""
from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic_hybrid
from tooling import load_tool

from blackwell_infer import LLM, Sampling

pytestmark = pytest.mark.gpu

DATA = Path(__file__).resolve().parents[1] / "data"
NAMES = ("qwen3_5", "qwen3_5_moe")
GREEDY = Sampling(temperature=0, max_tokens=16, ignore_eos=True)
FEW = Sampling(temperature=0, max_tokens=6, ignore_eos=True)
synthetic = load_tool("synthetic")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_goldens(name: str, dtype: str) -> None:
    with np.load(DATA / name / "golden.npz") as golden:
        ids, greedy, want, rounded = (golden[x] for x in ("input_ids", "greedy", "logits", "logits_bf16"))
    with LLM(DATA / name, device="cuda", dtype=dtype, max_context=256) as llm:
        assert list(llm.generate(ids, GREEDY).token_ids) == greedy.tolist()
        got = llm.score(ids, logits=True).logits
    assert got is not None
    if dtype == "float32":
        assert np.abs(got - want).max() < 1e-3
    else:
        assert np.square(got - want).mean() ** 0.5 < 1.5 * np.square(rounded - want).mean() ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_recorded_steps_continue_the_same_states(name: str) -> None:
    found = []
    for graphs in (True, False):
        with LLM(DATA / name, device="cuda", max_context=256, graphs=graphs) as llm:
            outs = llm.generate([list(range(3, n)) for n in (5, 20, 90)], GREEDY)
            found.append([o.token_ids for o in outs])
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", ["qwen3.6-27b", "qwen3.6-35b-a3b"])
@pytest.mark.parametrize("form", ["q4_k_m", "hf-nvfp4"])
def test_real_heads_give_the_tokens_of_numpy(shape: str, form: str, tmp_path: Path) -> None:
    """Four layers at the published head sizes and few experts; prompts of one and of several chunks."""
    delta = synthetic_hybrid.Delta(4, 8)
    few = {"experts": 16} if "a3b" in shape else {"mlp": 512}
    small = msgspec.structs.replace(synthetic.SHAPES[shape], layers=4, hidden=512, heads=8, kv_heads=2, vocab=2048,
                                    context=1024, delta=delta, **few)
    path = tmp_path / ("m.gguf" if form == "q4_k_m" else "m")
    if form == "q4_k_m":
        synthetic.write_gguf(small, synthetic.MIXES[form], path, 0)
    else:
        synthetic.write_folder(small, form, path, 0)
    found = {}
    for device in ("numpy", "cuda"):
        with LLM(path, device=device, dtype="float32", max_context=512) as llm:
            outs = llm.generate([list(range(10, 10 + n)) for n in (1, 30, 150)], FEW)
            found[device] = [o.token_ids for o in outs]
    assert found["cuda"] == found["numpy"]
