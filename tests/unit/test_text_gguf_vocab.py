"""GGUF vocabularies: exact on real vectors, strict on damaged ones."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.checkpoint.gguf_file import read_gguf
from blackwell_infer.errors import TokenizerError
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf
from blackwell_infer.text.pretokenizer import PRE_TOKENIZERS
from blackwell_infer.text.sentencepiece import read_sentencepiece
from blackwell_infer.text.tokenizer import Tokenizer, gpt2_alphabet

DATA = Path(__file__).parents[2] / "../shared/data"
VECTORS = DATA / "tokenizers/llama.cpp-vocab"
REAL = ("gpt-2", "llama-bpe", "llama-spm", "qwen2")
needs_data = pytest.mark.skipif(not VECTORS.is_dir(), reason="shared data is not here")


@cache
def real_metadata(path: Path) -> Mapping[str, Any]:
    return read_gguf(path).metadata


@cache
def real(name: str) -> Tokenizer:
    return tokenizer_from_gguf(real_metadata(VECTORS / f"ggml-vocab-{name}.gguf"))


def byte_level(words: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
    """A vocabulary of the 256 bytes, the merged tokens and two control tokens."""
    tokens = [*gpt2_alphabet(), *(word.replace(" ", "") for word in words), "<|begin|>", "<|im_end|>"]
    values = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": list(words),
        "token_type": [1] * (len(tokens) - 2) + [3, 3], "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


def sentencepiece(*pieces: str, **changes: Any) -> dict[str, Any]:
    """unknown, begin, end, 256 bytes, then the pieces with falling scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    values = {
        "model": "llama", "tokens": tokens, "token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "scores": [0.0] * 259 + [float(-i) for i in range(len(pieces))],
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_llama_cpp_vectors(name: str) -> None:
    tokenizer = real(name)
    inputs = (VECTORS / f"ggml-vocab-{name}.gguf.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = (VECTORS / f"ggml-vocab-{name}.gguf.out").read_text().split("\n")
    wanted = [list(map(int, line.split())) for line in outputs]
    assert len(inputs) == len(wanted) == 47
    assert [tokenizer.encode(text, bos=False, specials=False) for text in inputs] == wanted
    assert [tokenizer.decode(ids) for ids in wanted] == inputs


@needs_data
def test_stories_prompts_and_empty_text() -> None:
    folder = DATA / "models/stories260K"
    tokenizer = tokenizer_from_gguf(real_metadata(folder / "stories260K.gguf"))
    golden = json.loads((folder / "golden.json").read_text())
    assert golden["greedy"]
    for case in golden["greedy"]:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
    assert tokenizer.encode("") == [1]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos, tokenizer.size) == (1, 2, True, 512)


@needs_data
def test_special_ids_and_rules_of_real_files() -> None:
    llama = real("llama-bpe")
    assert (llama.bos_id, llama.add_bos, llama.size) == (128000, True, 128256)
    assert llama.stop_ids >= {128001, 128009}
    assert real("qwen2").stop_ids == {151643, 151645}
    assert not real("qwen2").add_bos and not real("gpt-2").add_bos
    assert real("llama-spm").stop_ids == {2}


@needs_data
@pytest.mark.parametrize("name", REAL)
def test_control_tokens_cannot_be_forged(name: str) -> None:
    tokenizer = real(name)
    control = [i for i in range(tokenizer.size) if tokenizer.is_special(i)]
    assert control
    text = " x ".join(tokenizer.token(i) for i in control)
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode(text, bos=False, specials=False))
    assert [i for i in tokenizer.encode(text, bos=False) if tokenizer.is_special(i)] == control


def test_large_score_vocabulary_loads_in_seconds() -> None:
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiou"]
    pairs = [a + b for a in syllables for b in syllables]
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyz", *syllables, *pairs, *(a + b for a in pairs[:600] for b in syllables)]
    start = time.perf_counter()
    tokenizer = tokenizer_from_gguf(sentencepiece(*pieces))
    assert tokenizer.size == 259 + len(pieces) > 60_000
    assert time.perf_counter() - start < 5  # 0.4 s alone on a laptop core; 256k real words take 1.7 s
    assert len(tokenizer.encode("bacadafaga", bos=False)) < 6


def test_score_order_decides_and_leftmost_wins() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece("▁", "a", "b", "ab", "ba", "▁a", "aba"))
    pieces = [tokenizer.token(i) for i in tokenizer.encode("abab", bos=False)]
    assert pieces == ["▁", "ab", "ab"]
    assert [tokenizer.token(i) for i in tokenizer.encode("ba", bos=False)] == ["▁", "ba"]


def by_scores(text: str, metadata: Mapping[str, Any], ids: dict[str, int]) -> list[int]:
    """The definition: merge the best-scored neighbours, leftmost first, until none form a token."""
    scores = metadata["tokenizer.ggml.scores"]
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while found := [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [
        i for part in parts
        for i in ([ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])
    ]


LETTERS = st.sampled_from("aaabcdehinrst   \n\té你🦙1.,</s>") | st.characters(exclude_categories=["Cs"])


@needs_data
@given(st.text(LETTERS, max_size=40))
def test_score_merges_follow_the_definition(text: str) -> None:
    metadata = real_metadata(VECTORS / "ggml-vocab-llama-spm.gguf")
    assert real("llama-spm").encode(text, bos=False, specials=False) == by_scores(text, metadata, spm_ids())


@cache
def spm_ids() -> dict[str, int]:
    tokens = real_metadata(VECTORS / "ggml-vocab-llama-spm.gguf")["tokenizer.ggml.tokens"]
    return {token: i for i, token in enumerate(tokens)}


def test_unknown_characters_become_bytes_and_come_back() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece("▁", "a"))
    ids = tokenizer.encode("aé", bos=False)
    assert [tokenizer.token(i) for i in ids] == ["▁", "a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "aé"


def test_space_prefix_is_a_setting() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece("▁", "a", "▁a", add_space_prefix=False))
    assert [tokenizer.token(i) for i in tokenizer.encode("a a", bos=False)] == ["a", "▁a"]
    assert tokenizer.decode(tokenizer.encode(" a")) == " a"


def test_gemma4_splits_at_newlines_and_forces_bos() -> None:
    hexes = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<pad>", "<eos>", "<bos>", *hexes, "▁", "a", "b", "▁a", "\n", "\n\n", "<turn|>"]
    kinds = [3, 3, 3] + [6] * 256 + [1] * 6 + [3]
    values = {
        "model": "gemma4", "tokens": tokens, "token_type": kinds, "merges": ["▁ a"], "bos_token_id": 2,
        "eos_token_id": 1, "add_bos_token": False,
    }
    tokenizer = tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})
    ids = tokenizer.encode("b a\n\n aé")
    assert [tokenizer.token(i) for i in ids] == ["<bos>", "b", "▁a", "\n\n", "▁a", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(ids) == "b a\n\n aé"
    assert tokenizer.stop_ids == {1, len(tokens) - 1}


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@given(text=st.text(max_size=30))
def test_every_pre_tokenizer_keeps_the_text(name: str, text: str) -> None:
    from unicodedata import normalize

    tokenizer = cached_pre(name)
    composed = normalize("NFC", text) if PRE_TOKENIZERS[name].nfc else text
    assert tokenizer.decode(tokenizer.encode(text, bos=False, specials=False)) == composed


@cache
def cached_pre(name: str) -> Tokenizer:
    return tokenizer_from_gguf(byte_level(pre=name))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("llama-bpe", "It's 12345 x\n\n y", ["It", "'s", " ", "123", "45", " x", "\n\n", " y"]),
        ("qwen2", "I'LL 123", ["I", "'LL", " ", "1", "2", "3"]),
        ("qwen35", "e\u0323a!", ["\u1eb9a", "!"]),
        ("tekken", "HelloWorld 12/", ["Hello", "World", " ", "1", "2", "/"]),
        ("gpt-4o", "HelloWorld's 1234", ["Hello", "World's", " ", "123", "4"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("gpt-2", "It's 1234  x", ["It", "'s", " 1234", " ", " x"]),
        ("default", "a+b 12345", ["a", "+", "b", " ", "123", "45"]),
        ("deepseek-v3", "中文 abc,def 12345", ["中文", " abc", ",def", " ", "123", "45"]),
        ("deepseek-llm", "中文 abc, 12\n", ["中文", " abc", ",", " ", "1", "2", "\n"]),
        ("deepseek-coder", "中文 abc, 12", ["中文", " abc", ",", " ", "1", "2"]),
    ],
)
def test_words(name: str, text: str, words: list[str]) -> None:
    backend = cached_pre(name).backend
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pre_tokenizer = backend.pre_tokenizer
    assert pre_tokenizer is not None
    assert [text[a:b] for _, (a, b) in pre_tokenizer.pre_tokenize_str(text)] == words


def test_merges_and_whole_words() -> None:
    merges = ("h e", "l l", "he ll", "hell o")
    assert [byte_piece(i, merges) for i in tokenizer_from_gguf(byte_level(merges)).encode("hello he")] == [
        "hello", "Ġ", "he",
    ]
    whole = byte_level(merges, pre="tekken", merges=["h e"], add_bos_token=False)
    assert [byte_piece(i, merges) for i in tokenizer_from_gguf(whole).encode("hello")] == ["hello"]


def byte_piece(id: int, merges: tuple[str, ...]) -> str:
    return str(byte_level(merges)["tokenizer.ggml.tokens"][id])


def test_control_looking_tokens_are_control_tokens() -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.token_type"] = [1] * 258
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer.is_special(257) and not tokenizer.is_special(256)
    assert tokenizer.decode([257]) == ""


def test_html_closing_tag_is_no_stop_token() -> None:
    metadata = byte_level()
    metadata["tokenizer.ggml.tokens"][256] = "</s>"
    metadata["tokenizer.ggml.token_type"][256] = 1
    assert tokenizer_from_gguf(metadata).stop_ids == {257}
    metadata["tokenizer.ggml.token_type"][256] = 3
    assert tokenizer_from_gguf(metadata).stop_ids == {256, 257}


def test_ids_beyond_the_vocabulary_mean_none() -> None:
    tokenizer = tokenizer_from_gguf(byte_level(bos_token_id=2**32 - 1, eot_token_id=2**32 - 1, pre="llama-bpe"))
    assert tokenizer.bos_id is None and not tokenizer.add_bos
    assert tokenizer.encode("a") == tokenizer.encode("a", bos=False)


def test_merges_that_form_no_token_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = tokenizer_from_gguf(byte_level(merges=["a zz", "a b"]))
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert "merges of the vocabulary form no token" in caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "no vocabulary"),
        ({"model": "rwkv"}, "known are"),
        ({"pre": "klingon"}, "llama-bpe"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "tokens is missing"),
        ({"tokens": "abc"}, "not a list"),
        ({"tokens": ["a", 3]}, "must be a str"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "more than once"),
        ({"token_type": [1, 1]}, "2 entries for 258 tokens"),
        ({"merges": ["ab"]}, "merges[0]"),
        ({"add_bos_token": "yes"}, "boolean"),
        ({"model": "llama"}, "scores is missing"),
        ({"model": "llama", "scores": [float("nan")] * 258}, "NaN"),
        ({"bos_token_id": "one"}, "a token id is expected"),
    ],
)
def test_damaged_vocabularies_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        tokenizer_from_gguf(byte_level(**changes))
    assert words in str(caught.value)


@needs_data
def test_sentencepiece_model_file() -> None:
    file = DATA / "tokenizers/mistral/mistral_instruct_tokenizer_241114.model.v7"
    tokenizer = tokenizer_from_gguf(read_sentencepiece(file.read_bytes(), file.name))
    assert tokenizer.size == 32768
    assert tokenizer.token(3) == "[INST]" and tokenizer.is_special(3)
    ids = tokenizer.encode("Hello, world! déjà 你好 🦙\n  x")
    assert ids[0] == 1 and tokenizer.decode(ids) == "Hello, world! déjà 你好 🦙\n  x"
    assert [tokenizer.token(i) for i in ids[1:5]] == ["▁Hello", ",", "▁world", "!"]


def message(*fields: tuple[int, bytes | int]) -> bytes:
    """A protobuf message of small fields."""
    parts = []
    for number, value in fields:
        head = number << 3 | (0 if isinstance(value, int) else 2)
        key = bytes([head]) if head < 128 else bytes([head & 127 | 128, head >> 7])
        parts.append(key + (bytes([value]) if isinstance(value, int) else bytes([len(value)]) + value))
    return b"".join(parts)


def test_sentencepiece_kinds_that_are_not_supported() -> None:
    piece = (1, message((1, b"a")))
    plain = (3, message((1, b"identity"), (4, 0)))
    with pytest.raises(TokenizerError, match="kind 1"):
        read_sentencepiece(message(piece, (2, message((3, 1))), plain), "m")
    with pytest.raises(TokenizerError, match="nmt_nfkc"):
        read_sentencepiece(message(piece, (2, message((3, 2))), (3, message((1, b"nmt_nfkc")))), "m")
    metadata = read_sentencepiece(message(piece, (2, message((3, 2), (41, 7))), plain), "m")
    assert metadata["tokenizer.ggml.tokens"] == ["a"] and metadata["tokenizer.ggml.bos_token_id"] == 7


@given(st.binary(max_size=60))
def test_sentencepiece_reader_survives_any_bytes(data: bytes) -> None:
    try:
        read_sentencepiece(data, "m")
    except TokenizerError as error:
        assert "m:" in str(error)
