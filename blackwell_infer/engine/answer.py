"""One answer on its way to the reader: tokens become text, cut at stop strings, apart from reasoning."""
from __future__ import annotations

import msgspec

from blackwell_infer.engine.request import Request
from blackwell_infer.text.stream import Detokenizer, ReasoningSplitter, StopScanner
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Choice, Event, FinishReason, Output, TokenLogprob, Usage


class Piece(msgspec.Struct, frozen=True):
    """Text and reasoning that are certain now, and whether a stop string ended the answer."""

    text: str
    reasoning: str
    stopped: bool


class Answer:
    """The text of one choice. Stop strings are looked for in the whole answer, reasoning included."""

    def __init__(self, tokenizer: Tokenizer, request: Request) -> None:
        self._detokenizer = Detokenizer(tokenizer, request.prompt)
        self._stops = StopScanner(request.sampling.stop)
        self._splitter = ReasoningSplitter(*request.markers, request.inside) if request.markers else None

    def push(self, token: int) -> Piece:
        """What this token completes."""
        text, stopped = self._stops.push(self._detokenizer.push(token))
        reasoning, text = self._splitter.push(text) if self._splitter else ("", text)
        return Piece(text, reasoning, stopped)

    def flush(self) -> Piece:
        """What was held back, at the end of the answer."""
        text, stopped = self._stops.push(self._detokenizer.flush())
        text += "" if stopped else self._stops.flush()
        if self._splitter is None:
            return Piece(text, "", stopped)
        (thought, said), (more_thought, more_said) = self._splitter.push(text), self._splitter.flush()
        return Piece(said + more_said, thought + more_thought, stopped)


class Gathering:
    """Adds up the events of one request into an `Output`."""

    def __init__(self, request: Request) -> None:
        self._request = request
        n = request.sampling.n
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._thoughts: list[list[str]] = [[] for _ in range(n)]
        self._ids: list[list[int]] = [[] for _ in range(n)]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in range(n)]
        self._reasons: list[FinishReason] = ["cancelled"] * n
        self._usage = Usage(prompt_tokens=len(request.prompt))

    def add(self, event: Event) -> None:
        self._texts[event.index].append(event.text)
        self._thoughts[event.index].append(event.reasoning)
        self._ids[event.index] += event.token_ids
        self._logprobs[event.index] += event.logprobs
        self._reasons[event.index] = event.finish_reason or self._reasons[event.index]
        self._usage = event.usage or self._usage

    def output(self) -> Output:
        """Everything so far."""
        wanted = self._request.sampling.logprobs is not None
        return Output(prompt_token_ids=self._request.prompt, usage=self._usage, choices=tuple(
            Choice(text="".join(self._texts[i]), reasoning="".join(self._thoughts[i]), token_ids=tuple(self._ids[i]),
                   finish_reason=self._reasons[i], logprobs=tuple(self._logprobs[i]) if wanted else None)
            for i in range(self._request.sampling.n)))
