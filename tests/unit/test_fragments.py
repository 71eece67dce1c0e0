"""Weights in fragment order: a permutation that loses nothing but the scale of inputs."""
from __future__ import annotations

import numpy as np
import pytest

from blackwell_infer.ops import inputs
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.fragments import FRAGMENTS, SUFFIX, fragmented, plain

SHAPES = tuple((form, rows, cols) for form in FRAGMENTS for rows, cols in ((1, 256), (40, 512), (97, 1280), (33, 544))
               if cols % FORMATS[form].block == 0)


@pytest.mark.parametrize(("form", "rows", "cols"), (*SHAPES, ("fp8", 17, 171), ("fp8_block", 300, 395)))
def test_there_and_back(form: str, rows: int, cols: int) -> None:
    w = inputs.weight(np.random.default_rng(1), form, rows, cols)
    order = fragmented(w)
    assert order.format == form + SUFFIX and order.shape == w.shape
    assert order.nbytes == -(-rows // 16) * -(-cols // 256) * FRAGMENTS[form].tile_bytes
    back = plain(order)
    assert back.format == form
    for part, wanted in zip(back.parts, w.parts, strict=True):
        np.testing.assert_array_equal(part, wanted, strict=True)


def test_other_formats_stay() -> None:
    w = inputs.weight(np.random.default_rng(1), "f32", 3, 7)
    assert fragmented(w) is w and plain(w) is w
