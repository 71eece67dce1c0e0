"""A vocabulary of invented words: every byte, then what JSON is made of, then syllables, as byte-level BPE writes them.

Grammars of answers cost what they cost with a real vocabulary of this size: tokens differ, begin alike and end alike.
"""
from __future__ import annotations

END = "<end>"
MERGE = ("b", "a")
"""the only one: what a tokenizer makes of text does not matter, what a model's tokens say does"""
SYLLABLES = [c + v for c in ("b", "c", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "sh", "")
             for v in ("a", "e", "i", "o", "u", "an", "er", "ing", "")]
SIGNS = [mark + more for mark in ('"', '{"', '":', '",', '"}', "[", "]", "},", ":", ",")
         for more in ("", "Ġ", "Ċ", '"')]


def alphabet() -> list[str]:
    """The characters that stand for the 256 bytes, by byte (GPT-2's table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = {byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in plain)}
    return [others.get(byte, chr(byte)) for byte in range(256)]


def vocabulary(size: int) -> list[str]:
    """`size` different tokens, the last of them the end of an answer."""
    found = dict.fromkeys([*alphabet(), "".join(MERGE), *SIGNS])
    number = 0
    while len(found) < size - 1:
        word, rest = "", number
        while rest:
            rest, at = divmod(rest, len(SYLLABLES))
            word += SYLLABLES[at]
        found |= dict.fromkeys((word, "Ġ" + word, word.capitalize(), "Ġ" + word.capitalize()) if word else ())
        number += 1
    return [*list(found)[: size - 1], END]
