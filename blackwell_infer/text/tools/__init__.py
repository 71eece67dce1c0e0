"""Tool calls as models write them: one module per dialect, chosen by what a chat template teaches.

A dialect is a module with what `calls.Dialect` describes, and a place in `DIALECTS`; the first that claims a template
has it.
"""
from __future__ import annotations

from blackwell_infer.text.tools import deepseek, deepseek_v31, gemma4, hermes, llama3, mistral, mistral_args, qwen_xml
from blackwell_infer.text.tools.calls import CallArguments, CallStart, Dialect, Named, Parser, Piece, ToolChoice

DIALECTS: tuple[Dialect, ...] = (
    qwen_xml, hermes, llama3, mistral, mistral_args, deepseek, deepseek_v31, gemma4,
)


def dialect_of(template_source: str) -> Dialect | None:
    """The dialect that a chat template teaches, or None."""
    return next((dialect for dialect in DIALECTS if dialect.claims(template_source)), None)


__all__ = ["DIALECTS", "CallArguments", "CallStart", "Dialect", "Named", "Parser", "Piece", "ToolChoice", "dialect_of"]
