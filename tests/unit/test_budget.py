"""Budgets of reasoning: where the end is forced, what is free before it, and grammars around it."""
from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from schema_suite import DEMO
from scripted import END, byte_text

from blackwell_infer.checkpoint.gguf import open_gguf
from blackwell_infer.engine.masks import Grammars
from blackwell_infer.engine.scheduler import Plan, Row
from blackwell_infer.errors import RequestError
from blackwell_infer.text.budget import Budget, half_character
from blackwell_infer.text.folder import tokenizer_from_folder
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf
from blackwell_infer.text.grammar import compile_grammar
from blackwell_infer.text.stream import ReasoningSplitter
from blackwell_infer.text.template import closing_text
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Grammar, Matcher

THINK = ("<think>", "</think>")
VOCAB = 320
VOCABULARIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "tokenizers" / "llama.cpp-vocab"


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    """One token for each byte."""
    return byte_text().tokenizer


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    return tokenizer_from_folder(DEMO, {}).showing(THINK)


def allowed(matcher: Matcher, vocab: int) -> set[int]:
    words = np.zeros(-(-vocab // 32), np.uint32)
    matcher.mask(words)
    return {i for i in range(vocab) if words[i // 32] >> np.uint32(i % 32) & 1}


def ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, bos=False))


def finished(matcher: Matcher, vocab: int) -> tuple[int, ...]:
    """What must come now, token by token."""
    found: tuple[int, ...] = ()
    while len(one := allowed(matcher, vocab)) == 1:
        assert matcher.forced()[:1] == tuple(one) and matcher.accept(tuple(one)) == 1
        found += tuple(one)
    return found


@pytest.mark.parametrize(("most", "inside", "said", "forced"), [
    (4, True, "abcd", "</think>"), (0, True, "", "</think>"), (4, True, "a</t", "hink>"), (3, True, "abc", "</think>"),
    (4, False, "<think>abcd", "</think>"), (2, False, "\n<think>\na", "</think>"), (0, False, "<think>", "</think>"),
    (1, True, "ä", "</think>"), (2, True, "a☃", "</think>"), (9, True, "a</think>", ""),
    (4, False, "<thin king of", ""),
    (0, False, "Yes", ""), (12, False, "<think>abc</think> <think>more and more", ""), (4, True, "<</t", "hink>"),
])
def test_where_the_end_is_forced(letters: Tokenizer, most: int, inside: bool, said: str, forced: str) -> None:
    matcher = Budget(letters, THINK, THINK[1], most, inside)
    for token in ids(letters, said):
        assert len(allowed(matcher, VOCAB)) == VOCAB and matcher.forced() == ()
        assert matcher.accept((token,)) == 1
    if not forced:
        assert matcher.free(1000) and not matcher.ended
    before = allowed(matcher, VOCAB)
    end = finished(matcher, VOCAB)
    assert letters.decode(end) == forced and (matcher.free(1000) or not forced)
    matcher.rollback(len(end))
    assert allowed(matcher, VOCAB) == before


def test_what_is_free_is_never_masked(letters: Tokenizer) -> None:
    draw = random.Random(3)
    for round in range(200):
        inside, most = bool(round % 2), draw.randrange(8)
        matcher = Budget(letters, THINK, THINK[1], most, inside)
        text = "" if inside else draw.choice(["<think>", " <think>", "<t", "x"])
        text += "".join(draw.choice(["a", "ü", "</", "think>", "</think>", "☃"]) for _ in range(6))
        free = 0
        for token in ids(letters, text):
            free = max(free - 1, next((n for n in range(40, 0, -1) if matcher.free(n)), 0))
            limited = len(allowed(matcher, VOCAB)) < VOCAB
            assert not (limited and free), (text, most)
            if limited:
                break
            matcher.accept((token,))


def test_steps_bring_masks_only_where_a_budget_may_be_spent(letters: Tokenizer) -> None:
    def row(guesses: int) -> Row:
        return Row(id=0, slot=0, tokens=(1,) * (1 + guesses), start=9, pages=(0,), new_pages=0, restart=False,
                   samples=True, scores=False, guesses=guesses)

    grammars = Grammars(VOCAB, frozenset())
    grammars.add(0, Budget(letters, THINK, THINK[1], 6, True))
    said, masked = ids(letters, "abcdef") + ids(letters, "</think>") + ids(letters, "xy"), []
    for token in said:
        masked.append((grammars.concern(Plan((row(0),))), grammars.concern(Plan((row(3),)))))
        mask, failed = grammars.masks(Plan((row(0),)))
        assert not failed and len(mask.words) == (6 <= len(masked) - 1 < len(said) - 2)
        assert not grammars.accept(0, token)
    end = len(said) - 2
    assert [one for one, _ in masked] == [5 <= i < end for i in range(len(said))], "a token may be ahead"
    assert [four for _, four in masked] == [2 <= i < end for i in range(len(said))]


def test_guesses_are_cut_where_the_end_is_due(letters: Tokenizer) -> None:
    matcher = Budget(letters, THINK, THINK[1], 3, True)
    assert matcher.accept(ids(letters, "abcdef")) == 3
    matcher.rollback(2)
    after = ids(letters, "xy") + ids(letters, "</think>") + ids(letters, "z")
    assert matcher.accept(after) == len(after)
    long = Budget(letters, THINK, THINK[1], 10_000, True)
    assert long.accept(ids(letters, "a") * 9_000) == 9_000
    long.rollback(60)
    assert long.free(1060) and not long.free(1061)


@pytest.mark.parametrize(("said", "forced"), [
    ("abc", "\n</think>\n\n"), ("ab\n", "</think>\n\n"), ("</t", "hink>\n\n"), ("a\n<", "/think>\n\n"),
])
def test_line_breaks_around_the_end(letters: Tokenizer, said: str, forced: str) -> None:
    matcher = Budget(letters, THINK, "\n</think>\n\n", len(ids(letters, said)), True)
    matcher.accept(ids(letters, said))
    end = finished(matcher, VOCAB)
    assert letters.decode(end) == forced and matcher.free(1000)
    matcher.rollback(1)
    assert matcher.forced() == end[-1:]


@pytest.mark.parametrize(("source", "text"), [
    ("", "</think>"), ("{{ x.split('</think>')[0] }}", "</think>"), (r"'<think>\n\n</think>\n\n'", "\n</think>\n\n"),
    ("<think>\n{{ x }}\n</think>\n", "\n</think>\n"), (r"'</think>' + '\n</think>\n\n\n'", "\n</think>\n\n"),
])
def test_the_end_as_a_template_writes_it(source: str, text: str) -> None:
    assert closing_text(source, "</think>") == text


@pytest.mark.parametrize(("text", "half"), [
    (b"a", False), (b"", False), ("ä".encode(), False), ("ä".encode()[:1], True), ("☃".encode()[:2], True),
    ("a☃".encode(), False), ("😀".encode()[:3], True), ("😀".encode(), False), (b"\x80\x80\x80\x80", False),
])
def test_half_characters(text: bytes, half: bool) -> None:
    assert half_character(text) is half


def test_a_schema_follows_the_forced_end(demo: Tokenizer) -> None:
    schema = Grammar("json_schema", '{"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], '
                                    '"additionalProperties": false}')
    inner = compile_grammar(demo, schema, demo.size, THINK, True)
    matcher = Budget(demo, THINK, "\n</think>\n\n", 3, True, inner())
    assert not matcher.free(1)
    assert matcher.accept(ids(demo, "one two three four five six")) == 3
    close = matcher.forced()
    assert b"".join(map(demo.piece, close)) == b"\n</think>\n\n" and matcher.accept(close) == len(close)
    assert matcher.accept(ids(demo, '{"a": 1}')) == len(ids(demo, '{"a": 1}')) and matcher.ended
    matcher.rollback(len(ids(demo, '{"a": 1}')) + len(close))
    assert matcher.forced() == close


def test_a_grammar_of_the_whole_answer_goes_first(demo: Tokenizer) -> None:
    inner = compile_grammar(demo, Grammar("lark", "start: /[a-z ]{8}/"), demo.size)
    matcher = Budget(demo, THINK, THINK[1], 1, True, inner())
    while not matcher.ended:
        token = min(allowed(matcher, demo.size))
        assert demo.piece(token) and matcher.accept((token,)) == 1


def test_a_marker_that_cannot_be_written(letters: Tokenizer) -> None:
    with pytest.raises(RequestError, match="cannot write"):
        Budget(letters, ("<think>", letters.token(END)), letters.token(END), 3, True)


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "llama-bpe", "phi-3", "deepseek-r1-qwen"])
def test_real_vocabularies(name: str) -> None:
    path = VOCABULARIES / f"ggml-vocab-{name}.gguf"
    if not path.is_file():
        pytest.skip("real vocabularies are not here")
    tokenizer = tokenizer_from_gguf(open_gguf(path).metadata).showing(THINK)
    matcher = Budget(tokenizer, THINK, "\n</think>\n\n", 5, True)
    said = ids(tokenizer, "Let me think about it for long")[:5]
    assert matcher.accept(said) == 5
    close = matcher.forced()
    assert matcher.accept(close) == len(close) and matcher.free(9)
    splitter = ReasoningSplitter(*THINK, True)
    assert splitter.push(tokenizer.decode((*said, *close)) + "\n\nSo")[1] == "So"
