"""Replay a trace of prompts that share beginnings, with the prefix cache and without it.

    python tools/replay.py synthetic_trace.jsonl --requests 150 --scale 64

The trace is JSON lines with `input_length` and `hash_ids` (Mooncake's format): each id stands for 512 tokens, and equal
ids for equal tokens. Texts are not in it: a block becomes 512 / `scale` random token ids drawn from its id, so that the
prompts fit the demo model's context; longer ones are left out and counted. Requests go one after the other, in the
trace's order, each for one token. Reported: the share of prompt tokens that the cache held, the share that an endless
cache could have held, and the time to the first token.
"""
from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from blackwell_infer import LLM, Sampling

BLOCK = 512
"""Tokens of a block in the trace."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One replay; times in milliseconds."""

    prefix_cache: bool
    requests: int
    left_out: int
    prompt_tokens: int
    hit_share: float
    possible_share: float
    first_median: float
    first_p95: float


def block_of(id: int, scale: int, vocab: int) -> list[int]:
    """The token ids that stand for a block."""
    draw = random.Random(id)
    return [draw.randrange(vocab) for _ in range(BLOCK // scale)]


def prompt_of(line: str, scale: int, vocab: int) -> list[int]:
    """A request's prompt, at least one token long."""
    request = json.loads(line)
    ids = [t for id in request["hash_ids"] for t in block_of(id, scale, vocab)]
    return ids[:max(1, request["input_length"] // scale)]


def possible(prompts: Iterable[Sequence[int]], unit: int) -> float:
    """The share of tokens in blocks of `unit` that some earlier prompt began with, too."""
    seen: set[tuple[int, ...]] = set()
    held = total = 0
    for prompt in prompts:
        starts = [tuple(prompt[:end]) for end in range(unit, len(prompt) + 1, unit)]
        held += unit * sum(start in seen for start in starts)
        total += len(prompt)
        seen.update(starts)
    return held / total if total else 0.0


def replay(model: str, prompts: Sequence[Sequence[int]], left_out: int, scale: int, cache: bool, device: str) -> Figure:
    """All prompts, one after the other."""
    firsts = []
    with LLM(model, device=device, prefix_cache=cache) as llm:
        llm.generate([1, 2, 3], Sampling(max_tokens=1))
        before = llm.stats()
        for prompt in prompts:
            began = time.perf_counter()
            llm.generate(list(prompt), Sampling(max_tokens=1, temperature=0))
            firsts.append(1e3 * (time.perf_counter() - began))
        after = llm.stats()
    total = sum(map(len, prompts))
    return Figure(prefix_cache=cache, requests=len(prompts), left_out=left_out, prompt_tokens=total,
                  hit_share=(after.cached_tokens - before.cached_tokens) / total,
                  possible_share=possible(prompts, BLOCK // scale), first_median=float(np.median(firsts)),
                  first_p95=float(np.percentile(firsts, 95)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="numpy")
    parser.add_argument("--requests", type=int, default=150, help="this many of the trace, from its beginning")
    parser.add_argument("--scale", type=int, default=64, help="tokens of the trace for one of a prompt")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    found = parser.parse_args()
    with found.trace.open(encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(found.requests), strict=False)]
    with LLM(found.model, device=found.device) as llm:
        info = llm.info()
    prompts = [prompt_of(line, found.scale, info.vocab) for line in lines]
    fitting = [p for p in prompts if len(p) < info.max_context]
    print("cache  requests  left out  prompt tokens  held  possible  first token ms  p95")
    figures = []
    for cache in (True, False):
        f = replay(found.model, fitting, len(prompts) - len(fitting), found.scale, cache, found.device)
        figures.append(f)
        state = "on" if cache else "off"
        print(f"{state:5}  {f.requests:8}  {f.left_out:8}  {f.prompt_tokens:13}  {f.hit_share:4.2f}  "
              f"{f.possible_share:8.2f}  {f.first_median:14.1f}  {f.first_p95:.1f}", flush=True)
    if found.json:
        found.json.write_bytes(msgspec.json.encode(figures))


if __name__ == "__main__":
    main()
