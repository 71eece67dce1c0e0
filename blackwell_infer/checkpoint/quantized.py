"""Quantised matrices of a Hugging Face folder: which stored tensors make up each, and in which format.

The format follows from the dtype of the codes and from the scale tensors that stand beside them; lists of ignored
modules in configurations are not trusted. The configuration only has to be of a kind whose scales have a known meaning.
Stored layouts, N rows and K columns:

    X.weight U8 [N, K/2]         X.weight_scale F8_E4M3 [N, K/16], X.weight_scale_2    ModelOpt NVFP4, multiplied
    X.weight U8 [N, K/2]         X.weight_scale U8 [N, K/32]                           MXFP4
    X.weight_packed U8 [N, K/2]  X.weight_scale F8_E4M3, X.weight_global_scale         compressed-tensors NVFP4, divided
    X.weight_packed U8 [N, K/2]  X.weight_scale U8 [N, K/32]                           compressed-tensors MXFP4
    X.weight F8_E4M3 [N, K]      X.weight_scale U8 [N, K/32]                           MXFP8
    X.weight F8_E4M3 [N, K]      X.weight_scale [] or [1]; [N] or [N, 1]               FP8 per tensor; per row
    X.weight F8_E4M3 [N, K]      X.weight_scale(_inv) [N/128, K/128], rounded up       FP8 per block, multiplied
    X_blocks U8 [.., N, K/32, 16]  X_scales U8 [.., N, K/32]                           MXFP4
    X.packed U8 [N, K/2]         X.scale F16 (or F8_E4M3) [N, K/16], X.global_scale    Lynn, divided

Scales of activations (input_scale, input_global_scale) go with the weight; those of caches are left out.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import ml_dtypes
import msgspec
import numpy as np

from blackwell_infer.checkpoint.mapped import shorten
from blackwell_infer.checkpoint.safetensors_file import SafetensorsFile, StoredTensor
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS, Weight
from blackwell_infer.quant.format import layout_bytes
from blackwell_infer.quant.fp8 import FP8, FP8_BLOCK, SIDE
from blackwell_infer.quant.mxfp4 import MXFP4, MXFP8
from blackwell_infer.quant.nvfp4 import NVFP4, NVFP4_F16
from blackwell_infer.quant.packed import E8M0, Values

Stored = Mapping[str, tuple[SafetensorsFile, StoredTensor]]

REALS: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)})
BYTES = ("U8", "F8_E4M3", "F8_E8M0")
EXPONENTS = ("U8", "F8_E8M0")
SCALARS = ((), (1,), (1, 1))

BESIDE = ("input_scale", "input_global_scale", "k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale",
          "output_scale")
"""Scales of activations and caches: no parameters of a model."""
SCALES = ("weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale")
UNKNOWN = ("pre_quant_scale", "weight_zero_point", "weight_g_idx")
"""Tensors that change the meaning of a matrix in a way that is not supported."""

ALGORITHMS = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "W4A8_NVFP4_FP8", "MXFP4",
              "W4A8_MXFP4_FP8", "MXFP8", "MIXED_PRECISION")
"""ModelOpt's `quant_algo`"""
LAYOUTS = ("dense", "nvfp4-pack-quantized", "mxfp4-pack-quantized", "float-quantized", "naive-quantized",
           "mixed-precision")
"""compressed-tensors' `format`"""
KINDS = ("modelopt", "compressed-tensors", "fp8", "mxfp4", "lynn_native")


class QuantizedTensor(msgspec.Struct, frozen=True, gc=False):
    """One quantised matrix: stored names of its parts, "" for those it does not have; `shape` is logical."""

    format: str
    shape: tuple[int, ...]
    codes: str
    scales: str = ""
    factor: str = ""
    inputs: str = ""
    divides: bool = False
    """factor and inputs are reciprocals"""

    @property
    def nbytes(self) -> int:
        """Bytes of all parts as a `Weight` has them."""
        return layout_bytes(FORMATS[self.format].layout((math.prod(self.shape[:-1]), self.shape[-1])))


class Quantized(msgspec.Struct, frozen=True):
    """What was found: quantised matrices by plain name, and the stored names that stand behind them or beside."""

    tensors: Mapping[str, QuantizedTensor]
    hidden: frozenset[str]


def settings_of(config: Mapping[str, Any], sidecar: Mapping[str, Any]) -> Any:
    """`quantization_config`, however it is spelled; `sidecar` is hf_quant_config.json or {}."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            return config[key]
    inner = sidecar.get("quantization")
    return {"quant_method": "modelopt"} | inner if isinstance(inner, dict) else None


def find_quantized(path: Path, settings: Any, stored: Stored, shapes: Mapping[str, Any]) -> Quantized:
    """All quantised matrices of a folder, from headers alone. `shapes`: Lynn's manifest, {name: {original_shape}}.

    UnsupportedModelError: an algorithm whose scales have no known meaning. CheckpointError names a scale tensor that is
    missing or misshapen, what was expected, and what exists. Kinds that nobody here knows are left as they are, for
    `models.registry` to refuse.
    """
    if settings is not None and (not isinstance(settings, Mapping) or settings.get("quant_method") not in KINDS):
        return Quantized({}, frozenset())
    if settings is not None:
        check_settings(path, settings)
    finder = _Finder(stored, shapes)
    for name in stored:
        finder.visit(name)
    finder.check_orphans()
    return Quantized(MappingProxyType(finder.found), frozenset(finder.hidden))


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """UnsupportedModelError names an algorithm, layout or block size that changes what scales mean."""
    def refuse(what: str, known: Iterable[str]) -> NoReturn:
        raise UnsupportedModelError(f"{path}: quantization_config: {what} is not supported; known are "
                                    f"{', '.join(known)}. Take another release of this model")

    method = settings["quant_method"]
    if method == "modelopt":
        layers = settings.get("quantized_layers")
        inner = layers.values() if isinstance(layers, Mapping) else ()
        for entry in (settings, *(e for e in inner if isinstance(e, Mapping))):
            algorithm = entry.get("quant_algo")
            if algorithm is not None and algorithm not in ALGORITHMS:
                refuse(f"quant_algo {shorten(str(algorithm))}", ALGORITHMS)
    elif method == "compressed-tensors":
        groups = settings.get("config_groups")
        entries = [e for e in groups.values() if isinstance(e, Mapping)] if isinstance(groups, Mapping) else []
        for entry in (settings, *entries):
            layout = entry.get("format")
            if layout is not None and layout not in LAYOUTS:
                refuse(f"format {shorten(str(layout))}", LAYOUTS)
            weights = entry.get("weights")
            if isinstance(weights, Mapping):
                if weights.get("symmetric") is False or weights.get("type", "float") != "float":
                    refuse("weights of type int or with zero points", ("symmetric float weights",))
                if weights.get("block_structure") not in (None, [SIDE, SIDE]):
                    refuse(f"block_structure {weights['block_structure']!r}", (f"[{SIDE}, {SIDE}]",))
        if settings.get("transform_config"):
            refuse("transform_config", ("no transforms",))
        sparse = settings.get("sparsity_config")
        if isinstance(sparse, Mapping) and sparse.get("format") not in (None, "dense"):
            refuse(f"sparsity_config format {shorten(str(sparse['format']))}", ("dense",))
    elif method == "fp8" and settings.get("weight_block_size") not in (None, [SIDE, SIDE]):
        refuse(f"weight_block_size {settings['weight_block_size']!r}", (f"[{SIDE}, {SIDE}]",))


class _Finder:
    """Walks over stored names and collects matrices; every check is on headers."""

    def __init__(self, stored: Stored, shapes: Mapping[str, Any]) -> None:
        self.stored = stored
        self.shapes = shapes
        self.found: dict[str, QuantizedTensor] = {}
        self.hidden: set[str] = set()
        self.beside: dict[str, list[str]] = defaultdict(list)
        for name in stored:
            self.beside[name.rpartition(".")[0]].append(name)

    def visit(self, name: str) -> None:
        """Take `name` as codes, if they are such."""
        module, _, last = name.rpartition(".")
        t = self.stored[name][1]
        if last in BESIDE:
            self.hidden.add(name)
        elif last == "weight_packed" or (last == "weight" and t.dtype == "U8" and len(t.shape) == 2):
            self.packed(name, module)
        elif last == "weight" and t.dtype == "F8_E4M3" and len(t.shape) == 2:
            self.fp8(name, module)
        elif last == "packed" and t.dtype == "U8":
            self.lynn(name, module)
        elif name.endswith("_blocks") and t.dtype == "U8" and len(t.shape) in (3, 4) and t.shape[-1] == 16:
            self.blocks(name, name.removesuffix("_blocks"))

    def packed(self, name: str, module: str) -> None:
        """E2M1 codes of ModelOpt or compressed-tensors."""
        t = self.stored[name][1]
        divides = name.endswith("_packed")
        if t.dtype != "U8" or len(t.shape) != 2:
            if t.dtype == "I32":
                raise UnsupportedModelError(f"{self.at(name)} holds 4-bit integers (pack-quantized), which are not "
                                            "supported; take an NVFP4, FP8 or GGUF release of this model")
            self.fail(name, "U8 of 2 dimensions")
        shape = (t.shape[0], 2 * t.shape[1])
        scales = f"{module}.weight_scale"
        if not self.has(scales):
            self.missing(name, scales, f"F8_E4M3 {[shape[0], shape[1] // 16]} or U8 {[shape[0], shape[1] // 32]}")
        if self.stored[scales][1].dtype in EXPONENTS:
            self.part(name, scales, EXPONENTS, self.grid(name, shape, 32))
            self.put(name, module, QuantizedTensor("mxfp4", shape, name, scales))
            return
        self.part(name, scales, ("F8_E4M3",), self.grid(name, shape, 16))
        factor = f"{module}.{'weight_global_scale' if divides else 'weight_scale_2'}"
        self.part(name, factor, ("F32",), *SCALARS)
        inputs = self.optional(name, f"{module}.{'input_global_scale' if divides else 'input_scale'}")
        self.put(name, module, QuantizedTensor("nvfp4", shape, name, scales, factor, inputs, divides))

    def fp8(self, name: str, module: str) -> None:
        """E4M3 codes: the shape of the scales says whether they are per matrix, row, 128 x 128 or 32 elements."""
        rows, cols = shape = self.stored[name][1].shape
        scales = f"{module}.weight_scale_inv" if self.has(f"{module}.weight_scale_inv") else f"{module}.weight_scale"
        tiles = (-(-rows // SIDE), -(-cols // SIDE))
        wanted = f"one number, {[rows, 1]}, {list(tiles)}, or U8 {[rows, cols // 32]}"
        if not self.has(scales):
            self.missing(name, scales, wanted)
        t = self.stored[scales][1]
        inputs = self.optional(name, f"{module}.input_scale")
        if t.dtype in EXPONENTS and cols % 32 == 0 and t.shape == (rows, cols // 32):
            q = QuantizedTensor("mxfp8", shape, name, scales)
        elif (t.dtype in (*REALS, "F8_E8M0") and t.shape in (tiles, (tiles[0], 1, tiles[1], 1))
              and (scales.endswith("_inv") or tiles != (1, 1))):
            q = QuantizedTensor("fp8_block", shape, name, scales)
        elif t.dtype in REALS and t.shape in (*SCALARS, (rows,), (rows, 1)):
            q = QuantizedTensor("fp8", shape, name, "", scales, inputs)
        else:
            self.fail(scales, wanted)
        self.hidden.add(scales)
        self.put(name, module, q)

    def lynn(self, name: str, base: str) -> None:
        """E2M1 codes whose leading dimensions are flattened; a manifest may say what they were."""
        t = self.stored[name][1]
        if len(t.shape) != 2:
            self.fail(name, "2 dimensions")
        shape: tuple[int, ...] = (t.shape[0], 2 * t.shape[1])
        self.part(name, f"{base}.scale", ("F16", "F8_E4M3"), self.grid(name, (shape[0], shape[1]), 16))
        self.part(name, f"{base}.global_scale", ("F32",), *SCALARS)
        entry = self.shapes.get(base)
        original = entry.get("original_shape") if isinstance(entry, Mapping) else None
        if original is not None:
            if (not isinstance(original, list) or not all(type(n) is int and n > 0 for n in original)
                    or len(original) < 2 or math.prod(original[:-1]) != shape[0] or original[-1] != shape[1]):
                self.fail(name, f"the manifest's original_shape {shorten(str(original))}")
            shape = tuple(original)
        form = "nvfp4_f16" if self.stored[f"{base}.scale"][1].dtype == "F16" else "nvfp4"
        q = QuantizedTensor(form, shape, name, f"{base}.scale", f"{base}.global_scale", divides=True)
        self.put(name, base, q, base)

    def blocks(self, name: str, base: str) -> None:
        """E2M1 codes in blocks of 32, of a matrix or of a stack of them."""
        t = self.stored[name][1]
        shape = (*t.shape[:-2], t.shape[-2] * 32)
        self.part(name, f"{base}_scales", EXPONENTS, t.shape[:-1])
        plain = base if len(shape) > 2 or base.endswith(".weight") else f"{base}.weight"
        self.put(name, base, QuantizedTensor("mxfp4", shape, name, f"{base}_scales"), plain)

    def put(self, name: str, module: str, q: QuantizedTensor, plain: str = "") -> None:
        plain = plain or f"{module}.weight"
        for unknown in UNKNOWN:
            if self.has(f"{module}.{unknown}"):
                raise UnsupportedModelError(f"{self.at(f'{module}.{unknown}')} changes the meaning of "
                                            f"{shorten(plain)}; that is not supported, take another release")
        if plain in self.found or (plain != name and self.has(plain)):
            raise CheckpointError(f"{self.at(name)} and another tensor are both {shorten(plain)}; remove one of them")
        self.hidden.add(name)
        self.found[plain] = q

    def part(self, codes: str, name: str, dtypes: tuple[str, ...], *shapes: tuple[int, ...]) -> None:
        """Check a tensor that has to stand beside `codes`, and hide it."""
        found = self.stored.get(name)
        if found is None or found[1].dtype not in dtypes or found[1].shape not in shapes:
            wanted = f"{' or '.join(dtypes)} {' or '.join(str(list(s)) for s in shapes)}"
            if found is None:
                self.missing(codes, name, wanted)
            self.fail(name, wanted)
        self.hidden.add(name)

    def optional(self, codes: str, name: str) -> str:
        """The name of a scalar if it is stored, else ""."""
        if not self.has(name):
            return ""
        self.part(codes, name, ("F32", "F16", "BF16"), *SCALARS)
        return name

    def grid(self, name: str, shape: tuple[int, int], group: int) -> tuple[int, int]:
        if shape[1] % group:
            self.fail(name, f"columns that are a multiple of {group}")
        return (shape[0], shape[1] // group)

    def check_orphans(self) -> None:
        """CheckpointError for scales whose matrix is missing, or stored as something that takes none."""
        for name in self.stored:
            module, _, last = name.rpartition(".")
            if last in SCALES and name not in self.hidden:
                self.fail(name, f"to belong to codes of a known kind ({module}.weight as U8 or F8_E4M3, or "
                                f"{module}.weight_packed as U8)")

    def has(self, name: str) -> bool:
        return name in self.stored

    def at(self, name: str) -> str:
        return f"{self.stored[name][0].path}: tensor {shorten(name)}"

    def missing(self, codes: str, name: str, wanted: str) -> NoReturn:
        raise CheckpointError(f"{self.at(codes)} needs tensor {shorten(name)} ({wanted}), which is missing; "
                              f"{self.exists(name)}; is the checkpoint complete?")

    def fail(self, name: str, wanted: str) -> NoReturn:
        t = self.stored[name][1]
        raise CheckpointError(f"{self.at(name)} is {t.dtype} {shorten(str(list(t.shape)))[1:-1]}, expected {wanted}; "
                              f"{self.exists(name)}")

    def exists(self, name: str) -> str:
        """What stands beside a tensor, for messages."""
        module = name.rpartition(".")[0]
        beside = [n for n in self.beside[module] if n != name][:8]
        tensors = ", ".join(f"{shorten(n)} {self.stored[n][1].dtype} {list(self.stored[n][1].shape)}" for n in beside)
        return f"beside it there is {tensors or 'nothing'}"


def read_quantized(stored: Stored, q: QuantizedTensor) -> Weight:
    """The parts of a quantised matrix as a Weight; codes and scales are views of the mapped files.

    CheckpointError: a scale that is negative, NaN or infinite where none can be; more than three dimensions.
    """
    file, tensor = stored[q.codes]
    if len(q.shape) > 3:
        dims = len(q.shape)
        raise CheckpointError(f"{file.path}: tensor {shorten(q.codes)} has {dims} dimensions, not 1, 2 or 3")
    return READERS[q.format](stored, q, (math.prod(q.shape[:-1]), q.shape[-1]), file.bytes_of(tensor))


def read_nvfp4(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    scales = bytes_of(stored, q.scales)
    if scales.size and scales.max() >= 0x7F:  # one pass without a temporary: there may be thousands of matrices
        raise CheckpointError(f"{stored[q.scales][0].path}: tensor {shorten(q.scales)} holds scales that are negative "
                              "or NaN; download it again")
    rows, cols = shape
    factors = np.full(rows, scalar(stored, q.factor, q.divides), np.float32)
    return NVFP4.pack(shape, codes.reshape(rows, cols // 2), scales.reshape(rows, cols // 16), factors,
                      inputs_of(stored, q))


def read_nvfp4_f16(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    rows, cols = shape
    scales = bytes_of(stored, q.scales).view("<f2").reshape(rows, cols // 16)
    if not np.isfinite(scales).all():
        raise CheckpointError(f"{stored[q.scales][0].path}: tensor {shorten(q.scales)} holds scales that are NaN or "
                              "infinite; download it again")
    factors = np.full(rows, scalar(stored, q.factor, q.divides), np.float32)
    return NVFP4_F16.pack(shape, codes.reshape(rows, cols // 2), scales, factors)


def read_mxfp4(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    rows, cols = shape
    return MXFP4.pack(shape, codes.reshape(rows, cols // 2), bytes_of(stored, q.scales).reshape(rows, cols // 32))


def read_mxfp8(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    rows, cols = shape
    return MXFP8.pack(shape, codes.reshape(shape), bytes_of(stored, q.scales).reshape(rows, cols // 32))


def read_fp8(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    factors = np.ascontiguousarray(np.broadcast_to(reals(stored, q.factor).reshape(-1), shape[0]))
    return FP8.pack(shape, codes.reshape(shape), factors, inputs_of(stored, q))


def read_fp8_block(stored: Stored, q: QuantizedTensor, shape: tuple[int, int], codes: Values) -> Weight:
    scales = reals(stored, q.scales).reshape(-(-shape[0] // SIDE), -(-shape[1] // SIDE))
    return FP8_BLOCK.pack(shape, codes.reshape(shape), scales)


READERS: Mapping[str, Callable[[Stored, QuantizedTensor, tuple[int, int], Values], Weight]] = MappingProxyType({
    "nvfp4": read_nvfp4, "nvfp4_f16": read_nvfp4_f16, "mxfp4": read_mxfp4, "mxfp8": read_mxfp8, "fp8": read_fp8,
    "fp8_block": read_fp8_block,
})


def bytes_of(stored: Stored, name: str) -> Values:
    file, tensor = stored[name]
    return file.bytes_of(tensor)


def reals(stored: Stored, name: str) -> Values:
    """A tensor of scales as float32. CheckpointError if one is NaN or infinite."""
    file, tensor = stored[name]
    raw = file.bytes_of(tensor)
    values: Values = E8M0[raw] if tensor.dtype == "F8_E8M0" else raw.view(REALS[tensor.dtype]).astype(np.float32)
    if not np.isfinite(values).all():
        raise CheckpointError(f"{file.path}: tensor {shorten(name)} holds scales that are NaN or infinite; "
                              "download it again")
    return values.reshape(tensor.shape)


def scalar(stored: Stored, name: str, divides: bool) -> np.float32:
    """One scale; with `divides` the reciprocal of what is stored, rounded to float32."""
    file, tensor = stored[name]
    value = np.float32(file.bytes_of(tensor).view(REALS[tensor.dtype])[0])
    if not math.isfinite(value):
        raise CheckpointError(f"{file.path}: tensor {shorten(name)} is NaN or infinite, no scale; download it again")
    if value < 0 or (divides and value < np.finfo(np.float32).tiny):
        raise CheckpointError(f"{stored[name][0].path}: tensor {shorten(name)} is {value}, no scale; download it again")
    return np.float32(1) / value if divides else np.float32(value)


def inputs_of(stored: Stored, q: QuantizedTensor) -> Values:
    """The scale recorded for quantising activations, float32 [1]; 0 if there is none."""
    value = scalar(stored, q.inputs, q.divides) if q.inputs else np.float32(0)
    return np.full(1, value, np.float32)
