"""Streaming: pushes and flush give the whole, however the input is cut."""
from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blackwell_infer.errors import RequestError
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf
from blackwell_infer.text.stream import Detokenizer, ReasoningSplitter, StopScanner
from blackwell_infer.text.tokenizer import Tokenizer, gpt2_alphabet

KINDS = ("bpe", "spm")


@cache
def vocabulary(kind: str) -> Tokenizer:
    """Every byte, some words, control tokens: byte-level, or SentencePiece with a space prefix."""
    if kind == "bpe":
        words = ["Ġhello", "ĠĠ", "Ã©"]
        tokens = [*gpt2_alphabet(), *words, "<|begin|>", "<|im_end|>", "[THINK]"]
        values = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "token_type": [1] * 259 + [3, 3, 4]}
    else:
        words = ["▁", "▁hello", "▁▁", "é", "你", "x▁y"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
        values = {
            "model": "llama", "tokens": tokens, "token_type": [2, 3, 3] + [6] * 256 + [1] * 6, "scores": [0.0] * 265,
        }
    return tokenizer_from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def ids_of(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Ids of the vocabulary and a little beyond, the bytes of multi-byte characters more often than not."""
    texts = st.text(max_size=4).map(lambda text: tokenizer.encode(text, bos=False))
    cut = texts.flatmap(lambda ids: st.integers(0, len(ids)).map(lambda n: ids[:n]))
    return st.lists(st.one_of(cut, st.lists(st.integers(0, tokenizer.size + 2), max_size=3)), max_size=6).map(
        lambda runs: [i for run in runs for i in run]
    )


def streamed(tokenizer: Tokenizer, ids: list[int], prompt: list[int]) -> str:
    stream = Detokenizer(tokenizer, prompt)
    return "".join(stream.push(i) for i in ids) + stream.flush()


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_streaming_equals_decoding(kind: str, data: st.DataObject) -> None:
    tokenizer = vocabulary(kind)
    ids = data.draw(ids_of(tokenizer))
    assert streamed(tokenizer, ids, []) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_streaming_continues_the_prompt(kind: str, data: st.DataObject) -> None:
    tokenizer = vocabulary(kind)
    prompt, ids = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    whole = tokenizer.decode(prompt + ids)
    # A character begun in the prompt counts to the answer, which completes it.
    before = codecs.utf_8_decode(b"".join(tokenizer.piece(i) for i in prompt), "replace", False)[0]
    before = before.removeprefix(" ") if tokenizer.strip else before
    assert whole.startswith(before)
    assert streamed(tokenizer, ids, prompt) == whole[len(before) :]


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=40))
def test_no_half_characters(kind: str, text: str) -> None:
    tokenizer = vocabulary(kind)
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(i) for i in tokenizer.encode(text, bos=False, specials=False)]
    assert "".join(pieces) == text and stream.flush() == ""
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_characters_wait_for_their_last_byte() -> None:
    tokenizer = vocabulary("spm")
    stream = Detokenizer(tokenizer)
    assert [stream.push(3 + byte) for byte in "🦙".encode()] == ["", "", "", "🦙"]
    assert stream.push(3 + 0xE4) == "" and stream.flush() == "\ufffd"
    broken = Detokenizer(tokenizer)
    assert [broken.push(3 + byte) for byte in b"\xe4a\xff"] == ["", "\ufffda", "\ufffd"]


def test_leading_space_belongs_to_the_start_only() -> None:
    tokenizer = vocabulary("spm")
    hello = tokenizer.token_id("▁hello")
    assert hello is not None
    assert streamed(tokenizer, [hello, hello], []) == "hello hello"
    assert streamed(tokenizer, [hello], [1]) == "hello"
    assert streamed(tokenizer, [hello], [1, hello]) == " hello"
    assert streamed(tokenizer, [hello], [hello, 1]) == " hello"


def test_prompt_may_end_inside_a_character() -> None:
    tokenizer = vocabulary("spm")
    prompt = [tokenizer.token_id("é") or 0, 3 + 0xE4, 3 + 0xBD]
    assert streamed(tokenizer, [3 + 0xA0], prompt) == "你"
    assert streamed(tokenizer, [3 + 0x41], prompt) == "\ufffdA"


def test_a_long_prompt_costs_nothing() -> None:
    class Prompt(list[int]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

    prompt = Prompt([3 + 66] * 10_000)
    assert Detokenizer(vocabulary("spm"), prompt).push(3 + 65) == "A"
    assert 0 < prompt.reads < 10


def cuts(text: str) -> st.SearchStrategy[list[str]]:
    """The text cut at arbitrary points, empty pieces included."""
    points = st.lists(st.integers(0, len(text)), max_size=8).map(sorted)
    return points.map(lambda at: [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])


def scan(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stops)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped = scanner.push(piece)
        shown += text
    return shown + scanner.flush(), stopped


def first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition, by trying every end."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(
    st.text("ab\n", max_size=14), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data(),
)
def test_stops_do_not_depend_on_the_cuts(text: str, stops: list[str], data: st.DataObject) -> None:
    assert scan(stops, data.draw(cuts(text))) == first_stop(text, stops)


def test_only_a_possible_stop_is_held_back() -> None:
    scanner = StopScanner(["\n\nUser:", "END"])
    assert scanner.push("Hello\n") == ("Hello", False)
    assert scanner.push("E") == ("\n", False)
    assert scanner.push("N!") == ("EN!", False)
    assert scanner.push("x\n\nUse") == ("x", False)
    assert scanner.push("r: more") == ("", True)
    assert scanner.push("END") == ("", True) and scanner.flush() == ""


def test_empty_stop_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopScanner(["a", ""])


def split(inside: bool, pieces: list[str]) -> tuple[str, str]:
    splitter = ReasoningSplitter("<think>", "</think>", inside)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def by_definition(inside: bool, text: str) -> tuple[str, str]:
    start = text.lstrip()
    if start.startswith("<think>"):
        text = start.removeprefix("<think>")
    elif not inside:
        return "", text
    reasoning, _, answer = text.partition("</think>")
    return reasoning.strip("\r\n"), answer.lstrip("\r\n")


MARKED = st.lists(
    st.sampled_from(["<think>", "</think>", "\n", " ", "a", "<", "</", "</thin", "<thi", "k>", "\r\n"]), max_size=10,
).map("".join)


@given(MARKED, st.booleans(), st.data())
def test_reasoning_does_not_depend_on_the_cuts(text: str, inside: bool, data: st.DataObject) -> None:
    assert split(inside, data.draw(cuts(text))) == by_definition(inside, text)


Feed = Callable[[str], tuple[str, str]]


def test_reasoning_of_usual_answers() -> None:
    assert split(False, ["<think>\nhm\n</think>\n\nYes."]) == ("hm", "Yes.")
    assert split(True, ["hm\n\n", "</thi", "nk>\n\n", "  code"]) == ("hm", "  code")
    assert split(True, ["<think>\nagain</think>x"]) == ("again", "x")
    assert split(False, ["The tag <think> opens."]) == ("", "The tag <think> opens.")
    assert split(False, ["<thin"]) == ("", "<thin")
    assert split(True, ["cut off </th"]) == ("cut off </th", "")
    assert split(False, ["<think></think>", "x </think>"]) == ("", "x </think>")


def test_reasoning_streams() -> None:
    push: Feed = ReasoningSplitter("[THINK]", "[/THINK]", False).push
    assert push("[THI") == ("", "")
    assert push("NK]so") == ("so", "")
    assert push(" far\n") == (" far", "")
    assert push("and [/") == ("\nand ", "")
    assert push("THINK]\n") == ("[/"[:0], "")
    assert push("ok") == ("", "ok")
