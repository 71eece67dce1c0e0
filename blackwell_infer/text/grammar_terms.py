"""Terminals of llguidance's Lark that grammars are put together from."""
from __future__ import annotations

import json
import re

ANY = "/(?s:.*)/"
GAP = "/[ \\n]{0,2}/"
"""What parts reasoning from what follows it"""


def literal(text: str) -> str:
    """A Lark string."""
    return json.dumps(text, ensure_ascii=False)


def pattern(text: str) -> str:
    """A regular expression, to stand between slashes, of exactly this text."""
    return re.sub(r"([\\.+*?()|\[\]{}^$/&~#-])", r"\\\1", text).replace("\n", r"\n")


def without(*markers: str) -> str:
    """Any text in which none of the markers stands."""
    return " & ".join((ANY, *(f"~/(?s:.*){pattern(m)}(?s:.*)/" for m in markers)))


def thought(reasoning: tuple[str, str], inside: bool) -> str:
    """Reasoning up to its closing marker; with `inside` the prompt has opened it."""
    open, close = reasoning
    begin = "" if inside else f"{GAP} {literal(open)} "
    return f"{begin}({without(close)}) {literal(close)}"
