"""A loaded model for a command, with progress bars while it loads."""
from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blackwell_infer.cli.progress import Bars
from blackwell_infer.config import EngineConfig

if TYPE_CHECKING:
    from blackwell_infer import LLM


def opened(model: str, engine: EngineConfig) -> LLM:
    """Load `model` as the settings say; close it with the context manager."""
    import blackwell_infer

    with Bars() as bars:
        return blackwell_infer.LLM(model, progress=bars, **msgspec.structs.asdict(engine))
