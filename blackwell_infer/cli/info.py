"""`bwinfer info`: the devices; for a model its family, formats and bytes, and whether it fits. Loads no weights."""
from __future__ import annotations

import argparse
import platform
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from blackwell_infer import config
from blackwell_infer.checkpoint import Checkpoint, open_checkpoint, resolve
from blackwell_infer.cli.progress import Bars, size
from blackwell_infer.device.host import HostMemory
from blackwell_infer.device.info import Devices, list_devices
from blackwell_infer.kernels.kernel import ARCHS
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.models.registry import find_family
from blackwell_infer.models.take import Expect

SECTIONS = ("engine",)
ITEMSIZE: Mapping[str, int] = {"f32": 4, "f16": 2, "bf16": 2, "float32": 4, "float16": 2, "bfloat16": 2}


class Place(msgspec.Struct, frozen=True):
    """Somewhere a model can run. `free` and `total` in bytes; `free` is None where the driver would not say."""

    device: str
    name: str
    arch: str
    supported: bool
    free: int | None
    total: int


class Model(msgspec.Struct, frozen=True):
    """A checkpoint's measure. `weights` is bytes in memory, `formats` the same by format, `cache` bytes per token of
    context by device kind."""

    path: str
    family: str
    architecture: str
    parameters: int
    context: int
    weights: int
    formats: dict[str, int]
    cache: dict[str, int]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand and its output format."""
    parser.add_argument("model", nargs="?", help="a GGUF file, a Hugging Face folder, or a hub id (downloaded first)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Print what there is. CheckpointError and its kind if the model cannot be read."""
    devices = list_devices()
    places = list_places(devices)
    model = None
    if found.model:
        with Bars() as bars:
            path = resolve(found.model, revision=settings.engine.revision, progress=bars)
        model = measure(path, settings.engine)
    if found.json:
        print(msgspec.json.encode(summary(devices, places, model, settings.engine)).decode())
        return 0
    print("\n".join(describe_machine(devices, places)))
    if model is not None:
        print("\n".join(["", *describe_model(model), "", *(
            f"{place.device:<9}{fit(model, place, settings.engine)}" for place in places)]))
    return 0


def list_places(devices: Devices) -> list[Place]:
    """Every GPU, and the host."""
    free, total = HostMemory().memory()
    gpus = [Place(f"cuda:{d.index}", d.name, d.arch, d.supported, d.free_bytes, d.total_bytes) for d in devices.devices]
    return [*gpus, Place("numpy", platform.machine(), "", True, free, total)]


def measure(path: Path, engine: config.EngineConfig) -> Model:
    """Read the headers and let the family ask for its parameters, which also checks that all are there."""
    checkpoint = open_checkpoint(path)
    try:
        return measured(checkpoint, engine)
    finally:
        checkpoint.close()


def measured(checkpoint: Checkpoint, engine: config.EngineConfig) -> Model:
    family = find_family(checkpoint.config)
    cfg = family.config(checkpoint.config)
    geometry = family.geometry(cfg)
    expect = Expect(checkpoint.tensors)
    family.build(cfg, expect, engine.max_context or geometry.max_context)
    formats: Counter[str] = Counter()
    for need in expect.needs.values():
        formats[need.format] += need.nbytes
    stored = [need for need in expect.needs.values() if need.name in checkpoint.tensors]
    dtypes = {"cuda": "bfloat16", "numpy": "float32"} if engine.dtype == "auto" else dict.fromkeys(
        ("cuda", "numpy"), engine.dtype)
    cache = {kind: sum(spec.page_bytes(ITEMSIZE[spec.format or dtype]) for spec in geometry.cache) // PAGE
             for kind, dtype in dtypes.items()}
    named = checkpoint.config.get("architectures") or family.architectures
    return Model(
        path=str(checkpoint.path), family=family.name, architecture=", ".join(named),
        parameters=sum(int(np.prod(need.shape, dtype=np.int64)) for need in stored), context=geometry.max_context,
        weights=expect.nbytes, formats=dict(formats.most_common()), cache=cache)


def per_token(model: Model, place: Place) -> int:
    """Bytes of keys and values per token of context."""
    return model.cache["numpy" if place.device == "numpy" else "cuda"]


def fit(model: Model, place: Place, engine: config.EngineConfig) -> str:
    """Whether weights and one context fit into what is free, and what to change if they do not."""
    if not place.supported:
        return f"no: kernels exist for {', '.join(ARCHS)}, not for {place.arch}"
    free = place.total if place.free is None else place.free
    context = engine.max_context or model.context
    need = model.weights + context * per_token(model, place)
    if need <= free:
        return f"fits: {size(need)} of {size(free)} free, with a context of {context} tokens"
    room = (free - model.weights) // per_token(model, place)
    if room >= PAGE:
        return (f"fits with --max-context {room // PAGE * PAGE}: {size(need)} are needed for {context} tokens, "
                f"{size(free)} are free")
    return f"does not fit: the weights need {size(model.weights)}, {size(free)} are free; take a smaller quantisation"


def describe_machine(devices: Devices, places: list[Place]) -> list[str]:
    """Lines about driver and devices."""
    driver = f"CUDA {devices.driver[0]}.{devices.driver[1]}" if devices.driver != (0, 0) else devices.reason
    lines = [f"driver   {driver}"]
    if devices.driver != (0, 0) and not devices.devices:
        lines.append(f"         {devices.reason}")
    for place in places:
        about = ", ".join(part for part in (place.name, place.arch) if part)
        free = "free memory unknown" if place.free is None else f"{size(place.free)} free"
        kernels = "" if place.supported else "; no kernels for this architecture"
        lines.append(f"{place.device:<9}{about}: {free} of {size(place.total)}{kernels}")
    return lines


def describe_model(model: Model) -> list[str]:
    """Lines about a checkpoint."""
    formats = ", ".join(f"{name} {size(count)}" for name, count in model.formats.items())
    return [
        f"model    {model.path}",
        f"family   {model.family} ({model.architecture}), {model.parameters:,} parameters",
        f"context  {model.context} tokens",
        f"weights  {size(model.weights)}: {formats}",
        f"cache    {size(model.cache['cuda'])} a token on a GPU, {size(model.cache['numpy'])} on NumPy",
    ]


def summary(devices: Devices, places: list[Place], model: Model | None, engine: config.EngineConfig) -> dict[str, Any]:
    """The same as JSON."""
    result: dict[str, Any] = {"driver": list(devices.driver), "reason": devices.reason, "devices": places}
    if model is not None:
        result["model"] = model
        result["fit"] = {place.device: fit(model, place, engine) for place in places}
    return result
