"""A `Tokenizer` from the `tokenizer.ggml.*` keys of a GGUF file.

Three kinds of vocabulary exist: "gpt2" (byte-level BPE with stored merges), "llama" (SentencePiece BPE, whose merges
follow from the scores) and "gemma4" (stored merges over SentencePiece spelling). Token types as in the GGUF
specification: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from blackwell_infer.errors import TokenizerError
from blackwell_infer.log import logger
from blackwell_infer.text.pretokenizer import PreTokenizer, pre_tokenizer
from blackwell_infer.text.tokenizer import STOP_TEXTS, Tokenizer, stop_set

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

KNOWN_MODELS = ("gpt2", "llama", "gemma4")
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
SPACE = "▁"


class Vocabulary(msgspec.Struct, frozen=True):
    """The checked lists of a GGUF vocabulary; `types` and `tokens` have equal length."""

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]]
    ids: dict[str, int]
    settings: Mapping[str, Any]

    def flag(self, key: str, default: bool) -> bool:
        value = self.settings.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, bool):
            raise TokenizerError(f"tokenizer.ggml.{key} is {value!r}; a boolean is expected")
        return value

    def id(self, key: str, default: int | None = None) -> int | None:
        """A special token's id. Files write 2^32-1 or other ids beyond the vocabulary for "none"."""
        value = self.settings.get(f"tokenizer.ggml.{key}_token_id", default)
        if value is not None and not isinstance(value, int):
            raise TokenizerError(f"tokenizer.ggml.{key}_token_id is {value!r}; a token id is expected")
        return int(value) if value is not None and 0 <= value < len(self.tokens) else None


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    `metadata` maps raw keys to Python values. Unknown kinds, missing lists, lists of unequal length, duplicate tokens
    and broken merges are TokenizerErrors.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model is None:
        raise TokenizerError("the file has no vocabulary (tokenizer.ggml.model is missing); take a GGUF that has one")
    if model not in KNOWN_MODELS:
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}, which is not supported; known are {KNOWN_MODELS}")
    vocabulary = read_vocabulary(metadata)
    if model == "gpt2":
        pre = metadata.get("tokenizer.ggml.pre")
        if pre is None:
            logger.warning("the GGUF file names no pre-tokenizer: 'default' may differ from the model's own")
            pre = "default"
        kind = pre_tokenizer(str(pre))
        backend, bos, add_bos = byte_level(vocabulary, kind), vocabulary.id("bos"), kind.add_bos
        eos = vocabulary.id("eos")
    elif model == "llama":
        backend, bos, add_bos = sentencepiece(vocabulary), vocabulary.id("bos", 1), True
        eos = vocabulary.id("eos", 2)
    else:
        backend, bos, eos, add_bos = gemma4(vocabulary), vocabulary.id("bos"), vocabulary.id("eos"), True
    # Gemma 4 was trained with it throughout, whatever the file says.
    add_bos = model == "gemma4" or vocabulary.flag("add_bos_token", add_bos)
    return Tokenizer(
        backend, bos_id=bos, eos_id=eos, stop_ids=stop_set(backend, (eos, vocabulary.id("eot"), vocabulary.id("eom"))),
        add_bos=add_bos,
    )


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """The lists of a vocabulary, checked for presence, type and length."""
    tokens = _list(metadata, "tokens", str)
    if not tokens:
        raise TokenizerError("tokenizer.ggml.tokens is missing or empty")
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    types = _list(metadata, "token_type", int) or [NORMAL] * len(tokens)
    scores = _list(metadata, "scores", float)
    for name, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise TokenizerError(f"tokenizer.ggml.{name} has {len(values)} entries for {len(tokens)} tokens")
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        token = next(token for i, token in enumerate(tokens) if ids[token] != i)
        raise TokenizerError(f"tokenizer.ggml.tokens holds {token!r} more than once; the file is corrupt")
    types = [CONTROL if token in STOP_TEXTS else kind for token, kind in zip(tokens, types, strict=True)]
    merges, unused = [], 0
    for i, line in enumerate(_list(metadata, "merges", str)):
        cut = line.find(" ", 1)
        pair = line[:cut], line[cut + 1 :]
        if cut < 0:
            raise TokenizerError(f"tokenizer.ggml.merges[{i}] is {line!r}: not two tokens with a space between them")
        # A merge whose parts or result are no tokens can never take part in an encoding; files with such merges exist.
        if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids:
            merges.append(pair)
        else:
            unused += 1
    if unused:
        logger.warning("%d merges of the vocabulary form no token and are left out", unused)
    return Vocabulary(tokens, types, scores, merges, ids, metadata)


def _list(metadata: Mapping[str, Any], key: str, kind: type) -> list[Any]:
    """A list of GGUF values as Python values of one type; [] if the key is absent."""
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return []
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        raise TokenizerError(f"tokenizer.ggml.{key} is not a list")
    values = value.tolist() if hasattr(value, "tolist") else list(value)
    accepted = (float, int) if kind is float else kind
    for item in values:
        if not isinstance(item, accepted):
            raise TokenizerError(f"tokenizer.ggml.{key} holds {item!r}; every entry must be a {kind.__name__}")
    return values


def byte_level(vocabulary: Vocabulary, kind: PreTokenizer) -> Backend:
    """Byte-level BPE: words by regular expressions, each written in the GPT-2 alphabet, merged by stored ranks."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    backend = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=vocabulary.merges, ignore_merges=kind.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    if kind.nfc:
        backend.normalizer = normalizers.NFC()
    _add_tokens(backend, vocabulary)
    return backend


def sentencepiece(vocabulary: Vocabulary) -> Backend:
    """SentencePiece BPE (Kudo and Richardson 2018): any two neighbours that form a token merge, best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if not vocabulary.scores:
        raise TokenizerError("tokenizer.ggml.scores is missing; a vocabulary of kind 'llama' cannot do without")
    if any(math.isnan(score) for score in vocabulary.scores):
        raise TokenizerError("tokenizer.ggml.scores holds NaN, so merges have no order; convert the model again")
    unknown = vocabulary.id("unknown", 0)
    backend = Tokenizer(models.BPE(
        vocab=vocabulary.ids, merges=score_merges(vocabulary), byte_fallback=True, fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    ))
    prefixed = vocabulary.flag("add_space_prefix", True)
    prepend = [normalizers.Prepend(SPACE)] if prefixed else []
    backend.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    _add_tokens(backend, vocabulary)
    return backend


def gemma4(vocabulary: Vocabulary) -> Backend:
    """Gemma 4: BPE with stored merges over whole lines, "▁" for spaces, bytes for unknown characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    merges = vocabulary.merges
    if not any("\n" in left for left, _ in merges):
        merges = [*merges, *newline_merges(vocabulary)]
    backend = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    backend.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    _add_tokens(backend, vocabulary)
    return backend


def score_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to split a token into two tokens, best score first; control, unknown and byte tokens take no part."""
    usable = {
        token: -score for token, kind, score in zip(vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True)
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    return [
        (token[:cut], token[cut:])
        for token in sorted(usable, key=usable.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in usable and token[cut:] in usable
    ]


def newline_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges of the tokens that are runs of newlines, which some files leave out."""
    runs = sorted((token for token in vocabulary.tokens if not token.strip("\n")), key=len)
    return [
        (run[:cut], run[cut:]) for run in runs for cut in range(1, len(run))
        if run[:cut] in vocabulary.ids and run[cut:] in vocabulary.ids
    ]


def _add_tokens(backend: Backend, vocabulary: Vocabulary) -> None:
    """Registers control tokens (matched in text unless asked otherwise) and user-defined ones (always matched)."""
    from tokenizers import AddedToken

    pairs = list(zip(vocabulary.tokens, vocabulary.types, strict=True))
    control = [AddedToken(t, special=True, normalized=False) for t, kind in pairs if kind in (UNKNOWN, CONTROL)]
    plain = [AddedToken(t, special=False, normalized=False) for t, kind in pairs if kind == USER_DEFINED]
    backend.add_special_tokens(control)
    backend.add_tokens(plain)
