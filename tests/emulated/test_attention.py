"""The ways to one result of decode attention, bit for bit: fused or in two ops, splits merged here or there, alone or
among others, token by token or together."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import cases, inputs
from blackwell_infer.ops.batch import Batch
from blackwell_infer.ops.cuda import CudaOps, attention
from blackwell_infer.ops.cuda.staged import Staged, plain, staged
from blackwell_infer.types import Array

NAN = float("nan")
FUSED = [c for c in cases.CASES if c.op == "attention_"]
SPREAD = [c for c in FUSED if "/8x2/D128/" in c.name or "/7x1/D64/" in c.name or "/2x2/D256/" in c.name
          or "/4x2/D512/" in c.name]
Shape = tuple[str, tuple[int, int], int]
Bits = dict[str, np.ndarray[Any, Any]]


def bits(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(a).view(np.uint16 if a.dtype.itemsize == 2 else np.uint32)


def placed(queue: EmulatedQueue, kwargs: inputs.Kwargs) -> inputs.Kwargs:
    return {name: cases.walk(value, queue.put) for name, value in kwargs.items()}


def rows(queue: EmulatedQueue, out: Array) -> np.ndarray[Any, Any]:
    """The bits of a result. If it comes staged, its blocks are those of staging its rows."""
    if isinstance(out, Staged):
        blocks, again = (queue.download(x.blocks).result() for x in (out, staged(queue, out.rows)))
        assert np.array_equal(blocks, again)
    return bits(queue.download(plain(out)).result())


def fused(queue: EmulatedQueue, kwargs: inputs.Kwargs) -> Bits:
    """Output and cache of the one op."""
    with queue.step():
        k = placed(queue, kwargs)
        out = CudaOps(queue).attention_(**k)
        return {"out": rows(queue, out), "cache": bits(queue.download(k["kv"].data).result())}


def apart(queue: EmulatedQueue, kwargs: inputs.Kwargs) -> Bits:
    """The same of the two ops."""
    with queue.step():
        k, ops = placed(queue, kwargs), CudaOps(queue)
        q = ops.qkv_rope_append_(k["kv"], k["qkv"], k["batch"], k["rope_table"], k["heads"], k["q_norm"], k["k_norm"],
                                 k["eps"])
        out = ops.attend(q, k["kv"], k["batch"], k["scale"], k["window"], k["softcap"])
        return {"out": rows(queue, out), "cache": bits(queue.download(k["kv"].data).result())}


def same(a: Bits, b: Bits) -> None:
    for name in a:
        assert np.array_equal(a[name], b[name]), f"{name}: {(a[name] != b[name]).sum()} of {a[name].size} differ"


@pytest.mark.parametrize("case", FUSED, ids=lambda c: c.name)
def test_the_fused_op_gives_the_bits_of_its_parts(emulated: Callable[..., EmulatedQueue], case: cases.Case) -> None:
    same(fused(emulated("sm_90a"), cases.make(case)), apart(emulated("sm_90a"), cases.make(case)))


@pytest.mark.parametrize("case", SPREAD, ids=lambda c: c.name)
def test_it_does_not_matter_who_merges_the_splits(emulated: Callable[..., EmulatedQueue], case: cases.Case,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    found = [fused(emulated("sm_90a"), cases.make(case))]
    for name, value in (("JOINED", 0), ("JOINED", 1 << 20), ("COUNTERS", 0), ("PARTS_BYTES", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(attention, name, value)
            found.append(fused(emulated("sm_90a"), cases.make(case)))
    roomy = emulated("sm_90a")
    roomy.sm_count = 1 << 20  # every CTA has an SM to itself, and holds twice as many keys
    found.append(fused(roomy, cases.make(case)))
    for other in found[1:]:
        same(found[0], other)


def test_counts_are_left_at_zero(emulated: Callable[..., EmulatedQueue]) -> None:
    queue = emulated("sm_90a", seed=4)
    kwargs = [cases.make(c) for c in SPREAD[:2]]
    first = [fused(queue, k) for k in kwargs]
    for before, k in zip(first, kwargs, strict=True):
        same(before, fused(queue, k))


def parts(kwargs: inputs.Kwargs, step: int) -> Iterator[tuple[slice, Batch]]:
    """The rows of a batch one by one, at most `step` tokens at a time, in order."""
    batch = kwargs["batch"]
    for row in range(len(batch.lengths)):
        end = int(batch.starts[row + 1])
        for at in range(int(batch.starts[row]), end, step):
            part = slice(at, min(at + step, end))
            n, length = part.stop - part.start, int(batch.positions[part.stop - 1]) + 1
            yield part, msgspec.structs.replace(
                batch, ids=batch.ids[part], positions=batch.positions[part], rows=np.zeros(n, np.int32),
                starts=np.asarray([0, n], np.int32), lengths=np.asarray([length], np.int32),
                pages=batch.pages[row : row + 1], outputs=np.zeros(0, np.int32), max_new=n, max_length=length)


@pytest.mark.parametrize("step", [1, 3, 16])
@pytest.mark.parametrize("window", [0, 300])
@pytest.mark.parametrize("shape", [("bfloat16", (6, 2), 128), ("float16", (20, 1), 64), ("bfloat16", (3, 1), 512)])
def test_a_row_alone_and_in_pieces_gives_the_bits_of_the_batch(
        emulated: Callable[..., EmulatedQueue], shape: Shape, window: int, step: int) -> None:
    dtype, heads, dim = shape
    kwargs = inputs.make_attention(np.random.default_rng(dim), dtype, heads, dim, dim, ((0, 5), (700, 4), (250, 7)), 3,
                                   window, 0.0, True, NAN, ())
    queue = emulated("sm_90a")
    together = fused(queue, kwargs)
    with queue.step():
        k = placed(queue, kwargs)
        for part, batch in parts(kwargs, step):
            alone = {**k, "batch": cases.walk(batch, queue.put), "qkv": queue.put(kwargs["qkv"][part])}
            out = CudaOps(queue).attention_(**alone)
            assert isinstance(out, Staged) == (heads[0] // heads[1] * dim % 256 == 0)
            assert np.array_equal(rows(queue, out), together["out"][part]), (part, step)
        assert np.array_equal(bits(queue.download(k["kv"].data).result()), together["cache"])


@pytest.mark.parametrize(("dtype", "dim"), [("bfloat16", 64), ("float16", 512), ("float32", 8)])
def test_reproducible_rows_do_not_depend_on_how_many_tokens_come_at_once(
        emulated: Callable[..., EmulatedQueue], dtype: str, dim: int) -> None:
    kwargs = inputs.make_attention(np.random.default_rng(dim), dtype, (4, 2), dim, dim, ((0, 40), (250, 19), (3, 1)), 2,
                                   0, 0.0, True, NAN, ())
    queue = emulated("sm_90a")
    ops = CudaOps(queue, reproducible=True)
    with queue.step():
        whole = placed(queue, kwargs)
        together = bits(queue.download(plain(ops.attention_(**whole))).result())
        for step in (1, 17):
            k = placed(queue, kwargs)
            for part, batch in parts(kwargs, step):
                alone = {**k, "batch": cases.walk(batch, queue.put), "qkv": queue.put(kwargs["qkv"][part])}
                out = ops.attention_(**alone)
                assert np.array_equal(bits(queue.download(plain(out)).result()), together[part]), (part, step)
