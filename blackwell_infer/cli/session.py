"""A conversation as plain data: what /save writes, and what each answer is asked with.

A file whose name ends in .json is the conversation as JSON. Any other holds that text as the note of a saved prefix
(`engine.saved`), beside what the model's caches know of it.
"""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from blackwell_infer import config
from blackwell_infer.errors import ConfigError, RequestError
from blackwell_infer.types import Message, Sampling

TEXT = ".json"
"""Ending of the names of files that hold the text alone"""


class Session(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`messages` without the system prompt in chat mode, `text` so far in raw mode; `sampling` holds what was set."""

    mode: Literal["chat", "raw"] = "chat"
    system: str = ""
    messages: tuple[Message, ...] = ()
    text: str = ""
    sampling: Mapping[str, Any] = {}
    model: str = ""

    def conversation(self, line: str) -> list[Message]:
        """The messages to render when `line` is what the user says next."""
        first = [Message(role="system", content=self.system)] if self.system else []
        return [*first, *self.messages, Message(role="user", content=line)]

    def answered(self, line: str, answer: str, reasoning: str) -> Session:
        """The session after an answer, whole or stopped."""
        if self.mode == "raw":
            return msgspec.structs.replace(self, text=self.text + line + answer)
        turns = (Message(role="user", content=line),
                 Message(role="assistant", content=answer, reasoning_content=reasoning or None))
        return msgspec.structs.replace(self, messages=(*self.messages, *turns))

    def emptied(self) -> Session:
        """The session without its turns; system prompt and settings stay."""
        return msgspec.structs.replace(self, messages=(), text="")

    def set(self, name: str, text: str) -> Session:
        """Set one sampling setting from its text. ConfigError names an unknown one or says what is wrong."""
        table = {s.name: s for s in config.settings_of("sampling")}
        key = name.replace("-", "_")
        if key not in table:
            raise ConfigError(f"unknown setting {name}{config.nearest(key, table)}")
        return msgspec.structs.replace(self, sampling={**self.sampling, key: config.parse(table[key], text, name)})

    def under(self, flags: Mapping[str, Mapping[str, Any]]) -> Session:
        """The session with the flags of a command line on top. RequestError if it is of the other mode."""
        chat = flags.get("chat", {})
        if chat.get("mode", self.mode) not in ("auto", self.mode):
            raise RequestError(f"the saved conversation is in {self.mode} mode, not in {chat['mode']} mode")
        return msgspec.structs.replace(self, system=chat.get("system", self.system),
                                       sampling={**self.sampling, **flags.get("sampling", {})})

    def chosen(self, default: Sampling) -> Sampling:
        """The model's default sampling with this session's settings on top."""
        return msgspec.structs.replace(default, **self.sampling)

    def text_form(self) -> bytes:
        """The session as JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n"

    def save(self, path: Path) -> None:
        """Write the session as JSON, in one move. RequestError if the file cannot be written."""
        beside = path.with_name(path.name + ".part")
        try:
            beside.write_bytes(self.text_form())
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise RequestError(f"{path}: cannot be written: {error.strerror}") from None


def holds_cache(path: Path) -> bool:
    """Whether a file is a saved prefix and not JSON: a header follows after 8 bytes. RequestError if it is missing."""
    try:
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{" and path.suffix != TEXT
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None


def load(path: Path) -> Session:
    """Read a saved session without its cache. RequestError if the file is missing or holds something else."""
    from blackwell_infer.engine.saved import note_of

    try:
        text = note_of(path).encode() if holds_cache(path) else path.read_bytes()
        saved = msgspec.json.decode(text, type=Session)
        values = config.checked(Sampling, saved.sampling, str(path))
    except OSError as error:
        raise RequestError(f"{path}: cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise RequestError(f"{path}: not a saved conversation: {error}") from None
    return msgspec.structs.replace(saved, sampling=values)
