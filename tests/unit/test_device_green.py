"""Partitions of SMs over a pretended driver: sizes, splits, streams, what closes, and the errors."""
from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_device_cuda import HEAD, folder, run  # noqa: F401  (fixtures)

from blackwell_infer.device.green import Capacity, plan
from blackwell_infer.errors import DeviceError

GPU = Capacity("GPU 0 (Fake GPU)", 132, 8, 8)
GREEN = HEAD + '''
import logging
from blackwell_infer.device.green import capacity, open_partitions
fake.fake_last_sms.restype = ctypes.POINTER(ctypes.c_uint8 * 17)
x, y = q.put(np.arange(5, dtype=np.float32)), q.zeros((5,), np.float32)
def sms(queue, factor=2.0):
    # The SMs that a launch on a queue may use; its result is checked.
    queue.follow(q)
    queue.launch(SCALE, ONE, (32, 1, 1), x, y, 5, factor)
    assert queue.download(y).result().tolist() == [factor * i for i in range(5)]
    bits = np.unpackbits(np.frombuffer(fake.fake_last_sms().contents, np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[:132]).tolist())
'''
DRIVERS = ("13000", "13010")
"""Before and since a split may give groups of different sizes."""


@given(st.lists(st.integers(1, 140), min_size=1, max_size=8), st.booleans())
def test_planned_sizes_are_whole_steps_that_fit(counts: list[int], rest: bool) -> None:
    rounded = [max(8, (n + 7) // 8 * 8) for n in counts]
    wanted: list[int | None] = [*counts, *([None] if rest else [])]
    if sum(rounded) + rest > 132:
        with pytest.raises(DeviceError, match=f"need {sum(rounded) + rest} .* 132 exist"):
            plan(GPU, wanted)
    else:
        assert plan(GPU, wanted) == (*rounded, *([132 - sum(rounded)] if rest else []))


def test_a_partition_has_at_least_the_smallest_size() -> None:
    assert plan(Capacity("GPU", 20, 4, 2), (1, 5, None)) == (4, 6, 10)


@pytest.mark.parametrize("counts", [(), (0,), (-8, 16), (None,), (None, 8), (8, None, None)])
def test_counts_that_mean_nothing(counts: tuple[int | None, ...]) -> None:
    with pytest.raises(DeviceError, match="give positive numbers; only the last of several may be None"):
        plan(GPU, counts)


@pytest.mark.parametrize("version", DRIVERS)
def test_queues_run_on_disjoint_sms(run: Callable[..., str], version: str) -> None:  # noqa: F811
    run('''
assert capacity(q).total == q.sm_count == 132 and capacity(q).step == 8
for counts, sizes in (((32, 64), (32, 64)), ((16,), (16,)), ((30, 1, 41), (32, 8, 48)), ((64, 64), (64, 64)),
                      ((24, 40, None), (24, 40, 68))):
    parts, used, waits = open_partitions(q, counts), set(), fake.fake_waits()
    assert tuple(p.sm_count for p in parts) == sizes and fake.fake_live_green() == len(parts)
    for part in parts:
        mine = sms(part)
        assert len(mine) == part.sm_count and not mine & used
        used |= mine
    assert fake.fake_waits() == waits + len(parts) and sms(q) == set(range(132))
    for part in reversed(parts):
        part.close(); part.close()
    assert fake.fake_live_green() == 0 and len(sms(q)) == 132
''', head=GREEN, FAKE_DRIVER_VERSION=version)


def test_partitions_share_memory_and_outlive_the_first_queue(run: Callable[..., str]) -> None:  # noqa: F811
    run('''
a, b = open_partitions(q, (8, None))
found = []
def work():
    with a.step():
        z = a.put(np.ones(4, np.float32))
        a.launch(SCALE, ONE, ONE, z, x, 4, 3)
        found.append(b.download(x).result()[:4].tolist())
worker = threading.Thread(target=work)
worker.start(); worker.join()
assert found == [[3] * 4] and a.elapsed_ms(lambda: a.launch(SCALE, ONE, ONE, x, y, 1, 0)) == 1.25
t = a.zeros((1 << 20,), np.float32)
free = q.memory()[0]
a.close(); q.close()
assert not b.download(t).result().any()
del t; gc.collect()
assert b.memory()[0] >= free + (4 << 20)
b.close()
assert fake.fake_live_green() == 0
''', head=GREEN)


def test_rounding_is_logged(run: Callable[..., str]) -> None:  # noqa: F811
    run('''
lines = []
class Lines(logging.Handler):
    def emit(self, record): lines.append(record.getMessage())
log = logging.getLogger("blackwell_infer")
log.setLevel(logging.INFO); log.addHandler(Lines())
open_partitions(q, (30, 16, None))
assert lines == ["GPU 0 (Fake GPU): a partition of 30 SMs was asked for and has 32"], lines
''', head=GREEN)


@pytest.mark.parametrize("version", DRIVERS)
def test_too_many_sms(run: Callable[..., str], version: str) -> None:  # noqa: F811
    run('''
text = raises(DeviceError, lambda: open_partitions(q, (66, 66)))
assert text.startswith("GPU 0 (Fake GPU): partitions of [66, 66] SMs need 144 (in steps of 8"), text
assert "132 exist" in text and fake.fake_live_green() == 0
''', head=GREEN, FAKE_DRIVER_VERSION=version)
    code = '''
text = raises(DeviceError, lambda: open_partitions(q, (16, 24, 16)))
assert text.startswith("GPU 0 (Fake GPU): the driver refuses partitions of [16, 24, 16] of its 132 SMs: "), text
assert REASON in text and text.endswith("ask for fewer or smaller ones") and fake.fake_live_green() == 0
'''
    reason = "it made 5 of 7 groups" if version == DRIVERS[0] else "insufficient"
    run(code.replace("REASON", repr(reason)), head=GREEN, FAKE_DRIVER_VERSION=version, FAKE_DRIVER_GREEN="40")


@pytest.mark.parametrize(("environment", "reason"), [
    ({"FAKE_DRIVER_GREEN": "0"}, "cuDeviceGetDevResource is not found"),
    ({"FAKE_DRIVER_VERSION": "12030", "CUDA_PYTHON_DISABLE_MAJOR_VERSION_WARNING": "1"}, "driver 12.4 or newer"),
])
def test_a_driver_without_green_contexts(run: Callable[..., str], environment: dict[str, str],  # noqa: F811
                                         reason: str) -> None:
    run(f'''
for call in (lambda: capacity(q), lambda: open_partitions(q, (16, 16))):
    text = raises(DeviceError, call)
    assert text.startswith("GPU 0 (Fake GPU): the driver has no green contexts"), text
    assert {reason!r} in text and "install NVIDIA driver 580 or newer" in text, text
q.launch(SCALE, ONE, ONE, x, y, 5, 2)
assert q.download(y).result().tolist() == [0, 2, 4, 6, 8]
''', head=GREEN, **environment)


def test_what_was_opened_before_a_failure_is_closed(run: Callable[..., str]) -> None:  # noqa: F811
    run('''
fake.fake_refuse_green_after(2)
text = raises(DeviceError, lambda: open_partitions(q, (16, 16, 16)))
assert "refuses partitions of [16, 16, 16]" in text and fake.fake_live_green() == 0, text
''', head=GREEN)
