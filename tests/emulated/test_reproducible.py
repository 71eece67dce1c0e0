"""`reproducible`: the bits of a request do not depend on what runs beside it, nor on how its prompt is cut."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer import LLM, Sampling
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.errors import ConfigError
from blackwell_infer.ops import cases, inputs
from blackwell_infer.ops.cuda import CudaOps

DATA = Path(__file__).parents[1] / "data"
GREEDY = Sampling(temperature=0.0, max_tokens=3, logprobs=2)


@pytest.mark.parametrize(("dtype", "form", "cols"), [
    ("bfloat16", "q4_k_fragments", 768), ("bfloat16", "bf16", 256), ("float16", "f16", 104), ("float32", "q8_0", 96),
    ("bfloat16", "nvfp4_tiled", 128), ("bfloat16", "fp8_block_w8a8", 256)])
def test_rows_of_a_large_product_have_their_own_bits(emulated: Callable[..., EmulatedQueue], dtype: str, form: str,
                                                     cols: int) -> None:
    kwargs = inputs.make_linear(np.random.default_rng(7), dtype, (form,), 150, cols, (40,), True, ())
    queue = emulated("sm_90a")
    ops = CudaOps(queue, reproducible=True)

    def run(part: slice) -> Any:
        with queue.step():
            k = {name: cases.walk(value, queue.put) for name, value in kwargs.items() if name != "x"}
            y = ops.linear(queue.put(np.ascontiguousarray(kwargs["x"][part])), **k)
            return queue.download(y).result().copy().view(np.uint8)

    together = run(slice(0, 150))
    for low, high in ((0, 1), (5, 21), (60, 130)):
        assert np.array_equal(run(slice(low, high)), together[low:high])


def answers(model: str, prompts: tuple[str, ...], step_tokens: int) -> list[Any]:
    """Tokens and log-probabilities, bit for bit."""
    with LLM(str(DATA / model), device="emulated", dtype="bfloat16", max_context=128, max_batch=2,
             max_step_tokens=step_tokens, reproducible=True) as llm:
        assert all(len(llm.tokenizer.encode(prompt)) > 9 for prompt in prompts)
        return [(r.token_ids, r.logprobs) for r in llm.generate(list(prompts), GREEDY)]


@pytest.mark.parametrize("model", ["qwen3_moe_pruned", "qwen3_5_moe"])
def test_a_request_has_its_own_bits(model: str, monkeypatch: pytest.MonkeyPatch,
                                    pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    prompts = ("It was the best of times", "It was late.")
    together = answers(model, prompts, 128)
    assert answers(model, prompts[:1], 19) == together[:1]


def test_numpy_has_no_such_mode() -> None:
    with pytest.raises(ConfigError, match="take device cuda or emulated"):
        LLM(str(DATA / "llama"), device="numpy", reproducible=True)
