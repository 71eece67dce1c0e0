"""Quantised activations on a GPU, through the stand-ins where it has no block-scaled instructions: shapes of real
models and tails against float64, fused kernels against their parts, and what a row's bits depend on."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.ops.ref.quantize import dequantize
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Quantized, Weight
from blackwell_infer.quant.tiled import paired

pytestmark = pytest.mark.gpu
Values = np.ndarray[Any, Any]
FORMS = ("nvfp4", "mxfp8", "fp8", "fp8_block")
BOUNDS = {"nvfp4": 2e-5, "mxfp8": 2e-3, "fp8": 2e-3, "fp8_block": 2e-3}
"""Of float32 sums, relative to the largest: E4M3 products may be aligned to about 14 bits before they are added"""
LEVELS = {"nvfp4": 0.12, "mxfp8": 0.04, "fp8": 0.04, "fp8_block": 0.04}
"""Relative error (root mean square) of a product of normal activations against the one without quantisation"""


def placed(q: CudaQueue, w: Weight) -> Weight:
    return Weight(w.format, w.shape, tuple(q.put(np.asarray(part)) for part in w.parts))


def host(q: CudaQueue, x: Quantized) -> Quantized:
    return Quantized(x.format, x.shape, tuple(q.download(part).result() for part in x.parts))


def same(a: Quantized, b: Quantized) -> bool:
    """Whether two results on the host have the same bits."""
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in zip(a.parts, b.parts, strict=True))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("m", "n", "k"), [
    (1, 4096, 4096), (2, 6144, 4096), (16, 28672, 4096), (17, 4096, 14336), (33, 1030, 2816), (64, 3072, 8192),
    (100, 151, 64), (129, 2561, 1024), (1000, 4096, 4096), (4096, 1024, 2048), (4095, 200, 576)])
def test_products_of_real_shapes(queue: CudaQueue, form: str, m: int, n: int, k: int) -> None:
    rng, ops = np.random.default_rng(m + n), CudaOps(queue)
    x, w = inputs.activations(rng, (m, k), "bfloat16"), inputs.weight(rng, form, n, k)
    wide = FORMATS[form].dequantize(w).astype(np.float64)
    with queue.step():
        made = ops.quantize(queue.put(x), form)
        y = queue.download(ops.linear_quantized(made, (placed(queue, paired(w)),), "float32")).result()
        found = host(queue, made)
    assert same(found, ref.quantize(x, form))
    some = np.unique(np.concatenate([rng.integers(0, m, 48), [0, m - 1]]))
    want = dequantize(found)[some].astype(np.float64) @ wide.T
    plain = x[some].astype(np.float64) @ wide.T
    assert np.abs(y[some] - want).max() < BOUNDS[form] * np.abs(want).max()
    assert np.sqrt(np.square(y[some] - plain).mean() / np.square(plain).mean()) < LEVELS[form]


@pytest.mark.parametrize("form", ["nvfp4", "mxfp8", "fp8_block"])
@pytest.mark.parametrize(("dtype", "m", "k"), [("bfloat16", 1, 4096), ("float16", 200, 14336), ("float32", 7, 192)])
def test_fused_quantisers_are_their_parts(queue: CudaQueue, form: str, dtype: str, m: int, k: int) -> None:
    rng, ops = np.random.default_rng(k), CudaOps(queue)
    x, other = (queue.put(inputs.activations(rng, (m, k), dtype)) for _ in range(2))
    gate_up = queue.put(inputs.activations(rng, (m, 2 * k), dtype))
    norm, recorded = queue.put(rng.uniform(-2, 2, k).astype(np.float32)), queue.put(np.full(1, 2.0**-7, np.float32))
    with queue.step():
        pairs = [(ops.rms_norm_quantize(x, norm, 1e-5, form, recorded),
                  ops.quantize(ops.rms_norm(x, norm, 1e-5), form, recorded)),
                 (ops.add_rms_norm_quantize(x, other, norm, 1e-5, form)[1],
                  ops.quantize(ops.add_rms_norm(x, other, norm, 1e-5)[1], form)),
                 (ops.swiglu_quantize(gate_up, form, recorded), ops.quantize(ops.swiglu(gate_up), form, recorded))]
        for fused, parts in pairs:
            assert same(host(queue, fused), host(queue, parts))


@pytest.mark.parametrize("form", FORMS)
def test_a_row_has_the_same_bits_alone_and_in_company(queue: CudaQueue, form: str,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "libraries", frozenset())
    rng, ops = np.random.default_rng(1), CudaOps(queue)
    x = inputs.activations(rng, (300, 2816), "bfloat16")
    w = placed(queue, paired(inputs.weight(rng, form, 520, 2816)))

    def run(some: Values) -> Values:
        with queue.step():
            return queue.download(ops.linear_quantized(ops.quantize(queue.put(some), form), (w,), "float32")).result()

    together = run(x)
    for first, last in ((0, 1), (5, 6), (3, 10), (0, 16), (17, 40), (100, 228), (299, 300)):
        assert run(x[first:last]).tobytes() == together[first:last].tobytes(), (first, last)
