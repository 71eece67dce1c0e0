"""Runs one kernel launch: SIMT over arrays of lanes.

Each register is an array with one element per lane of several CTAs. Lanes are grouped by basic block; the group at the
lowest block runs next, which makes diverged lanes meet again (min-PC reconvergence). With a seed, random subsets of
warps run instead, so that code which lacks a barrier reads what is not yet written. Barriers are real, per CTA.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from blackwell_infer.emulator.memory import LOCAL_WINDOW, POISON, SHARED_WINDOW, Heap
from blackwell_infer.emulator.parse import Entry, Instruction, Module, Operand, PtxError

Lanes = np.ndarray[Any, np.dtype[np.int64]] | None
"""indices of the active lanes, None for all of them"""
Step = Callable[[Lanes], None]
Values = np.ndarray[Any, np.dtype[Any]]
REGISTER = {0: np.dtype(np.bool_), 8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32),
            64: np.dtype(np.uint64)}
NUMPY = {"pred": np.dtype(np.bool_), "b8": np.dtype(np.uint8), "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8),
         "b16": np.dtype(np.uint16), "u16": np.dtype(np.uint16), "s16": np.dtype(np.int16),
         "b32": np.dtype(np.uint32), "u32": np.dtype(np.uint32), "s32": np.dtype(np.int32),
         "b64": np.dtype(np.uint64), "u64": np.dtype(np.uint64), "s64": np.dtype(np.int64),
         "f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
LANES = 8192
"""lanes that run at once; larger grids run in several goes, as CTAs are independent"""
EXITED, BLOCKED = -1, -2


class Copies:
    """cp.async copies under way: issued by lanes, in groups; the bytes arrive when the lane waits for the group."""

    def __init__(self, lanes: int) -> None:
        self.group = np.zeros(lanes, np.int64)
        self.pending: list[tuple[Values, Values, Values, Values]] = []


class Machine:
    """State of the CTAs that run together."""

    def __init__(self, entry: Entry, module: Module, heap: Heap, constants: Mapping[str, int], grid: tuple[int, ...],
                 block: tuple[int, ...], first: int, ctas: int, params: bytes, dynamic: int) -> None:
        self.entry, self.heap = entry, heap
        threads = block[0] * block[1] * block[2]
        padded = -(-threads // 32) * 32
        self.threads, self.lanes = threads, ctas * padded
        every = np.arange(self.lanes, dtype=np.int64)
        self.cta, inside = every // padded, every % padded
        self.inside = inside
        self.everyone = every
        cta = self.cta + first
        self.special = {
            "%tid.x": inside % block[0], "%tid.y": inside // block[0] % block[1],
            "%tid.z": inside // block[0] // block[1], "%ntid.x": block[0], "%ntid.y": block[1], "%ntid.z": block[2],
            "%laneid": inside % 32, "%warpid": inside // 32, "%nwarpid": padded // 32,
            "%ctaid.x": cta % grid[0], "%ctaid.y": cta // grid[0] % grid[1], "%ctaid.z": cta // grid[0] // grid[1],
            "%nctaid.x": grid[0], "%nctaid.y": grid[1], "%nctaid.z": grid[2],
            "%lanemask_lt": (1 << inside % 32) - 1, "%lanemask_le": (2 << inside % 32) - 1,
            "%lanemask_eq": 1 << inside % 32, "%clock": 0, "%globaltimer": 0,
        }
        self.registers = {name: np.zeros(self.lanes, REGISTER[width]) for name, width in entry.registers.items()}
        self.params, self.parameter = params, {}
        at = 0
        for name, size in entry.params:
            at = -(-at // size) * size if size in (1, 2, 4, 8) else -(-at // 64) * 64
            self.parameter[name] = at
            at += size
        self.addresses = dict(constants)
        sizes = {"shared": 0, "local": 0}
        for v in (*module.variables, *entry.variables):
            if v.space in sizes and v.size:
                sizes[v.space] = -(-sizes[v.space] // v.align) * v.align
                self.addresses[v.name] = sizes[v.space]
                sizes[v.space] += v.size
        sizes["shared"] = -(-sizes["shared"] // 128) * 128
        for v in (*module.variables, *entry.variables):
            if v.space == "shared" and not v.size:
                self.addresses[v.name] = sizes["shared"]
        self.shared_size, self.local_size = sizes["shared"] + dynamic, sizes["local"]
        self.stride = -(-max(self.shared_size, 1) // 128) * 128
        self.shared = np.full(ctas * self.stride, POISON, np.uint8)
        self.local = np.full(self.lanes * -(-max(self.local_size, 1) // 16) * 16, POISON, np.uint8)
        self.copies = Copies(self.lanes)
        self.place = np.where(inside < threads, 0, EXITED)
        self.barrier = np.full(self.lanes, -1)
        self.expected = np.zeros(self.lanes, np.int64)
        self.resume = np.zeros(self.lanes, np.int64)
        self.ctas = ctas
        self.running: Instruction | None = None

    # -- operands ---------------------------------------------------------------------------------------------------

    def reader(self, o: Operand, kind: str) -> Callable[[Lanes], Any]:
        """A function from active lanes to the operand's values as `kind`."""
        dtype = NUMPY[kind]
        if o.kind == "reg" and o.name in self.registers:
            array = self.registers[o.name]
            if array.dtype.itemsize != dtype.itemsize:
                if array.dtype.itemsize < dtype.itemsize or dtype.kind == "f" or dtype.kind == "b":
                    raise PtxError(f"register {o.name} is not {dtype.itemsize * 8} bits wide")
                return lambda lanes: (array if lanes is None else array[lanes]).astype(dtype)
            array = array.view(dtype)
            if o.negated:
                return lambda lanes: ~(array if lanes is None else array[lanes])
            return lambda lanes: array if lanes is None else array[lanes]
        if o.kind == "reg" and o.name in self.special:
            values = np.broadcast_to(np.asarray(self.special[o.name]), (self.lanes,)).astype(dtype)
            return lambda lanes: values if lanes is None else values[lanes]
        if o.kind == "imm":
            constant = self.constant(o, dtype)
            return lambda lanes: constant
        if o.kind == "sym" and o.name in self.addresses:
            address = np.array(self.addresses[o.name], np.uint64).astype(dtype)[()]
            return lambda lanes: address
        raise PtxError(f"operand {o.name or o.kind!r} is not known")

    @staticmethod
    def constant(o: Operand, dtype: np.dtype[Any]) -> Any:
        """An immediate as a scalar of dtype; integers wrap, float bits are taken as they are."""
        if dtype.kind == "f":
            if not o.bits:
                return dtype.type(o.value)
            pattern = struct.pack("<Q", o.value)[: o.bits // 8]
            return np.frombuffer(pattern, f"f{o.bits // 8}")[0].astype(dtype)
        if dtype.kind == "b":
            return np.bool_(o.value)
        mask = (1 << dtype.itemsize * 8) - 1
        return np.array(o.value & mask, f"u{dtype.itemsize}").view(dtype)[()]

    def writer(self, o: Operand) -> Callable[[Lanes, Any], None]:
        """A function that stores values (of the register's width, any type) for active lanes."""
        if o.kind == "sink":
            return lambda lanes, values: None
        array = self.registers.get(o.name)
        if o.kind != "reg" or array is None:
            raise PtxError(f"{o.name or o.kind!r} is not a register")

        def put(lanes: Lanes, values: Any) -> None:
            v = np.asarray(values)
            if v.dtype != array.dtype:
                v = v.view(array.dtype) if v.dtype.itemsize == array.dtype.itemsize else self.widen(v, array.dtype)
            array[... if lanes is None else lanes] = v
        return put

    @staticmethod
    def widen(v: Values, dtype: np.dtype[Any]) -> Values:
        """Loads and cvt may target wider registers: sign- or zero-extend by the value's own type."""
        if v.dtype.itemsize > dtype.itemsize or v.dtype.kind == "f":
            raise PtxError(f"a value of {v.dtype} does not fit a register of {dtype.itemsize * 8} bits")
        return v.astype(f"i{dtype.itemsize}").view(dtype) if v.dtype.kind == "i" else v.astype(dtype)

    def address(self, o: Operand) -> Callable[[Lanes], Values]:
        """Byte addresses [n] uint64 of an address operand."""
        base, offset = o.items[0], np.uint64(o.value & 0xFFFFFFFFFFFFFFFF)
        if base.kind == "reg":
            wide = self.registers[base.name].dtype.itemsize == 8
            read = self.reader(base, "u64" if wide else "u32")
        else:
            read = self.reader(base, "u64")

        def at(lanes: Lanes) -> Values:
            n = self.lanes if lanes is None else len(lanes)
            return np.broadcast_to(np.asarray(read(lanes)).astype(np.uint64) + offset, (n,))
        return at

    def indices(self, lanes: Lanes) -> np.ndarray[Any, np.dtype[np.int64]]:
        return self.everyone if lanes is None else lanes

    def warps(self, lanes: Lanes) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Active lanes as [warps, 32]; PtxError if a warp is not whole."""
        n = self.indices(lanes)
        if len(n) % 32 == 0:
            rows = n.reshape(-1, 32)
            if (rows[:, 0] % 32 == 0).all() and (rows[:, 31] - rows[:, 0] == 31).all():
                return rows
        raise PtxError("a warp-wide instruction runs with only part of a warp active")

    # -- memory -----------------------------------------------------------------------------------------------------

    def locate(self, space: str, lanes: Lanes, addresses: Values, nbytes: int) -> tuple[Values, Values]:
        """(backing bytes, offsets) of accesses of `nbytes` each, checked for bounds and alignment."""
        if (addresses & np.uint64(nbytes - 1)).any():
            bad = int(addresses[(addresses & np.uint64(nbytes - 1)) != 0][0])
            raise PtxError(f"misaligned access of {nbytes} bytes at {bad:#x}")
        if space == "":
            first = int(addresses[0])
            space = "local" if first >= LOCAL_WINDOW else "shared" if first >= SHARED_WINDOW else "global"
            addresses = addresses - np.uint64({"local": LOCAL_WINDOW, "shared": SHARED_WINDOW, "global": 0}[space])
        if space == "global":
            return self.heap.bytes, self.heap.check(addresses, nbytes)
        size = self.shared_size if space == "shared" else self.local_size
        offsets = addresses.astype(np.int64)
        if (offsets < 0).any() or (offsets + nbytes > size).any():
            bad = int(offsets[(offsets < 0) | (offsets + nbytes > size)][0])
            raise PtxError(f"access of {nbytes} bytes at offset {bad} of {size} bytes of {space} memory")
        if space == "shared":
            return self.shared, offsets + self.cta[self.indices(lanes)] * self.stride
        return self.local, offsets + self.indices(lanes) * (len(self.local) // self.lanes)

    def load(self, space: str, lanes: Lanes, addresses: Values, dtype: np.dtype[Any], count: int) -> Values:
        """Values [n, count] of dtype."""
        backing, offsets = self.locate(space, lanes, addresses, dtype.itemsize * count)
        words = backing[: len(backing) // dtype.itemsize * dtype.itemsize].view(dtype)
        return words[(offsets // dtype.itemsize)[:, None] + np.arange(count)]

    def store(self, space: str, lanes: Lanes, addresses: Values, values: Values) -> None:
        """Write values [n, count]; among lanes with one address the highest wins."""
        size = values.dtype.itemsize
        backing, offsets = self.locate(space, lanes, addresses, size * values.shape[1])
        words = backing[: len(backing) // size * size].view(values.dtype)
        words[(offsets // size)[:, None] + np.arange(values.shape[1])] = values

    # -- asynchronous copies ----------------------------------------------------------------------------------------

    def copy_async(self, lanes: Lanes, dst: Values, src: Values, sizes: Values, width: int) -> None:
        """Issue copies of `width` bytes (the tail past `sizes` is zero): the destination is poisoned until the wait."""
        n = self.indices(lanes)
        _, to = self.locate("shared", lanes, dst, width)
        some = sizes > 0
        data = np.zeros((len(n), width), np.uint8)
        if some.any():
            aligned = src[some]
            if (aligned & np.uint64(width - 1)).any():
                raise PtxError(f"misaligned source of an asynchronous copy of {width} bytes")
            full = sizes[some] >= width
            at = np.empty(len(aligned), np.int64)
            if full.any():
                at[full] = self.heap.check(aligned[full], width)
            for i in np.flatnonzero(~full):
                at[i] = self.heap.check(aligned[i : i + 1], int(sizes[some][i]))[0]
            got = self.heap.bytes[np.minimum(at[:, None] + np.arange(width), len(self.heap.bytes) - 1)]
            data[some] = np.where(np.arange(width) < sizes[some][:, None], got, 0)
        self.shared[to[:, None] + np.arange(width)] = POISON
        self.copies.pending.append((n, self.copies.group[n], to, data))

    def wait_async(self, lanes: Lanes, left: int) -> None:
        """Complete all but the newest `left` groups of the active lanes."""
        active = np.zeros(self.lanes, bool)
        active[self.indices(lanes)] = True
        kept = []
        for n, group, to, data in self.copies.pending:
            done = active[n] & (group < self.copies.group[n] - left)
            if done.any():
                self.shared[to[done][:, None] + np.arange(data.shape[1])] = data[done]
            if not done.all():
                keep = ~done
                kept.append((n[keep], group[keep], to[keep], data[keep]))
        self.copies.pending = kept

    # -- barriers ---------------------------------------------------------------------------------------------------

    def arrive(self, lanes: Lanes, number: int, count: int, then: int) -> None:
        """Active lanes stop at a barrier; `count` 0 means every thread of the CTA that has not exited."""
        n = self.indices(lanes)
        self.place[n], self.barrier[n], self.expected[n], self.resume[n] = BLOCKED, number, count, then
        self.release()

    def release(self) -> None:
        """Let the lanes of every complete barrier go on."""
        waiting = np.flatnonzero(self.place == BLOCKED)
        if not len(waiting):
            return
        alive = np.bincount(self.cta[self.place != EXITED], minlength=self.ctas)
        key = self.cta[waiting] * 16 + self.barrier[waiting]
        arrived = np.bincount(key, minlength=self.ctas * 16)
        wanted = np.where(self.expected[waiting] > 0, self.expected[waiting], alive[self.cta[waiting]])
        go = waiting[arrived[key] >= wanted]
        self.place[go] = self.resume[go]
        self.barrier[go] = -1
