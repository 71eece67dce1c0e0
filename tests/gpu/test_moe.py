"""What cases do not say of experts: large shapes are right on a GPU, and a token's bits are its own."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.ops import inputs, ref
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.quant.format import Experts, Weight

pytestmark = pytest.mark.gpu


def placed(queue: CudaQueue, stack: Experts) -> Experts:
    w = stack.weight
    return Experts(Weight(w.format, w.shape, tuple(queue.put(np.asarray(p)) for p in w.parts)), stack.count)


def run(queue: CudaQueue, kwargs: dict[str, Any], weights: tuple[Any, Any], part: slice) -> np.ndarray[Any, Any]:
    routing = Routing(*(queue.put(np.ascontiguousarray(a[part])) for a in (
        kwargs["routing"].experts, kwargs["routing"].weights)))
    y = CudaOps(queue).experts(queue.put(np.ascontiguousarray(kwargs["x"][part])), routing, *weights)
    return np.asarray(queue.download(y).result())


@pytest.mark.parametrize(("gate_up", "down"), [("q4_k", "q6_k"), ("bf16", "bf16"), ("q8_0", "q8_0"),
                                               ("nvfp4", "mxfp4"), ("fp8_block", "fp8_block"),
                                               ("q4_k_fragments", "q6_k_fragments"),
                                               ("q6_k_fragments", "q4_k_fragments"),
                                               ("nvfp4_fragments", "nvfp4_fragments")])
@pytest.mark.parametrize("tokens", [1, 16, 17, 300, 1500])
def test_many_experts(queue: CudaQueue, gate_up: str, down: str, tokens: int) -> None:
    kwargs = inputs.make_experts(np.random.default_rng(tokens), "bfloat16", (gate_up,), down, tokens, 1024, 768, 33, 6,
                                 2, ())
    got = run(queue, kwargs, (tuple(placed(queue, e) for e in kwargs["gate_up"]), placed(queue, kwargs["down"])),
              slice(0, tokens))
    want = np.asarray(ref.experts(**kwargs), np.float32)
    assert np.abs(got.astype(np.float32) - want).max() < 1e-2 * np.abs(want).max()


@pytest.mark.parametrize("form", ["q4_k", "q8_0", "bf16", "nvfp4", "q4_k_fragments", "q6_k_fragments",
                                  "nvfp4_fragments"])
def test_a_token_has_the_same_bits_alone_and_in_company(queue: CudaQueue, form: str) -> None:
    kwargs = inputs.make_experts(np.random.default_rng(4), "bfloat16", (form,), form, 700, 1024, 768, 33, 6, 2, ())
    weights = (tuple(placed(queue, e) for e in kwargs["gate_up"]), placed(queue, kwargs["down"]))
    few, many = run(queue, kwargs, weights, slice(0, 16)), run(queue, kwargs, weights, slice(0, 700))
    for first, last in ((0, 1), (5, 9), (15, 16)):
        assert run(queue, kwargs, weights, slice(first, last)).tobytes() == few[first:last].tobytes()
    for first, last in ((3, 600), (100, 500)):
        assert run(queue, kwargs, weights, slice(first, last)).tobytes() == many[first:last].tobytes()
    for last in (17, 70, 130):  # over weights in fragment order these have the bits of few
        got, same = run(queue, kwargs, weights, slice(0, last)), 16 if form.endswith("_fragments") else last
        assert got[:same].tobytes() == (few if form.endswith("_fragments") else many[:last]).tobytes()
