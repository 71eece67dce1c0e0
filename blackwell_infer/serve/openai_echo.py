"""What /v1/completions repeats of a prompt, with the log-probabilities of its tokens, and how it writes those."""
from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import msgspec

from blackwell_infer.engine.scoring import Score
from blackwell_infer.errors import DeadlineError
from blackwell_infer.serve.host import Host
from blackwell_infer.serve.openai_chat import LOWEST
from blackwell_infer.text.stream import Detokenizer
from blackwell_infer.text.tokenizer import Tokenizer
from blackwell_infer.types import TokenLogprob

Logprobs = dict[str, list[Any]]


class Echo(msgspec.Struct, frozen=True):
    """The text of a prompt and, where they are wanted, the log-probabilities of its tokens."""

    text: str = ""
    logprobs: Logprobs = {}


async def echoed(host: Host, prompts: Sequence[tuple[int, ...]], logprobs: int | None, seconds: float) -> list[Echo]:
    """What is repeated of each prompt, with so many alternatives to each token. DeadlineError after `seconds`."""
    tokenizer = host.llm.tokenizer
    if logprobs is None:
        return [Echo(tokenizer.decode(ids)) for ids in prompts]
    scoring = [asyncio.ensure_future(host.llm.ascore(ids, top=logprobs)) for ids in prompts]
    try:
        async with asyncio.timeout(seconds):
            scores = await asyncio.gather(*scoring)
    except TimeoutError:
        raise DeadlineError(f"the prompts were not scored within {seconds:g} seconds") from None
    finally:
        for each in scoring:
            each.cancel()
    return [Echo(tokenizer.decode(ids), prompt_body(ids, score, tokenizer))
            for ids, score in zip(prompts, scores, strict=True)]


def prompt_body(ids: Sequence[int], score: Score, tokenizer: Tokenizer) -> Logprobs:
    """Log-probabilities of a prompt's tokens; nothing precedes the first, so it has none."""
    items = []
    for i, (id, value) in enumerate(zip(ids, score.logprobs.tolist(), strict=True)):
        top = () if score.top_ids is None or score.top_logprobs is None else tuple(
            zip(score.top_ids[i].tolist(), score.top_logprobs[i].tolist(), strict=True))
        items.append(TokenLogprob(id, value, top if i else ()))
    found = logprobs_body(items, tokenizer, 0)
    detokenizer, end = Detokenizer(tokenizer), 0
    for i, id in enumerate(ids):
        found["text_offset"][i] = end
        end += len(detokenizer.push(id))
    found["token_logprobs"][:1] = found["top_logprobs"][:1] = [None]
    return found


def logprobs_body(items: Sequence[TokenLogprob], tokenizer: Tokenizer, offset: int) -> Logprobs:
    """Log-probabilities in the older form; `offset` is where in the text the first token begins."""
    texts = [tokenizer.piece(i.token_id).decode("utf-8", "replace") for i in items]
    offsets = [offset + before for before in accumulate(map(len, texts[:-1]), initial=0)] if texts else []
    top = [{tokenizer.piece(id).decode("utf-8", "replace"): max(value, LOWEST) for id, value in i.top} for i in items]
    return {"tokens": texts, "token_logprobs": [max(i.logprob, LOWEST) for i in items], "top_logprobs": top,
            "text_offset": offsets}


def joined(one: Logprobs, other: Logprobs) -> Logprobs:
    """Those of one text after those of another."""
    return {name: one.get(name, []) + values for name, values in other.items()}
