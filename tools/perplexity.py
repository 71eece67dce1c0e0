#!/usr/bin/env python3
"""Perplexity of a Hugging Face folder as it is, with bfloat16 weights, and in every layout of tools/quantize_hf.py.

    python tools/perplexity.py model/ --text validation.txt
    python tools/perplexity.py model/ --passages golden.json --root data/ --layouts fp8-tensor mxfp4

Every layout is made of the bfloat16 weights, written to a temporary folder and read back like any release; matrices
that do not fit its blocks stay bfloat16. The text is scored in pieces as long as the context, or in the passages of a
JSON file ({"nll": [{"corpus", "char_start", "char_end", "n_tokens"}]}, corpora under --root), each up to n_tokens.
Activations are float32 on the host; --activations quantized is the engine's setting of that name. Prints a Markdown
table.
"""
from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import msgspec
import numpy as np
from quantize_hf import DENSE, LAYOUTS, convert, shards

from blackwell_infer import LLM
from blackwell_infer.checkpoint import open_checkpoint
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.quant import FORMATS

Passage = tuple[str, int]
"""A text, and after how many tokens it ends"""
COLUMNS = ("weights", "quantised matrices", "kept", "bits per weight", "nats per token", "perplexity", "change")


class Result(msgspec.Struct, frozen=True):
    """One row: matrices in the layout and not, bits per number of all linear matrices, total nats and tokens."""

    name: str
    quantised: int
    kept: int
    bits: float
    nats: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.tokens)


def to_bfloat16(folder: Path, out: Path) -> None:
    """A copy of the folder with every matrix rounded to bfloat16; vectors keep their type."""
    from safetensors.numpy import save_file

    out.mkdir()
    checkpoint = open_checkpoint(folder)
    for file, names in shards(checkpoint):
        arrays = {}
        for name in names:
            w, shape = checkpoint.weight(name), checkpoint.tensors[name].shape
            values = FORMATS[w.format].dequantize(w).reshape(shape)
            arrays[name] = values.astype(ml_dtypes.bfloat16 if len(shape) == 2 else DENSE[w.format])
        save_file(arrays, out / file, metadata={"format": "pt"})
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja", ".model") and "safetensors" not in path.name:
            (out / path.name).write_bytes(path.read_bytes())


def texts(passages: Path, root: Path) -> Iterator[Passage]:
    for entry in json.loads(passages.read_text(encoding="utf-8"))["nll"]:
        whole = (root / entry["corpus"]).read_text(encoding="utf-8")
        yield whole[entry["char_start"]:entry["char_end"]], entry["n_tokens"]


def windows(llm: LLM, text: str) -> Iterator[list[int]]:
    """The text's tokens in pieces as long as the context."""
    ids = llm.tokenizer.encode(text)
    for start in range(0, len(ids), llm.info().max_context):
        yield ids[start:start + llm.info().max_context]


def measure(folder: Path, name: str, pieces: Sequence[Passage], whole: str | None, settings: dict[str, Any]) -> Result:
    """Score every passage; the first token of each is given, not scored."""
    checkpoint = open_checkpoint(folder)
    linears = [t for n, t in checkpoint.tensors.items() if len(t.shape) == 2 and "_proj.weight" in n]
    quantised = sum(t.format not in DENSE for t in linears)
    bits = 8 * sum(t.nbytes for t in linears) / sum(math.prod(t.shape) for t in linears)
    checkpoint.close()
    with LLM(str(folder), device="numpy", **settings) as llm:
        scored = windows(llm, whole) if whole is not None else (llm.tokenizer.encode(text)[:n] for text, n in pieces)
        nats, tokens = 0.0, 0
        for ids in scored:
            if len(ids) > 1:
                nats -= float(llm.score(ids).logprobs.sum(dtype=np.float64))
                tokens += len(ids) - 1
    return Result(name, quantised, len(linears) - quantised, bits, nats, tokens)


def table(results: Sequence[Result]) -> str:
    """Markdown; the change is against the second row, the bfloat16 weights."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    base = results[1].perplexity
    for r in results:
        change = f"{100 * (r.perplexity / base - 1):+.2f} %"
        nats = r.nats / r.tokens
        cells = (r.name, r.quantised, r.kept, f"{r.bits:.2f}", f"{nats:.4f}", f"{r.perplexity:.4f}", change)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def run(folder: Path, layouts: Sequence[str], pieces: Sequence[Passage], whole: str | None, settings: dict[str, Any],
        peak: float = 0.0) -> list[Result]:
    dense = settings | {"activations": "full"}
    results = [measure(folder, "as stored", pieces, whole, dense)]
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "bf16"
        to_bfloat16(folder, base)
        results.append(measure(base, "bf16", pieces, whole, dense))
        for layout in layouts:
            out = Path(scratch) / layout
            convert(base, out, layout, peak=peak)
            results.append(measure(out, layout, pieces, whole, settings))
    return results


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="Hugging Face folder with unquantised weights and a tokenizer")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", type=Path, help="text to score, in pieces as long as the context")
    source.add_argument("--passages", type=Path, help="JSON file that names passages of corpora")
    parser.add_argument("--root", type=Path, default=Path("."), help="folder of the corpora that --passages names")
    parser.add_argument("--layouts", nargs="*", choices=LAYOUTS, default=list(LAYOUTS), metavar="LAYOUT")
    parser.add_argument("--activations", choices=("full", "quantized"), default="full",
                        help="quantized: round what meets NVFP4, MXFP8 and FP8 matrices to their codes, too")
    parser.add_argument("--input-peak", type=float, default=0.0, metavar="X",
                        help="record activation scales for inputs of magnitude up to X (default: none)")
    parser.add_argument("--max-context", type=int, help="tokens of context (default: the model's)")
    args = parser.parse_args(argv)
    try:
        whole = args.text.read_text(encoding="utf-8") if args.text else None
        pieces = [] if whole is not None else list(texts(args.passages, args.root))
        settings = {"activations": args.activations}
        if args.max_context is not None:
            settings["max_context"] = args.max_context
        print(table(run(args.folder, args.layouts, pieces, whole, settings, args.input_peak)))
    except (BlackwellInferError, OSError) as error:
        print(f"perplexity: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
