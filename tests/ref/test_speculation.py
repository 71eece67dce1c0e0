"""Speculation on NumPy changes nothing: answers, log-probabilities, ends and events are those without it, bit for bit.

Guesses come from a model's own head, from n-grams, and from a head that knows the answers but errs now and then, so
that every number of guesses holds. Steps have up to 16 tokens: the law of `ops.api` covers everything in them.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
import pytest
from conftest import ROOT
from harness import Model

from blackwell_infer import Event, Sampling
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine import engine as engines
from blackwell_infer.engine import scheduler
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.guesses import Rates
from blackwell_infer.engine.jobs import Stats
from blackwell_infer.engine.load import Loaded, load
from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.scheduler import Plan, Sequence
from blackwell_infer.engine.speculate import Speculation, Speculator
from blackwell_infer.engine.stream import Stream
from blackwell_infer.errors import ConfigError
from blackwell_infer.log import silent
from blackwell_infer.models import hybrid
from blackwell_infer.ops import ref

NAMES = ("llama", "qwen3", "qwen3_5", "qwen3_5_moe")
HEADED = ("qwen3_5", "qwen3_5_moe")
PATHS = {name: ROOT / "tests" / "data" / name for name in NAMES}
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0}, {"temperature": 0.7, "logprobs": 3}, {"temperature": 1.2, "top_k": 20, "top_p": 0.9},
    {"temperature": 0.5, "repetition_penalty": 1.3, "logprobs": 0}, {"temperature": 0.0, "frequency_penalty": 0.4},
    {"presence_penalty": 0.8, "frequency_penalty": 0.3, "temperature": 0.4, "logprobs": 2},
    {"temperature": 0.6, "logit_bias": {7: 3.0, 9: -4.0}, "min_p": 0.02}, {"temperature": 0.3, "n": 2, "logprobs": 1},
)


class Knows:
    """A head that knows what is answered, by sequence id, and errs with one guess of four."""

    seconds = 0.0

    def __init__(self, answers: Mapping[int, tuple[int, ...]], seed: int = 0) -> None:
        self.answers = answers
        self.random = random.Random(seed)

    def guess(self, plan: Plan, known: Mapping[int, Sequence], tables: object, count: int,
              context: int) -> dict[int, tuple[int, ...]]:
        found = {}
        for id, s in known.items():
            at = len(s.answer)
            following = self.answers[id][at : at + count]
            found[id] = tuple(t if self.random.random() < 0.75 else self.random.randrange(100) for t in following)
        return found


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[..., Loaded]]:
    """Loads a tiny model with steps of up to 16 tokens; the same settings give the same one."""
    found: dict[str, Loaded] = {}

    def make(name: str, **settings: Any) -> Loaded:
        key = f"{name} {sorted(settings.items())}"
        if key not in found:
            config = EngineConfig(device="numpy", max_context=160, max_step_tokens=16, max_batch=8, **settings)
            found[key] = load(str(PATHS[name]), config, silent)
        return found[key]

    yield make
    for loaded in found.values():
        loaded.runner.close()


def requests(found: Loaded, count: int, seed: int = 0) -> list[tuple[list[int], Sampling]]:
    """Prompts that repeat themselves, and settings of every kind."""
    draw = random.Random(seed)
    out = []
    for i in range(count):
        piece = [draw.randrange(found.info.vocab) for _ in range(draw.choice((1, 3, 7, 12)))]
        out.append((piece * 2, Sampling(seed=seed * 100 + i, max_tokens=draw.randrange(8, 28), ignore_eos=i % 4 != 3,
                                        **KINDS[(i + seed) % len(KINDS)])))
    return out


def answers(engine: Engine, found: Loaded, wanted: list[tuple[list[int], Sampling]], apart: int = 0) -> list[
        list[Event]]:
    """Events of all requests; each comes `apart` steps after the one before."""
    streams = []
    for prompt, sampling in wanted:
        streams.append(Stream(engine, make_request(found.text, found.info.vocab, prompt, sampling, {})))
        for _ in range(apart):
            engine.step()
    while engine.step():
        pass
    return [list(stream) for stream in streams]


def plain(events: list[list[Event]]) -> list[tuple[Any, ...]]:
    """Everything about the events of each choice, and usage, but times and what became of guesses."""
    found = []
    for one in events:
        (usage,) = [e.usage for e in one if e.usage is not None]
        said = [(e.index, e.text, e.reasoning, e.token_ids, e.logprobs, e.finish_reason, e.error)
                for e in sorted(one, key=lambda e: e.index)]
        found.append((said, usage.prompt_tokens, usage.completion_tokens))
    return found


def ids_of(events: list[list[Event]], wanted: list[tuple[list[int], Sampling]]) -> dict[int, tuple[int, ...]]:
    """Answers by the sequence ids of a fresh engine."""
    found: list[tuple[int, ...]] = []
    for one, (_, sampling) in zip(events, wanted, strict=True):
        found += [tuple(t for e in one if e.index == i for t in e.token_ids) for i in range(sampling.n)]
    return dict(enumerate(found))


def speculating(found: Loaded, least: int, most: int, ngrams: bool = False, head: Any = None) -> Engine:
    """An engine whose rows bring `least` to `most` guesses."""
    speculator = Speculator(Speculation(ngrams, head is not None, least, most), head)
    limits = msgspec.structs.replace(found.limits, checked=16, reach=most)
    return Engine(found.runner, limits, found.text.tokenizer, found.info.vocab, speculator)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_without_guesses(opened: Callable[..., Loaded], name: str, batch: int) -> None:
    found = opened(name)
    for seed in range(2):
        wanted = requests(found, 8, seed)
        groups = [wanted[i : i + batch] for i in range(0, 8, batch)]
        bare = [answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found, group)
                for group in groups]
        for depth in range(1, 9):
            accepted = drafted = 0
            for group, expected in zip(groups, bare, strict=True):
                engine = speculating(found, depth, depth, head=Knows(ids_of(expected, group), depth))
                assert plain(answers(engine, found, group)) == plain(expected), (name, batch, depth)
                stats = engine.stats()
                accepted, drafted = accepted + stats.accepted_tokens, drafted + stats.drafted_tokens
                assert len(stats.drafted_at) <= depth and stats.pages_used == 0
            assert 0.2 * drafted < accepted < 0.9 * drafted


@pytest.mark.parametrize("name", NAMES)
def test_ngrams_change_nothing(opened: Callable[..., Loaded], name: str) -> None:
    found, held = opened(name), 0
    few = dict.fromkeys((3, 4, 5), 40.0)  # answers of three tokens repeat themselves
    wanted = [(prompt, msgspec.structs.replace(s, max_tokens=30, logit_bias=few)) for prompt, s in requests(found, 8)]
    expected = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found, wanted)
    for least, most in ((0, 8), (1, 1), (3, 3), (8, 8), (2, 15)):
        engine = speculating(found, least, most, ngrams=True)
        assert plain(answers(engine, found, wanted)) == plain(expected), (name, least, most)
        held += engine.stats().accepted_tokens
    assert held > 100


@pytest.mark.parametrize("name", HEADED)
def test_the_head_of_a_model_changes_nothing(opened: Callable[..., Loaded], name: str) -> None:
    bare = opened(name, speculate="off")
    wanted = requests(bare, 8)
    expected = answers(bare.engine(), bare, wanted)
    for settings in ({"draft_max": depth, "draft_min": depth} for depth in range(1, 9)):
        found = opened(name, speculate="mtp", **settings)
        engine = found.engine()
        assert plain(answers(engine, found, wanted)) == plain(expected), (name, settings)
        assert engine.stats().drafted_tokens > 50
    found = opened(name, speculate="auto")
    assert plain(answers(found.engine(), found, wanted)) == plain(expected)


@pytest.mark.parametrize("name", HEADED)
def test_the_head_guesses_what_a_pass_over_the_whole_text_gives(opened: Callable[..., Loaded], name: str) -> None:
    """The first guess of every step, and the second from the first, against the head on the whole sequence at once."""
    found = opened(name, speculate="mtp", draft_min=2, draft_max=2)
    engine, seen = found.engine(), dict[int, tuple[int, ...]]()
    head = engine._speculator.head  # type: ignore[union-attr]
    assert head is not None
    guess = head.guess

    def watched(plan: Plan, known: Mapping[int, Sequence], *rest: Any) -> dict[int, tuple[int, ...]]:
        made = guess(plan, known, *rest)
        seen.update({known[id].length: tokens for id, tokens in made.items()})
        return made

    head.guess = watched  # type: ignore[method-assign]
    prompt = [random.Random(4).randrange(found.info.vocab) for _ in range(40)]
    (events,) = answers(engine, found, [(prompt, Sampling(temperature=0.8, seed=1, max_tokens=40, ignore_eos=True))])
    tokens = [*prompt, *(t for e in events for t in e.token_ids)]
    assert len(seen) > 30
    model = Model(PATHS[name])
    assert model.family.draft is not None
    params = model.family.draft.build(model.cfg, model.load)
    for length, guesses in list(seen.items())[::4]:
        hidden = np.asarray(final_hidden(model, tokens[: length - 1]))
        cache = model.cache(len(model.table[0]), model.family.draft.cache(model.cfg))
        model.length = 0
        batch = model.batch(tokens[1:length])
        y = hybrid.draft(ref, model.cfg, model.params, params, cache, batch, hidden, "float32")
        first = int(np.asarray(model.family.logits(ref, model.cfg, model.params, y))[-1].argmax())
        model.length = length - 1
        y = hybrid.draft(ref, model.cfg, model.params, params, cache, model.batch([first]), y[-1:], "float32")
        second = int(np.asarray(model.family.logits(ref, model.cfg, model.params, y))[-1].argmax())
        assert guesses == (first, second)[: len(guesses)], length


def final_hidden(model: Model, ids: list[int]) -> Any:
    model.reset()
    return model.family.forward(ref, model.cfg, model.params, model.state, model.batch(ids), "float32")


@pytest.mark.parametrize("name", NAMES)
def test_prompts_plain_rows_and_guesses_in_one_step(opened: Callable[..., Loaded], name: str,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    found, plans = opened(name), list[Plan]()
    wanted = [(prompt[:5], s) for prompt, s in requests(found, 8, 3)]
    expected = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found, wanted, 3)
    plan = scheduler.plan
    monkeypatch.setattr(engines.scheduler, "plan", lambda *given: (plans.append(plan(*given)), plans[-1])[1])
    head = Knows(ids_of(expected, wanted))
    once = head.guess
    head.guess = lambda *given: {i: g for i, g in once(*given).items() if i % 2}  # type: ignore[method-assign]
    engine = speculating(found, 3, 3, head=head)
    assert plain(answers(engine, found, wanted, 3)) == plain(expected)
    kinds = [{"guesses" if r.guesses else "prompt" if not r.samples or r.restart else "plain" for r in p.rows}
             for p in plans]
    assert {"guesses", "prompt", "plain"} in kinds
    assert max(sum(len(r.tokens) for r in p.rows) for p in plans) <= 16


@pytest.mark.parametrize("name", ["llama", "qwen3_5"])
def test_preemption_in_the_middle_loses_nothing(opened: Callable[..., Loaded], name: str) -> None:
    found = opened(name)
    wanted = [(prompt, msgspec.structs.replace(s, max_tokens=60, ignore_eos=True))
              for prompt, s in requests(found, 4, 1)]
    expected = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found, wanted)
    engine = speculating(found, 4, 4, head=Knows(ids_of(expected, wanted)))
    engine.limits = msgspec.structs.replace(engine.limits, pages=6)
    engine._state = scheduler.start(engine.limits)
    assert plain(answers(engine, found, wanted)) == plain(expected)
    assert engine.stats().preemptions > 0 and engine.stats().accepted_tokens > 20


@pytest.mark.parametrize("name", ["llama", "qwen3_5_moe"])
def test_ends_within_guesses(opened: Callable[..., Loaded], name: str) -> None:
    """Stop strings, stop tokens and the most tokens end an answer where they do without guesses."""
    found = opened(name)
    prompt = [3, 5, 3, 5, 3, 5]
    free = Sampling(temperature=0.6, seed=5, max_tokens=50, ignore_eos=True)
    (whole,) = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found,
                       [(prompt, free)])
    tokens = [t for e in whole for t in e.token_ids]
    texts = [e.text for e in whole if e.text.strip() and "\ufffd" not in e.text]
    assert len(texts) > 10
    samplings = [*(msgspec.structs.replace(free, stop_token_ids=(tokens[i],)) for i in range(2, 40, 4)),
                 *(msgspec.structs.replace(free, stop=(text,)) for text in texts[2::3]),
                 *(msgspec.structs.replace(free, max_tokens=n) for n in range(1, 12)),
                 msgspec.structs.replace(free, ignore_eos=False)]
    for sampling in samplings:
        bare = Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab)
        expected = answers(bare, found, [(prompt, sampling)])
        engine = speculating(found, 5, 5, head=Knows({0: tuple(tokens)}))
        got = answers(engine, found, [(prompt, sampling)])
        assert plain(got) == plain(expected), sampling
        assert engine.stats().generated_tokens == bare.stats().generated_tokens
        usage = got[0][-1].usage
        assert usage is not None and usage.accepted_tokens <= usage.completion_tokens
        assert engine.stats().pages_used == 0


def test_what_became_of_guesses_is_counted(opened: Callable[..., Loaded]) -> None:
    found = opened("llama")
    sampling = Sampling(temperature=0.9, seed=2, max_tokens=40, ignore_eos=True)
    expected = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found,
                       [([4, 5, 6], sampling)])
    head = Knows(ids_of(expected, [([4, 5, 6], sampling)]))
    engine = speculating(found, 3, 3, head=head)
    (events,) = answers(engine, found, [([4, 5, 6], sampling)])
    stats, usage = engine.stats(), events[-1].usage
    assert usage is not None and usage.completion_tokens == 40
    assert (usage.drafted_tokens, usage.accepted_tokens) == (stats.drafted_tokens, stats.accepted_tokens)
    assert stats.drafted_tokens == sum(stats.drafted_at) and stats.accepted_tokens == sum(stats.accepted_at)
    assert stats.steps == 40 - stats.accepted_tokens
    assert all(a <= d for a, d in zip(stats.accepted_at, stats.drafted_at, strict=True))
    assert list(stats.accepted_at) == sorted(stats.accepted_at, reverse=True)
    assert Stats() == Stats(drafted_at=(), accepted_at=())


def test_bad_guesses_are_given_up_and_good_ones_are_kept(opened: Callable[..., Loaded]) -> None:
    found = opened("llama")
    wanted = [([4, 5, 6], Sampling(temperature=0.9, seed=2, max_tokens=140, ignore_eos=True))]
    expected = answers(Engine(found.runner, found.limits, found.text.tokenizer, found.info.vocab), found, wanted)
    (ids,) = ids_of(expected, wanted).values()
    made = []
    for answer in (ids, tuple((t + 1) % 100 for t in ids)):
        head = Knows({0: answer})
        head.random = type("Never", (), {"random": lambda self: 0.0})()  # type: ignore[assignment]
        engine = speculating(found, 0, 4, head=head)
        engine._speculator._rates[0] = Rates((0.9,) * 15)  # type: ignore[union-attr]
        assert plain(answers(engine, found, wanted)) == plain(expected)
        made.append(engine.stats())
    assert made[0].accepted_tokens == made[0].drafted_tokens > 80 and made[0].steps < 60
    assert made[1].accepted_tokens == 0 and made[1].drafted_at[0] < 100


def test_settings_that_contradict_the_model_are_refused(opened: Callable[..., Loaded]) -> None:
    with pytest.raises(ConfigError, match="speculate = mtp: the model has no head"):
        opened("llama", speculate="mtp")
    with pytest.raises(ConfigError, match="draft_min = 9 is above draft_max = 8"):
        opened("llama", draft_min=9)
    off = opened("qwen3_5", speculate="off")
    assert off.engine()._speculator is None and off.limits.checked == off.limits.spares == 0
    loaded = opened("qwen3_5", speculate="mtp", draft_max=3, draft_min=3)
    assert loaded.info.weight_bytes > off.info.weight_bytes and loaded.info.kv_token_bytes > off.info.kv_token_bytes
    assert loaded.info.decode_bytes == off.info.decode_bytes
