"""An engine over a runner that is not there: every answer is scripted, token by token."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from blackwell_infer.engine.batch import Work
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.runner import Result
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.engine.stream import Stream
from blackwell_infer.ops.batch import Sampled
from blackwell_infer.text.load import Text
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import Output, Sampling

ROOT = Path(__file__).resolve().parents[1]
VOCAB = 320
END = 257
LIMITS = Limits(batch=4, step_tokens=64, score_tokens=16, pages=16, context=256)


def byte_text() -> Text:
    """Byte-level: ids below 256 are bytes in the order of the GPT-2 alphabet, 257 ends an answer."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(str(ROOT / "tests" / "data" / "llama" / "tokenizer.json"))
    return Text(Tokenizer(backend, bos_id=256, eos_id=END, stop_ids={END}), None, None)


class Said:
    """A step under way, or one that failed."""

    def __init__(self, result: Result | Exception) -> None:
        self._result = result

    def result(self) -> Result:
        if isinstance(self._result, Exception):
            raise self._result
        return self._result


class Script:
    """A runner whose rows say, token by token, the answer that belongs to their seed. `fail` breaks steps by number:
    when they are launched, or, if steps are read late (depth 1), when they are read."""

    depth = 0

    def __init__(self, answers: Sequence[Sequence[int]], fail: dict[int, Exception] | None = None) -> None:
        self.answers = dict(enumerate(answers))
        self.fail = fail or {}
        self.lengths: dict[int, int] = {}
        """tokens of the prompt by seed"""
        self.step = 0
        self.works: list[Work] = []
        self.newest: dict[int, int] = {}
        """what each slot sampled last"""

    def launch(self, work: Work) -> Said:
        self.step += 1
        self.works.append(work)
        if self.step in self.fail and not self.depth:
            raise self.fail[self.step]
        result = self.said(work)
        return Said(self.fail.get(self.step, result))

    def said(self, work: Work) -> Result:
        scores = np.arange(len(work.scored), dtype=np.float32) if len(work.scored) else None
        logits = np.zeros((len(work.scored), VOCAB), np.float32) if work.want_logits else None
        if work.params is None:
            return Result(None, scores, logits)
        p = work.params
        rows = np.asarray(work.batch.rows)[work.batch.outputs]
        prompts = {int(r): self.lengths[int(s)] for r, s in zip(rows, p.seed, strict=True)}
        tokens = []
        for row, seed, at, token, slot in zip(rows, p.seed, p.position, work.batch.ids[work.batch.outputs], work.slots,
                                              strict=True):
            answer, i = self.answers[int(seed)], int(at) - prompts[int(row)]
            assert token >= 0 or (self.depth and -1 - token == slot), "only a row's own token may be fetched"
            assert i == 0 or (self.newest[-1 - int(token)] if token < 0 else token) == answer[i - 1]
            tokens.append(answer[i] if i < len(answer) else 0)
            self.newest[int(slot)] = tokens[-1]
        n = len(tokens)
        top = np.tile(np.arange(p.top, dtype=np.int32), (n, 1))
        return Result(Sampled(np.asarray(tokens, np.int32), np.full(n, -0.5, np.float32), top,
                              np.full((n, p.top), -1.0, np.float32)), scores, logits)

    def close(self) -> None:
        pass


class Desk:
    """An engine that the test steps by hand, and requests whose answers are scripted."""

    def __init__(self, text: Text, answers: Sequence[str | Sequence[int]], fail: dict[int, Exception] | None = None,
                 limits: Limits = LIMITS) -> None:
        self.text = text
        coded = [text.tokenizer.encode(a, bos=False) if isinstance(a, str) else list(a) for a in answers]
        self.script = Script(coded, fail)
        self.engine = Engine(self.script, limits, text.tokenizer, VOCAB)

    def ask(self, number: int, prompt: Any = "ab", **settings: Any) -> Stream:
        request = make_request(self.text, VOCAB, prompt, Sampling(seed=number, **settings), {})
        for s in request.settings:
            self.script.lengths[s.seed] = len(request.prompt)
        return Stream(self.engine, request)

    def run(self) -> None:
        while self.engine.step():
            pass

    def answer(self, number: int, prompt: Any = "ab", **settings: Any) -> Output:
        stream = self.ask(number, prompt, **settings)
        self.run()
        return stream.gather()
