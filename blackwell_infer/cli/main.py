"""The `bwinfer` command: finds the subcommand, resolves settings, and turns typed errors into one line and a status.

Exit status: 0 done, 1 a typed error, 2 wrong usage, 130 interrupted.
"""
from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from blackwell_infer import config
from blackwell_infer.cli.flags import Parser, UsageError, add, collect
from blackwell_infer.cli.screen import one_line
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.log import logger

COMMANDS = {
    "chat": "talk to a model in the terminal",
    "run": "answer one prompt and exit",
    "serve": "serve a model over HTTP, as OpenAI's clients expect it",
    "info": "show devices, and what a model holds and whether it fits",
    "bench": "measure how fast a model is, and where a decode step spends its time",
    "tokenize": "turn text into token ids, or ids into text",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    prepare_streams()
    try:
        return dispatch(words)
    except BlackwellInferError as error:
        if "--debug" in words:
            raise
        print(one_line(error), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        drop_output()  # the reader has seen enough
        return 0
    except OSError as error:
        if "--debug" in words:
            raise
        drop_output()
        place = "standard output or input" if error.filename is None else error.filename
        print(f"bwinfer: {place}: {error.strerror or error}", file=sys.stderr)
        return 1


def prepare_streams() -> None:
    """Standard streams that a caller closed become empty ones, and none of them fails for an encoding.

    What stdin holds beside valid text is refused where it is encoded; what a terminal cannot show is escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (it stays open)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if mode == "r" else "backslashreplace")


def drop_output() -> None:
    """Send the rest of standard output nowhere: Python would complain once more when it flushes at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:  # no file stands behind it
        return


def dispatch(words: list[str]) -> int:
    """Print help or the version, or run the subcommand that the first word names."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"bwinfer {installed_version()}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise UsageError(f"unknown command {name}{config.nearest(name, COMMANDS)}; see bwinfer --help")
    command = importlib.import_module(f"blackwell_infer.cli.{name}")
    parser = Parser(prog=f"bwinfer {name}", description=COMMANDS[name], epilog=EPILOG)
    command.arguments(parser)
    parser.add_argument("--config", type=Path, metavar="FILE",
                        help="read this file instead of the nearest bwinfer.toml")
    parser.add_argument("--verbose", action="store_true", help="log what happens to standard error")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add(parser, command.SECTIONS)
    found = parser.read(rest)
    report(logging.INFO if found.verbose else logging.WARNING)
    settings = config.load(collect(found), path=found.config)
    try:
        status: int = command.main(found, settings)
    finally:
        sys.stdout.flush()
    return status


EPILOG = """Settings may also stand in bwinfer.toml (the nearest upward from here, else the user's) under [engine],
[sampling], [chat] and [serve], or in variables such as BWINFER_MAX_CONTEXT. Flags win over variables, variables over
files."""


def overview() -> str:
    """Text of `bwinfer --help`."""
    lines = ["usage: bwinfer COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<10}{about}" for name, about in COMMANDS.items()]
    lines += ["", "`bwinfer COMMAND --help` lists the options of a command; `bwinfer --version` prints the version."]
    return "\n".join(lines)


def installed_version() -> str:
    """Version of the installed distribution."""
    try:
        return version("blackwell-infer")
    except PackageNotFoundError:
        return "(not installed)"


def report(level: int) -> None:
    """Send the package's log lines to standard error, once per process."""
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("bwinfer: %(message)s"))
        logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
