"""Replay a trace of prompts that share beginnings, with the prefix cache and without it.

    python tools/replay.py synthetic_trace.jsonl --skip 3793 --scale 16
    python tools/replay.py synthetic_trace.jsonl --scale 64 --scheduler 4096 --states 0,36,256

The trace is JSON lines with `input_length` and `hash_ids` (Mooncake's format): each id stands for 512 tokens, and equal
ids for equal tokens. Texts are not in it: a block becomes 512 / `scale` random token ids drawn from its id, so that the
prompts fit the demo model's context; longer ones are left out and counted. Requests go one after the other, in the
trace's order, each for one token. Reported: the share of prompt tokens that the cache held, the share that an endless
cache could have held, and the time to the first token.

With `--scheduler PAGES` nothing is computed: the engine's scheduler alone says what a cache of so many pages would
hold, of a model with attention in every layer (`--states 0`), or of a hybrid that keeps so many recurrent states.
"""
from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from blackwell_infer import LLM, Sampling
from blackwell_infer.engine import scheduler
from blackwell_infer.engine.commit import commit
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.scheduler import Sequence as Answer
from blackwell_infer.engine.slots import STRIDE

BLOCK = 512
"""Tokens of a block in the trace."""
STEP = 256
"""Most tokens of a step of the scheduler alone"""


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


def scheduled(prompts: Sequence[Sequence[int]], context: int, pages: int, states: int) -> float:
    """The share of tokens that the scheduler finds in its cache, of a hybrid's if it keeps `states`."""
    limits = Limits(batch=16, step_tokens=STEP, score_tokens=1, pages=pages, context=context, reuse=True,
                    stride=STRIDE if states else 1, states=states)
    state, held = scheduler.start(limits), 0
    for id, prompt in enumerate(prompts):
        state = scheduler.submit(state, limits, Answer(id=id, prompt=tuple(prompt), limit=1))
        while state.waiting or state.running:
            plan = scheduler.plan(state, limits)
            held += sum(row.start for row in plan.rows if row.restart)
            state, _ = commit(scheduler.begin(state, plan), plan, [0] * sum(row.sampled for row in plan.rows))
    return held / sum(map(len, prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="numpy")
    parser.add_argument("--requests", type=int, default=1 << 30, help="this many of the trace")
    parser.add_argument("--skip", type=int, default=0, help="leave out so many before")
    parser.add_argument("--scheduler", type=int, metavar="PAGES", help="compute nothing, with a cache of so many pages")
    parser.add_argument("--states", default="0", help="recurrent states that --scheduler keeps, several with commas")
    parser.add_argument("--scale", type=int, default=64, help="tokens of the trace for one of a prompt")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    found = parser.parse_args()
    with found.trace.open(encoding="utf-8") as file:
        lines = list(itertools.islice(file, found.skip, found.skip + found.requests))
    with LLM(found.model, device=found.device) as llm:
        info = llm.info()
    prompts = [prompt_of(line, found.scale, info.vocab) for line in lines]
    fitting = [p for p in prompts if len(p) < info.max_context]
    if found.scheduler is not None:
        print(f"{len(fitting)} requests, {len(prompts) - len(fitting)} left out, {sum(map(len, fitting))} tokens, "
              f"possible {possible(fitting, BLOCK // found.scale):4.2f}")
        for count in map(int, found.states.split(",")):
            print(f"{count:4} states  held {scheduled(fitting, info.max_context, found.scheduler, count):4.2f}")
        return
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
