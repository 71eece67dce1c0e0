"""Shape of a paged KV cache and the handles that ops write to."""
from __future__ import annotations

import msgspec

from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.types import Array

PAGE = 32
"""Tokens of one page. A multiple of every attention tile's key step; prefix reuse is counted in whole pages."""


class CacheSpec(msgspec.Struct, frozen=True):
    """KV geometry of one attention layer. `format` selects the storage ("f32", "f16", "bf16"); a query sees the last
    `window` keys, 0 for all."""

    kv_heads: int
    head_dim: int
    format: str
    window: int = 0

    def page_bytes(self, itemsize: int) -> int:
        """Bytes that one page of this layer takes."""
        return 2 * self.kv_heads * PAGE * self.head_dim * itemsize


class PagedKV(msgspec.Struct, frozen=True):
    """One layer's cache: `data` [pages, 2, kv_heads, PAGE, head_dim]; index 0 of axis 1 is K (rotated), 1 is V.

    Token at position p of a row lives in page `batch.pages[row, p // PAGE]`, offset `p % PAGE`.
    """

    format: str
    data: Array


class KVState(msgspec.Struct, frozen=True):
    """The caches of all attention layers, in layer order; one page number means the same page in every layer.

    `recurrent` are the states of the recurrent layers, in layer order; a slot means the same slot in every layer.
    """

    layers: tuple[PagedKV, ...]
    recurrent: tuple[Recurrent, ...] = ()
