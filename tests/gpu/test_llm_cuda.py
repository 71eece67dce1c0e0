"""Whole models on the GPU at hand: NumPy's tokens in float32, goldens in bfloat16, a batch as each request alone.

`tests/ref/test_llm.py` runs here too (its cases with "cuda" carry the same marker).
"""
from __future__ import annotations

import importlib.util
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from blackwell_infer import LLM, Output, Sampling
from blackwell_infer.device.info import list_devices

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TRAINED = SHARED / "models" / "stories260K" / "stories260K.gguf"
SMALL = TRAINED if TRAINED.is_file() else ROOT / "tests" / "data" / "llama"


@pytest.fixture(scope="module", autouse=True)
def gpu() -> None:
    found = list_devices()
    if not found.devices:
        pytest.skip(found.reason)


def requests(vocab: int, count: int) -> tuple[list[list[int]], list[Sampling]]:
    """Prompts of 1 to 180 tokens; greedy, seeded, penalised and biased settings in turn."""
    draw = random.Random(9)
    prompts = [[draw.randrange(vocab) for _ in range(draw.choice((1, 3, 16, 17, 40, 64, 65, 130, 180)))]
               for _ in range(count)]
    kinds = [Sampling(temperature=0), Sampling(), Sampling(temperature=0.7, top_k=30), Sampling(top_p=0.9),
             Sampling(min_p=0.02, repetition_penalty=1.2), Sampling(presence_penalty=0.5, frequency_penalty=0.3),
             Sampling(temperature=0, repetition_penalty=1.4), Sampling(logit_bias={5: 3.0, 9: -4.0})]
    return prompts, [Sampling(**{f: getattr(kinds[i % 8], f) for f in kinds[0].__struct_fields__} | {
        "seed": 100 + i, "max_tokens": 8 + i, "ignore_eos": True}) for i in range(count)]


def tokens(outs: list[Output]) -> list[tuple[int, ...]]:
    return [o.token_ids for o in outs]


def test_numpy_and_cuda_choose_the_same_tokens_in_float32() -> None:
    found = {}
    for device in ("numpy", "cuda"):
        with LLM(str(SMALL), device=device, dtype="float32", max_context=256) as llm:
            prompts, samplings = requests(llm.info().vocab, 32)
            found[device] = tokens(llm.generate(prompts, samplings))
            assert llm.info().device.startswith(device)
    assert found["cuda"] == found["numpy"]


@pytest.fixture(params=["llama", "mistral", "qwen3"])
def tiny(request: pytest.FixtureRequest) -> Iterator[tuple[Path, LLM]]:
    """A small reference checkpoint in its own bfloat16."""
    folder = ROOT / "tests" / "data" / str(request.param)
    with LLM(str(folder), device="cuda", max_context=256) as llm:
        assert llm.info().dtype == "bfloat16" and "bf16" in llm.info().formats
        yield folder, llm


def test_greedy_goldens_survive_bfloat16(tiny: tuple[Path, LLM]) -> None:
    folder, llm = tiny
    golden = np.load(folder / "golden.npz")
    out = llm.generate(golden["input_ids"], Sampling(temperature=0, max_tokens=16, ignore_eos=True))
    assert list(out.token_ids) == golden["greedy"].tolist()
    score = llm.score(golden["input_ids"], logits=True)
    assert score.logits is not None
    # Rounding differs by implementation: ours may stray from float32 about as far as the golden's own bfloat16 does.
    ours, theirs = (np.sqrt(np.square(z - golden["logits"]).mean()) for z in (score.logits, golden["logits_bf16"]))
    assert ours < 1.5 * theirs


def test_a_batch_in_bfloat16_answers_as_each_alone(tiny: tuple[Path, LLM]) -> None:
    _, llm = tiny
    prompts, samplings = requests(llm.info().vocab, 32)
    alone = [llm.generate(p, s) for p, s in zip(prompts, samplings, strict=True)]
    assert tokens(llm.generate(prompts, samplings)) == tokens(alone)


@pytest.fixture(scope="module")
def converter() -> ModuleType:
    """tools/hf_to_gguf.py as a module."""
    spec = importlib.util.spec_from_file_location("hf_to_gguf", ROOT / "tools" / "hf_to_gguf.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose rows hold whole blocks of 256."""
    folder = tmp_path_factory.mktemp("wide")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "tests" / "data" / "llama" / name, folder)
    config = json.loads((ROOT / "tests" / "data" / "llama" / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
               "num_key_value_heads": 2, "head_dim": 64, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"model.embed_tokens.weight": (320, 256), "model.norm.weight": (256,)}
    for i in range(2):
        base = f"model.layers.{i}."
        shapes |= {base + f"self_attn.{x}_proj.weight": (n, 256) for x, n in zip("qkv", (256, 128, 128), strict=True)}
        shapes |= {base + "self_attn.o_proj.weight": (256, 256), base + "mlp.gate_proj.weight": (512, 256),
                   base + "mlp.up_proj.weight": (512, 256), base + "mlp.down_proj.weight": (256, 512),
                   base + "input_layernorm.weight": (256,), base + "post_attention_layernorm.weight": (256,)}
    draw = np.random.default_rng(3)
    safetensors.numpy.save_file({name: (np.ones(shape) if len(shape) == 1 else draw.normal(0, 0.12, shape)).astype(
        ml_dtypes.bfloat16) for name, shape in shapes.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k"])
def test_every_gguf_format_gives_the_tokens_of_numpy(wide: Path, converter: ModuleType, tmp_path: Path,
                                                     kind: str) -> None:
    converter.convert(wide, tmp_path / "model.gguf", kind=kind)
    found = {}
    for device in ("numpy", "cuda"):
        with LLM(tmp_path / "model.gguf", device=device, dtype="float32", max_context=256) as llm:
            assert kind in llm.info().formats
            prompts, samplings = requests(llm.info().vocab, 8)
            found[device] = tokens(llm.generate(prompts, samplings))
    assert found["cuda"] == found["numpy"]
    # Steps of few tokens: those of many round weights to the activation dtype first, so that a prompt which shares a
    # step with others would not be computed as it is alone.
    with LLM(tmp_path / "model.gguf", device="cuda", max_context=256, max_step_tokens=16) as llm:
        assert llm.info().dtype == ("float16" if kind == "f16" else "bfloat16")
        assert llm.info().weight_bytes < 1.3 * (tmp_path / "model.gguf").stat().st_size, "weights stay quantised"
        alone = [llm.generate(p, s) for p, s in zip(prompts, samplings, strict=True)]
        assert tokens(llm.generate(prompts, samplings)) == tokens(alone)


def test_reproducible_requests_have_their_own_bits() -> None:
    """Whatever runs beside them, and however prompts are cut."""
    found = []
    for batch, step_tokens in ((32, 4096), (1, 50)):
        with LLM(str(SMALL), device="cuda", dtype="bfloat16", max_context=256, max_batch=batch,
                 max_step_tokens=step_tokens, reproducible=True) as llm:
            prompts, _ = requests(llm.info().vocab, 32)
            sampling = Sampling(temperature=0, max_tokens=20, logprobs=3, ignore_eos=True)
            found.append([(o.token_ids, o.logprobs) for o in llm.generate(prompts, sampling)])
    assert found[0] == found[1]
