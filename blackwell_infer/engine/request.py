"""What a caller asks for, checked: sampling settings, seeds, and prompts of every kind as token ids."""
from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.engine.batch import Settings
from blackwell_infer.errors import RequestError
from blackwell_infer.log import logger
from blackwell_infer.text.budget import Budget
from blackwell_infer.text.load import Text
from blackwell_infer.text.messages import read_messages
from blackwell_infer.text.template import closing_text
from blackwell_infer.types import Matcher, Message, Sampling

MOST_LOGPROBS = 20
MOST_CHOICES = 1024
SMALLEST, LARGEST = 1e-20, 1e20
"""Sizes of sampling settings: sampling is computed in float32, whose range is 1e-38 to 3e38"""
DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Fields of generation_config.json that become the model's default sampling."""

Ids = Sequence[int] | np.ndarray[Any, Any]
Chat = Sequence[Message | Mapping[str, Any]]
Prompt = str | Ids | Chat


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, ready to run. `markers` separate reasoning (None: nothing does); `inside`: it is open already. Higher
    `priority` goes first; what has not ended `deadline` seconds after it was submitted ends with DeadlineError."""

    prompt: tuple[int, ...]
    sampling: Sampling
    settings: tuple[Settings, ...]
    stop_ids: frozenset[int]
    markers: tuple[str, str] | None = None
    inside: bool = False
    matchers: tuple[Matcher, ...] = ()
    """one for each choice, or none"""
    priority: int = 0
    deadline: float | None = None


def is_chat(prompt: Any) -> bool:
    """Whether a prompt is a conversation: a sequence that begins with a message."""
    return isinstance(prompt, Sequence) and not isinstance(prompt, str) and bool(prompt) and isinstance(
        prompt[0], Message | Mapping)


def is_many(prompt: Any) -> bool:
    """Whether this is a list of prompts: a sequence that begins with a text or a sequence, or is empty."""
    if isinstance(prompt, str | np.ndarray) or not isinstance(prompt, Sequence):
        return False
    return not prompt or isinstance(prompt[0], str | np.ndarray) or (
        isinstance(prompt[0], Sequence) and not isinstance(prompt[0], bytes))


def make_request(text: Text, vocab: int, prompt: Any, sampling: Sampling, variables: Mapping[str, Any]) -> Request:
    """Check and encode one prompt: a text, token ids, or messages. RequestError and TemplateError say what is wrong."""
    if is_chat(prompt):
        return chat_request(text, vocab, text.prompt(read_messages(prompt), **variables), sampling)
    if variables:
        raise RequestError(f"template variables ({', '.join(variables)}) need messages; this prompt is none")
    ids = tuple(text.tokenizer.encode(prompt)) if isinstance(prompt, str) else read_ids(prompt, "the prompt")
    return checked_request(text, vocab, ids, sampling, None, False)


def chat_request(text: Text, vocab: int, rendered: str, sampling: Sampling) -> Request:
    """The request of a prompt that the chat template made: its answer may begin with reasoning."""
    return checked_request(text, vocab, tuple(text.tokenizer.encode(rendered, bos=False)), sampling, text.reasoning,
                           text.starts_inside(rendered), text.before_answer(rendered))


def checked_request(text: Text, vocab: int, ids: tuple[int, ...], sampling: Sampling,
                    markers: tuple[str, str] | None, inside: bool, before: tuple[str, str] | None = None) -> Request:
    """The request of these token ids; for `markers` and `inside` see `Request`. A grammar lets reasoning between the
    markers `before` pass."""
    check_sampling(sampling, vocab)
    check_ids(ids, vocab, "the prompt")
    # Where a grammar ends, nothing but an end token is left.
    own = frozenset[int]() if sampling.ignore_eos and sampling.grammar is None else text.tokenizer.stop_ids
    matchers: tuple[Matcher, ...] = ()
    if sampling.grammar is not None:
        matcher = text.matcher(sampling.grammar, vocab, before, inside)
        matchers = tuple(matcher() for _ in range(sampling.n))
    if sampling.thinking_budget is not None and markers is not None:
        end = closing_text("" if text.template is None else text.template.source, markers[1])
        matchers = tuple(Budget(text.tokenizer, markers, end, sampling.thinking_budget, inside, inner)
                         for inner in matchers or (None,) * sampling.n)
    return Request(prompt=ids, sampling=sampling, settings=resolve_settings(sampling, vocab),
                   stop_ids=own | frozenset(sampling.stop_token_ids), markers=markers, inside=inside,
                   matchers=matchers)


def read_ids(value: Any, what: str) -> tuple[int, ...]:
    """Token ids as a tuple of Python integers."""
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "iu":
        return tuple(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for i, id in enumerate(value):
            if isinstance(id, bool) or not isinstance(id, int | np.integer):
                raise RequestError(f"{what}[{i}] is {shown(id)}; token ids are integers, and kinds of prompts cannot "
                                   "be mixed in one list")
        return tuple(int(id) for id in value)
    raise RequestError(f"{what} is {shown(value)}; give a text, a list of token ids, or a list of messages")


def check_ids(ids: tuple[int, ...], vocab: int, what: str) -> None:
    """RequestError if a token is not in the vocabulary or there is none."""
    if not ids:
        raise RequestError(f"{what} is empty; give at least one token")
    if min(ids) < 0 or max(ids) >= vocab:
        i = next(i for i, id in enumerate(ids) if not 0 <= id < vocab)
        raise RequestError(f"{what} holds token id {ids[i]} at index {i}; the vocabulary has ids 0 to {vocab - 1}")


def check_sampling(s: Sampling, vocab: int) -> None:
    """RequestError names the first field that is out of range."""
    if not isinstance(s, Sampling):
        raise RequestError(f"sampling is {shown(s)}; give a Sampling")
    for field in msgspec.structs.fields(Sampling):
        value = getattr(s, field.name)
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            raise wrong(field.name, value, str(error).replace("`", "")) from None
    for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
        if not computable(getattr(s, name)):
            raise wrong(name, getattr(s, name), f"its size must be within {SMALLEST:g} to {LARGEST:g}, unless it is 0")
    if s.top_p == 0:
        raise wrong("top_p", s.top_p, "it must be above 0; take temperature = 0 for the likeliest token")
    if s.n > MOST_CHOICES:
        raise wrong("n", s.n, f"at most {MOST_CHOICES}")
    if s.logprobs is not None and not 0 <= s.logprobs <= MOST_LOGPROBS:
        raise wrong("logprobs", s.logprobs, f"0 to {MOST_LOGPROBS}, or None")
    if s.thinking_budget is not None and s.thinking_budget < 0:
        raise wrong("thinking_budget", s.thinking_budget, "0 or more, or None")
    if s.max_tokens is not None and s.max_tokens < 1:
        raise wrong("max_tokens", s.max_tokens, "at least 1, or None")
    if s.seed is not None and not 0 <= s.seed < 1 << 64:
        raise wrong("seed", s.seed, "0 to 2^64 - 1, or None")
    if not all(s.stop):
        raise wrong("stop", s.stop, "an empty text ends nothing; leave it out")
    for name, ids in (("logit_bias", tuple(s.logit_bias)), ("stop_token_ids", s.stop_token_ids)):
        unknown = [i for i in ids if not 0 <= i < vocab]
        if unknown:
            raise wrong(name, unknown[0], f"the vocabulary has ids 0 to {vocab - 1}")
    for id, bias in s.logit_bias.items():
        if not computable(bias) and bias != -math.inf:
            raise wrong("logit_bias", {id: bias}, f"a bias is -inf, 0, or a size from {SMALLEST:g} to {LARGEST:g}")


def computable(value: float) -> bool:
    """Whether logits can be added to, multiplied with and divided by this in float32 without leaving its range."""
    return value == 0 or SMALLEST <= abs(value) <= LARGEST


def wrong(name: str, value: Any, need: str) -> RequestError:
    return RequestError(f"sampling.{name} = {shown(value)}: {need[:1].lower() + need[1:]}")


def shown(value: Any) -> str:
    """A value in a message, of bounded length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"


def resolve_settings(s: Sampling, vocab: int) -> tuple[Settings, ...]:
    """The settings of each of the n choices. Without a seed a fresh one is drawn."""
    seed = secrets.randbits(64) if s.seed is None else s.seed
    biases = sorted(s.logit_bias.items())
    sampling = msgspec.structs.replace(s, top_k=min(s.top_k, vocab))
    return tuple(Settings(sampling, derived_seed(seed, i), tuple(k for k, _ in biases), tuple(v for _, v in biases))
                 for i in range(s.n))


def derived_seed(seed: int, index: int) -> int:
    """The seed of choice `index`: the seed itself for the first, else SplitMix64 (Steele et al. 2014) of both."""
    if not index:
        return seed
    low = (1 << 64) - 1
    z = (seed + index * 0x9E3779B97F4A7C15) & low
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & low
    z = (z ^ z >> 27) * 0x94D049BB133111EB & low
    return z ^ z >> 31


def default_sampling(generation: Mapping[str, Any]) -> Sampling:
    """What generation_config.json advises: greedy if `do_sample` is false, else its values, where it has any.

    A value out of range is left out, with a warning.
    """
    if generation.get("do_sample") is False:
        return Sampling(temperature=0.0)
    chosen = Sampling()
    for name in DEFAULTS:
        value = generation.get(name)
        if value is None:
            continue
        candidate = msgspec.structs.replace(chosen, **{name: value})
        try:
            check_sampling(candidate, 1)
            chosen = candidate
        except RequestError as error:
            logger.warning("the model's generation_config is not followed: %s", error)
    return chosen
