"""Vocabulary shared by every layer: arrays, sampling settings, messages, events and outputs.

Shape letters used throughout the project: T tokens of all rows (ragged), R rows (sequences) of a step, N rows whose
logits are wanted, H hidden width, V vocabulary, D head dimension, C context length.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
from msgspec import Meta

FinishReason = Literal["stop", "length", "cancelled", "error"]


@runtime_checkable
class Array(Protocol):
    """What an op reads and returns: `numpy.ndarray` on the host, `device.tensor.Tensor` on a GPU."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def reshape(self) -> Callable[..., Any]: ...
    @property
    def view(self) -> Callable[..., Any]: ...
    def __getitem__(self, index: Any, /) -> Any: ...


class Grammar(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must be: a JSON value (`json_object`), JSON of a schema (`json_schema`), or a text of a regular
    expression (`regex`), of a grammar in Lark's notation (`lark`) or in that of llama.cpp (`gbnf`).

    `text` is the schema, the expression or the grammar; empty for `json_object`.
    """

    kind: Literal["json_object", "json_schema", "regex", "lark", "gbnf"]
    text: str = ""


class Matcher(Protocol):
    """Follows one answer through its grammar, token by token. Used by one thread at a time."""

    @property
    def ended(self) -> bool:
        """Whether nothing but the model's end token can follow."""
        ...

    def free(self, count: int) -> bool:
        """Whether each of the next `count` tokens may be any, whatever those before it are."""
        ...

    def mask(self, out: np.ndarray[Any, np.dtype[np.uint32]]) -> None:
        """Write which tokens may come next: bit i % 32 of word i // 32 is token i; `out` has ceil(V / 32) words."""
        ...

    def forced(self) -> tuple[int, ...]:
        """Tokens that must come next, whatever the model thinks: none, or those the grammar leaves no choice about."""
        ...

    def accept(self, tokens: tuple[int, ...]) -> int:
        """Go on by these tokens; how many of them the grammar allows. It stands after those."""
        ...

    def rollback(self, count: int) -> None:
        """Take back the last `count` accepted tokens."""
        ...


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How tokens are chosen. Order: grammar, logit_bias, penalties, temperature, min_p, top_k, top_p, one Philox draw.

    `temperature=0` is greedy. `top_k=0`, `top_p=1`, `min_p=0` switch a filter off. The repetition penalty counts prompt
    and answer, presence and frequency penalties count the answer only. `seed=None` takes a fresh seed per request; a
    seed gives the same tokens on every backend, alone or in a batch. `logprobs=k` returns the log-probability of each
    token and of its k best alternatives (of the unmodified distribution; k may be 0).
    """

    temperature: Annotated[float, Meta(ge=0, description="sharpness of the choice; 0 is greedy")] = 1.0
    top_k: Annotated[int, Meta(ge=0, description="keep the k likeliest tokens; 0 is off")] = 0
    top_p: Annotated[float, Meta(ge=0, le=1, description="keep the likeliest tokens up to this mass; 1 is off")] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1, description="drop tokens below this share of the likeliest")] = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, description="divides logits of seen tokens; 1 is off")] = 1.0
    presence_penalty: Annotated[float, Meta(description="subtracted once from tokens of the answer")] = 0.0
    frequency_penalty: Annotated[float, Meta(description="subtracted per use of a token in the answer")] = 0.0
    logit_bias: Annotated[Mapping[int, float], Meta(description="added to the logits of token ids: ID=BIAS,...")] = {}
    logprobs: Annotated[int | None, Meta(description="report log-probabilities and this many alternatives")] = None
    seed: Annotated[int | None, Meta(description="equal seeds give equal tokens; none takes a fresh one")] = None
    max_tokens: Annotated[int | None, Meta(description="longest answer in tokens; none fills the context")] = None
    stop: Annotated[tuple[str, ...], Meta(description="end the answer before this text")] = ()
    stop_token_ids: Annotated[tuple[int, ...], Meta(description="end the answer at these token ids")] = ()
    ignore_eos: Annotated[bool, Meta(description="go on after the model's own end token")] = False
    n: Annotated[int, Meta(ge=1, description="number of answers to one prompt")] = 1
    grammar: Annotated[Grammar | None, Meta(
        description="what the answer must be: json_object, or json_schema, regex, lark or gbnf with its text",
    )] = None
    thinking_budget: Annotated[int | None, Meta(
        description="most tokens of reasoning in a chat, whose end is forced then; none is any number",
    )] = None


class Tool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A function that the model may call. `parameters` is the JSON schema of its arguments, an object."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = {}
    strict: bool = True


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One turn of a conversation, as chat templates see it. `tool_call_id`: which call a "tool" message answers."""

    role: str
    content: str = ""
    reasoning_content: str | None = None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True):
    """Log-probability of one token and of its best alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Usage(msgspec.Struct, frozen=True):
    """Token counts and times of one request (seconds, host clock)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    cached_tokens: int = 0
    """of the prompt's tokens, those that the prefix cache held"""
    drafted_tokens: int = 0
    """guesses that were checked (see the setting `speculate`)"""
    accepted_tokens: int = 0
    """tokens of the answer that were guessed right"""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of an answer. `text` and `reasoning` are deltas that never hold half a character.

    The last event of a choice carries `finish_reason`; the last event of a request carries `usage`.
    """

    request_id: int
    index: int = 0
    text: str = ""
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    error: str | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """One finished answer."""

    text: str
    reasoning: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason = "stop"
    logprobs: tuple[TokenLogprob, ...] | None = None


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one prompt: `Sampling.n` choices; the properties read the first."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]
    usage: Usage

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def reasoning(self) -> str:
        return self.choices[0].reasoning

    @property
    def token_ids(self) -> tuple[int, ...]:
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason:
        return self.choices[0].finish_reason

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...] | None:
        return self.choices[0].logprobs
