"""How much context and how many cache pages fit: arithmetic over bytes, before anything is loaded."""
from __future__ import annotations

import msgspec

from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.scheduler import pages_for
from blackwell_infer.errors import ConfigError, OutOfMemoryError
from blackwell_infer.kv.spec import PAGE

USABLE = 0.9
"""Share of what is free beside weights and workspace that the cache takes: the driver needs some for kernels."""
KEPT_SHARE = 4
"""One part in so many of what is left beside the pages that are asked for may go to recurrent states that are kept"""
HOST_CONTEXT = 4096
"""Longest context that NumPy takes when none is asked for: attention there is slow, and its cache is main memory."""


class Room(msgspec.Struct, frozen=True):
    """Bytes on a backend: free now, and what the model takes besides its cache. `page` is one page of all layers,
    `states` the recurrent states of as many sequences as may run and those that are kept. `kept` of `slot` bytes each
    are wanted for the prefix cache."""

    free: int
    total: int
    weights: int
    workspace: int
    page: int
    states: int = 0
    kept: int = 0
    slot: int = 0

    def with_kept(self, pages: int) -> tuple[Room, int]:
        """The room beside as many kept states as are wanted and as may be beside so many pages, and their number."""
        most = max(self.left - pages * self.page, 0) // KEPT_SHARE // self.slot if self.slot else 0
        count = min(self.kept, most)
        return msgspec.structs.replace(self, states=self.states + count * self.slot), count

    @property
    def left(self) -> int:
        """Bytes for the cache."""
        return int((self.free - self.weights - self.workspace - self.states) * USABLE)

    @property
    def beside(self) -> str:
        """What stands beside the cache, for messages."""
        states = f", {size(self.states)} of recurrent states" if self.states else ""
        return f"{size(self.weights)} of weights{states} and {size(self.workspace)} of workspace"


class Capacity(msgspec.Struct, frozen=True):
    """The chosen context in tokens, pages of the cache, and recurrent states that are kept beside."""

    context: int
    pages: int
    states: int = 0


def wanted_context(config: EngineConfig, model_limit: int, on_host: bool) -> int:
    """The context to aim at. ConfigError if more is asked for than the model was made for."""
    if config.max_context > model_limit:
        raise ConfigError(f"max_context = {config.max_context}: the model's own limit is {model_limit} tokens; "
                          "ask for no more, or 0 for that limit")
    if config.max_context:
        return config.max_context
    return min(model_limit, HOST_CONTEXT) if on_host else model_limit


def fit(config: EngineConfig, context: int, room: Room) -> Capacity:
    """Choose pages and kept states, and shorten a context that was not asked for. OutOfMemoryError says what is needed
    and free."""
    room, kept = room.with_kept(config.kv_pages or max(pages_for(config.max_context), 1))
    fitting = max(room.left, 0) // room.page
    if room.left < room.page:
        remedy = "lower max_context, max_step_tokens or max_batch, take a smaller quantisation, or free memory"
        if room.weights > room.free:
            remedy = ("the weights alone (with the table of positions of the context) are too large: take a smaller "
                      "model or quantisation (NumPy holds every weight as float32), lower max_context, or free memory")
        states = f", recurrent states of max_batch sequences {size(room.states)}" if room.states else ""
        raise OutOfMemoryError(
            f"the model does not fit: weights {size(room.weights)}{states}, workspace of a step {size(room.workspace)} "
            f"and one page of cache {size(room.page)} are needed, {size(room.free)} of {size(room.total)} are free; "
            f"{remedy}")
    if config.kv_pages:
        if config.kv_pages > fitting:
            raise OutOfMemoryError(
                f"kv_pages = {config.kv_pages} does not fit: the cache would take {size(config.kv_pages * room.page)} "
                f"beside {room.beside}, {size(room.left)} are left of {size(room.free)} free; at most kv_pages = "
                f"{fitting} fit")
        return Capacity(bounded(config, context, config.kv_pages), config.kv_pages, kept)
    need = pages_for(context)
    if need > fitting and config.max_context:
        raise OutOfMemoryError(
            f"max_context = {context} does not fit: its cache takes {size(need * room.page)} beside {room.beside}, "
            f"{size(room.left)} are left of {size(room.free)} free; at most max_context = {fitting * PAGE} fits, or "
            "take a smaller quantisation")
    pages = min(config.max_batch * need, fitting)
    return Capacity(min(context, pages * PAGE), pages, kept)


def bounded(config: EngineConfig, context: int, pages: int) -> int:
    """The context that so many pages hold. ConfigError if a longer one was asked for."""
    if config.max_context > pages * PAGE:
        raise ConfigError(f"kv_pages = {pages} holds {pages * PAGE} tokens, fewer than "
                          f"max_context = {config.max_context}; raise kv_pages to "
                          f"{pages_for(config.max_context)} or lower max_context")
    return min(context, pages * PAGE)


def size(count: int) -> str:
    """Bytes exactly, and in units that people read."""
    return f"{count} bytes ({count / 2**30:.2f} GiB)"
