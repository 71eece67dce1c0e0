"""Quantised checkpoints: every published layout read value for value, what is refused and how, and damage."""
from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.checkpoint.quantized import KINDS
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.models.registry import QUANTISED
from blackwell_infer.quant import FORMATS

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]
M = "model.layers.0.mlp.up_proj"
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def folder(path: Path, arrays: Arrays, quantization: Any = None, files: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"]}
    (path / "config.json").write_text(json.dumps(
        config if quantization is None else config | {"quantization_config": quantization}))
    for name, value in (files or {}).items():
        (path / name).write_text(json.dumps(value))
    safetensors.numpy.save_file(arrays, path / "model.safetensors")
    return path


def values(checkpoint: Checkpoint, name: str) -> Array:
    w = checkpoint.weight(name)
    assert w.format == checkpoint.tensors[name].format and w.nbytes == checkpoint.tensors[name].nbytes
    assert w.shape == np.zeros(checkpoint.tensors[name].shape)[None].shape[-2:]
    return FORMATS[w.format].dequantize(w)


def nibbles(packed: Array) -> Array:
    """float64 values of [N, K/2] bytes, low nibble first."""
    return CODES[np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1)]


def e4m3(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(0.01, 400, shape).astype(ml_dtypes.float8_e4m3fn)


def single(value: float, *shape: int) -> Array:
    return np.full(shape, value, np.float32)


def modelopt_nvfp4(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    codes, scales = rng.integers(0, 256, (6, 24), np.uint8), e4m3(rng, 6, 3)
    expected = nibbles(codes) * scales.astype(float).repeat(16, axis=1) * float(np.float32(0.0123))
    return {f"{M}.weight": codes, f"{M}.weight_scale": scales, f"{M}.weight_scale_2": single(0.0123),
            f"{M}.input_scale": single(0.5)}, expected, "nvfp4"


def compressed_nvfp4(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    codes, scales = rng.integers(0, 256, (6, 24), np.uint8), e4m3(rng, 6, 3)
    factor = float(np.float32(1) / np.float32(321.7))
    expected = nibbles(codes) * scales.astype(float).repeat(16, axis=1) * factor
    return {f"{M}.weight_packed": codes, f"{M}.weight_scale": scales, f"{M}.weight_global_scale": single(321.7, 1),
            f"{M}.input_global_scale": single(2, 1)}, expected, "nvfp4"


def compressed_mxfp4(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    codes, scales = rng.integers(0, 256, (6, 32), np.uint8), rng.integers(100, 140, (6, 2), np.uint8)
    return ({f"{M}.weight_packed": codes, f"{M}.weight_scale": scales},
            nibbles(codes) * (2.0 ** (scales.astype(float) - 127)).repeat(32, axis=1), "mxfp4")


def modelopt_mxfp4(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    arrays, expected, form = compressed_mxfp4(rng)
    return {f"{M}.weight": arrays[f"{M}.weight_packed"], f"{M}.weight_scale": arrays[f"{M}.weight_scale"].view(
        ml_dtypes.float8_e8m0fnu)}, expected, form


def hf_mxfp4(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    arrays, expected, form = compressed_mxfp4(rng)
    return {f"{M}_blocks": arrays[f"{M}.weight_packed"].reshape(6, 2, 16),
            f"{M}_scales": arrays[f"{M}.weight_scale"]}, expected, form


def lynn(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    codes, scales = rng.integers(0, 256, (6, 24), np.uint8), rng.uniform(0, 1, (6, 3)).astype(np.float16)
    expected = nibbles(codes) * scales.astype(float).repeat(16, axis=1) / 4.0
    return {f"{M}.weight.packed": codes, f"{M}.weight.scale": scales, f"{M}.weight.global_scale": single(4, 1)}, \
        expected, "nvfp4_f16"


def lynn_e4m3(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    arrays, _, _ = lynn(rng)
    scales = e4m3(rng, 6, 3)
    expected = nibbles(arrays[f"{M}.weight.packed"]) * scales.astype(float).repeat(16, axis=1) / 4.0
    return arrays | {f"{M}.weight.scale": scales}, expected, "nvfp4"


def eights(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(-400, 400, shape).astype(ml_dtypes.float8_e4m3fn)


def mxfp8(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
    codes, scales = eights(rng, 6, 64), rng.integers(100, 140, (6, 2), np.uint8)
    return ({f"{M}.weight": codes, f"{M}.weight_scale": scales},
            codes.astype(float) * (2.0 ** (scales.astype(float) - 127)).repeat(32, axis=1), "mxfp8")


def fp8(*shape: int, dtype: Any = np.float32) -> Callable[[np.random.Generator], tuple[Arrays, Array, str]]:
    def make(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
        codes, scales = eights(rng, 6, 40), rng.uniform(0.01, 1, shape).astype(dtype)
        wide = scales.astype(float).reshape(-1, 1)
        return {f"{M}.weight": codes, f"{M}.weight_scale": scales}, codes.astype(float) * wide, "fp8"

    return make


def fp8_block(name: str, dtype: Any = np.float32, dims: int = 2) -> Callable[[np.random.Generator],
                                                                             tuple[Arrays, Array, str]]:
    def make(rng: np.random.Generator) -> tuple[Arrays, Array, str]:
        codes, scales = eights(rng, 150, 300), rng.uniform(0.01, 1, (2, 3)).astype(dtype)
        wide = scales.astype(float).repeat(128, axis=0)[:150].repeat(128, axis=1)[:, :300]
        stored = scales if dims == 2 else scales.reshape(2, 1, 3, 1)
        return {f"{M}.weight": codes, f"{M}.{name}": stored}, codes.astype(float) * wide, "fp8_block"

    return make


LAYOUTS: dict[str, tuple[Callable[[np.random.Generator], tuple[Arrays, Array, str]], Any]] = {
    "modelopt nvfp4": (modelopt_nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}),
    "compressed nvfp4": (compressed_nvfp4, {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}),
    "compressed mxfp4": (compressed_mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}),
    "modelopt mxfp4": (modelopt_mxfp4, {"quant_method": "modelopt", "quant_algo": "MXFP4"}),
    "hf mxfp4": (hf_mxfp4, {"quant_method": "mxfp4"}),
    "lynn": (lynn, {"quant_method": "lynn_native", "format": "nvfp4_e2m1_rowwise_per_16"}),
    "lynn e4m3": (lynn_e4m3, {"quant_method": "lynn_native"}),
    "mxfp8": (mxfp8, {"quant_method": "modelopt", "quant_algo": "MXFP8"}),
    "fp8 scalar": (fp8(), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "fp8 one": (fp8(1, dtype=ml_dtypes.bfloat16), {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "fp8 rows": (fp8(6), {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}),
    "fp8 column": (fp8(6, 1, dtype=ml_dtypes.bfloat16), {"quant_method": "compressed-tensors"}),
    "fp8 block": (fp8_block("weight_scale_inv"), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "fp8 block bf16": (fp8_block("weight_scale_inv", ml_dtypes.bfloat16), {"quant_method": "fp8"}),
    "fp8 block e8m0": (fp8_block("weight_scale_inv", ml_dtypes.float8_e8m0fnu), {"quant_method": "fp8"}),
    "fp8 block compressed": (fp8_block("weight_scale"), {"quant_method": "compressed-tensors"}),
    "fp8 block modelopt": (fp8_block("weight_scale", dims=4), {"quant_method": "modelopt",
                                                               "quant_algo": "FP8_PB_WO"}),
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path: Path, layout: str, named: bool) -> None:
    """Format, values bit for bit, and hidden scales, with and without a configuration that names them."""
    make, quantization = LAYOUTS[layout]
    arrays, expected, form = make(np.random.default_rng(3))
    more = {f"{M}.bias": single(1, 6), "model.norm.weight": single(1, 4), "model.layers.0.self_attn.k_proj.k_scale":
            single(0.5)}
    checkpoint = open_checkpoint(folder(tmp_path / "m", arrays | more, quantization if named else None))
    assert set(checkpoint.tensors) == {f"{M}.weight", f"{M}.bias", "model.norm.weight"}
    assert checkpoint.tensors[f"{M}.weight"].format == form
    assert np.array_equal(values(checkpoint, f"{M}.weight"), expected.astype(np.float32))
    checkpoint.close()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.weight(f"{M}.weight")


def test_codes_are_views_of_the_file(tmp_path: Path) -> None:
    for name in ("modelopt nvfp4", "hf mxfp4", "lynn", "fp8 block"):
        arrays, _, _ = LAYOUTS[name][0](np.random.default_rng(3))
        w = open_checkpoint(folder(tmp_path / name, arrays)).weight(f"{M}.weight")
        assert not any(np.asarray(part).flags.owndata for part in w.parts[:2] if part.dtype != np.float32)


def test_scales_of_activations(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    for name, wanted in (("modelopt nvfp4", 0.5), ("compressed nvfp4", 0.5), ("fp8 scalar", 0.0)):
        arrays, _, _ = LAYOUTS[name][0](rng)
        assert open_checkpoint(folder(tmp_path / name, arrays)).weight(f"{M}.weight").parts[-1].tolist() == [wanted]


def test_tensors_decide_and_ignore_lists_do_not(tmp_path: Path) -> None:
    """A module that the configuration excludes is read as what it is stored as, and the other way round."""
    rng = np.random.default_rng(3)
    arrays = modelopt_nvfp4(rng)[0]
    other = {name.replace("up_proj", "gate_proj"): array for name, array in fp8()(rng)[0].items()}
    dense = {"model.layers.0.mlp.down_proj.weight": np.ones((4, 6), ml_dtypes.bfloat16)}
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["model.layers.0.mlp.*"]}
    checkpoint = open_checkpoint(folder(tmp_path / "m", arrays | other | dense, quantization))
    assert {n: t.format for n, t in checkpoint.tensors.items()} == {
        f"{M}.weight": "nvfp4", "model.layers.0.mlp.gate_proj.weight": "fp8",
        "model.layers.0.mlp.down_proj.weight": "bf16"}


def test_stacks_show_their_shape_and_read_as_one_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x = "model.layers.0.mlp.experts.down_proj"
    arrays = {f"{x}_blocks": rng.integers(0, 256, (3, 4, 2, 16), np.uint8),
              f"{x}_scales": np.zeros((3, 4, 2), np.uint8)}
    packed = {name.replace("up_proj", "experts.down"): array for name, array in lynn(rng)[0].items()}
    shape = {"quantized_tensors": {"model.layers.0.mlp.experts.down.weight": {"original_shape": [2, 3, 48]}}}
    path = folder(tmp_path / "m", arrays | packed, None, {"lynn_quant_manifest.json": shape})
    checkpoint = open_checkpoint(path)
    assert (checkpoint.tensors[x].shape, checkpoint.tensors[x].nbytes) == ((3, 4, 64), 3 * 4 * 34)
    assert checkpoint.tensors["model.layers.0.mlp.experts.down.weight"].shape == (2, 3, 48)
    one = checkpoint.weight(x)
    assert (one.format, one.shape) == ("mxfp4", (12, 64))
    assert np.array_equal(np.asarray(one.parts[0]), arrays[f"{x}_blocks"].reshape(12, 32))
    assert checkpoint.weight("model.layers.0.mlp.experts.down.weight").shape == (6, 48)
    for wrong in ([2, 4, 48], [6], "x", [2, 3, 48.0], [0, 48]):
        shape["quantized_tensors"]["model.layers.0.mlp.experts.down.weight"]["original_shape"] = wrong  # type: ignore
        (path / "lynn_quant_manifest.json").write_text(json.dumps(shape))
        with pytest.raises(CheckpointError, match="original_shape"):
            open_checkpoint(path)
    (path / "lynn_quant_manifest.json").write_text(json.dumps({"quantized_tensors": {"model.layers.9.x": {}}}))
    with pytest.raises(CheckpointError, match=r"manifest.json: lists none of the packed .*belongs to another model"):
        open_checkpoint(path)


def test_shards_may_part_a_matrix_from_its_scales(tmp_path: Path) -> None:
    arrays, expected, _ = modelopt_nvfp4(np.random.default_rng(3))
    path = folder(tmp_path / "m", {}, {"quant_method": "modelopt", "quant_algo": "NVFP4"})
    (path / "model.safetensors").unlink()
    for i, (name, array) in enumerate(arrays.items()):
        safetensors.numpy.save_file({name: array}, path / f"model-{i + 1:05d}-of-00004.safetensors")
    assert np.array_equal(values(open_checkpoint(path), f"{M}.weight"), expected.astype(np.float32))


def without(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {n: a for n, a in arrays.items() if n != f"{M}.{name}"}


def instead(name: str, array: Array) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {f"{M}.{name}": array}


E4M3_GRID = np.ones((6, 3), ml_dtypes.float8_e4m3fn)
WRONG: list[tuple[str, Callable[[Arrays], Arrays], str]] = [
    ("modelopt nvfp4", without("weight_scale"), r"up_proj\.weight' needs tensor .*weight_scale' \(F8_E4M3 \[6, 3\].*"
     r"is missing; beside it there is .*weight_scale_2' F32 \[\]"),
    ("modelopt nvfp4", lambda a: {f"{M}.weight": a[f"{M}.weight"]}, r"up_proj\.weight' needs tensor .*weight_scale' "
     r"\(F8_E4M3 \[6, 3\] or U8 .*is missing; beside it"),
    ("modelopt nvfp4", without("weight_scale_2"), r"needs tensor .*weight_scale_2' \(F32 \[\] or \[1\].*missing"),
    ("modelopt nvfp4", without("weight"), r"weight_scale_2' is F32 \[\], expected to belong to codes"),
    ("modelopt nvfp4", instead("weight_scale", E4M3_GRID[:5]),
     r"weight_scale' is F8_E4M3 \[5, 3\], expected .*\[6, 3\]"),
    ("modelopt nvfp4", instead("weight_scale", single(1, 6, 3)), r"weight_scale' is F32 .*expected F8_E4M3 \[6, 3\]"),
    ("modelopt nvfp4", instead("weight_scale_2", single(1, 6)), r"weight_scale_2' is F32 \[6\], expected F32 \[\]"),
    ("modelopt nvfp4", instead("input_scale", single(1, 6)), r"input_scale' is F32 \[6\]"),
    ("modelopt nvfp4", instead("weight", np.ones((6, 48), ml_dtypes.bfloat16)),
     r"weight_scale_2' is .*belong to codes.* 'model.layers.0.mlp.up_proj.weight' BF16"),
    ("modelopt nvfp4", instead("weight", np.zeros((6, 20), np.uint8)), r"weight' is U8 \[6, 20\].*multiple of 16"),
    ("modelopt nvfp4", instead("pre_quant_scale", single(1, 48)), r"pre_quant_scale' changes the meaning"),
    ("modelopt nvfp4", instead("weight_packed", np.zeros((6, 24), np.uint8)), "needs tensor|are both"),
    ("compressed nvfp4", without("weight_global_scale"), r"needs tensor .*weight_global_scale' .*missing"),
    ("compressed nvfp4", instead("weight_packed", np.zeros((6, 6), np.int32)), "4-bit integers"),
    ("compressed nvfp4", instead("weight_packed", np.zeros((6, 6), np.float16)), r"F16 \[6, 6\], expected U8"),
    ("compressed mxfp4", instead("weight_scale", np.zeros((6, 3), np.uint8)), r"U8 \[6, 3\], expected .*\[6, 2\]"),
    ("hf mxfp4", lambda a: {f"{M}_blocks": a[f"{M}_blocks"]}, r"up_proj_blocks' needs tensor .*up_proj_scales'"),
    ("lynn", without("weight.scale"), r"needs tensor .*weight\.scale' \(F16 or F8_E4M3 \[6, 3\]"),
    ("lynn", without("weight.global_scale"), r"needs tensor .*global_scale'"),
    ("mxfp8", instead("weight_scale", np.zeros((6, 3), np.uint8)),
     r"weight_scale' is U8 \[6, 3\], expected one number"),
    ("fp8 scalar", without("weight_scale"), r"needs tensor .*weight_scale' \(one number, \[6, 1\], \[1, 1\]"),
    ("fp8 column", instead("weight_scale", single(1, 5, 1)), r"weight_scale' is F32 \[5, 1\]"),
    ("fp8 block", instead("weight_scale_inv", single(1, 2, 2)), r"weight_scale_inv' is F32 \[2, 2\], .*\[2, 3\]"),
    ("fp8 block", without("weight_scale_inv"), "needs tensor"),
]


@pytest.mark.parametrize(("layout", "change", "match"), WRONG)
def test_missing_and_misshapen_scales_are_named(tmp_path: Path, layout: str, change: Callable[[Arrays], Arrays],
                                                match: str) -> None:
    arrays, _, _ = LAYOUTS[layout][0](np.random.default_rng(3))
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(folder(tmp_path / "m", change(arrays), LAYOUTS[layout][1]))
    assert "model.safetensors" in str(caught.value) and len(str(caught.value)) < 1500


@pytest.mark.parametrize(("layout", "name", "array", "match"), [
    ("modelopt nvfp4", "weight_scale", -E4M3_GRID, "negative or NaN"),
    ("modelopt nvfp4", "weight_scale", np.full((6, 3), np.nan, ml_dtypes.float8_e4m3fn), "negative or NaN"),
    ("lynn", "weight.scale", np.full((6, 3), np.inf, np.float16), "NaN or infinite"),
    ("modelopt nvfp4", "weight_scale_2", single(np.nan), "NaN or infinite"),
    ("modelopt nvfp4", "weight_scale_2", single(-1), "no scale"),
    ("compressed nvfp4", "weight_global_scale", single(0), "no scale"),
    ("compressed nvfp4", "input_global_scale", single(0), "no scale"),
    ("fp8 column", "weight_scale", single(np.inf, 6, 1), "NaN or infinite"),
    ("fp8 block e8m0", "weight_scale_inv", np.full((2, 3), np.nan, ml_dtypes.float8_e8m0fnu), "NaN or infinite"),
])
def test_impossible_scales_are_refused_when_read(tmp_path: Path, layout: str, name: str, array: Array,
                                                 match: str) -> None:
    arrays, _, _ = LAYOUTS[layout][0](np.random.default_rng(3))
    checkpoint = open_checkpoint(folder(tmp_path / "m", arrays | {f"{M}.{name}": array}))
    with pytest.raises(CheckpointError, match=rf"{name}.*{match}"):
        checkpoint.weight(f"{M}.weight")


@pytest.mark.parametrize(("quantization", "match"), [
    ({"quant_method": "modelopt", "quant_algo": "NVFP4_AWQ"}, "NVFP4_AWQ.*W4A16_NVFP4"),
    ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "INT8"}}},
     "INT8"),
    ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "pack-quantized.*nvfp4-pack-quantized"),
    ({"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": {
        "group_0": {"format": "marlin-24"}}}, "marlin-24"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int"}}}}, "type int"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"symmetric": False}}}}, "zero points"),
    ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"block_structure": [64, 64]}}}},
     r"\[64, 64\]"),
    ({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}, "transform_config"),
    ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24.*dense"),
    ({"quant_method": "fp8", "weight_block_size": [1, 128]}, r"\[1, 128\].*\[128, 128\]"),
])
def test_settings_that_change_the_meaning_are_refused(tmp_path: Path, quantization: Any, match: str) -> None:
    with pytest.raises(UnsupportedModelError, match=match):
        open_checkpoint(folder(tmp_path / "m", {"a": single(1, 2)}, quantization))


def test_older_releases_say_it_in_a_file_of_its_own(tmp_path: Path) -> None:
    sidecar = {"quantization": {"quant_algo": "NVFP4_AWQ"}}
    with pytest.raises(UnsupportedModelError, match="NVFP4_AWQ"):
        open_checkpoint(folder(tmp_path / "m", {"a": single(1, 2)}, None, {"hf_quant_config.json": sidecar}))


def test_unknown_kinds_are_left_to_the_registry(tmp_path: Path) -> None:
    assert KINDS == QUANTISED
    arrays = {f"{M}.weight": np.zeros((6, 24), np.uint8), f"{M}.weight_scale": single(1)}
    checkpoint = open_checkpoint(folder(tmp_path / "m", arrays, {"quant_method": "bitsandbytes"}))
    assert checkpoint.tensors[f"{M}.weight"].format == ""
    with pytest.raises(UnsupportedModelError, match="U8"):
        checkpoint.weight(f"{M}.weight")


def decoded(path: Path) -> None:
    checkpoint = open_checkpoint(path)
    for name, info in checkpoint.tensors.items():
        if info.format and len(info.shape) <= 2:
            FORMATS[info.format].dequantize(checkpoint.weight(name))


ANY = st.recursive(st.none() | st.booleans() | st.integers(-2, 300) | st.text(max_size=3) | st.floats(),
                   lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                       st.sampled_from(["quant_algo", "format", "weights", "type", "a"]), inner, max_size=3))


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_gives_typed_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    """Headers, configurations and bytes of quantised folders, changed at will."""
    layout = data.draw(st.sampled_from(sorted(LAYOUTS)))
    make, quantization = LAYOUTS[layout]
    arrays, _, _ = make(np.random.default_rng(3))
    quantization = copy.deepcopy(quantization)
    if data.draw(st.booleans()):
        key = data.draw(st.sampled_from(["quant_method", "quant_algo", "format", "config_groups", "quantized_layers",
                                         "weight_block_size", "transform_config"]))
        quantization[key] = data.draw(ANY)
    path = folder(tmp_path / "m", arrays, quantization)
    manifest = path / "lynn_quant_manifest.json"
    manifest.write_text(json.dumps({"quantized_tensors": {f"{M}.weight": data.draw(ANY)}}))
    file = path / "model.safetensors"
    raw = file.read_bytes()
    size = struct.unpack_from("<Q", raw)[0]
    header, body = json.loads(raw[8:8 + size]), bytearray(raw[8 + size:])
    for _ in range(data.draw(st.integers(0, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        entry = header[name]
        change = data.draw(st.sampled_from(["rename", "dtype", "shape", "copy"]))
        if change == "rename":
            header[data.draw(st.sampled_from([f"{M}.weight", f"{M}.weight_scale", f"{M}_blocks", "b_blocks", "packed"])
                             )] = header.pop(name)
        elif change == "dtype":
            entry["dtype"] = data.draw(st.sampled_from(["U8", "I8", "F8_E4M3", "F8_E8M0", "F8_E5M2", "F4", "BOOL"]))
        elif change == "shape":
            count = int(np.prod(entry["shape"]))
            entry["shape"] = data.draw(st.sampled_from([[count], [1, count], [count, 1], [1, 1, 1, count],
                                                        [count // 2, 2], [count // 16, 1, 16], []]))
        else:
            copied = data.draw(st.sampled_from(["input_scale", "weight_packed", "weight_scale_2"]))
            header[f"{M}.{copied}"] = dict(entry)
    for _ in range(data.draw(st.integers(0, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from([0, 0x7F, 0x80, 0xFF]))
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + body)
    try:
        decoded(path)
    except CheckpointError as error:
        assert str(path) in str(error)
