"""Hybrids of recurrent and attention layers on the emulated device: tokens of whole models as the NumPy backend's."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from builds import BUILDS
from tooling import load_tool

from blackwell_infer import LLM, Sampling
from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.engine.weights import DeviceLoading, Meter, placing
from blackwell_infer.kv.spec import PAGE, PagedKV
from blackwell_infer.log import silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.cuda import CudaOps

DATA = Path(__file__).parents[1] / "data"


def answers(model: Path, device: str, dtype: str = "float32") -> list[tuple[int, ...]]:
    """Of a prompt that comes in two chunks and of short ones beside it; later steps have a padding row and are
    recorded."""
    with LLM(model, device=device, dtype=dtype, max_context=128, max_batch=4, max_step_tokens=32) as llm:
        out = llm.generate([list(range(3, 43)), [5, 6, 7], [9]], Sampling(temperature=0, max_tokens=5, ignore_eos=True))
        return [o.token_ids for o in out]


@pytest.mark.parametrize("arch", BUILDS)
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_greedy_tokens_equal_the_reference(name: str, arch: str, monkeypatch: pytest.MonkeyPatch,
                                           pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    assert answers(DATA / name, f"emulated:{arch}") == answers(DATA / name, "numpy")


def test_a_quantised_gguf_file_gives_the_tokens_of_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                 pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    load_tool("hf_to_gguf").convert(DATA / "qwen3_5_moe", tmp_path / "m.gguf", kind="q8_0")
    assert answers(tmp_path / "m.gguf", "emulated") == answers(tmp_path / "m.gguf", "numpy")


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_bfloat16_is_no_worse_than_another_engine(name: str, monkeypatch: pytest.MonkeyPatch,
                                                  pytestconfig: pytest.Config) -> None:
    """A prompt of more than one chunk of the recurrent layers, against goldens in float32 and in bfloat16."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))
    with np.load(DATA / name / "golden.npz") as golden:
        ids, want, rounded = (golden[x] for x in ("input_ids", "logits", "logits_bf16"))
    with LLM(DATA / name, device="emulated", dtype="bfloat16", max_context=128, max_batch=2) as llm:
        got = llm.score(ids.tolist(), logits=True).logits
    assert got is not None
    assert np.sqrt(np.mean((got - want) ** 2)) < 1.1 * np.sqrt(np.mean((rounded - want) ** 2))


@pytest.mark.parametrize(("name", "own"), [("qwen3_5", False), ("qwen3_5_moe", False), ("qwen3_5", True)])
def test_guesses_of_the_token_after_the_next(name: str, own: bool, emulated: Callable[..., EmulatedQueue],
                                             tmp_path: Path) -> None:
    """The head over a text of 20 tokens, in one step and token by token; with embeddings and an output projection of
    its `own`, the model's are spoiled."""
    folder = DATA / name
    if own:
        folder = shutil.copytree(folder, tmp_path / name)
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        embed = next(n for n in tensors if n.endswith("embed_tokens.weight"))
        output = "lm_head.weight" if "lm_head.weight" in tensors else embed
        tensors |= {"mtp.embed_tokens.weight": tensors[embed], "mtp.lm_head.weight": tensors[output]}
        tensors |= {n: np.ascontiguousarray(tensors[n][::-1]) for n in {embed, output}}
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    queue, checkpoint = emulated("sm_90a"), open_checkpoint(folder)
    family, count = find_family(checkpoint.config), 20
    cfg, draft, ops = family.config(checkpoint.config), family.draft, CudaOps(queue)
    assert draft is not None
    loading = DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(0, silent), placing("full"))
    params, head, spec = family.build(cfg, loading, 64), draft.build(cfg, loading), draft.cache(cfg)
    with np.load(DATA / name / "golden.npz") as golden:
        ids, hidden, want = golden["input_ids"], golden["hidden"][-1], golden["mtp_logits"][:count]
    for step in (count, 1):
        kv, got = PagedKV("f32", queue.zeros((1, 2, spec.kv_heads, PAGE, spec.head_dim), np.float32)), []
        for first in range(0, count, step):
            at = slice(first, first + step)
            arrays = {
                "ids": ids[1:][at], "positions": np.arange(count)[at], "rows": np.zeros(step), "starts": (0, step),
                "lengths": (first + step,), "pages": ((0,),), "outputs": (0,), "state_from": (-1,),
                "state_to": -np.ones(step)}
            with queue.step():
                batch = Batch(**{n: queue.put(np.asarray(v, np.int32)) for n, v in arrays.items()}, max_new=step,
                              max_length=count)
                y = draft.forward(ops, cfg, params, head, kv, batch, queue.put(hidden[at]), "float32")
                got.append(queue.download(draft.logits(ops, cfg, params, head, y)).result())
        assert np.abs(np.concatenate(got) - want).max() < 1e-3
    checkpoint.close()
