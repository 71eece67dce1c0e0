"""Tiny models in every quantised layout: logits are those of the stored numbers, evaluated in double precision."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from harness import Model
from safetensors import deserialize
from tooling import load_tool

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.quant import FORMATS

Array = np.ndarray[Any, Any]
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
DISTANCE = {"nvfp4": 0.9, "mxfp4": 0.9, "fp8": 0.3, "mxfp8": 0.3}
"""Root mean square of the change of the logits, in deviations of the logits: the level of 4 and of 8 bits with random
weights, not of a misread layout (which is above 1)."""
DTYPES = {"U8": np.uint8, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
          "F8_E4M3": ml_dtypes.float8_e4m3fn}


tool = load_tool("quantize_hf")
to_gguf = load_tool("hf_to_gguf")
perplexity = load_tool("perplexity")


def stored(folder: Path) -> dict[str, Array]:
    """Every tensor of a quantised folder as float64, from its bytes and the published meaning of its scales."""
    raw = {name: np.frombuffer(t["data"], DTYPES[t["dtype"]]).reshape(t["shape"])
           for name, t in deserialize((folder / "model.safetensors").read_bytes())}
    out = {}
    for name, array in raw.items():
        base, _, last = name.rpartition(".")
        beside = {key.removeprefix(f"{base}."): value for key, value in raw.items() if key.startswith(f"{base}.")}
        scales = {key: np.asarray(value).astype(np.float64) for key, value in beside.items() if key != last}
        if array.dtype == np.uint8 and last in ("weight", "weight_packed", "packed"):
            codes = CODES[np.stack((array & 15, array >> 4), axis=-1)].reshape(len(array), -1)
            block = scales["scale" if last == "packed" else "weight_scale"]
            if last != "packed" and beside["weight_scale"].dtype == np.uint8:
                block = 2.0 ** (block - 127)
            factor = scales.get("weight_scale_2", 1) / scales.get("weight_global_scale", scales.get("global_scale", 1))
            values = codes * block.repeat(codes.shape[1] // block.shape[1], axis=1) * factor
            out[base if last == "packed" else f"{base}.weight"] = values
        elif last == "weight_blocks":
            codes = CODES[np.stack((array & 15, array >> 4), axis=-1)].reshape(len(array), -1)
            out[f"{base}.weight"] = codes * (2.0 ** (scales["weight_scales"] - 127)).repeat(32, axis=1)
        elif array.dtype == ml_dtypes.float8_e4m3fn and last == "weight":
            codes = array.astype(np.float64)
            if "weight_scale_inv" in scales:
                tiles = scales["weight_scale_inv"].repeat(128, axis=0).repeat(128, axis=1)
                out[name] = codes * tiles[: codes.shape[0], : codes.shape[1]]
            elif beside["weight_scale"].dtype == np.uint8:
                out[name] = codes * (2.0 ** (scales["weight_scale"] - 127)).repeat(32, axis=1)
            else:
                out[name] = codes * scales["weight_scale"]
        elif array.dtype == ml_dtypes.bfloat16:
            out[name] = array.astype(np.float64)
    return out


def normed(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def angles(config: Mapping[str, Any], count: int) -> Array:
    """Rotation angles [T, D/2] of plain rope and of llama3 frequency bands."""
    scaling = config.get("rope_scaling") or {}
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    dim = config["head_dim"]
    frequency = theta ** (-np.arange(0, dim, 2) / dim)
    if scaling:
        turns = scaling["original_max_position_embeddings"] * frequency / (2 * np.pi)
        share = (turns - scaling["low_freq_factor"]) / (scaling["high_freq_factor"] - scaling["low_freq_factor"])
        share = np.clip(share, 0, 1)
        frequency = frequency * (share + (1 - share) / scaling["factor"])
    return np.arange(count)[:, None] * frequency


def rotated(x: Array, turn: Array) -> Array:
    """x [T, heads, D], halves [a, b] -> [a cos - b sin, b cos + a sin]."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(turn)[:, None], np.sin(turn)[:, None]
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def evaluate(config: Mapping[str, Any], w: Mapping[str, Array], ids: Array) -> Array:
    """Logits [T, V] of a Llama or Qwen3 in float64."""
    eps, heads, kv_heads, dim = (config[k] for k in ("rms_norm_eps", "num_attention_heads", "num_key_value_heads",
                                                     "head_dim"))
    count = len(ids)
    turn = angles(config, count)
    hidden = np.triu(np.ones((count, count), bool), 1)
    x = w["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        def at(name: str, i: int = i) -> Array:
            return w[f"model.layers.{i}.{name}.weight"]

        h = normed(x, at("input_layernorm"), eps)
        q = (h @ at("self_attn.q_proj").T).reshape(count, heads, dim)
        k = (h @ at("self_attn.k_proj").T).reshape(count, kv_heads, dim)
        v = (h @ at("self_attn.v_proj").T).reshape(count, kv_heads, dim)
        if f"model.layers.{i}.self_attn.q_norm.weight" in w:
            q, k = normed(q, at("self_attn.q_norm"), eps), normed(k, at("self_attn.k_norm"), eps)
        q, k = rotated(q, turn), rotated(k, turn).repeat(heads // kv_heads, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(dim)
        scores[:, hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", weights, v.repeat(heads // kv_heads, axis=1))
        x = x + mixed.reshape(count, -1) @ at("self_attn.o_proj").T
        h = normed(x, at("post_attention_layernorm"), eps)
        gate = h @ at("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ at("mlp.up_proj").T)) @ at("mlp.down_proj").T
    head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.asarray(normed(x, w["model.norm.weight"], eps) @ head.T)


def golden(family: str) -> tuple[dict[str, Any], Array, Array]:
    folder = ROOT / "tests" / "data" / family
    with np.load(folder / "golden.npz") as arrays:
        ids = arrays["input_ids"].reshape(-1)
        logits = arrays["logits"].reshape(len(ids), -1)
    return json.loads((folder / "config.json").read_text()), ids, logits


def compare(model: Model, weights: Mapping[str, Array], family: str, form: str) -> None:
    config, ids, logits = golden(family)
    exact = evaluate(config, weights, ids)
    for chunk in (83, 7):
        assert np.abs(model.prefill(ids, chunk) - exact).max() < 3e-4
    distance = float(np.sqrt(np.mean((exact - logits) ** 2)) / logits.std())
    assert DISTANCE[form] / 20 < distance < DISTANCE[form], distance


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_float64_evaluation_is_that_of_the_goldens(family: str) -> None:
    config, ids, logits = golden(family)
    assert np.abs(evaluate(config, stored(ROOT / "tests" / "data" / family), ids) - logits).max() < 1e-3


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("layout", tool.LAYOUTS)
def test_logits_are_those_of_the_stored_numbers(tmp_path: Path, family: str, layout: str) -> None:
    report = tool.convert(ROOT / "tests" / "data" / family, tmp_path, layout, head=True)
    count = 7 * (3 if family == "llama" else 2) + (family == "llama")
    assert sum(bool(kind) for kind in report.values()) == count
    form = tool.LAYOUTS[layout].encode.split("_")[0]
    compare(Model(tmp_path), stored(tmp_path), family, form)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kind", ["nvfp4", "mxfp4"])
def test_gguf_logits_are_those_of_the_dequantised_matrices(tmp_path: Path, family: str, kind: str) -> None:
    """Matrices whose rows fit no block keep their type; those that do not are proven against the gguf package."""
    to_gguf.convert(ROOT / "tests" / "data" / family, tmp_path / "m.gguf", kind=kind, tokenizer=False)
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert kind in {info.format for info in checkpoint.tensors.values()}
    weights = {}
    for name, info in checkpoint.tensors.items():
        w = checkpoint.weight(name)
        weights[name] = FORMATS[w.format].dequantize(w).astype(np.float64).reshape(info.shape)
    compare(Model(tmp_path / "m.gguf"), weights, family, kind)


def test_the_perplexity_tool_scores_pieces_of_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = ROOT / "tests" / "data" / "llama"
    (tmp_path / "t.txt").write_text("the rain in Spain stays mainly in the plain; " * 3)
    assert perplexity.main([str(folder), "--text", str(tmp_path / "t.txt"), "--max-context", "48",
                            "--layouts", "fp8-block", "mxfp4"]) == 0
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["weights", "---", "as stored", "bf16", "fp8-block", "mxfp4"]
    assert [line[1:4] for line in lines[2:]] == [["0", "21", "16.00"], ["0", "21", "16.00"], ["21", "0", "8.01"],
                                                 ["21", "0", "4.25"]]
    with perplexity.LLM(str(folder), device="numpy") as llm:
        ids = llm.tokenizer.encode((tmp_path / "t.txt").read_text())
    nats = count = 0.0
    for i in range(0, len(ids), 48):
        z = Model(folder).prefill(ids[i:i + 48], 48)[:-1].astype(np.float64)
        nats += (np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), ids[i + 1:i + 48]]).sum()
        count += len(z)
    assert float(lines[2][4]) == pytest.approx(nats / count, abs=1e-3) and lines[2][4] == lines[3][4]
    assert perplexity.main([str(folder), "--text", str(tmp_path / "t.txt"), "--max-context", "48", "--activations",
                            "quantized", "--input-peak", "8", "--layouts", "fp8-block", "mxfp4"]) == 0
    lossy = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    assert lossy[4][:4] == lines[4][:4] and lossy[4][4] != lines[4][4]
    assert [line for i, line in enumerate(lossy) if i != 4] == [line for i, line in enumerate(lines) if i != 4]
    assert perplexity.main([str(folder), "--text", str(tmp_path / "absent.txt")]) == 1
    assert "absent.txt" in capsys.readouterr().err


def test_the_perplexity_tool_reproduces_a_float64_reference(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "models" / "stories260K"
    load_tool("llama2c_to_hf").convert(source / "stories260K.bin", source / "tok512.bin", tmp_path / "m")
    golden = json.loads((source / "golden.json").read_text())["nll"][:3]
    (tmp_path / "g.json").write_text(json.dumps({"nll": golden}))
    pieces = list(perplexity.texts(tmp_path / "g.json", shared_data))
    result = perplexity.measure(tmp_path / "m", "f32", pieces, None, {})
    assert result.tokens == sum(g["n_tokens"] - 1 for g in golden)
    assert result.nats == pytest.approx(sum(g["sum_nll"] for g in golden), abs=2e-2)
