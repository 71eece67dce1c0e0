"""The device functions of NVFP4 and MXFP8, native and stand-in, against definitions: conversions and single mma."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param
from blackwell_infer.kernels.source import source_root
from blackwell_infer.ops import ref
from blackwell_infer.ops.ref.quantize import e2m1
from blackwell_infer.quant.packed import E2M1, E4M3, E8M0
from blackwell_infer.quant.tiled import from_tiles

Values = np.ndarray[Any, Any]
ARCHS = ("sm_90a", "sm_100f", "sm_120f")
ONE = (1, 1, 1)
SOURCE = """
#include "nvfp4.cuh"
#include "mxfp8.cuh"
extern "C" __global__ void encode(const float* x, u32* y, u32* z) {
    y[threadIdx.x] = cvt_e2m1x8(x + 8 * threadIdx.x);
    z[threadIdx.x] = cvt_e2m1x2(x[8 * threadIdx.x + 6], x[8 * threadIdx.x + 7]);
}
extern "C" __global__ void decode(float* y) {
    f16x2_to_floats(e2m1_pair(threadIdx.x << 16, 2), y[2 * threadIdx.x], y[2 * threadIdx.x + 1]);
}
extern "C" __global__ void block(const float* x, u32* scales, u32* codes, float global) {
    float v[16];
    for (int i = 0; i < 16; i++) v[i] = x[16 * threadIdx.x + i];
    const nvfp4_block b = quantize_nvfp4(v, global);
    scales[threadIdx.x] = b.scale;
    codes[2 * threadIdx.x] = b.codes[0];
    codes[2 * threadIdx.x + 1] = b.codes[1];
}
extern "C" __global__ void product(const u32* a, const u32* b, const u32* sa, const u32* sb, float* d) {
    const int lane = threadIdx.x;
    const u32 fragment[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
    float c[4] = {d[4 * lane], d[4 * lane + 1], d[4 * lane + 2], d[4 * lane + 3]};
    FUNCTION(c, fragment, b[2 * lane], b[2 * lane + 1], sa[lane], sb[lane]);
    for (int i = 0; i < 4; i++) d[4 * lane + i] = c[i];
}
"""
WORDS = tuple(Param(name, "in", "uint32") for name in ("a", "b", "sa", "sb"))
NVFP4 = {(ta, tb): f"mma_nvfp4<{ta},{tb}>" for ta in (0, 1) for tb in range(4)}
MXFP8 = {(byte, ta, tb): f"mma_mxfp8<{byte},{ta},{tb}>" for byte in range(4) for ta, tb in ((0, 0), (1, 3), (0, 2))}
FUNCTION = {"FUNCTION": (*NVFP4.values(), *MXFP8.values())}
ANY = {"FUNCTION": ("mma_nvfp4<0,0>",)}
ENCODE = Kernel("test.cu", "encode", (Param("x", "in", "float32"), Param("y", "out", "uint32"),
                                      Param("z", "out", "uint32")), ANY).variant(FUNCTION="mma_nvfp4<0,0>")
DECODE = Kernel("test.cu", "decode", (Param("y", "out", "float32"),), ANY).variant(FUNCTION="mma_nvfp4<0,0>")
BLOCK = Kernel("test.cu", "block", (Param("x", "in", "float32"), Param("scales", "out", "uint32"), Param(
    "codes", "out", "uint32"), Param("factor", "f32")), ANY).variant(FUNCTION="mma_nvfp4<0,0>")
PRODUCT = Kernel("test.cu", "product", (*WORDS, Param("d", "inout", "float32")), FUNCTION)


@pytest.fixture(scope="module", params=ARCHS)
def queue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EmulatedQueue:
    root = tmp_path_factory.mktemp("sources") / "ptx"
    shutil.copytree(Path(source_root()) / "include", root / "include")
    (root / "test.cu").write_text(SOURCE)
    return EmulatedQueue(request.param, Builder(request.param, None, root))


def nibbles(words: Values) -> Values:
    return (words[:, None] >> np.arange(0, 32, 4, dtype=np.uint32) & np.uint32(15)).astype(np.uint8)


def test_encoding_rounds_as_the_reference(queue: EmulatedQueue) -> None:
    halves = np.asarray([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], np.float32)
    near = np.concatenate([halves, np.nextafter(halves, np.float32(9)), np.nextafter(halves, np.float32(0))])
    x = np.concatenate([near, -near, [0.0, -0.0, 6, 6.5, 1e30, -np.inf], np.linspace(-7, 7, 976)]).astype(np.float32)
    y, z = queue.empty((128,), np.uint32), queue.empty((128,), np.uint32)
    queue.launch(ENCODE, ONE, (128, 1, 1), queue.put(x), y, z)
    codes = nibbles(queue.download(y).result())
    assert np.array_equal(codes.reshape(-1), e2m1(x))
    assert np.array_equal(queue.download(z).result(), codes[:, 6] | codes[:, 7] << 4)


def test_a_nan_becomes_the_largest(queue: EmulatedQueue) -> None:
    y, z = queue.empty((1,), np.uint32), queue.empty((1,), np.uint32)
    queue.launch(ENCODE, ONE, ONE, queue.put(np.full(8, np.nan, np.float32)), y, z)
    assert queue.download(y).result().tolist() == [0x77777777]


def test_decoding_gives_every_value(queue: EmulatedQueue) -> None:
    y = queue.empty((512,), np.float32)
    queue.launch(DECODE, ONE, (256, 1, 1), y)
    codes = np.arange(256)
    assert queue.download(y).result().tobytes() == np.stack((E2M1[codes & 15], E2M1[codes >> 4]), axis=1).tobytes()


def test_a_block_is_quantised_as_the_reference(queue: EmulatedQueue) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((32, 64)) * np.exp2(rng.integers(-14, 14, (32, 1)))).astype(np.float32)
    x[3, 5], x[4, 40], x[5] = np.nan, np.inf, 0
    scales, codes = queue.empty((128,), np.uint32), queue.empty((256,), np.uint32)
    queue.launch(BLOCK, ONE, (128, 1, 1), queue.put(x), scales, codes, 2.0**-5 / 3)
    want = ref.quantize(x, "nvfp4", np.full(1, 2.0**-5 / 3, np.float32))
    assert np.array_equal(queue.download(scales).result().reshape(32, 4), from_tiles(np.asarray(want.parts[1]), 32, 4))
    assert queue.download(codes).result().tobytes() == np.asarray(want.parts[0]).tobytes()


LANE = np.arange(32)
G, T = LANE >> 2, LANE & 3


def fragments(matrix: Values, rows: tuple[int, ...], steps: tuple[int, ...]) -> Values:
    """Registers of a matrix of bytes [rows, bytes of k]: row G + rows[i], four bytes from 4 T + steps[i]."""
    words = [np.ascontiguousarray(matrix[G[:, None] + r, 4 * T[:, None] + s + np.arange(4)]).view(np.uint32)
             for r, s in zip(rows, steps, strict=True)]
    return np.concatenate(words, axis=1)


def run(queue: EmulatedQueue, function: str, a: Values, b: Values, sa: Values, sb: Values, c: Values) -> Values:
    """c [16, 8] plus the product; scales are words per lane."""
    at = [(G + 8 * (i // 2), 2 * T + i % 2) for i in range(4)]
    d = queue.put(np.stack([c[index] for index in at], axis=1))
    words = (fragments(a, (0, 8, 0, 8), (0, 0, 16, 16)), fragments(b, (0, 0), (0, 16)), sa, sb)
    queue.launch(PRODUCT.variant(FUNCTION=function), ONE, (32, 1, 1), *(queue.put(w) for w in words), d)
    got, found = np.zeros((16, 8), np.float32), queue.download(d).result()
    for i, index in enumerate(at):
        got[index] = found[:, i]
    return got


def lanes(rng: np.random.Generator, words: Values, first: int) -> Values:
    """A word per lane: `words` of row g (and g + 8) in lanes 4g + first (and the next), noise elsewhere."""
    out = rng.integers(0, 2**32, 32, np.uint32)
    for i in range(len(words) // 8):
        out[4 * np.arange(8) + first + i] = words[8 * i : 8 * i + 8]
    return out


@pytest.mark.parametrize("lane", NVFP4)
def test_nvfp4_mma(queue: EmulatedQueue, lane: tuple[int, int]) -> None:
    rng = np.random.default_rng(lane)
    codes = [rng.integers(0, 256, (rows, 32)).astype(np.uint8) for rows in (16, 8)]
    scales = [rng.integers(0, 0x7F, (rows, 4)).astype(np.uint8) for rows in (16, 8)]
    a, b = (np.stack((E2M1[x & 15], E2M1[x >> 4]), axis=2).reshape(-1, 64) * E4M3[s].repeat(16, axis=1)
            for x, s in zip(codes, scales, strict=True))
    c = rng.standard_normal((16, 8)).astype(np.float32)
    firsts = (2 * lane[0], lane[1])
    words = [lanes(rng, s.view(np.uint32)[:, 0], first) for s, first in zip(scales, firsts, strict=True)]
    got = run(queue, NVFP4[lane], *codes, *words, c)
    want = a.astype(np.float64) @ b.T.astype(np.float64) + c
    assert np.abs(got - want).max() <= 2.0**-22 * np.abs(want).max()


@pytest.mark.parametrize("lane", MXFP8)
def test_mxfp8_mma(queue: EmulatedQueue, lane: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(lane)
    codes = [rng.standard_normal((rows, 32)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8) for rows in (16, 8)]
    scales = [rng.integers(110, 140, rows).astype(np.uint8) for rows in (16, 8)]
    a, b = (E4M3[x] * E8M0[s][:, None] for x, s in zip(codes, scales, strict=True))
    words = []
    for s, first in zip(scales, (2 * lane[1], lane[2]), strict=True):
        word = rng.integers(0, 2**32, len(s), np.uint32).view(np.uint8).reshape(-1, 4)
        word[:, lane[0]] = s
        words.append(lanes(rng, word.view(np.uint32)[:, 0], first))
    got = run(queue, MXFP8[lane], *codes, *words, np.zeros((16, 8), np.float32))
    want = a.astype(np.float64) @ b.T.astype(np.float64)
    assert np.abs(got - want).max() <= 2.0**-22 * np.abs(want).max()
