"""tools/hf_to_gguf.py: a folder and its GGUF give the same tensors, settings and vocabulary."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from tokenizers import Tokenizer
from tooling import load_tool

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.quant import FORMATS
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests/data"
SAME = (
    "architectures", "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings",
)


tool = load_tool("hf_to_gguf")


def values(checkpoint: Checkpoint, name: str) -> np.ndarray[Any, Any]:
    w = checkpoint.weight(name)
    return FORMATS[w.format].dequantize(w)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("split", [1, 3])
def test_the_same_tensors_and_settings(family: str, split: int, tmp_path: Path) -> None:
    folder, out = GOLDENS / family, tmp_path / "m.gguf"
    assert tool.main([str(folder), str(out), "--split", str(split)]) == 0
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) == split
    ours, theirs = open_checkpoint(files[-1]), open_checkpoint(folder)
    assert {k: ours.config[k] for k in SAME} == {k: theirs.config[k] for k in SAME}
    assert ours.config["sliding_window"] == (8 if family == "mistral" else None)
    assert ours.config["rms_norm_eps"] == pytest.approx(theirs.config["rms_norm_eps"])
    assert ours.config["rope_theta"] == tool.rope_of(theirs.config)[0]
    assert ours.config["rope_scaling"] is None
    assert ours.generation["eos_token_id"] == [theirs.config["eos_token_id"]]
    extra = {"rope_freqs.weight"} if family == "llama" else set()
    assert set(ours.tensors) == set(theirs.tensors) | extra
    for name, info in theirs.tensors.items():
        assert ours.tensors[name].shape == info.shape
        assert ours.tensors[name].format == ("f32" if len(info.shape) == 1 else "bf16")
        assert np.array_equal(values(ours, name), values(theirs, name)), name


def test_rope_freqs_are_llama3_scaling(tmp_path: Path) -> None:
    tool.convert(GOLDENS / "llama", tmp_path / "m.gguf")
    got = values(open_checkpoint(tmp_path / "m.gguf"), "rope_freqs.weight")[0]
    config = json.loads((GOLDENS / "llama/config.json").read_text())
    theta, scaling = tool.rope_of(config)
    for j, divisor in enumerate(got):
        frequency = theta ** (-2 * j / config["head_dim"])
        length = 2 * np.pi / frequency
        low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
        original = scaling["original_max_position_embeddings"]
        if length < original / high:
            expected = frequency
        elif length > original / low:
            expected = frequency / factor
        else:
            s = (original / length - low) / (high - low)
            expected = (1 - s) * frequency / factor + s * frequency
        assert frequency / divisor == pytest.approx(expected, rel=1e-6)
    assert got.min() == 1 and got.max() == scaling["factor"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_the_same_token_ids_and_template(family: str, tmp_path: Path) -> None:
    folder = GOLDENS / family
    tool.convert(folder, tmp_path / "m.gguf")
    metadata = open_checkpoint(tmp_path / "m.gguf").metadata
    ours, theirs = tokenizer_from_gguf(metadata), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("Hello there, the rain in Spain's 12345 plains.", "naïve 日本語 \n\n  x", "<|begin|>hi<|end|>"):
        assert ours.encode(text, bos=False) == theirs.encode(text, add_special_tokens=False).ids
    options = json.loads((folder / "tokenizer_config.json").read_text())
    assert metadata["tokenizer.chat_template"] == options["chat_template"]
    assert metadata["tokenizer.ggml.bos_token_id"] == 256


def wide(path: Path, architecture: str = "LlamaForCausalLM") -> Path:
    """A folder with rows of 256, so that every block format fits; one matrix has rows of 40 and fits none."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (12, 256), "model.norm.weight": (256,)}
    layer = "model.layers.0."
    shapes |= {layer + "self_attn.q_proj.weight": (64, 256), layer + "self_attn.k_proj.weight": (32, 256),
               layer + "self_attn.q_proj.bias": (64,), layer + "mlp.down_proj.weight": (256, 40)}
    path.mkdir()
    safetensors.numpy.save_file(
        {n: rng.standard_normal(s).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({
        "architectures": [architecture], "hidden_size": 256, "intermediate_size": 40, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6, "vocab_size": 12,
        "max_position_embeddings": 64, "rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}}))
    return path


@pytest.mark.parametrize(("kind", "error"), [
    ("f32", 0.0), ("f16", 5e-4), ("bf16", 0.0), ("q8_0", 0.008), ("q4_0", 0.12), ("q4_k", 0.1), ("q5_k", 0.05),
    ("q6_k", 0.03),
])
def test_types(kind: str, error: float, tmp_path: Path) -> None:
    folder = wide(tmp_path / "hf")
    assert tool.main([str(folder), str(tmp_path / "m.gguf"), "--type", kind]) == 0
    ours, theirs = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(folder)
    assert ours.config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0} and ours.config["tie_word_embeddings"]
    for name, info in theirs.tensors.items():
        fits = info.shape[-1] % FORMATS[kind].block == 0
        assert ours.tensors[name].format == ("f32" if len(info.shape) == 1 else kind if fits else "bf16")
        expected, got = values(theirs, name), values(ours, name)
        distance = float(np.linalg.norm(got - expected) / np.linalg.norm(expected))
        assert distance <= error if fits and len(info.shape) > 1 else np.array_equal(got, expected), name


def test_the_permutation_is_the_converters(tmp_path: Path) -> None:
    folder = wide(tmp_path / "hf")
    tool.convert(folder, tmp_path / "m.gguf")
    import gguf

    stored = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    expected = np.asarray(open_checkpoint(folder).weight("model.layers.0.self_attn.q_proj.weight").parts[0])
    expected = expected.reshape(4, 2, 8, 256).swapaxes(1, 2).reshape(64, 256)
    assert np.array_equal(stored["blk.0.attn_q.weight"].data.view(ml_dtypes.bfloat16).reshape(64, 256), expected)


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(wide(tmp_path / "a", "GPT2LMHeadModel")), str(tmp_path / "m.gguf")]) == 1
    assert "'GPT2LMHeadModel'; supported are LlamaForCausalLM" in capsys.readouterr().err
    folder = tmp_path / "b"
    shutil.copytree(GOLDENS / "qwen3", folder)
    state = json.loads((folder / "tokenizer.json").read_text())
    state["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "x+"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    assert tool.main([str(folder), str(tmp_path / "m.gguf")]) == 1
    assert "--pre" in capsys.readouterr().err
    assert tool.main([str(folder), str(tmp_path / "m.gguf"), "--pre", "gpt-2"]) == 0


def test_sentencepiece_vocabularies(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "models/stories260K"
    load_tool("llama2c_to_hf").convert(source / "stories260K.bin", source / "tok512.bin", tmp_path / "hf")
    tool.convert(tmp_path / "hf", tmp_path / "m.gguf")
    ours = tokenizer_from_gguf(open_checkpoint(tmp_path / "m.gguf").metadata)
    theirs = tokenizer_from_gguf(open_checkpoint(source / "stories260K.gguf").metadata)
    golden = json.loads((source / "golden.json").read_text())
    for text in [case["text"] for case in golden["greedy"]] + ["naïve 日本", "  two  spaces\n"]:
        assert ours.encode(text) == theirs.encode(text)
