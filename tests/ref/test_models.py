"""Configurations of model families, their errors, rope tables, and the dry run of loading."""
from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import ROOT
from harness import Load
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.kv.spec import CacheSpec, KVState, PagedKV
from blackwell_infer.models import rope
from blackwell_infer.models.layers import DenseConfig
from blackwell_infer.models.registry import FAMILIES, find_family
from blackwell_infer.models.take import Expect
from blackwell_infer.ops import inputs, ref

PLAIN: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 320, "hidden_size": 64,
    "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-5}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32}


def read(**changes: Any) -> DenseConfig:
    """The configuration with changes; a value of None removes the field."""
    config = {k: v for k, v in (PLAIN | changes).items() if v is not None}
    cfg = find_family(config).config(config)
    assert isinstance(cfg, DenseConfig)
    return cfg


def test_defaults() -> None:
    cfg = read(num_key_value_heads=None)
    assert (cfg.kv_heads, cfg.head_dim, cfg.windows, cfg.tied) == (4, 16, (0, 0, 0, 0), True)
    assert (cfg.rope.kind, cfg.rope.dim, cfg.rope.theta) == ("default", 16, 10000.0)
    assert not (cfg.attention_bias or cfg.mlp_bias or cfg.qk_norm)
    geometry = find_family(PLAIN).geometry(cfg)
    assert geometry.cache == (CacheSpec(kv_heads=4, head_dim=16, format=""),) * 4
    assert (geometry.vocab, geometry.hidden, geometry.max_context) == (320, 64, 256)


def test_both_spellings_of_rope() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    old = read(rope_theta=500000, rope_scaling=scaling | {"rope_type": "llama3"})
    new = read(rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 500000.0})
    assert old.rope == new.rope and old.rope.kind == "llama3" and old.rope.theta == 500000.0
    assert read(rope_scaling={"type": "linear", "factor": 2}).rope.kind == "linear"
    assert read(partial_rotary_factor=0.5).rope.dim == 8


@pytest.mark.parametrize(("changes", "windows"), [
    (MISTRAL, (0, 0, 0, 0)),
    (MISTRAL | {"sliding_window": 8}, (8, 8, 8, 8)),
    (MISTRAL | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}, (8, 0, 8, 0)),
    (QWEN3 | {"sliding_window": 8, "max_window_layers": 1}, (0, 0, 0, 0)),
    (QWEN3 | {"sliding_window": 8, "max_window_layers": 3, "use_sliding_window": True}, (0, 0, 0, 8)),
    ({"sliding_window": 8}, (0, 0, 0, 0)),
])
def test_windows(changes: dict[str, Any], windows: tuple[int, ...]) -> None:
    assert read(**changes).windows == windows


@pytest.mark.parametrize(("changes", "words"), [
    ({"hidden_size": None}, "hidden_size"),
    ({"rms_norm_eps": None}, "rms_norm_eps"),
    ({"num_attention_heads": "four"}, r"num_attention_heads"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
    ({"hidden_size": 66}, "head_dim is missing"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "linear"}}, "lacks factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
    ({"rope_scaling": {"rope_type": "linear", "factor": "x"}}, "rope_scaling.*factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0,
                       "original_max_position_embeddings": 32}}, "low_freq_factor equals"),
    ({"head_dim": 17}, "17 of 17 dimensions"),
    (MISTRAL | {"layer_types": ["full_attention"]}, "layer_types has 1 entries for 4 layers"),
    (MISTRAL | {"layer_types": ["sliding_attention"] * 4}, "no sliding_window"),
    ({"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
    ({"architectures": None, "model_type": None}, "architectures is missing"),
])
def test_wrong_fields_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as error:
        read(**changes)
    assert "config field" in str(error.value) and "\n" not in str(error.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["llama3", "linear", "silu", "", "1e3"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "partial_rotary_factor",
         "original_max_position_embeddings", "x"]), inner, max_size=6), max_leaves=8)
FIELDS = (*PLAIN, "head_dim", "hidden_act", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor",
          "tie_word_embeddings", "attention_bias", "sliding_window", "layer_types", "quantization_config")


@given(base=st.sampled_from([{}, MISTRAL, QWEN3]), changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_any_json_is_read_or_refused(base: dict[str, Any], changes: dict[str, Any]) -> None:
    try:
        cfg = read(**base | changes)
    except CheckpointError:
        return
    table = rope.rope_table(rope.frequencies(cfg.rope, None), 3)
    assert np.isfinite(table).all()


@pytest.mark.parametrize(("changes", "words"), [
    ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel.*LlamaForCausalLM.*MistralForCausalLM.*Qwen3ForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": None, "model_type": "mamba"}, "mamba"),
    ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn.*default, linear, llama3"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "layer type"),
    (MISTRAL | {"layer_types": ["chunked_attention"] * 4}, "chunked_attention"),
])
def test_unsupported_things_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        read(**changes)


def test_families_are_found_by_architecture_then_type() -> None:
    for family in FAMILIES:
        for name in family.architectures:
            assert find_family({"architectures": [name]}) is family
        assert find_family({"model_type": family.name}) is family
    assert find_family({"architectures": ["MistralForCausalLM"], "model_type": "llama"}).name == "mistral"


def test_rope_frequencies() -> None:
    plain = rope.Rope(kind="default", dim=8, theta=100.0)
    base = np.array([1.0, 100**-0.25, 0.1, 100**-0.75])
    assert np.allclose(rope.frequencies(plain, None), base)
    linear = msgspec.structs.replace(plain, kind="linear", factor=4.0)
    assert np.allclose(rope.frequencies(linear, None), base / 4)
    # Wavelengths 6.3, 19.9, 62.8 and 199 against a context of 64: kept, blended, blended, divided.
    llama3 = rope.Rope(kind="llama3", dim=8, theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_context=64.0)
    want = base.copy()
    want[3] /= 8
    for j in (1, 2):
        smooth = (64 / (2 * np.pi / base[j]) - 1) / 3
        want[j] = (1 - smooth) * base[j] / 8 + smooth * base[j]
    assert np.allclose(rope.frequencies(llama3, None), want)
    divisors = (base / want).astype(np.float32)
    assert np.allclose(rope.frequencies(llama3, divisors), want)  # the divisors already hold the scaling
    with pytest.raises(CheckpointError, match=r"rope_freqs.weight must hold 4"):
        rope.frequencies(plain, np.ones(3, np.float32))
    table = rope.rope_table(rope.frequencies(plain, None), 9000)
    assert table.shape == (9000, 2, 4) and table.dtype == np.float32
    assert np.allclose(table[:, 0] + 1j * table[:, 1], np.exp(1j * np.arange(9000)[:, None] * base))


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen3"])
def test_expect_counts_every_tensor_once(name: str) -> None:
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / name)
    family = find_family(checkpoint.config)
    cfg = family.config(checkpoint.config)
    expect = Expect(checkpoint.tensors)
    family.build(cfg, expect, 100)
    assert set(expect.needs) - {"rope"} == set(checkpoint.tensors)
    stored = sum(t.nbytes for t in checkpoint.tensors.values())
    norms = sum(t.nbytes for t in checkpoint.tensors.values() if len(t.shape) == 1)
    assert expect.nbytes == stored + norms + 100 * cfg.rope.dim * 4  # norms become float32; the rope table
    checkpoint.close()


def test_expect_names_missing_and_misshapen_tensors() -> None:
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / "llama")
    family, tensors = find_family(checkpoint.config), dict(checkpoint.tensors)
    cfg = family.config(checkpoint.config)
    checkpoint.close()
    for name, words in (("model.layers.1.mlp.up_proj.weight", "missing"), ("lm_head.weight", "missing"),
                        ("model.norm.weight", "missing")):
        with pytest.raises(CheckpointError, match=f"{name}.*{words}"):
            family.build(cfg, Expect({k: v for k, v in tensors.items() if k != name}), 10)
    wrong = msgspec.structs.replace(tensors["model.norm.weight"], shape=(63,))
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \[63\].* \[64\]"):
        family.build(cfg, Expect(tensors | {"model.norm.weight": wrong}), 10)
    with pytest.raises(CheckpointError, match=r"q_proj.bias.*missing"):
        family.build(msgspec.structs.replace(cfg, attention_bias=True), Expect(tensors), 10)


def test_tensors_that_no_part_of_the_model_reads_are_refused() -> None:
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / "llama")
    family, tensors = find_family(checkpoint.config), dict(checkpoint.tensors)
    cfg = family.config(checkpoint.config)
    checkpoint.close()
    norm = tensors["model.norm.weight"]
    for extra, refused in (("model.layers.0.self_attn.q_proj.bias", True), ("model.layers.99.mlp.up_proj.weight", True),
                           ("blk.0.attn_sinks.weight", True), ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
                           ("model.vision.weight", False)):
        expect = Expect(tensors | {extra: norm})
        family.build(cfg, expect, 10)
        if refused:
            with pytest.raises(UnsupportedModelError, match=f"{extra} would not be used"):
                expect.check_complete()
        else:
            expect.check_complete()


def test_measuring_computes_no_table_and_heads_have_a_limit() -> None:
    checkpoint = open_checkpoint(ROOT / "tests" / "data" / "llama")
    family, tensors = find_family(checkpoint.config), checkpoint.tensors
    expect = Expect(tensors)
    params = family.build(family.config(checkpoint.config), expect, 1 << 31)  # a table of it takes a quarter of a TiB
    assert params.rope.shape == (1 << 31, 2, 8) and expect.needs["rope"].nbytes == 1 << 37
    for change in ({"head_dim": 1 << 30}, {"hidden_size": 1 << 31, "head_dim": None}):
        with pytest.raises(CheckpointError, match="head_dim"):
            family.config({**checkpoint.config, **change})
    checkpoint.close()


def test_biases_reach_the_output() -> None:
    """With zero weights everywhere but the biases, the hidden state follows from the biases alone."""
    h, inner, vocab = 8, 6, 10

    class Made(Load):
        """Zeros, ones for norms and embeddings, and biases by name."""

        def __init__(self) -> None: ...

        def table(self, name: str, shape: tuple[int, int]) -> Any:
            value = np.zeros(shape, np.float32) if "proj" in name else np.ones(shape, np.float32)
            return inputs.Weight("f32", shape, (value,))

        def host(self, name: str) -> Any:
            sizes = {"q_proj.bias": h, "k_proj.bias": h, "v_proj.bias": h, "o_proj.bias": h, "gate_proj.bias": inner,
                     "up_proj.bias": inner, "down_proj.bias": h}
            for end, size in sizes.items():
                if name.endswith(end):
                    return np.full(size, 3.0 if end.startswith("o") else 5.0 if end.startswith("down") else 1.0, "f4")
            return None if "rope" in name else np.ones(h, np.float32)

        def has(self, name: str) -> bool:
            return False

    config = PLAIN | {"hidden_size": h, "intermediate_size": inner, "vocab_size": vocab, "num_hidden_layers": 1,
                      "num_attention_heads": 2, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    family = find_family(config)
    cfg = family.config(config)
    params = family.build(cfg, Made(), 32)
    assert params.layers[0].qkv_bias.shape == (3 * h,) and params.layers[0].mlp.gate_up_bias.shape == (2 * inner,)
    batch, pages = inputs.ragged(np.random.default_rng(0), ((0, 3),), 1)
    batch = msgspec.structs.replace(batch, ids=batch.ids % vocab)
    state = KVState((PagedKV("f32", np.zeros((pages, 2, 2, 32, 4), np.float32)),))
    seen: list[np.ndarray[Any, Any]] = []
    watched = type("Watched", (), vars(ref) | {"add_rms_norm": staticmethod(
        lambda x, r, w, e: seen.append(np.asarray(x)) or ref.add_rms_norm(x, r, w, e))})
    family.forward(watched, cfg, params, state, batch, "float32")
    assert (seen[0] == 3.0).all() and (seen[1] == 5.0).all()
