"""Proof of structured output over the JSON Schema Test Suite, with a random walk through the masks in place of a model.

    python tools/schema_suite.py [--suite FOLDER] [--samples 4] [--table]

Every schema of the suite is either refused, naming the keyword, or accepted; then each sample has to be valid, judged
by `jsonschema`. Prints the accepted share, what was refused for which keyword, and each failure; the exit status is 1
if there is one. `--table` prints Markdown for docs/structured_output.md.
"""
from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.errors import RequestError
from blackwell_infer.text.folder import tokenizer_from_folder
from blackwell_infer.text.grammar import Compiler
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Grammar, Matcher

SUITE = Path(__file__).resolve().parents[2] / "shared" / "data" / "json-schema" / "JSON-Schema-Test-Suite" / "tests"
DEMO = Path(__file__).resolve().parents[1] / "blackwell_infer" / "demo"
DRAFTS = ("draft7", "draft2020-12")
LONGEST = 400
"""Tokens after which a walk is given up; it takes short ways from half of them on"""

CLOSING = ("\n</parameter>\n", '<|"|>')


class Report(msgspec.Struct):
    """What came of the suite: failures as (draft, file, schema, answer, why)."""

    schemas: int = 0
    accepted: int = 0
    samples: int = 0
    unfinished: int = 0
    unjudged: int = 0
    """samples of schemas with a pattern that the judge cannot read"""
    refused: Counter[str] = msgspec.field(default_factory=Counter)
    failures: list[tuple[str, str, str, str, str]] = []


class Walk:
    """Random answers through masks: a seed gives the same ones."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._short = np.zeros(tokenizer.size, bool)
        for i in range(tokenizer.size):
            piece = tokenizer.piece(i)
            self._short[i] = len(piece) == 1 and piece in b'"}],:0123456789truefalsn<>|'
        self._stops = np.zeros(tokenizer.size, bool)
        self._stops[list(tokenizer.stop_ids)] = True

    def answer(self, matcher: Matcher, rng: random.Random, longest: int = LONGEST) -> str | None:
        """A text that the grammar allows; None if none was finished."""
        words = np.zeros((self._tokenizer.size + 31) // 32, np.uint32)
        ids: list[int] = []
        while len(ids) < longest:
            if rng.random() < (0.5 if len(ids) > longest // 2 else 0.05):
                ids += self._close(matcher, rng)
            matcher.mask(words)
            allowed = np.unpackbits(words.view(np.uint8), bitorder="little")[:self._tokenizer.size].astype(bool)
            assert allowed.any(), "an empty mask"
            late = len(ids) > longest // 2
            if (allowed & self._stops).any() and (late or rng.random() < 0.5 or not (allowed & ~self._stops).any()):
                return self._tokenizer.decode(ids)
            allowed &= ~self._stops
            short = allowed & self._short
            if short.any() and (late or rng.random() < 0.5):
                quote = self._tokenizer.encode('"', bos=False)[0]
                allowed = short
                if late and short[quote] and rng.random() < 0.5:
                    allowed = np.zeros_like(short)
                    allowed[quote] = True
            token = rng.choice(np.flatnonzero(allowed).tolist())
            assert matcher.accept((token,)) == 1, "a token of the mask was refused"
            ids.append(token)
        return None

    def _close(self, matcher: Matcher, rng: random.Random) -> tuple[int, ...]:
        """The end of a text without quotes, if it may stand here."""
        for text in rng.sample(CLOSING, len(CLOSING)):
            end = tuple(self._tokenizer.encode(text, bos=False))
            taken = matcher.accept(end)
            if taken == len(end):
                return end
            matcher.rollback(taken)
        return ()


def cases(suite: Path, draft: str) -> Iterator[tuple[str, Any]]:
    """(file, schema) of a draft, without those of optional behaviour."""
    for path in sorted((suite / draft).glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")):
            yield path.stem, case["schema"]


def keyword(error: RequestError) -> str:
    """The keyword that a refusal names, or what else it says."""
    text = str(error)
    named = re.search(r"schema keyword '([^']+)'", text)
    reason = text.partition("refused: ")[2].partition(";")[0].splitlines()
    if reason and reason[0].startswith("Unsatisfiable"):
        return "no value can satisfy it"
    return f"`{named[1]}`" if named else "".join(reason) or text


def judge(draft: str, schema: Any) -> Callable[[Any], str | None]:
    """What is wrong with a value, by the rules of a draft; formats count."""
    import jsonschema

    kind = {"draft7": jsonschema.Draft7Validator, "draft2020-12": jsonschema.Draft202012Validator}[draft]
    validator = kind(schema, format_checker=kind.FORMAT_CHECKER)

    def wrong(value: Any) -> str | None:
        error = next(iter(validator.iter_errors(value)), None)
        return None if error is None else error.message

    return wrong


def examine(report: Report, draft: str, file: str, schema: Any, compiler: Compiler, tokenizer: Tokenizer, samples: int,
            walk: Walk) -> None:
    """Try one schema and add what came of it."""
    report.schemas += 1
    text = json.dumps(schema)
    try:
        make = compiler.compile(tokenizer, Grammar("json_schema", text), tokenizer.size)
    except RequestError as error:
        report.refused[keyword(error)] += 1
        return
    report.accepted += 1
    wrong = judge(draft, schema)
    for seed in range(samples):
        answer = walk.answer(make(), random.Random(seed))
        report.samples += 1
        if answer is None:
            report.unfinished += 1
            continue
        try:
            fault = wrong(json.loads(answer))
        except ValueError as error:
            fault = f"no JSON: {error}"
        except re.error:
            report.unjudged += 1
            continue
        if fault is not None:
            report.failures.append((draft, file, text, answer, fault))


def run(suite: Path, samples: int, every: int = 1) -> dict[str, Report]:
    """A report per draft, over every so many-th schema."""
    tokenizer = tokenizer_from_folder(DEMO, {})
    compiler, walk = Compiler(), Walk(tokenizer)
    reports = {}
    for draft in DRAFTS:
        reports[draft] = Report()
        for file, schema in list(cases(suite, draft))[::every]:
            examine(reports[draft], draft, file, schema, compiler, tokenizer, samples, walk)
    return reports


def table(reports: dict[str, Report]) -> str:
    """The reports as Markdown."""
    lines = ["| draft | schemas | accepted | samples | not ended after 400 tokens | not judged | invalid |",
             "|---|---|---|---|---|---|---|"]
    for draft, r in reports.items():
        lines.append(f"| {draft} | {r.schemas} | {r.accepted} ({100 * r.accepted / r.schemas:.0f} %) | {r.samples} | "
                     f"{r.unfinished} | {r.unjudged} | {len(r.failures)} |")
    names = sorted({name for r in reports.values() for name in r.refused})
    lines += ["", "| refused for | " + " | ".join(reports) + " |", "|---|" + "---|" * len(reports)]
    lines += [f"| {name} | " + " | ".join(str(r.refused[name]) for r in reports.values()) + " |" for name in names]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Structured output over the JSON Schema Test Suite.")
    parser.add_argument("--suite", type=Path, default=SUITE)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--table", action="store_true")
    found = parser.parse_args(argv)
    reports = run(found.suite, found.samples)
    print(table(reports))
    failures = [failure for r in reports.values() for failure in r.failures]
    if not found.table:
        for failure in failures:
            print(" | ".join(failure))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
