"""Tokenizers of folders: round trips, special tokens, rules for the beginning, stop sets, damaged files."""
from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import unicodedata
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blackwell_infer.errors import BlackwellInferError, RequestError, TemplateError, TokenizerError
from blackwell_infer.text.load import Text, open_text
from blackwell_infer.text.messages import read_messages
from blackwell_infer.text.tokenizer import Tokenizer, fallback_byte, gpt2_alphabet, piece_rule
from blackwell_infer.types import Message

TEMPLATE = "{{ bos_token }}{% for m in messages %}<|turn|>{{ m.content }}{% endfor %}"


class Folder(msgspec.Struct):
    """Stands for an open checkpoint, as far as text is concerned."""

    path: Path
    generation: dict[str, Any] = {}
    metadata: Any = MappingProxyType({})
    config: dict[str, Any] = {}
    tensors: dict[str, Any] = {}


def document(added: tuple[str, ...] = ("<|begin|>", "<|end|>", "<|turn|>"), **changes: Any) -> dict[str, Any]:
    """A byte-level tokenizer.json: 256 bytes, "Ġt", then the added tokens."""
    vocab = {**gpt2_alphabet(), "Ġt": 256}
    tokens = [
        {"id": 257 + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
        for i, text in enumerate(added)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": tokens, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": [["Ġ", "t"]],
        },
    } | changes


def write(path: Path, tokenizer: Any, config: dict[str, Any] | None = None, **files: Any) -> Path:
    path.mkdir(exist_ok=True)
    contents = {"tokenizer.json": tokenizer, "tokenizer_config.json": config, **files}
    for name, content in contents.items():
        if content is not None:
            (path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def load(path: Path, tokenizer: Any = None, config: dict[str, Any] | None = None, **files: Any) -> Text:
    generation = files.pop("generation", {})
    return open_text(Folder(write(path, tokenizer or document(), config, **files), generation))


SPECIALS = {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}


def test_a_folder(tmp_path: Path) -> None:
    text = load(tmp_path, None, SPECIALS | {"chat_template": TEMPLATE, "add_bos_token": True})
    tokenizer = text.tokenizer
    assert (tokenizer.size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (260, 257, 258, True)
    assert tokenizer.stop_ids == {258}
    assert tokenizer.token(256) == "Ġt" and tokenizer.token(260) == "" and tokenizer.token(-1) == ""
    assert tokenizer.is_special(259) and not tokenizer.is_special(256)
    assert text.prompt([Message(role="user", content="hi")]) == "<|begin|><|turn|>hi"
    assert text.reasoning is None and not text.starts_inside("<think>")


def test_beginning_is_never_doubled(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, None, SPECIALS | {"add_bos_token": True}).tokenizer
    assert tokenizer.encode("a") == [257, 97]
    assert tokenizer.encode("<|begin|>a") == [257, 97]
    assert tokenizer.encode("<|begin|>a", bos=True) == [257, 97]
    assert tokenizer.encode("a", bos=False) == [97]
    assert tokenizer.encode("") == [257]
    forged = tokenizer.encode("<|begin|>a", specials=False)
    assert forged[0] == 257 and 257 not in forged[1:] and tokenizer.decode(forged) == "<|begin|>a"


def test_bos_rule_from_the_post_processor(tmp_path: Path) -> None:
    processor = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|begin|>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"<|begin|>": {"id": "<|begin|>", "ids": [257], "tokens": ["<|begin|>"]}},
    }
    processor["pair"] = [*processor["single"], {"Sequence": {"id": "B", "type_id": 1}}]
    tokenizer = document(post_processor=processor)
    assert load(tmp_path, tokenizer, SPECIALS).tokenizer.encode("a") == [257, 97]
    assert load(tmp_path, tokenizer, SPECIALS | {"add_bos_token": False}).tokenizer.encode("a") == [97]
    with pytest.raises(RequestError, match="no beginning"):
        load(tmp_path / "none", document(), {}).tokenizer.encode("a", bos=True)


def test_special_tokens_map_and_generation_config(tmp_path: Path) -> None:
    text = load(tmp_path, None, {"bos_token": None}, **{"special_tokens_map.json": {"bos_token": "<|begin|>"}},
                generation={"eos_token_id": [258, 259, 9999]})
    assert (text.tokenizer.bos_id, text.tokenizer.eos_id) == (257, 258)
    assert text.tokenizer.stop_ids == {258, 259}


def test_stop_tokens_by_text(tmp_path: Path) -> None:
    text = load(tmp_path, document(("<|im_end|>", "<|eot_id|>", "other")))
    assert text.tokenizer.stop_ids == {257, 258}


def test_truncation_and_padding_are_switched_off(tmp_path: Path) -> None:
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    assert len(load(tmp_path, document(truncation=truncation)).tokenizer.encode("abcdef")) == 6


def test_stated_ids_of_added_tokens_hold(tmp_path: Path) -> None:
    stated = document()
    for i, token in enumerate(stated["added_tokens"]):
        token["id"] = 300 + i
    tokenizer = load(tmp_path, stated, SPECIALS).tokenizer
    assert (tokenizer.bos_id, tokenizer.size) == (300, 303)
    assert tokenizer.encode("<|turn|>a") == [302, 97] and tokenizer.decode([302, 97]) == "a"


@cache
def byte_level() -> Tokenizer:
    from tokenizers import Tokenizer as Backend

    return Tokenizer(Backend.from_str(json.dumps(document())), bos_id=257, eos_id=258)


def test_long_texts_are_encoded_beside_other_threads() -> None:
    tokenizer, part = byte_level(), "a text<|turn|> "
    ticks, over = list[float](), threading.Event()

    def tick() -> None:
        while not over.wait(0.005):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        began = time.perf_counter()
        found = tokenizer.encode(60_000 * part)
        ended = time.perf_counter()
    finally:
        over.set()
        thread.join()
    assert found == 60_000 * tokenizer.encode(part)
    assert sum(began < at < ended for at in ticks) > 4


@given(st.text(max_size=60))
def test_round_trip_of_any_text(text: str) -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(tokenizer.encode(text, specials=False)) == text
    assert not any(tokenizer.is_special(i) for i in tokenizer.encode(text, specials=False))


@given(st.lists(st.integers(0, 259), max_size=20))
def test_decoding_agrees_with_the_library(ids: list[int]) -> None:
    tokenizer = byte_level()
    assert tokenizer.decode(ids) == tokenizer.backend.decode(ids)
    assert tokenizer.decode(ids, skip_specials=False) == tokenizer.backend.decode(ids, skip_special_tokens=False)


def test_gpt2_vocabulary_round_trip(shared_data: Path) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    folder = shared_data / "tokenizers/gpt2"
    backend = Backend(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = Tokenizer(backend, bos_id=None, eos_id=None)
    assert tokenizer.size == 50257
    text = (shared_data / "corpora/tinystories_val_subset.dev.txt").read_text(encoding="utf-8")[:50_000]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and len(ids) < len(text) / 3


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(RequestError, match="Unicode"):
        byte_level().encode("a\ud800")


def test_shown_control_tokens() -> None:
    tokenizer = byte_level().showing(["<|turn|>", "plain"])
    assert tokenizer.decode([257, 97, 259]) == "a<|turn|>"
    assert byte_level().decode([257, 97, 259]) == "a"


def test_reasoning_markers_stay_visible(tmp_path: Path) -> None:
    added = document(("[THINK]", "[/THINK]", "<|end|>"))
    text = load(tmp_path, added, None, **{"chat_template.jinja": "[THINK]{{ messages }}"})
    assert text.reasoning == ("[THINK]", "[/THINK]")
    assert text.tokenizer.decode([257, 97, 258, 98, 259]) == "[THINK]a[/THINK]b"
    assert text.starts_inside("x[THINK]\n") and not text.starts_inside("[THINK]x[/THINK]")


@pytest.mark.parametrize(
    ("decoder", "tokens", "text"),
    [
        (None, ["a", "b"], "a b"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, ["▁a", "▁b"], "a b"),
        ({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True}, ["▁a", "▁b"], " a b"),
        ({"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                                           {"type": "ByteFallback"}, {"type": "Fuse"}]},
         ["▁a", "<0xC3>", "<0xA9>"], " aé"),
    ],
)
def test_decoders(tmp_path: Path, decoder: Any, tokens: list[str], text: str) -> None:
    model = {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": "?"}
    content = document((), model=model, decoder=decoder, pre_tokenizer=None)
    assert load(tmp_path, content).tokenizer.decode(range(len(tokens))) == text


def test_unknown_decoder_is_refused() -> None:
    with pytest.raises(TokenizerError, match="WordPiece"):
        piece_rule({"type": "WordPiece", "prefix": "##", "cleanup": True})
    assert [fallback_byte(token) for token in ("<0x0A>", "<0xZZ>", "<0x0A", "a")] == [10, None, None, None]


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "neither"), ({"tokenizer.json": "{"}, "tokenizer.json"), ({"tokenizer.json": "[]"}, "tokenizer.json"),
     ({"tokenizer.json": "{}"}, "tokenizer.json"), ({"tokenizer.model": "abc"}, "SentencePiece")],
)
def test_missing_and_damaged_vocabularies(tmp_path: Path, files: dict[str, str], words: str) -> None:
    write(tmp_path, None, None, **files)
    with pytest.raises(TokenizerError) as caught:
        open_text(Folder(tmp_path))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(data=st.data())
def test_mutated_tokenizer_files_raise_only_typed_errors(tmp_path: Path, data: st.DataObject) -> None:
    content = document()
    where: Any = content
    for _ in range(data.draw(st.integers(1, 3))):
        if not isinstance(where, dict) or not where:
            break
        key = data.draw(st.sampled_from(sorted(where)))
        previous, where = where, where[key]
    previous[key] = data.draw(st.sampled_from([None, -1, 2**40, "x", [], {}, [[]], {"type": "BPE"}]))
    try:
        tokenizer = load(tmp_path, content).tokenizer
        tokenizer.decode(tokenizer.encode("a t", bos=False))
    except BlackwellInferError as error:
        assert "tokenizer" in str(error)


def test_sentencepiece_folder(tmp_path: Path, shared_data: Path) -> None:
    source = shared_data / "tokenizers/mistral/mistral_instruct_tokenizer_241114.model.v7"
    (tmp_path / "tokenizer.model").write_bytes(source.read_bytes())
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_text(Folder(tmp_path)).tokenizer
    assert tokenizer.encode("Hi")[0] == tokenizer.bos_id == 1 and tokenizer.stop_ids == {2}


def test_template_sources(tmp_path: Path) -> None:
    def source(path: Path) -> str | None:
        template = open_text(Folder(path)).template
        return template.source if template else None

    write(tmp_path, document(), {"chat_template": "config"})
    assert source(tmp_path) == "config"
    write(tmp_path, None, **{"chat_template.jinja": "jinja"})
    assert source(tmp_path) == "jinja"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    assert source(write(tmp_path / "named", document(), {"chat_template": named})) == "plain"
    assert source(write(tmp_path / "one", document(), {"chat_template": named[:1]})) == "tools"
    assert source(write(tmp_path / "json", document(), {}, **{"chat_template.json": {"chat_template": "j"}})) == "j"
    broken = write(tmp_path / "broken", document(), {})
    (broken / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(TemplateError, match="UTF-8"):
        open_text(Folder(broken))
    with pytest.raises(TemplateError, match=r"number: its chat_template is int, no text"):
        open_text(Folder(write(tmp_path / "number", document(), {"chat_template": 5})))
    without = open_text(Folder(write(tmp_path / "none", document(), {})))
    with pytest.raises(TemplateError, match="without a chat template"):
        without.prompt([Message(role="user", content="hi")])


def test_gguf_text(tmp_path: Path) -> None:
    values = {"model": "gpt2", "pre": "gpt-2", "tokens": [*gpt2_alphabet(), "<|begin|>", "<|im_end|>"],
              "token_type": [1] * 256 + [3, 3], "bos_token_id": 256, "eos_token_id": 257}
    metadata = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    template = {"tokenizer.chat_template": "{{ bos_token }}|{{ eos_token }}<think>{{ '\n' }}"}
    text = open_text(Folder(tmp_path / "m.gguf", metadata=metadata | template))
    assert text.prompt([]) == "<|begin|>|<|im_end|><think>\n" and text.reasoning == ("<think>", "</think>")
    assert text.starts_inside(text.prompt([]))
    assert open_text(Folder(tmp_path / "m.gguf", metadata=metadata)).template is None
    for broken, error in (({"tokenizer.chat_template": 5}, TemplateError),
                          ({"tokenizer.ggml.pre": "?"}, TokenizerError)):
        with pytest.raises(error, match=r"m\.gguf: tokenizer\."):  # where, too
            open_text(Folder(tmp_path / "m.gguf", metadata=metadata | broken))
    with pytest.raises(TokenizerError, match=r"m\.gguf: has no vocabulary, and beside it"):
        open_text(Folder(tmp_path / "m.gguf", metadata={}))
    (tmp_path / "chat_template.jinja").write_text("beside")
    assert open_text(Folder(tmp_path / "m.gguf", metadata=metadata)).prompt([]) == "beside"


def test_messages() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    value = [{"role": "user", "content": parts, "tool_calls": None}, Message(role="assistant", content="c"),
             {"role": "user", "content": "", "name": "N"}]
    assert read_messages(value) == (
        Message(role="user", content="ab"), Message(role="assistant", content="c"), Message(role="user", name="N"),
    )


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("hi", "must be a list"), ({}, "must be a list"), ([], "empty"), ([3], "messages[0] must be"),
        ([{"content": "x"}], "role must be"), ([{"role": "", "content": "x"}], "role must be"),
        ([{"role": "user"}], "content must be"), ([{"role": "user", "content": 3}], "content must be"),
        ([{"role": "user", "content": ["x"]}], "content[0]"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "'image_url'"),
        ([{"role": "user", "content": "x", "tool_calls": [1]}], "tool_calls"),
        ([{"role": "user", "content": "x", "name": 3}], "name must be"),
    ],
)
def test_bad_messages(value: Any, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        read_messages(value)
    assert words in str(caught.value)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3)))
def test_any_json_value_is_messages_or_a_typed_error(value: Any) -> None:
    try:
        assert all(isinstance(message, Message) for message in read_messages(value))
    except RequestError as error:
        assert str(error).startswith("messages")


def test_normal_form_of_qwen_like_vocabularies(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, document(normalizer={"type": "NFC"})).tokenizer
    assert tokenizer.decode(tokenizer.encode("e\u0301")) == unicodedata.normalize("NFC", "e\u0301")


def test_importing_text_loads_no_heavy_library() -> None:
    code = (
        "import sys, blackwell_infer.text.load, blackwell_infer.text.stream, blackwell_infer.text.messages;"
        "print([name for name in ('tokenizers', 'jinja2', 'cuda', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
