"""Checkpoints of random weights: names, types and sizes are those of the real models, and the engine runs them."""
from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
import synthetic_hybrid
from tooling import load_tool

from blackwell_infer import LLM, Sampling
from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.models.registry import FAMILIES
from blackwell_infer.quant import FORMATS

tool = load_tool("synthetic")
SMALL = {"layers": 3, "hidden": 256, "mlp": 512, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 512,
         "context": 256}
DENSE = ("qwen3-8b", "qwen3-0.6b", "llama-3.1-8b")
SPARSE = {"qwen3-30b-a3b": {"experts": 6, "top": 2, "mlp": 256}, "mixtral-8x7b": {"experts": 4, "top": 2, "mlp": 256}}
DELTA = {"head_dim": 128, "delta": synthetic_hybrid.Delta(2, 4, 64, 64, every=3)}
HYBRID = {"qwen3.6-27b": DELTA, "qwen3.6-35b-a3b": DELTA | {"experts": 6, "top": 2, "mlp": 256}}
SUPPORTED = {a for family in FAMILIES for a in family.architectures}


def small(name: str) -> object:
    """A model of the family with few and narrow layers."""
    return msgspec.structs.replace(tool.SHAPES[name], **(SMALL | SPARSE.get(name, {}) | HYBRID.get(name, {})))


def runnable() -> list[str]:
    """Shapes whose families the registry knows."""
    return [n for n in (*DENSE, *SPARSE, *HYBRID) if tool.KINDS[tool.SHAPES[n].family].architecture in SUPPORTED]


def runs(path: Path) -> None:
    """The engine loads it, and its logits are finite and of sane size."""
    with LLM(path, device="numpy") as llm:
        out = llm.generate([1, 2, 3], Sampling(temperature=0, max_tokens=4, ignore_eos=True))
        assert len(out.token_ids) == 4
        logits = llm.score([1, 2, 3, 4], logits=True).logits
    assert logits is not None and np.isfinite(logits).all() and 0.01 < logits.std() < 10


@pytest.mark.parametrize("mix", tool.MIXES)
@pytest.mark.parametrize("name", runnable())
def test_a_gguf_file_runs(name: str, mix: str, tmp_path: Path) -> None:
    tool.write_gguf(small(name), tool.MIXES[mix], tmp_path / "m.gguf", 0)
    runs(tmp_path / "m.gguf")


@pytest.mark.parametrize("layout", tool.LAYOUTS)
@pytest.mark.parametrize("name", runnable())
def test_a_folder_runs(name: str, layout: str, tmp_path: Path) -> None:
    tool.write_folder(small(name), layout, tmp_path / "m", 0, most=300_000)
    modelopt = layout in ("hf-nvfp4", "hf-fp8")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    assert (tmp_path / "m/hf_quant_config.json").exists() == modelopt
    runs(tmp_path / "m")


@pytest.mark.parametrize("name", ["qwen3-8b", *SPARSE])
@pytest.mark.parametrize(("layout", "form"), [("hf-bf16", "bf16"), ("hf-nvfp4", "nvfp4"), ("hf-fp8", "fp8"),
                                              ("hf-fp8-block", "fp8_block")])
def test_projections_of_a_folder_are_read_in_their_format(name: str, layout: str, form: str, tmp_path: Path) -> None:
    tool.write_folder(small(name), layout, tmp_path, 0)
    checkpoint = open_checkpoint(tmp_path)
    names = [n for n, info in checkpoint.tensors.items() if len(info.shape) == 2]
    kept = [n for n in names if n.startswith(("lm_head", "model.embed")) or n.endswith(".gate.weight")]
    assert {checkpoint.tensors[n].format for n in names if n not in kept} == {form}
    assert {checkpoint.tensors[n].format for n in kept} == {"bf16"}
    for n in names:
        weight = checkpoint.weight(n)
        assert 0.01 < FORMATS[weight.format].dequantize(weight).std() < 0.04, n


@pytest.mark.parametrize("name", HYBRID)
def test_hybrids_have_the_published_mix(name: str, tmp_path: Path) -> None:
    """Attention and recurrent layers FP8, MLPs and head NVFP4, the rest and the head for guesses BF16."""
    tool.write_folder(small(name), "hf-nvfp4", tmp_path, 0)
    tensors = open_checkpoint(tmp_path).tensors
    forms = {n: info.format for n, info in tensors.items() if n.endswith("_proj.weight") or "in_proj" in n}
    for n, form in forms.items():
        narrow = n.startswith("mtp.") or n.endswith(("in_proj_a.weight", "in_proj_b.weight"))
        assert form == ("bf16" if narrow else "nvfp4" if ".mlp." in n else "fp8"), n
    assert (tensors["lm_head.weight"].format, tensors["mtp.fc.weight"].format) == ("nvfp4", "bf16")


@pytest.mark.parametrize("mix", tool.MIXES)
def test_weights_of_a_gguf_file_have_sane_size(mix: str, tmp_path: Path) -> None:
    tool.write_gguf(small("qwen3-8b"), tool.MIXES[mix], tmp_path / "m.gguf", 0)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    for name, info in checkpoint.tensors.items():
        if len(info.shape) == 2:
            weight = checkpoint.weight(name)
            assert 0.01 < FORMATS[weight.format].dequantize(weight).std() < 0.04, name


def test_tensors_of_experts_are_stacked_and_routers_stay_unquantised() -> None:
    entries = {e.name: e for e in tool.gguf_entries(tool.SHAPES["qwen3-30b-a3b"], tool.MIXES["q4_k_m"])}
    for part, shape in {"gate": (128, 768, 2048), "up": (128, 768, 2048), "down": (128, 2048, 768)}.items():
        assert entries[f"blk.7.ffn_{part}_exps.weight"].shape == shape
    assert (entries["blk.7.ffn_gate_inp.weight"].dtype, entries["blk.7.ffn_gate_inp.weight"].shape) == (
        "F32", (128, 2048))
    assert "blk.7.ffn_gate.weight" not in entries


def test_the_usual_mix_keeps_more_bits_where_it_should() -> None:
    """36 layers: the first 4, from the 31st (7 * 36 / 8) on, and every third between."""
    kinds = {e.name: e.dtype for e in tool.gguf_entries(tool.SHAPES["qwen3-8b"], tool.MIXES["q4_k_m"])}
    for part in ("attn_v", "ffn_down"):
        high = [i for i in range(36) if kinds[f"blk.{i}.{part}.weight"] == "Q6_K"]
        assert high == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31, 32, 33, 34, 35]
    assert (kinds["output.weight"], kinds["token_embd.weight"]) == ("Q6_K", "Q4_K")
    tied = {e.name: e.dtype for e in tool.gguf_entries(tool.SHAPES["qwen3-0.6b"], tool.MIXES["q4_k_m"])}
    assert "output.weight" not in tied and tied["token_embd.weight"] == "Q6_K"


@pytest.mark.parametrize(("name", "billions"), [("qwen3-8b", 8.19), ("qwen3-0.6b", 0.596), ("llama-3.1-8b", 8.03),
                                                ("qwen3-30b-a3b", 30.53), ("mixtral-8x7b", 46.70),
                                                ("qwen3.6-27b", 27.32), ("qwen3.6-35b-a3b", 35.5)])
def test_shapes_have_the_published_number_of_parameters(name: str, billions: float) -> None:
    shape = tool.SHAPES[name]
    for entries in (tool.gguf_entries(shape, tool.MIXES["bf16"]), tool.hf_entries(shape, "hf-bf16")):
        count = sum(math.prod(e.shape) for e in entries if e.fill != "rope")
        assert count / 1e9 == pytest.approx(billions, rel=2e-3)


def test_shards_hold_no_more_than_asked_and_everything_once() -> None:
    entries = list(tool.hf_entries(tool.SHAPES["qwen3-8b"], "hf-fp8-block"))
    files = tool.shards(entries, tool.SHARD)
    assert len(files) > 1 and [e for file in files for e in file] == entries
    assert all(sum(e.nbytes() for e in file) <= tool.SHARD for file in files)


def test_the_command_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tool.SHAPES, "qwen3-8b", small("qwen3-8b"))
    assert tool.main(["qwen3-8b", "q8_0", str(tmp_path / "m.gguf")]) == 0
    assert tool.main(["qwen3-8b", "hf-fp8", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out.count("GB of weights") == 2
    assert (tmp_path / "m/config.json").is_file() and (tmp_path / "m/model.safetensors").is_file()
