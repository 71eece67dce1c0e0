"""`bwinfer run`: one prompt in, one answer out. The answer goes to standard output, timings to standard error."""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from blackwell_infer import config
from blackwell_infer.cli.chat import UNUSED_SYSTEM, speed
from blackwell_infer.cli.flags import UsageError
from blackwell_infer.cli.model import OPTIONAL, opened
from blackwell_infer.cli.screen import Screen
from blackwell_infer.errors import BlackwellInferError, TemplateError
from blackwell_infer.log import logger
from blackwell_infer.types import Event, Message, TokenLogprob, Usage

if TYPE_CHECKING:
    from blackwell_infer import LLM

SECTIONS = ("engine", "sampling", "chat")


class Answer(msgspec.Struct):
    """One choice as it grows."""

    text: str = ""
    reasoning: str = ""
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    finish_reason: str = "cancelled"


class Result(msgspec.Struct):
    """All choices of the prompt and what they cost. `first` is the time to the first token in seconds."""

    answers: dict[int, Answer] = {}
    usage: Usage | None = None
    first: float | None = None
    error: str | None = None
    interrupted: bool = False


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand, its output format, and the short spellings of --mode."""
    parser.add_argument("model", nargs="?", default=config.DEMO, help=OPTIONAL + "; a single operand of several words "
                        "that is no path is the prompt")
    parser.add_argument("prompt", nargs="?", default="", help="the prompt; standard input is appended to it")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the text")
    for mode in ("chat", "raw"):
        parser.add_argument(f"--{mode}", dest="chat.mode", action="store_const", const=mode,
                            default=argparse.SUPPRESS, help=f"the same as --mode {mode}")


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Answer once: 0, 1 if the answer broke off with an error, 130 if it was interrupted."""
    model, prompt = operands(found.model, found.prompt)
    text = whole_prompt(prompt)
    started = time.perf_counter()
    with opened(model, settings.engine) as llm:
        loaded = time.perf_counter() - started
        screen = Screen(reasoning=settings.chat.show_reasoning)
        result = follow(ask(llm, text, settings), None if found.json else screen)
        if found.json:
            print(msgspec.json.encode(summary(result, loaded)).decode())
        else:
            for index in sorted(result.answers)[1:]:
                screen.answer("\n" + result.answers[index].text)
                screen.end()
            screen.note(timings(result, loaded))
        if result.error is not None:
            raise BlackwellInferError(result.error)
        return 130 if result.interrupted else 0


def operands(model: str, prompt: str) -> tuple[str, str]:
    """(model, prompt): several words alone are no model's name, so they are a prompt for the demo model."""
    from blackwell_infer.checkpoint.hub import existing

    if prompt or len(model.split()) < 2 or existing(model) is not None:
        return model, prompt
    return config.DEMO, model


def whole_prompt(prompt: str) -> str:
    """The operand with standard input below it, if that is no terminal. UsageError if both are empty."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    text = "\n".join(part for part in (prompt, piped.removesuffix("\n")) if part)
    if not text:
        raise UsageError("no prompt: give one behind the model or on standard input")
    return text


def ask(llm: LLM, text: str, settings: config.Settings) -> Iterator[Event]:
    """The events of the answer, through the chat template or as plain continuation."""
    mode = settings.chat.mode
    if mode == "chat" and llm.template is None:
        raise TemplateError("the model has no chat template; leave out --chat, or give --raw")
    sampling = msgspec.structs.replace(llm.default_sampling, **settings.sampling)
    if mode == "raw" or llm.template is None:
        if settings.chat.system:
            logger.warning(UNUSED_SYSTEM)
        return llm.stream(text, sampling)
    first = [Message(role="system", content=settings.chat.system)] if settings.chat.system else []
    return llm.stream(messages=[*first, Message(role="user", content=text)], sampling=sampling)


def follow(events: Iterator[Event], screen: Screen | None) -> Result:
    """Gather the events; the first choice goes to the screen as it comes. Ctrl-C ends the answer, keeping what came."""
    result, started = Result(), time.perf_counter()
    try:
        for event in events:
            if result.first is None and event.token_ids:
                result.first = time.perf_counter() - started
            gather(result, event)
            if screen is not None and event.index == 0:
                screen.thought(event.reasoning)
                screen.answer(event.text)
    except KeyboardInterrupt:
        result.interrupted = True
    finally:
        if screen is not None:
            screen.end()
    return result


def gather(result: Result, event: Event) -> None:
    """Add one event to the result."""
    answer = result.answers.setdefault(event.index, Answer())
    answer.text += event.text
    answer.reasoning += event.reasoning
    answer.token_ids += event.token_ids
    answer.logprobs += event.logprobs
    answer.finish_reason = event.finish_reason or answer.finish_reason
    result.usage = event.usage or result.usage
    result.error = event.error or result.error


def summary(result: Result, loaded: float) -> dict[str, Any]:
    """The JSON object: the first choice's fields on top, `choices` besides when there are several. Times in seconds."""
    usage = result.usage or Usage()
    choices = [choice(result.answers[index]) for index in sorted(result.answers)]
    return {
        **(choices[0] if choices else choice(Answer())),
        **({"choices": choices} if len(choices) > 1 else {}),
        "usage": {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
                  "total_tokens": usage.prompt_tokens + usage.completion_tokens,
                  "cached_tokens": usage.cached_tokens},
        "timings": {"load_seconds": loaded, "first_token_seconds": result.first,
                    "prefill_seconds": usage.prefill_seconds, "decode_seconds": usage.decode_seconds},
        **({"error": result.error} if result.error is not None else {}),
    }


def choice(answer: Answer) -> dict[str, Any]:
    """One choice as JSON; reasoning and log-probabilities only where there are any."""
    fields = {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
    if answer.reasoning:
        fields["reasoning"] = answer.reasoning
    if answer.logprobs:
        fields["logprobs"] = answer.logprobs
    return fields


def timings(result: Result, loaded: float) -> str:
    """One line for people: load time, prompt and answer sizes and speeds."""
    parts = [f"load {loaded:.2f} s"]
    if result.usage is not None:
        usage = result.usage
        rate = f", {usage.prompt_tokens / usage.prefill_seconds:.1f} tok/s" if usage.prefill_seconds > 0 else ""
        parts.append(f"prompt {usage.prompt_tokens} tokens{rate}")
        parts.append(f"answer {usage.completion_tokens} tokens, {speed(usage)}")
    if result.answers:
        parts.append(result.answers[min(result.answers)].finish_reason)
    return "; ".join(parts)
