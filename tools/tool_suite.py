"""Proof of enforced tool calls over the Berkeley Function Calling Leaderboard's functions, in every dialect.

    python tools/tool_suite.py [--data FOLDER] [--every 1]

For each case of `simple` and `multiple` and each dialect, a random walk through the masks writes calls (required, the
first tool by name, and auto behind the dialect's opening marker); the dialect's parser has to read calls of known tools
whose arguments are valid JSON of the tool's schema, judged by `jsonschema`. The exit status is 1 if one is not.
"""
from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from schema_suite import DEMO, Walk

from blackwell_infer.errors import RequestError
from blackwell_infer.text.folder import tokenizer_from_folder
from blackwell_infer.text.grammar import Compiler
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.text.tools import DIALECTS, CallArguments, CallStart, Dialect, Named, ToolChoice
from blackwell_infer.types import Grammar, Tool

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "tools" / "bfcl"
FILES = ("BFCL_v4_simple_python.json", "BFCL_v4_multiple.json")
NAMES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
"""Types of the data that JSON Schema names otherwise"""


class Report(msgspec.Struct):
    """What came of one dialect."""

    answers: int = 0
    calls: int = 0
    unfinished: int = 0
    refused: list[str] = []
    failures: list[str] = []


def standard(schema: Any) -> Any:
    """A schema of the data in the standard's words."""
    if isinstance(schema, list):
        return [standard(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: standard(value) for key, value in schema.items() if key not in ("optional", "default")}
    if isinstance(kind := result.get("type"), str):
        result["type"] = NAMES.get(kind, kind)
        if result["type"] is None:
            del result["type"]
    return result


def cases(data: Path) -> Iterator[tuple[Tool, ...]]:
    """The tools of each case."""
    for file in FILES:
        for line in (data / file).read_text(encoding="utf-8").splitlines():
            functions = json.loads(line)["function"]
            yield tuple(Tool(name=f["name"], description=f["description"], parameters=standard(f["parameters"]))
                        for f in functions)


def faults(dialect: Dialect, tools: tuple[Tool, ...], answer: str) -> tuple[int, list[str]]:
    """How many calls an answer makes and what is wrong with them."""
    import jsonschema

    parser = dialect.Parser(tools)
    names: list[str] = []
    texts: list[str] = []
    for piece in (*parser.push(answer), *parser.flush()):
        if isinstance(piece, CallStart):
            names.append(piece.name)
            texts.append("")
        elif isinstance(piece, CallArguments):
            texts[piece.index] += piece.delta
    known = {tool.name: tool for tool in tools}
    wrong = [] if names else ["no call"]
    for name, text in zip(names, texts, strict=True):
        try:
            jsonschema.validate(json.loads(text), {"type": "object", **known[name].parameters})
        except (KeyError, ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"{name} {text}: {error}")
    return len(names), wrong


def examine(report: Report, dialect: Dialect, tools: tuple[Tool, ...], compiler: Compiler, tokenizer: Tokenizer,
            walk: Walk, seed: int) -> None:
    """One case: three answers."""
    choices: tuple[ToolChoice, ...] = ("required", Named(tools[0].name), "auto")
    for choice in choices:
        try:
            grammar = dialect.grammar(tools, choice, True, None, False)
            assert grammar is not None
            matcher = compiler.compile(tokenizer, grammar, tokenizer.size)()
        except RequestError as error:
            report.refused.append(f"{tools[0].name}: {error}")
            continue
        opening = opener(grammar) if choice == "auto" else ""
        ids = tuple(tokenizer.encode(opening, bos=False))
        assert matcher.accept(ids) == len(ids)
        answer = walk.answer(matcher, random.Random(seed), 800)
        report.answers += 1
        if answer is None:
            report.unfinished += 1
            continue
        calls, wrong = faults(dialect, tools, opening + answer)
        report.calls += calls
        report.failures += [f"{text}\n    in {opening + answer!r}" for text in wrong]


def opener(grammar: Grammar) -> str:
    """The text after which an answer of this grammar must go on as a call."""
    line = next((line for line in grammar.text.splitlines() if line.startswith("BEFORE: ")), "")
    return "I look. " + json.loads(line[line.rindex(' "') + 1:]) if line else '{"name"'


def run(data: Path, every: int = 1) -> dict[str, Report]:
    """A report per dialect, over every so many-th case."""
    tokenizer = tokenizer_from_folder(DEMO, {})
    walk = Walk(tokenizer)
    reports: dict[str, Report] = {}
    for dialect in DIALECTS:
        name = dialect.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
        report = reports[name] = Report()
        for seed, tools in enumerate(list(cases(data))[::every]):
            examine(report, dialect, tools, Compiler(), tokenizer, walk, seed)
    return reports


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Enforced tool calls over the BFCL functions.")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--every", type=int, default=1)
    found = parser.parse_args(argv)
    reports = run(found.data, found.every)
    print("| dialect | answers | calls | not ended | refused | invalid |\n|---|---|---|---|---|---|")
    for name, r in reports.items():
        print(f"| {name} | {r.answers} | {r.calls} | {r.unfinished} | {len(r.refused)} | {len(r.failures)} |")
    for name, r in reports.items():
        for text in (*sorted(set(r.refused)), *r.failures):
            print(name, text)
    return 1 if any(r.failures for r in reports.values()) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
