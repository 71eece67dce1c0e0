"""The text side of a checkpoint: its tokenizer, its chat template and its reasoning markers."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from blackwell_infer.checkpoint.reader import Checkpoint, located
from blackwell_infer.errors import TemplateError, TokenizerError
from blackwell_infer.text.folder import template_source, tokenizer_from_folder
from blackwell_infer.text.gguf_vocab import tokenizer_from_gguf
from blackwell_infer.text.grammar import Compiler
from blackwell_infer.text.template import ChatTemplate, reasoning_markers, starts_behind, starts_inside
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.text.tools import Dialect, dialect_of
from blackwell_infer.types import Grammar, Matcher, Message

VOCABULARIES = ("tokenizer.json", "tokenizer.model")


class Text(msgspec.Struct, frozen=True):
    """What turns messages into tokens and tokens into text. `reasoning` holds the opening and closing markers."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    reasoning: tuple[str, str] | None
    grammars: Compiler = msgspec.field(default_factory=Compiler)

    def prompt(self, messages: Sequence[Message | Mapping[str, Any]], **options: Any) -> str:
        """The rendered prompt (options as in `ChatTemplate.render`); TemplateError if the model has no template."""
        if self.template is None:
            raise TemplateError(
                "this model comes without a chat template; give it a plain prompt, take its instruction-tuned version,"
                " or put a chat_template.jinja beside the weights"
            )
        return self.template.render(messages, **options)

    def starts_inside(self, prompt: str) -> bool:
        """Whether the answer to this rendered prompt begins inside reasoning."""
        return starts_inside(prompt, self.reasoning)

    def before_answer(self, prompt: str) -> tuple[str, str] | None:
        """The markers of reasoning that a grammar of the answer to this rendered prompt has to let through: none where
        the prompt has closed it. Where a grammar leaves little else, a model takes what it would not have said."""
        return None if starts_behind(prompt, self.reasoning) else self.reasoning

    @property
    def dialect(self) -> Dialect | None:
        """How the model writes tool calls, if its template teaches a known way."""
        return None if self.template is None else dialect_of(self.template.source)

    def matcher(self, grammar: Grammar, vocab: int, reasoning: tuple[str, str] | None = None,
                inside: bool = False) -> Callable[[], Matcher]:
        """A maker of matchers for a model with `vocab` logits; see `compile_grammar`. What is compiled is kept."""
        return self.grammars.compile(self.tokenizer, grammar, vocab, reasoning, inside)


def open_text(checkpoint: Checkpoint) -> Text:
    """Tokenizer, template and markers of an open checkpoint (GGUF metadata, or the files of a folder).

    TokenizerError if the vocabulary is missing, damaged or unknown. A faulty template shows when it is first rendered.
    """
    with located(checkpoint.path):
        return read_text(checkpoint)


def read_text(checkpoint: Checkpoint) -> Text:
    """`open_text` without the path in its errors."""
    if "tokenizer.ggml.model" in checkpoint.metadata:
        tokenizer = tokenizer_from_gguf(checkpoint.metadata)
        source = checkpoint.metadata.get("tokenizer.chat_template")
        if not isinstance(source, str | None):
            raise TemplateError(f"tokenizer.chat_template is {source!r}, no text; convert the model again")
        if source is None and (checkpoint.path.parent / "chat_template.jinja").is_file():
            source = template_source(checkpoint.path.parent)
    else:
        folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
        if folder != checkpoint.path and not any((folder / name).is_file() for name in VOCABULARIES):
            raise TokenizerError(f"has no vocabulary, and beside it lies neither {' nor '.join(VOCABULARIES)}; take a "
                                 "GGUF with a vocabulary, or put the model's own there")
        tokenizer = tokenizer_from_folder(folder, checkpoint.generation)
        source = template_source(folder)
    if source is None:
        return Text(tokenizer, None, None)
    begin, end = ("" if i is None else tokenizer.token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
    markers, dialect = reasoning_markers(source), dialect_of(source)
    shown = (*(markers or ()), *(dialect.MARKERS if dialect is not None else ()))
    return Text(tokenizer.showing(shown), ChatTemplate(source, begin, end), markers)
