"""tools/llama2c_to_hf.py: the converted folders give the ids of the goldens, with a float64 forward pass of our own."""
from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tooling import load_tool

from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.quant import FORMATS

ROOT = Path(__file__).parents[2]
MODELS = {
    "stories260K": ("stories260K.bin", "tok512.bin"),
    "babyllama-tok105": ("model5000.bin", "tok105.model"),
}


tool = load_tool("llama2c_to_hf")


def matrices(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    checkpoint = open_checkpoint(folder)
    values = {n: FORMATS[t.format].dequantize(checkpoint.weight(n)).astype(np.float64)
              for n, t in checkpoint.tensors.items()}
    return dict(checkpoint.config), values


def rms(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], eps: float) -> np.ndarray[Any, Any]:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w[0]


def logits(c: dict[str, Any], w: dict[str, np.ndarray[Any, Any]], ids: list[int]) -> np.ndarray[Any, Any]:
    """Logits [T, V] of `ids`: Llama with half-split rope, as models.md section 1 has it."""
    d, heads, kv, eps = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"], c["rms_norm_eps"]
    angle = np.arange(len(ids))[:, None] * c["rope_theta"] ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]                  # [T, 1, d/2]

    def turn(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, b = x[..., :d // 2], x[..., d // 2:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    x = w["model.embed_tokens.weight"][ids]                                    # [T, H]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        y = rms(x, w[p + "input_layernorm.weight"], eps)
        q = turn((y @ w[p + "self_attn.q_proj.weight"].T).reshape(-1, heads, d))
        k = turn((y @ w[p + "self_attn.k_proj.weight"].T).reshape(-1, kv, d)).repeat(heads // kv, axis=1)
        v = (y @ w[p + "self_attn.v_proj.weight"].T).reshape(-1, kv, d).repeat(heads // kv, axis=1)
        s = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(d)
        s = np.where(np.tri(len(ids), dtype=bool), s, -np.inf)
        a = np.exp(s - s.max(axis=-1, keepdims=True))
        a /= a.sum(axis=-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", a, v).reshape(len(ids), -1) @ w[p + "self_attn.o_proj.weight"].T
        y = rms(x, w[p + "post_attention_layernorm.weight"], eps)
        gate = y @ w[p + "mlp.gate_proj.weight"].T
        x = x + (gate / (1 + np.exp(-gate)) * (y @ w[p + "mlp.up_proj.weight"].T)) @ w[p + "mlp.down_proj.weight"].T
    head = w["model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight"]
    return rms(x, w["model.norm.weight"], eps) @ head.T


@pytest.fixture(scope="module", params=sorted(MODELS))
def converted(request: pytest.FixtureRequest, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    source = shared_data / "models" / request.param
    model, vocabulary = (source / name for name in MODELS[request.param])
    out = tmp_path_factory.mktemp("converted") / request.param
    assert tool.main([str(model), str(vocabulary), str(out)]) == 0
    return out, json.loads((source / "golden.json").read_text()), source


def test_prompts_give_the_golden_ids(converted: Any) -> None:
    folder, golden, _ = converted
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for case in golden["greedy"]:
        assert tokenizer.encode(case["prompt"]).ids == case["prompt_ids"]
        ids = case["prompt_ids"] + case["generated_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == case["text"]


def test_greedy_ids_are_the_golden_ones(converted: Any) -> None:
    folder, golden, _ = converted
    config, weights = matrices(folder)
    for case in golden["greedy"]:
        prompt, answer = case["prompt_ids"], case["generated_ids"]
        out = logits(config, weights, prompt + answer[:-1])[len(prompt) - 1:]  # every step at once: causal
        assert out.argmax(axis=-1).tolist() == answer
        for token, value in case["prompt_last_logits_top10"]:
            assert out[0, token] == pytest.approx(value, abs=2e-5)


def test_the_vocabulary_listing_equals_the_model(shared_data: Path) -> None:
    folder = shared_data / "models/babyllama-tok105"
    listing, model = (tool.read_vocabulary(folder / f"tok105.{end}", 105) for end in ("vocab", "model"))
    assert (listing.tokens, listing.types, listing.kind) == (model.tokens, model.types, model.kind)


def test_stories_equals_its_gguf(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "models/stories260K"
    assert tool.convert(folder / "stories260K.bin", folder / "tok512.bin", tmp_path / "m") > 0
    ours, theirs = open_checkpoint(tmp_path / "m"), open_checkpoint(folder / "stories260K.gguf")
    for name, info in theirs.tensors.items():
        if name != "lm_head.weight":
            assert ours.tensors[name].shape == info.shape
            assert np.array_equal(ours.weight(name).parts[0], theirs.weight(name).parts[0]), name
    assert tool.read_vocabulary(folder / "tok512.bin", 512).tokens == theirs.metadata["tokenizer.ggml.tokens"]


def tiny(vocab: int) -> bytes:
    """A checkpoint of width 8, one layer, context 4."""
    v = abs(vocab)
    count = v * 8 + 8 + 64 + 32 + 32 + 64 + 8 + 3 * 96 + 8 + 2 * 4 * 2 + (v * 8 if vocab < 0 else 0)
    values = np.random.default_rng(0).standard_normal(count).astype(np.float32)
    return struct.pack("<7i", 8, 12, 1, 2, 1, vocab, 4) + values.tobytes()


def vocabulary(*tokens: str) -> bytes:
    return struct.pack("<i", 9) + b"".join(
        struct.pack("<fi", -float(i), len(t.encode())) + t.encode() for i, t in enumerate(tokens))


def test_a_negative_vocabulary_is_a_head_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "t.bin").write_bytes(vocabulary("<unk>", "\n<s>\n", "\n</s>\n", " a", "a", " "))
    for vocab, tied in ((6, True), (-6, False)):
        (tmp_path / "m.bin").write_bytes(tiny(vocab))
        assert tool.main([str(tmp_path / "m.bin"), str(tmp_path / "t.bin"), str(tmp_path / "o")]) == 0
        checkpoint = open_checkpoint(tmp_path / "o")
        assert checkpoint.config["tie_word_embeddings"] is tied
        assert ("lm_head.weight" in checkpoint.tensors) is not tied
        assert checkpoint.generation["eos_token_id"] == [2, 1]
    if not tied:
        last = np.frombuffer(tiny(-6), np.float32)[-48:].reshape(6, 8)
        assert np.array_equal(checkpoint.weight("lm_head.weight").parts[0], last)


def test_unigram_pieces_take_the_likeliest_split() -> None:
    pieces = tool.Pieces(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁ab", "ab"], [0, 0, 0, -9, -9, -9, -1, -5],
                         [2, 3, 3, 1, 1, 1, 1, 1], tool.UNIGRAM, collapse=True)
    assert tool.build_tokenizer(pieces).encode(" ab  a ").ids == [1, 6, 3, 4]


@pytest.mark.parametrize(("model", "tokens", "match"), [
    (b"abc", b"", "too few"), (b"24ka" + bytes(40), b"", "later llama2.c version"), (bytes(64), b"", "makes no sense"),
    (tiny(6)[:-4], b"", "truncated"), (tiny(6), vocabulary("a")[:-1], "length"),
    (tiny(6), vocabulary("a"), "ends within"),
])
def test_bad_input_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: bytes, tokens: bytes, match: str,
) -> None:
    (tmp_path / "m.bin").write_bytes(model)
    (tmp_path / "t.bin").write_bytes(tokens)
    assert tool.main([str(tmp_path / "m.bin"), str(tmp_path / "t.bin"), str(tmp_path / "o")]) == 1
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1
