"""Writes the table of settings into docs/cli.md from the structs. `--check` only compares (a test does).

    python tools/docs.py [--check]
"""
from __future__ import annotations

import sys
from pathlib import Path

from blackwell_infer import config
from blackwell_infer.cli.flags import shown_default

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
BEGIN, END = "<!-- settings -->\n", "<!-- end of settings -->\n"


def table() -> str:
    """The settings of every section as Markdown."""
    lines = []
    for section in config.SECTIONS:
        lines += [f"### [{section}]", "", "| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{s.name}` | {shown_default(s)} | {s.help} |" for s in config.settings_of(section)]
        lines.append("")
    lines.append("What is not set of [sampling] follows the model's `generation_config.json`, else the defaults above.")
    return "\n".join(lines) + "\n"


def renewed(page: str) -> str:
    """The page with a fresh table between its marks."""
    head, _, rest = page.partition(BEGIN)
    return head + BEGIN + table() + END + rest.partition(END)[2]


def main(argv: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in argv:
        return 0 if renewed(page) == page else 1
    PAGE.write_text(renewed(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
