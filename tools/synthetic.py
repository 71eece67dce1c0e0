"""Write a GGUF file of random weights at the shapes of a real model: a fair subject for speed, never for quality.

    python tools/synthetic.py qwen3-8b q4_k_m qwen3-8b.gguf

Weights have a standard deviation near 0.02, so that activations stay finite. `q4_k_m` is the usual mix: Q6_K for the
head, and for the value and down projections of half the layers. The vocabulary is a dummy without text.
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np


class Shape(msgspec.Struct, frozen=True):
    """Sizes of a dense model."""

    arch: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rope_theta: float
    head_norms: bool


SHAPES = {
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1e6, True),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, 1e6, True),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5, False),
}
MIXES = {"q4_k_m": ("Q4_K", "Q6_K", "Q6_K", 15), "q8_0": ("Q8_0", "Q8_0", "Q8_0", 7), "q4_0": ("Q4_0",) * 3 + (2,),
         "q5_k": ("Q5_K",) * 3 + (17,), "q6_k": ("Q6_K",) * 3 + (18,), "bf16": ("BF16",) * 3 + (32,)}
"""base type, type of the sensitive projections, type of the head, and the file type number"""
SCALES = {"Q4_K": ((0, 1e-4), (2, 7.5e-4)), "Q5_K": ((0, 5e-5), (2, 7.5e-4)), "Q6_K": ((208, 1.5e-5),),
          "Q8_0": ((0, 2.7e-4),), "Q4_0": ((0, 4.3e-3),)}
"""byte offset in a block and value of each half-precision scale"""
POOL = 1 << 19
"""distinct random blocks; larger tensors repeat them"""

Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class Blocks:
    """Random blocks of each type, drawn once."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.pools: dict[str, Bytes] = {}

    def pool(self, kind: str, nbytes: int) -> Bytes:
        if kind not in self.pools:
            if kind == "BF16":
                values = (self.random.standard_normal(POOL) * 0.02).astype(np.float32).view(np.uint32)
                blocks = (values >> 16).astype(np.uint16).view(np.uint8).reshape(POOL, 2)
            else:
                blocks = self.random.integers(0, 256, (POOL, nbytes), np.uint8)
                for at, value in SCALES[kind]:
                    blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
            self.pools[kind] = blocks
        return self.pools[kind]

    def matrix(self, kind: str, rows: int, cols: int, block: int, nbytes: int) -> Bytes:
        """Blocks of [rows, cols] weights as bytes [rows, bytes of a row]."""
        pool, count = self.pool(kind, nbytes), rows * cols // block
        filled = pool[:count] if count <= POOL else np.concatenate([pool] * -(-count // POOL))[:count]
        return filled.reshape(rows, cols // block * nbytes)


def matrices(shape: Shape, mix: tuple[str, str, str, int]) -> Iterator[tuple[str, str, int, int]]:
    """(name, type, rows, cols) of every quantised tensor."""
    base, sensitive, head, _ = mix
    s = shape
    yield "token_embd.weight", base, s.vocab, s.hidden
    yield "output.weight", head, s.vocab, s.hidden
    for i in range(s.layers):
        edge = i < s.layers // 8 or i >= 7 * s.layers // 8 or (i - s.layers // 8) % 3 == 2
        high = sensitive if edge else base
        b = f"blk.{i}."
        yield b + "attn_q.weight", base, s.heads * s.head_dim, s.hidden
        yield b + "attn_k.weight", base, s.kv_heads * s.head_dim, s.hidden
        yield b + "attn_v.weight", high, s.kv_heads * s.head_dim, s.hidden
        yield b + "attn_output.weight", base, s.hidden, s.heads * s.head_dim
        yield b + "ffn_gate.weight", base, s.mlp, s.hidden
        yield b + "ffn_up.weight", base, s.mlp, s.hidden
        yield b + "ffn_down.weight", high, s.hidden, s.mlp


def norms(shape: Shape) -> Iterator[tuple[str, int]]:
    yield "output_norm.weight", shape.hidden
    for i in range(shape.layers):
        yield f"blk.{i}.attn_norm.weight", shape.hidden
        yield f"blk.{i}.ffn_norm.weight", shape.hidden
        if shape.head_norms:
            yield f"blk.{i}.attn_q_norm.weight", shape.head_dim
            yield f"blk.{i}.attn_k_norm.weight", shape.head_dim


def write(shape: Shape, mix: tuple[str, str, str, int], path: str, seed: int) -> int:
    """Write the file; returns the bytes of its tensors."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    writer = GGUFWriter(path, shape.arch)
    writer.add_file_type(mix[3])
    writer.add_block_count(shape.layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.mlp)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_vocab_size(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([f"t{i}" for i in range(shape.vocab)])
    writer.add_token_types([1] * shape.vocab)
    writer.add_token_merges([])
    writer.add_eos_token_id(shape.vocab - 1)
    blocks, total = Blocks(seed), 0
    for name, size in norms(shape):
        writer.add_tensor(name, np.ones(size, np.float32))
    for name, kind, rows, cols in matrices(shape, mix):
        number = GGMLQuantizationType[kind]
        data = blocks.matrix(kind, rows, cols, *GGML_QUANT_SIZES[number])
        writer.add_tensor(name, data, raw_dtype=number)
        total += data.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file(progress=sys.stderr.isatty())
    writer.close()
    return total


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write a GGUF of random weights at the shapes of a real model")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("mix", choices=sorted(MIXES))
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args(argv)
    total = write(SHAPES[found.shape], MIXES[found.mix], found.out, found.seed)
    print(f"{found.out}: {total / 1e9:.3f} GB of weights")
    return 0


if __name__ == "__main__":
    sys.exit(main())
