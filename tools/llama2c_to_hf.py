#!/usr/bin/env python3
"""Turn a llama2.c checkpoint and its vocabulary into a Hugging Face folder.

    python tools/llama2c_to_hf.py stories260K.bin tok512.bin out/           # vocabulary exported by llama2.c
    python tools/llama2c_to_hf.py model.bin tok105.model out/               # SentencePiece model, or its .vocab listing

Reads the first ("legacy") checkpoint format: seven int32 (width, MLP width, layers, heads, KV heads, vocabulary,
context; a negative vocabulary means an output matrix of its own), then float32 weights. Interleaved rope becomes the
half-split rope of Hugging Face by permuting the rows of q and k. Values stay float32, bit for bit.
"""
from __future__ import annotations

import argparse
import json
import struct
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.checkpoint.gguf import unpermuted

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
BPE, UNIGRAM = "bpe", "unigram"
SPACE = "▁"
THETA, EPSILON = 10000.0, 1e-5


class ConversionError(Exception):
    """The input is not what this tool reads."""


class Header(msgspec.Struct, frozen=True):
    """The seven numbers at the head of a checkpoint; `tied`: the embedding is the output matrix."""

    width: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    tied: bool


class Pieces(msgspec.Struct, frozen=True):
    """A vocabulary in SentencePiece spelling ("▁" for a space), one entry of each list per id."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    kind: str = BPE
    prefix: bool = True
    collapse: bool = False


def read_model(path: Path) -> tuple[Header, dict[str, np.ndarray[Any, Any]]]:
    """Header and tensors under their Hugging Face names, views of the file except for q and k."""
    raw = np.fromfile(path, np.uint8)
    if raw.size < 28:
        raise ConversionError(f"{path}: has {raw.size} bytes, too few for a llama2.c checkpoint")
    if raw[:4].tobytes() == b"24ka":
        raise ConversionError(f"{path}: is of a later llama2.c version; export it with version 0 (legacy)")
    width, mlp, layers, heads, kv, vocab, context = struct.unpack("<7i", raw[:28].tobytes())
    h = Header(width, mlp, layers, heads, kv, abs(vocab), context, vocab > 0)
    if min(width, mlp, layers, heads, kv, h.vocab, context) < 1 or width % (2 * heads) or heads % kv:
        raise ConversionError(f"{path}: {h} makes no sense; is it a llama2.c checkpoint?")
    dim = width // heads
    shapes = {
        "embed": (h.vocab, width), "attn_norm": (layers, width), "q": (layers, width, width),
        "k": (layers, kv * dim, width), "v": (layers, kv * dim, width), "o": (layers, width, width),
        "mlp_norm": (layers, width), "gate": (layers, mlp, width), "down": (layers, width, mlp),
        "up": (layers, mlp, width), "norm": (width,), "cos": (context, dim // 2), "sin": (context, dim // 2),
    } | ({} if h.tied else {"head": (h.vocab, width)})
    need = 28 + 4 * sum(int(np.prod(shape, dtype=object)) for shape in shapes.values())
    if raw.size != need:
        raise ConversionError(f"{path}: has {raw.size} bytes, {h} takes {need}; is it truncated?")
    parts, at = {}, 28
    for name, shape in shapes.items():
        end = at + 4 * int(np.prod(shape))
        parts[name] = raw[at:end].view("<f4").reshape(shape)
        at = end
    tensors = {"model.embed_tokens.weight": parts["embed"], "model.norm.weight": parts["norm"]}
    if not h.tied:
        tensors["lm_head.weight"] = parts["head"]
    for i in range(layers):
        layer = f"model.layers.{i}."
        tensors |= {
            layer + "input_layernorm.weight": parts["attn_norm"][i],
            layer + "self_attn.q_proj.weight": parts["q"][i][unpermuted(width, heads)],
            layer + "self_attn.k_proj.weight": parts["k"][i][unpermuted(kv * dim, kv)],
            layer + "self_attn.v_proj.weight": parts["v"][i],
            layer + "self_attn.o_proj.weight": parts["o"][i],
            layer + "post_attention_layernorm.weight": parts["mlp_norm"][i],
            layer + "mlp.gate_proj.weight": parts["gate"][i],
            layer + "mlp.up_proj.weight": parts["up"][i],
            layer + "mlp.down_proj.weight": parts["down"][i],
        }
    return h, tensors


def read_vocabulary(path: Path, size: int) -> Pieces:
    """The vocabulary in any of its three file formats, told apart by the name's ending."""
    if path.suffix == ".model":
        pieces = _sentencepiece_model(path)
    elif path.suffix == ".vocab":
        lines = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if any(len(line) != 2 for line in lines):
            raise ConversionError(f"{path}: every line must be a piece, a tab and a score")
        tokens = [line[0] for line in lines]
        pieces = Pieces(tokens, [float(line[1]) for line in lines], [_type_of(token) for token in tokens])
    else:
        pieces = _llama2c_vocabulary(path, size)
    if len(pieces.tokens) != size:
        raise ConversionError(f"{path}: has {len(pieces.tokens)} pieces, the model has {size}; take its own vocabulary")
    return pieces


def _type_of(token: str) -> int:
    if token == "<unk>":
        return UNKNOWN
    if token in ("<s>", "</s>"):
        return CONTROL
    return BYTE if len(token) == 6 and token.startswith("<0x") and token.endswith(">") else NORMAL


def _llama2c_vocabulary(path: Path, size: int) -> Pieces:
    """int32 longest; per piece float32 score, int32 length, bytes (spaces plain, newlines around <s> and </s>)."""
    raw = path.read_bytes()
    tokens, scores, at = [], [], 4
    for i in range(size):
        if at + 8 > len(raw):
            raise ConversionError(f"{path}: ends within piece {i} of {size}")
        score, length = struct.unpack_from("<fi", raw, at)
        if not 0 <= length <= len(raw) - at - 8:
            raise ConversionError(f"{path}: piece {i} at offset {at} has length {length}; is it a llama2.c vocabulary?")
        token = raw[at + 8:at + 8 + length].decode("utf-8")
        tokens.append(token.strip("\n") if token.strip("\n") in ("<s>", "</s>") else token.replace(" ", SPACE))
        scores.append(score)
        at += 8 + length
    return Pieces(tokens, scores, [_type_of(token) for token in tokens])


def _messages(raw: bytes) -> list[tuple[int, Any]]:
    """(field number, value) of one protocol-buffer message: int for varints, bytes for the rest."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = raw[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    fields: list[tuple[int, Any]] = []
    at = 0
    while at < len(raw):
        key = varint()
        if key & 7 == 0:
            fields.append((key >> 3, varint()))
            continue
        size = {1: 8, 5: 4}.get(key & 7)
        if size is None:
            if key & 7 != 2:
                raise ValueError(f"wire type {key & 7}")
            size = varint()
        if at + size > len(raw):
            raise ValueError("a field runs past the end")
        fields.append((key >> 3, raw[at:at + size]))
        at += size
    return fields


def _sentencepiece_model(path: Path) -> Pieces:
    """sentencepiece_model.proto: 1 pieces {1 text, 2 score, 3 type}, 2 trainer {3 kind}, 3 normalizer {3, 4, 2}."""
    try:
        fields = _messages(path.read_bytes())
        pieces = [dict(_messages(value)) for number, value in fields if number == 1]
        trainer = dict(_messages(next((v for n, v in fields if n == 2), b"")))
        normalizer = dict(_messages(next((v for n, v in fields if n == 3), b"")))
        tokens = [piece[1].decode("utf-8") for piece in pieces]
        scores = [struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces]
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ConversionError(f"{path}: is no SentencePiece model ({error})") from error
    kinds = {1: UNIGRAM, 2: BPE}
    if trainer.get(3, 1) not in kinds:
        raise ConversionError(f"{path}: is a word or character model; BPE and Unigram are supported")
    if normalizer.get(2):
        raise ConversionError(f"{path}: has a character map ({normalizer.get(1)!r}); only identity is supported")
    return Pieces(
        tokens, scores, [piece.get(3, NORMAL) for piece in pieces], kinds[trainer.get(3, 1)],
        prefix=bool(normalizer.get(3, 1)), collapse=bool(normalizer.get(4, 1)),
    )


def build_tokenizer(pieces: Pieces) -> Any:
    """A `tokenizers.Tokenizer` that begins every text with <s>."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors

    from blackwell_infer.text.gguf_vocab import read_vocabulary as checked
    from blackwell_infer.text.gguf_vocab import sentencepiece

    if pieces.kind == BPE:
        backend = sentencepiece(checked({
            "tokenizer.ggml.tokens": pieces.tokens, "tokenizer.ggml.scores": pieces.scores,
            "tokenizer.ggml.token_type": pieces.types, "tokenizer.ggml.add_space_prefix": pieces.prefix,
        }))
    else:
        backend = Tokenizer(models.Unigram(
            list(zip(pieces.tokens, pieces.scores, strict=True)),
            unk_id=pieces.types.index(UNKNOWN) if UNKNOWN in pieces.types else None, byte_fallback=BYTE in pieces.types,
        ))
        steps = [normalizers.Prepend(SPACE)] if pieces.prefix else []
        backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
        strip = [decoders.Strip(" ", 1, 0)] if pieces.prefix else []
        backend.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
        marks = [t for t, kind in zip(pieces.tokens, pieces.types, strict=True) if kind in (UNKNOWN, CONTROL)]
        backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in marks])
    if pieces.collapse:
        tidy = [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
        backend.normalizer = normalizers.Sequence([*tidy, backend.normalizer])
    if "<s>" in pieces.tokens:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", pieces.tokens.index("<s>"))])
    return backend


def convert(model: Path, vocabulary: Path, out: Path) -> int:
    """Write the folder; returns the number of tensors."""
    from safetensors.numpy import save_file

    header, tensors = read_model(model)
    pieces = read_vocabulary(vocabulary, header.vocab)
    ids = {token: i for i, token in enumerate(pieces.tokens)}
    bos, eos = ids.get("<s>"), ids.get("</s>")
    out.mkdir(parents=True, exist_ok=True)
    contiguous = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(contiguous, out / "model.safetensors", {"format": "pt"})
    build_tokenizer(pieces).save(str(out / "tokenizer.json"))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_act": "silu",
        "hidden_size": header.width, "intermediate_size": header.mlp, "num_hidden_layers": header.layers,
        "num_attention_heads": header.heads, "num_key_value_heads": header.kv_heads,
        "head_dim": header.width // header.heads, "rms_norm_eps": EPSILON, "rope_theta": THETA, "rope_scaling": None,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": header.tied, "vocab_size": header.vocab,
        "max_position_embeddings": header.context, "bos_token_id": bos, "eos_token_id": eos,
    }
    # llama2.c separates its training texts with <s> alone, so <s> is what ends an answer in practice.
    ends = [i for i in (eos, bos) if i is not None]
    generation = {"bos_token_id": bos, "eos_token_id": ends}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bos is not None, "add_eos_token": False,
        "bos_token": "<s>" if bos is not None else None, "eos_token": "</s>" if eos is not None else None,
        "unk_token": "<unk>" if "<unk>" in ids else None, "model_max_length": header.context,
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (("config", config), ("generation_config", generation), ("tokenizer_config", tokenizer)):
        (out / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return len(tensors)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="llama2.c checkpoint (.bin, legacy format)")
    parser.add_argument("vocabulary", type=Path, help="its vocabulary: llama2.c .bin, SentencePiece .model or .vocab")
    parser.add_argument("out", type=Path, help="folder to write")
    args = parser.parse_args(argv)
    try:
        count = convert(args.model, args.vocabulary, args.out)
    except (ConversionError, OSError, UnicodeDecodeError) as error:
        print(f"llama2c_to_hf: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {count} tensors, config and tokenizer", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
