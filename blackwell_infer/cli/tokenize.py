"""`bwinfer tokenize`: text to token ids and pieces, or ids to text. Reads the vocabulary only."""
from __future__ import annotations

import argparse
import sys

import msgspec

from blackwell_infer import config
from blackwell_infer.checkpoint import open_checkpoint, resolve
from blackwell_infer.cli.flags import UsageError
from blackwell_infer.cli.model import NAMES
from blackwell_infer.cli.progress import Bars
from blackwell_infer.errors import RequestError
from blackwell_infer.text.load import open_text
from blackwell_infer.text.tokenizer import Tokenizer

SECTIONS = ("engine.revision",)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand and its output format."""
    parser.add_argument("model", help=NAMES)
    parser.add_argument("text", nargs="?", help="the text; standard input if it is absent")
    parser.add_argument("--ids", type=numbers, metavar="ID,ID,...", help="turn these ids into text instead")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def numbers(text: str) -> list[int]:
    """Comma separated token ids."""
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"--ids takes numbers with commas between them, not {text!r}") from None


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Print the ids of the text, or the text of the ids. TokenizerError if the vocabulary cannot be read."""
    if found.ids is not None and found.text is not None:
        raise UsageError("give a text or --ids, not both")
    with Bars() as bars:
        path = resolve(found.model, revision=settings.engine.revision, progress=bars)
    checkpoint = open_checkpoint(path)
    try:
        tokenizer = open_text(checkpoint).tokenizer
    finally:
        checkpoint.close()
    if found.ids is not None:
        text = decoded(tokenizer, found.ids)
        print(msgspec.json.encode({"text": text}).decode() if found.json else text)
        return 0
    text = sys.stdin.read().removesuffix("\n") if found.text is None else found.text
    ids = tokenizer.encode(text)
    pieces = [shown(tokenizer, i) for i in ids]
    if found.json:
        print(msgspec.json.encode({"ids": ids, "pieces": pieces}).decode())
    else:
        for i, piece in zip(ids, pieces, strict=True):
            print(f"{i:>8} {msgspec.json.encode(piece).decode()}")
    return 0


def decoded(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids, without control tokens. RequestError names an id outside the vocabulary."""
    for i in ids:
        if not 0 <= i < tokenizer.size:
            raise RequestError(f"token id {i} is outside the vocabulary of {tokenizer.size} tokens")
    return tokenizer.decode(ids)


def shown(tokenizer: Tokenizer, i: int) -> str:
    """The text that a token stands for; bytes that are no whole character as \\xNN."""
    return tokenizer.piece(i, skip_specials=False).decode("utf-8", "backslashreplace")
