"""Experts of 17 tokens and more over weights in fragment order: whatever the routing, a token has the bits of few."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builds import BUILDS
from hypothesis import given, settings
from hypothesis import strategies as st

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.ops import inputs
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import CudaOps, expert_medium
from blackwell_infer.quant.format import Experts, Weight
from blackwell_infer.quant.fragments import SUFFIX

Make = Callable[..., EmulatedQueue]
Ids = np.ndarray[Any, Any]


def spread(tokens: int, top: int, count: int) -> Ids:
    """Every expert as often as any other."""
    return (np.arange(tokens)[:, None] + np.arange(top) * (count // top)) % count


def skewed(tokens: int, top: int, count: int) -> Ids:
    """Most pairs to the first experts, none to the last."""
    share = np.append(1.0 / np.arange(1, count) ** 2, 0.0)
    rng = np.random.default_rng(tokens)
    return np.stack([rng.choice(count, top, replace=False, p=share / share.sum()) for _ in range(tokens)])


def together(tokens: int, top: int, count: int) -> Ids:
    """All tokens to the same experts, the last ones."""
    return np.tile(np.arange(count)[-top:], (tokens, 1))


def run(queue: EmulatedQueue, kwargs: dict[str, Any], part: slice) -> np.ndarray[Any, Any]:
    def weights(stack: Experts) -> Experts:
        w = stack.weight
        return Experts(Weight(w.format, w.shape, tuple(queue.put(np.asarray(p)) for p in w.parts)), stack.count)

    routing = Routing(*(queue.put(np.ascontiguousarray(a[part])) for a in (
        kwargs["routing"].experts, kwargs["routing"].weights)))
    with queue.step():
        y = CudaOps(queue).experts(queue.put(np.ascontiguousarray(kwargs["x"][part])), routing,
                                   tuple(map(weights, kwargs["gate_up"])), weights(kwargs["down"]))
        return np.asarray(queue.download(y).result()).view(np.uint16).copy()


@pytest.mark.parametrize("arch", BUILDS)
@pytest.mark.parametrize(("routing", "forms", "down", "tokens", "top", "count", "bad"), [
    (spread, ("q4_k",), "q6_k", 17, 2, 7, ()), (skewed, ("q6_k",), "q4_k", 31, 3, 13, ((2, float("nan")),)),
    (together, ("q8_0",), "q8_0", 24, 1, 5, ((0, float("inf")), (23, float("nan")))),
    (together, ("q4_k",), "q4_k", 33, 2, 9, ()), (skewed, ("q4_k", "q6_k"), "q8_0", 40, 2, 11, ()),
    (spread, ("q4_k",), "q6_k", 255, 1, 11, ()), (skewed, ("q8_0",), "q4_k", 18, 4, 64, ()),
    (skewed, ("nvfp4",), "nvfp4", 33, 2, 9, ((2, float("nan")),))])
def test_a_token_has_the_bits_of_few(emulated: Make, arch: str, routing: Callable[[int, int, int], Ids],
                                     forms: tuple[str, ...], down: str, tokens: int, top: int, count: int,
                                     bad: inputs.Bad) -> None:
    kwargs = inputs.make_experts(np.random.default_rng(tokens), "bfloat16", tuple(form + SUFFIX for form in forms),
                                 down + SUFFIX, tokens, 512, 256, count, top, 0, bad)
    kwargs["routing"] = Routing(routing(tokens, top, count).astype(np.int32), kwargs["routing"].weights)
    assert expert_medium.takes(tokens * top, (*kwargs["gate_up"], kwargs["down"]), kwargs["x"].dtype)
    queue = emulated(arch)
    whole = run(queue, kwargs, slice(0, tokens))
    for first in {0, tokens // 2, tokens - 3}:
        part = slice(first, first + 3)
        assert np.array_equal(run(queue, kwargs, part), whole[part])


@given(data=st.data(), tokens=st.integers(1, 260), top=st.integers(1, 9),
       count=st.sampled_from([1, 3, 31, 32, 33, 130]))
@settings(max_examples=25, deadline=None)
def test_every_pair_has_its_place(emulated: Make, data: st.DataObject, tokens: int, top: int, count: int) -> None:
    """Groups of an expert follow one another; places after its last pair are counted with that."""
    used = data.draw(st.integers(1, count))
    ids = np.random.default_rng(data.draw(st.integers(0, 99))).integers(count - used, count, (tokens, top))
    queue = emulated("sm_90a")
    with queue.step():
        routing = Routing(queue.put(ids.astype(np.int32)), queue.put(np.zeros(ids.shape, np.float32)))
        found = expert_medium.sort(queue, routing, count, 256)
        pairs = np.asarray(queue.download(found.places).result())
        total = int(np.asarray(queue.download(found.groups[:1]).result())[0, 0])
        groups = np.asarray(queue.download(found.groups[1:1 + total]).result())
    sizes = np.bincount(ids.reshape(-1), minlength=count)
    filled = -(-sizes // found.rows)
    first = np.cumsum(filled) - filled
    assert total == filled.sum() <= found.most
    want = [[e, first[e], sizes[e], filled[e]] for e in range(count) for _ in range(filled[e])]
    assert groups.tolist() == want
    nth: dict[int, int] = {}
    for pair, e in enumerate(ids.reshape(-1)):
        i = nth[e] = nth.get(e, -1) + 1
        assert pairs[pair].tolist() == [first[e] * found.rows + i, -sizes[e] % found.rows * (i + 1 == sizes[e])]


@pytest.mark.parametrize("tokens", [17, 100, 200])
def test_a_token_is_routed_as_if_alone(emulated: Make, tokens: int) -> None:
    kwargs = inputs.make_route(np.random.default_rng(5), "bfloat16", "f32", tokens, 264, 37, 5, True, 0, ())
    (router,), queue = kwargs["router"], emulated("sm_90a")

    def routed(part: slice) -> list[bytes]:
        with queue.step():
            w = Weight("f32", router.shape, (queue.put(np.asarray(router.parts[0])),))
            found = CudaOps(queue).route(queue.put(kwargs["x"][part].copy()), (w,), 5, True)
            return [np.asarray(queue.download(a).result()).tobytes() for a in (found.experts, found.weights)]

    whole = routed(slice(0, tokens))
    for i in (0, 8, tokens - 1):
        alone = routed(slice(i, i + 1))
        assert all(b[i * len(a):][:len(a)] == a for a, b in zip(alone, whole, strict=True))
