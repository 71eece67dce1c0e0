"""`bwinfer serve`: a model behind the OpenAI APIs."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from blackwell_infer import config
from blackwell_infer.cli.model import OPTIONAL, opened
from blackwell_infer.errors import ConfigError

SECTIONS = ("engine", "serve")
QUEUE = 256
"""Answers that may wait where `max_queue` is 0: a server must not collect work without end."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """The model."""
    parser.add_argument("model", nargs="?", default=config.DEMO, help=OPTIONAL)


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Serve until interrupted: 0."""
    try:
        from blackwell_infer.serve.host import Host
        from blackwell_infer.serve.run import listening, run
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is missing; pip install 'blackwell-infer[serve]'") from None
    listener = listening(settings.serve.host, settings.serve.port)
    engine = msgspec.structs.replace(settings.engine, max_queue=settings.engine.max_queue or QUEUE)
    with listener, opened(found.model, engine) as llm:
        name = settings.serve.served_name or Path(found.model).name
        address, port = listener.getsockname()[:2]
        print(f"serving {name} on http://{address}:{port}", file=sys.stderr, flush=True)
        run(Host(llm, name, settings.serve), listener)
    return 0
