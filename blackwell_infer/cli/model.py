"""A loaded model for a command, with progress bars while it loads."""
from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from blackwell_infer.cli.progress import Bars
from blackwell_infer.config import DEMO, EngineConfig

if TYPE_CHECKING:
    from blackwell_infer import LLM


NAMES = (f"a GGUF file, a Hugging Face folder, a hub id (org/name or org/name:file.gguf), or {DEMO}: the small model "
         "that comes along")
"""What a command takes for a model."""
OPTIONAL = f"{NAMES} (the default)"


def opened(model: str, engine: EngineConfig) -> LLM:
    """Load `model` as the settings say; close it with the context manager."""
    import blackwell_infer

    with Bars() as bars:
        return blackwell_infer.LLM(model, progress=bars, **msgspec.structs.asdict(engine))
