"""mbarriers and copies that run beside the threads: cp.async, cp.async.bulk, tensor copies."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulated.snippet import run
from hypothesis import given, settings
from hypothesis import strategies as st

from blackwell_infer.device.emulated import EmulatedQueue
from blackwell_infer.emulator.memory import Heap
from blackwell_infer.emulator.parse import PtxError, parse_module
from blackwell_infer.emulator.run import launch
from blackwell_infer.emulator.tensormap import TensorMap
from blackwell_infer.kernels.compile import Builder
from blackwell_infer.kernels.kernel import Kernel, Param

WAIT = "{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%bar], PARITY; @p bra D; bra W; D: }"
SETUP = """.shared .align 1024 .b8 tile[8192]; .shared .align 8 .b64 barrier;
    .reg .b32 %t, %bar, %size; .reg .pred %first; .reg .b64 %map, %global; .reg .b32 %x, %y;
    mov.u32 %t, tile; mov.u32 %bar, barrier; setp.eq.u32 %first, %tid, 0;
    @%first mbarrier.init.shared::cta.b64 [%bar], COUNT; fence.proxy.async.shared::cta; bar.sync 0;"""


def device(body: str, data: np.ndarray, result: int, maps: tuple[TensorMap, ...] = (), block: int = 32) -> np.ndarray:
    """Run a body with %data and %result (global addresses) and %maps (128 bytes per map); returns the result bytes."""
    text = f""".version 8.8
        .target sm_120a
        .address_size 64
        .visible .entry k(.param .u64 a, .param .u64 b, .param .align 64 .b8 maps[{128 * max(1, len(maps))}])
        {{ .reg .b64 %data, %result, %maps, %at; .reg .b32 %tid, %v;
        ld.param.u64 %data, [a]; ld.param.u64 %result, [b]; mov.b64 %maps, maps; cvta.param.u64 %maps, %maps;
        mov.u32 %tid, %tid.x;
        {body}
        ret; }}"""
    heap = Heap()
    a, b = heap.allocate(data.nbytes), heap.allocate(result)
    heap.view(a, data.nbytes)[:] = data.reshape(-1).view(np.uint8)
    heap.view(b, result)[:] = 0
    raw = b"".join(m_at(m, a).encode().tobytes() for m in maps) or b"\0" * 128
    params = (a.to_bytes(8, "little") + b.to_bytes(8, "little")).ljust(64, b"\0") + raw
    launch(parse_module(text), "k", heap, {}, (1, 1, 1), (block, 1, 1), params)
    return heap.peek(b, result).copy()


def m_at(m: TensorMap, address: int) -> TensorMap:
    return TensorMap(address, m.itemsize, m.dims, m.strides, m.box, m.swizzle)


COPY_OUT = """mov.u32 %x, 0;
    L: setp.ge.u32 %first, %x, BYTES; @%first bra E; add.u32 %y, %t, %x; mad.lo.u32 %y, %tid, 4, %y;
    ld.shared.b32 %v, [%y]; mad.lo.u32 %y, %tid, 4, %x; cvt.u64.u32 %at, %y; add.u64 %at, %at, %result;
    st.global.b32 [%at], %v; add.u32 %x, %x, 128; bra L; E:"""


def test_a_bulk_copy_arrives_at_its_mbarrier() -> None:
    data = np.arange(512, dtype=np.uint32)
    got = device(f"""{SETUP.replace('COUNT', '1')}
        @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 2048;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t], [%data], 1024, [%bar];
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t+1024], [%data+1024], 1024, [%bar];
        S: {WAIT.replace('PARITY', '0')} {COPY_OUT.replace('BYTES', '2048')}""", data, 2048)
    assert np.array_equal(got.view(np.uint32), data)


def test_a_read_before_the_wait_is_an_error() -> None:
    body = f"""{SETUP.replace('COUNT', '1')}
        @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 1024;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t], [%data], 1024, [%bar];
        S: ld.shared.b32 %v, [%t]; {WAIT.replace('PARITY', '0')}"""
    with pytest.raises(PtxError, match=r"ld.shared.b32.*asynchronous copy.*thread \(0, 0, 0\) of CTA \(0, 0, 0\)"):
        device(body, np.zeros(256, np.uint32), 4)


@pytest.mark.parametrize("expected", [2048, 512])
def test_wrong_byte_counts_do_not_open_the_phase(expected: int) -> None:
    body = f"""{SETUP.replace('COUNT', '1')}
        @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {expected};
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t], [%data], 1024, [%bar];
        S: {WAIT.replace('PARITY', '0')}"""
    with pytest.raises(PtxError, match="deadlock"):
        device(body, np.zeros(256, np.uint32), 4)


def test_a_copy_that_nobody_waits_for_is_an_error() -> None:
    body = f"""{SETUP.replace('COUNT', '1')} @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 64;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t], [%data], 64, [%bar]; S:"""
    with pytest.raises(PtxError, match="under way as its CTA ends"):
        device(body, np.zeros(256, np.uint32), 4)


def test_two_stage_pipeline_between_warps() -> None:
    """A producer warp and a consumer warp meet at full and empty barriers over four phases of one stage."""
    data = np.arange(1024, dtype=np.uint32)
    body = """.shared .align 128 .b8 tile[1024]; .shared .align 8 .b64 full; .shared .align 8 .b64 empty;
        .reg .b32 %t, %f, %e, %i, %parity, %sum, %y; .reg .pred %p, %q, %first; .reg .b64 %src;
        mov.u32 %t, tile; mov.u32 %f, full; mov.u32 %e, empty; setp.eq.u32 %first, %tid, 0;
        @%first mbarrier.init.shared::cta.b64 [%f], 1; @%first mbarrier.init.shared::cta.b64 [%e], 32; bar.sync 0;
        mov.u32 %i, 0; mov.u32 %sum, 0; mov.u64 %src, %data;
        setp.ge.u32 %p, %tid, 32; @%p bra CONSUME;
        PRODUCE: setp.ge.u32 %p, %i, 4; @%p bra DONE;
        and.b32 %parity, %i, 1; xor.b32 %parity, %parity, 1;
        P: mbarrier.try_wait.parity.shared::cta.b64 %q, [%e], %parity; @!%q bra P;
        @!%first bra NEXT;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%f], 1024;
        cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%t], [%src], 1024, [%f];
        NEXT: add.u64 %src, %src, 1024; add.u32 %i, %i, 1; bra PRODUCE;
        CONSUME: setp.ge.u32 %p, %i, 4; @%p bra STORE;
        and.b32 %parity, %i, 1;
        C: mbarrier.try_wait.parity.shared::cta.b64 %q, [%f], %parity; @!%q bra C;
        sub.u32 %y, %tid, 32; mad.lo.u32 %y, %y, 4, %t; ld.shared.b32 %v, [%y]; add.u32 %sum, %sum, %v;
        mbarrier.arrive.shared::cta.b64 _, [%e]; add.u32 %i, %i, 1; bra CONSUME;
        STORE: sub.u32 %y, %tid, 32; mul.wide.u32 %at, %y, 4; add.u64 %at, %at, %result; st.global.b32 [%at], %sum;
        DONE:"""
    got = device(body, data, 128, block=64).view(np.uint32)
    assert np.array_equal(got, data.reshape(4, 256)[:, :32].sum(0))


def test_cp_async_can_report_to_an_mbarrier() -> None:
    data = np.arange(128, dtype=np.uint32)
    got = device(f"""{SETUP.replace('COUNT', '32')} .reg .b32 %mine;
        mad.lo.u32 %mine, %tid, 16, %t; mul.wide.u32 %at, %tid, 16; add.u64 %at, %at, %data;
        cp.async.cg.shared.global [%mine], [%at], 16;
        cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%bar];
        {WAIT.replace('PARITY', '0')} {COPY_OUT.replace('BYTES', '512')}""", data, 512)
    assert np.array_equal(got.view(np.uint32), data)


@pytest.mark.parametrize("fault", ["expect", "init", "extra"])
def test_faults_of_mbarriers_are_named(fault: str) -> None:
    body, message = {
        "expect": ("mbarrier.init.shared::cta.b64 [%bar], 0;", "mbarrier of 0 arrivals"),
        "init": ("mbarrier.arrive.shared::cta.b64 _, [%bar];", "not initialised"),
        "extra": ("mbarrier.init.shared::cta.b64 [%bar], 2; mbarrier.arrive.shared::cta.b64 _, [%bar], 3;",
                  "more threads arrive"),
    }[fault]
    with pytest.raises(PtxError, match=message):
        run(f""".shared .align 8 .b64 barrier; .reg .b32 %bar; .reg .pred %p; mov.u32 %bar, barrier;
            setp.ne.u32 %p, %tid, 0; @%p bra E; {body} E: mov.u32 %d, 0;""", {}, {"d": "b32"})


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tensor_tiles_of_any_rank_swizzle_and_place(draw: st.DataObject) -> None:
    rank = draw.draw(st.integers(1, 4))
    itemsize = draw.draw(st.sampled_from([1, 2, 4]))
    swizzle = draw.draw(st.sampled_from([0, 32, 64, 128]))
    inner = draw.draw(st.sampled_from([n for n in (16, 32, 64, 128) if not swizzle or n <= swizzle])) // itemsize
    box = (inner, *(draw.draw(st.integers(1, 4)) for _ in range(rank - 1)))
    dims = tuple(draw.draw(st.integers(1, 40)) for _ in range(rank))
    row = -(-dims[0] * itemsize // 16) * 16
    strides = [row]
    for d in dims[1:-1]:
        strides.append(strides[-1] * d)
    at = tuple(draw.draw(st.integers(-3, d)) for d in dims)
    shape = (*dims[:0:-1], row)
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    tensor = TensorMap(0, itemsize, dims, tuple(strides[: rank - 1]), box, swizzle)
    n = int(np.prod(box)) * itemsize
    coordinates = ", ".join(str(c) for c in at)
    got = device(f"""{SETUP.replace('COUNT', '1')} @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {n};
        cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes
            [%t], [%maps, {{{coordinates}}}], [%bar];
        S: {WAIT.replace('PARITY', '0')}
        .reg .b32 %z; mad.lo.u32 %z, %tid, 1, 0; .reg .b16 %h; .reg .pred %out;
        Q: setp.ge.u32 %out, %z, {n}; @%out bra R; add.u32 %y, %t, %z;
        ld.shared.u8 %h, [%y]; cvt.u64.u32 %at, %z; add.u64 %at, %at, %result; st.global.u8 [%at], %h;
        add.u32 %z, %z, 32; bra Q; R:""" if swizzle == 0 else f"""{SETUP.replace('COUNT', '1')} @!%first bra S;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {n};
        cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes
            [%t], [%maps, {{{coordinates}}}], [%bar];
        S: {WAIT.replace('PARITY', '0')}
        .reg .b32 %z, %w; mov.u32 %z, %tid; .reg .b16 %h; .reg .pred %out;
        Q: setp.ge.u32 %out, %z, {n}; @%out bra R; shr.u32 %w, %z, 7; and.b32 %w, %w, {swizzle // 16 - 1};
        shl.b32 %w, %w, 4; xor.b32 %w, %w, %z; add.u32 %y, %t, %w;
        ld.shared.u8 %h, [%y]; cvt.u64.u32 %at, %z; add.u64 %at, %at, %result; st.global.u8 [%at], %h;
        add.u32 %z, %z, 32; bra Q; R:""", data, n, (tensor,))
    expected = np.zeros((*box[:0:-1], box[0] * itemsize), np.uint8)
    for place in np.ndindex(*expected.shape):
        element = place[-1] // itemsize
        index = [at[0] + element, *(c + p for c, p in zip(at[1:], place[-2::-1], strict=True))]
        if all(0 <= i < d for i, d in zip(index, dims, strict=True)):
            expected[place] = data[(*index[:0:-1], index[0] * itemsize + place[-1] % itemsize)]
    assert np.array_equal(got, expected.reshape(-1))


def test_tensor_store_drops_what_is_outside() -> None:
    data = np.full((4, 16), 7, np.uint32)
    tensor = TensorMap(0, 4, (14, 3), (64,), (8, 4))
    body = f"""{SETUP.replace('COUNT', '1')} mad.lo.u32 %y, %tid, 4, %t; st.shared.b32 [%y], %tid;
        fence.proxy.async.shared::cta; bar.sync 0; @!%first bra S;
        cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%maps, {{8, 1}}], [%t];
        cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;
        S: bar.sync 0; mul.wide.u32 %at, %tid, 4; add.u64 %at, %at, %data; .reg .b32 %i; mov.u32 %i, 0;
        Q: setp.ge.u32 %first, %i, 2; @%first bra R; ld.global.b32 %v, [%at]; .reg .b64 %o; sub.u64 %o, %at, %data;
        add.u64 %o, %o, %result; st.global.b32 [%o], %v; add.u64 %at, %at, 128; add.u32 %i, %i, 1; bra Q; R:"""
    got = device(body, data, 256, (tensor,)).view(np.uint32).reshape(4, 16)
    expected = data.copy()
    tile = np.arange(32, dtype=np.uint32).reshape(4, 8)
    expected[1:3, 8:14] = tile[:2, :6]
    assert np.array_equal(got, expected)


@pytest.mark.parametrize(("change", "message"), [
    ({"box": (3,)}, "16"), ({"itemsize": 3}, "elements of 3"), ({"swizzle": 32, "box": (16,)}, "does not fit"),
    ({"dims": (4, 4), "strides": (8,), "box": (4, 1)}, "multiples of 16"), ({"address": 8}, "multiple of 16")])
def test_tensor_maps_that_hardware_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(PtxError, match=message):
        TensorMap(**{"address": 0, "itemsize": 4, "dims": (64,), "strides": (), "box": (4,), **change}).encode()


@pytest.mark.parametrize("left", [0, 1])
def test_wait_group_leaves_the_newest_groups(left: int) -> None:
    data = np.arange(32, dtype=np.uint32)
    body = f""".shared .align 16 .b8 tile[1024]; .reg .b32 %t, %mine; mov.u32 %t, tile; mul.wide.u32 %at, %tid, 4;
        add.u64 %at, %at, %data; mad.lo.u32 %mine, %tid, 4, %t;
        cp.async.ca.shared.global [%mine], [%at], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%mine+512], [%at], 4; cp.async.commit_group; cp.async.wait_group {left};
        ld.shared.b32 %v, [%mine+512]; mul.wide.u32 %at, %tid, 4; add.u64 %at, %at, %result; st.global.b32 [%at], %v;"""
    if left:
        with pytest.raises(PtxError, match="asynchronous copy is under way"):
            device(body, data, 128)
    else:
        assert np.array_equal(device(body, data, 128).view(np.uint32), data)


def test_cp_async_fills_the_rest_with_zeros() -> None:
    data = np.arange(1, 129, dtype=np.uint32)
    body = """.shared .align 16 .b8 tile[512]; .reg .b32 %t, %mine, %n; .reg .pred %p; mov.u32 %t, tile;
        mul.wide.u32 %at, %tid, 16; add.u64 %at, %at, %data; mad.lo.u32 %mine, %tid, 16, %t;
        and.b32 %n, %tid, 3; mul.lo.u32 %n, %n, 4; cp.async.cg.shared.global [%mine], [%at], 16, %n; cp.async.wait_all;
        .reg .b32 %a, %b, %c, %d; ld.shared.v4.b32 {%a, %b, %c, %d}, [%mine];
        mul.wide.u32 %at, %tid, 16; add.u64 %at, %at, %result; st.global.v4.b32 [%at], {%a, %b, %c, %d};"""
    got = device(body, data, 512).view(np.uint32).reshape(32, 4)
    keep = np.arange(4) < (np.arange(32) % 4)[:, None]
    assert np.array_equal(got, np.where(keep, data.reshape(32, 4), 0))


KERNEL = """
extern "C" __global__ void take_tile(const void* map, const int* at, float* out) {
    __shared__ alignas(128) float tile[64];
    __shared__ unsigned long long bar;
    const unsigned b = (unsigned)__cvta_generic_to_shared(&bar), t = (unsigned)__cvta_generic_to_shared(tile);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(b) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], 256;" ::"r"(b) : "memory");
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1, {%2, %3}], [%4];" ::"r"(t), "l"(map), "r"(at[1]), "r"(at[0]), "r"(b) : "memory");
    }
    asm volatile("{ .reg .pred p; W: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], 0; @p bra D; bra W; D: }"
                 ::"r"(b) : "memory");
    out[threadIdx.x] = tile[threadIdx.x];
}
"""


@pytest.mark.parametrize("arch", ["sm_90a", "sm_120f"])
def test_a_compiled_kernel_takes_a_tile_of_a_queue(arch: str, tmp_path: Path) -> None:
    (tmp_path / "tile.cu").write_text(KERNEL)
    params = Param("map", "in", "uint8"), Param("at", "in", "int32"), Param("out", "out")
    kernel = Kernel("tile.cu", "take_tile", params)
    queue = EmulatedQueue(arch, Builder(arch, None, tmp_path))
    data = np.arange(20 * 24, dtype=np.float32).reshape(20, 24)
    x, at, out = queue.put(data), queue.put(np.array([14, 20], np.int32)), queue.empty((8, 8), np.float32)
    queue.launch(kernel.variant(), (1, 1, 1), (64, 1, 1), queue.tensor_map(x, (8, 8)), at, out)
    expected = np.zeros((8, 8), np.float32)
    expected[:6, :4] = data[14:20, 20:24]
    assert np.array_equal(queue.download(out).result(), expected)
