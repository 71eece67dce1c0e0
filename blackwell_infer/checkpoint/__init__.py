"""Model files of either container, in one spelling: `open_checkpoint` reads, `resolve` finds or downloads."""
from __future__ import annotations

from blackwell_infer.checkpoint.hub import resolve
from blackwell_infer.checkpoint.open import open_checkpoint
from blackwell_infer.checkpoint.reader import Checkpoint, TensorInfo, located

__all__ = ["Checkpoint", "TensorInfo", "located", "open_checkpoint", "resolve"]
