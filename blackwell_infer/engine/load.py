"""From the name of a model to a runner on a backend: find, open, check the fit, then load."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from blackwell_infer.checkpoint import Checkpoint, located, open_checkpoint, resolve
from blackwell_infer.checkpoint.fingerprint import fingerprint
from blackwell_infer.checkpoint.head import PREFIX
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.host import HostMemory
from blackwell_infer.engine.capacity import Capacity, Room, fit, wanted_context
from blackwell_infer.engine.disk import Disk
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.guesses import MOST
from blackwell_infer.engine.runner import ModelRunner, Runner
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.slots import STRIDE, states_to_keep
from blackwell_infer.engine.speculate import Speculation
from blackwell_infer.engine.state import DTYPES, FORMAT_OF, Build
from blackwell_infer.engine.traffic import Bill
from blackwell_infer.engine.weights import (
    Counting,
    DeviceLoading,
    HostLoading,
    Measure,
    Meter,
    arranger,
    one_token,
    placing,
)
from blackwell_infer.errors import ConfigError
from blackwell_infer.kv.spec import PAGE
from blackwell_infer.log import Progress, logger
from blackwell_infer.models.registry import find_family
from blackwell_infer.quant.format import PAIRED
from blackwell_infer.text.load import Text, open_text

if TYPE_CHECKING:
    from blackwell_infer.device.dry import DryQueue

SCORE_BYTES = 1 << 28
"""Bytes of float32 logits that one step may hold for scored texts."""
REPRODUCIBLE_TOKENS = 1024
"""Most tokens of a reproducible step: its kernels gain nothing from more, and grids have limits."""
HOST_TOKENS, DEVICE_TOKENS = 256, 4096
"""Most tokens of a step where settings leave it open. More make NumPy's prefill no faster, and cancelled requests end
between steps."""
HOST_WIDTH = 32
"""Values per token and hidden element that a step on the host holds at once, as float32. MLPs are some 3 times as wide
as the hidden state, with gate and up side by side, and products exist twice."""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What was loaded, and how. Sizes in bytes; `max_context` in tokens; pages of 32 tokens."""

    path: str
    family: str
    architecture: str
    device: str
    dtype: str
    activations: str
    """the setting: "full", or "quantized" where a matrix's own format allows it"""
    parameters: int
    vocab: int
    max_context: int
    formats: dict[str, int]
    """bytes of the weights by the format they are stored in; vectors count as the float32 they become"""
    weight_bytes: int
    """bytes of the weights in the backend's memory"""
    decode_bytes: int
    """bytes of weights that generating one token reads"""
    workspace_bytes: int
    """most bytes of temporaries of one step"""
    kv_pages: int
    kv_token_bytes: int
    """bytes of cache per token of context"""
    state_bytes: int
    """bytes of the recurrent states of one sequence, whatever its length; 0 for models without"""
    bandwidth: int = 0
    """bytes per second of the device's memory by its clock and width; 0 where they are not known"""


class Survey(msgspec.Struct, frozen=True):
    """What headers and settings say of a model before anything is loaded. `limits.pages` is still open, and
    `limits.states` is what is wanted."""

    build: Build
    limits: Limits
    measure: Measure

    def room(self, free: int, total: int, workspace: int) -> Room:
        """Bytes on a backend of which `free` of `total` are left."""
        extra = workspace + self.build.penalty_bytes(self.limits.batch) + self.build.head_bytes(
            max(self.limits.step_tokens, self.limits.batch))
        return Room(free, total, self.measure.nbytes, extra, self.build.page_bytes,
                    self.build.state_bytes(self.limits.homes), self.limits.states, self.build.slot_bytes)


class Loaded(msgspec.Struct, frozen=True):
    """A model ready to run."""

    runner: Runner
    limits: Limits
    info: ModelInfo
    text: Text
    generation: dict[str, Any]
    speculation: Speculation
    identity: str
    """of the model and of the settings on which the content of its caches depends"""
    bill: Bill
    prefix_disk: str = ""
    prefix_disk_bytes: int = 0

    def engine(self) -> Engine:
        """An engine over the runner."""
        disk = None
        if self.prefix_disk and self.limits.reuse:  # devices round differently, so each has files of its own
            disk = Disk(Path(self.prefix_disk).expanduser(), self.prefix_disk_bytes,
                        f"{self.identity} {self.info.device}")
        return Engine(self.runner, self.limits, self.text.tokenizer, self.info.vocab,
                      self.speculation.started(self.runner), disk, self.bill)


def load(model: str, config: EngineConfig, progress: Progress) -> Loaded:
    """Load a path or a hub id as the settings say.

    CheckpointError (and UnsupportedModelError): the file is damaged, incomplete or unknown; DownloadError; DeviceError:
    no such device; OutOfMemoryError: weights, cache or workspace do not fit (with bytes, and what to change);
    ConfigError: settings that contradict each other or the model.
    """
    checkpoint = open_checkpoint(resolve(model, revision=config.revision, progress=progress), config.mtp_file)
    try:
        return loaded(checkpoint, config, progress)
    finally:
        checkpoint.close()


def loaded(checkpoint: Checkpoint, config: EngineConfig, progress: Progress) -> Loaded:
    """Load an open checkpoint."""
    device = choose_device(config.device)
    on_host = device == "numpy"
    found = survey(checkpoint, config, on_host)
    build, limits, measure = found.build, found.limits, found.measure
    text = open_text(checkpoint)
    if build.activations != "full" and not measure.matrices.keys() & PAIRED.keys():
        logger.warning("activations = %s changes nothing here: no matrix is stored as %s", config.activations,
                       ", ".join(PAIRED))
    start = on_numpy if on_host else on_cuda
    runner, capacity, workspace, bandwidth = start(device, found, checkpoint, config, progress)
    info = ModelInfo(
        path=str(checkpoint.path), family=build.family.name, architecture=architecture(checkpoint, build),
        device=device, dtype=build.dtype, activations=config.activations, parameters=measure.parameters,
        vocab=build.geometry.vocab, max_context=capacity.context, formats=measure.formats,
        weight_bytes=measure.nbytes, decode_bytes=measure.decode, workspace_bytes=workspace,
        kv_pages=capacity.pages, kv_token_bytes=build.page_bytes // PAGE,
        state_bytes=build.state_bytes(1), bandwidth=bandwidth)
    logger.info("loaded %s: %s, %s on %s, context %d, %d pages", info.path, info.family, info.dtype, info.device,
                info.max_context, info.kv_pages)
    limits = msgspec.structs.replace(limits, pages=capacity.pages, context=capacity.context, states=capacity.states)
    speculation = Speculation(ngrams=config.speculate in ("auto", "ngram"), head=build.head, least=config.draft_min,
                              most=config.draft_max)
    return Loaded(runner, limits, info, text, dict(checkpoint.generation), speculation, identity(checkpoint, build),
                  bill_of(build, measure), config.prefix_disk, config.prefix_disk_bytes)


def bill_of(build: Build, measure: Measure) -> Bill:
    """What a decode step moves."""
    keys: dict[int, int] = {}
    for spec in build.geometry.cache:
        keys[spec.window] = keys.get(spec.window, 0) + spec.page_bytes(build.kind(spec).itemsize) // PAGE
    return Bill(measure.decode - one_token(measure.experts), measure.experts, tuple(sorted(keys.items())),
                build.state_bytes(1))


def identity(checkpoint: Checkpoint, build: Build) -> str:
    """What saved caches are checked against."""
    exact = "reproducible" if build.reproducible else "fast"
    return f"{fingerprint(checkpoint)} {build.dtype} {build.state_dtype} {build.activations} {exact}"


def survey(checkpoint: Checkpoint, config: EngineConfig, on_host: bool) -> Survey:
    """Read the headers and let the family ask for its parameters, which checks that all are there and none is left."""
    if config.draft_min > config.draft_max:
        raise ConfigError(f"draft_min = {config.draft_min} is above draft_max = {config.draft_max}")
    if config.reproducible and on_host:
        raise ConfigError("reproducible = true: NumPy's products depend on how many rows there are; take device cuda "
                          "or emulated, or leave it off")
    with located(checkpoint.path):
        family = find_family(checkpoint.config)
        cfg = family.config(checkpoint.config)
        geometry = family.geometry(cfg)
        context = wanted_context(config, geometry.max_context, on_host)
        counting = Counting(checkpoint.tensors)
        family.build(cfg, counting, context)
        measure = counting.measure(dense=on_host)
        if family.draft is None and config.mtp_file:
            raise ConfigError(f"mtp_file = {config.mtp_file}: models of the family {family.name} take no head for "
                              "multi-token prediction; leave it out")
        # What is there of the head must fit, also if it is not loaded.
        with located(head_file(checkpoint)):
            head = family.draft is not None and family.draft.build(cfg, counting) is not None
        counting.check_complete()
        if config.speculate == "mtp" and not head:
            raise ConfigError("speculate = mtp: the model has no head for multi-token prediction; name a file that has "
                              "it with mtp_file, or take ngram, or auto")
        head = head and config.speculate in ("auto", "mtp")
        if head:
            measure = msgspec.structs.replace(counting.measure(dense=on_host), decode=measure.decode)
    most = step_tokens(config, on_host)
    limits = Limits(batch=config.max_batch, step_tokens=most, pages=0, context=context,
                    score_tokens=max(1, min(most, SCORE_BYTES // (4 * geometry.vocab))),
                    checked=most_checked(config),
                    reach=config.draft_max if head else 0,
                    reuse=config.prefix_cache, stride=STRIDE if geometry.recurrent else 1,
                    states=states_to_keep(config.max_batch) if geometry.recurrent and config.prefix_cache else 0,
                    queue=config.max_queue or None)
    return Survey(Build(family, cfg, choose_dtype(config.dtype, on_host, measure, checkpoint),
                        config.activations, config.reproducible, config.state_dtype,
                        head), limits, measure)


def head_file(checkpoint: Checkpoint) -> Path:
    """Where the head for guesses lies, for messages: the model itself if there is none, or in its own files."""
    found = (Path(info.file) for name, info in checkpoint.tensors.items() if name.startswith(PREFIX))
    return next(found, checkpoint.path)


def step_tokens(config: EngineConfig, on_host: bool) -> int:
    """Most tokens of one step."""
    most = config.max_step_tokens or (HOST_TOKENS if on_host else DEVICE_TOKENS)
    return min(most, REPRODUCIBLE_TOKENS) if config.reproducible else most


def most_checked(config: EngineConfig) -> int:
    """Tokens of a step with guesses: up to 16 a row's bits do not depend on what stands beside it."""
    return 0 if config.speculate == "off" else min(1 + MOST, config.max_batch * (1 + config.draft_max))


def foresee(found: Survey, checkpoint: Checkpoint, config: EngineConfig, free: int, total: int,
            gpu: DryQueue | None) -> tuple[Room, Capacity]:
    """What loading would choose on the host, or on a GPU that a dry queue stands for. Raises what loading would."""
    if gpu is None:
        workspace = host_workspace(found)
    else:
        from blackwell_infer.engine.rehearsal import rehearse

        fit(config, found.limits.context, found.room(free, total, 0))  # before steps of an absurd size are rehearsed
        workspace = rehearse(found.build, checkpoint.tensors, found.limits, gpu).workspace
    room = found.room(free, total, workspace)
    return room, fit(config, found.limits.context, room)


def architecture(checkpoint: Checkpoint, build: Build) -> str:
    """The name that the configuration gives, else the family's."""
    return ", ".join(checkpoint.config.get("architectures") or build.family.architectures)


def choose_device(device: str) -> str:
    """What "auto" stands for: the first GPU that has kernels and a driver, else numpy."""
    if device != "auto":
        return device
    from blackwell_infer.device.info import OLDEST_DRIVER, list_devices

    found = list_devices()
    usable = [d for d in found.devices if d.supported] if found.driver >= OLDEST_DRIVER else []
    if usable:
        return f"cuda:{usable[0].index}"
    if found.devices:
        gpus = ", ".join(f"{d.name} ({d.arch})" for d in found.devices)
        logger.warning("device auto takes numpy, which is slow: no kernels exist for %s, or the driver (CUDA %d.%d) is "
                       "too old; `bwinfer info` says more", gpus, *found.driver)
    else:
        logger.info("device auto takes numpy: %s", found.reason)
    return "numpy"


def choose_dtype(dtype: str, on_host: bool, measure: Measure, checkpoint: Checkpoint) -> str:
    """What "auto" stands for: float32 on the host. On a GPU float32 for checkpoints of float32 matrices, bfloat16 for
    quantised ones, else the dtype that the configuration names or that most matrices have."""
    if dtype != "auto":
        return dtype
    forms = measure.matrices
    if on_host or set(forms) == {"f32"}:
        return "float32"
    if set(forms) - set(FORMAT_OF.values()):
        return "bfloat16"
    named = checkpoint.config.get("dtype", checkpoint.config.get("torch_dtype"))
    if named in DTYPES:
        return str(named)
    most = max(forms, key=lambda form: forms[form])
    return next(name for name, form in FORMAT_OF.items() if form == most)


def host_workspace(found: Survey) -> int:
    """Bytes of one step's temporaries on the host, estimated: activations of every token, and logits."""
    geometry, limits = found.build.geometry, found.limits
    return 4 * (HOST_WIDTH * geometry.hidden * limits.step_tokens +
                2 * geometry.vocab * (limits.batch + limits.score_tokens))


def on_numpy(device: str, found: Survey, checkpoint: Checkpoint, config: EngineConfig,
             progress: Progress) -> tuple[Runner, Capacity, int, int]:
    """Load for the reference ops: a runner, what fits, bytes of workspace, and of bandwidth if that is known."""
    from blackwell_infer.ops import ref

    memory = HostMemory()
    build, limits, measure = found.build, found.limits, found.measure
    workspace = host_workspace(found)
    capacity = fit(config, limits.context, found.room(*memory.memory(), workspace))
    loading = HostLoading(memory, checkpoint.tensors, checkpoint.weight, Meter(measure.nbytes, progress),
                          placing(build.activations))
    model = build.model(memory, loading, capacity.context, limits.batch, capacity.pages,
                        capacity.states, limits.spares, limits.step_tokens)
    return ModelRunner(memory, ref, model), capacity, workspace, 0


def on_cuda(device: str, found: Survey, checkpoint: Checkpoint, config: EngineConfig,
            progress: Progress) -> tuple[Runner, Capacity, int, int]:
    """Load for kernels on a GPU, see `on_numpy`."""
    from blackwell_infer.device.dry import DryQueue
    from blackwell_infer.device.open import open_queue
    from blackwell_infer.engine.graphs import GraphRunner
    from blackwell_infer.engine.rehearsal import rehearse
    from blackwell_infer.ops.cuda import CudaOps

    build, limits, measure = found.build, found.limits, found.measure
    queue = open_queue(device, libraries=not config.reproducible)
    try:
        fit(config, limits.context, found.room(*queue.memory(), 0))
        dry = DryQueue(queue.arch, queue.sm_count, queue.libraries, total=1 << 50)
        rehearsal = rehearse(build, checkpoint.tensors, limits, dry)
        capacity = fit(config, limits.context, found.room(*queue.memory(), rehearsal.workspace))
        queue.reserve(rehearsal.workspace)
        ops = CudaOps(queue, build.reproducible)
        loading = DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(measure.nbytes, progress),
                                placing(build.activations, arranger(ops, build.dtype)))
        model = build.model(queue, loading, capacity.context, limits.batch, capacity.pages,
                            capacity.states, limits.spares, limits.step_tokens)
        queue.prepare(rehearsal.variants, progress)
        runner = GraphRunner(queue, ops, model, capacity.context, config.graphs)
        queue.sync()
    except BaseException:
        queue.close()
        raise
    if config.graphs:
        logger.info("decode graphs, recorded as they occur: rows %s; keys %s", *(
            ", ".join(map(str, sizes)) for sizes in (runner.space.all_rows, runner.space.all_lengths)))
    return runner, capacity, rehearsal.workspace, queue.bandwidth()
