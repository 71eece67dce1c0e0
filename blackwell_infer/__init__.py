"""LLM inference on CUDA's Python bindings and on NumPy. Names are imported on first use: importing this is quick."""
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blackwell_infer.config import EngineConfig
    from blackwell_infer.engine.jobs import Stats
    from blackwell_infer.engine.llm import LLM
    from blackwell_infer.engine.load import ModelInfo
    from blackwell_infer.engine.stream import AsyncStream, Stream
    from blackwell_infer.errors import (
        BlackwellInferError,
        CheckpointError,
        ConfigError,
        DeadlineError,
        DeviceError,
        DownloadError,
        KernelError,
        ModelOutputError,
        OutOfMemoryError,
        QueueFullError,
        RequestError,
        SessionError,
        TemplateError,
        TokenizerError,
        UnsupportedModelError,
    )
    from blackwell_infer.types import (
        Choice,
        Event,
        Grammar,
        Message,
        Output,
        Sampling,
        TokenLogprob,
        Tool,
        ToolCall,
        Usage,
    )

__all__ = [
    "LLM", "AsyncStream", "BlackwellInferError", "CheckpointError", "Choice", "ConfigError", "DeadlineError",
    "DeviceError", "DownloadError", "EngineConfig", "Event", "Grammar", "KernelError", "Message", "ModelInfo",
    "ModelOutputError", "OutOfMemoryError", "Output", "QueueFullError", "RequestError", "Sampling", "Score",
    "SessionError", "Stats", "Stream", "TemplateError", "TokenLogprob", "TokenizerError", "Tool", "ToolCall",
    "UnsupportedModelError", "Usage", "__version__",
]
__version__ = "0.1.0"

_HOMES = {
    "config": ("EngineConfig",),
    "engine.jobs": ("Stats",),
    "engine.scoring": ("Score",),
    "engine.llm": ("LLM",),
    "engine.load": ("ModelInfo",),
    "engine.stream": ("AsyncStream", "Stream"),
    "errors": ("BlackwellInferError", "CheckpointError", "ConfigError", "DeadlineError", "DeviceError",
               "DownloadError", "KernelError", "ModelOutputError", "OutOfMemoryError", "QueueFullError",
               "RequestError", "SessionError", "TemplateError", "TokenizerError", "UnsupportedModelError"),
    "types": ("Choice", "Event", "Grammar", "Message", "Output", "Sampling", "TokenLogprob", "Tool", "ToolCall",
              "Usage"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
