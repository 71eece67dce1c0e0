"""What decode steps are said to move, and how fast."""
from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from scripted import LIMITS, VOCAB, Desk, byte_text

from blackwell_infer.config import EngineConfig
from blackwell_infer.engine.engine import Engine
from blackwell_infer.engine.load import Loaded, load
from blackwell_infer.engine.scheduler import Plan, Row
from blackwell_infer.engine.traffic import FADE, Bill, Traffic, decodes, share, spans
from blackwell_infer.log import silent

DATA = Path(__file__).resolve().parents[1] / "data"
ROW = Row(id=0, slot=0, tokens=(5,), start=40, pages=(0, 1), new_pages=0, restart=False, samples=True, scores=False)


def test_weights_once_keys_of_every_row_states_of_every_token() -> None:
    bill = Bill(weights=1000, keys=((0, 10), (16, 1)), state=7)
    assert bill.step([]) == 1000
    assert bill.step([(41, 1)]) == 1000 + 410 + 16 + 14
    assert bill.step([(41, 1), (5, 1)]) == 1000 + 410 + 16 + 14 + 50 + 5 + 14
    assert bill.step([(44, 4)]) == 1000 + 440 + 19 + 5 * 7, "four tokens see 19 keys together, and leave four states"


def test_of_experts_as_many_as_tokens_differ() -> None:
    bill = Bill(experts=((800, 2, 8),))
    assert bill.step([(9, 1)]) == 200
    assert bill.step([(9, 1), (9, 1)]) == pytest.approx(800 * (1 - 0.75**2)) == bill.step([(9, 2)])
    assert bill.step([(9, 1)] * 100) == pytest.approx(800)


def test_the_newest_steps_count_most() -> None:
    traffic = Traffic()
    assert (traffic.step_bytes, traffic.bytes_per_second) == (0, 0)
    for _ in range(300):
        traffic = traffic.add(100, 2)
    assert traffic.step_bytes == pytest.approx(100) and traffic.bytes_per_second == pytest.approx(50)
    after = traffic.add(100, 4)
    assert after.bytes_per_second == pytest.approx(50 / (1 + FADE), rel=1e-3)
    for _ in range(300):
        after = after.add(300, 1)
    assert after.step_bytes == pytest.approx(300, rel=1e-3) and after.bytes_per_second == pytest.approx(300, rel=1e-3)


def test_a_decode_step_brings_no_prompt() -> None:
    def of(**change: object) -> bool:
        return decodes(Plan((ROW, msgspec.structs.replace(ROW, id=1, **change))))

    assert of() and of(tokens=(5, 6, 7), guesses=2) and not decodes(Plan(()))
    assert not of(tokens=(5, 6)) and not of(restart=True)
    assert not of(samples=False) and not of(samples=False, scores=True)
    assert spans(Plan((ROW,))) == [(41, 1)]


def test_share() -> None:
    assert share(30.0, 60) == 0.5 and share(30.0, 0) is None


def test_an_engine_counts_the_steps_that_decode() -> None:
    desk = Desk(byte_text(), ["abcdefgh"])
    desk.engine = Engine(desk.script, LIMITS, desk.text.tokenizer, VOCAB, bill=Bill(weights=500, keys=((0, 10),)))
    stream = desk.ask(0, "ab", max_tokens=8)
    desk.engine.step()
    assert desk.engine.stats().step_bytes == 0, "the prompt"
    desk.engine.step()
    first = desk.engine.stats()
    assert first.step_bytes == 500 + 10 * (len(stream.request.prompt) + 1) and first.bytes_per_second > 0
    desk.run()
    assert desk.engine.stats().step_bytes > first.step_bytes


def of(name: str) -> Loaded:
    return load(str(DATA / name), EngineConfig(device="numpy", max_context=64, max_batch=2), silent)


def test_the_bill_of_a_dense_model() -> None:
    found = of("llama")
    assert found.bill == Bill(found.info.decode_bytes, (), ((0, found.info.kv_token_bytes),), 0)
    assert found.bill.step([(10, 1)]) == found.info.decode_bytes + 10 * found.info.kv_token_bytes


def test_the_bill_of_windows_experts_and_states() -> None:
    (window, size), = of("mistral").bill.keys
    assert window > 0 and size == of("mistral").info.kv_token_bytes
    found = of("mixtral")
    assert found.bill.experts and found.bill.weights < found.info.decode_bytes
    assert found.bill.step([(1, 1)]) - found.info.kv_token_bytes == pytest.approx(found.info.decode_bytes, rel=1e-3)
    found = of("qwen3_5")
    assert found.bill.state == found.info.state_bytes > 0
