"""The step loop around a runner that is not there: scripted tokens, failures, text, reasoning, checks of requests."""
from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from scripted import END, LIMITS, VOCAB, Desk, Said, Script, byte_text

from blackwell_infer import errors
from blackwell_infer.engine.batch import Work, bucket
from blackwell_infer.engine.request import (
    check_sampling,
    default_sampling,
    derived_seed,
    is_chat,
    is_many,
    make_request,
    read_ids,
)
from blackwell_infer.errors import (
    BlackwellInferError,
    ConfigError,
    DeviceError,
    ModelOutputError,
    OutOfMemoryError,
    RequestError,
)
from blackwell_infer.text.load import Text
from blackwell_infer.types import Message, Sampling

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def text() -> Text:
    return byte_text()


@pytest.fixture(params=[0, 1])
def depth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Whether steps are read at once, or after the next one was launched."""
    monkeypatch.setattr(Script, "depth", request.param)
    return int(request.param)


both = pytest.mark.usefixtures("depth")


@both
def test_characters_come_whole(text: Text) -> None:
    desk = Desk(text, ["né 日本 ☃", text.tokenizer.encode("ab☃", bos=False)[:-1]])
    stream = desk.ask(0, max_tokens=len(desk.script.answers[0]))
    desk.run()
    events = list(stream)
    assert "".join(e.text for e in events) == "né 日本 ☃"
    assert all("\ufffd" not in e.text for e in events) and sum(not e.text for e in events) == 7
    assert desk.answer(1, max_tokens=4).text == "ab\ufffd"


@both
def test_stop_strings_across_tokens(text: Text) -> None:
    desk = Desk(text, ["one END two", "abcabd tail"])
    out = desk.answer(0, stop=("END",))
    assert (out.text, out.finish_reason, len(out.token_ids)) == ("one ", "stop", len(text.tokenizer.encode("one END")))
    out = desk.answer(1, stop=("abd",), max_tokens=5)
    assert (out.text, out.finish_reason) == ("abcab", "length"), "held back text comes at the end"
    assert desk.engine.stats().pages_used == 0


@both
def test_the_end_token_is_in_the_ids_and_not_in_the_text(text: Text) -> None:
    desk = Desk(text, [[97, END, 98, 99]])
    out = desk.answer(0)
    assert out.token_ids == (97, END) and out.finish_reason == "stop" and END not in text.tokenizer.encode(out.text)
    assert out.usage.completion_tokens == 2
    again = desk.answer(0, ignore_eos=True, max_tokens=4)
    assert again.token_ids == (97, END, 98, 99) and again.finish_reason == "length"
    assert desk.answer(0, ignore_eos=True, stop_token_ids=(98,)).token_ids == (97, END, 98)


@both
def test_reasoning_is_split_in_chats_only(text: Text) -> None:
    from blackwell_infer.text.template import ChatTemplate

    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chatting = msgspec.structs.replace(text, template=ChatTemplate(source, "", ""), reasoning=("<think>", "</think>"))
    desk = Desk(chatting, ["<think>\nhm\n</think>\n\nyes", "still</think>no"])
    long = {"max_tokens": 200, "stop_token_ids": ()}
    first = len(desk.script.answers[0])
    out = desk.answer(0, [Message(role="user", content="q")], **{**long, "max_tokens": first})
    assert (out.text, out.reasoning) == ("yes", "hm")
    out = desk.answer(0, "q", max_tokens=first)
    assert (out.text, out.reasoning) == ("<think>\nhm\n</think>\n\nyes", "")
    out = desk.answer(1, [Message(role="user", content="q<think>")], max_tokens=len(desk.script.answers[1]))
    assert (out.text, out.reasoning) == ("no", "still")


@both
def test_logprobs_come_as_asked(text: Text) -> None:
    desk = Desk(text, ["abc", "abc", "abc"])
    streams = [desk.ask(i, max_tokens=3, logprobs=k) for i, k in enumerate((None, 0, 2))]
    desk.run()
    none, zero, two = (stream.gather() for stream in streams)
    assert none.logprobs is None
    assert zero.logprobs is not None and [p.top for p in zero.logprobs] == [(), (), ()]
    assert two.logprobs is not None and two.logprobs[0].top == ((0, -1.0), (1, -1.0))
    assert [p.token_id for p in two.logprobs] == list(two.token_ids)


@both
def test_a_failed_step_ends_its_own_requests_and_no_others(text: Text) -> None:
    desk = Desk(text, ["abcdef", "uvwxyz", "123456"], fail={3: DeviceError("it broke")})
    broken = [desk.ask(i, max_tokens=6) for i in range(2)]
    for _ in range(3):
        desk.engine.step()
    whole = desk.ask(2, max_tokens=6)
    desk.run()
    outs = [stream.gather() for stream in broken]
    assert [(o.text, o.finish_reason) for o in outs] == [("ab", "error"), ("uv", "error")]
    assert all(isinstance(s.failure, DeviceError) for s in broken)
    assert whole.gather().text == "123456" and whole.failure is None
    assert desk.engine.stats().pages_used == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_a_prompt_without_room_ends_and_running_requests_go_on(text: Text, monkeypatch: pytest.MonkeyPatch,
                                                               depth: int) -> None:
    monkeypatch.setattr(Script, "depth", depth)
    desk = Desk(text, ["abcdef", "uvwxyz", "123456"])
    running = [desk.ask(i, max_tokens=6) for i in range(2)]
    for _ in range(3):
        desk.engine.step()
    launch = desk.script.launch

    def full(work: Work) -> Said:
        if work.batch.max_new > 1:
            raise OutOfMemoryError("0 bytes are free")
        return launch(work)

    monkeypatch.setattr(desk.script, "launch", full)
    late = desk.ask(2, max_tokens=6)
    desk.run()
    assert [(s.gather().text, s.failure) for s in running] == [("abcdef", None), ("uvwxyz", None)]
    assert late.gather().finish_reason == "error" and isinstance(late.failure, OutOfMemoryError)
    assert desk.engine.stats().pages_used == 0


def test_a_launch_that_fails_does_not_lose_the_step_before(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(text, ["abcdef", "uvwxyz"])
    monkeypatch.setattr(Script, "depth", 1)
    stream = desk.ask(0, max_tokens=6)
    desk.engine.step()
    desk.engine.step()
    monkeypatch.setattr(desk.script, "launch", lambda work: 1 / 0)
    desk.engine.step()
    monkeypatch.undo()
    monkeypatch.setattr(Script, "depth", 1)
    other = desk.ask(1, max_tokens=6)
    desk.run()
    out = stream.gather()
    assert (out.text, out.finish_reason) == ("ab", "error") and other.gather().text == "uvwxyz"
    assert desk.engine.stats().pages_used == 0


def test_an_end_that_is_seen_late_drops_what_ran_meanwhile(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Script, "depth", 1)
    desk = Desk(text, [[97, END], "xyzSTOPxyz", "abcabc", "klmnop"], limits=msgspec.structs.replace(LIMITS, batch=3))
    streams = [desk.ask(0), desk.ask(1, stop=("STOP",)), desk.ask(2, max_tokens=3), desk.ask(3, max_tokens=6)]
    desk.run()
    outs = [stream.gather() for stream in streams]
    assert [(o.text, o.finish_reason) for o in outs] == [
        ("a", "stop"), ("xyz", "stop"), ("abc", "length"), ("klmnop", "length")]
    assert [len(o.token_ids) for o in outs] == [2, 7, 3, 6] == [o.usage.completion_tokens for o in outs]
    ran = [int(seed) for work in desk.script.works if work.params is not None for seed in work.params.seed]
    assert [ran.count(i) for i in range(4)] == [3, 8, 3, 6], "an end is foreseen by its length, not by its token"
    assert desk.engine.stats().generated_tokens == 18 and desk.engine.stats().pages_used == 0


@both
def test_an_unforeseen_exception_becomes_a_typed_one(text: Text, caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk(text, ["abc"], fail={2: ZeroDivisionError("1/0")})
    stream = desk.ask(0, max_tokens=3)
    desk.run()
    event = list(stream)[-1]
    assert event.finish_reason == "error" and event.error is not None and "ZeroDivisionError" in event.error
    assert type(stream.failure) is BlackwellInferError and isinstance(stream.failure.__cause__, ZeroDivisionError)
    assert "a step failed" in caplog.text


@both
def test_no_usable_distribution_is_an_error_of_one_choice(text: Text) -> None:
    desk = Desk(text, [[97, 98, -1], "wxyz"])
    bad, good = desk.ask(0, max_tokens=9), desk.ask(1, max_tokens=4)
    desk.run()
    out = bad.gather()
    assert (out.finish_reason, out.token_ids) == ("error", (97, 98)) and isinstance(bad.failure, ModelOutputError)
    assert good.gather().text == "wxyz"


@both
def test_penalties_reload_a_slot_when_a_sequence_starts_and_restarts(text: Text) -> None:
    limits = msgspec.structs.replace(LIMITS, pages=4, context=128)
    desk = Desk(text, ["a" * 80, "b" * 80], limits=limits)
    streams = [desk.ask(i, "pp", max_tokens=80, presence_penalty=0.1 * i) for i in range(2)]
    desk.run()
    assert [s.gather().text for s in streams] == ["a" * 80, "b" * 80]
    reloads = [r for w in desk.script.works for r in w.reloads]
    assert desk.engine.stats().preemptions >= 1
    assert len(reloads) == desk.engine.stats().preemptions + 1, "only the penalised one, once per start"
    assert [len(r.answer) for r in reloads] == sorted(len(r.answer) for r in reloads) and len(reloads[0].answer) == 0
    assert all(set(r.answer.tolist()) <= set(desk.script.answers[1]) for r in reloads)
    slots = {int(s) for w in desk.script.works if w.params is not None for s in np.asarray(w.params.slot)}
    assert slots & {0, 1} and -1 in slots


@both
def test_scoring_runs_in_chunks_beside_answers(text: Text) -> None:
    desk = Desk(text, ["abcdef"])
    stream = desk.ask(0, max_tokens=6)
    _, future = desk.engine.score(tuple(range(40)), True)
    desk.run()
    score = future.result()
    assert score.logprobs.tolist() == [0.0, *(float(i % 16) for i in range(39))]
    assert score.logits is not None and score.logits.shape == (40, VOCAB)
    targets = np.concatenate([w.targets for w in desk.script.works])
    assert targets.tolist() == [*range(1, 40), -1]
    assert stream.gather().text == "abcdef"


@both
def test_cancel_before_during_and_after(text: Text) -> None:
    desk = Desk(text, ["abcdef"] * 3)
    early, middle, late = (desk.ask(i, max_tokens=6) for i in range(3))
    early.close()
    for _ in range(1 + desk.script.depth):
        desk.engine.step()
    desk.engine.cancel(middle.request_id)
    desk.run()
    assert list(early) == []
    out = middle.gather()
    assert (out.text, out.finish_reason) == ("a", "cancelled")
    desk.engine.cancel(late.request_id)
    desk.engine.cancel(12345)
    desk.run()
    assert late.gather().text == "abcdef"
    id, future = desk.engine.score((1, 2, 3), False)
    desk.engine.cancel(id)
    desk.run()
    assert future.cancelled() and desk.engine.stats().pages_used == 0


@both
def test_a_loop_that_breaks_answers_every_caller(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(text, ["abc"])
    stream = desk.ask(0, max_tokens=3)
    monkeypatch.setattr(desk.engine, "step", lambda: (desk.engine._drain(), 1 / 0))
    thread = threading.Thread(target=desk.engine.run)
    thread.start()
    assert stream.gather().finish_reason in ("error", "cancelled")
    thread.join(5)
    with pytest.raises(BlackwellInferError, match="ZeroDivisionError"):
        desk.ask(0)


@pytest.mark.parametrize(("field", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", "hot"), ("top_p", 0.0), ("top_p", 1.5),
    ("top_p", math.nan), ("min_p", -1.0), ("min_p", 2.0), ("top_k", -1), ("top_k", 1.5), ("repetition_penalty", 0.0),
    ("repetition_penalty", math.inf), ("presence_penalty", math.nan), ("frequency_penalty", -math.inf), ("n", 0),
    ("n", 10**6), ("logprobs", 21), ("logprobs", -1), ("max_tokens", 0), ("seed", -1), ("seed", 1 << 64),
    ("stop", "abc"), ("stop", ("",)), ("stop", (3,)), ("stop_token_ids", (VOCAB,)), ("logit_bias", {-1: 1.0}),
    ("logit_bias", {1: math.nan}), ("logit_bias", {"a": 1.0}), ("ignore_eos", "yes"),
    # Beyond float32, in which sampling is computed: these would come out as other tokens, or as none.
    ("temperature", 1e-40), ("temperature", 1e300), ("repetition_penalty", 1e-300), ("presence_penalty", -1e39),
    ("logit_bias", {1: 1e39}), ("logit_bias", {1: math.inf}),
])
def test_a_setting_out_of_range_is_named(text: Text, field: str, value: Any) -> None:
    sampling = msgspec.structs.replace(Sampling(), **{field: value})
    with pytest.raises(RequestError, match=rf"sampling\.{field} = "):
        check_sampling(sampling, VOCAB)


def test_settings_at_the_edges_are_taken() -> None:
    check_sampling(Sampling(temperature=0, top_p=1, min_p=1, top_k=10**9, seed=(1 << 64) - 1, logprobs=20,
                            logit_bias={VOCAB - 1: -math.inf}, presence_penalty=-2, n=8), VOCAB)
    check_sampling(Sampling(temperature=1e-10, frequency_penalty=0, logit_bias={0: -1e9, 1: 0}), VOCAB)


@pytest.mark.parametrize(("prompt", "message"), [
    ([], "empty"), ("", "empty"), ([1, VOCAB], f"token id {VOCAB} at index 1"), ([-1], "token id -1"),
    ([1, "a"], "cannot be mixed"), ([1, True], "integers"), (3.5, "give a text"), (None, "give a text"),
    (np.zeros((2, 2), np.int64), "give a text"), ([1.0], "integers"), ([{"rol": "user"}], "messages"),
    (b"abc", "give a text"), ("\ud800", "Unicode"),
])
def test_a_bad_prompt_is_refused(text: Text, prompt: Any, message: str) -> None:
    from blackwell_infer.text.template import ChatTemplate

    chatting = msgspec.structs.replace(text, template=ChatTemplate("{{ messages }}", "", ""))
    with pytest.raises(RequestError, match=message):
        make_request(chatting, VOCAB, prompt, Sampling(), {})


def test_template_variables_need_messages(text: Text) -> None:
    with pytest.raises(RequestError, match="enable_thinking"):
        make_request(text, VOCAB, "a", Sampling(), {"enable_thinking": False})
    with pytest.raises(errors.TemplateError):
        make_request(text, VOCAB, [Message(role="user", content="a")], Sampling(), {})


def test_kinds_of_prompts_are_told_apart() -> None:
    chat = [{"role": "user", "content": "a"}]
    assert not any(is_many(p) for p in ("a", [1, 2], (1,), chat, [Message(role="user")], np.arange(3), 5, None))
    assert all(is_many(p) for p in (["a"], ("a", "b"), [[1], [2]], [chat, chat], [np.arange(2)], [], ["a", [1]]))
    assert is_chat(chat) and is_chat([Message(role="user")]) and not is_chat([1]) and not is_chat("a")
    assert read_ids(np.asarray([1, 2], np.int32), "x") == read_ids([np.int64(1), 2], "x") == (1, 2)


def test_defaults_of_the_model(caplog: pytest.LogCaptureFixture) -> None:
    assert default_sampling({}) == Sampling()
    assert default_sampling({"do_sample": False, "temperature": 0.7}) == Sampling(temperature=0)
    found = default_sampling({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": None,
                              "repetition_penalty": 1.05, "eos_token_id": 3})
    assert found == Sampling(temperature=0.6, top_k=20, top_p=0.95, repetition_penalty=1.05)
    assert default_sampling({"top_p": 7, "temperature": 0.5}) == Sampling(temperature=0.5)
    assert "top_p" in caplog.text


def test_derived_seeds_differ_and_the_first_is_the_seed() -> None:
    seeds = [derived_seed(s, i) for s in (0, 1, (1 << 64) - 1) for i in range(50)]
    assert len(set(seeds)) == 150 and all(0 <= s < 1 << 64 for s in seeds) and derived_seed(9, 0) == 9


def test_buckets_are_few_and_close() -> None:
    sizes = [bucket(n) for n in range(1, 100_000)]
    assert all(n <= size for n, size in enumerate(sizes, 1)) and len(set(sizes)) < 45
    assert sizes[16] == 32 and sizes[15] == 16 and sizes[0] == 1 and bucket(1025) == 1280
    assert all(size <= n * 1.25 + 1 for n, size in enumerate(sizes, 1) if n > 1024)


def test_an_unknown_keyword_of_llm_is_named() -> None:
    from blackwell_infer import LLM

    with pytest.raises(ConfigError, match="unknown setting devise; did you mean device"):
        LLM("x", devise="cuda")
    with pytest.raises(errors.CheckpointError, match="neither an existing file"):
        LLM("no such model", device="numpy")


def test_the_package_exports_what_it_lists() -> None:
    import blackwell_infer

    assert sorted(blackwell_infer.__all__) == dir(blackwell_infer)
    for name in blackwell_infer.__all__:
        assert getattr(blackwell_infer, name) is not None
    typed = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, BlackwellInferError)}
    assert typed <= set(blackwell_infer.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = blackwell_infer.nothing


def test_the_import_loads_nothing_heavy_and_names_come_on_demand() -> None:
    code = ("import sys, blackwell_infer; print(sorted({m.split('.')[0] for m in sys.modules} & "
            "{'numpy', 'cuda', 'nvmath', 'tokenizers', 'jinja2', 'msgspec'})); "
            "from blackwell_infer import LLM; print(any(m.split('.')[0] in ('cuda', 'nvmath') for m in sys.modules))")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[]", "False"]
