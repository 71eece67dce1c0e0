"""Mixtures of experts on the reference ops: routing, sums over experts, and checkpoints in every spelling."""
from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import ROOT
from harness import Model
from tooling import load_tool

from blackwell_infer.errors import CheckpointError, KernelError, UnsupportedModelError
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.batch import Routing
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Weight

DATA = ROOT / "tests" / "data"
PRUNED = DATA / "qwen3_moe_pruned"
COUNTS = (7, 5, 8, 3)
Tensors = dict[str, np.ndarray]


def router(logits: np.ndarray) -> tuple[np.ndarray, tuple[Weight, ...]]:
    """x and a router whose logits are exactly these [T, E]."""
    tokens, count = logits.shape
    return np.eye(tokens, dtype=np.float32), (Weight("f32", (count, tokens), (np.ascontiguousarray(logits.T),)),)


def test_the_lowest_index_comes_first_among_equals() -> None:
    z = np.asarray([[1, 3, 3, 0, 3], [0, 0, 0, 0, 0], [-2, 5, -2, 5, -2]], np.float32)
    got = ref.route(*router(z), 4, False)
    assert np.asarray(got.experts).tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [1, 3, 0, 2]]
    p = np.exp(z.astype(np.float64)) / np.exp(z.astype(np.float64)).sum(axis=1, keepdims=True)
    assert np.allclose(np.asarray(got.weights), np.take_along_axis(p, np.asarray(got.experts), 1), rtol=1e-6)
    normed = np.asarray(ref.route(*router(z), 2, True).weights)
    assert np.allclose(normed.sum(axis=1), 1) and np.allclose(normed[1], 0.5)


def test_underflow_does_not_change_the_order() -> None:
    got = ref.route(*router(np.asarray([[-300, 0, -200, -250]], np.float32)), 4, False)
    assert np.asarray(got.experts).tolist() == [[1, 2, 3, 0]] and np.asarray(got.weights).tolist() == [[1, 0, 0, 0]]


def test_rows_without_a_choice_get_valid_experts() -> None:
    x = np.asarray([[1.0], [np.nan], [np.inf], [-1.0]], np.float32)
    w = (Weight("f32", (3, 1), (np.asarray([[1.0], [2.0], [-1.0]], np.float32),)),)
    got = ref.route(x, w, 2, True)
    ids, weights = np.asarray(got.experts), np.asarray(got.weights)
    assert ids.tolist() == [[1, 0], [0, 1], [0, 1], [2, 0]]
    assert np.isnan(weights[1:3]).all() and np.isfinite(weights[[0, 3]]).all()


@pytest.mark.parametrize("top", [0, 4])
def test_a_top_beyond_the_experts_is_refused(top: int) -> None:
    with pytest.raises(KernelError, match=f"top {top} of 3 experts"):
        ref.route(*router(np.zeros((2, 3), np.float32)), top, False)


def test_experts_are_their_mlps_weighted() -> None:
    """Against float64, expert by expert and token by token."""
    rng = np.random.default_rng(1)
    for form, two in (("q4_k", False), ("q8_0", True), ("nvfp4", False), ("fp8_block", False)):
        kwargs = inputs.make_experts(rng, "float32", (form, form) if two else (form,), form, 20, 256, 256, 7, 3, 2, ())
        dense = [FORMATS[form].dequantize(part.weight).astype(np.float64).reshape(7, -1, 256)
                 for part in (*kwargs["gate_up"], kwargs["down"])]
        both = np.concatenate(dense[:-1], axis=1)
        got = np.asarray(ref.experts(**kwargs))
        for t, x in enumerate(kwargs["x"].astype(np.float64)):
            want = np.zeros(256)
            for e, weight in zip(kwargs["routing"].experts[t], kwargs["routing"].weights[t], strict=True):
                gate, up = np.split(both[e] @ x, 2)
                want += weight * (dense[-1][e] @ (gate / (1 + np.exp(-gate)) * up))
            assert np.allclose(got[t], want, rtol=1e-4, atol=1e-4 * np.abs(want).max()), form


def test_a_tokens_bits_do_not_depend_on_its_neighbours() -> None:
    kwargs = inputs.make_experts(np.random.default_rng(2), "float32", ("q8_0",), "q8_0", 16, 64, 32, 5, 3, 0, ())
    together = np.asarray(ref.experts(**kwargs))
    routing = kwargs["routing"]
    for low, high in ((0, 1), (5, 6), (3, 10), (0, 15)):
        part = Routing(routing.experts[low:high], routing.weights[low:high])
        alone = np.asarray(ref.experts(kwargs["x"][low:high], part, kwargs["gate_up"], kwargs["down"]))
        assert np.array_equal(alone, together[low:high])


def test_only_experts_that_are_wanted_are_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("blackwell_infer.ops.ref.experts")
    seen: list[int] = []
    whole: Callable[[Experts, int], np.ndarray] = module.expert
    monkeypatch.setattr(module, "expert", lambda stack, e: (seen.append(e), whole(stack, e))[1])
    kwargs = inputs.make_experts(np.random.default_rng(3), "float32", ("bf16",), "bf16", 1, 32, 32, 9, 2, 0, ())
    ref.experts(**kwargs)
    assert sorted(seen) == sorted([*kwargs["routing"].experts[0]] * 2)


def rewritten(target: Path, source: Path, change: Callable[[Tensors], Tensors], **config: object) -> Path:
    """A copy of a checkpoint with changed tensors and settings; None removes a setting."""
    shutil.copytree(source, target)
    tensors = change(safetensors.numpy.load_file(source / "model.safetensors"))
    safetensors.numpy.save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()},
                                target / "model.safetensors")
    settings = json.loads((source / "config.json").read_text()) | config
    (target / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return target


def fused(tensors: Tensors) -> Tensors:
    """Experts as two tensors of each layer: [gate | up] rows, and down."""
    out = {name: t for name, t in tensors.items() if ".experts." not in name}
    for layer, count in enumerate(COUNTS):
        base = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (np.stack([tensors[f"{base}.{e}.{x}_proj.weight"] for e in range(count)])
                          for x in ("gate", "up", "down"))
        out |= {f"{base}.gate_up_proj": np.concatenate((gate, up), axis=1), f"{base}.down_proj": down}
    return out


def mixtral_names(tensors: Tensors) -> Tensors:
    renamed = {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    out = {}
    for name, t in tensors.items():
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        out[name] = t
    return out


def logits(path: Path) -> np.ndarray:
    with np.load(PRUNED / "golden.npz") as golden:
        return Model(path).prefill(golden["input_ids"].reshape(-1), 1 << 30)


@pytest.mark.parametrize("change", [fused, mixtral_names])
def test_every_spelling_gives_the_same_logits(change: Callable[[Tensors], Tensors], tmp_path: Path) -> None:
    """To float32's accuracy: a product of gate and up at once may add in another order."""
    assert np.allclose(logits(rewritten(tmp_path / "m", PRUNED, change)), logits(PRUNED), rtol=0, atol=1e-5)


def same(tensors: Tensors) -> Tensors:
    return tensors


@pytest.mark.parametrize("config", [
    {"num_experts": 8, "num_local_experts": None, "num_experts_per_layer": None},
    {"num_experts": list(COUNTS), "num_local_experts": None, "num_experts_per_layer": None},
    {"num_experts_per_layer": None, "per_layer_num_experts": list(COUNTS)},
    {"num_experts_per_layer": None, "per_layer_num_experts": {str(i): n for i, n in enumerate(COUNTS)}},
    {"num_experts_per_layer": None, "remaining_experts_by_layer": {str(i): n for i, n in enumerate(COUNTS)}},
    {"num_experts_per_layer": None, "per_layer_config": {str(i): {"num_experts": n} for i, n in enumerate(COUNTS)}},
])
def test_lists_of_experts_per_layer_have_many_names(config: dict[str, object], tmp_path: Path) -> None:
    model = Model(rewritten(tmp_path / "m", PRUNED, same, **config))
    assert tuple(p.mlp.down.count for p in model.params.layers) == COUNTS
    assert [p.mlp.top for p in model.params.layers] == [4, 4, 4, 3]


@pytest.mark.parametrize(("config", "words"), [
    ({"num_experts_per_layer": [7, 5, 8, 4]}, r"layers.3.mlp.gate.weight has 3 rows.* layer 3 4 experts"),
    ({"num_local_experts": 6, "num_experts_per_layer": None}, r"layers.0.mlp.gate.weight has 7 rows.*at most 6"),
    ({"num_experts_per_layer": [7, 5]}, "num_experts_per_layer has 2 entries for 4 layers"),
    ({"per_layer_num_experts": [7, 5, 8, 2]}, "differ for layer 3: 3 and 2"),
    ({"num_experts": 9}, "num_experts and num_local_experts differ: 9 and 8"),
    ({"num_local_experts": None, "num_experts_per_layer": None}, "num_experts is missing"),
    ({"num_experts_per_layer": {"9": 3}}, "has the key '9'"),
    ({"num_experts_per_layer": [7, 5, 0, 3]}, "layer 2 has a router and no experts"),
    ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
    ({"num_experts_per_tok": None}, "num_experts_per_tok"),
    ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
    ({"moe_intermediate_size": 33}, r"shape \[32, 64\], the configuration asks for \[33, 64\]"),
])
def test_what_does_not_fit_is_named(config: dict[str, object], words: str, tmp_path: Path) -> None:
    from blackwell_infer.checkpoint import open_checkpoint
    from blackwell_infer.models.registry import find_family
    from blackwell_infer.models.take import Expect

    checkpoint = open_checkpoint(rewritten(tmp_path / "m", PRUNED, same, **config))
    family = find_family(checkpoint.config)
    with pytest.raises(CheckpointError, match=words):
        family.build(family.config(checkpoint.config), Expect(checkpoint.tensors), 64)


def test_experts_that_no_router_knows_are_an_error(tmp_path: Path) -> None:
    from blackwell_infer import LLM

    def cut(tensors: Tensors) -> Tensors:
        name = "model.layers.2.mlp.gate.weight"
        return tensors | {name: tensors[name][:6]}

    with pytest.raises(UnsupportedModelError, match=r"layers.2.mlp.experts.6.down_proj.weight and 5 others"):
        LLM(rewritten(tmp_path / "m", PRUNED, cut, num_experts_per_layer=None), device="numpy")


def test_experts_of_one_layer_have_one_format(tmp_path: Path) -> None:
    from blackwell_infer import LLM

    def widen(tensors: Tensors) -> Tensors:
        name = "model.layers.1.mlp.experts.3.up_proj.weight"
        return tensors | {name: tensors[name].astype(np.float32)}

    with pytest.raises(UnsupportedModelError, match=r"experts.3.up_proj.weight is f32, other experts .* are bf16"):
        LLM(rewritten(tmp_path / "m", PRUNED, widen), device="numpy")


def test_gate_and_up_may_have_different_formats(tmp_path: Path) -> None:
    def widen(tensors: Tensors) -> Tensors:
        return {name: t.astype(np.float32) if ".up_proj" in name else t for name, t in tensors.items()}

    assert np.array_equal(logits(rewritten(tmp_path / "m", PRUNED, widen)), logits(PRUNED))


def test_dense_layers_are_where_the_configuration_says() -> None:
    from blackwell_infer.models.qwen3 import qwen3_moe_config

    config = json.loads((DATA / "qwen3_moe" / "config.json").read_text())

    def counts(**changes: object) -> tuple[int, ...]:
        return qwen3_moe_config(config | changes).moe.counts  # type: ignore[union-attr]

    assert counts() == (7, 0, 7)
    assert counts(mlp_only_layers=None) == (7, 7, 7)
    assert counts(mlp_only_layers=[0], decoder_sparse_step=2) == (0, 7, 0)
    assert counts(num_local_experts=0) == (0, 0, 0)
    assert counts(num_experts_per_layer=[4, 5]) == (4, 0, 5) == counts(num_experts_per_layer=[4, 0, 5])


@pytest.mark.parametrize("name", ["old", "fused"])
def test_gguf_spellings_of_experts(name: str, tmp_path: Path) -> None:
    """One tensor of each expert, as old files have it, and gate and up in one."""
    from gguf import GGUFReader, GGUFWriter

    tool = load_tool("hf_to_gguf")
    tool.convert(DATA / "mixtral", tmp_path / "a.gguf", kind="f32", tokenizer=False)
    reader = GGUFReader(tmp_path / "a.gguf")
    writer = GGUFWriter(str(tmp_path / "b.gguf"), "llama")
    tool.add_config(writer, json.loads((DATA / "mixtral" / "config.json").read_text()), "llama")
    tensors = {t.name: np.array(t.data) for t in reader.tensors}
    for tensor, data in tensors.items():
        block, _, part = tensor.removesuffix(".weight").rpartition(".")
        if name == "old" and part.endswith("_exps"):
            for e, one in enumerate(data):
                writer.add_tensor(f"{block}.{part.removesuffix('_exps')}.{e}.weight", one)
        elif name == "fused" and part == "ffn_gate_exps":
            both = np.concatenate((data, tensors[f"{block}.ffn_up_exps.weight"]), axis=1)
            writer.add_tensor(f"{block}.ffn_gate_up_exps.weight", both)
        elif name == "old" or part != "ffn_up_exps":
            writer.add_tensor(tensor, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.load(DATA / "mixtral" / "golden.npz") as golden:
        ids, want = golden["input_ids"].reshape(-1), golden["logits"].reshape(-1, 320)
    assert np.abs(Model(tmp_path / "b.gguf").prefill(ids, 1 << 30) - want).max() < 1e-3


def test_a_pruned_gguf_keeps_its_counts(tmp_path: Path) -> None:
    load_tool("hf_to_gguf").convert(PRUNED, tmp_path / "m.gguf", kind="bf16", tokenizer=False)
    model = Model(tmp_path / "m.gguf")
    assert tuple(p.mlp.down.count for p in model.params.layers) == COUNTS
    assert model.config["num_experts"] == 8 and model.config["norm_topk_prob"] is True


def test_factors_of_stacked_nvfp4_experts_stay_with_their_experts(tmp_path: Path) -> None:
    def scaled(tensors: Tensors) -> Tensors:
        """Experts of very different size, so that their factors differ."""
        out = {}
        for name, t in tensors.items():
            number = name.split(".experts.")[1].split(".")[0] if ".experts." in name else "0"
            out[name] = (t.astype(np.float32) * 2.0 ** int(number)).astype(ml_dtypes.bfloat16)
        return out

    source = rewritten(tmp_path / "a", PRUNED, scaled)
    load_tool("hf_to_gguf").convert(source, tmp_path / "m.gguf", kind="nvfp4", tokenizer=False)
    load_tool("quantize_hf").convert(source, tmp_path / "q", "modelopt-nvfp4")
    stack = Model(tmp_path / "m.gguf").params.layers[0].mlp
    each = Model(tmp_path / "q").params.layers[0].mlp
    for a, b in zip((*stack.gate_up,), (*each.gate_up,), strict=True):
        assert a.weight.format == b.weight.format == "nvfp4"
        assert len(np.unique(np.asarray(a.weight.parts[2]))) > 4
        assert np.array_equal(FORMATS["nvfp4"].dequantize(a.weight), FORMATS["nvfp4"].dequantize(b.weight))
