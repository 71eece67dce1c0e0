"""The GGUF reader: what it reads, what it refuses and how, and that no damaged file gets past a typed error."""
from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.checkpoint.gguf import unpermuted
from blackwell_infer.checkpoint.gguf_file import TYPES, read_gguf
from blackwell_infer.errors import CheckpointError, UnsupportedModelError
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.encode import encode

DATA = Path("../shared/data")
HEADS, KV_HEADS, DIM, HIDDEN, WIDTH, VOCAB = 4, 2, 8, 32, 64, 40
F32, Q8_0 = 0, 8

Pair = tuple[str, int, Any]
Row = tuple[str, tuple[int, ...], int, bytes]


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, v: Any) -> bytes:
    """A metadata value; for kind 9, `v` is (element kind, list)."""
    if kind == 8:
        return text(v)
    if kind == 9:
        return struct.pack("<IQ", v[0], len(v[1])) + b"".join(value(v[0], e) for e in v[1])
    return struct.pack({0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
                        12: "<d"}[kind], v)


def build(pairs: list[Pair], rows: list[Row], *, version: int = 3, align: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(rows), len(pairs))
    head += b"".join(text(k) + struct.pack("<I", kind) + value(kind, v) for k, kind, v in pairs)
    body = b""
    for name, shape, kind, raw in rows:
        body += b"\0" * (-len(body) % align)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(body))
        body += raw
    return head + b"\0" * (-len(head) % align) + body


def config_pairs(arch: str = "llama", **extra: Pair) -> list[Pair]:
    pairs = [
        ("general.architecture", 8, arch), (f"{arch}.embedding_length", 4, HIDDEN),
        (f"{arch}.feed_forward_length", 4, WIDTH), (f"{arch}.block_count", 4, 1), (f"{arch}.context_length", 4, 128),
        (f"{arch}.attention.head_count", 4, HEADS), (f"{arch}.attention.head_count_kv", 4, KV_HEADS),
        (f"{arch}.attention.layer_norm_rms_epsilon", 6, 1e-5), (f"{arch}.rope.freq_base", 6, 5e5),
        ("tokenizer.ggml.tokens", 9, (8, ["<s>", "▁a", ""])), ("tokenizer.ggml.scores", 9, (6, [0.0, -1.0, 0.5])),
        ("tokenizer.ggml.eos_token_id", 4, 2), ("tokenizer.ggml.eot_token_id", 4, 7),
        ("tokenizer.ggml.padding_token_id", 4, 0xFFFFFFFF), ("tokenizer.ggml.add_bos_token", 7, True),
    ]
    return pairs + list(extra.values())


def matrix(seed: int, rows: int, cols: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((rows, cols)).astype(np.float32)


def tensor_rows() -> list[Row]:
    shapes = {
        "token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN),
        "rope_freqs.weight": (DIM // 2,), "blk.0.attn_norm.weight": (HIDDEN,), "blk.0.ffn_norm.weight": (HIDDEN,),
        "blk.0.attn_q.weight": (HEADS * DIM, HIDDEN), "blk.0.attn_k.weight": (KV_HEADS * DIM, HIDDEN),
        "blk.0.attn_v.weight": (KV_HEADS * DIM, HIDDEN), "blk.0.attn_output.weight": (HIDDEN, HEADS * DIM),
        "blk.0.ffn_gate.weight": (WIDTH, HIDDEN), "blk.0.ffn_up.weight": (WIDTH, HIDDEN),
        "blk.0.ffn_down.weight": (HIDDEN, WIDTH), "blk.0.attn_q.bias": (HEADS * DIM,),
    }
    out: list[Row] = []
    for seed, (name, shape) in enumerate(shapes.items()):
        x = matrix(seed, *((1, *shape) if len(shape) == 1 else shape))
        if name in ("blk.0.attn_k.weight", "blk.0.ffn_down.weight"):
            out.append((name, shape, Q8_0, np.asarray(encode(x, "q8_0").parts[0]).tobytes()))
        else:
            out.append((name, shape, F32, x.tobytes()))
    return out


def write(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


def open_all(path: Path) -> int:
    """Open, decode every value, read every tensor; the number of tensors."""
    checkpoint = open_checkpoint(path)
    for key in checkpoint.metadata:
        checkpoint.metadata[key]
    for name, info in checkpoint.tensors.items():
        if info.format and len(info.shape) <= 2:
            w = checkpoint.weight(name)
            assert w.nbytes == info.nbytes
            FORMATS[w.format].dequantize(w)
    checkpoint.close()
    return len(checkpoint.tensors)


def test_config_generation_and_metadata(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", build(config_pairs(), tensor_rows())))
    expected = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "head_dim": DIM,
        "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "rope_theta": 5e5, "rope_scaling": None, "tie_word_embeddings": False,
        "vocab_size": VOCAB, "max_position_embeddings": 128, "attention_bias": True, "sliding_window": None,
        "eos_token_id": 2,
    }
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.config["rms_norm_eps"] == pytest.approx(1e-5)
    assert "pad_token_id" not in checkpoint.config
    assert checkpoint.generation["eos_token_id"] == [2, 7]
    assert checkpoint.metadata["tokenizer.ggml.tokens"] == ["<s>", "▁a", ""]
    assert checkpoint.metadata["tokenizer.ggml.scores"] == [0.0, -1.0, 0.5]
    assert checkpoint.metadata["tokenizer.ggml.add_bos_token"] is True
    assert "nothing" not in checkpoint.metadata and checkpoint.metadata.get("nothing") is None


def test_names_shapes_and_the_permutation_of_q_and_k(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", build(config_pairs(), tensor_rows()))
    stored = {t.name: t for t in gguf.GGUFReader(path).tensors}
    checkpoint = open_checkpoint(path)
    layer = "model.layers.0."
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (VOCAB, HIDDEN)
    assert checkpoint.tensors["model.norm.weight"].shape == (HIDDEN,)
    assert checkpoint.weight("model.norm.weight").shape == (1, HIDDEN)
    assert checkpoint.tensors["rope_freqs.weight"].shape == (DIM // 2,)
    assert checkpoint.tensors[layer + "mlp.down_proj.weight"].format == "q8_0"
    for hf, ours in {"mlp.gate_proj": "ffn_gate", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
                     "mlp.up_proj": "ffn_up"}.items():
        w = checkpoint.weight(f"{layer}{hf}.weight")
        assert np.array_equal(w.parts[0], stored[f"blk.0.{ours}.weight"].data)
        assert not np.asarray(w.parts[0]).flags.owndata
    for hf, ours, heads in (("q_proj", "attn_q", HEADS), ("k_proj", "attn_k", KV_HEADS)):
        w = checkpoint.weight(f"{layer}self_attn.{hf}.weight")
        raw = np.asarray(stored[f"blk.0.{ours}.weight"].data)
        expected = raw.reshape(heads, DIM // 2, 2, -1).swapaxes(1, 2).reshape(raw.shape)
        assert np.array_equal(w.parts[0], expected)
    bias = np.asarray(stored["blk.0.attn_q.bias"].data)
    expected = bias.reshape(HEADS, DIM // 2, 2).swapaxes(1, 2).reshape(1, -1)
    assert np.array_equal(checkpoint.weight(layer + "self_attn.q_proj.bias").parts[0], expected)


def test_unpermuted_inverts_the_conversion() -> None:
    rows = np.arange(24)
    converted = rows.reshape(3, 2, 4).swapaxes(1, 2).reshape(-1)
    assert np.array_equal(converted[unpermuted(24, 3)], rows)


def test_qwen3_is_not_permuted_and_ties_without_a_head(tmp_path: Path) -> None:
    rows = [r for r in tensor_rows() if r[0] not in ("output.weight", "blk.0.attn_q.bias", "rope_freqs.weight")]
    rows.append(("blk.0.attn_q_norm.weight", (DIM,), F32, matrix(99, 1, DIM).tobytes()))
    path = write(tmp_path / "m.gguf", build(config_pairs("qwen3", n=("qwen3.attention.key_length", 4, DIM)), rows))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["architectures"] == ["Qwen3ForCausalLM"] and checkpoint.config["tie_word_embeddings"]
    assert checkpoint.tensors["model.layers.0.self_attn.q_norm.weight"].shape == (DIM,)
    raw = next(t.data for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.attn_q.weight")
    assert np.array_equal(checkpoint.weight("model.layers.0.self_attn.q_proj.weight").parts[0], raw)


def test_fused_qkv_is_three_tensors(tmp_path: Path) -> None:
    whole = tensor_rows()
    path = write(tmp_path / "a.gguf", build(config_pairs(), [r for r in whole if r[0] != "blk.0.attn_q.bias"]))
    apart = open_checkpoint(path)
    parts = [next(r for r in whole if r[0] == f"blk.0.attn_{p}.weight") for p in "qkv"]
    f32 = [p[3] if p[2] == F32 else matrix(7, *p[1]).tobytes() for p in parts]
    rows = [r for r in whole if not r[0].startswith(("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"))]
    size = (HEADS + 2 * KV_HEADS) * DIM
    rows.append(("blk.0.attn_qkv.weight", (size, HIDDEN), F32, b"".join(f32)))
    rows.append(("blk.0.attn_qkv.bias", (size,), F32, matrix(5, 1, size).tobytes()))
    fused = open_checkpoint(write(tmp_path / "b.gguf", build(config_pairs(), rows)))
    for part, count in (("q", HEADS), ("v", KV_HEADS)):
        name = f"model.layers.0.self_attn.{part}_proj.weight"
        assert fused.tensors[name].shape == (count * DIM, HIDDEN)
        assert np.array_equal(fused.weight(name).parts[0], apart.weight(name).parts[0])
        assert fused.weight(name).nbytes == fused.tensors[name].nbytes
    assert fused.weight("model.layers.0.self_attn.k_proj.bias").shape == (1, KV_HEADS * DIM)
    rows.append(("blk.0.attn_k.weight", (KV_HEADS * DIM, HIDDEN), F32, f32[1]))
    with pytest.raises(CheckpointError, match="k_proj"):
        open_checkpoint(write(tmp_path / "c.gguf", build(config_pairs(), rows)))


@pytest.mark.parametrize(("pairs", "expected"), [
    ([("llama.rope.scaling.type", 8, "linear"), ("llama.rope.scaling.factor", 6, 4.0)],
     {"rope_type": "linear", "factor": 4.0}),
    ([("llama.rope.scaling.type", 8, "yarn"), ("llama.rope.scaling.factor", 6, 4.0),
      ("llama.rope.scaling.original_context_length", 4, 4096), ("llama.rope.scaling.yarn_beta_fast", 6, 32.0)],
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0}),
    ([("llama.rope.scaling.type", 8, "none")], None),
    ([("llama.rope.scaling.type", 8, "longrope")], {"rope_type": "longrope", "factor": 1.0}),
])
def test_rope_scaling(tmp_path: Path, pairs: list[Pair], expected: Any) -> None:
    rows = [r for r in tensor_rows() if r[0] != "rope_freqs.weight"]
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", build(config_pairs() + pairs, rows)))
    assert checkpoint.config["rope_scaling"] == expected


def test_sliding_window_and_experts_choose_the_architecture(tmp_path: Path) -> None:
    window = config_pairs(w=("llama.attention.sliding_window", 4, 16))
    mistral = open_checkpoint(write(tmp_path / "a.gguf", build(window, tensor_rows())))
    assert (mistral.config["architectures"], mistral.config["sliding_window"]) == (["MistralForCausalLM"], 16)
    experts = config_pairs(e=("llama.expert_count", 4, 8), u=("llama.expert_used_count", 4, 2))
    mixtral = open_checkpoint(write(tmp_path / "b.gguf", build(experts, tensor_rows())))
    assert mixtral.config["architectures"] == ["MixtralForCausalLM"]


def test_an_unknown_architecture_keeps_its_name(tmp_path: Path) -> None:
    pairs: list[Pair] = [("general.architecture", 8, "gpt-oss")]
    rows: list[Row] = [("blk.0.x.weight", (2, 32), 20, bytes(36)), ("odd.weight", (3,), 77, b"")]
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", build(pairs, rows)))
    assert checkpoint.config["architectures"] == ["gpt-oss"]
    assert checkpoint.tensors["blk.0.x.weight"].format == ""
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.x\.weight.* iq4_nl.*q4_k"):
        checkpoint.weight("blk.0.x.weight")
    with pytest.raises(UnsupportedModelError, match="type 77"):
        checkpoint.weight("odd.weight")


def test_an_unsupported_type_is_refused_by_name(tmp_path: Path) -> None:
    rows = tensor_rows()
    at = next(i for i, r in enumerate(rows) if r[0] == "blk.0.ffn_up.weight")
    rows[at] = ("blk.0.ffn_up.weight", (WIDTH, HIDDEN), 7, bytes(WIDTH * 24))
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.ffn_up\.weight.*q5_1.*f32, f16, bf16, q8_0"):
        open_checkpoint(write(tmp_path / "m.gguf", build(config_pairs(), rows)))


def test_type_table_equals_the_gguf_package() -> None:
    known = {int(k): (k.name.lower(), *v) for k, v in gguf.GGML_QUANT_SIZES.items()}
    assert dict(TYPES) == {k: known[k] for k in TYPES}


@pytest.mark.parametrize(("pair", "match"), [
    (("llama.attention.head_count", 9, (4, [4, 2])), "differs between layers"),
    (("llama.attention.value_length", 4, 16), "head length"),
    (("llama.rope.dimension_count", 4, 4), "part of the head"),
    (("llama.attention.causal", 7, False), "causal"),
    (("llama.context_length", 8, "many"), "context_length' is 'many'"),
    (("llama.block_count", 4, 0), "block_count"),
    (("llama.rope.freq_base", 6, float("nan")), "freq_base' is nan"),
    (("general.architecture", 8, ""), "general.architecture"),
])
def test_metadata_that_makes_no_sense(tmp_path: Path, pair: Pair, match: str) -> None:
    pairs = [p for p in config_pairs() if p[0] != pair[0]] + [pair]
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(write(tmp_path / "m.gguf", build(pairs, tensor_rows())))


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    pairs = [p for p in config_pairs() if p[0] != "llama.block_count"]
    with pytest.raises(CheckpointError, match=r"llama\.block_count' is missing"):
        open_checkpoint(write(tmp_path / "m.gguf", build(pairs, tensor_rows())))
    same = [p for p in config_pairs() if "head_count" not in p[0]]
    same.append(("llama.attention.head_count", 9, (4, [HEADS, HEADS])))
    assert open_checkpoint(write(tmp_path / "n.gguf", build(same, tensor_rows()))).config["num_key_value_heads"] == 4


def header(tensors: int, pairs: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def one(name: bytes, dims: int, sizes: list[int], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", dims, *sizes, kind, offset)


HUGE = (1 << 64) - 1
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"hello world", "no GGUF file"),
    "short": (b"GGUF\3\0", "version"),
    "version 1": (header(0, 0, 1) + bytes(64), "version 1"),
    "version 99": (header(0, 0, 99) + bytes(64), "version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "tensor count": (header(HUGE, 0) + bytes(64), "announces"),
    "pair count": (header(0, 1 << 40) + bytes(64), "announces"),
    "key length": (header(0, 1) + struct.pack("<Q", HUGE) + bytes(64), "key"),
    "key bytes": (header(0, 1) + text(b"\xff\xfe") + bytes(64), "UTF-8"),
    "value type": (header(0, 1) + text("a") + struct.pack("<I", 13) + bytes(64), "unknown type 13"),
    "nested array": (header(0, 1) + text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "unknown type 9"),
    "array count": (header(0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 1 << 61) + bytes(64), "needs"),
    "string count": (header(0, 1) + text("a") + struct.pack("<IIQ", 9, 8, HUGE) + bytes(64), "announces"),
    "string length": (header(0, 1) + text("a") + struct.pack("<IIQQ", 9, 8, 2, HUGE) + bytes(64), "beyond the end"),
    "same key": (header(0, 2) + (text("a") + struct.pack("<II", 4, 1)) * 2 + bytes(64), "twice"),
    "alignment": (build([("general.alignment", 4, 24)], []) + bytes(64), "power of two"),
    "alignment kind": (build([("general.alignment", 8, "x")], []) + bytes(64), "power of two"),
    "dimensions": (header(1, 0) + one(b"t", 5, [1, 1, 1, 1, 1], 0, 0) + bytes(64), "5 dimensions"),
    "no dimensions": (header(1, 0) + one(b"t", 0, [], 0, 0) + bytes(64), "0 dimensions"),
    "sizes": (header(1, 0) + one(b"t", 2, [1 << 40, 1 << 40], 0, 0) + bytes(64), "impossible"),
    "zero": (header(1, 0) + one(b"t", 2, [4, 0], 0, 0) + bytes(64), "impossible"),
    "odd row": (header(1, 0) + one(b"t", 1, [33], 8, 0) + bytes(64), "block of 32"),
    "offset": (header(1, 0) + one(b"t", 1, [1], 0, HUGE) + bytes(64), "lies at offset"),
    "unknown type's offset": (header(1, 0) + one(b"t", 1, [1], 99, 1 << 50) + bytes(64), "lies at offset"),
    "end": (header(1, 0) + one(b"t", 1, [100], 0, 0) + bytes(64), "lies at offset"),
    "same name": (header(2, 0) + one(b"t", 1, [1], 0, 0) + one(b"t", 1, [1], 0, 32) + bytes(128), "twice"),
    "overlap": (header(2, 0) + one(b"t", 1, [9], 0, 0) + one(b"u", 1, [1], 0, 32) + bytes(128), "overlaps"),
    "no architecture": (header(0, 0) + bytes(64), "general.architecture"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    raw, match = BROKEN[case]
    path = write(tmp_path / "m.gguf", raw)
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(caught.value) and peak < 1 << 20


def test_a_string_that_is_not_utf8_fails_only_where_it_is_read(tmp_path: Path) -> None:
    pairs = [*config_pairs(), ("general.description", 8, b"caf\xe9")]
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", build(pairs, tensor_rows())))
    with pytest.raises(CheckpointError, match=r"general\.description.*UTF-8"):
        checkpoint.metadata["general.description"]


def test_every_truncation_is_a_typed_error(tmp_path: Path) -> None:
    raw = build(config_pairs(), tensor_rows())
    path = tmp_path / "m.gguf"
    for size in [*range(0, 1500, 7), *range(1500, len(raw), 997), len(raw) - 1]:
        path.write_bytes(raw[:size])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


@settings(max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_files_give_typed_errors_only(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(build(config_pairs(), tensor_rows()))
    limit = raw.find(b"ffn_down") + 200
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, limit))
        new = data.draw(st.one_of(
            st.binary(min_size=1, max_size=8),
            st.sampled_from([0, 1, 31, 32, 255, 1 << 16, 1 << 31, 1 << 40, 1 << 62, 1 << 63, HUGE]).map(
                lambda n: struct.pack("<Q", n)),
        ))
        raw[at:at + len(new)] = new
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))):]
    path = write(tmp_path / "m.gguf", bytes(raw))
    tracemalloc.start()
    try:
        open_all(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def split(folder: Path, parts: int, **changed: Any) -> list[Path]:
    """A model in several parts; `changed` overrides split.* values of the last."""
    rows, paths = tensor_rows(), []
    for i in range(parts):
        values = {"no": i, "count": parts, "tensors": len(rows)} | (changed if i == parts - 1 else {})
        pairs: list[Pair] = [("split.no", 2, values["no"]), ("split.count", 2, values["count"]),
                             ("split.tensors.count", 5, values["tensors"])]
        raw = build((config_pairs() if i == 0 else []) + pairs, rows[i::parts])
        paths.append(write(folder / f"m-{i + 1:05d}-of-{parts:05d}.gguf", raw))
    return paths


def test_split_files_equal_one_file(tmp_path: Path) -> None:
    whole = open_checkpoint(write(tmp_path / "whole.gguf", build(config_pairs(), tensor_rows())))
    folder = tmp_path / "parts"
    folder.mkdir()
    paths = split(folder, 3)
    for place in (paths[0], paths[2], folder):
        parts = open_checkpoint(place)
        assert parts.config == whole.config and set(parts.tensors) == set(whole.tensors)
        assert all(np.array_equal(parts.weight(n).parts[0], whole.weight(n).parts[0]) for n in whole.tensors)
    assert len({info.file for info in parts.tensors.values()}) == 3
    paths[1].unlink()
    with pytest.raises(CheckpointError, match=r"m-00002-of-00003\.gguf: this part"):
        open_checkpoint(paths[0])


@pytest.mark.parametrize("changed", [{"no": 0}, {"count": 4}, {"tensors": 99}])
def test_parts_that_do_not_belong_together(tmp_path: Path, changed: dict[str, int]) -> None:
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        open_checkpoint(split(tmp_path, 2, **changed)[0])


def test_a_part_under_another_name_is_refused(tmp_path: Path) -> None:
    part = split(tmp_path, 2)[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(CheckpointError, match=r"part 0 .* of 2"):
        open_checkpoint(part)


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path)
    first = write(tmp_path / "a.gguf", build(config_pairs(), tensor_rows()))
    assert open_checkpoint(tmp_path).path == first
    write(tmp_path / "b.gguf", first.read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.gguf, b\.gguf"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        open_checkpoint(tmp_path / "absent.gguf")


def test_version_2_and_closing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", build(config_pairs(), tensor_rows(), version=2))
    checkpoint = open_checkpoint(path)
    w = checkpoint.weight("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"has no tensor 'model\.nothing'"):
        checkpoint.weight("model.nothing")
    checkpoint.close()
    assert np.isfinite(np.asarray(w.parts[0])).all()
    with pytest.raises(CheckpointError, match="closed"):
        checkpoint.weight("model.norm.weight")


def test_a_large_vocabulary_opens_at_once(tmp_path: Path) -> None:
    count = 200_000
    blob = b"".join(text(f"token{i}") for i in range(count))
    raw = header(0, 2) + text("general.architecture") + struct.pack("<I", 8) + text("x")
    raw += text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, count) + blob
    path = write(tmp_path / "m.gguf", raw + bytes(64))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        file = read_gguf(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
    assert file.metadata["tokenizer.ggml.tokens"][-1] == f"token{count - 1}"


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_real_files_equal_the_gguf_package() -> None:
    path = DATA / "models/stories260K/stories260K.gguf"
    file, reference = read_gguf(path), gguf.GGUFReader(path)
    assert {t.name: tuple(reversed(t.shape.tolist())) for t in reference.tensors} == {
        t.name: t.shape for t in file.tensors.values()}
    for t in reference.tensors:
        assert np.array_equal(file.bytes_of(file.tensors[t.name]), t.data.view(np.uint8).reshape(-1))
    fields = {k: f for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert set(file.metadata) == set(fields)
    assert all(file.metadata[k] == f.contents() for k, f in fields.items())


@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_files_that_hold_only_a_vocabulary_open() -> None:
    sizes = {"gpt-2": 50257, "llama-bpe": 128256, "llama-spm": 32000, "qwen2": 151936}
    for name, size in sizes.items():
        checkpoint = open_checkpoint(DATA / f"tokenizers/llama.cpp-vocab/ggml-vocab-{name}.gguf")
        assert not checkpoint.tensors and len(checkpoint.metadata["tokenizer.ggml.tokens"]) == size
        assert checkpoint.config.get("vocab_size", size) == size
