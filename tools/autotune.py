#!/usr/bin/env python3
"""Measure which tiling of the small matmul is fastest on the GPU at hand, for the matrices of some models.

    python tools/autotune.py qwen3-8b.gguf qwen3-30b-a3b.gguf            # writes blackwell_infer/tuned/<arch>.json
    python tools/autotune.py model/ --rows 1 8 --repeat 15 --dry         # only says what it would measure

Reads headers to see which matrices a decode step multiplies, and times every tiling that fits for every number of
activation rows that has a kernel. A candidate must first give the bits of the default tiling, and those the values of
NumPy; one that does not ends the run. Times are medians, inside a graph of dependent launches over weights that lie in
more memory than the L2 cache holds. A choice is written if it beats the default by 2 %; entries of other matrices and
other GPUs stay.
"""
from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from blackwell_infer.checkpoint import open_checkpoint, resolve
from blackwell_infer.config import EngineConfig
from blackwell_infer.device.check import SHARED_LIMIT
from blackwell_infer.device.dry import DryQueue
from blackwell_infer.device.info import list_devices
from blackwell_infer.device.open import open_queue
from blackwell_infer.device.queue import Queue
from blackwell_infer.device.record import Launched
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.engine.load import survey
from blackwell_infer.engine.profile import DryModel, record
from blackwell_infer.errors import BlackwellInferError, KernelError
from blackwell_infer.kernels import tuned
from blackwell_infer.log import silent
from blackwell_infer.ops import inputs
from blackwell_infer.ops.cuda import small
from blackwell_infer.ops.cuda.arrange import arrange
from blackwell_infer.ops.cuda.small import STATIC, Part, Tiling
from blackwell_infer.ops.cuda.staged import staged
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Weight

ACT = "bfloat16"
CHECKED = 256
"""Rows of weights that are drawn, repeated to the whole matrix, and compared with NumPy"""
CACHED, COPIES = 256 << 20, 24
"""Bytes that no L2 cache holds, and most copies of a matrix that are timed in turn"""
TOLERANCE = 2e-5
"""Largest error over the deviation of results: sums are float32"""
GAIN = 0.98
ENDLESS = 1 << 50


class Clock(Queue, Protocol):
    """A queue that can tell how long work takes."""

    def elapsed_ms(self, work: Callable[[], None]) -> float: ...
    def sync(self) -> None: ...


class Matrix(msgspec.Struct, frozen=True, order=True):
    """A weight [n, k] that the small matmul reads."""

    form: str
    n: int
    k: int


class Timing(msgspec.Struct, frozen=True):
    """Microseconds of a tiling; the first of a list is the default's."""

    tiling: Tiling
    us: float


def matrices(model: str, arch: str, sm_count: int) -> set[Matrix]:
    """What a decode step of one token multiplies by the small matmul."""
    checkpoint = open_checkpoint(resolve(model, revision="main", progress=silent))
    try:
        dry = DryModel(survey(checkpoint, EngineConfig(), on_host=False), checkpoint, 256, 1,
                       DryQueue(arch, sm_count, total=ENDLESS))
        launches = record(dry.queue, dry.model, dry.tokens, dry.context, (64,), False).launches
    finally:
        checkpoint.close()
    found = set()
    for launch in launches:
        if isinstance(launch, Launched) and launch.variant.kernel is small.SMALL:
            given = dict(zip((p.name for p in small.SMALL.params), launch.args, strict=True))
            if given["N1"]:  # two matrices share what a launch has
                continue
            form = dict(launch.variant.defines)["SECOND" if given["SECOND"] else "FORMAT"]
            found.add(Matrix(str(form), int(given["N"]), int(given["K"])))  # type: ignore[arg-type]
    return found


def candidates(matrix: Matrix, rows: int, arch: str, sm_count: int) -> list[Tiling]:
    """The default tiling, then all others that fit; nothing if so many rows have no kernel."""
    shape, room = small.geometry(matrix.form, matrix.n, matrix.k), SHARED_LIMIT[arch] - STATIC

    def chosen(wanted: Tiling | None) -> Tiling | None:
        found = small.choose([(matrix.form, matrix.n)], shape, rows, matrix.k, sm_count, room, wanted)
        return found[1] if found and small.kernel_rows(shape, rows) == rows else None

    default = chosen(None)
    if default is None:
        return []
    others = [t for t in small.TILINGS[shape.warps, rows] if t != default and chosen(t) == t]
    return [default, *others]


def weights(queue: Queue, matrix: Matrix, rng: np.random.Generator) -> tuple[list[Weight], np.ndarray[Any, Any]]:
    """Copies of a matrix on the device, and the float64 values of its first rows."""
    form, n, k = matrix.form, matrix.n, matrix.k
    block = inputs.weight(rng, form, min(n, CHECKED), k)
    raw = [np.asarray(part) for part in block.parts]
    parts = [np.concatenate([part] * -(-n // len(part)))[:n] for part in raw]
    count = min(max(1, -(-CACHED // sum(part.nbytes for part in parts))), COPIES)
    copies = [arrange(queue, Weight(form, (n, k), tuple(queue.put(part) for part in parts))) for _ in range(count)]
    return copies, FORMATS[form].dequantize(block).astype(np.float64)


def timings(queue: Clock, matrix: Matrix, rows: int, tilings: Sequence[Tiling], copies: Sequence[Weight],
            values: np.ndarray[Any, Any], repeat: int) -> list[Timing]:
    """Each tiling's time. KernelError: one gives other bits than the default, or wrong values."""
    x = np.random.default_rng(rows).standard_normal((rows, matrix.k)).astype(inputs.DTYPES[ACT])
    want = x.astype(np.float64) @ values.T
    there = queue.put(x)
    wide, out = queue.zeros((rows, matrix.n), np.float32), queue.zeros((rows, matrix.n), inputs.DTYPES[ACT])
    assert isinstance(wide, Tensor) and isinstance(out, Tensor)
    found, first = [], None
    for tiling in tilings:
        with queue.step():
            small.multiply(queue, staged(queue, there), [Part(copies[0], None, 0)], wide, tiling)
        got = np.asarray(queue.download(wide).result())
        first = got if first is None else first
        error = np.abs(got[:, : len(values)] - want).max() / want.std()
        if not np.array_equal(got, first) or not error < TOLERANCE:
            raise KernelError(f"{matrix} with {rows} rows in {tiling}: error {error:.2g}, or other bits than the "
                              "default")

        def pass_over(tiling: Tiling = tiling) -> None:
            blocks = staged(queue, there)
            for w in copies:
                small.multiply(queue, blocks, [Part(w, None, 0)], out, tiling)

        graph = queue.capture(pass_over)
        graph.run()
        times = [queue.elapsed_ms(graph.run) for _ in range(repeat)]
        graph.close()
        found.append(Timing(tiling, 1e3 * statistics.median(times) / len(copies)))
    return found


def tune(queue: Clock, found: Sequence[Matrix], rows: Sequence[int],
         repeat: int) -> Iterator[tuple[str, Timing, Timing]]:
    """(key, default, best) of every matrix and number of rows that has a choice."""
    rng = np.random.default_rng(0)
    for matrix in found:
        wanted = [(m, candidates(matrix, m, queue.arch, queue.sm_count)) for m in rows]
        wanted = [(m, tilings) for m, tilings in wanted if len(tilings) > 1]
        if wanted:
            copies, values = weights(queue, matrix, rng)
        for m, tilings in wanted:
            times = timings(queue, matrix, m, tilings, copies, values, repeat)
            key = tuned.key(small.SMALL.entry, matrix.form, matrix.n, matrix.k, m)
            yield key, times[0], min(times, key=lambda t: t.us)


def merged(tables: dict[int, tuned.Table], gpu: str, sm_count: int, results: Sequence[tuple[str, Timing, Timing]],
           date: str) -> dict[int, tuned.Table]:
    """The tables with these results in place of older ones for the same keys."""
    old = tables[sm_count].choices if sm_count in tables else {}
    kept = {key: value for key, value in old.items() if key not in {key for key, _, _ in results}}
    new = {key: (best.tiling.tiles, best.tiling.ahead, best.tiling.ctas) for key, default, best in results
           if best.us < GAIN * default.us}
    return {**tables, sm_count: tuned.Table(gpu, date, {**kept, **new})}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", help="checkpoints whose matrices to measure; only headers are read")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8, 16], metavar="M", help="activation rows")
    parser.add_argument("--repeat", type=int, default=9)
    parser.add_argument("--dry", action="store_true", help="list what would be measured on an sm_90a of 132 SMs")
    args = parser.parse_args(argv)
    try:
        if args.dry:
            for matrix in sorted(set().union(*(matrices(model, "sm_90a", 132) for model in args.models))):
                for m in args.rows:
                    tilings = candidates(matrix, m, "sm_90a", 132)
                    print(f"{matrix.form} {matrix.n} x {matrix.k}, {m} rows: {len(tilings)} tilings")
            return 0
        queue = open_queue(args.device)
        found = sorted(set().union(*(matrices(model, queue.arch, queue.sm_count) for model in args.models)))
        results = []
        for key, default, best in tune(queue, found, args.rows, args.repeat):  # type: ignore[arg-type]
            results.append((key, default, best))
            print(f"{key}: {default.us:.2f} us, best {best.us:.2f} us {best.tiling}", flush=True)
        gpu = next((d.name for d in list_devices().devices if d.arch == queue.arch), args.device)
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        tuned.write(queue.arch, merged(tuned.read(queue.arch), gpu, queue.sm_count, results, today))
        print(f"wrote {tuned.file_of(queue.arch)}")
    except (BlackwellInferError, OSError) as error:
        print(f"autotune: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
