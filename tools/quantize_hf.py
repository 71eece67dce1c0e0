#!/usr/bin/env python3
"""Quantise a Hugging Face folder into one of the published layouts: tensor names, dtypes and config keys as released.

    python tools/quantize_hf.py model/ out/ --layout modelopt-nvfp4
    python tools/quantize_hf.py model/ out/ --layout fp8-block

Layouts: modelopt-nvfp4, modelopt-mixed (attention FP8, MLP NVFP4), compressed-tensors-nvfp4, compressed-tensors-mxfp4,
lynn, mxfp4 (blocks and scales), mxfp8, fp8-tensor, fp8-channel, fp8-block. Scales come from the weights alone, rounding
is to the nearest. Experts that are stored as one tensor become one matrix each first. Embeddings and lm_head keep their
type (--head quantises lm_head too), and so does a matrix whose columns do not fit the blocks of its format; those are
reported. --input-peak X records scales for activations up to X.
"""
from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.errors import BlackwellInferError, CheckpointError
from blackwell_infer.quant import FORMATS, Weight
from blackwell_infer.quant.encode_fp import encode_fp

Arrays = dict[str, np.ndarray[Any, Any]]
Write = Callable[[str, Weight, np.float32], Arrays]

DENSE = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
RECURRENT = ("in_proj_qkv", "in_proj_z", "out_proj")
PROJECTIONS = (*ATTENTION, *RECURRENT, "gate_proj", "up_proj", "down_proj")
FUSED = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
HEAD = "lm_head"
PRODUCER = {"name": "blackwell-infer", "version": "quantize_hf"}


def parts(w: Weight) -> list[np.ndarray[Any, Any]]:
    return [np.asarray(part) for part in w.parts]


def number(value: Any, *shape: int) -> np.ndarray[Any, Any]:
    return np.full(shape, value, np.float32)


def modelopt_nvfp4(module: str, w: Weight, inputs: np.float32) -> Arrays:
    codes, scales, factors, _ = parts(w)
    out = {"weight": codes, "weight_scale": scales.view(E4M3), "weight_scale_2": number(factors[0])}
    return named(module, out | ({"input_scale": number(inputs)} if inputs else {}))


def compressed_nvfp4(module: str, w: Weight, inputs: np.float32) -> Arrays:
    """The factor is stored as its reciprocal."""
    codes, scales, factors, _ = parts(w)
    out = {"weight_packed": codes, "weight_scale": scales.view(E4M3), "weight_global_scale": number(1 / factors[0], 1)}
    return named(module, out | ({"input_global_scale": number(1 / inputs, 1)} if inputs else {}))


def compressed_mxfp4(module: str, w: Weight, inputs: np.float32) -> Arrays:
    return named(module, {"weight_packed": parts(w)[0], "weight_scale": parts(w)[1]})


def lynn(module: str, w: Weight, inputs: np.float32) -> Arrays:
    codes, scales, factors = parts(w)
    return named(f"{module}.weight", {"packed": codes, "scale": scales, "global_scale": number(1 / factors[0])})


def mxfp4(module: str, w: Weight, inputs: np.float32) -> Arrays:
    codes, scales = parts(w)
    blocks = codes.reshape(*scales.shape, 16)
    return {f"{module}.weight_blocks": blocks, f"{module}.weight_scales": scales}


def mxfp8(module: str, w: Weight, inputs: np.float32) -> Arrays:
    return named(module, {"weight": parts(w)[0].view(E4M3), "weight_scale": parts(w)[1]})


def fp8_tensor(module: str, w: Weight, inputs: np.float32) -> Arrays:
    codes, factors, _ = parts(w)
    out = {"weight": codes.view(E4M3), "weight_scale": number(factors[0])}
    return named(module, out | ({"input_scale": number(inputs)} if inputs else {}))


def fp8_channel(module: str, w: Weight, inputs: np.float32) -> Arrays:
    codes, factors, _ = parts(w)
    return named(module, {"weight": codes.view(E4M3), "weight_scale": factors[:, None]})


def fp8_block(module: str, w: Weight, inputs: np.float32) -> Arrays:
    return named(module, {"weight": parts(w)[0].view(E4M3), "weight_scale_inv": parts(w)[1]})


def named(base: str, arrays: Arrays) -> Arrays:
    return {f"{base}.{name}": array for name, array in arrays.items()}


class Layout(msgspec.Struct, frozen=True):
    """How a released quantisation stores matrices. `encode` is a key of `quant.encode_fp.ENCODERS`; attention may
    differ. `settings(kept, quantised)` makes quantization_config."""

    encode: str
    write: Write
    settings: Callable[[list[str], dict[str, str]], dict[str, Any]]
    attention: tuple[str, Write] | None = None
    largest: float = 6 * 448
    """largest number that an activation is divided down to: 6 * 448 for NVFP4, 448 for FP8"""


def modelopt(algorithm: str, layers: Mapping[str, str]) -> Callable[[list[str], dict[str, str]], dict[str, Any]]:
    def settings(kept: list[str], quantised: dict[str, str]) -> dict[str, Any]:
        out: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": kept,
                               "kv_cache_scheme": None, "producer": PRODUCER}
        if algorithm in ("NVFP4", "MXFP8"):
            out["group_size"] = 16 if algorithm == "NVFP4" else 32
        if layers:
            out["quantized_layers"] = {module: {"quant_algo": layers[kind]} for module, kind in quantised.items()}
        return out

    return settings


def compressed(layout: str, weights: dict[str, Any]) -> Callable[[list[str], dict[str, str]], dict[str, Any]]:
    def settings(kept: list[str], quantised: dict[str, str]) -> dict[str, Any]:
        group = {"format": layout, "targets": ["Linear"], "input_activations": None, "output_activations": None,
                 "weights": {"type": "float", "symmetric": True, "dynamic": False, **weights}}
        return {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed",
                "config_groups": {"group_0": group}, "ignore": kept, "kv_cache_scheme": None}

    return settings


def plain(method: str, **more: Any) -> Callable[[list[str], dict[str, str]], dict[str, Any]]:
    return lambda kept, quantised: {"quant_method": method, **more, "modules_to_not_convert": kept}


LAYOUTS: Mapping[str, Layout] = {
    "modelopt-nvfp4": Layout("nvfp4", modelopt_nvfp4, modelopt("NVFP4", {})),
    "modelopt-mixed": Layout("nvfp4", modelopt_nvfp4, modelopt("MIXED_PRECISION", {"nvfp4": "NVFP4", "fp8": "FP8"}),
                             attention=("fp8", fp8_tensor)),
    "compressed-tensors-nvfp4": Layout("nvfp4", compressed_nvfp4, compressed(
        "nvfp4-pack-quantized", {"num_bits": 4, "strategy": "tensor_group", "group_size": 16})),
    "compressed-tensors-mxfp4": Layout("mxfp4", compressed_mxfp4, compressed(
        "mxfp4-pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32})),
    "lynn": Layout("nvfp4_f16", lynn, plain("lynn_native", format="nvfp4_e2m1_rowwise_per_16")),
    "mxfp4": Layout("mxfp4", mxfp4, plain("mxfp4")),
    "mxfp8": Layout("mxfp8", mxfp8, modelopt("MXFP8", {})),
    "fp8-tensor": Layout("fp8", fp8_tensor, modelopt("FP8", {}), largest=448),
    "fp8-channel": Layout("fp8_channel", fp8_channel, compressed(
        "float-quantized", {"num_bits": 8, "strategy": "channel"})),
    "fp8-block": Layout("fp8_block", fp8_block, plain(
        "fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128])),
}


def tensors(checkpoint: Checkpoint, name: str) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """(name, values) of a stored tensor as it is, or of the matrices of experts that are one tensor [E, rows, K]."""
    info = checkpoint.tensors[name]
    if info.format not in DENSE:
        raise CheckpointError(f"{info.file}: tensor {name!r} is {info.format} already; start from unquantised weights")
    values = np.ascontiguousarray(parts(checkpoint.weight(name))[0]).view(DENSE[info.format]).reshape(info.shape)
    experts, _, last = name.rpartition(".")
    if not (experts.endswith(".experts") and last in FUSED):
        yield name, values
        return
    for e, whole in enumerate(values):
        for projection, matrix in zip(FUSED[last], np.split(whole, len(FUSED[last])), strict=True):
            yield f"{experts}.{e}.{projection}.weight", np.ascontiguousarray(matrix)


def quantised(
    name: str, values: np.ndarray[Any, Any], layout: Layout, head: bool, peak: float, report: dict[str, str],
) -> Arrays:
    """The tensors to store for one matrix or vector; `report` learns "" for kept matrices, else the format."""
    module, _, suffix = name.rpartition(".")
    last = module.rpartition(".")[2]
    if suffix == "weight" and values.ndim == 2 and (last in PROJECTIONS or (head and last == HEAD)):
        encode, write, largest = layout.encode, layout.write, layout.largest
        if layout.attention is not None and last in (*ATTENTION, *RECURRENT):
            (encode, write), largest = layout.attention, 448
        kind = encode.removesuffix("_channel")
        if values.shape[1] % FORMATS[kind].block == 0:
            report[module] = kind
            return write(module, encode_fp(values, encode), np.float32(peak / largest))
    if suffix == "weight" and values.ndim == 2:
        report[module] = ""
    return {name: values}


def shards(checkpoint: Checkpoint) -> Iterator[tuple[str, list[str]]]:
    """(file name, tensor names) of every stored file."""
    files: dict[str, list[str]] = {}
    for name, info in checkpoint.tensors.items():
        files.setdefault(Path(info.file).name, []).append(name)
    yield from files.items()


def convert(folder: Path, out: Path, layout: str, *, head: bool = False, peak: float = 0.0) -> dict[str, str]:
    """Write the quantised folder; returns the format of every matrix ("" for those that keep their type)."""
    from safetensors.numpy import save_file

    checkpoint = open_checkpoint(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: give a Hugging Face folder")
    if checkpoint.config.get("quantization_config") is not None:
        raise CheckpointError(f"{folder}: is quantised already; start from unquantised weights")
    chosen = LAYOUTS[layout]
    out.mkdir(parents=True, exist_ok=True)
    report: dict[str, str] = {}
    where: dict[str, str] = {}
    shapes: dict[str, Any] = {}
    for file, names in shards(checkpoint):
        arrays: Arrays = {}
        for name, values in itertools.chain.from_iterable(tensors(checkpoint, name) for name in names):
            new = quantised(name, values, chosen, head, peak, report)
            arrays |= new
            if f"{name}.packed" in new:
                keys = {f"{key}_key": f"{name}.{key}" for key in ("packed", "scale", "global_scale")}
                shapes[name] = keys | {"original_shape": list(values.shape)}
        save_file(arrays, out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(arrays, file)
    for path in folder.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in path.name:
            shutil.copyfile(path, out / path.name)
    if len(set(where.values())) > 1:
        write_json(out / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    kept = sorted(module for module, kind in report.items() if not kind and not module.endswith("embed_tokens"))
    settings = chosen.settings(kept, {module: kind for module, kind in report.items() if kind})
    write_json(out / "config.json", dict(checkpoint.config) | {"quantization_config": settings})
    if settings["quant_method"] == "modelopt":
        inner = {"quant_algo": settings["quant_algo"], "kv_cache_quant_algo": None, "exclude_modules": kept}
        inner |= {key: settings[key] for key in ("group_size", "quantized_layers") if key in settings}
        write_json(out / "hf_quant_config.json", {"producer": PRODUCER, "quantization": inner})
    if shapes:
        write_json(out / "lynn_quant_manifest.json", {
            "schema_version": "lynn-variable-nvfp4-pack-v1", "quantized_tensors": shapes,
            "kept_tensors": sorted(name for name in where if name.rpartition(".")[0] not in shapes)})
    return report


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder (config.json and safetensors)")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--head", action="store_true", help="quantise lm_head too")
    parser.add_argument("--input-peak", type=float, default=0.0, metavar="X",
                        help="record activation scales for inputs of magnitude up to X (default: none)")
    args = parser.parse_args(argv)
    try:
        report = convert(args.folder, args.out, args.layout, head=args.head, peak=args.input_peak)
    except (BlackwellInferError, OSError) as error:
        print(f"quantize_hf: {error}", file=sys.stderr)
        return 1
    kept = [module for module, kind in report.items() if not kind]
    count = len(report) - len(kept)
    print(f"{args.out}: {count} matrices quantised; kept: {', '.join(kept) or 'none'}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
