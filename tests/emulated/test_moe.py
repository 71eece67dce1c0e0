"""Mixtures of experts on the emulated device: tokens of whole models, stacks in memory, and what a row depends on."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builds import BUILDS
from tooling import load_tool

from blackwell_infer import LLM, Sampling
from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.engine import stack
from blackwell_infer.engine.stack import Pieces, ordered, stacked, tiled
from blackwell_infer.errors import KernelError, UnsupportedModelError
from blackwell_infer.models.take import members
from blackwell_infer.ops import inputs
from blackwell_infer.ops.batch import Routing
from blackwell_infer.ops.cuda import CudaOps, expert_groups
from blackwell_infer.quant import FORMATS
from blackwell_infer.quant.format import Experts, Weight
from blackwell_infer.quant.fragments import STACKED, SUFFIX, fragmented

DATA = Path(__file__).resolve().parents[1] / "data"
Make = Callable[..., EmulatedQueue]


def answers(model: Path, device: str, dtype: str, *prompts: str, tokens: int = 3) -> list[tuple[int, ...]]:
    with LLM(model, device=device, dtype=dtype, max_context=64, max_batch=4, max_step_tokens=40) as llm:
        outs = llm.generate(list(prompts), Sampling(temperature=0, max_tokens=tokens, ignore_eos=True))
        return [out.token_ids for out in outs]


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(pytestconfig.cache.mkdir("user")))


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe", "qwen3_moe_pruned"])
def test_tokens_equal_the_reference(model: str) -> None:
    want = answers(DATA / model, "numpy", "float32", "Once upon", tokens=6)
    assert answers(DATA / model, "emulated", "float32", "Once upon", tokens=6) == want


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("arch", BUILDS)
def test_a_long_prompt_goes_through_the_grouped_products(arch: str, tmp_path: Path) -> None:
    """37 tokens in 16 bits, from a pruned GGUF of 8-bit blocks; then the same tokens as float32 arithmetic gives."""
    load_tool("hf_to_gguf").convert(DATA / "qwen3_moe_pruned", tmp_path / "m.gguf", kind="q8_0")
    prompt = "It was the best of times, it was the "
    want = answers(tmp_path / "m.gguf", "numpy", "float32", prompt)
    assert answers(tmp_path / "m.gguf", f"emulated:{arch}", "bfloat16", prompt) == want


@pytest.mark.usefixtures("cache")
def test_tokens_do_not_depend_on_the_batch() -> None:
    prompts = ("One", "Two birds", "And three")
    together = answers(DATA / "qwen3_moe_pruned", "emulated", "bfloat16", *prompts)
    assert together == [answers(DATA / "qwen3_moe_pruned", "emulated", "bfloat16", p)[0] for p in prompts]


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("layout", ["modelopt-nvfp4", "fp8-channel", "mxfp8"])
def test_quantised_releases(layout: str, tmp_path: Path) -> None:
    load_tool("quantize_hf").convert(DATA / "qwen3_moe_pruned", tmp_path / "m", layout)
    assert answers(tmp_path / "m", "emulated", "float32", "Once") == answers(tmp_path / "m", "numpy", "float32", "Once")


def test_experts_that_share_blocks_of_scales_are_refused(tmp_path: Path) -> None:
    load_tool("quantize_hf").convert(DATA / "qwen3_moe_pruned", tmp_path / "m", "fp8-block")
    with pytest.raises(UnsupportedModelError, match="experts of 32 rows in fp8_block cannot be stacked"):
        answers(tmp_path / "m", "numpy", "float32", "Once")


def put(queue: EmulatedQueue, kwargs: dict[str, Any], part: slice, to: int) -> tuple[Any, ...]:
    """The arguments of `experts` for some of the tokens, repeated cyclically to `to` tokens."""
    def weights(stack: Experts) -> Experts:
        w = stack.weight
        return Experts(Weight(w.format, w.shape, tuple(queue.put(np.asarray(p)) for p in w.parts)), stack.count)

    def rows(values: np.ndarray) -> Any:
        return queue.put(np.ascontiguousarray(np.resize(values[part], (to, values.shape[1]))))

    routing = kwargs["routing"]
    return (rows(kwargs["x"]), Routing(rows(routing.experts), rows(routing.weights)),
            tuple(weights(stack) for stack in kwargs["gate_up"]), weights(kwargs["down"]))


@pytest.mark.parametrize(("dtype", "order"), [("float32", ""), ("bfloat16", ""), ("bfloat16", SUFFIX)])
def test_few_tokens_give_their_own_bits(emulated: Make, dtype: str, order: str) -> None:
    kwargs = inputs.make_experts(np.random.default_rng(1), dtype, ("q4_k" + order,), "q6_k" + order, 16, 256, 256, 5, 3,
                                 0, ())
    queue = emulated("sm_90a")

    def run(part: slice) -> np.ndarray:
        with queue.step():
            y = CudaOps(queue).experts(*put(queue, kwargs, part, part.stop - part.start))
            return np.asarray(queue.download(y).result())

    together = run(slice(0, 16))
    for low, high in ((0, 1), (7, 9), (3, 16)):
        assert np.array_equal(run(slice(low, high)).view(np.uint8), together[low:high].view(np.uint8))


@pytest.mark.parametrize(("dtype", "form"), [("bfloat16", "f32"), ("float32", "bf16")])
def test_few_tokens_are_routed_as_if_alone(emulated: Make, dtype: str, form: str) -> None:
    kwargs = inputs.make_route(np.random.default_rng(5), dtype, form, 16, 264, 37, 5, True, 0, ())
    (router,), queue = kwargs["router"], emulated("sm_90a")

    def run(part: slice) -> list[bytes]:
        with queue.step():
            w = Weight(form, router.shape, (queue.put(np.asarray(router.parts[0])),))
            found = CudaOps(queue).route(queue.put(kwargs["x"][part].copy()), (w,), 5, True)
            both = [np.asarray(queue.download(a).result()) for a in (found.experts, found.weights)]
        return [b"".join(a[i].tobytes() for a in both) for i in range(len(both[0]))]

    together = run(slice(0, 16))
    for low, high in ((0, 1), (7, 9), (3, 16)):
        assert run(slice(low, high)) == together[low:high]


@pytest.mark.parametrize("order", ["", SUFFIX])
def test_reproducible_experts_serve_many_tokens_as_few(emulated: Make, order: str) -> None:
    kwargs = inputs.make_experts(np.random.default_rng(3), "bfloat16", ("q4_k" + order,), "q6_k" + order, 40, 256, 256,
                                 5, 3, 0, ())
    queue = emulated("sm_90a")
    ops = CudaOps(queue, reproducible=True)

    def run(part: slice) -> list[np.ndarray]:
        router = Weight("f32", (37, 256), (queue.put(np.asarray(scores.parts[0])),))
        with queue.step():
            y = ops.experts(*put(queue, kwargs, part, part.stop - part.start))
            routed = ops.route(queue.put(np.ascontiguousarray(kwargs["x"][part])), (router,), 5, True)
            return [queue.download(a).result().copy().view(np.uint8) for a in (y, routed.experts, routed.weights)]

    (scores,) = inputs.make_route(np.random.default_rng(4), "bfloat16", "f32", 1, 256, 37, 5, True, 0, ())["router"]
    together = run(slice(0, 40))
    for low, high in ((0, 1), (7, 24)):
        for alone, whole in zip(run(slice(low, high)), together, strict=True):
            assert np.array_equal(alone, whole[low:high])


@pytest.mark.parametrize("rows", [40, 16])
def test_experts_that_do_not_begin_with_a_tile_are_refused(emulated: Make, rows: int) -> None:
    """Gate and up of 20 or 8 rows in one matrix."""
    queue, rng = emulated("sm_90a"), np.random.default_rng(6)
    kwargs = inputs.make_experts(rng, "bfloat16", ("q4_k_fragments",), "f16", 20, 256, rows // 2, 4, 2, 0, ())
    for tokens in (2, 20):
        with queue.step(), pytest.raises(KernelError, match="must be a multiple of 32"):
            CudaOps(queue).experts(*put(queue, kwargs, slice(0, tokens), tokens))


def test_many_tokens_give_their_own_bits(emulated: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever stands beside a token, whatever its place among them, and in tiles of any height."""
    kwargs = inputs.make_experts(np.random.default_rng(2), "bfloat16", ("q8_0",), "q4_0", 96, 64, 96, 5, 2, 1, ())
    queue = emulated("sm_90a")

    def run(part: slice, tokens: int, height: int) -> np.ndarray:
        monkeypatch.setattr(expert_groups, "tile_rows", lambda pairs, count: height)
        with queue.step():
            y = CudaOps(queue).experts(*put(queue, kwargs, part, tokens))
            return np.asarray(queue.download(y).result()).view(np.uint16)

    want = run(slice(0, 96), 96, 128)
    for height in (16, 64):
        assert np.array_equal(run(slice(0, 96), 96, height), want)
    for low, high, tokens in ((0, 1, 17), (5, 30, 25), (40, 96, 200)):
        got = run(slice(low, high), tokens, 64)
        assert np.array_equal(got, np.resize(want[low:high], got.shape))


@pytest.mark.parametrize("count", [1, 7, 130])
@pytest.mark.parametrize("tokens", [17, 700])
def test_pairs_are_sorted_stably_and_tiles_cover_them(emulated: Make, tokens: int, count: int) -> None:
    rng = np.random.default_rng(tokens + count)
    top = min(3, count)
    ids = np.stack([rng.choice(max(count - 2, top), top, replace=False) for _ in range(tokens)]).astype(np.int32)
    queue = emulated("sm_90a")
    with queue.step():
        found = expert_groups.sort(queue, Routing(queue.put(ids), queue.put(np.zeros(ids.shape, np.float32))), count)
        order, offsets, tiles = (queue.download(a).result() for a in (found.order, found.offsets, found.tiles))
    assert order.tolist() == np.argsort(ids.reshape(-1), kind="stable").tolist()
    sizes = np.bincount(ids.reshape(-1), minlength=count)
    assert offsets.tolist() == [0, *np.cumsum(sizes)]
    want = [(e, offsets[e] + i) for e in range(count) for i in range(0, sizes[e], found.rows)]
    assert len(want) <= len(tiles)
    assert tiles.tolist() == [*map(list, want), *[[-1, 0]] * (len(tiles) - len(want))]


def test_no_distribution_needs_more_tiles() -> None:
    rng = np.random.default_rng(0)
    for pairs, count, rows in ((1, 8, 16), (40, 3, 16), (512, 128, 16), (1000, 7, 64), (3000, 128, 128)):
        worst = np.ones(min(pairs, count), int)
        worst[0] += pairs - len(worst)
        cases = [worst, *(rng.multinomial(pairs, rng.dirichlet(np.full(count, 0.3))) for _ in range(200))]
        assert max(int((-(-sizes // rows)).sum()) for sizes in cases) <= expert_groups.most_tiles(pairs, count, rows)


@pytest.mark.parametrize("form", sorted(FORMATS))
@pytest.mark.parametrize("names", [("a{}", "b{}"), ("A", "B"), ("a{}",), ("A",)])
def test_stacks_on_a_device_hold_every_expert(emulated: Make, form: str, names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    shape, count = (128, 256), 3
    each = {f"{x}{e}": inputs.weight(rng, form, *shape) for x in "ab" for e in range(count)}
    source = each | {x.upper(): FORMATS[form].concat(tuple(each[f"{x}{e}"] for e in range(count))) for x in "ab"}
    queue = emulated("sm_90a")
    seen: list[int] = []
    got = stacked(queue, Pieces(names, count, shape), form, source.__getitem__, seen.append)
    letters = [name[0].lower() for name in names]
    want = FORMATS[form].concat(tuple(each[f"{x}{e}"] for e in range(count) for x in letters))
    assert got.shape == want.shape and sum(seen) == want.nbytes
    for a, b in zip(got.parts, want.parts, strict=True):
        assert np.array_equal(queue.download(a).result().view(np.uint8), np.asarray(b).view(np.uint8))


@pytest.mark.parametrize("form", STACKED)
@pytest.mark.parametrize("names", [("a{}", "b{}"), ("A", "B"), ("a{}",), ("A",)])
def test_stacks_lie_in_fragment_order(emulated: Make, monkeypatch: pytest.MonkeyPatch, form: str,
                                      names: tuple[str, ...]) -> None:
    """However few rows go through the scratch memory at a time."""
    rng = np.random.default_rng(3)
    shape, count = (96, 512), 3
    each = {f"{x}{e}": inputs.weight(rng, form, *shape) for x in "ab" for e in range(count)}
    source = each | {x.upper(): FORMATS[form].concat(tuple(each[f"{x}{e}"] for e in range(count))) for x in "ab"}
    want = fragmented(FORMATS[form].concat(tuple(each[f"{x}{e}"] for e in range(count) for x in
                                                 (name[0].lower() for name in names))))
    queue, pieces = emulated("sm_90a"), Pieces(names, count, shape)
    for scratch in (1, 70_000, 1 << 20):
        monkeypatch.setattr(stack, "SCRATCH", scratch)
        seen: list[int] = []
        got = ordered(queue, pieces, form, source.__getitem__, seen.append, CudaOps(queue).arrange)
        read = sum(source[part].nbytes for name in names for part in members(name, count))
        assert (got.format, got.shape, sum(seen)) == (want.format, want.shape, read)
        assert np.array_equal(queue.download(got.parts[0]).result(), np.asarray(want.parts[0]))


def test_what_can_lie_in_fragment_order() -> None:
    assert tiled(Pieces(("a",), 3, (96, 512)), "q4_k") and not tiled(Pieces(("a",), 3, (96, 512)), "q5_k")
    assert not tiled(Pieces(("a",), 3, (80, 512)), "q4_k"), "gate and up of 40 rows in one"
