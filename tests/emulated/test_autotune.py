"""tools/autotune.py and the choices it writes, on the interpreter with a clock of its own."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tooling import load_tool

from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.errors import KernelError
from blackwell_infer.kernels import tuned
from blackwell_infer.kernels.kernel import ARCHS
from blackwell_infer.ops import inputs
from blackwell_infer.ops.cuda import small
from blackwell_infer.ops.cuda.small import Part, Tiling
from blackwell_infer.ops.cuda.staged import staged

DATA = Path(__file__).parents[1] / "data"
autotune = load_tool("autotune")
MATRIX = autotune.Matrix("q4_k", 4700, 512)


@pytest.fixture
def queue(emulated: Callable[..., EmulatedQueue], monkeypatch: pytest.MonkeyPatch) -> EmulatedQueue:
    """A queue on which every later measurement is faster than the one before."""
    times = iter(range(100, 0, -1))
    monkeypatch.setattr(EmulatedQueue, "elapsed_ms", lambda self, work: float(next(times)), raising=False)
    monkeypatch.setattr(autotune, "CACHED", 1)
    monkeypatch.setattr(autotune, "COPIES", 1)
    return emulated("sm_90a")


def test_a_model_says_what_to_measure() -> None:
    found = autotune.matrices(str(DATA / "qwen3"), "sm_90a", 132)
    assert found == set(), "rows of 96 elements are no whole blocks of columns"
    tilings = autotune.candidates(MATRIX, 1, "sm_90a", 132)
    assert len(tilings) > 2 and len(set(tilings)) == len(tilings)
    assert autotune.candidates(MATRIX, 3, "sm_90a", 132) == [], "no kernel of three rows"


def test_candidates_are_checked_then_timed_and_the_best_is_told(queue: EmulatedQueue) -> None:
    ((key, default, best),) = autotune.tune(queue, [MATRIX], [1], 1)
    tilings = autotune.candidates(MATRIX, 1, queue.arch, queue.sm_count)
    assert key == "linear_small q4_k 4700 512 1"
    assert (default.tiling, best.tiling) == (tilings[0], tilings[-1]) and best.us < default.us


def test_a_wrong_candidate_is_not_timed(queue: EmulatedQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = small.multiply

    def spoiled(q: EmulatedQueue, x, parts, out, wanted) -> None:  # type: ignore[no-untyped-def]
        multiply(q, x, parts, out, wanted)
        if wanted == autotune.candidates(MATRIX, 1, q.arch, q.sm_count)[1]:
            q.upload(out, np.zeros(out.shape, np.float32))

    monkeypatch.setattr(small, "multiply", spoiled)
    with pytest.raises(KernelError, match="other bits than the default"):
        list(autotune.tune(queue, [MATRIX], [1], 1))


def test_what_was_measured_is_used(queue: EmulatedQueue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default, other = autotune.candidates(MATRIX, 1, queue.arch, queue.sm_count)[:2]
    key = "linear_small q4_k 4700 512 1"
    results = [(key, autotune.Timing(default, 3.0), autotune.Timing(other, 2.0)),
               ("within noise", autotune.Timing(default, 3.0), autotune.Timing(other, 2.99))]
    tables = autotune.merged({7: tuned.Table("x", "y", {"a": (1,)})}, "GPU", queue.sm_count, results, "2026-01-01")
    tuned.write("sm_90a", tables, tmp_path)
    assert tuned.read("sm_90a", tmp_path) == tables and set(tables) == {7, queue.sm_count}
    assert tables[queue.sm_count].choices == {key: (other.tiles, other.ahead, other.ctas)}
    seen: list[Tiling | None] = []
    choose = small.choose

    def spy(sizes, shape, m, k, sm_count, shared, wanted):  # type: ignore[no-untyped-def]
        seen.append(wanted)
        return choose(sizes, shape, m, k, sm_count, shared, wanted)

    monkeypatch.setattr(small, "choose", spy)
    monkeypatch.setattr(tuned, "choices", lambda arch, count: tuned.read(arch, tmp_path)[count].choices)
    ((w,), _) = autotune.weights(queue, MATRIX, np.random.default_rng(0))
    x = queue.put(np.ones((1, MATRIX.k), inputs.DTYPES["bfloat16"]))
    with queue.step():
        small.multiply(queue, staged(queue, x), [Part(w, None, 0)], queue.empty((1, MATRIX.n), np.float32))
    assert seen == [other]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    tuned.file_of("sm_90a", tmp_path).write_text('{"132": {"gpu": 1}}')
    with pytest.raises(KernelError, match=r"sm_90a.json: .*run tools/autotune.py again"):
        tuned.read("sm_90a", tmp_path)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_choice_that_ships_fits(arch: str) -> None:
    for sm_count, table in tuned.read(arch).items():
        for key, choice in table.choices.items():
            entry, form, n, k, rows = key.split()
            assert entry == small.SMALL.entry
            shape = small.geometry(form, int(n), int(k))
            found = small.choose([(form, int(n))], shape, int(rows), int(k), sm_count,
                                 SHARED_LIMIT[arch] - small.STATIC,
                                 Tiling(*choice))
            assert found is not None and found[1] == Tiling(*choice), key
