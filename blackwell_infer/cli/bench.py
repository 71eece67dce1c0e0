"""`bwinfer bench`: how fast a model is over a matrix of prompts, depths and batches, and where a decode step goes."""
from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import msgspec

from blackwell_infer import config
from blackwell_infer.checkpoint import open_checkpoint, resolve
from blackwell_infer.cli.model import NAMES
from blackwell_infer.cli.progress import Bars
from blackwell_infer.cli.report import Report, Row, print_report
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.info import list_devices
from blackwell_infer.engine.footprint import PeakMemory
from blackwell_infer.engine.graphs import GraphRunner
from blackwell_infer.engine.load import Loaded, choose_device, load, step_tokens, survey
from blackwell_infer.engine.measure import Bench, Cell, Figure, Matrix, context_for, lengths_of
from blackwell_infer.engine.profile import Bandwidth, DryModel, Profile, measure_bandwidth, record, timed
from blackwell_infer.errors import ConfigError, OutOfMemoryError
from blackwell_infer.kernels.kernel import ARCHS
from blackwell_infer.log import logger

SECTIONS = ("engine",)
ENDLESS = 1 << 50
"""Bytes of a dry queue that never runs out"""
PROFILED = 15
"""Timings of each phase"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Operands of the subcommand: the matrix, and what becomes of the figures."""
    parser.add_argument("model", help=NAMES)
    for short, name, default, about in (
            ("-p", "--prompt", "512", "tokens of prompts to prefill; 0 for none"),
            ("-n", "--new", "128", "tokens to decode in each stream; 0 for none"),
            ("-d", "--depth", "0", "tokens that a stream holds before it decodes"),
            ("-b", "--batch", "1", "streams that run at once")):
        parser.add_argument(short, name, type=numbers, default=numbers(default), metavar="N,N...",
                            help=f"{about} (default: {default})")
    parser.add_argument("--accept", type=share, default=None, metavar="SHARE",
                        help="with --speculate: take this share of the guesses to hold, drawn at random, as if the "
                             "head had been that good (synthetic weights); answers mean nothing then")
    parser.add_argument("--repeat", type=positive, default=3, metavar="N",
                        help="repetitions of each figure, after one that does not count (default: 3)")
    parser.add_argument("--phases", choices=("none", "first", "all"), default="first",
                        help="take apart a decode step: of no, the first or every decode figure (default: first)")
    parser.add_argument("--bandwidth", type=rate, default=None, metavar="TB/s",
                        help="of memory, for the roofline (default: what a plain kernel reads on this GPU)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random prompts (default: 0)")
    parser.add_argument("--json", default=None, metavar="FILE", help="write the figures as JSON; - for standard output")
    parser.add_argument("--plot", type=Path, default=None, metavar="FOLDER",
                        help="draw decode speed over depth and over batch as PNG files")


def numbers(text: str) -> tuple[int, ...]:
    """"0,4096" as integers of at least 0."""
    found = tuple(int(part) for part in text.split(","))
    if min(found) < 0:
        raise ValueError(text)
    return tuple(dict.fromkeys(found))


def positive(text: str) -> int:
    """An integer of at least 1."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError(text)
    return float(text)


def rate(text: str) -> float:
    """TB/s as bytes per second."""
    if not 0 < float(text) < 1e6:
        raise ValueError(text)
    return 1e12 * float(text)


def main(found: argparse.Namespace, settings: config.Settings) -> int:
    """Measure and print. BlackwellInferError and its kind if the model cannot be loaded or a step fails."""
    if found.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib, which is not installed: pip install 'blackwell-infer[bench]'")
    matrix = Matrix(found.prompt, found.new, found.depth, found.batch)
    if 0 in matrix.batch:
        raise ConfigError("--batch 0: at least one stream is needed")
    report = measured(found, matrix, fitted(settings.engine, matrix))
    text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
    if found.json == "-":
        sys.stdout.write(text)
    else:
        print_report(report)
        if found.json is not None:
            Path(found.json).write_text(text, encoding="utf-8")
    if found.plot is not None:
        from blackwell_infer.cli.plot import draw

        for path in draw(report, found.plot):
            print(path, file=sys.stderr)
    return 0


def fitted(engine: EngineConfig, matrix: Matrix) -> EngineConfig:
    """Settings with room for the matrix, where they leave it open. Prompts are random, so nothing is guessed unless
    that is asked for by name."""
    cells = list(matrix.cells())
    speculate = "off" if engine.speculate == "auto" else engine.speculate
    guesses = 0 if speculate == "off" else engine.draft_max
    most = step_tokens(engine, choose_device(engine.device) == "numpy")
    context = engine.max_context or context_for(cells, most, guesses)
    return msgspec.structs.replace(engine, max_context=context, max_batch=max(matrix.batch), speculate=speculate)


def measured(options: argparse.Namespace, matrix: Matrix, engine: EngineConfig) -> Report:
    """Load the model and take every figure."""
    with Bars() as bars:
        path = str(resolve(options.model, revision=engine.revision, progress=bars))
        started = time.perf_counter()
        with PeakMemory() as memory:
            found = load(path, engine, bars)
        forced = msgspec.structs.replace(found.speculation, forced=options.accept)
        found = msgspec.structs.replace(found, speculation=forced)
        loaded = time.perf_counter() - started
    try:
        bench = Bench(found, options.seed)
        cells = list(matrix.cells())
        figures = []
        with Bars() as bars:
            for i, cell in enumerate(cells):
                bars("measuring", i, len(cells), "figures")
                figures.append(bench.figure(cell, options.repeat))
        dry = dry_model(path, engine, found)
        decoded = [figure.cell for figure in figures if figure.cell.test == "decode" and not figure.why]
        taken = {"none": [], "first": decoded[:1], "all": decoded}[options.phases]
        profiles = tuple(profiled(found, dry, cell) for cell in taken)
        bandwidth = bandwidth_of(options.bandwidth, found)
    finally:
        found.runner.close()
    rows = tuple(row(figure, found, dry, bandwidth) for figure in figures)
    return Report(model=Path(found.info.path).name, device=device_name(found.info.device), dtype=found.info.dtype,
                  load_seconds=loaded, peak_host_bytes=memory.grown, weight_bytes=found.info.weight_bytes,
                  repeat=options.repeat, forced=options.accept, bandwidth=bandwidth, rows=rows, profiles=profiles,
                  profiled_arch=dry.queue.arch)


def dry_model(path: str, engine: EngineConfig, found: Loaded) -> DryModel:
    """The loaded model on a queue that runs nothing; for NumPy, as it would be on a GPU."""
    runner = found.runner
    queue = DryQueue(ARCHS[0], total=ENDLESS)
    if isinstance(runner, GraphRunner):
        real = runner.queue
        queue = DryQueue(real.arch, real.sm_count, real.libraries, total=ENDLESS)
    checkpoint = open_checkpoint(Path(path), engine.mtp_file)
    try:
        return DryModel(survey(checkpoint, engine, on_host=False), checkpoint, found.limits.context,
                        found.limits.batch, queue)
    finally:
        checkpoint.close()


def profiled(found: Loaded, dry: DryModel, cell: Cell) -> Profile:
    """The phases of a decode step in the middle of a figure, timed if there is a GPU."""
    runner, lengths = found.runner, lengths_of(cell)
    if not isinstance(runner, GraphRunner) or not isinstance(runner.queue, CudaQueue):
        return dry.profile(lengths)
    recording = record(runner.queue, runner.eager.model, runner.eager.tokens, found.limits.context, lengths,
                       dry.reproducible)
    return timed(runner.queue, recording, PROFILED)


def bandwidth_of(given: float | None, found: Loaded) -> Bandwidth | None:
    """The bandwidth that was given, or that of the GPU, if there is one and it has memory to spare."""
    runner = found.runner
    if given is not None:
        return Bandwidth(given)
    if not isinstance(runner, GraphRunner) or not isinstance(runner.queue, CudaQueue):
        return None
    try:
        return measure_bandwidth(runner.queue)
    except OutOfMemoryError as error:
        logger.warning("the bandwidth is not measured, give it with --bandwidth: %s", error)
        return None


def row(figure: Figure, found: Loaded, dry: DryModel, bandwidth: Bandwidth | None) -> Row:
    """A figure with its bytes and its share of the roofline, if it decodes."""
    cell = figure.cell
    about = Row(test=cell.test, tokens=cell.tokens, depth=cell.depth, batch=cell.batch, why=figure.why)
    if figure.why:
        return about
    about = msgspec.structs.replace(about, rate=figure.rate, rates=figure.rates, seconds=figure.seconds,
                                    drafted=figure.drafted, accepted=figure.accepted)
    if cell.test == "prompt":
        return about
    info, lengths = found.info, lengths_of(cell)
    nbytes = dry.profile(lengths).cost.nbytes if info.device != "numpy" else (
        int(found.bill.step([(n, 1) for n in lengths])))
    share = None if bandwidth is None else nbytes * figure.rate / cell.batch / bandwidth.rate
    return msgspec.structs.replace(about, step_bytes=nbytes, roofline_share=share)


def device_name(device: str) -> str:
    """"cuda:0" with the name of the GPU."""
    names = {f"cuda:{d.index}": d.name for d in list_devices().devices} if device.startswith("cuda") else {}
    plain = "cuda:0" if device == "cuda" else device
    return f"{plain} {names[plain]}" if plain in names else device
