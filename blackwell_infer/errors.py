"""Typed errors. Each message says what is wrong, where, and what to do; the command line prints it as one line."""
from __future__ import annotations

from typing import Any


class BlackwellInferError(Exception):
    """Base of every error that this package raises on purpose.

    `partial` holds what was generated before the failure: one `types.Output` per prompt, if it ended `LLM.generate`.
    """

    partial: tuple[Any, ...] = ()


class ConfigError(BlackwellInferError):
    """A setting, an option or an environment variable is unknown or out of range."""


class CheckpointError(BlackwellInferError):
    """A model file is missing, truncated, corrupt, or holds something unexpected."""


class UnsupportedModelError(CheckpointError):
    """The architecture, tensor type or quantisation is not one that this package knows."""


class DownloadError(BlackwellInferError):
    """A model could not be fetched: no such repository or file, no access, no space, no network."""


class TokenizerError(BlackwellInferError):
    """The vocabulary is missing, malformed or of an unknown kind."""


class TemplateError(BlackwellInferError):
    """A chat template is missing, malformed, or raised an error for these messages."""


class RequestError(BlackwellInferError, ValueError):
    """A request cannot be served as asked: a prompt too long, a setting out of range, an empty prompt."""


class SessionError(RequestError):
    """A saved session is damaged, or belongs to another model, to other settings or to another version."""


class DeviceError(BlackwellInferError):
    """No usable device, a driver too old, or a launch that the device refused."""


class OutOfMemoryError(DeviceError):
    """The model, the cache or a step does not fit; the message gives bytes needed and available."""


class KernelError(BlackwellInferError):
    """A kernel source does not compile, or no kernel exists for this op, type and architecture."""


class QueueFullError(RequestError):
    """As many requests wait as may (`max_queue`); nothing was started. The same request may find room later."""


class DeadlineError(BlackwellInferError):
    """A request did not end in the time that it was given; what was said until then was handed out."""


class ModelOutputError(BlackwellInferError):
    """The model produced no usable distribution (all logits NaN or infinite), or the grammar of an answer failed."""
