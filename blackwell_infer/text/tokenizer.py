"""Text to token ids and back, over a `tokenizers.Tokenizer`.

Decoding works on bytes: every token stands for a fixed byte string, a sequence for their concatenation, read as UTF-8
(Unicode 15, section 3.9: each maximal invalid subpart becomes one U+FFFD). So a prefix of the ids always decodes to a
prefix of the bytes, which is what streaming needs, and the result never depends on how ids are grouped.
"""
from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from blackwell_infer.errors import RequestError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

STOP_TEXTS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<end_of_turn>", "<turn|>", "<eos>",
    "<|end|>", "<|return|>", "<|call|>", "<\uFF5Cend▁of▁sentence\uFF5C>", "<SPECIAL_12>", "<|tool_response>",
)
"""Tokens that end an answer in some family; as single tokens they have no other use."""

ANCHORS = ("", "\n", "=", "a")
"""Texts put before one that is to be cut, since some tokenizers add a space to the very beginning"""

LONG = 1 << 14
"""Characters that are encoded in some milliseconds"""


class PieceRule(msgspec.Struct, frozen=True):
    """How the bytes of a token follow from its stored text, and what is stripped where a text begins."""

    byte_level: bool = False
    """characters stand for bytes through the GPT-2 table"""
    byte_fallback: bool = False
    """<0xNN> is the byte NN"""
    replaces: tuple[tuple[str, str], ...] = ()
    prefix: str = ""
    """put before every token (vocabularies of whole words)"""
    strip: int = 0
    """spaces removed from the very beginning of a text"""


def gpt2_alphabet() -> dict[str, int]:
    """Character to byte of byte-level BPE: printable Latin-1 stands for itself, the other bytes for U+0100 onwards."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def piece_rule(decoder: Mapping[str, Any] | None) -> PieceRule:
    """The rule that a serialised `tokenizers` decoder describes; an unknown decoder is a TokenizerError."""
    if decoder is None:
        return PieceRule(prefix=" ", strip=1)
    rule = PieceRule()
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    for step in steps:
        match step:
            case {"type": "ByteLevel"}:
                rule = msgspec.structs.replace(rule, byte_level=True)
            case {"type": "ByteFallback"}:
                rule = msgspec.structs.replace(rule, byte_fallback=True)
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                rule = msgspec.structs.replace(rule, replaces=(*rule.replaces, (old, new)))
            case {"type": "Metaspace", "replacement": old, "prepend_scheme": scheme}:
                strip = int(scheme != "never")
                rule = msgspec.structs.replace(rule, replaces=(*rule.replaces, (old, " ")), strip=strip)
            case {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                rule = msgspec.structs.replace(rule, strip=start)
            case _:
                raise TokenizerError(
                    f"the tokenizer's decoder step {step} is not supported; known are ByteLevel, ByteFallback, Fuse,"
                    " Metaspace, Replace of a string and Strip of leading spaces"
                )
    return rule


class Tokenizer:
    """A vocabulary with its rules. Immutable for callers and safe to share between threads.

    `size` is one more than the highest id, added tokens included; `bos_id` and `eos_id` are None where the model has
    none; `stop_ids` end an answer; `add_bos` is the model's own rule; ids in `visible` are control tokens that decoding
    keeps, because their text carries meaning for the reader of the answer (reasoning markers).
    """

    def __init__(
        self, backend: Backend, *, bos_id: int | None, eos_id: int | None, stop_ids: Collection[int] = (),
        add_bos: bool = False,
    ) -> None:
        self.backend = backend
        self.size: int = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.stop_ids = frozenset(stop_ids)
        self.add_bos = add_bos and bos_id is not None
        self.visible: frozenset[int] = frozenset()
        added = backend.get_added_tokens_decoder()
        self._added = frozenset(added)
        self._special = frozenset(i for i, token in added.items() if token.special)
        self._rule = piece_rule(json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else None)
        self._alphabet = gpt2_alphabet() if self._rule.byte_level else {}
        self._pieces: dict[int, bytes] = {}

    def showing(self, markers: Iterable[str]) -> Tokenizer:
        """This tokenizer with the control tokens of these texts kept by `decode`."""
        twin = copy.copy(self)
        twin.visible = frozenset(i for text in markers for i in self.encode(text, bos=False) if i in self._special)
        return twin

    def encode(self, text: str, *, bos: bool | None = None, specials: bool = True) -> list[int]:
        """The ids of `text`.

        `bos=None` follows the model's rule; a beginning-of-sequence token that the text already starts with is never
        doubled. With `specials=False` the text of control tokens is ordinary text, for input that must not be able to
        forge them. A text with lone surrogates is a RequestError.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is not valid Unicode (lone surrogate at character {error.start})") from error
        backend = self.backend if specials else self._plain
        # Only lists are encoded without Python's global lock, which a long text holds for seconds; a short one is not
        # worth the library's threads.
        ids: list[int] = (backend.encode(text, add_special_tokens=False) if len(text) < LONG else
                          backend.encode_batch_fast([text], add_special_tokens=False)[0]).ids
        wanted = self.add_bos if bos is None else bos
        if not wanted:
            return ids
        if self.bos_id is None:
            raise RequestError("this model has no beginning-of-sequence token; do not ask for one")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    @functools.cached_property
    def _plain(self) -> Backend:
        """The vocabulary with the text of control tokens as plain text, which the library has as a switch."""
        twin = copy.deepcopy(self.backend)
        twin.encode_special_tokens = True
        return twin

    def decode(self, ids: Iterable[int], *, skip_specials: bool = True) -> str:
        """The text of `ids`; an id beyond the vocabulary (padding of the output matrix) has no text."""
        data = b"".join(self.piece(i, skip_specials=skip_specials) for i in ids)
        return strip_spaces(data, self.strip).decode("utf-8", "replace")

    def spell(self, data: bytes) -> list[int] | None:
        """Tokens whose bytes together are `data`, as the model would cut it in the middle of a text; control tokens
        count as their text. None where the text before it changes how it is cut."""
        text = data.decode("utf-8", "replace")
        for before in ANCHORS:
            ids, start = self.encode(before + text, bos=False), 0
            pieces = [self.piece(i, skip_specials=False) for i in ids]
            while start < len(ids) and b"".join(pieces[:start]).lstrip(b" ") != before.encode():
                start += 1
            if b"".join(pieces[start:]) == data:
                return ids[start:]
        return None

    def piece(self, id: int, *, skip_specials: bool = True) -> bytes:
        """The bytes that a token adds to a text: none for control tokens unless `skip_specials` is off."""
        if skip_specials and id in self._special and id not in self.visible:
            return b""
        data = self._pieces.get(id)
        if data is None:
            data = self._pieces[id] = self._bytes(id)
        return data

    @property
    def strip(self) -> int:
        """How many spaces are dropped from the very beginning of a decoded text."""
        return self._rule.strip

    def token(self, id: int) -> str:
        """The stored text of a token ("Ġthe", "▁the", "<0x0A>"); empty for an id beyond the vocabulary."""
        return (self.backend.id_to_token(id) or "") if 0 <= id < self.size else ""

    def token_id(self, text: str) -> int | None:
        """The id whose stored text is `text`, or None."""
        return self.backend.token_to_id(text)

    def is_special(self, id: int) -> bool:
        """Whether the token is a control token, which never comes from ordinary text."""
        return id in self._special

    def _bytes(self, id: int) -> bytes:
        text, rule = self.token(id), self._rule
        if id in self._special:
            return text.encode()
        if rule.byte_level:
            # Added tokens are stored as plain text; so is any token with a character outside of the alphabet.
            if id in self._added or any(char not in self._alphabet for char in text):
                return text.encode()
            return bytes(self._alphabet[char] for char in text)
        if rule.byte_fallback and (byte := fallback_byte(text)) is not None:
            return bytes([byte])
        for old, new in rule.replaces:
            text = text.replace(old, new)
        return (rule.prefix + text).encode() if text else b""


def fallback_byte(token: str) -> int | None:
    """The value of a byte token "<0xNN>", or None for any other text."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None


def strip_spaces(data: bytes, count: int) -> bytes:
    """`data` without up to `count` leading spaces."""
    while count and data.startswith(b" "):
        data, count = data[1:], count - 1
    return data


def stop_set(backend: Backend, known: Iterable[int | None]) -> frozenset[int]:
    """Ids that end an answer: the `known` ones (None and ids beyond the vocabulary are left out) and those that some
    family uses as such. "</s>" counts only as a control token: in several vocabularies it is plain HTML."""
    size = backend.get_vocab_size(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    found = {i for i in known if i is not None and 0 <= i < size}
    found |= {i for text in STOP_TEXTS if (i := backend.token_to_id(text)) is not None}
    closing = backend.token_to_id("</s>")
    if closing is not None and closing in added and added[closing].special:
        found.add(closing)
    return frozenset(found)
