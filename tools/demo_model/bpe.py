"""The tokenizer: byte-level BPE, trained with the `tokenizers` library, and an encoder of its own for training data.

`Vocabulary.encode` gives the ids that the library gives (a test compares them) and needs no library; it caches words,
which makes it fast on text that repeats itself.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Digits one by one, words with the space before them"""
LETTER, OTHER = r"[^\W\d_]", r"(?:[^\w\s]|_)"
PIECE = re.compile(
    r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
    rf"|(?:(?![\r\n])(?:\s|{OTHER}))?{LETTER}+|\d"
    rf"| ?{OTHER}+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""SPLIT for Python's re. They differ in numbers that are no decimal digits, such as ½, which count as letters here."""
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte, as in GPT-2's vocabulary."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    out = {byte: chr(byte) for byte in shown}
    for i, byte in enumerate(byte for byte in range(256) if byte not in out):
        out[byte] = chr(256 + i)
    return out


class Vocabulary:
    """Text -> ids."""

    def __init__(self, file: Path) -> None:
        stored = json.loads(file.read_text(encoding="utf-8"))
        self.ids: dict[str, int] = stored["model"]["vocab"]
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in stored["model"]["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.added: dict[str, int] = {token["content"]: token["id"] for token in stored["added_tokens"]}
        self.size = max(*self.ids.values(), *self.added.values()) + 1
        self.end = self.added["<|endoftext|>"]
        self._markers = re.compile("(" + "|".join(map(re.escape, self.added)) + ")")
        self._characters = byte_characters()
        self._words: dict[str, list[int]] = {}
        self._names = {id: token for token, id in (self.ids | self.added).items()}
        self._bytes = {character: byte for byte, character in self._characters.items()}

    def encode(self, text: str) -> list[int]:
        out: list[int] = []
        for i, part in enumerate(self._markers.split(text)):
            if i % 2:
                out.append(self.added[part])
            else:
                for word in PIECE.findall(part):
                    known = self._words.get(word)
                    if known is None:
                        known = self._words[word] = self._encode(word)
                    out += known
        return out

    def decode(self, ids: Iterable[int]) -> str:
        """Text, with the added tokens written out."""
        out = bytearray()
        for id in ids:
            name = self._names[id]
            out += name.encode() if name in self.added else bytes(self._bytes[c] for c in name)
        return out.decode("utf-8", "replace")

    def _encode(self, word: str) -> list[int]:
        if len(self._words) > 400_000:
            self._words.clear()
        parts = [self._characters[byte] for byte in word.encode()]
        while len(parts) > 1:
            ranked = [
                (self.ranks.get(pair, len(self.ranks)), i) for i, pair in enumerate(itertools.pairwise(parts))
            ]
            rank, i = min(ranked)
            if rank == len(self.ranks):
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return [self.ids[part] for part in parts]


def train(texts: Iterator[str], size: int, out: Path) -> None:
    """Write the tokenizer files of a model folder, with a vocabulary of `size` entries, added tokens included."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    added = [*SPECIALS, *MARKERS]
    backend.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size - len(added), initial_alphabet=sorted(byte_characters().values()), show_progress=False
        ),
    )
    stored = json.loads(backend.to_str())
    first = len(stored["model"]["vocab"])
    stored["added_tokens"] = [
        {
            "id": first + i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": token in SPECIALS,
        }
        for i, token in enumerate(added)
    ]
    out.mkdir(parents=True, exist_ok=True)
    write_files(out, stored)


def write_files(out: Path, stored: dict[str, Any]) -> None:
    (out / "tokenizer.json").write_text(json.dumps(stored, ensure_ascii=False, indent=None) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in stored["added_tokens"]
        },
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    (out / "chat_template.jinja").write_text(TEMPLATE.read_text(encoding="utf-8"), encoding="utf-8")
