"""tools/quantize_hf.py writes what the reader reads, hf_to_gguf.py keeps it, and GGUF scales become factors."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint_quantized import Array, M, folder, single, values
from test_gguf import build, config_pairs, tensor_rows
from tooling import load_tool

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.checkpoint.quantized import KINDS
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.encode_fp import encode_fp

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests/data"


tool = load_tool("quantize_hf")
to_gguf = load_tool("hf_to_gguf")


def original(name: str) -> Array:
    return values(open_checkpoint(GOLDENS / "llama"), name)


@pytest.mark.parametrize("layout", tool.LAYOUTS)
def test_the_tool_writes_what_the_reader_reads(tmp_path: Path, layout: str) -> None:
    report = tool.convert(GOLDENS / "llama", tmp_path / "m", layout, head=True, peak=8.0)
    ours, theirs = open_checkpoint(tmp_path / "m"), open_checkpoint(GOLDENS / "llama")
    assert set(ours.tensors) == set(theirs.tensors)
    assert {module for module, kind in report.items() if not kind} == {"model.embed_tokens"}
    chosen = tool.LAYOUTS[layout]
    for name, info in theirs.tensors.items():
        got = ours.tensors[name]
        assert got.shape == info.shape
        if got.format == "bf16":
            assert np.array_equal(values(ours, name), values(theirs, name))
            continue
        attention = chosen.attention is not None and "self_attn" in name
        w = encode_fp(original(name), chosen.attention[0] if attention else chosen.encode)
        assert got.format == w.format
        expected = FORMATS[w.format].dequantize(w)
        if layout.startswith("compressed-tensors-nvfp4"):
            assert np.abs(values(ours, name) - expected).max() <= 3 * 2.0**-24 * np.abs(expected).max()
        else:
            assert np.array_equal(values(ours, name), expected)
    quantization = ours.config["quantization_config"]
    assert quantization["quant_method"] in KINDS
    if layout == "modelopt-mixed":
        assert quantization["quantized_layers"]["model.layers.0.self_attn.q_proj"] == {"quant_algo": "FP8"}
        sidecar = json.loads((tmp_path / "m/hf_quant_config.json").read_text())
        assert sidecar["quantization"]["exclude_modules"] == []
        inputs = ours.weight("model.layers.0.self_attn.q_proj.weight").parts[-1]
        assert np.asarray(inputs).tolist() == [np.float32(8 / 448)]


def test_the_tool_keeps_what_does_not_fit_and_refuses_what_is_quantised(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "s", {f"{M}.weight": np.ones((4, 40), np.float32), "model.norm.weight": single(1, 40)})
    assert tool.main([str(source), str(tmp_path / "m"), "--layout", "modelopt-nvfp4"]) == 0
    assert f"0 matrices quantised; kept: {M}" in capsys.readouterr().err
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.tensors[f"{M}.weight"].format == "f32"
    assert checkpoint.config["quantization_config"]["ignore"] == [M]
    assert tool.main([str(tmp_path / "m"), str(tmp_path / "x"), "--layout", "mxfp4"]) == 1
    assert "quantised already" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "compressed-tensors-nvfp4", "mxfp4"])
def test_folders_become_gguf_without_changing_a_value(tmp_path: Path, layout: str) -> None:
    tool.convert(GOLDENS / "mistral", tmp_path / "m", layout, peak=8.0)
    to_gguf.convert(tmp_path / "m", tmp_path / "m.gguf", tokenizer=False)
    ours, theirs = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "m")
    for name, info in theirs.tensors.items():
        assert ours.tensors[name].format == (info.format if len(info.shape) == 2 else "f32")
        assert np.array_equal(values(ours, name), values(theirs, name)), name
        if info.format == "nvfp4":
            assert np.array_equal(ours.weight(name).parts[3], theirs.weight(name).parts[3])


def test_what_gguf_cannot_hold_is_named(tmp_path: Path) -> None:
    for layout, match in (("modelopt-nvfp4", r"down_proj.weight' is nvfp4 with rows of 160"), ("mxfp8", "is mxfp8")):
        tool.convert(GOLDENS / "llama", tmp_path / layout, layout)
        with pytest.raises(UnsupportedModelError, match=rf"{match}.*choose one of f32"):
            to_gguf.convert(tmp_path / layout, tmp_path / "m.gguf", tokenizer=False)
    to_gguf.convert(tmp_path / "modelopt-nvfp4", tmp_path / "m.gguf", kind="f32", tokenizer=False)
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(values(open_checkpoint(tmp_path / "m.gguf"), name),
                          values(open_checkpoint(tmp_path / "modelopt-nvfp4"), name))


def nvfp4_rows(scale: Array | None, inputs: Array | None = None) -> list[Any]:
    """A GGUF model whose `ffn_down` [32, 64] is NVFP4."""
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (32, 36), np.uint8)
    blocks[:, :4] &= 0x3F
    name = "blk.0.ffn_down"
    out: list[Any] = [row for row in tensor_rows() if row[0] != f"{name}.weight"]
    out.append((f"{name}.weight", (32, 64), 40, blocks.tobytes()))
    for suffix, array in (("scale", scale), ("input_scale", inputs)):
        if array is not None:
            out.append((f"{name}.{suffix}", array.shape, {"f": 0, "u": 24}[array.dtype.kind], array.tobytes()))
    return out


def test_gguf_scales_become_factors(tmp_path: Path) -> None:
    def read(*scales: Array | None) -> Any:
        (tmp_path / "m.gguf").write_bytes(build(config_pairs(), nvfp4_rows(*scales)))
        checkpoint = open_checkpoint(tmp_path / "m.gguf")
        assert not any("scale" in name for name in checkpoint.tensors)
        name = "model.layers.0.mlp.down_proj.weight"
        return values(checkpoint, name), checkpoint.weight(name)

    plain, w = read(None)
    assert (np.asarray(w.parts[2]) == 1).all() and np.asarray(w.parts[3]).tolist() == [0]
    scaled, w = read(single(0.3, 1), single(0.25, 1))
    assert np.array_equal(scaled, plain * np.float32(0.3)) and np.asarray(w.parts[3]).tolist() == [0.25]


@pytest.mark.parametrize(("scale", "match"), [
    (single(1, 3), r"ffn_down\.scale' is f32 \[3\], expected f32 \[1\]"), (np.zeros(1, np.uint8), r"is i8 \[1\]"),
    (single(np.nan, 1), "no scale"), (single(-2, 1), "no scale")])
def test_wrong_gguf_scales_are_named(tmp_path: Path, scale: Array, match: str) -> None:
    (tmp_path / "m.gguf").write_bytes(build(config_pairs(), nvfp4_rows(scale)))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path / "m.gguf")


def test_negative_scales_of_gguf_blocks_are_named(tmp_path: Path) -> None:
    rows = nvfp4_rows(None)
    rows[-1] = (*rows[-1][:3], bytes([200]) + rows[-1][3][1:])
    (tmp_path / "m.gguf").write_bytes(build(config_pairs(), rows))
    with pytest.raises(CheckpointError, match=r"m\.gguf: tensor 'blk.0.ffn_down.weight': .*negative scales"):
        open_checkpoint(tmp_path / "m.gguf").weight("model.layers.0.mlp.down_proj.weight")


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_gguf_scales_give_typed_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(build(config_pairs(), nvfp4_rows(single(0.5, 1), single(2, 1))))
    names = [raw.index(b"ffn_down.scale"), raw.index(b"ffn_down.input_scale"), raw.index(b"ffn_down.weight")]
    for _ in range(data.draw(st.integers(1, 3))):
        near = data.draw(st.sampled_from(names)) + data.draw(st.integers(-8, 50))
        at = data.draw(st.sampled_from([near, len(raw) - 1 - data.draw(st.integers(0, 1300))]))
        raw[at] = data.draw(st.integers(0, 255))
    (tmp_path / "m.gguf").write_bytes(raw)
    try:
        checkpoint = open_checkpoint(tmp_path / "m.gguf")
        for name, info in checkpoint.tensors.items():
            if info.format and len(info.shape) <= 2:
                FORMATS[info.format].dequantize(checkpoint.weight(name))
    except CheckpointError as error:
        assert "m.gguf" in str(error)


def test_gguf_scales_beside_other_types_are_refused(tmp_path: Path) -> None:
    row = ("blk.0.ffn_up.scale", (1,), 0, single(2, 1).tobytes())
    (tmp_path / "m.gguf").write_bytes(build(config_pairs(), [*tensor_rows(), row]))
    with pytest.raises(UnsupportedModelError, match=r"ffn_up\.scale' scales .*ffn_up\.weight' of type f32"):
        open_checkpoint(tmp_path / "m.gguf")
