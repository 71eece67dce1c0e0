"""Named inputs and a tolerance for every op of `ops.api`: one list for parity tests, tuning and micro-benchmarks.

The expected outputs of a case are those of `ops.ref` on the same inputs, which are already rounded to the activation
dtype. Integers (tokens, ids, counts) are always compared exactly, floats as `|got - want| <= atol + rtol * |want|`;
NaN matches NaN and an infinity the same infinity.
"""
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import repeat
from typing import Any

import msgspec
import numpy as np

from blackwell_infer.ops import cases_hybrid, cases_recurrent, cases_routed, inputs
from blackwell_infer.ops.api import Ops
from blackwell_infer.ops.case import BF16, F16, F32, FLOOR, ROUNDED, ULP, text
from blackwell_infer.ops.case import Case as Case
from blackwell_infer.ops.inputs import Bad, Kwargs, Rows, Values
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import FRAGMENTS, STACKED, SUFFIX
from blackwell_infer.quant.lanes import COLS
from blackwell_infer.types import Array

EIGHT_BIT = 2e-3
"""Absolute floor of products of E4M3 operands of size 1: tensor cores may align the terms of a sum to about 14 bits."""


def product_floor(dtype: str, forms: tuple[str, ...], tokens: int, cols: int) -> float:
    """Absolute floor of a product with weights of these formats. Weights in fragment order, and dense 16-bit ones in
    rows of whole tiles, are multiplied exactly, by up to 64 tokens or `EXACT`; more dequantise or round them first. The
    12 bits of Q6_K's codes times scales are rounded to float16 for 17 to 256."""
    most = dict.fromkeys(FRAGMENTED if dtype == F32 or cols % COLS else (*FRAGMENTED, "f16", "bf16"), 64) | EXACT
    near = {"q6_k_fragments"} if 16 < tokens <= 256 and dtype != F32 else set()
    exact = {form for form in forms if form == inputs.STORAGE[dtype] or tokens <= most.get(form, 0)}
    return max(ROUNDED[F16] if form in near else (FLOOR if form in exact else ROUNDED)[dtype] for form in forms)


NAN, INF = float("nan"), float("inf")
BAD: Bad = ((1, NAN), (3, INF), (5, -INF))
DTYPES = (F32, F16, BF16)
BLOCKS = ("q8_0", "q4_0", "q4_k", "q5_k", "q6_k")
SCALED = ("nvfp4", "nvfp4_f16", "mxfp4", "mxfp8", "fp8", "fp8_block")

NORMS: tuple[tuple[str, int, int, Bad], ...] = (
    # dtype, T, H, bad rows
    (F32, 1, 64, ()), (F32, 7, 172, ()), (F32, 33, 256, BAD), (F16, 2, 172, ()), (F16, 17, 256, BAD),
    (F16, 130, 64, ()), (BF16, 1, 4096, ()), (BF16, 3, 64, ()), (BF16, 7, 172, BAD), (BF16, 16, 256, ()),
    (BF16, 33, 2048, ()), (BF16, 130, 172, ()), (BF16, 5, 8192, ((2, NAN),)))

EMBEDS: tuple[tuple[str, str, int, int, tuple[int, ...]], ...] = (
    # dtype, format, V, H, ids (those outside [0, V) give zeros)
    (F32, "f32", 320, 64, (0,)), (F32, "bf16", 77, 172, (76, 0, 76)), (F32, "q6_k", 33, 256, (32, 1, 7, -1, 33)),
    (F16, "f16", 320, 172, (5, 319, -1, 320, 1 << 30)), (F16, "q8_0", 50, 64, (49, 48, 0)),
    (F16, "q4_0", 50, 96, (1, 1, 49)), (BF16, "f32", 320, 100, (3, 2, 1)), (BF16, "f16", 40, 64, (39,)),
    (BF16, "bf16", 1000, 256, tuple(range(0, 990, 30))), (BF16, "q4_k", 33, 512, (32, 31, 0, 5)),
    (BF16, "q5_k", 33, 256, (32, -5, 8)), (BF16, "q6_k", 320, 256, tuple(range(130))),
    (BF16, "q8_0", 320, 64, (7, 300)), (BF16, "q4_0", 320, 64, (7, 300)), (F32, "q4_k", 9, 256, (8,)),
    (F32, "q5_k", 9, 256, (8,)), (F32, "q8_0", 9, 32, (8, 0)), (F32, "q4_0", 9, 32, (8, 0)),
    *((dtype, form + SUFFIX, 41, 512, (40, 0, -1, 41, 17)) for dtype in DTYPES for form in FRAGMENTS),
    *((dtype, form, 300, 288, (299, 0, -1, 130)) for dtype in DTYPES for form in SCALED),
    (BF16, "fp8", 9, 171, (8, 0)), (F16, "fp8_block", 129, 131, (128, 0)), (BF16, "nvfp4", 9, 16, (8, 0)))

LINEARS: tuple[tuple[str, tuple[str, ...], int, int, tuple[int, ...], bool, Bad], ...] = (
    # dtype, format and rows of each block, T, K, bias, bad rows
    *((dtype, (form,), tokens, 256, (77,), False, ()) for dtype in DTYPES for form in ("f32", "f16", "bf16", *BLOCKS)
      for tokens in (1, 17)),
    *((BF16, (form,), tokens, 512, (172,), False, ()) for form in ("bf16", "q8_0", "q4_0", "q4_k", "q5_k", "q6_k")
      for tokens in (2, 3, 7, 16, 33, 130)),
    (F32, ("f32",), 1, 64, (1,), False, ()), (F32, ("f32",), 7, 172, (64,), True, ()),
    (F32, ("f32",), 33, 172, (100,), False, BAD), (F16, ("f16",), 3, 172, (65,), True, ()),
    (F16, ("f16",), 130, 64, (33,), False, BAD), (BF16, ("bf16",), 1, 172, (64,), True, ()),
    (BF16, ("bf16",), 7, 172, (130,), False, BAD), (BF16, ("bf16",), 130, 172, (67,), True, BAD),
    (BF16, ("bf16",), 1, 2048, (1030,), False, ()), (BF16, ("bf16",), 16, 4096, (129,), False, ()),
    (BF16, ("bf16",), 600, 256, (320,), False, ()), (F16, ("f16",), 300, 320, (257,), True, ()),
    (BF16, ("q8_0",), 7, 96, (33,), True, BAD), (BF16, ("q4_0",), 3, 32, (17,), False, ()),
    (BF16, ("q8_0",), 1, 2048, (1030,), False, ()), (BF16, ("q4_0",), 1, 2048, (257,), False, ()),
    (BF16, ("q4_k",), 1, 4096, (515,), False, ()), (BF16, ("q5_k",), 1, 2048, (259,), False, ()),
    (BF16, ("q6_k",), 1, 2048, (261,), False, ()), (BF16, ("q4_k",), 300, 768, (129,), True, ()),
    (BF16, ("q6_k",), 19, 256, (64,), False, BAD), (F16, ("q4_k",), 16, 1024, (130,), False, BAD),
    (F16, ("q6_k",), 5, 768, (31,), True, ()), (F32, ("q4_k",), 16, 512, (48,), True, BAD),
    (BF16, ("bf16", "bf16", "bf16"), 5, 172, (64, 33, 33), True, ()),
    (BF16, ("q4_k", "q6_k"), 1, 256, (128, 64), False, ()),
    (BF16, ("q4_k", "q5_k", "q6_k"), 33, 512, (65, 33, 31), True, ()),
    *((dtype, (form,), tokens, 544, (77,), False, ()) for dtype in DTYPES for form in SCALED for tokens in (1, 17)),
    *((BF16, (form,), tokens, 256, (300,), True, ()) for form in SCALED for tokens in (3, 16, 70)),
    (BF16, ("nvfp4",), 2, 1008, (33,), False, BAD[:1]), (F16, ("nvfp4",), 5, 16, (17,), False, ()),
    (BF16, ("fp8",), 7, 171, (40,), False, ()), (F16, ("fp8_block",), 33, 395, (129,), True, ()),
    (F32, ("fp8",), 7, 171, (40,), False, ()), (BF16, ("fp8",), 100, 172, (40,), False, ()),
    (BF16, ("nvfp4", "bf16", "fp8"), 5, 64, (33, 7, 24), True, ()),
    (BF16, ("nvfp4_tiled",), 5, 192, (40,), True, ()), (F16, ("nvfp4_tiled",), 70, 128, (33,), False, ()),
    (BF16, ("mxfp8_tiled", "bf16", "nvfp4_tiled"), 17, 64, (24, 7, 33), True, ()),
    (F16, ("fp8_w8a8",), 3, 176, (24,), False, ()), (BF16, ("fp8_block_w8a8", "fp8_w8a8"), 9, 272, (40, 24), True, ()),
    (F16, ("q8_0", "f16"), 9, 64, (40, 24), False, ()), (F32, ("f32", "bf16", "q8_0"), 4, 64, (7, 9, 11), True, ()))

FRAGMENTED, STACKS = (tuple(form + SUFFIX for form in forms) for forms in (FRAGMENTS, STACKED))
EXACT = dict.fromkeys(("q4_k_fragments", "q5_k_fragments", "nvfp4_fragments"), 256)
SMALL_BLOCKS = tuple(form for form in FRAGMENTS if not form.endswith("_k"))
ARRANGES = (*((form, rows, cols) for form in FRAGMENTS for rows, cols in ((1, 256), (40, 512), (97, 1280))),
            *((form, 33, 544) for form in SMALL_BLOCKS), ("fp8", 17, 171), ("fp8_block", 200, 395), ("nvfp4", 5, 16))
FEW: tuple[tuple[str, tuple[str, ...], int, int, tuple[int, ...], bool, Bad], ...] = (  # in fragment order
    *((BF16, (form,), tokens, 512, (77,), False, ()) for form in FRAGMENTED for tokens in (1, 2, 5, 9, 20, 70)),
    *((F16, (form,), n, 256, (33,), True, BAD[:n // 22]) for form in FRAGMENTED for n in (1, 3, 8, 16, 66)),
    *((BF16, (form,), 16, 1280, (50,), True, BAD) for form in FRAGMENTED),
    *((BF16, (form,), 33, 768, (301,), True, BAD) for form in (*EXACT, "fp8_fragments")),
    *((BF16, ("q4_k_fragments", "q6_k_fragments"), n, k, (130, 40), True, BAD[:1]) for n, k in ((3, 4096), (100, 512))),
    (BF16, ("q4_k_fragments",), 1, 8448, (16,), False, ()), (BF16, ("q6_k_fragments",), 11, 4352, (20,), False, ()),
    (BF16, ("q6_k_fragments", "bf16"), 7, 2048, (1030, 8), False, ()),
    *((BF16, ("fp8_fragments", "bf16"), n, 1024, (600, 40), True, BAD[:n // 4]) for n in (1, 4, 16)),
    (BF16, ("q6_k_fragments", "q4_k_fragments", "q6_k_fragments"), 1, 2304, (40, 530, 33), True, ()),
    (BF16, ("q4_k_fragments",), 1, 2304, (4700,), False, ()), (F16, ("fp8_fragments",), 257, 512, (40,), True, ()),
    *((BF16, (form + SUFFIX,), tokens, 544, (40,), False, ()) for form in SMALL_BLOCKS for tokens in (1, 5, 16, 20)),
    (BF16, ("fp8_fragments",), 7, 171, (40,), False, ()), (F16, ("fp8_block_fragments",), 33, 395, (129,), True, ()),
    (BF16, ("fp8_fragments",), 256, 171, (40,), False, ()), (F16, ("nvfp4_fragments",), 5, 16, (17,), False, ()),
    (BF16, ("nvfp4_fragments",), 1, 4096, (130,), False, ()), (BF16, ("q8_0_fragments",), 3, 4096, (130,), False, ()),
    (F16, ("nvfp4_fragments", "q8_0_fragments"), 16, 4352, (20, 33), True, BAD),
    *((dtype, (form,), 16, 1280, (50,), True, BAD) for dtype in (F16, BF16) for form in ("f16", "bf16")),
    *((dtype, (form,), tokens, 768, (77,), False, ()) for dtype, form in ((F16, "bf16"), (BF16, "f16"), (BF16, "bf16"))
      for tokens in (1, 5, 9, 20)), (BF16, ("bf16",), 1, 8448, (16,), False, ()))

LOGITS: tuple[tuple[str, str, int, int, int], ...] = (
    # dtype, format, N, H, V
    (F32, "f32", 1, 64, 320), (F32, "f32", 17, 172, 512), (F32, "q8_0", 2, 64, 105), (F16, "f16", 3, 256, 320),
    (F16, "q6_k", 2, 256, 1001), (BF16, "bf16", 1, 64, 151936), (BF16, "bf16", 7, 172, 320),
    (BF16, "q6_k", 16, 512, 1003), (BF16, "q4_k", 33, 256, 320), (BF16, "q5_k", 2, 256, 320),
    (BF16, "q8_0", 32, 128, 4099), (BF16, "q4_0", 1, 128, 333), (BF16, "nvfp4_tiled", 3, 128, 77))

SWIGLUS: tuple[tuple[str, int, int, Bad], ...] = (
    # dtype, T, I, bad rows
    (F32, 1, 172, ()), (F32, 7, 64, BAD), (F16, 3, 172, ()), (F16, 33, 512, BAD), (BF16, 1, 688, ()),
    (BF16, 2, 3, ()), (BF16, 17, 172, BAD), (BF16, 130, 256, ()), (BF16, 16, 14336, ()))

QUANTIZES: tuple[tuple[str, str, int, int, float, Bad], ...] = (
    # dtype, form, T, K, recorded scale (below 0: no array), bad rows
    *((dtype, form, tokens, cols, recorded, bad) for form in ("nvfp4", "mxfp8", "fp8", "fp8_block") for dtype in DTYPES
      for tokens, cols, recorded, bad in ((1, 64, -1.0, ()), (7, 192, 2.0**-9 / 3, BAD))),
    *((BF16, form, 130, 1088, 0.0, ((4, NAN),)) for form in ("nvfp4", "mxfp8", "fp8", "fp8_block")),
    (BF16, "mxfp8", 3, 32, -1.0, ()), (BF16, "fp8", 3, 171, -1.0, BAD[:1]), (F16, "fp8_block", 4, 3001, -1.0, BAD[:1]),
    (BF16, "nvfp4", 2, 4096, 7.0, ()), (F32, "fp8", 2, 5000, 100.0, ()))

FUSED: tuple[tuple[str, str, int, int], ...] = tuple(
    # dtype, form, T, K: few elements, as a value next to a rounding boundary may fall on either side of it
    (dtype, form, tokens, cols) for form in ("nvfp4", "mxfp8", "fp8_block")
    for dtype, tokens, cols in ((BF16, 3, 192), (F16, 2, 64), (F32, 5, 320)))

QUANTIZED: tuple[tuple[str, str, int, int, tuple[int, ...], bool, bool, Bad], ...] = (
    # form, dtype, T, K, rows of each block, bias, residual, bad rows
    *(("nvfp4", dtype, tokens, 64, (8,), False, False, ()) for dtype in DTYPES for tokens in (1, 17)),
    ("nvfp4", BF16, 16, 1024, (40, 130), True, True, ()), ("nvfp4", BF16, 150, 320, (72,), True, False, BAD),
    ("nvfp4", F16, 70, 192, (136,), False, True, ()), ("nvfp4", F32, 300, 576, (257,), True, True, ()),
    ("nvfp4", F32, 5, 2048, (33,), False, False, ()), ("nvfp4", BF16, 600, 128, (129,), False, False, ()),
    *((form, dtype, tokens, 96, (8,), False, False, ()) for form in ("mxfp8", "fp8", "fp8_block") for dtype in DTYPES
      for tokens in (1, 17)),
    *((form, BF16, tokens, cols, (128, 37), True, True, bad) for form in ("mxfp8", "fp8", "fp8_block")
      for tokens, cols, bad in ((16, 1056, ()), (150, 288, BAD))),
    *((form, F32, 300, 640, (257,), False, False, ()) for form in ("mxfp8", "fp8", "fp8_block")),
    ("fp8", F16, 5, 176, (24,), True, False, ()), ("fp8_block", F16, 5, 176, (24,), False, True, ()))

ROUTES: tuple[tuple[str, str, int, int, int, int, bool, float, Bad], ...] = (
    # dtype, format of the router, T, H, E, top, norm, step (logits are multiples of it: ties), bad rows
    (F32, "f32", 1, 64, 7, 3, True, 0, ()), (F32, "bf16", 9, 64, 128, 8, True, 0, BAD),
    (F32, "f32", 6, 32, 5, 5, False, 0.5, BAD), (F32, "f32", 4, 32, 1, 1, True, 0, ()),
    (F32, "f32", 40, 32, 300, 10, False, 0.5, ()), (F32, "f32", 70, 32, 3, 2, True, 1, ()),
    (BF16, "bf16", 5, 64, 61, 7, True, 0.25, ((3, NAN),)), (F16, "f16", 17, 64, 129, 33, True, 0.25, ()),
    (BF16, "f32", 66, 32, 40, 4, False, 0.5, BAD), (BF16, "f32", 1, 2048, 128, 8, True, 0, ()),
    (BF16, "f32", 16, 264, 128, 8, True, 0, BAD), (F16, "bf16", 13, 64, 250, 32, False, 0.25, BAD),
    (BF16, "f16", 8, 520, 33, 2, True, 0.5, BAD), (F32, "f32", 3, 4096, 8, 2, True, 0, ()))

EXPERTS: tuple[tuple[str, str, str, int, int, int, int, int, int, Bad], ...] = (
    # dtype, format of gate and up (joined with a `+`: two matrices), of down, T, H, I, E, top, idle experts, bad rows
    *((dtype, form, form, 3, 256, 256, 3, 2, 0, ()) for dtype in DTYPES for form in ("f32", "f16", "bf16", *BLOCKS)),
    *((dtype, form, form, 3, 128, 128, 3, 2, 0, ()) for dtype in DTYPES for form in SCALED),
    (F32, "f32", "f32", 7, 60, 36, 7, 3, 2, ()), (F32, "bf16+f32", "f16", 5, 44, 20, 4, 3, 0, BAD[:1]),
    (BF16, "bf16", "bf16", 16, 64, 40, 5, 5, 0, ()), (BF16, "bf16", "bf16", 7, 52, 27, 6, 2, 0, BAD),
    (BF16, "q4_k+q5_k", "q6_k", 2, 256, 256, 5, 3, 0, ()), (BF16, "q4_k", "q6_k", 1, 512, 256, 9, 8, 0, ()),
    *((dtype, form, form, 17, 256, 256, 3, 2, 0, ()) for dtype in (F16, BF16)
      for form in ("f32", "f16", "bf16", *BLOCKS)),
    *((dtype, form, form, 17, 128, 128, 3, 2, 0, ()) for dtype in (F16, BF16) for form in SCALED),
    (BF16, "bf16", "bf16", 33, 64, 40, 7, 3, 2, BAD), (BF16, "bf16", "bf16", 90, 72, 72, 5, 3, 1, BAD),
    (BF16, "q4_k", "q6_k", 100, 512, 256, 4, 3, 1, ()), (BF16, "q4_k+q5_k", "q4_k", 40, 256, 256, 5, 2, 0, ()),
    (F16, "q8_0", "q4_0", 70, 96, 160, 3, 2, 0, ()), (BF16, "nvfp4", "mxfp4", 65, 160, 96, 4, 2, 1, ()),
    (BF16, "q8_0", "bf16", 150, 64, 96, 2, 2, 0, BAD), (F16, "fp8", "fp8", 30, 104, 72, 9, 4, 2, ()),
    (BF16, "fp8_block", "fp8_block", 50, 256, 128, 3, 1, 0, ()), (BF16, "bf16", "bf16", 300, 64, 24, 130, 2, 3, ()),
    # the same over weights in fragment order
    *((dtype, form, form, tokens, 256, 256, 3, 2, 0, ()) for dtype in (F16, BF16) for form in STACKS
      for tokens in (3, 17)),
    (BF16, STACKS[0], STACKS[1], 1, 512, 768, 9, 8, 0, ()),
    (BF16, STACKS[0], STACKS[0], 5, 2304, 256, 3, 2, 0, BAD[:1]),
    (F16, STACKS[0], STACKS[1], 16, 256, 256, 12, 11, 1, BAD),
    (BF16, "+".join(STACKS[:2]), STACKS[0], 2, 256, 512, 4, 3, 0, BAD[:1]),
    (BF16, f"{STACKS[1]}+q5_k", "q8_0", 4, 256, 288, 3, 2, 0, ()),
    (BF16, "q5_k", STACKS[1], 2, 256, 256, 3, 2, 0, ()),
    (BF16, STACKS[0], STACKS[1], 100, 512, 256, 4, 3, 1, BAD),
    (F16, "+".join(STACKS[:2]), STACKS[0], 40, 256, 256, 5, 2, 0, ()),
    (BF16, STACKS[1], "f16", 20, 256, 48, 5, 2, 0, ()))

TAKES: tuple[tuple[str, int, int, tuple[int, ...]], ...] = (
    # dtype, T, H, index
    (F32, 1, 64, (0,)), (F32, 33, 172, (32, 0, 5)), (F16, 130, 172, (129, 1, 1, 7)), (BF16, 7, 256, (6,)),
    (BF16, 130, 65, tuple(range(129, -1, -3))))

RAGGED: Rows = ((0, 5), (40, 1), (0, 33), (63, 2), (31, 1), (7, 17), (0, 1), (100, 33))
"""Prompts, continued chunks and decoding rows in one step, around the edges of pages"""
DECODE: Rows = ((0, 1), (1, 1), (31, 1), (32, 1), (33, 1), (127, 1), (128, 1), (200, 1))

ROPES: tuple[tuple[str, tuple[int, int], int, int, Rows, int, bool, Bad], ...] = (
    # dtype, (heads, kv_heads), D, d, rows, padding, head norms, bad tokens
    (F32, (8, 4), 8, 8, RAGGED, 3, False, ()), (F32, (4, 4), 64, 64, ((0, 1),), 0, False, ()),
    (F32, (6, 2), 128, 32, ((0, 7), (31, 2)), 0, True, ((1, NAN), (8, INF))),
    (F16, (2, 1), 16, 16, DECODE, 0, False, ()),
    (F16, (8, 1), 64, 64, RAGGED, 35, True, ()), (F16, (4, 2), 256, 64, ((0, 130),), 0, True, ()),
    (BF16, (8, 4), 8, 8, DECODE, 8, False, ()), (BF16, (4, 2), 128, 128, RAGGED, 7, True, ()),
    (BF16, (8, 1), 128, 128, ((0, 1), (64, 16)), 15, False, ((0, NAN),)),
    (BF16, (16, 2), 256, 256, DECODE, 0, True, ()),
    (BF16, (4, 4), 64, 32, ((5, 3), (1000, 2)), 1, True, ((3, INF),)), (BF16, (3, 1), 32, 32, ((0, 33),), 0, False, ()))

Keys = tuple[tuple[int, int, float], ...]
STALE: Keys = ((0, 3, NAN), (2, 40, INF))
"""(row, position, value) of bad keys and values: seen by later tokens of that row only"""

ATTENDS: tuple[tuple[str, tuple[int, int], int, Rows, int, int, float, Keys], ...] = (
    # dtype, (heads, kv_heads), D, rows, padding, window, content of unowned slots, bad keys and values
    (F32, (8, 4), 8, RAGGED, 3, 0, 1e4, ()), (F32, (8, 4), 8, DECODE, 0, 0, NAN, ()),
    (F32, (4, 4), 64, ((0, 1),), 0, 0, 1e4, ()), (F32, (4, 2), 64, ((0, 130),), 0, 8, 1e4, ()),
    (F32, (8, 1), 128, ((1499, 1), (700, 1), (3, 1)), 0, 0, NAN, ()),
    (F32, (2, 1), 16, ((0, 7), (50, 3)), 5, 20, NAN, STALE[:1]),
    (F16, (4, 1), 16, RAGGED, 0, 0, NAN, ()), (F16, (6, 2), 64, DECODE, 8, 32, 1e4, ()),
    (F16, (8, 1), 128, RAGGED, 1, 0, 1e4, ()), (F16, (2, 2), 256, ((0, 33), (130, 17)), 0, 0, 1e4, ()),
    (F16, (8, 2), 64, ((1499, 1), (1024, 1), (1023, 1)), 0, 0, 1e4, ()),
    (BF16, (8, 4), 8, RAGGED, 3, 0, 1e4, ()), (BF16, (8, 4), 8, DECODE, 24, 0, NAN, ()),
    (BF16, (2, 1), 16, ((0, 2), (0, 3), (0, 16)), 0, 0, 1e4, ()), (BF16, (4, 4), 64, RAGGED, 0, 0, NAN, ()),
    (BF16, (4, 2), 64, ((0, 130),), 0, 0, 1e4, ()), (BF16, (4, 2), 64, ((0, 130), (130, 1), (100, 30)), 3, 8, 1e4, ()),
    (BF16, (4, 2), 128, DECODE, 0, 0, 1e4, ()), (BF16, (8, 2), 128, RAGGED, 7, 0, 1e4, ()),
    (BF16, (8, 2), 128, ((256, 130),), 0, 64, NAN, ()),
    (BF16, (8, 1), 128, ((1499, 1), (511, 1), (512, 1)), 0, 0, NAN, ()),
    (BF16, (32, 8), 128, ((1500, 1), (1499, 4)), 0, 0, 1e4, ()),
    (BF16, (8, 2), 128, ((1499, 1), (2000, 1)), 0, 700, NAN, ()),
    (BF16, (8, 1), 256, RAGGED, 0, 0, 1e4, ()), (BF16, (2, 1), 256, ((1300, 1), (0, 17)), 0, 0, 1e4, ()),
    (BF16, (8, 2), 128, ((1400, 120),), 8, 0, NAN, ()), (BF16, (7, 1), 64, RAGGED, 0, 0, 1e4, ()),
    (BF16, (3, 3), 32, ((0, 33), (64, 1)), 0, 0, 1e4, ()), (BF16, (4, 2), 64, RAGGED, 0, 0, 1e4, STALE),
    (F16, (8, 2), 128, ((10, 1), (50, 1), (60, 1)), 0, 0, 1e4, STALE),
    (BF16, (8, 2), 128, ((10, 1), (50, 1), (60, 1)), 0, 8, 1e4, STALE),
    (BF16, (4, 2), 512, ((700, 2), (0, 19), (31, 1)), 2, 0, NAN, STALE[:1]), (F16, (3, 1), 512, DECODE, 3, 40, NAN, ()),
    (BF16, (2, 1), 64, ((33500, 1), (20, 1)), 0, 0, NAN, ()))
CAPPED = ATTENDS[0:1] + ATTENDS[7:9] + ATTENDS[15:16] + ATTENDS[18:19] + ATTENDS[25:26] + ATTENDS[-6:-5]
"""those that also run with a soft cap"""

ATTENTIONS: tuple[tuple[str, tuple[int, int], int, int, Rows, int, int, float, bool, float, Keys], ...] = (
    # dtype, (heads, kv_heads), D, d, rows, padding, window, soft cap, head norms, content of other slots, bad old keys
    (F32, (4, 2), 16, 16, RAGGED, 2, 0, 0.0, True, 1e4, ()), (BF16, (8, 4), 8, 8, DECODE, 8, 0, 0.0, False, NAN, ()),
    (F16, (6, 2), 64, 32, DECODE, 8, 32, 0.0, True, NAN, ()),
    (BF16, (4, 2), 128, 128, DECODE, 0, 0, 0.0, True, NAN, ()),
    (BF16, (8, 2), 128, 128, ((1499, 1), (2000, 1), (200, 1)), 5, 0, 0.0, True, NAN, ()),
    (BF16, (8, 1), 128, 128, ((1499, 2), (600, 16), (255, 3)), 1, 700, 0.0, True, NAN, ((1, 500, INF),)),
    (BF16, (20, 1), 64, 64, ((0, 1), (500, 13), (1023, 2)), 0, 0, 30.0, False, NAN, ()),
    (F16, (8, 2), 128, 64, ((40, 4), (300, 5), (31, 2)), 3, 8, 0.0, True, NAN, STALE[:1]),
    (F16, (2, 2), 256, 256, ((0, 3), (290, 2), (800, 1)), 0, 0, 50.0, True, NAN, ()),
    (BF16, (12, 4), 256, 64, ((900, 1), (33, 4)), 2, 300, 0.0, True, NAN, ()),
    (BF16, (4, 2), 512, 512, ((700, 2), (0, 1), (31, 3)), 2, 0, 0.0, True, NAN, ((0, 100, NAN),)),
    (BF16, (4, 2), 512, 512, ((30, 8),), 0, 0, 0.0, True, NAN, ()),
    (BF16, (7, 1), 64, 64, ((4200, 1), (4095, 1), (4096, 1)), 1, 0, 0.0, False, NAN, ()),
    (BF16, (32, 8), 128, 128, ((1500, 1), (1499, 4)), 0, 0, 0.0, True, NAN, ()),
    (BF16, (4, 2), 128, 128, RAGGED, 3, 0, 0.0, True, NAN, STALE))

Row = Mapping[str, Any]
GREEDY: tuple[Row, ...] = (
    {"temperature": 0}, {"temperature": 0, "step": 2}, {"temperature": 0, "at": {5: NAN, 6: -INF}},
    {"temperature": 0, "at": {7: INF, 9: INF}}, {"temperature": 0, "fill": NAN}, {"temperature": 0, "fill": -INF},
    {"temperature": 0, "fill": 0.5}, {"temperature": 0, "fill": -INF, "at": {319: -1e30}},
    {"temperature": 0, "bias": {3: 100.0}}, {"temperature": 0, "at": {0: -0.0}, "fill": 0.0})
FILTERS: tuple[Row, ...] = (
    {}, {"temperature": 0.3}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 5}, {"top_k": 50, "step": 1.5},
    {"top_k": 1 << 30}, {"top_p": 0.9}, {"top_p": 0.5, "step": 1}, {"top_p": 1e-6}, {"top_p": 0.999}, {"min_p": 0.1},
    {"min_p": 1.0, "step": 2}, {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7},
    {"top_k": 3, "top_p": 0.3, "step": 3}, {"temperature": 1e-4}, {"temperature": 100.0},
    {"at": {1: INF}}, {"at": {1: NAN, 2: -INF}, "top_p": 0.7}, {"fill": NAN}, {"fill": -INF, "at": {9: 0.0}},
    {"fill": 1.0, "top_k": 10}, {"fill": 1.0, "top_p": 0.5})
PENALTIES: tuple[Row, ...] = (
    {"slot": 0, "repetition": 1.3}, {"slot": 2, "repetition": 0.8, "temperature": 0}, {"slot": 1, "presence": 1.5},
    {"slot": 4, "frequency": 0.7, "temperature": 0}, {"repetition": 5.0},
    {"slot": 5, "repetition": 1.1, "presence": -0.5, "frequency": 0.2, "top_k": 20, "top_p": 0.9, "temperature": 0.8},
    {"bias": {0: -INF, 4: 2.5, 100: -1.0}},
    {"slot": 3, "bias": {4: 1.25, 319: 3.0}, "repetition": 1.7, "temperature": 0},
    {"slot": 7, "fill": NAN}, {"slot": 6, "repetition": 1.2, "at": {8: INF, 9: -INF}})
LIKELY = {"temperature": 0.0, "slot": 1, "frequency": 2.0, "presence": 1.0, "repetition": 1.2}
CHAINS: tuple[Row, ...] = (
    # A row whose guesses hold, though the same token is penalised more each time; one whose second guess does not; a
    # plain row; one with draws and without penalties.
    {**LIKELY, "at": {5: 90.0}}, {**LIKELY, "guess": 5, "at": {5: 90.0}},
    {**LIKELY, "guess": 5, "at": {5: 14, 9: 13}}, {**LIKELY, "guess": 9, "at": {300: 90.0}},
    *({**LIKELY, "slot": 3, **more} for more in (
        {"at": {7: 90.0}}, {"guess": 7, "at": {8: 90.0}}, {"guess": 9, "at": {9: 90.0}}, {"guess": 9})),
    {"temperature": 0.5, "slot": 0, "presence": 0.7}, {"temperature": 0.9, "at": {3: 90.0}},
    {"temperature": 0.9, "guess": 3, "top_p": 0.8}, {"temperature": 0.0, "guess": 319})
MASKS: tuple[Row, ...] = (
    {"temperature": 0, "only": (3,)}, {"temperature": 0, "allowed": 0.3},
    {"temperature": 0.8, "allowed": 0.5, "top_p": 0.9}, {"temperature": 1.0},
    {"temperature": 1.0, "only": (0, 31, 32, 104), "top_k": 2}, {"temperature": 0, "only": ()},
    {"temperature": 0, "only": (5, 6), "bias": {5: -INF, 9: 50.0}}, {"temperature": 0, "only": (7,), "at": {7: NAN}},
    {"slot": 1, "allowed": 0.2, "repetition": 1.3, "presence": 0.4, "frequency": 0.2, "min_p": 0.05},
    {"slot": 1, "allowed": 0.9, "guess": 4, "at": {4: 90.0}}, {"temperature": 0, "only": (104,), "fill": -INF},
    {"temperature": 0, "fill": 1.0, "allowed": 0.1})
SAMPLES: tuple[tuple[str, int, tuple[Row, ...], int], ...] = (
    # what, V, rows, top
    ("greedy", 320, GREEDY, 0), ("greedy", 320, GREEDY, 20), ("greedy", 151936, GREEDY, 3),
    ("filters", 320, FILTERS, 0),
    ("filters", 320, FILTERS, 5), ("filters", 1025, FILTERS, 0), ("filters", 151936, FILTERS[::3], 1),
    ("guesses", 320, CHAINS, 2), ("guesses", 5000, CHAINS, 0), ("masks", 105, MASKS, 3), ("masks", 4229, MASKS, 0),
    ("penalties", 320, PENALTIES, 2), ("penalties", 151936, PENALTIES[:6], 0), ("one", 105, ({"top_p": 0.9},), 20),
    ("draws", 33, tuple({"temperature": 1.0, "seed": s << 40 | s, "position": s} for s in range(64)), 0))

PENALTY_LOADS = ((320, 1, 50, 20), (320, 0, 0, 0), (320, 2, 1, 0), (151936, 2, 700, 300))
LOGPROBS: tuple[tuple[int, tuple[int, ...]], ...] = (
    (320, (0, 319, -1, 7)), (105, (3,)), (151936, (151935, -1, 0)), (1025, tuple(range(-1, 40))))


NEWEST: tuple[tuple[int, int], ...] = ((1, 1), (4, 3), (32, 300), (8, 4096))
"""slots, tokens"""
DELIVERIES: tuple[tuple[tuple[int, ...], int, int], ...] = (
    # slots, alternatives, words of the block beyond what is written
    ((0,), 0, 5), ((-1,), 1, 0), ((3, -1, 0, 7), 0, 3), ((5, 2, 9), 20, 1), (tuple(range(63, -1, -1)), 2, 9))


def listed() -> Iterable[Case]:
    """Every row of the tables above as a case."""
    for dtype, t, h, bad in NORMS:
        name = text(dtype, f"T{t}", f"H{h}", *("bad" for _ in bad[:1]))
        yield Case(f"rms_norm/{name}", "rms_norm", partial(inputs.make_norm, dtype=dtype, tokens=t, hidden=h, bad=bad),
                   ULP[dtype], FLOOR[dtype])
        yield Case(f"add_rms_norm/{name}", "add_rms_norm",
                   partial(inputs.make_add_norm, dtype=dtype, tokens=t, hidden=h, bad=bad), ULP[dtype], FLOOR[dtype])
    for dtype, form, v, h, ids in EMBEDS:
        yield Case(text("embed", dtype, form, f"{v}x{h}"), "embed", partial(
            inputs.make_embed, dtype=dtype, form=form, vocab=v, hidden=h, ids=ids), 0, 0)
    for form, n, k in ARRANGES:
        yield Case(text("arrange", form, f"N{n}", f"K{k}"), "arrange", partial(
            inputs.make_arrange, form=form, rows=n, cols=k), 0, 0)
    for dtype, forms, t, k, rows, bias, bad in (*LINEARS, *FEW):
        name = text("linear", dtype, forms, f"T{t}", f"K{k}", rows, *("bias",) * bias, *("bad" for _ in bad[:1]))
        yield Case(name, "linear", partial(inputs.make_linear, dtype=dtype, forms=forms, tokens=t, cols=k, rows=rows,
                                           bias=bias, bad=bad), ULP[dtype], product_floor(dtype, forms, t, k))
    for dtype, form, t, k, v in LOGITS:
        yield Case(text("logits", dtype, form, f"N{t}", f"H{k}", f"V{v}"), "logits", partial(
            inputs.make_logits, dtype=dtype, form=form, tokens=t, cols=k, vocab=v),
                   ULP[F32], product_floor(dtype, (form,), t, k))
    for dtype, t, inner, bad in SWIGLUS:
        yield Case(text("swiglu", dtype, f"T{t}", f"I{inner}", *("bad" for _ in bad[:1])), "swiglu", partial(
            inputs.make_swiglu, dtype=dtype, tokens=t, inner=inner, bad=bad), ULP[dtype], FLOOR[dtype])
    for dtype, form, t, k, recorded, bad in QUANTIZES:
        name = text("quantize", dtype, form, f"T{t}", f"K{k}", recorded, *("bad" for _ in bad[:1]))
        yield Case(name, "quantize", partial(inputs.make_quantize, dtype=dtype, form=form, tokens=t, cols=k,
                                             recorded=recorded, bad=bad), 0, 0)
    for dtype, form, t, k in FUSED:
        name = text(dtype, form, f"T{t}", f"K{k}")
        for op, maker in inputs.FUSED.items():
            yield Case(f"{op}/{name}", op, partial(inputs.make_fused, maker=maker, dtype=dtype, form=form, tokens=t,
                                                   cols=k), ULP[dtype], FLOOR[dtype])
    for form, dtype, t, k, rows, bias, residual, bad in QUANTIZED:
        name = text("linear_quantized", form, dtype, f"T{t}", f"K{k}", rows, *("bias",) * bias,
                    *("residual",) * residual, *("bad" for _ in bad[:1]))
        yield Case(name, "linear_quantized", partial(
            inputs.make_linear_quantized, form=form, dtype=dtype, tokens=t, cols=k, rows=rows, bias=bias,
            residual=residual, bad=bad), ULP[dtype], EIGHT_BIT if "8" in form else 1e-4)
    for dtype, form, t, h, count, most, norm, step, bad in (*ROUTES, *cases_routed.ROUTES):
        name = text("route", dtype, form, f"T{t}", f"H{h}", f"E{count}", f"top{most}", *("norm",) * norm,
                    *("ties",) * bool(step), *("bad" for _ in bad[:1]))
        yield Case(name, "route", partial(
            inputs.make_route, dtype=dtype, form=form, tokens=t, hidden=h, count=count, top=most, norm=norm, step=step,
            bad=bad), 1e-5, 1e-6)
    for dtype, form, out, t, h, inner, count, most, idle, bad in (*EXPERTS, *cases_routed.EXPERTS):
        name = text("experts", dtype, form, out, f"T{t}", f"H{h}", f"I{inner}", f"E{count}", f"top{most}",
                    *("idle",) * bool(idle), *("bad" for _ in bad[:1]))
        yield Case(name, "experts", partial(
            inputs.make_experts, dtype=dtype, forms=tuple(form.split("+")), down=out, tokens=t, hidden=h, inner=inner,
            count=count, top=most, idle=idle, bad=bad), ULP[dtype], ROUNDED[dtype])
    for dtype, t, h, index in TAKES:
        yield Case(text("take_rows", dtype, f"T{t}", f"H{h}", f"N{len(index)}"), "take_rows", partial(
            inputs.make_take_rows, dtype=dtype, tokens=t, hidden=h, index=index), 0, 0)
    for i, (dtype, heads, d, rotated, batch, padding, norms, bad) in enumerate(ROPES):
        name = text("qkv_rope_append_", dtype, heads, f"D{d}", f"d{rotated}", f"R{len(batch)}", *("norms",) * norms, i)
        yield Case(name, "qkv_rope_append_", partial(
            inputs.make_rope, dtype=dtype, heads=heads, dim=d, rotated=rotated, rows=batch, padding=padding,
            norms=norms, bad=bad), ULP[dtype], FLOOR[dtype])
    capped = [(row, 20.0) for row in CAPPED]
    for i, ((dtype, heads, d, batch, padding, window, junk, keys), cap) in enumerate(
            [*zip(ATTENDS, repeat(0.0), strict=False), *capped]):
        name = text("attend", dtype, heads, f"D{d}", f"R{len(batch)}", f"W{window}", *("capped",) * bool(cap),
                    *("bad" for _ in keys[:1]), i)
        yield Case(name, "attend", partial(
            inputs.make_attend, dtype=dtype, heads=heads, dim=d, rows=batch, padding=padding, window=window, junk=junk,
            bad=keys, softcap=cap), ULP[dtype], ROUNDED[dtype])
    for i, (dtype, heads, d, rotated, batch, padding, window, cap, norms, junk, keys) in enumerate(ATTENTIONS):
        name = text("attention_", dtype, heads, f"D{d}", f"R{len(batch)}", f"W{window}", *("capped",) * bool(cap), i)
        yield Case(name, "attention_", partial(
            inputs.make_attention, dtype=dtype, heads=heads, dim=d, rotated=rotated, rows=batch, padding=padding,
            window=window, softcap=cap, norms=norms, junk=junk, bad=keys), ULP[dtype], ROUNDED[dtype])
    yield from cases_recurrent.listed()
    yield from cases_hybrid.listed()
    for what, v, settings, top in SAMPLES:
        yield Case(text("sample_", what, f"V{v}", f"top{top}"), "sample_", partial(
            inputs.make_sample, vocab=v, rows=settings, top=top), ULP[F32], FLOOR[F32])
    for v, slot, prompt, answer in PENALTY_LOADS:
        yield Case(text("penalty_load_", f"V{v}", slot, prompt, answer), "penalty_load_", partial(
            inputs.make_penalty, vocab=v, slot=slot, prompt=prompt, answer=answer), 0, 0)
    for v, targets in LOGPROBS:
        yield Case(text("token_logprobs", f"V{v}", f"N{len(targets)}"), "token_logprobs", partial(
            inputs.make_logprobs, vocab=v, targets=targets), ULP[F32], FLOOR[F32])
    for slots, tokens in NEWEST:
        yield Case(text("newest_tokens", f"S{slots}", f"T{tokens}"), "newest_tokens", partial(
            inputs.make_newest, slots=slots, tokens=tokens), 0, 0)
    for rows, top, spare in DELIVERIES:
        yield Case(text("deliver_", f"N{len(rows)}", f"top{top}"), "deliver_", partial(
            inputs.make_deliver, slots=rows, top=top, spare=spare), 0, 0)


CASES: tuple[Case, ...] = tuple(listed())


def make(case: Case) -> Kwargs:
    """The inputs of a case: always the same, seeded by its name."""
    return case.make(np.random.default_rng(zlib.crc32(case.name.encode())))


def walk(value: Any, leaf: Callable[[Any], Any], place: Callable[[Weight], Any] | None = None) -> Any:
    """The same structure with `leaf` applied to every array (and `place`, if given, to every Weight).

    Of activations that a backend holds in several forms, the plain rows are taken."""
    if place is not None and isinstance(value, Weight):
        return place(value)
    if isinstance(value, Array):
        return leaf(value[:] if value.shape else value)
    if isinstance(value, msgspec.Struct):
        fields = {name: walk(getattr(value, name), leaf, place) for name in value.__struct_fields__}
        return type(value)(**fields)
    if isinstance(value, tuple):
        return tuple(walk(v, leaf, place) for v in value)
    return value if value is None or isinstance(value, (int, float, str)) else leaf(value)


def flat(name: str, value: Any) -> Iterable[tuple[str, Values]]:
    """Every array of a structure of host arrays, by dotted name."""
    if isinstance(value, msgspec.Struct):
        for field in value.__struct_fields__:
            yield from flat(f"{name}.{field}", getattr(value, field))
    elif isinstance(value, tuple):
        for i, v in enumerate(value):
            yield from flat(f"{name}.{i}", v)
    elif isinstance(value, np.ndarray):
        yield name, value


def run_case(ops: Ops, case: Case, put: Callable[[Values], Any], get: Callable[[Any], Values],
             put_weight: Callable[[str, Weight], Weight] | None = None) -> dict[str, Values]:
    """Run a case on a backend; outputs by name: `out...` is the result, `handle...` what an op with `_` wrote to.

    `put` moves a host array to the backend, `get` moves it back; `put_weight(op, weight)` places a weight where the
    backend wants it in an order of its own, else `put` moves its parts.
    """
    place = None if put_weight is None else partial(put_weight, case.op)
    kwargs = {name: walk(value, put, place) for name, value in make(case).items()}
    result = getattr(ops, case.op)(**kwargs)
    outputs = dict(flat("out", walk(result, get)))
    if case.op.endswith("_"):
        outputs |= flat("handle", walk(next(iter(kwargs.values())), get))
    return outputs


def check(case: Case, expected: Mapping[str, Values], got: Mapping[str, Values]) -> None:
    """AssertionError with the worst element if an output is missing, of another shape or dtype, or out of tolerance."""
    if list(expected) != list(got):
        raise AssertionError(f"{case.name}: outputs {list(got)}, expected {list(expected)}")
    for name, want in expected.items():
        have = got[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise AssertionError(f"{case.name}: {name} is {have.dtype} {list(have.shape)}, "
                                 f"expected {want.dtype} {list(want.shape)}")
        exact = want.dtype.kind in "iu"
        a, b = (have.astype(np.int64 if exact else np.float64), want.astype(np.int64 if exact else np.float64))
        same = a == b if exact else (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            allowed = 0.0 if exact else case.atol + case.rtol * np.abs(b)
            excess = np.where(same, 0.0, np.abs(a - b) / (allowed + 1e-300))
        excess = np.where(np.isnan(excess), np.inf, excess)
        if excess.size and excess.max() > 1:
            worst = np.unravel_index(int(excess.argmax()), excess.shape)
            at = ", ".join(str(int(i)) for i in worst)
            raise AssertionError(f"{case.name}: {name}[{at}] is {a[worst]}, expected {b[worst]}; {(excess > 1).sum()} "
                                 f"of {excess.size} elements are out of tolerance, the worst {excess.max():.3g} times")
