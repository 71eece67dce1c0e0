"""Weights in tiles that hold NaNs: their rows of y, and their values as rows, and no others."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.quant.format import Weight
from blackwell_infer.quant.fragments import fragmented

NANS = {"q8_0": (0, (7, 34), (0x00, 0x7E)), "q4_0": (0, (7, 18), (0x00, 0x7E)), "nvfp4": (1, (7, 3), (0x7F,)),
        "nvfp4_f16": (1, (7, 3), (np.nan,)), "mxfp4": (1, (7, 3), (0xFF,)), "mxfp8": (1, (7, 3), (0xFF,)),
        "fp8": (0, (7, 100), (0xFF,)), "fp8_block": (0, (7, 100), (0x7F,)), "fp8 factor": (1, (7,), (np.nan,)),
        "f16": (0, (7, 100), (np.nan,)), "bf16": (0, (7, 100), (np.nan,))}
COLS = {"f16": 512, "bf16": 512}
"""Which part of a weight gets which values, and from where on: a scale where the format has some, else a code"""


def spoiled(name: str) -> Weight:
    """[20, 288], dense matrices [20, 512], with NaNs in row 7."""
    form = name.split()[0]
    w = inputs.weight(np.random.default_rng(5), form, 20, COLS.get(form, 288))
    part, at, values = NANS[name]
    changed = np.array(w.parts[part])
    for i, value in enumerate(values):
        changed[(*at[:-1], at[-1] + i)] = value
    return Weight(form, w.shape, (*w.parts[:part], changed, *w.parts[part + 1:]))


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
@pytest.mark.parametrize("name", NANS)
def test_nans_spoil_their_row(emulated: Callable[..., EmulatedQueue], name: str, arch: str) -> None:
    w = fragmented(spoiled(name))
    wanted = np.isnan(ref.embed(w, np.arange(20, dtype=np.int32), "float32"))
    assert wanted[7].any() and not np.delete(wanted, 7, axis=0).any()
    queue = emulated(arch)
    ops = CudaOps(queue)
    held = Weight(w.format, w.shape, tuple(queue.put(np.asarray(part)) for part in w.parts))
    for tokens in (1, 3, 16):
        x = inputs.activations(np.random.default_rng(6), (tokens, w.shape[1]), "bfloat16")
        with queue.step():
            y = queue.download(ops.logits(queue.put(x), (held,))).result()
            rows = queue.download(ops.embed(held, queue.put(np.arange(20, dtype=np.int32)), "float32")).result()
        assert np.isnan(y[:, 7]).all() and np.isfinite(np.delete(y, 7, axis=1)).all()
        np.testing.assert_array_equal(np.isnan(rows), wanted)
