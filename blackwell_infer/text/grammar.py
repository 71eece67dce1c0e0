"""Grammars of answers, compiled by llguidance for one vocabulary, and the matchers that follow them.

A grammar is about the text that a reader of the answer sees. JSON may have white space wherever JSON allows it, a space
or a line break with indentation at a time, and properties come in the order of the schema.
"""
from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from blackwell_infer.errors import RequestError
from blackwell_infer.text.grammar_schema import LISTS, MAPS, SCHEMAS, VALUES, check_schema, places, plain_schema
from blackwell_infer.text.grammar_terms import GAP, thought
from blackwell_infer.text.grammar_vocabulary import grammar_library, read_vocabulary
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Grammar, Matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

LONGEST = 1 << 18
"""Characters of a grammar's text"""
KEPT = 64
"""Compiled grammars that are kept, and vocabularies of different widths"""
SPACE = r"[ ]|\r?\n[ \t]{0,40}"
"""White space between two symbols of JSON. Where there is no end to it, a model may find none: the demo model does."""
STYLE: Any = {"whitespace_pattern": SPACE}
LIMITS = {
    "max_items_in_row": 2_000, "initial_lexer_fuel": 2_000_000, "step_lexer_fuel": 400_000, "step_max_items": 100_000,
    "max_lexer_states": 100_000, "max_grammar_size": 250_000, "verbose_errors": False,
}
"""What compiling and a step may cost, in llguidance's units: compiling stays under about a second"""


class Compiler:
    """Compiles grammars and keeps what it made: vocabularies, and the last `KEPT` grammars. Safe between threads."""

    def __init__(self) -> None:
        self._vocabularies: dict[tuple[Tokenizer, int], LLTokenizer] = {}
        self._compiled: OrderedDict[Any, LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, tokenizer: Tokenizer, grammar: Grammar, vocab: int, reasoning: tuple[str, str] | None = None,
                inside: bool = False) -> Callable[[], Matcher]:
        """See `compile_grammar`."""
        key = (tokenizer, vocab, grammar, reasoning, inside)
        with self._lock:
            first = self._compiled.get(key)
            if first is None:
                first = self._compiled[key] = compiled(self._vocabulary(tokenizer, vocab), grammar, reasoning, inside)
            self._compiled.move_to_end(key)
            if len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        stops = tuple(sorted(i for i in tokenizer.stop_ids | {tokenizer.eos_id} if i is not None and i < vocab))
        return lambda: GrammarMatcher(first.deep_copy(), stops)

    def _vocabulary(self, tokenizer: Tokenizer, vocab: int) -> LLTokenizer:
        key = (tokenizer, vocab)
        if key not in self._vocabularies:
            self._vocabularies[key] = read_vocabulary(tokenizer, vocab)
        return self._vocabularies[key]


def compile_grammar(tokenizer: Tokenizer, grammar: Grammar, vocab: int, reasoning: tuple[str, str] | None = None,
                    inside: bool = False) -> Callable[[], Matcher]:
    """Check and compile a grammar for `vocab` logits; the result makes a fresh matcher for each answer.

    With the markers of `reasoning` the model may reason first, or does so already (`inside`: the prompt ends within);
    a Lark grammar is about the whole answer, reasoning included.

    RequestError: an unsupported keyword with its path, a faulty or too large grammar. ConfigError: llguidance is not
    installed. A `Compiler` keeps what it made.
    """
    return Compiler().compile(tokenizer, grammar, vocab, reasoning, inside)


def compiled(vocabulary: LLTokenizer, grammar: Grammar, reasoning: tuple[str, str] | None, inside: bool) -> LLMatcher:
    """A matcher at the beginning of the grammar."""
    library = grammar_library()
    source = readable(library, grammar)
    if reasoning is not None and grammar.kind != "lark":
        source = after_reasoning(source, reasoning, inside)
    made: LLMatcher = library.LLMatcher(vocabulary, source, log_level=0, limits=library.LLParserLimits(**LIMITS))
    if made.is_error():
        reason = explained(grammar, reason_of(made))
        raise RequestError(f"the {grammar.kind} grammar is refused: {reason}")
    return made


def readable(library: Any, grammar: Grammar) -> str:
    """The grammar as llguidance reads it."""
    if len(grammar.text) > LONGEST:
        raise RequestError(f"the {grammar.kind} grammar has {len(grammar.text)} characters; at most {LONGEST} may be")
    match grammar.kind:
        case "json_object" | "json_schema":
            return str(library.LLMatcher.grammar_from_json_schema(schema_of(grammar), STYLE))
        case "regex":
            return str(library.LLMatcher.grammar_from_regex(grammar.text))
        case "lark":
            return str(library.LLMatcher.grammar_from_lark(grammar.text))
        case "gbnf":
            return str(library.LLMatcher.grammar_from_lark(lark_of(grammar.text)))


def after_reasoning(source: str, reasoning: tuple[str, str], inside: bool) -> str:
    """The grammar of an answer with reasoning before it: always if it has begun, else if the model opens it."""
    nested = msgspec.json.decode(source) if source.startswith("{") else {"grammars": [{"lark_grammar": source}]}
    rules = (f"start: THOUGHT{'' if inside else '?'} @answer\n"
             f"THOUGHT: {thought(reasoning, inside)} {GAP}\n")
    answer = {**nested["grammars"][0], "name": "answer"}
    return msgspec.json.encode({"grammars": [{"name": "whole", "lark_grammar": rules}, answer]}).decode()


def json_answer(grammar: Grammar) -> str:
    """JSON of a grammar as the expression of a rule in Lark."""
    schema = msgspec.json.decode(schema_of(grammar))
    return "%json " + msgspec.json.encode({**schema, "x-guidance": STYLE}).decode()


def schema_of(grammar: Grammar) -> str:
    """The schema of a grammar of JSON, checked."""
    if grammar.kind == "json_schema":
        return schema_text(grammar.text)
    if grammar.kind != "json_object":
        raise RequestError(f"a {grammar.kind} grammar cannot be combined with tools; take a schema")
    if grammar.text:
        raise RequestError("a grammar of the kind json_object has no text; for a schema take json_schema")
    return '{"type":"object"}'


def schema_text(text: str) -> str:
    """The schema, checked. It is written anew, so that the checked and the enforced one cannot be read differently."""
    try:
        schema = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RequestError(f"the schema is no JSON: {error}") from None
    check_schema(schema)
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return msgspec.json.encode(plain_schema(schema)).decode()


def reason_of(matcher: LLMatcher) -> str:
    """Why the library refuses, without traces of its own."""
    return str(matcher.get_error()).partition("\n<backtrace>")[0].partition("\n<non-verbose")[0].strip()


def explained(grammar: Grammar, message: str) -> str:
    """The library's reason, with the places of the keywords of a schema that it names."""
    if grammar.kind != "json_schema":
        return message
    schema = msgspec.json.decode(grammar.text)
    named = [(key, where) for key in sorted(VALUES | LISTS | MAPS | SCHEMAS)
             if key in message or (key == "patternProperties" and "patternProperty" in message)
             for where in [", ".join(places(schema, key))] if where]
    return message + "".join(f"; the schema keyword {key!r} stands at {where}" for key, where in named)


def lark_of(text: str) -> str:
    """llama.cpp's notation as Lark."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # the library raises bare ones
        raise RequestError(f"the gbnf grammar cannot be read: {error}") from None


class GrammarMatcher:
    """One answer's way through a grammar; see `types.Matcher`. `stops` are the model's end tokens.

    Where the grammar allows the answer to end, end tokens are in the mask. An accepted end token ends the matcher.
    """

    def __init__(self, matcher: LLMatcher, stops: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._stops = stops
        self._past = 0
        """end tokens accepted after the grammar's own end"""

    @property
    def ended(self) -> bool:
        return bool(self._matcher.is_stopped())

    def free(self, count: int) -> bool:
        return False

    def mask(self, out: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        if self.ended:
            self._check()
            out[:] = 0
            for i in self._stops:
                out[i // 32] |= np.uint32(1 << i % 32)
            return
        self._matcher.unsafe_compute_mask_ptr(out.ctypes.data, out.nbytes)
        self._check()

    def forced(self) -> tuple[int, ...]:
        if self.ended:
            return ()
        found = tuple(self._matcher.compute_ff_tokens())
        self._check()
        return found

    def accept(self, tokens: tuple[int, ...]) -> int:
        taken = 0 if self.ended else int(self._matcher.try_consume_tokens(list(tokens)))
        self._check()
        while self.ended and taken < len(tokens) and tokens[taken] in self._stops and self._past == 0:
            taken += 1
            self._past += 1
        return taken

    def rollback(self, count: int) -> None:
        past = min(count, self._past)
        self._past -= past
        if count > past and not self._matcher.rollback(count - past):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"the grammar cannot be followed any further: {reason_of(self._matcher)}")
