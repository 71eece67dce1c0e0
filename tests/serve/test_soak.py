"""Many streams that behave badly leave nothing behind."""
from __future__ import annotations

import pytest
import soak


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


@pytest.mark.slow
def test_ten_minutes() -> None:
    check(soak.soak(streams=64, seconds=600))
