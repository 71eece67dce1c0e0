"""Reads a SentencePiece model file (tokenizer.model), a protobuf message, into the keys of a GGUF vocabulary.

Field numbers are those of sentencepiece_model.proto: ModelProto {pieces 1, trainer_spec 2, normalizer_spec 3},
SentencePiece {piece 1, score 2, type 3}, TrainerSpec {model_type 3, unk_id 40, bos_id 41, eos_id 42},
NormalizerSpec {name 1, add_dummy_prefix 3, remove_extra_whitespaces 4}. GGUF took its token types from here.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from blackwell_infer.errors import TokenizerError

_BPE = 2
_CONVERT = "load it with transformers' AutoTokenizer and save it with save_pretrained to get a tokenizer.json"


def read_sentencepiece(data: bytes, source: str) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece BPE model. `source` names the file in errors.

    TokenizerError for damaged files, and for kinds other than BPE over unchanged text.
    """
    tokens, scores, types = [], [], []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for field, value in _fields(data):
            if field == 1:
                piece = dict(_fields(value))
                tokens.append(piece[1].decode())
                scores.append(struct.unpack("<f", piece.get(2, bytes(4)))[0])
                types.append(int(piece.get(3, 1)))
            elif field == 2:
                trainer = dict(_fields(value))
            elif field == 3:
                normalizer = dict(_fields(value))
        name = normalizer.get(1, b"").decode()
    except (KeyError, AttributeError, TypeError, ValueError, struct.error) as error:
        raise TokenizerError(f"{source}: is no SentencePiece model, or is damaged; download it again") from error
    if trainer.get(3, 1) != _BPE:
        raise TokenizerError(f"{source}: holds no BPE model but SentencePiece kind {trainer.get(3, 1)}; {_CONVERT}")
    if name != "identity" or normalizer.get(4, 1):
        raise TokenizerError(f"{source}: normalises text ({name or 'unnamed'}), which is not supported; {_CONVERT}")
    ids = {
        f"tokenizer.ggml.{key}_token_id": trainer.get(field, default)
        for key, field, default in (("unknown", 40, 0), ("bos", 41, 1), ("eos", 42, 2))
    }
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types, "tokenizer.ggml.add_space_prefix": bool(normalizer.get(3, 1)), **ids,
    }


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Field numbers and values of a protobuf message: int for varints, bytes for the rest. ValueError if damaged."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            number, at = _varint(data, at)
            yield key >> 3, number
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"wire type {kind}")
        size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if size > len(data) - at:
            raise ValueError("the message ends inside a field")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
