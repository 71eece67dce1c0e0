"""How much context and how many pages fit, and what is said where they do not."""
from __future__ import annotations

from typing import Any

import msgspec
import pytest

from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.capacity import Room, fit, wanted_context
from blackwell_infer.errors import ConfigError, OutOfMemoryError


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(**settings)


def test_capacity_takes_what_is_needed_or_what_fits() -> None:
    room = Room(free=10_000_000, total=20_000_000, weights=4_000_000, workspace=1_000_000, page=1000)
    assert fit(config(max_batch=4), 3200, room) == fit(config(max_batch=4, max_context=3200), 3200, room)
    assert fit(config(max_batch=4), 3200, room).pages == 400
    assert fit(config(max_batch=32), 32 * 1000, room).pages == 4500, "90 % of what is left"
    tight = fit(config(), 32 * 10_000, room)
    assert (tight.pages, tight.context) == (4500, 4500 * 32), "a context that was not asked for shrinks"
    assert fit(config(kv_pages=7), 32 * 10, room).context == 7 * 32
    assert wanted_context(config(), 131072, on_host=True) == 4096
    assert wanted_context(config(), 131072, on_host=False) == 131072


@pytest.mark.parametrize(("settings", "context", "free", "error", "message"), [
    ({}, 320, 4_500_000, OutOfMemoryError, "does not fit: weights 4000000 bytes.*4500000 bytes.*lower max_context"),
    ({}, 320, 3_500_000, OutOfMemoryError, "3500000 bytes.*weights alone .*too large: take a smaller model"),
    ({"max_context": 320_000}, 320_000, 10_000_000, OutOfMemoryError, "at most max_context = 144000 fits"),
    ({"kv_pages": 9000}, 320, 10_000_000, OutOfMemoryError, "at most kv_pages = 4500 fit"),
    ({"kv_pages": 5, "max_context": 320}, 320, 10_000_000, ConfigError, "raise kv_pages to 10"),
])
def test_what_does_not_fit_is_said(settings: Any, context: int, free: int, error: type, message: str) -> None:
    room = Room(free=free, total=20_000_000, weights=4_000_000, workspace=1_000_000, page=1000)
    with pytest.raises(error, match=message):
        fit(config(**settings), context, room)


def test_kept_states_take_what_pages_leave() -> None:
    room = Room(free=10_000_000, total=20_000_000, weights=4_000_000, workspace=1_000_000, page=1000, states=500_000,
                kept=20, slot=50_000)
    assert fit(config(), 32 * 10_000, room).states == 20
    assert fit(config(), 32 * 10_000, room).pages == 3150, "90 % of what is left"
    more = msgspec.structs.replace(room, kept=100)
    assert fit(config(), 3200, more).states == 20, "a quarter of 4.05 MB"
    assert fit(config(kv_pages=3650), 3200, more).states == fit(config(max_context=116800), 116800, more).states == 2
    assert fit(config(kv_pages=4050), 3200, more).states == 0, "pages that are asked for go first"
    assert fit(config(), 320, msgspec.structs.replace(room, kept=0, slot=0)).states == 0
    with pytest.raises(OutOfMemoryError, match="at most kv_pages = 4050 fit"):
        fit(config(kv_pages=4051), 3200, more)


def test_more_context_than_the_model_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_context = 999: the model's own limit is 256"):
        wanted_context(config(max_context=999), 256, on_host=True)
