"""`LLM` on real models: equal answers alone, in a batch, and after preemption. On NumPy, and with -m gpu on a GPU."""
from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blackwell_infer import LLM, Event, Message, Output, RequestError, Sampling, Score
from blackwell_infer.device.info import list_devices

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
TRAINED = SHARED / "models" / "stories260K" / "stories260K.gguf"
SMALL = TRAINED if TRAINED.is_file() else ROOT / "tests" / "data" / "llama"
TINY = ROOT / "tests" / "data" / "llama"
GREEDY = Sampling(temperature=0, max_tokens=24)

Open = Callable[..., LLM]


@pytest.fixture(params=["numpy", pytest.param("cuda", marks=pytest.mark.gpu)], scope="module")
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not list_devices().devices:
        pytest.skip(list_devices().reason)
    return str(request.param)


@pytest.fixture(scope="module")
def opened(device: str) -> Open:
    """Opens the small model in float32."""
    def make(model: Path = SMALL, **settings: Any) -> LLM:
        return LLM(str(model), **{"device": device, "dtype": "float32", "max_context": 256, **settings})
    return make


@pytest.fixture(scope="module")
def llm(opened: Open) -> Iterator[LLM]:
    with opened() as llm:
        yield llm


def idle(llm: LLM) -> bool:
    """Whether everything ends within seconds and gives its pages back."""
    for _ in range(500):
        stats = llm.stats()
        if not stats.running and not stats.waiting and not stats.pages_used:
            return True
        time.sleep(0.01)
    return False


def mixed(llm: LLM, count: int) -> tuple[list[list[int]], list[Sampling]]:
    """Prompts of 1 to 150 tokens, and settings of every kind, seeded."""
    draw = random.Random(5)
    vocab = llm.info().vocab
    prompts = [[draw.randrange(vocab) for _ in range(draw.choice((1, 2, 15, 31, 32, 33, 64, 100, 150)))]
               for _ in range(count)]
    kinds = [
        {"temperature": 0.0}, {"temperature": 0.9}, {"temperature": 1.3, "top_k": 20}, {"top_p": 0.8},
        {"min_p": 0.05, "logprobs": 3}, {"repetition_penalty": 1.3, "temperature": 0.7},
        {"presence_penalty": 0.8, "frequency_penalty": 0.5}, {"logit_bias": {7: 4.0, 11: -9.0}, "logprobs": 0},
    ]
    return prompts, [Sampling(seed=i, max_tokens=draw.randrange(4, 40), ignore_eos=i % 3 == 0,
                              **kinds[i % len(kinds)]) for i in range(count)]  # type: ignore[arg-type]


def check_equal(got: list[Output], expected: list[Output]) -> None:
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.token_ids == b.token_ids, i
        assert (a.text, a.finish_reason, a.prompt_token_ids) == (b.text, b.finish_reason, b.prompt_token_ids)
        assert (a.logprobs is None) == (b.logprobs is None)
        for x, y in zip(a.logprobs or (), b.logprobs or (), strict=True):
            assert x.token_id == y.token_id and abs(x.logprob - y.logprob) < 1e-3
            assert [t for t, _ in x.top] == [t for t, _ in y.top]


@pytest.fixture(scope="module")
def alone(llm: LLM) -> tuple[list[list[int]], list[Sampling], list[Output]]:
    """32 requests, each answered with nothing beside it."""
    prompts, samplings = mixed(llm, 32)
    return prompts, samplings, [llm.generate(p, s) for p, s in zip(prompts, samplings, strict=True)]


def test_32_requests_in_one_batch_answer_as_each_alone(llm: LLM, alone: Any) -> None:
    prompts, samplings, expected = alone
    steps = llm.stats().steps
    check_equal(llm.generate(prompts, samplings), expected)
    assert llm.stats().steps - steps < sum(len(o.token_ids) for o in expected) / 5
    assert idle(llm)


def test_few_pages_change_nothing(opened: Open, alone: Any) -> None:
    prompts, samplings, expected = alone
    with opened(kv_pages=10, max_batch=8) as llm:
        check_equal(llm.generate(prompts, samplings), expected)
        assert idle(llm)


def test_preemption_changes_nothing(llm: LLM, opened: Open) -> None:
    """Four short prompts find room together; their long answers do not."""
    prompts = [[17 + i] * 20 for i in range(4)]
    sampling = Sampling(seed=3, max_tokens=70, ignore_eos=True)
    expected = [llm.generate(p, sampling) for p in prompts]
    with opened(kv_pages=8, max_batch=8) as few:
        check_equal(few.generate(prompts, sampling), expected)
        assert few.stats().preemptions > 0
        assert idle(few)


def test_small_steps_change_nothing(opened: Open, alone: Any) -> None:
    prompts, samplings, expected = alone
    with opened(max_step_tokens=20, max_batch=4) as llm:
        check_equal(llm.generate(prompts, samplings), expected)


def test_many_threads_share_the_batch(llm: LLM, alone: Any) -> None:
    prompts, samplings, expected = alone
    found: dict[int, Output] = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: llm.generate(prompts[i], samplings[i])}))
               for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_equal([found[i] for i in range(8)], expected[:8])


def test_n_choices_come_from_derived_seeds(llm: LLM) -> None:
    sampling = Sampling(temperature=1.2, seed=11, max_tokens=12, ignore_eos=True, n=4)
    out = llm.generate([5, 6, 7], sampling)
    assert len({c.token_ids for c in out.choices}) == 4
    assert out.usage.completion_tokens == 48
    assert llm.generate([5, 6, 7], sampling).choices == out.choices
    one = llm.generate([5, 6, 7], Sampling(temperature=1.2, seed=11, max_tokens=12, ignore_eos=True))
    assert one.choices == out.choices[:1]


def test_seeds_count_and_fresh_ones_differ(llm: LLM) -> None:
    hot = {"temperature": 1.5, "max_tokens": 16, "ignore_eos": True}
    outs = [llm.generate([3, 4], Sampling(seed=seed, **hot)).token_ids for seed in (1, 1, 2, None, None)]  # type: ignore[arg-type]
    assert outs[0] == outs[1] and len(set(outs)) == 4


@pytest.mark.skipif(not TRAINED.is_file(), reason="the trained model is not beside the project")
def test_golden_tokens_of_the_trained_model(llm: LLM) -> None:
    golden = json.loads((TRAINED.parent / "golden.json").read_text(encoding="utf-8"))["greedy"]
    outs = llm.generate([g["prompt"] for g in golden], Sampling(temperature=0, max_tokens=64))
    for out, g in zip(outs, golden, strict=True):
        assert list(out.prompt_token_ids) == g["prompt_ids"]
        assert list(out.token_ids) == g["generated_ids"]
        assert (g["prompt"] + out.text).strip() == g["text"].strip()
        assert out.finish_reason == "length"


@pytest.mark.skipif(not TRAINED.is_file(), reason="the trained model is not beside the project")
def test_scores_of_the_trained_model(opened: Open) -> None:
    golden = json.loads((TRAINED.parent / "golden.json").read_text(encoding="utf-8"))["nll"][:4]
    with opened(max_context=512, max_step_tokens=200) as llm:
        for g in golden:
            text = (SHARED / g["corpus"]).read_text(encoding="utf-8")[g["char_start"]:g["char_end"]]
            ids = llm.tokenizer.encode(text)
            assert len(ids) == g["n_tokens"]
            assert -llm.score(ids).logprobs.sum(dtype=np.float64) == pytest.approx(g["sum_nll"], abs=2e-2)


def test_scores_agree_with_logits_and_with_generation(llm: LLM) -> None:
    ids = [3, 1, 4, 1, 5, 9, 2, 6] * 9
    score = llm.score(np.asarray(ids), logits=True)
    assert score.logits is not None and score.logits.shape == (len(ids), llm.info().vocab)
    z = score.logits.astype(np.float64)
    expected = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)))[np.arange(len(ids) - 1), ids[1:]]
    assert score.logprobs[0] == 0.0 and score.logprobs.dtype == np.float32
    np.testing.assert_allclose(score.logprobs[1:], expected, atol=1e-4)
    out = llm.generate(ids, Sampling(temperature=0, max_tokens=1, logprobs=2))
    assert out.token_ids[0] == int(z[-1].argmax())
    assert out.logprobs is not None and out.logprobs[0].top[0][0] == out.token_ids[0]
    assert llm.score(ids).logits is None and llm.score(ids).top_ids is None
    best = llm.score(ids, top=1)
    assert best.top_ids is not None and best.top_ids[1:, 0].tolist() == score.logits[:-1].argmax(1).tolist()
    with pytest.raises(RequestError, match="at most 20"):
        llm.score(ids, top=21)


def test_scores_do_not_depend_on_chunks_or_preemption(opened: Open, llm: LLM) -> None:
    ids = [(7 * i + i * i) % llm.info().vocab for i in range(150)]
    whole = llm.score(ids).logprobs
    with opened(max_step_tokens=17, kv_pages=8, max_batch=4) as small:
        streams = [small.stream(ids[:20], Sampling(temperature=0, max_tokens=200, ignore_eos=True)) for _ in range(3)]
        np.testing.assert_allclose(small.score(ids).logprobs, whole, atol=1e-4)
        for stream in streams:
            assert len(stream.gather().token_ids) == 200


def test_an_answer_ends_where_the_context_does(llm: LLM) -> None:
    out = llm.generate([5] * 250, Sampling(temperature=0, ignore_eos=True))
    assert out.finish_reason == "length" and len(out.token_ids) == 6
    with pytest.raises(RequestError, match="256 tokens and the context holds 256"):
        llm.generate([5] * 256)


def test_leaving_a_stream_cancels_it(llm: LLM) -> None:
    long = Sampling(temperature=1, ignore_eos=True)
    for event in llm.stream([5, 6], long):
        assert event.token_ids
        break
    assert idle(llm)
    with llm.stream([5, 6], long) as stream:
        next(stream)
    assert idle(llm) and list(stream) == []
    stream = llm.stream([5, 6], long)
    seen = [next(stream) for _ in range(3)]
    llm.cancel(stream.request_id)
    seen += list(stream)
    assert seen[-1].finish_reason == "cancelled"
    assert seen[-1].usage is not None
    assert 3 <= seen[-1].usage.completion_tokens == sum(len(e.token_ids) for e in seen) < 250
    assert idle(llm)


def test_events_add_up_to_the_output(llm: LLM) -> None:
    sampling = Sampling(temperature=1, seed=3, max_tokens=30, logprobs=1, n=2)
    events = list(llm.stream("Once upon a time", sampling))
    out = llm.generate("Once upon a time", sampling)
    assert len({e.request_id for e in events}) == 1
    for i, choice in enumerate(out.choices):
        mine = [e for e in events if e.index == i]
        assert "".join(e.text for e in mine) == choice.text
        assert tuple(t for e in mine for t in e.token_ids) == choice.token_ids
        assert [e.finish_reason for e in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == choice.finish_reason
    assert [e.usage is not None for e in events] == [False] * (len(events) - 1) + [True]
    usage = events[-1].usage
    assert usage is not None and usage.completion_tokens == sum(len(c.token_ids) for c in out.choices)
    assert usage.prompt_tokens == len(out.prompt_token_ids)
    assert usage.prefill_seconds > 0 and usage.decode_seconds > 0 and usage.queue_seconds >= 0


def test_leaving_an_asyncio_stream_cancels_it(llm: LLM) -> None:
    async def leave() -> None:
        async for _ in llm.astream([5, 6], Sampling(ignore_eos=True)):
            break
        before = llm.stats().generated_tokens
        await asyncio.to_thread(idle, llm)
        assert llm.stats().generated_tokens - before < 100  # of the 250 that the context holds

    asyncio.run(leave())
    assert idle(llm)


def test_asyncio_tasks_stream_together(llm: LLM) -> None:
    async def tell(i: int) -> list[Event]:
        return [event async for event in llm.astream([i + 3, 9], GREEDY)]

    async def run() -> tuple[Any, ...]:
        streams = await asyncio.gather(*(tell(i) for i in range(6)))
        outs = await llm.agenerate([[i + 3, 9] for i in range(6)], GREEDY)
        score = await llm.ascore([3, 9, 4])
        async with llm.astream([4, 4], Sampling(ignore_eos=True)) as left:
            await anext(left)
        task = asyncio.create_task(llm.agenerate([4, 5], Sampling(ignore_eos=True)))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return streams, outs, score

    streams, outs, score = asyncio.run(run())
    for events, out in zip(streams, outs, strict=True):
        assert tuple(t for e in events for t in e.token_ids) == out.token_ids
    check_equal(outs, [llm.generate([i + 3, 9], GREEDY) for i in range(6)])
    np.testing.assert_array_equal(score.logprobs, llm.score([3, 9, 4]).logprobs)
    assert idle(llm)


def test_stop_strings_and_stop_tokens(llm: LLM) -> None:
    free = llm.generate("Once upon a time", GREEDY)
    cut = free.text[5:8]
    out = llm.generate("Once upon a time", Sampling(temperature=0, max_tokens=24, stop=(cut, "never")))
    assert out.finish_reason == "stop" and cut not in out.text
    assert free.text.startswith(out.text) and out.text == free.text[: free.text.index(cut)]
    assert out.token_ids == free.token_ids[: len(out.token_ids)]
    end = free.token_ids[6]
    out = llm.generate("Once upon a time", Sampling(temperature=0, max_tokens=24, stop_token_ids=(end,)))
    first = free.token_ids.index(end)
    assert out.token_ids == free.token_ids[: first + 1] and out.finish_reason == "stop"
    assert free.text.startswith(out.text) and len(out.text) < len(free.text)
    assert idle(llm)


def test_a_chat_goes_through_the_template(opened: Open) -> None:
    with opened(TINY) as llm:
        messages = [Message(role="user", content="Hi")]
        out = llm.generate(messages, GREEDY)
        assert llm.template is not None
        rendered = llm.template.render(messages)
        assert out.prompt_token_ids == tuple(llm.tokenizer.encode(rendered, bos=False))
        assert out.prompt_token_ids.count(llm.tokenizer.bos_id) == 1
        as_stream = llm.stream(messages=[{"role": "user", "content": "Hi"}], sampling=GREEDY).gather()
        assert as_stream.token_ids == out.token_ids == llm.generate(list(out.prompt_token_ids), GREEDY).token_ids
        both = llm.generate([messages, [{"role": "user", "content": "Hi"}]], GREEDY)
        assert [o.token_ids for o in both] == [out.token_ids] * 2


def test_a_closed_model_refuses_and_ends_what_ran(opened: Open) -> None:
    llm = opened()
    stream = llm.stream([5, 6], Sampling(ignore_eos=True))
    next(stream)
    llm.close()
    llm.close()
    assert list(stream)[-1].finish_reason == "cancelled"
    for call in (lambda: llm.generate("a"), lambda: llm.stream("a"), lambda: llm.score([1])):
        with pytest.raises(RequestError, match="closed"):
            call()
    assert (llm.stats().running, llm.stats().waiting, llm.stats().pages_used) == (0, 0, 0)


def test_a_stream_keeps_its_model_open(opened: Open) -> None:
    assert [event.finish_reason for event in opened().stream([5, 6], Sampling(max_tokens=9, ignore_eos=True))] == [
        *[None] * 8, "length"]


def test_scoring_that_a_close_ends_is_a_typed_error(opened: Open) -> None:
    llm = opened()

    async def both() -> list[Any]:
        waiting = [asyncio.create_task(llm.ascore([5] * 250)) for _ in range(200)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(llm.close)
        return await asyncio.gather(*waiting, return_exceptions=True)

    ends = asyncio.run(both())
    assert ends and all(isinstance(end, Score | RequestError) for end in ends)
    assert isinstance(ends[-1], RequestError) and "closed" in str(ends[-1])


def test_a_fork_of_the_process_is_told_and_does_not_hang(opened: Open, device: str) -> None:
    if device != "numpy":
        pytest.skip("a process with a CUDA context must not be forked at all")
    llm = opened()
    stream = llm.stream([5, 6], Sampling(ignore_eos=True))
    next(stream)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        told = 0
        for call in (lambda: llm.generate("a"), lambda: llm.stream("a"), lambda: llm.score([1]), lambda: next(stream)):
            try:
                call()
            except RequestError as error:
                told += "forked" in str(error)
        stream.close()
        llm.close()
        os._exit(told)
    for _ in range(500):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 4
    stream.close()
    assert idle(llm) and llm.generate([5, 6], GREEDY).token_ids
    llm.close()


def test_samplings_and_messages_of_the_wrong_kind_are_refused(llm: LLM) -> None:
    for sampling in ({"temperature": 0}, 5, "greedy"):
        with pytest.raises(RequestError, match="sampl"):
            llm.generate("a", sampling)  # type: ignore[arg-type, call-overload]
    for messages, message in (("hi", "list of objects"), ([], "empty"), ([{"role": "user"}], "content")):
        with pytest.raises(RequestError, match=message):
            llm.stream(messages=messages)  # type: ignore[arg-type]
