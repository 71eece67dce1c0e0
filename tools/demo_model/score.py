#!/usr/bin/env python3
"""Scores of a checkpoint of the demo model through the engine: answers to held-out dialogues, and perplexity.

    python -m tools.demo_model.score FOLDER [FOLDER ...] --count 200 --corpora ../shared/data/corpora/gutenberg

Greedy answers; progress goes to standard error. A column per folder: the share of right answers by subject, of calls
and JSON that are well formed, and perplexity of held-out dialogues (answers alone) and of the ends of the books. Prints
a Markdown table; --json adds every wrong answer. Exits with 1 if --bars is given and a bar of the project's is missed
by the last folder.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from blackwell_infer import LLM, Sampling
from blackwell_infer.errors import BlackwellInferError
from tools.demo_model.data import books, held_out
from tools.demo_model.dialogue import Dialogue, answer_text, segments
from tools.demo_model.scorers import correct, well_formed

SUBJECTS: Mapping[str, tuple[str, ...]] = {
    "arithmetic": ("arithmetic", "reasoning"),
    "tool calls": ("tool",),
    "JSON": ("json",),
    "tool results": ("tool_answer", "tool_none"),
    "memory": ("memory",),
    "units and dates": ("units", "dates"),
    "follow-ups": ("follow",),
    "words": ("spelling", "sorting", "counting", "words", "copying"),
    "facts": ("facts",),
    "unknown and refused": ("unknown", "refusal", "identity"),
}
BARS: Mapping[str, float] = {"arithmetic": 0.95, "tool calls well formed": 0.98, "JSON well formed": 0.98}
LONGEST, WINDOW, PARALLEL = 160, 1024, 8


def messages(made: Dialogue) -> list[dict[str, str]]:
    """The conversation before the last answer. Calls are written out, as the model wrote them."""
    return [{"role": turn.role, "content": answer_text(turn)} for turn in made.turns[:-1]]


def answer(llm: LLM, made: Dialogue) -> str:
    sampling = Sampling(temperature=0, max_tokens=LONGEST)
    variables: dict[str, Any] = {"enable_thinking": made.thinking}
    if made.tools:
        variables["tools"] = [dict(tool) for tool in made.tools]
    return llm.generate(messages(made), sampling, **variables).text.strip()


def answers(llm: LLM, dialogues: Sequence[Dialogue]) -> list[str]:
    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(lambda made: answer(llm, made), dialogues))


def spoken(llm: LLM, made: Dialogue) -> tuple[list[int], list[int]]:
    """(tokens, those that the model should write)."""
    ids: list[int] = []
    own: list[int] = []
    for text, ours in segments(made):
        part = llm.tokenizer.encode(text)
        own += range(len(ids), len(ids) + len(part)) if ours else ()
        ids += part
    return ids, own


def passages(llm: LLM, folder: Path | None) -> Iterator[list[int]]:
    for text in books(folder)[1]:
        ids = llm.tokenizer.encode(text)
        yield from (ids[i : i + WINDOW] for i in range(0, min(len(ids), 4 * WINDOW), WINDOW))


def measure(
    folder: str, device: str, count: int, seed: int, corpora: Path | None, asked: Sequence[str] = tuple(SUBJECTS)
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """(figures by name, wrong answers). Perplexity is over all subjects, answers to those `asked`."""
    figures: dict[str, float] = {}
    wrong: list[dict[str, str]] = []
    with LLM(folder, device=device, max_context=2048) as llm:
        seen: list[Dialogue] = []
        for subject, kinds in SUBJECTS.items():
            made = held_out(seed, count, kinds)
            seen += made
            if subject not in asked:
                continue
            given = answers(llm, made)
            right = [correct(text, d.expect) for text, d in zip(given, made, strict=True)]
            figures[subject] = sum(right) / count
            if subject in ("tool calls", "JSON"):
                figures[f"{subject} well formed"] = (
                    sum(well_formed(text, d.expect) for text, d in zip(given, made, strict=True)) / count
                )
            wrong += [
                {"subject": subject, "asked": d.turns[-2].content, "wanted": answer_text(d.turns[-1]), "given": text}
                for text, d, ok in zip(given, made, right, strict=True)
                if not ok
            ]
            print(f"{folder}: {subject} {figures[subject]:.3f}", file=sys.stderr)
        nats = tokens = 0.0
        for d in seen:
            ids, own = spoken(llm, d)
            logprobs = llm.score(ids).logprobs
            nats, tokens = nats - float(sum(logprobs[i] for i in own)), tokens + len(own)
        figures["perplexity of answers"] = math.exp(nats / tokens)
        nats = tokens = 0.0
        for ids in passages(llm, corpora):
            logprobs = llm.score(ids).logprobs
            nats, tokens = nats - float(logprobs[1:].sum()), tokens + len(ids) - 1
        if tokens:
            figures["perplexity of books"] = math.exp(nats / tokens)
    return figures, wrong


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(rows.values())))
    lines = ["| | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]
    for name in names:
        cells = [f"{row[name]:.3f}" if "perplexity" in name else f"{100 * row[name]:.1f} %" for row in rows.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", help="checkpoints, such as bf16, FP8 and NVFP4 ones")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=200, help="dialogues of each subject")
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=list(SUBJECTS), help="those to answer")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpora", type=Path, help="folder with the books, for perplexity")
    parser.add_argument("--json", type=Path, help="file for the figures and every wrong answer")
    parser.add_argument("--bars", action="store_true", help="fail if the last folder misses a bar")
    args = parser.parse_args(argv)
    rows, wrong = {}, {}
    try:
        for folder in args.folders:
            name = Path(folder).name
            rows[name], wrong[name] = measure(folder, args.device, args.count, args.seed, args.corpora, args.subjects)
    except BlackwellInferError as error:
        print(f"score: {error}", file=sys.stderr)
        return 1
    print(table(rows))
    if args.json:
        args.json.write_text(
            json.dumps({"figures": rows, "wrong": wrong}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    last = list(rows.values())[-1]
    missed = [name for name, bar in BARS.items() if last.get(name, 1.0) < bar]
    if args.bars and missed:
        print(f"score: below the bar: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
