"""Loading: dtypes, shared tensors, what a rehearsal finds, and errors of incomplete or oversized models."""
from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
import pytest
from tooling import load_tool

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.host import HostMemory
from blackwell_infer.engine import weights
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.load import choose_device, choose_dtype, foresee, load, loaded, survey
from blackwell_infer.engine.rehearsal import rehearse, spread, work
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.weights import (
    Counting,
    DeviceLoading,
    HostLoading,
    Measure,
    Meter,
    arranger,
    hollow,
    placing,
)
from blackwell_infer.errors import CheckpointError, ConfigError, OutOfMemoryError
from blackwell_infer.log import logger, silent
from blackwell_infer.models.registry import find_family
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.quant.encode_fp import encode_fp
from blackwell_infer.quant.format import Weight

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
LIMITS = Limits(batch=32, step_tokens=200, score_tokens=40, pages=8, context=256)


def built(checkpoint: Checkpoint, dtype: str = "bfloat16", activations: str = "full") -> Build:
    family = find_family(checkpoint.config)
    return Build(family, family.config(checkpoint.config), dtype, activations)


@pytest.fixture(params=["llama", "mistral", "qwen3", "mixtral", "qwen3_moe_pruned"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return open_checkpoint(DATA / request.param)


def measured(checkpoint: Checkpoint, dense: bool = False) -> Measure:
    build = built(checkpoint)
    counting = Counting(checkpoint.tensors)
    build.family.build(build.cfg, counting, 64)
    return counting.measure(dense)


def test_measures_count_every_byte_once(checkpoint: Checkpoint) -> None:
    stored, dense = measured(checkpoint), measured(checkpoint, dense=True)
    assert stored.parameters == sum(int(np.prod(t.shape)) for t in checkpoint.tensors.values())
    assert sum(stored.formats.values()) > 2 * stored.parameters > sum(stored.matrices.values())
    experts = sum(t.nbytes for name, t in checkpoint.tensors.items() if ".experts." in name)
    assert dense.nbytes - experts > 1.9 * (stored.nbytes - experts) and 0 < stored.decode < stored.nbytes


@pytest.mark.parametrize(("model", "shares"), [
    ("mixtral", [2 / 5] * 2), ("qwen3_moe_pruned", [4 / 7, 4 / 5, 4 / 8, 1])])
@pytest.mark.parametrize("small", [0, weights.SMALL_STACK])
def test_decoding_reads_the_experts_of_one_token(model: str, shares: list[float], small: int,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The host makes float32 of small stacks."""
    monkeypatch.setattr(weights, "SMALL_STACK", small)
    checkpoint = open_checkpoint(DATA / model)
    experts = [sum(t.nbytes for name, t in checkpoint.tensors.items() if f"layers.{i}." in name and ".experts." in name)
               for i in range(len(shares))]
    cfg = built(checkpoint).cfg
    every = msgspec.structs.replace(cfg, moe=msgspec.structs.replace(cfg.moe, top=100))
    for dense in (False, True):
        counting = Counting(checkpoint.tensors)
        built(checkpoint).family.build(every, counting, 64)
        saved = counting.measure(dense).decode - measured(checkpoint, dense).decode
        wider = 2 if dense and small else 1
        want = sum(wider * size * (1 - share) for size, share in zip(experts, shares, strict=True))
        assert abs(saved - want) < len(checkpoint.tensors)  # rounded down, tensor by tensor


@pytest.mark.parametrize(("small", "form"), [(0, "bf16"), (weights.SMALL_STACK, "f32")])
def test_experts_stay_as_they_are_stored_but_for_small_stacks_on_the_host(small: int, form: str,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_STACK", small)
    checkpoint = open_checkpoint(DATA / "qwen3_moe_pruned")
    build, meter = built(checkpoint), Meter(0, silent)
    memory = HostMemory()
    model = build.model(memory, HostLoading(memory, checkpoint.tensors, checkpoint.weight, meter,
                                            placing("full")), 64, 2, 3)
    mlp = model.params.layers[0].mlp
    assert [(e.count, e.weight.format, e.weight.shape) for e in (*mlp.gate_up, mlp.down)] == [
        (7, form, (7 * 32, 64)), (7, form, (7 * 32, 64)), (7, form, (7 * 64, 32))]
    queue = DryQueue()
    model = build.model(queue, DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, meter,
                                             placing("full", CudaOps(queue).arrange)), 64, 2, 3)
    mlp = model.params.layers[3].mlp
    assert [(e.count, e.weight.format, e.weight.shape) for e in (*mlp.gate_up, mlp.down)] == [
        (3, "bf16", (3 * 64, 64)), (3, "bf16", (3 * 64, 32))]


def test_host_weights_are_float32_and_device_weights_are_as_stored(checkpoint: Checkpoint) -> None:
    build, seen = built(checkpoint), []
    meter = Meter(measured(checkpoint, dense=True).nbytes, lambda stage, done, total, unit: seen.append((done, total)))
    memory = HostMemory()
    model = build.model(memory, HostLoading(memory, checkpoint.tensors, checkpoint.weight, meter,
                                            placing("full")), 64, 2, 3)
    assert model.params.layers[0].qkv[0].parts[0].dtype == np.float32
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1][0] <= seen[-1][1]

    queue = DryQueue()
    model = build.model(queue, DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, meter,
                                             placing("full", CudaOps(queue).arrange)), 64, 2, 3)
    (qkv,) = model.params.layers[0].qkv
    assert qkv.format == "bf16" and qkv.parts[0].dtype == ml_dtypes.bfloat16
    assert qkv.parts[0].shape == qkv.shape == (sum(
        checkpoint.tensors[f"model.layers.0.self_attn.{x}_proj.weight"].shape[0] for x in "qkv"), build.geometry.hidden)
    assert model.kv.layers[0].data.shape[0] == 3 and model.kv.layers[0].format == "bf16"
    assert model.penalties.counts.shape == (2, build.geometry.vocab)


def test_tied_embeddings_are_loaded_once() -> None:
    checkpoint = open_checkpoint(DATA / "qwen3")
    tied = "lm_head.weight" not in checkpoint.tensors
    queue, build = DryQueue(), built(checkpoint)
    model = build.model(queue, DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(1, silent),
                                             placing("full", CudaOps(queue).arrange)), 64, 1, 1)
    assert (model.params.embed.parts[0].ptr == model.params.head[0].parts[0].ptr) == tied


def test_neighbours_of_one_format_are_joined_on_the_device() -> None:
    stored = {name: Weight(form, (2, 32), (np.full((2, 32), i, dtype),)) for i, (name, form, dtype) in enumerate(
        [("a", "f32", np.float32), ("b", "f32", np.float32), ("c", "f16", np.float16)])}
    infos: dict[str, Any] = {name: type("Info", (), {"shape": w.shape, "format": w.format, "nbytes": w.nbytes})
                             for name, w in stored.items()}
    take = DeviceLoading(DryQueue(), infos, stored.__getitem__, Meter(1, silent), placing("full"))
    found = take.linear(["a", "b", "c"], [(2, 32)] * 3)
    assert [(w.format, w.shape) for w in found] == [("f32", (4, 32)), ("f16", (2, 32))]
    with pytest.raises(CheckpointError, match=r"tensor d \[2, 32\] is missing"):
        take.linear(["d"], [(2, 32)])
    with pytest.raises(CheckpointError, match=r"tensor a has shape \[2, 32\].* \[3, 32\]"):
        take.table("a", (3, 32))


def test_projections_meet_quantised_activations_in_the_same_groups_on_both_backends() -> None:
    """Neighbours of one format share the largest input scale; what is looked up by row stays as it is stored."""
    rng = np.random.default_rng(0)
    stored = {name: encode_fp(rng.standard_normal((4, 64)), form) for name, form in zip(
        "abcde", ("nvfp4", "nvfp4", "fp8", "nvfp4_f16", "nvfp4"), strict=True)}
    for scale, name in enumerate("abe"):
        stored[name] = Weight("nvfp4", (4, 64), (*stored[name].parts[:3], np.full(1, scale + 1, np.float32)))
    infos: dict[str, Any] = {name: type("Info", (), {"shape": w.shape, "format": w.format, "nbytes": w.nbytes})
                             for name, w in stored.items()}
    queue = DryQueue()
    for take in (HostLoading(HostMemory(), infos, stored.__getitem__, Meter(1, silent), placing("quantized")),
                 DeviceLoading(queue, infos, stored.__getitem__, Meter(1, silent), placing("quantized"))):
        assert take.table("e", (4, 64)).format == ("f32" if isinstance(take, HostLoading) else "nvfp4")
        found = take.linear(list("abcde"), [(4, 64)] * 5)
        formats = [(w.format, w.shape[0]) for w in found]
        assert formats == [("nvfp4_tiled", 8), ("fp8_w8a8", 4), *(
            [("f32", 4), ("f32", 4)] if isinstance(take, HostLoading) else [("nvfp4_f16", 4), ("nvfp4", 4)])]
        if isinstance(take, HostLoading):
            assert np.asarray(found[0].parts[3]).tolist() == [2]


@pytest.mark.parametrize("activations", ["full", "quantized"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_device_arranges_what_it_does_not_pair(activations: str, dtype: str) -> None:
    rng = np.random.default_rng(0)
    stored = {"a": encode_fp(rng.standard_normal((4, 256)), "nvfp4"),
              "b": Weight("q4_k", (4, 256), (np.zeros((4, 144), np.uint8),))}
    infos: dict[str, Any] = {name: type("Info", (), {"shape": w.shape, "format": w.format, "nbytes": w.nbytes})
                             for name, w in stored.items()}
    queue = DryQueue()
    take = DeviceLoading(queue, infos, stored.__getitem__, Meter(1, silent),
                         placing(activations, arranger(CudaOps(queue), dtype)))
    tables = [take.table(name, (4, 256)).format for name in "ab"]
    assert tables == (["nvfp4", "q4_k"] if dtype == "float32" else ["nvfp4_fragments", "q4_k_fragments"])
    take = DeviceLoading(queue, infos, stored.__getitem__, Meter(1, silent),
                         placing(activations, arranger(CudaOps(queue), dtype)))
    assert [w.format for w in take.linear(list("ab"), [(4, 256)] * 2)] == [
        tables[0] if activations == "full" else "nvfp4_tiled", tables[1]]


def test_quantised_activations_need_matrices_that_they_go_with(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger=logger.name):
        load(str(DATA / "llama"), EngineConfig(device="numpy", max_context=32), silent).runner.close()
        assert not caplog.text
        load(str(DATA / "llama"), EngineConfig(device="numpy", max_context=32, activations="quantized"),
             silent).runner.close()
    assert "activations = quantized changes nothing here: no matrix is stored as nvfp4, mxfp8, fp8" in caplog.text


def test_a_rehearsal_finds_the_kernels_of_quantised_activations(tmp_path: Path) -> None:
    load_tool("quantize_hf").convert(DATA / "llama", tmp_path / "model", "modelopt-mixed")
    checkpoint = open_checkpoint(tmp_path / "model")
    for activations, wanted in (("full", set()), ("quantized", {"nvfp4_gemm", "fp8_gemm", "quantize_tokens",
                                                                "add_rms_norm_quantize"})):
        build = built(checkpoint, activations=activations)
        found = rehearse(build, checkpoint.tensors, LIMITS, DryQueue()).variants
        names = {v.kernel.entry for v in found}
        assert names & {"nvfp4_gemm", "fp8_gemm", "quantize", "quantize_tokens", "add_rms_norm_quantize"} == wanted


def test_experts_meet_activations_as_they_are(tmp_path: Path) -> None:
    load_tool("quantize_hf").convert(DATA / "qwen3_moe", tmp_path / "model", "modelopt-mixed")
    checkpoint, keys = open_checkpoint(tmp_path / "model"), []
    for activations in ("full", "quantized"):
        build = built(checkpoint, activations=activations)
        keys.append({v.key for v in rehearse(build, checkpoint.tensors, LIMITS, DryQueue()).variants})
    full, quantized = keys
    experts = {key for key in full if key.startswith(("moe_rows", "moe_groups")) and "nvfp4" in key}
    assert experts and experts <= quantized
    assert any("fp8_gemm" in key for key in quantized - full)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
def test_a_rehearsal_measures_the_largest_step_and_finds_the_kernels(checkpoint: Checkpoint, arch: str) -> None:
    build = built(checkpoint)
    small = rehearse(build, checkpoint.tensors, LIMITS, DryQueue(arch))
    names = {v.kernel.entry for v in small.variants}
    assert {"token_logprobs", "penalty_count"} <= names and any(n.startswith("sample") for n in names)
    assert len(names) > 8
    geometry = build.geometry
    assert small.workspace > LIMITS.step_tokens * geometry.hidden * 2 * len(geometry.cache)
    wide = rehearse(build, checkpoint.tensors, Limits(batch=32, step_tokens=2000, score_tokens=40, pages=8,
                                                      context=256), DryQueue(arch))
    assert wide.workspace > 4 * small.workspace
    one = rehearse(build, checkpoint.tensors, Limits(batch=1, step_tokens=1, score_tokens=1, pages=1, context=32),
                   DryQueue(arch))
    assert one.workspace < small.workspace


def test_steps_stay_within_what_a_rehearsal_measured(checkpoint: Checkpoint) -> None:
    """So memory that is reserved at load serves every step."""
    build, queue = built(checkpoint), DryQueue()
    rehearsal = rehearse(build, checkpoint.tensors, LIMITS, DryQueue())
    queue.arena.reserve(rehearsal.workspace)
    before = queue.arena.reserved
    loading = DeviceLoading(queue, checkpoint.tensors, checkpoint.weight, Meter(0, silent),
                            placing("full", arranger(CudaOps(queue), build.dtype)))
    runner = GraphRunner(queue, CudaOps(queue), build.model(queue, loading, LIMITS.context, LIMITS.batch, 1),
                         LIMITS.context, capture=False)
    for tokens in (1, 3, 16, 33, 65, 100, 150, 199, 200):
        runner.launch(work(spread(tokens, LIMITS), LIMITS, scores=False))
    assert 0 < queue.arena.reach <= rehearsal.workspace and queue.arena.reserved == before


def test_a_rehearsal_needs_no_values(tmp_path: Path) -> None:
    """A GGUF with llama3 scaling holds divisors that a family checks while it builds its rope table."""
    spec = importlib.util.spec_from_file_location("hf_to_gguf", ROOT / "tools" / "hf_to_gguf.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.convert(DATA / "llama", tmp_path / "model.gguf", kind="q8_0", tokenizer=False)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert "rope_freqs.weight" in checkpoint.tensors
    entries = {v.key for v in rehearse(built(checkpoint), checkpoint.tensors, LIMITS, DryQueue()).variants}
    assert any("q8_0" in key for key in entries)


def test_hollow_weights_have_the_shapes_of_the_stored_ones(checkpoint: Checkpoint) -> None:
    empty = hollow(checkpoint.tensors)
    for name in checkpoint.tensors:
        weight, stored = empty(name), checkpoint.weight(name)
        assert (weight.format, weight.shape) == (stored.format, stored.shape)
        assert [(p.shape, p.dtype) for p in weight.parts] == [(p.shape, p.dtype) for p in stored.parts]


@pytest.mark.parametrize(("forms", "named", "dtype", "on_host", "expected"), [
    ({"f32": 9}, "bfloat16", "auto", False, "float32"), ({"q4_k": 9, "f32": 1}, None, "auto", False, "bfloat16"),
    ({"bf16": 9}, "bfloat16", "auto", False, "bfloat16"), ({"f16": 9, "f32": 1}, None, "auto", False, "float16"),
    ({"f16": 9}, "bfloat16", "auto", False, "bfloat16"), ({"bf16": 9}, None, "auto", True, "float32"),
    ({"bf16": 9}, None, "float16", False, "float16"), ({"q8_0": 9}, None, "bfloat16", True, "bfloat16"),
])
def test_dtype(forms: dict[str, int], named: str | None, dtype: str, on_host: bool, expected: str) -> None:
    checkpoint: Any = type("C", (), {"config": {} if named is None else {"torch_dtype": named}})
    assert choose_dtype(dtype, on_host, Measure(0, 0, {}, forms, 0), checkpoint) == expected


def test_device_auto_is_numpy_without_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from blackwell_infer.device import info

    gpu = info.DeviceInfo(1, "GPU", (9, 0), "sm_90a", 132, 1, 1)
    for found, expected in ((info.Devices((), (0, 0), "none"), "numpy"), (info.Devices((gpu,), (13, 0), ""), "cuda:1"),
                            (info.Devices((gpu,), (12, 4), ""), "numpy")):
        monkeypatch.setattr(info, "list_devices", lambda found=found: found)
        assert choose_device("auto") == expected
    assert choose_device("cuda:3") == "cuda:3"
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1 and "GPU (sm_90a)" in warnings[0] and "CUDA 12.4" in warnings[0]  # not without a word


def test_info_says_what_was_loaded() -> None:
    found = load(str(DATA / "llama"), EngineConfig(device="numpy", max_context=64, max_batch=3), silent)
    info = found.info
    assert (info.family, info.device, info.dtype, info.vocab) == ("llama", "numpy", "float32", 320)
    assert (info.max_context, info.kv_pages) == (64, 6) and info.formats.keys() == {"bf16", "f32"}
    assert info.kv_token_bytes == 3 * 2 * 2 * 16 * 4 and info.weight_bytes > info.decode_bytes > 4 * 64 * 320
    assert found.limits.pages == 6 and found.limits.context == 64


@pytest.mark.parametrize(("settings", "error", "message"), [
    ({"max_context": 300}, ConfigError, "own limit is 256"),
    ({"kv_pages": 2, "max_context": 100}, ConfigError, "raise kv_pages to 4"),
])
def test_settings_that_contradict_the_model(settings: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        load(str(DATA / "llama"), EngineConfig(device="numpy", **settings), silent)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMemory, "memory", lambda self: (1 << 20, 1 << 30))
    checkpoint = open_checkpoint(DATA / "llama")
    with pytest.raises(OutOfMemoryError, match=r"the model does not fit: weights \d+ bytes"):
        loaded(checkpoint, EngineConfig(device="numpy"), silent)


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
def test_an_absurd_context_is_refused_before_its_steps_are_rehearsed(tmp_path: Path, arch: str) -> None:
    shutil.copytree(DATA / "llama", tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1 << 31}))
    checkpoint, settings = open_checkpoint(tmp_path / "model"), EngineConfig()
    found = survey(checkpoint, settings, on_host=False)
    with pytest.raises(OutOfMemoryError, match=r"the weights alone .*too large.*lower max_context"):
        foresee(found, checkpoint, settings, 1 << 36, 1 << 37, DryQueue(arch, 132, frozenset(), total=1 << 50))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    import safetensors.numpy

    for file in (DATA / "llama").iterdir():
        if file.suffix == ".json":
            shutil.copy(file, tmp_path)
    tensors = safetensors.numpy.load_file(DATA / "llama" / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    named = rf"{tmp_path}: tensor model\.layers\.1\.mlp\.up_proj\.weight \[160, 64\] is missing"
    with pytest.raises(CheckpointError, match=named):
        load(str(tmp_path), EngineConfig(device="numpy"), silent)
    tensors["model.layers.1.mlp.up_proj.weight"] = lost[:100]
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has shape \[100, 64\].*\[160, 64\]"):
        load(str(tmp_path), EngineConfig(device="numpy"), silent)
