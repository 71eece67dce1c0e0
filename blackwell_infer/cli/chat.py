"""`bwinfer chat`: a conversation in the terminal, or scripted through standard input."""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from blackwell_infer import config
from blackwell_infer.cli import prompt, session
from blackwell_infer.cli.flags import collect
from blackwell_infer.cli.model import OPTIONAL, opened
from blackwell_infer.cli.screen import Screen, one_line
from blackwell_infer.cli.session import Session
from blackwell_infer.errors import BlackwellInferError, RequestError, TemplateError
from blackwell_infer.log import logger
from blackwell_infer.types import Event, Usage

if TYPE_CHECKING:
    from blackwell_infer import LLM, Stream

SECTIONS = ("engine", "sampling", "chat")
PROBE = "x"
"""Stands for what the user says next, when it is asked how much of the conversation is in the cache"""
UNUSED_SYSTEM = "the system prompt is not used: without a chat template the text stands for itself"
SINGLE = "n is not used: a conversation goes on with one answer"
HELP = """/system [TEXT]    show or set the system prompt
/reset            forget the conversation, keep the system prompt and the settings
/save FILE        write the conversation and what the model's caches hold of it; the text alone if FILE ends in .json
/load FILE        continue a saved conversation, without reading it again if its cache was saved
/load-text FILE   the same without its cache: with another model, or if the cache is damaged
/set [KEY VALUE]  show or set a sampling setting (temperature, top_p, max_tokens, seed ...)
/stats            counters of the engine and of the last answer
/help             this list
/quit             leave (Ctrl-D, or Ctrl-C twice, too)
Alt-Enter or a backslash at the end of a line continues it; \"\"\" opens and closes a text of several lines.
Ctrl-C stops an answer and keeps the conversation."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand, and the short spellings of --mode."""
    parser.add_argument("model", nargs="?", default=config.DEMO, help=OPTIONAL)
    parser.add_argument("--load", type=Path, metavar="FILE", help="continue a conversation that /save wrote")
    parser.add_argument("--load-text", type=Path, metavar="FILE", help="the same without its cache")
    parser.add_argument("--raw", dest="chat.mode", action="store_const", const="raw", default=argparse.SUPPRESS,
                        help="the same as --mode raw: continue the text, without a chat template")


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Run the conversation until the input ends; 1 if it was scripted and something in it failed.

    TemplateError: the model has no chat template and --raw is absent.
    """
    start = Session(mode="raw" if settings.chat.mode == "raw" else "chat", system=settings.chat.system,
                    sampling=settings.sampling, model=found.model)
    file = found.load or found.load_text
    if file is not None:
        start = session.load(file).under(collect(found))
    with opened(found.model, settings.engine) as llm:
        if start.mode == "chat" and llm.template is None:
            raise TemplateError(f"{found.model}: the model has no chat template; with --raw it continues your text")
        if start.mode == "raw" and settings.chat.system:
            logger.warning(UNUSED_SYSTEM)
        if start.chosen(llm.default_sampling).n > 1:
            logger.warning(SINGLE)
        chat = Chat(llm, start, Screen(reasoning=settings.chat.show_reasoning))
        if found.load is not None:
            chat.bring_cache(found.load, "--load-text")
        if not sys.stdin.isatty():
            return chat.run(prompt.piped) or int(chat.failed)
        read = prompt.terminal(config.state_home() / "history", chat.status)
        chat.screen.note(f"{found.model} on {llm.info().device}; /help lists the commands")
        return chat.run(read)


class Chat:
    """The loop: reads entries, runs commands, streams answers. All state is `session`, the last answer's `usage`, and
    whether anything `failed`."""

    def __init__(self, llm: LLM, start: Session, screen: Screen) -> None:
        self.llm = llm
        self.session = start
        self.screen = screen
        self.usage: Usage | None = None
        self.failed = False
        self.commands: Mapping[str, Callable[[str], None]] = {
            "system": self.system, "reset": self.reset, "save": self.save, "load": self.load,
            "load-text": self.load_text, "set": self.set,
            "stats": self.stats, "help": self.help,
        }

    def run(self, read: prompt.Read) -> int:
        """Read entries until the input ends or the user leaves: 0, or 130 after two Ctrl-C at the prompt."""
        interrupted = False
        while True:
            try:
                line = prompt.entry(read)
            except EOFError:
                return 0
            except KeyboardInterrupt:
                if interrupted:
                    return 130
                interrupted = True
                self.screen.note("Ctrl-C again or Ctrl-D leaves")
                continue
            interrupted = False
            if line.strip() in ("/quit", "/exit"):
                return 0
            try:
                self.take(line)
            except BlackwellInferError as error:
                self.fail(error)
            except KeyboardInterrupt:
                self.screen.note("[stopped]")

    def fail(self, error: object) -> None:
        """Say what went wrong; the conversation goes on."""
        self.failed = True
        self.screen.note(one_line(error))

    def take(self, line: str) -> None:
        """Run a command, or answer. An empty line asks for nothing, except in raw mode, where it means: go on."""
        if line.startswith("/"):
            name, _, rest = line[1:].partition(" ")
            if name not in self.commands:
                known = [*self.commands, "quit"]
                raise RequestError(f"unknown command /{name}{config.nearest(name, known)}")
            self.commands[name](rest.strip())
        elif line.strip() or (self.session.mode == "raw" and self.session.text):
            self.answer(line)

    def answer(self, line: str) -> None:
        """Stream one answer. Ctrl-C stops it; what came is kept. A refused request leaves the session as it was."""
        sampling = msgspec.structs.replace(self.session.chosen(self.llm.default_sampling), n=1)
        if self.session.mode == "raw":
            events = self.llm.stream(self.session.text + line, sampling)
        else:
            events = self.llm.stream(messages=self.session.conversation(line), sampling=sampling)
        text: list[str] = []
        thoughts: list[str] = []
        reason, failure = "cancelled", None
        try:
            for event in uninterrupted(events, self.llm.cancel):
                thoughts.append(event.reasoning)
                text.append(event.text)
                self.usage = event.usage or self.usage
                reason = event.finish_reason or reason
                failure = event.error or failure
                self.screen.thought(event.reasoning)
                self.screen.answer(event.text)
        except KeyboardInterrupt:
            events.close()
        finally:
            self.screen.end()
            if any(text) or any(thoughts):
                self.session = self.session.answered(line, "".join(text), "".join(thoughts))
        remark = {"length": "stopped at max_tokens or at the end of the context", "cancelled": "stopped"}
        if failure is not None:
            self.fail(failure)
        elif reason in remark:
            self.screen.note(f"[{remark[reason]}]")

    def status(self) -> str:
        """The status line: speed of the last answer and use of the context."""
        if self.usage is None:
            return "no answer yet"
        used = self.usage.prompt_tokens + self.usage.completion_tokens
        room = self.llm.info().max_context
        return f"{speed(self.usage)}   context {used} of {room} tokens ({100 * used // room} %)"

    def system(self, text: str) -> None:
        if self.session.mode == "raw":
            raise RequestError("raw mode has no system prompt: the text stands for itself")
        if text:
            self.session = msgspec.structs.replace(self.session, system=text)
        self.screen.note(f"system prompt: {self.session.system or '(none)'}")

    def reset(self, _: str) -> None:
        self.session = self.session.emptied()
        self.usage = None
        self.screen.note("the conversation is empty")

    def save(self, name: str) -> None:
        if not name:
            raise RequestError("/save needs a file name")
        path = Path(name).expanduser()
        if path.suffix == session.TEXT:
            self.session.save(path)
            self.screen.note(f"saved to {name}")
            return
        text = self.session.text_form().decode()
        if self.session.mode == "raw":
            count = self.llm.save_prefix(path, self.session.text or PROBE, note=text)
        else:
            count = self.llm.save_prefix(path, messages=self.session.conversation(PROBE), note=text)
        self.screen.note(f"saved to {name}, with the caches of {count} tokens")

    def load(self, name: str) -> None:
        self.load_text(name, cache=True)

    def load_text(self, name: str, cache: bool = False) -> None:
        if not name:
            raise RequestError(f"/load{'' if cache else '-text'} needs a file name")
        path = Path(name).expanduser()
        loaded = session.load(path)
        if loaded.mode == "chat" and self.llm.template is None:
            raise TemplateError(f"{name} is a chat, and the model has no chat template")
        count = self.bring_cache(path, "/load-text") if cache else 0
        self.session = loaded
        size = f"{len(loaded.messages)} messages" if loaded.mode == "chat" else f"{len(loaded.text)} characters"
        self.screen.note(f"loaded {name}: {size}" + (f", with the caches of {count} tokens" if count else ""))

    def bring_cache(self, path: Path, instead: str) -> int:
        """Bring what the file holds of the model's caches into them: the number of tokens. RequestError says how to go
        on with the text alone."""
        if not session.holds_cache(path):
            return 0
        try:
            return self.llm.load_prefix(path)
        except RequestError as error:
            raise type(error)(f"{error}; the conversation in it is intact: {instead} {path.name} continues it without "
                              "the cache") from None

    def set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        if value.strip():
            self.session = self.session.set(name, value.strip())
            if name == "n":
                logger.warning(SINGLE)
        elif name:
            raise RequestError("/set needs a key and a value, or nothing to show all")
        chosen = msgspec.structs.asdict(self.session.chosen(self.llm.default_sampling))
        self.screen.note("\n".join(f"{key} = {value}" for key, value in chosen.items() if not name or key == name))

    def stats(self, _: str) -> None:
        last = [] if self.usage is None else [self.status()]
        self.screen.note("\n".join([*last, *(f"{key} = {value}" for key, value in counters(self.llm).items())]))

    def help(self, _: str) -> None:
        self.screen.note(HELP)


def uninterrupted(events: Stream, cancel: Callable[[int], None]) -> Iterator[Event]:
    """The events of an answer. Ctrl-C cancels it, and what the engine still held back comes before the end.

    KeyboardInterrupt: before the first event (a long prompt is not waited for), or a second time.
    """
    begun = stopping = False
    while True:
        try:
            event = next(events)
        except StopIteration:
            return
        except KeyboardInterrupt:
            if stopping or not begun:
                raise
            stopping = True
            cancel(events.request_id)
            continue
        begun = True
        yield event


def counters(llm: LLM) -> Mapping[str, object]:
    """The engine's counters by name."""
    return msgspec.structs.asdict(llm.stats())


def speed(usage: Usage) -> str:
    """Decode speed of an answer: tokens after the first over the time they took."""
    if usage.completion_tokens < 2 or usage.decode_seconds <= 0:
        return "- tok/s"
    return f"{(usage.completion_tokens - 1) / usage.decode_seconds:.1f} tok/s"
