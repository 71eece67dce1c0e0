"""Gated DeltaNet layers that overlap in a recorded step leave the bits of layers that run one after the other."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blackwell_infer.device.cuda import CudaQueue
from blackwell_infer.kv.recurrent import Recurrent
from blackwell_infer.ops import cases
from blackwell_infer.ops.cases_recurrent import Heads, Line, make_delta
from blackwell_infer.ops.cuda import CudaOps
from blackwell_infer.types import Array

pytestmark = pytest.mark.gpu

LAYERS = 12
Values = np.ndarray[Any, Any]


@pytest.mark.parametrize("heads", [Heads(16, 32, 128, 128), Heads(16, 48, 128, 128), Heads(2, 4, 32, 32)],
                         ids=["2 a key", "3 a key", "small"])
@pytest.mark.parametrize("lines", [
    (Line(True, 1, (0,), True),), (Line(True, 4, (0, 1, 2, 3), True),), (Line(True, 1, (0,), True),) * 9,
    (Line(True, 300, (63, 299), True), Line(True, 2, (1,), True))], ids=["decode", "verify", "rows", "mixed"])
def test_overlapping_layers_share_nothing(queue: CudaQueue, heads: Heads, lines: tuple[Line, ...]) -> None:
    made = [make_delta(np.random.default_rng(seed), "bfloat16", "float32", heads, lines, 1, False, 1.0, ())
            for seed in range(LAYERS)]
    there = [{name: cases.walk(value, queue.put) for name, value in layer.items()} for layer in made]
    results: list[Array] = [queue.zeros((1,), np.float32)] * LAYERS
    ops = CudaOps(queue)

    def restore() -> None:
        for host, layer in zip(made, there, strict=True):
            for part in Recurrent.__struct_fields__:
                queue.upload(getattr(layer["state"], part), np.asarray(getattr(host["state"], part)))

    def layers() -> None:
        for i, layer in enumerate(there):
            results[i] = ops.gated_delta_(**layer)[:]

    def found(i: int) -> list[Values]:
        state = there[i]["state"]
        return [np.array(queue.download(a).result()).view(np.uint8) for a in (results[i], state.conv, state.state)]

    alone = []
    for i, layer in enumerate(there):
        with queue.step():
            results[i] = ops.gated_delta_(**layer)[:]
            alone.append(found(i))
    restore()
    with queue.step():
        layers()
    restore()
    graph = queue.capture(layers)
    for _ in range(20):
        restore()
        graph.run()
        for i in range(LAYERS):
            for mine, single in zip(found(i), alone[i], strict=True):
                assert np.array_equal(mine, single)
    graph.close()
