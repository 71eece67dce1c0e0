"""`LLM`: a loaded model for programs. All callers, threads and tasks alike, share one engine and run in one batch."""
from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from blackwell_infer.config import DEMO, EngineConfig, build
from blackwell_infer.engine import saved
from blackwell_infer.engine.embedding import Pooling, Vector, check_pooling
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.jobs import Stats
from blackwell_infer.engine.load import Loaded, ModelInfo, load
from blackwell_infer.engine.request import (
    MOST_LOGPROBS,
    Chat,
    Ids,
    Prompt,
    Request,
    check_ids,
    check_sampling,
    default_sampling,
    is_many,
    make_request,
    read_ids,
)
from blackwell_infer.engine.runner import Runner
from blackwell_infer.engine.scoring import Score
from blackwell_infer.engine.stream import AsyncStream, Stream
from blackwell_infer.errors import BlackwellInferError, RequestError
from blackwell_infer.log import Progress, silent
from blackwell_infer.text.load import Text
from blackwell_infer.text.messages import read_messages
from blackwell_infer.text.template import ChatTemplate
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Output, Sampling

Samplings = Sampling | Sequence[Sampling] | None


class LLM:
    """A model, loaded from a path or a hub id; without either, the demo model that the package brings. Keywords are the
    fields of `config.EngineConfig`:

    device, dtype, max_context, max_batch, max_step_tokens, kv_pages, prefix_cache, graphs, revision. `progress`
    hears of long work. Without max_context the context is the model's own limit, or what fits; on NumPy at most 4096
    tokens.

    A prompt is one of: a `str` (encoded, with the model's beginning token if it has one); a list of `int` (token ids,
    taken as they are); a list that begins with a `Message` or a mapping (a chat, rendered by the model's template). A
    list that begins with a `str` or with another list is a list of prompts.

    `token_ids` of results hold every generated token, the end token included; `text` holds neither the end token nor a
    stop string. Reasoning is split from the text only for chats, if the model's template has markers for it.

    Every method may be called from any thread. Use it as a context manager, or `close` it. Raises what
    `engine.load.load` raises.
    """

    def __init__(self, model: str | Path = DEMO, *, progress: Progress = silent, **settings: Any) -> None:
        config: EngineConfig = build(EngineConfig, settings, "LLM")
        found = load(str(model), config, progress)
        self._start(found)

    def _start(self, found: Loaded) -> None:
        self._found = found
        self._engine = found.engine()
        self._default = default_sampling(found.generation)
        thread = threading.Thread(target=serve, args=(self._engine, found.runner), name="blackwell_infer", daemon=True)
        thread.start()
        # Also runs when the object is dropped or the interpreter ends: a step must not outlive the driver.
        self._finalizer = weakref.finalize(self, shut_down, self._engine, thread)

    @property
    def text(self) -> Text:
        """What turns messages into tokens and tokens into text."""
        return self._found.text

    @property
    def tokenizer(self) -> Tokenizer:
        return self._found.text.tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        """The model's chat template; None if it has none."""
        return self._found.text.template

    @property
    def default_sampling(self) -> Sampling:
        """What the model's authors advise (generation_config.json); used where no `Sampling` is given."""
        return self._default

    def info(self) -> ModelInfo:
        """What was loaded, and how."""
        return self._found.info

    def stats(self) -> Stats:
        """Counters since loading."""
        return self._engine.stats()

    @overload
    def generate(self, prompt: str, sampling: Samplings = None, **variables: Any) -> Output: ...
    @overload
    def generate(self, prompt: Sequence[str], sampling: Samplings = None, **variables: Any) -> list[Output]: ...
    @overload
    def generate(self, prompt: Ids | Chat, sampling: Samplings = None, **variables: Any) -> Output: ...
    @overload
    def generate(self, prompt: Sequence[Prompt], sampling: Samplings = None, **variables: Any) -> list[Output]: ...

    def generate(self, prompt: Prompt | Sequence[Prompt], sampling: Samplings = None,
                 **variables: Any) -> Output | list[Output]:
        """Answer one prompt, or a list of prompts in one batch (with one `Sampling` for all, or a list of them).

        `variables` go to the chat template. RequestError, TemplateError: nothing was started. Other errors: the
        prompts that could be answered were; `error.partial` holds an `Output` for each prompt, whose failed choices
        have `finish_reason` "error" and the text that came before.
        """
        streams: list[Stream] = []
        try:
            for request in self._requests(prompt, sampling, variables):
                streams.append(Stream(self._engine, request))  # noqa: PERF401 (those already begun must be closed)
            outputs = [stream.gather() for stream in streams]
        finally:
            for stream in streams:
                stream.close()
        raise_first([stream.failure for stream in streams], outputs)
        return outputs if is_many(prompt) else outputs[0]

    def stream(self, prompt: Prompt | None = None, sampling: Sampling | None = None, *, messages: Chat | None = None,
               **variables: Any) -> Stream:
        """Events of one answer as it grows: give a prompt or messages; `variables` go to the chat template.

        RequestError and TemplateError are raised at once. Later failures arrive as an event with `error`. Close the
        stream, or leave it, to cancel.
        """
        return Stream(self._engine, self._request(self._one(prompt, messages), sampling, variables), self)

    def score(self, token_ids: Ids, *, logits: bool = False, top: int = 0) -> Score:
        """Teacher-forced log-probabilities [T] of T token ids (entry 0 is 0.0), and if asked for logits [T, V] and the
        `top` likeliest tokens in the place of each."""
        id, future = self._engine.score(self._scorable(token_ids, top), logits, top)
        try:
            return future.result()
        except BaseException:
            self._engine.cancel(id)
            raise

    async def agenerate(self, prompt: Prompt | Sequence[Prompt], sampling: Samplings = None,
                        **variables: Any) -> Any:
        """`generate` for asyncio: an Output, or a list of them for a list of prompts. Cancelling the task cancels."""
        streams: list[AsyncStream] = []
        try:
            for request in self._requests(prompt, sampling, variables):
                streams.append(AsyncStream(self._engine, request))  # noqa: PERF401 (as in generate)
            outputs = [await stream.gather() for stream in streams]
        finally:
            for stream in streams:
                stream.close()
        raise_first([stream.failure for stream in streams], outputs)
        return outputs if is_many(prompt) else outputs[0]

    def astream(self, prompt: Prompt | None = None, sampling: Sampling | None = None, *, messages: Chat | None = None,
                **variables: Any) -> AsyncStream:
        """`stream` for asyncio: `async for event in llm.astream(...)`. Call it where an event loop runs."""
        return AsyncStream(self._engine, self._request(self._one(prompt, messages), sampling, variables), self)

    def submit(self, request: Request) -> AsyncStream:
        """Run a request that `engine.request.make_request` made. Call it where an event loop runs.

        QueueFullError: too many wait.
        """
        return AsyncStream(self._engine, request, self)

    async def ascore(self, token_ids: Ids, *, logits: bool = False, top: int = 0) -> Score:
        """`score` for asyncio. Cancelling the task cancels."""
        id, future = self._engine.score(self._scorable(token_ids, top), logits, top)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._engine.cancel(id)
            raise

    def embed(self, prompt: Prompt | Sequence[Prompt], pooling: Pooling = "last") -> Vector:
        """The vector [H] float32 of a text, token ids or messages, or the vectors [N, H] of a list of them: the hidden
        state of the last token after the final norm, or the mean of all tokens' ("mean"), scaled to length 1."""
        vectors: list[Vector] = []
        for wave in self._waves(prompt, pooling):
            begun: list[tuple[int, Future[Vector]]] = []
            try:
                for ids in wave:
                    begun.append(self._engine.embed(ids, pooling))  # noqa: PERF401 (as in generate)
                vectors += [future.result() for _, future in begun]
            except BaseException:
                self._cancel_all(begun)
                raise
        return np.stack(vectors) if is_many(prompt) else vectors[0]

    async def aembed(self, prompt: Prompt | Sequence[Prompt], pooling: Pooling = "last") -> Vector:
        """`embed` for asyncio. Cancelling the task cancels."""
        vectors: list[Vector] = []
        for wave in await asyncio.to_thread(self._waves, prompt, pooling):
            begun: list[tuple[int, Future[Vector]]] = []
            try:
                for ids in wave:
                    begun.append(self._engine.embed(ids, pooling))  # noqa: PERF401 (as in generate)
                vectors += [await asyncio.wrap_future(future) for _, future in begun]
            except BaseException:
                self._cancel_all(begun)
                raise
        return np.stack(vectors) if is_many(prompt) else vectors[0]

    def save_prefix(self, path: str | Path, prompt: Prompt | None = None, *, messages: Chat | None = None,
                    note: str = "", **variables: Any) -> int:
        """Write what the prefix cache holds of a prompt or of messages to one file, so that `load_prefix` brings it
        back in another process; the number of tokens that this is. `note` is any text, kept beside it.

        RequestError: the cache is off, or the file cannot be written.
        """
        request = self._request(self._one(prompt, messages), None, variables)
        found = self._engine.save(request.prompt).result()
        saved.write(Path(path), found, self._found.identity, note)
        return len(found.tokens)

    def load_prefix(self, path: str | Path) -> int:
        """Bring back what `save_prefix` wrote: the number of tokens that prompts need not be read again for.

        SessionError: the file is damaged, or another model's or version's; RequestError: the cache is off, or has no
        room now. Nothing changes then.
        """
        return self._engine.load(saved.read(Path(path), self._found.identity)).result()

    def cancel(self, request_id: int) -> None:
        """End a request (`Stream.request_id`, `Event.request_id`); its choices finish as "cancelled"."""
        self._engine.cancel(request_id)

    def close(self) -> None:
        """Cancel what runs and release the backend. Idempotent; later calls raise RequestError."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def _one(self, prompt: Prompt | None, messages: Chat | None) -> Any:
        """The prompt of a stream."""
        if (prompt is None) == (messages is None):
            raise RequestError("give either a prompt or messages")
        if is_many(prompt):
            raise RequestError("a stream takes one prompt; generate takes lists of prompts")
        return prompt if messages is None else read_messages(messages)

    def _request(self, prompt: Any, sampling: Sampling | None, variables: Mapping[str, Any]) -> Request:
        chosen = self._default if sampling is None else sampling
        return make_request(self._found.text, self._found.info.vocab, prompt, chosen, variables)

    def _requests(self, prompt: Any, sampling: Samplings, variables: Mapping[str, Any]) -> list[Request]:
        prompts = list(prompt) if is_many(prompt) else [prompt]
        if isinstance(sampling, Sampling) or sampling is None:
            return [self._request(p, sampling, variables) for p in prompts]
        if not isinstance(sampling, Sequence):
            check_sampling(sampling, self._found.info.vocab)
        if len(sampling) != len(prompts):
            raise RequestError(f"{len(sampling)} samplings for {len(prompts)} prompts; give one, or one for each")
        return [self._request(p, s, variables) for p, s in zip(prompts, sampling, strict=True)]

    def _waves(self, prompt: Any, pooling: Pooling) -> list[list[tuple[int, ...]]]:
        """Token ids of prompts to embed, checked, as many together as run at once: long lists leave the queue to
        others."""
        check_pooling(pooling)
        if is_many(prompt) and not len(prompt):
            raise RequestError("there is nothing to embed; give at least one prompt")
        ids = [self._request(p, None, {}).prompt for p in (prompt if is_many(prompt) else [prompt])]
        for each in ids:
            self._engine.check_length(each)
        size = self._engine.limits.batch
        return [ids[i : i + size] for i in range(0, len(ids), size)]

    def _cancel_all(self, begun: Sequence[tuple[int, Future[Vector]]]) -> None:
        for id, _ in begun:
            self._engine.cancel(id)

    def _scorable(self, token_ids: Ids, top: int) -> tuple[int, ...]:
        if not 0 <= top <= MOST_LOGPROBS:
            raise RequestError(f"top = {top}: at most {MOST_LOGPROBS} alternatives")
        ids = read_ids(token_ids, "token_ids")
        check_ids(ids, self._found.info.vocab, "token_ids")
        return ids


def raise_first(failures: Sequence[BlackwellInferError | None], outputs: Sequence[Output]) -> None:
    """Raise the first failure, with all outputs as its `partial`."""
    for failure in failures:
        if failure is not None:
            failure.partial = tuple(outputs)
            raise failure


def serve(engine: Engine, runner: Runner) -> None:
    """The engine's thread: step until the engine is closed, then release the backend."""
    try:
        engine.run()
    finally:
        runner.close()


def shut_down(engine: Engine, thread: threading.Thread) -> None:
    """End the engine's thread and wait for it, unless garbage collection calls this on that very thread."""
    engine.close()
    if thread is not threading.current_thread():
        thread.join()
