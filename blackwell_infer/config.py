"""Settings. The only reader of BWINFER_* variables and of bwinfer.toml; command-line flags come from these structs."""
from __future__ import annotations

import msgspec


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is loaded and served. Every field is an `LLM` keyword, a flag, a bwinfer.toml key and a variable."""

    device: str = "auto"
    """auto, cuda, cuda:N or numpy; auto takes the first usable GPU"""
    dtype: str = "auto"
    """auto, float32, float16 or bfloat16: the type of activations and of the KV cache"""
    max_context: int = 0
    """longest prompt plus answer in tokens; 0 takes the model's own limit, or what fits"""
    max_batch: int = 32
    """most requests that run at once"""
    max_step_tokens: int = 4096
    """most tokens of one step; longer prompts are prefilled in chunks"""
    kv_pages: int = 0
    """pages of the KV cache, 32 tokens each; 0 takes what the context and the batch need, or what fits"""
    revision: str = "main"
    """branch, tag or commit of a hub model"""
