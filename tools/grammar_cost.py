"""What it costs that answers follow a schema: decode speed of many streams with and without one.

    python tools/synthetic.py qwen3-8b q4_k_m qwen3-8b.gguf
    python tools/grammar_cost.py qwen3-8b.gguf --streams 32 --new 256

Every stream writes objects of a schema, one after the other without end, so that all streams are as long. Rounds with
and without alternate; the medians are compared.
"""
from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from blackwell_infer import LLM, Sampling
from blackwell_infer.types import Grammar

QUOTE = 9.0
"""Added to the logit of a quotation mark, so that strings of random weights end after a few tokens, as others do"""


def endless(bounded: bool) -> Grammar:
    """Objects without end, in one spelling; with `bounded` strings have a maxLength, the dearest of keywords."""
    text, word = ({"type": "string", **({"maxLength": most} if bounded else {})} for most in (40, 20))
    price = {"type": "object", "additionalProperties": False, "required": ["value", "currency"],
             "properties": {"value": {"type": "number"}, "currency": {"enum": ["EUR", "USD"]}}}
    schema = {
        "type": "object", "additionalProperties": False, "required": ["name", "kind", "count", "tags", "price"],
        "properties": {"name": text, "kind": {"enum": ["new", "used", "unknown"]},
                       "count": {"type": "integer", "minimum": 0, "maximum": 100_000},
                       "tags": {"type": "array", "items": word, "maxItems": 4}, "price": price},
        "x-guidance": {"whitespace_flexible": False}}
    return Grammar("lark", f'start: "[" (item ",")+\nitem: %json {json.dumps(schema)}\n')


def rate(llm: LLM, streams: int, new: int, grammar: Grammar | None) -> tuple[float, float]:
    """Tokens a second of all streams together, and milliseconds a step. RuntimeError if an answer ended early."""
    bias = {id: -100.0 for id in (*llm.tokenizer.stop_ids, llm.tokenizer.eos_id) if id is not None}
    bias |= dict.fromkeys(llm.tokenizer.encode('"', bos=False), QUOTE)
    sampling = [Sampling(temperature=0.8, seed=i, max_tokens=new, ignore_eos=True, logit_bias=bias, grammar=grammar)
                for i in range(streams)]
    prompts = [[300 + (7 * i + j) % 1000 for j in range(64)] for i in range(streams)]
    steps, began = llm.stats().steps, time.perf_counter()
    answers = llm.generate(prompts, sampling)
    seconds = time.perf_counter() - began
    if any(len(answer.token_ids) != new for answer in answers):
        raise RuntimeError(f"answers are {sorted({len(a.token_ids) for a in answers})} tokens long, not {new}")
    return streams * new / seconds, 1e3 * seconds / (llm.stats().steps - steps)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="decode speed with and without a schema")
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bounded", action="store_true", help="strings have a maxLength")
    parser.add_argument("--device", default="auto")
    found = parser.parse_args(argv)
    with LLM(found.model, device=found.device, max_batch=found.streams, max_context=1024, prefix_cache=False) as llm:
        made: dict[str, list[tuple[float, float]]] = {"free": [], "schema": []}
        for round in range(found.rounds + 1):
            for name, grammar in (("free", None), ("schema", endless(found.bounded))):
                one = rate(llm, found.streams, found.new, grammar)
                if round:  # the first captures graphs and compiles the grammar
                    made[name].append(one)
    speed = {name: statistics.median(r for r, _ in rounds) for name, rounds in made.items()}
    for name, rounds in made.items():
        low, high = min(r for r, _ in rounds), max(r for r, _ in rounds)
        print(f"{name:7} {speed[name]:9.1f} tok/s ({low:.1f} to {high:.1f}), "
              f"{statistics.median(ms for _, ms in rounds):.3f} ms a step")
    print(f"cost of the schema: {100 * (1 - speed['schema'] / speed['free']):.1f} %")
    return 0


if __name__ == "__main__":
    sys.exit(main())
