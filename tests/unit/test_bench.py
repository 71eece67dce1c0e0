"""Benchmarks: which cells a matrix has, that decoding is measured with every stream decoding, tables and plots."""
from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from blackwell_infer.cli import bench, main
from blackwell_infer.cli.report import Report, Row, figure_table, phase_table, plain, print_report, summary
from blackwell_infer.config import EngineConfig
from blackwell_infer.engine import measure
from blackwell_infer.engine.load import load
from blackwell_infer.engine.measure import Bench, Cell, Matrix, context_for, lengths_of, obstacle
from blackwell_infer.engine.profile import Bandwidth, Phase, Profile
from blackwell_infer.engine.scheduler import Limits
from blackwell_infer.errors import BlackwellInferError
from blackwell_infer.kernels.cost import Cost
from blackwell_infer.log import silent

MODEL = str(Path(__file__).resolve().parents[1] / "data" / "llama")
REPORT = Report(
    model="m.gguf", device="cuda:0 GPU", dtype="bfloat16", load_seconds=1.5, peak_host_bytes=1 << 29,
    weight_bytes=5 * 10**9, repeat=3, bandwidth=Bandwidth(4e12, 8 << 30), profiled_arch="sm_90a",
    rows=(Row(test="prompt", tokens=512, depth=0, batch=1, rate=36500.0, rates=(36400.0, 36600.0), seconds=0.014),
          Row(test="decode", tokens=128, depth=0, batch=1, rate=400.0, rates=(398.0, 402.0), seconds=0.0025,
              step_bytes=5 * 10**9, roofline_share=0.5),
          Row(test="decode", tokens=128, depth=4096, batch=8, rate=2000.0, rates=(1990.0, 2010.0), seconds=0.004,
              step_bytes=6 * 10**9, roofline_share=0.375),
          Row(test="decode", tokens=128, depth=99999, batch=8, why="too long")),
    profiles=(Profile((69,), (Phase("a(X=1)", "M 1", (3, 1, 1), (256, 1, 1), 2, Cost(8 * 10**6), 4.0),
                              Phase("b()", "", (1, 1, 1), (32, 1, 1), 1, Cost(10**6), 2.0)), 7.5),))


def test_a_matrix_goes_through_prompts_then_depths_at_every_batch() -> None:
    cells = list(Matrix((8, 0), (4,), (0, 16), (1, 2)).cells())
    assert cells == [Cell("prompt", 8, 0, 1), Cell("prompt", 8, 0, 2), Cell("decode", 4, 0, 1),
                     Cell("decode", 4, 16, 1), Cell("decode", 4, 0, 2), Cell("decode", 4, 16, 2)]


def bench_of(cells: Sequence[Cell], step_tokens: int) -> Bench:
    """The small Llama with room for these cells."""
    config = EngineConfig(device="numpy", max_step_tokens=step_tokens, max_context=context_for(cells, step_tokens),
                          max_batch=max(cell.batch for cell in cells), speculate="off")
    return Bench(load(MODEL, config, silent), seed=0)


@pytest.mark.parametrize("step_tokens", [16, 200])
def test_the_clock_runs_only_while_every_stream_decodes(step_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 60 tokens are prefilled in chunks, one stream after the other; none of that is counted."""
    cell = Cell("decode", 5, 60, 3)
    made = bench_of([cell], step_tokens)
    launched, marks = [], []
    launch = made.found.runner.launch
    monkeypatch.setattr(made.found.runner, "launch", lambda work: (launched.append(work), launch(work))[1])
    clock = measure.time.perf_counter
    monkeypatch.setattr(measure.time, "perf_counter", lambda: (marks.append(len(launched)), clock())[1])
    tokens, seconds, step = made.decode(cell)
    assert tokens == 15
    timed = [m for m in marks if m >= marks[-1] - cell.tokens]
    counted = launched[timed[0] : timed[-1]]
    assert len(counted) == cell.tokens
    for work in counted:
        assert work.batch.ids.shape[0] == work.batch.lengths.shape[0] == cell.batch
    assert 0 < step <= seconds
    longest = max(int(work.batch.lengths.max()) for work in launched)
    assert longest <= cell.context(step_tokens)
    assert abs(sum(lengths_of(cell)) / 3 - counted[2].batch.lengths.mean()) <= 3 * -(-180 // max(step_tokens - 3, 1))
    assert not made.engine.step() and made.engine.stats().running == 0


def test_guesses_hold_as_often_as_is_said() -> None:
    cell, model = Cell("decode", 60, 8, 2), str(Path(MODEL).parent / "qwen3_5")
    config = EngineConfig(device="numpy", max_context=context_for([cell], 64, 3), max_step_tokens=64, max_batch=2,
                          speculate="mtp", draft_min=3, draft_max=3)
    found = load(model, config, silent)
    forced = msgspec.structs.replace(found.speculation, forced=0.7)
    figure = Bench(msgspec.structs.replace(found, speculation=forced), seed=0).figure(cell, 2)
    assert figure.drafted > 150 and 0.4 < figure.accepted / figure.drafted < 0.65  # 0.7 + 0.49 + 0.34 of 3
    assert figure.seconds is not None and all(rate > 1.5 * 2 * 0.5 / figure.seconds for rate in figure.rates)
    rows = (Row(test="decode", tokens=60, depth=8, batch=2, rate=9.0, rates=(9.0,), drafted=figure.drafted,
                accepted=figure.accepted),)
    report = msgspec.structs.replace(REPORT, rows=rows, forced=0.7)
    assert f"{figure.accepted} of {figure.drafted}" in plain(figure_table(report))
    assert "chance of 0.7 each" in summary(report)[-1]


def test_every_repetition_has_a_figure() -> None:
    made = bench_of([Cell("prompt", 30, 0, 2), Cell("decode", 4, 0, 2)], 64)
    prompt, decode = made.figure(Cell("prompt", 30, 0, 2), 3), made.figure(Cell("decode", 4, 0, 2), 2)
    assert len(prompt.rates) == 3 and len(decode.rates) == 2
    assert prompt.seconds is not None and prompt.seconds <= 60 / min(prompt.rates) * 1.0001


def test_streams_that_end_early_are_an_error() -> None:
    made = bench_of([Cell("decode", 4, 8, 1)], 64)
    with pytest.raises(BlackwellInferError, match="ended before it was over"):
        made.decode(Cell("decode", 90, 8, 1))


@pytest.mark.parametrize(("cell", "said"), [
    (Cell("decode", 4, 0, 9), "9 streams, max_batch is 8"), (Cell("decode", 64, 100, 1), "max_context is 128"),
    (Cell("decode", 4, 90, 4), "20 pages of cache, 12 fit"), (Cell("decode", 4, 10, 2), "")])
def test_what_does_not_fit_is_known_before(cell: Cell, said: str) -> None:
    assert said in obstacle(cell, Limits(batch=8, step_tokens=4096, score_tokens=1, pages=12, context=128))
    assert bool(said) == bool(obstacle(cell, Limits(8, 4096, 1, 12, 128)))


def test_tables_hold_every_figure() -> None:
    text = plain(figure_table(REPORT))
    assert text == (
        "medians of 3\n"
        "model   device      dtype     test        depth  batch  tok/s         range      ms  GB/step  roofline\n"
        "m.gguf  cuda:0 GPU  bfloat16  prompt 512      0      1  36500  36400..36600  14.000\n"
        "m.gguf  cuda:0 GPU  bfloat16  decode 128      0      1  400.0  398.0..402.0   2.500    5.000    50.0 %\n"
        "m.gguf  cuda:0 GPU  bfloat16  decode 128   4096      8   2000    1990..2010   4.000    6.000    37.5 %\n"
        "m.gguf  cuda:0 GPU  bfloat16  decode 128  99999      8      -      too long\n")
    assert plain(phase_table(REPORT.profiles[0], REPORT)) == (
        "one decode step of 1 row with 69 keys, kernels for sm_90a\n"
        "kernel             shape   grid  launches   us     MB  GB/s  roofline\n"
        "a(X=1)             M 1    3x1x1         2  4.0  8.000  2000    50.0 %\n"
        "b()                       1x1x1         1  2.0  1.000   500    12.5 %\n"
        "sum of the phases                       3  6.0  9.000  1500    37.5 %\n"
        "the whole step                          3  7.5  9.000  1200    30.0 %\n"
        "gap                                        1.5\n")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_drawn_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    print_report(REPORT, out)
    shown = out.getvalue()
    assert "measured over 8.590 GB" in shown and "36500" in shown and "─" in shown and "the whole step" in shown


def test_plots_are_png_files(tmp_path: Path) -> None:
    from blackwell_infer.cli.plot import draw, series

    paths = draw(REPORT, tmp_path / "plots")
    assert [p.name for p in paths] == ["decode_over_depth.png", "decode_over_batch.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    assert series(REPORT, "depth", "batch") == {1: [(0, 400.0, 398.0, 402.0)], 8: [(4096, 2000.0, 1990.0, 2010.0)]}
    assert series(REPORT, "batch", "depth") == {0: [(1, 400.0, 398.0, 402.0)], 4096: [(8, 2000.0, 1990.0, 2010.0)]}


def test_without_matplotlib_a_plot_is_refused_before_anything_is_loaded(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    assert main.main(["bench", "absent", "--plot", "plots"]) == 1
    assert "pip install 'blackwell-infer[bench]'" in capsys.readouterr().err


def test_settings_make_room_for_the_matrix() -> None:
    matrix = Matrix((512,), (128,), (0, 4096), (1, 8))
    fitted = bench.fitted(EngineConfig(max_step_tokens=4096), matrix)
    assert fitted.max_batch == 8 and 4096 + 128 < fitted.max_context < 4096 + 128 + 96
    assert bench.fitted(EngineConfig(max_context=64), matrix).max_context == 64


BLOCK = """
import time
from blackwell_infer.engine.footprint import PeakMemory
with PeakMemory() as memory:
    block = bytearray(b"x") * (64 << 20)
    until = time.monotonic() + 30
    while memory.grown < 60 << 20 and time.monotonic() < until:
        time.sleep(0.01)
    del block
print(memory.grown)
"""


def test_memory_that_a_block_takes_is_seen() -> None:
    """In a process of its own: what other tests leave behind may be freed while the block is held."""
    run = subprocess.run([sys.executable, "-c", BLOCK], check=True, capture_output=True, text=True, timeout=120)
    assert 60 << 20 < int(run.stdout) < 256 << 20
