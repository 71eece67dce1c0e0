"""What bounds requests: deadlines, a queue, priorities, over scripted answers."""
from __future__ import annotations

import msgspec
import pytest
from scripted import LIMITS, VOCAB, Desk, Script, byte_text

from blackwell_infer.engine.request import make_request
from blackwell_infer.engine.stream import Stream
from blackwell_infer.errors import DeadlineError, QueueFullError
from blackwell_infer.text.load import Text
from blackwell_infer.types import Sampling


@pytest.fixture(scope="module")
def text() -> Text:
    return byte_text()


@pytest.fixture(params=[0, 1])
def depth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Whether steps are read at once, or after the next one was launched."""
    monkeypatch.setattr(Script, "depth", request.param)
    return int(request.param)


@pytest.mark.usefixtures("depth")
def test_a_request_past_its_deadline_ends_with_what_it_said(text: Text) -> None:
    desk = Desk(text, ["abcdefgh", "xyz"])
    late = make_request(text, VOCAB, "ab", Sampling(seed=0, max_tokens=8, n=2), {})
    late = msgspec.structs.replace(late, deadline=3600.0)
    desk.script.lengths |= {s.seed: 2 for s in late.settings}
    desk.script.answers = {1: desk.script.answers[1]} | {s.seed: desk.script.answers[0] for s in late.settings}
    stream = Stream(desk.engine, late)
    other = desk.ask(1, max_tokens=3)
    for _ in range(3):
        desk.engine.step()
    desk.engine._deadlines = dict.fromkeys(desk.engine._deadlines, 0.0)
    desk.run()
    out = stream.gather()
    assert isinstance(stream.failure, DeadlineError) and "within its 3600 seconds" in str(stream.failure)
    assert [c.finish_reason for c in out.choices] == ["error", "error"]
    assert all(0 < len(c.text) < 8 and "abcdefgh".startswith(c.text) for c in out.choices)
    assert other.gather().text == "xyz" and not desk.engine._deadlines and desk.engine.stats().pages_used == 0


def test_a_deadline_that_is_not_reached_leaves_nothing(text: Text) -> None:
    desk = Desk(text, ["abc"])
    request = make_request(text, VOCAB, "ab", Sampling(seed=0, max_tokens=3), {})
    request = msgspec.structs.replace(request, deadline=60.0)
    desk.script.lengths[0] = 2
    stream = Stream(desk.engine, request)
    desk.run()
    assert stream.gather().text == "abc" and not desk.engine._deadlines


def test_a_full_queue_refuses_and_takes_in_again_once_there_is_room(text: Text) -> None:
    desk = Desk(text, ["abc"] * 8, limits=msgspec.structs.replace(LIMITS, batch=2, queue=1))
    streams = [desk.ask(i, max_tokens=3) for i in range(3)]
    with pytest.raises(QueueFullError, match="3 answers run or wait"):
        desk.ask(3, max_tokens=3)
    desk.engine.step()
    with pytest.raises(QueueFullError, match="2 run at once and 1 may wait"):
        desk.ask(3, max_tokens=3)
    desk.run()
    assert [stream.gather().text for stream in streams] == ["abc"] * 3
    with pytest.raises(QueueFullError):
        Stream(desk.engine, make_request(text, VOCAB, "ab", Sampling(n=4), {}))
    streams = [desk.ask(i, max_tokens=3) for i in range(4, 7)]
    streams[0].close()
    desk.engine.step()
    streams.append(desk.ask(7, max_tokens=3))
    desk.run()
    assert [stream.gather().text for stream in streams[1:]] == ["abc"] * 3


def test_requests_of_higher_priority_go_first(text: Text) -> None:
    desk = Desk(text, ["abc"] * 6, limits=msgspec.structs.replace(LIMITS, batch=1))
    order: list[int] = []
    for i, priority in enumerate((0, 0, 5, -1, 5)):
        request = make_request(text, VOCAB, "ab", Sampling(seed=i, max_tokens=3), {})
        desk.script.lengths[i] = 2
        desk.engine.submit(msgspec.structs.replace(request, priority=priority),
                           lambda event, i=i: order.append(i) if event.usage else None)  # type: ignore[misc]
    desk.run()
    assert order == [2, 4, 0, 1, 3]
