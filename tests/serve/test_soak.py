"""Many streams that behave badly leave nothing behind."""
from __future__ import annotations

import pytest
import soak
from soak_streams import KNOWN, STILL, Watch, ended, says, steps_for


def check(report: soak.Report) -> None:
    assert report.faults == ()
    for outcome in ("complete", "cut", "status 400", "status 413", "unfinished body"):
        assert report.outcomes.get(outcome), f"no request with the outcome {outcome}"
    assert report.tokens and report.gap_p50 and report.gap_p99 >= report.gap_p50


def test_some_seconds() -> None:
    check(soak.soak(streams=8, seconds=10, warm=2))


def test_a_leak_is_seen() -> None:
    before = soak.Left(pages=0, sequences=0, tasks=1, threads=9, descriptors=11, memory=280.0)
    after = soak.Left(pages=2, sequences=1, tasks=3, threads=10, descriptors=12, memory=281.0 + soak.GROWTH)
    assert len(list(soak.faults_of(before, after))) == 6
    assert list(soak.faults_of(before, before)) == []


def test_patience_counts_the_steps_of_the_engine() -> None:
    watch = Watch(patience=100, overtaking=5)
    first = watch.submit()
    assert watch.look(100, True, now=1e9) == "" and watch.fault(first) == ""
    second = watch.submit()
    watch.look(101, True, now=1e9)
    assert "100 steps" in watch.fault(first) and watch.fault(second) == ""
    watch.over(first, complete=True)
    assert watch.fault(first) == "" and watch.most_steps == 101


def test_an_engine_that_stands_still_is_seen() -> None:
    watch = Watch(patience=100, overtaking=5)
    assert watch.look(7, True, now=1e9) == "" and watch.look(7, True, now=1e9 + STILL) == ""
    assert watch.look(7, False, now=1e9 + 2 * STILL) == "", "nothing is to be done"
    assert "no step" in watch.look(7, True, now=1e9 + 4 * STILL)


def test_who_is_overtaken_by_many_is_starved() -> None:
    watch = Watch(patience=100, overtaking=5)
    started, starved = watch.submit(), watch.submit()
    watch.open[started].begun = True
    for _ in range(5):
        watch.over(watch.submit(), complete=True)
    watch.over(watch.submit(), complete=False)
    assert watch.fault(starved) == ""
    watch.over(watch.submit(), complete=True)
    assert "overtaken by 6" in watch.fault(starved) and watch.fault(started) == ""
    assert watch.submit() not in (started, starved) and watch.most_overtaken == 6


def test_patience_grows_with_the_queue() -> None:
    assert steps_for(32, 0) < steps_for(32, 21) < steps_for(32, 100) < steps_for(16, 100)


def test_parts_and_ends_are_told_apart() -> None:
    assert says(b'data: {"id":"a","choices":[{"index":0,"text":"x"}]}\n')
    assert says(b'data: {"type":"response.output_text.delta","delta":"x"}\n')
    assert says(b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}\n')
    assert not says(b'data: {"type":"response.created"}\n') and not says(b'data: {"type":"message_start"}\n')
    assert (ended(b"data: [DONE]\n"), ended(b"\n")) == ("complete", "")
    assert ended(b'data: {"error":{"message":"the request did not end within its 0.3 seconds"}}\n') == "late"
    assert ended(b"event: error\n").startswith("failed") and ended(b'data: {"error":{}}\n') not in KNOWN


@pytest.mark.slow
def test_ten_minutes() -> None:
    check(soak.soak(streams=64, seconds=600))
