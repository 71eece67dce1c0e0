"""NVFP4 experts in every published layout, each matrix with a second-level scale of its own: gate and up of one expert
differ, and so do experts. Loaded, and through the whole op, every matrix is what it is by itself."""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from blackwell_infer.checkpoint import Checkpoint, open_checkpoint
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.device.host import HostMemory
from blackwell_infer.engine import weights
from blackwell_infer.engine.weights import DeviceLoading, HostLoading, Meter, placing
from blackwell_infer.log import silent
from blackwell_infer.ops import ref
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Weight
from blackwell_infer.quant.fragments import plain
from blackwell_infer.quant.nvfp4 import NVFP4, gguf_blocks

Values = np.ndarray[Any, Any]
COUNT, TOP, HIDDEN, INNER = 3, 2, 256, 256
SHAPES = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
BASE = "model.layers.0.mlp.experts."
CODES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Matrix:
    """Random codes uint8 [N, K/2] and E4M3 scales [N, K/16] under a factor; `values` is what they mean."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], factor: np.float32) -> None:
        self.shape, self.factor = shape, factor
        self.codes = rng.integers(0, 256, (shape[0], shape[1] // 2), np.uint8)
        self.scales = rng.uniform(1, 30, (shape[0], shape[1] // 16)).astype(ml_dtypes.float8_e4m3fn)
        codes = CODES[np.stack((self.codes & 15, self.codes >> 4), axis=-1).reshape(shape)]
        self.values = (codes * self.scales.astype(float).repeat(16, axis=1) * float(factor)).astype(np.float32)


def factors(divides: bool) -> dict[tuple[str, int], np.float32]:
    """As far apart as they are in no model, and no two alike. What divides is the reciprocal of a float32 number."""
    found = {(kind, e): np.float32(0.0011 * 1.37**i * (7, 1, 0.2)[j]) for i, e in enumerate(range(COUNT + 1))
             for j, kind in enumerate(SHAPES)}
    assert len(set(found.values())) == len(found)
    return {key: np.float32(1) / (np.float32(1) / f) for key, f in found.items()} if divides else found


def matrices(divides: bool = False) -> dict[tuple[str, int], Matrix]:
    rng = np.random.default_rng(8)
    return {(kind, e): Matrix(rng, SHAPES[kind], f) for (kind, e), f in factors(divides).items()}


Made = tuple[Checkpoint, dict[tuple[str, int], Matrix], list[str], str, list[list[str]]]
"""A checkpoint, its matrices, the names of the blocks gate and up, and down, and of the shared expert's three"""


def folder(path: Path, tensors: dict[str, Values], files: dict[str, Any] | None = None) -> Checkpoint:
    for name, value in {"config.json": {"architectures": ["X"]}, **(files or {})}.items():
        (path / name).write_text(json.dumps(value))
    safetensors.numpy.save_file(tensors, path / "model.safetensors")
    return open_checkpoint(path)


def of_each(path: Path, divides: bool, parts: Callable[[Matrix, int], dict[str, Values]]) -> Made:
    """One module per matrix; the last expert is the shared one."""
    found, tensors = matrices(divides), {}
    for i, ((kind, e), m) in enumerate(found.items()):
        module = f"{BASE}{e}.{kind}_proj." if e < COUNT else f"model.layers.0.mlp.shared_expert.{kind}_proj."
        tensors |= {module + name: value for name, value in parts(m, i).items()}
    shared = [f"model.layers.0.mlp.shared_expert.{kind}_proj.weight" for kind in SHAPES]
    return (folder(path, tensors), found, [f"{BASE}{{}}.gate_proj.weight", f"{BASE}{{}}.up_proj.weight"],
            f"{BASE}{{}}.down_proj.weight", [shared[:2], shared[2:]])


def modelopt(path: Path) -> Made:
    return of_each(path, False, lambda m, i: {
        "weight": m.codes, "weight_scale": m.scales, "weight_scale_2": np.asarray(m.factor),
        "input_scale": np.asarray(np.float32(0.01 * (1 + i)))})


def compressed(path: Path) -> Made:
    return of_each(path, True, lambda m, i: {
        "weight_packed": m.codes, "weight_scale": m.scales,
        "weight_global_scale": np.full(1, np.float32(1) / m.factor), "input_global_scale": np.full(1, 3.0 + i, "f4")})


def gguf(path: Path) -> Made:
    """A stack of gates, of ups and of downs, with a number beside each that has one per expert."""
    from gguf import GGMLQuantizationType, GGUFWriter

    found, writer = matrices(), GGUFWriter(path / "m.gguf", "x")
    for kind, (rows, cols) in SHAPES.items():
        each = [found[kind, e] for e in range(COUNT)]
        blocks = [gguf_blocks(Weight("nvfp4", m.shape, (m.codes, m.scales.view(np.uint8)))) for m in each]
        writer.add_tensor(f"blk.0.ffn_{kind}_exps.weight", np.stack(blocks), raw_dtype=GGMLQuantizationType.NVFP4)
        writer.add_tensor(f"blk.0.ffn_{kind}_exps.scale", np.array([m.factor for m in each]))
        assert blocks[0].shape == (rows, cols // 64 * 36)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    names = [f"blk.0.ffn_{kind}_exps.weight" for kind in SHAPES]
    return open_checkpoint(path / "m.gguf"), found, names[:2], names[2], []


def lynn(path: Path) -> Made:
    """Two stacks with one number each: gate and up share it, and so do all experts."""
    rng = np.random.default_rng(9)
    found: dict[tuple[str, int], Matrix] = {}
    tensors, shapes = {}, {}
    for name, kinds, divisor in (("gate_up_proj", ("gate", "up"), 700.0), ("down_proj", ("down",), 90.0)):
        factor = np.float32(1) / np.float32(divisor)
        each = {(kind, e): Matrix(rng, SHAPES[kind], factor) for e in range(COUNT) for kind in kinds}
        found |= each
        tensors |= {f"{BASE}{name}.packed": np.concatenate([m.codes for m in each.values()]),
                    f"{BASE}{name}.scale": np.concatenate([m.scales for m in each.values()]),
                    f"{BASE}{name}.global_scale": np.full(1, divisor, np.float32)}
        rows, cols = len(kinds) * SHAPES[kinds[0]][0], SHAPES[kinds[0]][1]
        shapes[BASE + name] = {"original_shape": [COUNT, rows, cols]}
    made = folder(path, tensors, {"lynn_quant_manifest.json": {"quantized_tensors": shapes}})
    return made, found, [f"{BASE}gate_up_proj"], f"{BASE}down_proj", []


LAYOUTS = (modelopt, compressed, gguf, lynn)


def taken(loading: HostLoading | DeviceLoading, made: Made,
          shared: bool = False) -> tuple[tuple[Experts, ...], Experts]:
    _, _, into, down, last = made
    rows = 2 * INNER // len(into)
    return (loading.experts(into, COUNT, TOP, (rows, HIDDEN), last[0] if shared else ()),
            loading.experts([down], COUNT, TOP, (HIDDEN, INNER), last[1] if shared else ())[0])


def on_host(made: Made) -> tuple[tuple[Experts, ...], Experts]:
    return taken(HostLoading(HostMemory(), made[0].tensors, made[0].weight, Meter(0, silent), placing("full")), made)


def on_device(queue: EmulatedQueue, made: Made, shared: bool = False) -> tuple[tuple[Experts, ...], Experts]:
    return taken(DeviceLoading(queue, made[0].tensors, made[0].weight, Meter(0, silent),
                               placing("full", CudaOps(queue).arrange)), made, shared)


def values_of(stacks: Sequence[Experts], read: Callable[[Any], Values]) -> list[Values]:
    """Of each stack the matrices of its experts [E, rows, cols]."""
    out = []
    for stack in stacks:
        w = plain(Weight(stack.weight.format, stack.weight.shape, tuple(read(p) for p in stack.weight.parts)))
        out.append(FORMATS[w.format].dequantize(w).reshape(stack.count, stack.rows, -1))
    return out


def wanted(found: dict[tuple[str, int], Matrix], kinds: Sequence[str], count: int) -> Values:
    return np.stack([np.concatenate([found[kind, e].values for kind in kinds]) for e in range(count)])


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_host_reads_every_matrix_by_itself(layout: Callable[[Path], Made], small: bool, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "SMALL_STACK", 1 << 30 if small else 0)
    made = layout(tmp_path)
    into, down = on_host(made)
    assert {part.weight.format for part in (*into, down)} == {"f32" if small else "nvfp4"}
    got = values_of((*into, down), np.asarray)
    assert np.array_equal(np.concatenate(got[:-1], axis=1), wanted(made[1], ("gate", "up"), COUNT))
    assert np.array_equal(got[-1], wanted(made[1], ("down",), COUNT))


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_device_has_every_matrix_as_it_is(layout: Callable[[Path], Made], shared: bool, tmp_path: Path,
                                            emulated: Callable[..., EmulatedQueue]) -> None:
    queue, made = emulated("sm_90a"), layout(tmp_path)
    shared = shared and bool(made[4])
    into, down = on_device(queue, made, shared)
    assert len(into) == 1 and {part.weight.format for part in (*into, down)} == {"nvfp4_fragments"}
    got = values_of((*into, down), lambda part: queue.download(part).result())
    assert np.array_equal(got[0], wanted(made[1], ("gate", "up"), COUNT + shared))
    assert np.array_equal(got[1], wanted(made[1], ("down",), COUNT + shared))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_op_sees_every_matrix_as_it_is(layout: Callable[[Path], Made], arch: str, tmp_path: Path,
                                           emulated: Callable[..., EmulatedQueue]) -> None:
    """Of few tokens, of some, and of many: three ways through the kernels."""
    queue, made, rng = emulated(arch), layout(tmp_path), np.random.default_rng(4)
    found, (into, down), host = made[1], on_device(queue, made), on_host(made)
    for tokens in (3, 20, 45):
        x = (0.02 * rng.standard_normal((tokens, HIDDEN))).astype(ml_dtypes.bfloat16)
        ids = np.stack([rng.choice(COUNT, TOP, replace=False) for _ in range(tokens)]).astype(np.int32)
        share = rng.uniform(0.2, 1, (tokens, TOP)).astype(np.float32)
        want = np.zeros((tokens, HIDDEN))
        for t in range(tokens):
            for e, weight in zip(ids[t], share[t], strict=True):
                gate, up, out = (found[kind, e].values.astype(float) for kind in SHAPES)
                g, u = gate @ x[t].astype(float), up @ x[t].astype(float)
                want[t] += weight * (out @ (g / (1 + np.exp(-g)) * u))
        with queue.step():
            routing = Routing(queue.put(ids), queue.put(share))
            got = queue.download(CudaOps(queue).experts(queue.put(x), routing, into, down)).result()
        near = np.asarray(ref.experts(x, Routing(ids, share), *host))
        size = np.abs(want).max()
        assert np.abs(near.astype(float) - want).max() < 0.01 * size
        assert np.abs(got.astype(float) - want).max() < 0.01 * size, tokens


def test_factors_are_what_is_tested() -> None:
    """A factor that went to another matrix would be seen."""
    m = matrices()
    assert min(abs(a.factor / b.factor - 1) for a in m.values() for b in m.values() if a is not b) > 0.02
    w = NVFP4.pack(SHAPES["up"], m["up", 0].codes, m["up", 0].scales.view(np.uint8),
                   np.full(INNER, m["up", 0].factor), np.zeros(1, np.float32))
    assert np.array_equal(NVFP4.dequantize(w), m["up", 0].values)
