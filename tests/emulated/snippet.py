"""Runs a few lines of PTX over the lanes of a block: the harness of the opcode tests."""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from blackwell_infer.emulator.memory import Heap
from blackwell_infer.emulator.parse import parse_module
from blackwell_infer.emulator.run import launch

Arrays = Mapping[str, np.ndarray]
WIDTH = {"pred": 1, "b8": 1, "b16": 2, "f16": 2, "b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "f64": 8}


def text(body: str, inputs: Arrays, outputs: Mapping[str, str], variables: str = "") -> str:
    """An entry that loads register %name of every input, runs the body, and stores %name of every output."""
    lines = [".version 8.8", ".target sm_120a", ".address_size 64", variables,
             ".visible .entry k(.param .u64 memory)", "{",
             ".reg .b64 %memory, %at; .reg .b32 %tid, %place, %one; .reg .pred %stored;",
             "ld.param.u64 %memory, [memory];",
             "mov.u32 %tid, %tid.x; mov.u32 %place, %ctaid.x; mov.u32 %one, %ntid.x;",
             "mad.lo.u32 %place, %place, %one, %tid;"]
    offset = 0
    for name, array in inputs.items():
        size = array.dtype.itemsize
        lines += [f".reg .b{8 * size} %{name};", f"mul.wide.u32 %at, %place, {size};", "add.u64 %at, %at, %memory;",
                  f"ld.global.b{8 * size} %{name}, [%at+{offset}];"]
        offset += -(-array.nbytes // 256) * 256
    for name, kind in outputs.items():
        lines += [f".reg .{kind} %{name};"]
    lines += [body]
    for name, kind in outputs.items():
        size = WIDTH[kind]
        value = f"%{name}"
        if kind == "pred":
            lines += [f".reg .b32 %{name}_word; selp.b32 %{name}_word, 1, 0, %{name};"]
            value = f"%{name}_word"
        lines += [f"mul.wide.u32 %at, %place, {size};", "add.u64 %at, %at, %memory;",
                  f"st.global.b{8 * size} [%at+{{{name}}}], {value};"]
    return "\n".join([*lines, "ret;", "}"])


def run(body: str, inputs: Arrays, outputs: Mapping[str, str], block: int = 32, grid: int = 1, dynamic: int = 0,
        variables: str = "", seed: int | None = None) -> dict[str, np.ndarray]:
    """Register values per lane [grid * block] after the body. `outputs` maps register names to PTX types; inputs and
    outputs need no declaration, other registers do."""
    n = block * grid
    source = text(body, inputs, outputs, variables)
    offset, blocks = 0, []
    for array in inputs.values():
        assert len(array) == n, "one input element per lane"
        blocks.append((offset, np.ascontiguousarray(array).view(np.uint8).reshape(-1)))
        offset += -(-array.nbytes // 256) * 256
    places = {}
    for name, kind in outputs.items():
        places[name] = offset
        offset += -(-n * WIDTH[kind] // 256) * 256
    for name, place in places.items():
        source = source.replace("{" + name + "}", str(place))
    heap = Heap()
    at = heap.allocate(max(offset, 1))
    for place, data in blocks:
        heap.view(at + place, len(data))[:] = data
    module = parse_module(source)
    addresses = {}
    for v in module.variables:
        if v.space in ("const", "global"):
            addresses[v.name] = heap.allocate(v.size)
            heap.view(addresses[v.name], v.size)[:] = np.frombuffer(v.data.ljust(v.size, b"\0"), np.uint8)
    launch(module, "k", heap, addresses, (grid, 1, 1), (block, 1, 1), at.to_bytes(8, "little"), dynamic, seed)
    result = {}
    for name, kind in outputs.items():
        dtype = {"f32": np.float32, "f64": np.float64, "f16": np.float16, "s32": np.int32}.get(
            kind, np.dtype(f"u{WIDTH[kind]}"))
        raw = heap.view(at + places[name], n * WIDTH[kind]).copy().view(dtype)
        result[name] = raw.astype(bool) if kind == "pred" else raw
    return result
