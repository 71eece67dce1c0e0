"""`bwinfer info`: the devices; for a model its family, formats and bytes, and whether it fits. Loads no weights."""
from __future__ import annotations

import argparse
import platform
from collections import Counter
from pathlib import Path

import msgspec

from blackwell_infer import config
from blackwell_infer.checkpoint import Checkpoint, open_checkpoint, resolve
from blackwell_infer.cli.model import NAMES
from blackwell_infer.cli.progress import Bars, size
from blackwell_infer.device.cuda import cublaslt_exists
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.host import HostMemory
from blackwell_infer.device.info import OLDEST_DRIVER, DeviceInfo, Devices, list_devices
from blackwell_infer.engine.load import architecture, foresee, survey
from blackwell_infer.errors import ConfigError, DeviceError, OutOfMemoryError
from blackwell_infer.kernels.kernel import ARCHS
from blackwell_infer.kv.spec import PAGE

SECTIONS = ("engine",)
ENDLESS = 1 << 50
"""Bytes of a dry queue that never runs out, so that `foresee` and not the queue says what does not fit."""


class Place(msgspec.Struct, frozen=True):
    """Somewhere a model can run: a GPU, or the host if `gpu` is None. `free` and `total` in bytes."""

    device: str
    about: str
    free: int
    total: int
    gpu: DeviceInfo | None = None


class Model(msgspec.Struct, frozen=True):
    """A checkpoint's measure: `stored` bytes of its tensors by format."""

    path: str
    family: str
    architecture: str
    parameters: int
    context: int
    stored: dict[str, int]


class Fit(msgspec.Struct, frozen=True):
    """Whether a model fits somewhere. Sizes in bytes; `context` in tokens; `why` says what to change if it does not."""

    fits: bool
    why: str = ""
    dtype: str = ""
    weights: int = 0
    workspace: int = 0
    cache: int = 0
    cache_per_token: int = 0
    context: int = 0
    states: int = 0
    """recurrent states of all sequences that may run at once"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand and its output format."""
    parser.add_argument("model", nargs="?", help=NAMES)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Print what there is. CheckpointError and its kind if the model cannot be read."""
    devices = list_devices()
    places = list_places(devices)
    model: Model | None = None
    fits: dict[str, Fit] = {}
    if found.model:
        with Bars() as bars:
            path = resolve(found.model, revision=settings.engine.revision, progress=bars)
        model, fits = examine(path, settings.engine, places, devices)
    if found.json:
        machine = {"driver": list(devices.driver), "reason": devices.reason, "devices": places}
        about = {} if model is None else {"model": model, "fit": fits}
        print(msgspec.json.encode({**machine, **about}).decode())
        return 0
    lines = describe_machine(devices, places)
    if model is not None:
        lines += ["", *describe_model(model), "", *(f"{device:<9}{describe_fit(fit)}" for device, fit in fits.items())]
    print("\n".join(lines))
    return 0


def list_places(devices: Devices) -> list[Place]:
    """Every GPU, and the host."""
    free, total = HostMemory().memory()
    gpus = [Place(f"cuda:{d.index}", f"{d.name}, {d.arch}, {d.sm_count} SMs",
                  d.total_bytes if d.free_bytes is None else d.free_bytes, d.total_bytes, d) for d in devices.devices]
    return [*gpus, Place("numpy", platform.machine(), free, total)]


def examine(path: Path, engine: config.EngineConfig, places: list[Place],
            devices: Devices) -> tuple[Model, dict[str, Fit]]:
    """Read the headers of a checkpoint, and rehearse loading it in every place."""
    checkpoint = open_checkpoint(path, engine.mtp_file)
    try:
        fits = {place.device: try_place(checkpoint, engine, place, devices) for place in chosen(places, engine.device)}
        found = survey(checkpoint, msgspec.structs.replace(engine, max_context=0, reproducible=False), on_host=True)
        measure, build = found.measure, found.build
        stored: Counter[str] = Counter()
        for tensor in checkpoint.tensors.values():
            stored[tensor.format or "unreadable"] += tensor.nbytes
        model = Model(str(checkpoint.path), build.family.name, architecture(checkpoint, build), measure.parameters,
                      build.geometry.max_context, dict(stored.most_common()))
        return model, fits
    finally:
        checkpoint.close()


def chosen(places: list[Place], device: str) -> list[Place]:
    """The places that a device setting means: all for "auto", every GPU for "cuda". DeviceError if there is none."""
    found = [p for p in places if device in ("auto", p.device, p.device.partition(":")[0])]
    if not found:
        raise DeviceError(f"device {device} is not here; found {', '.join(p.device for p in places)}")
    return found


def try_place(checkpoint: Checkpoint, engine: config.EngineConfig, place: Place, devices: Devices) -> Fit:
    """Whether a model fits: the arithmetic of loading, nothing loaded."""
    gpu = place.gpu
    try:
        found, dry = survey(checkpoint, engine, on_host=gpu is None), None
        if gpu is not None:
            check_usable(gpu, devices)
            libraries = frozenset() if engine.reproducible or not cublaslt_exists() else frozenset({"cublaslt"})
            dry = DryQueue(gpu.arch, gpu.sm_count, libraries, total=ENDLESS)
        room, capacity = foresee(found, checkpoint, engine, place.free, place.total, dry)
    except (OutOfMemoryError, ConfigError, DeviceError) as error:
        return Fit(False, str(error))
    return Fit(True, dtype=found.build.dtype, weights=room.weights, workspace=room.workspace,
               cache=capacity.pages * room.page, cache_per_token=room.page // PAGE, context=capacity.context,
               states=room.states)


def check_usable(gpu: DeviceInfo, devices: Devices) -> None:
    """DeviceError if no kernel runs on this GPU, or its driver is too old."""
    if not gpu.supported:
        raise DeviceError(f"kernels exist for {', '.join(ARCHS)}, not for {gpu.arch}")
    if devices.driver < OLDEST_DRIVER:
        raise DeviceError(f"the driver speaks CUDA {dotted(devices.driver)}, {dotted(OLDEST_DRIVER)} is needed")


def dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def describe_machine(devices: Devices, places: list[Place]) -> list[str]:
    """Lines about driver and devices."""
    lines = [f"driver   {'CUDA ' + dotted(devices.driver) if devices.driver != (0, 0) else devices.reason}"]
    if devices.driver != (0, 0) and not devices.devices:
        lines.append(f"         {devices.reason}")
    for place in places:
        known = place.gpu is None or place.gpu.free_bytes is not None
        free = f"{size(place.free)} free" if known else "free memory unknown"
        kernels = "" if place.gpu is None or place.gpu.supported else "; no kernels for this architecture"
        lines.append(f"{place.device:<9}{place.about}: {free} of {size(place.total)}{kernels}")
    return lines


def describe_model(model: Model) -> list[str]:
    """Lines about a checkpoint."""
    formats = ", ".join(f"{name} {size(count)}" for name, count in model.stored.items())
    return [
        f"model    {model.path}",
        f"family   {model.family} ({model.architecture}), {model.parameters:,} parameters",
        f"context  {model.context} tokens",
        f"stored   {size(sum(model.stored.values()))}: {formats}",
    ]


def describe_fit(fit: Fit) -> str:
    """One line: what goes where, or what stands in the way."""
    if not fit.fits:
        return f"does not fit: {fit.why}"
    states = f", recurrent states {size(fit.states)}" if fit.states else ""
    return (f"fits with a context of {fit.context} tokens in {fit.dtype}: weights {size(fit.weights)}, workspace "
            f"{size(fit.workspace)}{states}, cache {size(fit.cache)} ({size(fit.cache_per_token)} a token)")
