"""Configurations and tensors of hybrids: spellings, what is refused and why, and what a device makes of them."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
import synthetic_hybrid
from conftest import ROOT
from harness import Load, Model
from tooling import load_tool

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.engine.load import survey
from blackwell_infer.engine.scheduler import Row
from blackwell_infer.engine.slots import state_slots, states_to_keep
from blackwell_infer.engine.stack import Pieces, blocks
from blackwell_infer.engine.state import Build
from blackwell_infer.engine.weights import DeviceLoading, Meter, hollow, placing
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.log import silent
from blackwell_infer.models.hybrid import HybridConfig
from blackwell_infer.models.registry import find_family
from blackwell_infer.models.spec import Rows
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.quant.format import Weight

DATA = ROOT / "tests" / "data"
DENSE, SPARSE = DATA / "qwen3_5", DATA / "qwen3_5_moe"
INNER = "model.language_model.layers."
Tensors = dict[str, np.ndarray[Any, Any]]


def config_of(folder: Path, **changes: object) -> dict[str, Any]:
    """The text part's settings, changed; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config", config) | changes | {"architectures": config["architectures"]}
    return {k: v for k, v in text.items() if v is not None}


def decoded(config: dict[str, Any]) -> HybridConfig:
    cfg = find_family(config).config(config)
    assert isinstance(cfg, HybridConfig)
    return cfg


def rewritten(target: Path, source: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a checkpoint with changed tensors."""
    shutil.copytree(source, target)
    tensors = change(safetensors.numpy.load_file(source / "model.safetensors"))
    safetensors.numpy.save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
                                target / "model.safetensors")
    return target


def surveyed(folder: Path) -> Any:
    return survey(open_checkpoint(folder), EngineConfig(), on_host=True)


@pytest.mark.parametrize("folder", [DENSE, SPARSE])
def test_nested_and_flat_settings_mean_the_same(folder: Path) -> None:
    flat = config_of(folder)
    nested = {"architectures": flat["architectures"], "tie_word_embeddings": flat["tie_word_embeddings"],
              "text_config": {k: v for k, v in flat.items() if k not in ("architectures", "tie_word_embeddings")}}
    assert decoded(nested) == decoded(flat)
    assert decoded(flat).rope.dim == 8 and decoded(flat).plus == 1 and not decoded(flat).tiled


def test_layers_are_listed_or_counted() -> None:
    every = decoded(config_of(DENSE, layer_types=None, full_attention_interval=2)).recurrent
    assert every == (True, False, True, False)
    kinds = ["full_attention", "linear_attention", "linear_attention", "linear_attention"]
    assert decoded(config_of(DENSE, layer_types=kinds)).recurrent == (False, True, True, True)
    assert decoded(config_of(DENSE, layer_types=None)).recurrent == (True, True, True, False)


def test_positions_of_images_do_not_concern_text() -> None:
    old = config_of(DENSE, rope_parameters=None, rope_theta=1e7, partial_rotary_factor=0.25,
                    rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})
    assert decoded(old).rope == decoded(config_of(DENSE)).rope


@pytest.mark.parametrize(("changes", "error", "words"), [
    ({"linear_num_key_heads": None}, CheckpointError, "linear_num_key_heads"),
    ({"linear_num_value_heads": 3}, CheckpointError, "linear_num_key_heads 2 does not divide linear_num_value_heads 3"),
    ({"linear_conv_kernel_dim": 1}, CheckpointError, "linear_conv_kernel_dim"),
    ({"layer_types": ["linear_attention"] * 3}, CheckpointError, "layer_types has 3 entries for 4 layers"),
    ({"layer_types": ["linear_attention"] * 4}, UnsupportedModelError, "no attention at all"),
    ({"layer_types": ["sliding_attention"] * 4}, UnsupportedModelError, "sliding_attention"),
    ({"attn_output_gate": False}, UnsupportedModelError, "attn_output_gate"),
    ({"text_config": 3}, CheckpointError, "text_config is no object"),
])
def test_what_does_not_fit_is_named(changes: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        decoded(config_of(DENSE, **changes))


def test_the_head_for_guesses_is_whole_or_absent(tmp_path: Path) -> None:
    without = rewritten(tmp_path / "a", DENSE, lambda t: {k: v for k, v in t.items() if not k.startswith("mtp.")})
    model = Model(without)
    assert model.family.draft is not None and model.family.draft.build(model.cfg, Load(model.checkpoint)) is None
    bare = survey(open_checkpoint(DENSE), EngineConfig(speculate="off"), on_host=True)
    assert surveyed(without).measure == bare.measure, "what is not loaded does not count"
    whole = surveyed(DENSE).measure
    assert whole.nbytes > bare.measure.nbytes and whole.decode == bare.measure.decode
    half = rewritten(tmp_path / "b", DENSE, lambda t: {k: v for k, v in t.items() if k != "mtp.norm.weight"})
    with pytest.raises(CheckpointError, match=r"mtp.norm.weight is missing, while mtp.fc.weight is there.*with none"):
        surveyed(half)
    more = rewritten(tmp_path / "c", DENSE, lambda t: t | {"mtp.layers.1.input_layernorm.weight": t["mtp.norm.weight"]})
    with pytest.raises(UnsupportedModelError, match=r"mtp.layers.1.input_layernorm.weight would not be used"):
        surveyed(more)


def pruned(tensors: Tensors, counts: tuple[int, ...]) -> Tensors:
    """The first experts of each layer."""
    gone = tuple(f"{INNER}{i}.mlp.experts.{e}." for i, count in enumerate(counts) for e in range(count, 7))
    out = {name: t for name, t in tensors.items() if not name.startswith(gone)}
    return out | {f"{INNER}{i}.mlp.gate.weight": tensors[f"{INNER}{i}.mlp.gate.weight"][:count]
                  for i, count in enumerate(counts)}


ROUTER, ROUTED = f"{INNER}1.mlp.gate.weight", f"{INNER}1.mlp.experts."


@pytest.mark.parametrize(("change", "count", "error", "words"), [
    (lambda t: t, 6, CheckpointError, r"0.mlp.gate.weight has 7 rows, the configuration gives layer 0 at most 6 exp"),
    (lambda t: t | {ROUTER: t[ROUTER][:6]}, 7, UnsupportedModelError,
     rf"{ROUTED}6.down_proj.weight and 2 others would not be used"),
    (lambda t: t | {ROUTER: np.concatenate((t[ROUTER], t[ROUTER][:1]))}, 8, CheckpointError,
     rf"{ROUTED}7.gate_proj.weight \[32, 64\] is missing"),
    (lambda t: t | {"mtp.layers.0.mlp.gate.weight": np.repeat(t["mtp.layers.0.mlp.gate.weight"], 2, axis=0)}, 7,
     CheckpointError, r"mtp.layers.0.mlp.gate.weight has 14 rows, .* layer 2 at most 7 experts"),
    (lambda t: stacked(t) | {ROUTER: t[ROUTER][:6]}, 7, CheckpointError,
     rf"{ROUTED}gate_up_proj has shape \[7, 64, 64\], the configuration asks for \[6, 64, 64\]"),
    (lambda t: {n: v for n, v in t.items() if n != "mtp.layers.0.mlp.shared_expert_gate.weight"}, 7, CheckpointError,
     r"mtp.layers.0.mlp.shared_expert_gate.weight is missing"),
    (lambda t: {n: v for n, v in t.items() if not n.startswith("mtp.") or ".mlp." in n}, 7, UnsupportedModelError,
     r"mtp.layers.0.mlp.experts.down_proj and \d+ others would not be used"),
])
def test_experts_that_do_not_go_with_their_router_are_named(change: Callable[[Tensors], Tensors], count: int,
                                                            error: type[Exception], words: str,
                                                            tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "m", SPARSE, change)
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config)["num_experts"] = count
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(error, match=words) as caught:
        surveyed(folder)
    assert str(folder) in str(caught.value) or error is UnsupportedModelError


def stacked(tensors: Tensors) -> Tensors:
    """The experts of each layer as two tensors, as releases in bfloat16 have them."""
    out = {name: t for name, t in tensors.items() if ".mlp.experts." not in name or name.startswith("mtp.")}
    for i in range(3):
        base = f"{INNER}{i}.mlp.experts."
        gate, up, down = (np.stack([tensors[f"{base}{e}.{x}_proj.weight"] for e in range(7)])
                          for x in ("gate", "up", "down"))
        out |= {f"{base}gate_up_proj": np.concatenate((gate, up), axis=1), f"{base}down_proj": down}
    return out


def test_stacked_experts_are_the_same_experts(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "m", SPARSE, stacked)
    with np.load(SPARSE / "golden.npz") as golden:
        assert np.abs(Model(folder).prefill(golden["input_ids"], 83) - golden["logits"]).max() < 1e-3
    model, _ = on_device(folder)
    assert all(layer.mlp.joined and layer.mlp.gate_up[0].weight.shape == (8 * 64, 64) for layer in model.params.layers)


def test_pruned_experts_are_listed_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder = rewritten(tmp_path / "m", SPARSE, lambda t: pruned(t, (7, 5, 2)))
    side = folder / "lynn_engine_variable_expert_spec.json"
    name = "remaining_experts_by_layer"
    side.write_text(json.dumps({"hf_vanilla_compatible": False, name: {"0": 7, "1": 5, "2": 2}}))
    model = Model(folder)
    assert [(p.mlp.down.count, p.mlp.top) for p in model.params.layers] == [(7, 3), (5, 3), (2, 2)]
    assert np.isfinite(model.prefill(range(20), 20)).all()
    side.write_text(json.dumps({name: {"0": 7, "1": 5, "2": 3}}))
    with pytest.raises(CheckpointError, match=r"2.mlp.gate.weight has 2 rows, the configuration gives layer 2 3 exp"):
        Model(folder)
    side.write_text(json.dumps({name: {"0": 7, "40": 5}}))
    with pytest.raises(CheckpointError, match=r"has the key '40'"):
        Model(folder)
    side.write_text(json.dumps({"experts": []}))
    with pytest.raises(CheckpointError, match=rf"{side.name}: has no {name}; it belongs to another model"):
        Model(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {name: {"0": 6}}))
    side.write_text(json.dumps({name: {"0": 7}}))
    with pytest.raises(CheckpointError, match=r"differs from that of config.json"):
        Model(folder)


def on_device(folder: Path, activations: str = "full") -> tuple[Any, DryQueue]:
    """The parameters as a device would hold them."""
    checkpoint, queue = open_checkpoint(folder), DryQueue()
    family = find_family(checkpoint.config)
    build = Build(family, family.config(checkpoint.config), "bfloat16")
    loading = DeviceLoading(queue, checkpoint.tensors, hollow(checkpoint.tensors), Meter(0, silent),
                            placing(activations, CudaOps(queue).arrange))
    return build.model(queue, loading, 64, 2, 3), queue


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_device_puts_the_shared_expert_behind_the_others(kind: str, tmp_path: Path) -> None:
    folder = SPARSE
    if kind == "gguf":
        folder = tmp_path / "m.gguf"
        load_tool("hf_to_gguf").convert(SPARSE, folder, tokenizer=False)
    model, _ = on_device(folder)
    for layer in model.params.layers:
        assert layer.mlp.joined and layer.mlp.shared is None
        assert [e.count for e in (*layer.mlp.gate_up, layer.mlp.down)] == [8, 8]
        assert [w.shape for w in layer.mlp.router] == [(8, 64)]


def test_a_shared_expert_of_another_format_or_width_stands_beside(tmp_path: Path) -> None:
    def other(tensors: Tensors) -> Tensors:
        name = f"{INNER}0.mlp.shared_expert.down_proj.weight"
        return tensors | {name: tensors[name].astype(np.float32)}

    model, _ = on_device(rewritten(tmp_path / "m", SPARSE, other))
    assert [layer.mlp.joined for layer in model.params.layers] == [False, True, True]
    assert model.params.layers[0].mlp.shared is not None


def test_a_shared_expert_that_meets_quantised_activations_stands_beside(tmp_path: Path) -> None:
    synthetic = load_tool("synthetic")
    small = msgspec.structs.replace(
        synthetic.SHAPES["qwen3.6-35b-a3b"], layers=1, hidden=256, mlp=256, heads=2, kv_heads=1, vocab=512, context=64,
        experts=3, top=2, delta=synthetic_hybrid.Delta(1, 2, every=1))
    synthetic.write_folder(small, "hf-nvfp4", tmp_path / "m", 0)
    for activations, joined in (("full", True), ("quantized", False)):
        (layer,) = on_device(tmp_path / "m", activations)[0].params.layers
        assert layer.mlp.joined == joined
    assert layer.mlp.shared.down[0].format == "nvfp4_tiled"


@pytest.mark.parametrize(("names", "last"), [
    (("gate", "up"), ("g", "u")), (("stack",), ("g", "u")), (("e.{}.w",), ("d",))])
def test_one_more_expert_comes_last(names: tuple[str, ...], last: tuple[str, ...]) -> None:
    """Rows of a stack are numbered; what `blocks` yields puts every one of them in its place."""
    count, rows = 3, 4 if names == ("stack",) else 2
    stored: dict[str, Weight] = {}

    def matrix(name: str, values: list[int]) -> None:
        stored[name] = Weight("f32", (len(values), 1), (np.asarray(values, np.float32)[:, None],))

    stride = rows * len(names)
    for j, name in enumerate(names):
        each = [[e * stride + j * rows + r for r in range(rows)] for e in range(count)]
        if "{}" in name:
            for e in range(count):
                matrix(name.replace("{}", str(e)), each[e])
        else:
            matrix(name, [r for rows_of_one in each for r in rows_of_one])
    share = stride // len(last)
    for i, name in enumerate(last):
        matrix(name, [count * stride + i * share + r for r in range(share)])
    pieces = Pieces(names, count, (rows, 1), last)
    whole = np.full(pieces.whole, np.nan, np.float32)
    for first, weight in blocks(pieces, stored.__getitem__):
        whole[first : first + weight.shape[0]] = np.asarray(weight.parts[0])
    assert whole[:, 0].tolist() == list(range((count + 1) * stride))


def test_gates_and_queries_are_taken_apart() -> None:
    rows = Rows(6, 3, 2)
    assert rows.of(12).tolist() == [3, 4, 9, 10] and rows.shape((12, 5)) == (4, 5)
    model, _ = on_device(DENSE)
    (into,) = model.params.layers[1].mixer.into
    assert into.shape == ((4 + 2 + 2 + 4) * 32, 64)


def row(slot: int, start: int, count: int) -> Row:
    return Row(id=slot, slot=slot, tokens=(0,) * count, start=start, pages=(), new_pages=0, restart=not start,
               samples=True, scores=False, home=slot)


def test_rows_continue_their_own_states() -> None:
    read, write = state_slots([row(2, 0, 3), row(0, 7, 1), row(5, 40, 2)], 8)
    assert read.tolist() == [-1, 0, 5] and write.tolist() == [-1, -1, 2, 0, -1, 5]
    assert read.dtype == write.dtype == np.int32
    guessing = msgspec.structs.replace(row(3, 9, 4), guesses=2, spares=(8, 6))
    read, write = state_slots([row(1, 4, 1), guessing], 9)
    assert read.tolist() == [1, 3] and write.tolist() == [1, -1, 3, 8, 6]


def test_rows_continue_kept_states_and_leave_some() -> None:
    resumed = msgspec.structs.replace(row(2, 64, 3), state=1, snapshots=((1, 4),))
    kept_last = msgspec.structs.replace(row(0, 63, 1), snapshots=((0, 0),))
    read, write = state_slots([resumed, kept_last], 8)
    assert read.tolist() == [8 + 1, 0] and write.tolist() == [-1, 8 + 4, 2, 8 + 0]


def test_memory_of_states_is_counted_for_all_sequences() -> None:
    found = survey(open_checkpoint(DENSE), EngineConfig(max_batch=5), on_host=True)
    room = found.room(1 << 30, 1 << 30, 0)
    assert room.states == (5 + 15) * found.build.state_bytes(1) > 0, "one each, and one for each of 15 guesses"
    assert (room.kept, room.slot) == (states_to_keep(5), found.build.slot_bytes)
    assert survey(open_checkpoint(DENSE), EngineConfig(prefix_cache=False), on_host=True).limits.states == 0
    assert msgspec.structs.replace(room, states=0).left - room.left == pytest.approx(0.9 * room.states, abs=1)
