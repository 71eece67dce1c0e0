"""State of the CTAs that run together: one array element per lane for each register, and their memory.

A machine is built once per kernel, block size and number of CTAs, and serves one launch after the other.
"""
from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from blackwell_infer.emulator.asynchronous import Asynchronous
from blackwell_infer.emulator.memory import LOCAL_WINDOW, PARAM_WINDOW, POISON, SHARED_WINDOW, Heap, LaneError
from blackwell_infer.emulator.parse import Entry, Module, Operand, PtxError

Values = np.ndarray[Any, np.dtype[Any]]
Indices = np.ndarray[Any, np.dtype[np.int64]]
Lanes = Indices | slice | None
"""the active lanes: indices, a range of them, or None for all"""
Step = Callable[[Lanes], None]
REGISTER = {0: np.dtype(np.bool_), 8: np.dtype(np.uint8), 16: np.dtype(np.uint16), 32: np.dtype(np.uint32),
            64: np.dtype(np.uint64)}
NUMPY = {"pred": np.dtype(np.bool_), "b8": np.dtype(np.uint8), "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8),
         "b16": np.dtype(np.uint16), "u16": np.dtype(np.uint16), "s16": np.dtype(np.int16),
         "b32": np.dtype(np.uint32), "u32": np.dtype(np.uint32), "s32": np.dtype(np.int32),
         "b64": np.dtype(np.uint64), "u64": np.dtype(np.uint64), "s64": np.dtype(np.int64),
         "f16": np.dtype(np.float16), "f32": np.dtype(np.float32), "f64": np.dtype(np.float64)}
PATIENCE = 1024
"""backward branches after which a warp lets others run first"""
EXITED, BLOCKED = -1, -2
"""values of `place` besides the block to run next"""
WINDOWS = {"local": LOCAL_WINDOW, "shared": SHARED_WINDOW, "param": PARAM_WINDOW, "global": 0}


class Machine:
    """Registers, specials, shared and local memory of `ctas` CTAs. `watched` registers are checked for reads before
    writes. `place` is the block that each lane runs next."""

    def __init__(self, entry: Entry, module: Module, heap: Heap, constants: Mapping[str, int],
                 block: tuple[int, int, int], ctas: int, dynamic: int, watched: Iterable[str] = ()) -> None:
        self.entry, self.heap, self.block, self.ctas = entry, heap, block, ctas
        self.threads = block[0] * block[1] * block[2]
        padded = -(-self.threads // 32) * 32
        self.lanes = ctas * padded
        self.everyone = np.arange(self.lanes, dtype=np.int64)
        self.cta, self.inside = self.everyone // padded, self.everyone % padded
        lane = self.inside % 32
        self.special: dict[str, Values] = {name: np.broadcast_to(np.asarray(v), (self.lanes,)).astype(np.uint32)
                                           for name, v in {
            "%tid.x": self.inside % block[0], "%tid.y": self.inside // block[0] % block[1],
            "%tid.z": self.inside // block[0] // block[1], "%ntid.x": block[0], "%ntid.y": block[1],
            "%ntid.z": block[2], "%laneid": lane, "%warpid": self.inside // 32, "%nwarpid": padded // 32,
            "%lanemask_eq": 1 << lane, "%lanemask_lt": (1 << lane) - 1, "%lanemask_le": (2 << lane) - 1,
            "%lanemask_gt": 0xFFFFFFFF & ~((2 << lane) - 1), "%lanemask_ge": 0xFFFFFFFF & ~((1 << lane) - 1),
            "%ctaid.x": 0, "%ctaid.y": 0, "%ctaid.z": 0, "%nctaid.x": 0, "%nctaid.y": 0, "%nctaid.z": 0,
            "%clock": 0, "%clock64": 0, "%globaltimer": 0, "%smid": self.cta, "%nsmid": ctas,
            "%cluster_ctarank": 0, "%cluster_nctarank": 1,
        }.items()}
        self.registers: dict[str, Values] = {}
        self.watched = {name: np.zeros(self.lanes, bool) for name in watched}
        self.parameter: dict[str, int] = {}
        self.params = np.zeros(0, np.uint8)
        at = 0
        for name, size in entry.params:
            at = -(-at // size) * size if size in (1, 2, 4, 8) else -(-at // 64) * 64
            self.parameter[name] = at
            at += size
        self.addresses = {**constants, **self.parameter}
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
        self.stride = -(-max(self.shared_size, 1) // 1024) * 1024
        local = -(-max(self.local_size, 1) // 16) * 16
        self.shared = np.empty(ctas * self.stride, np.uint8)
        self.shared_known = np.empty(ctas * self.stride, np.uint8)
        self.local, self.local_known = np.empty(self.lanes * local, np.uint8), np.empty(self.lanes * local, np.uint8)
        self.shared_base, self.local_base = self.cta * self.stride, self.everyone * local
        self.place = np.zeros(self.lanes, np.int64)
        self.first, self.grid = 0, (1, 1, 1)
        self.progress = 0
        self.spins = np.zeros(self.lanes, np.int64)
        self.vain = 0
        """waits in vain since the last store, arrival or exit"""
        self.asynchronous = Asynchronous(self)

    def bind(self, grid: tuple[int, int, int], first: int, count: int, params: bytes) -> None:
        """Become CTAs first .. first + count - 1 of a launch; memory of the CTAs and registers are forgotten."""
        self.grid, self.first = grid, first
        cta = self.cta + first
        for i, (name, value) in enumerate(zip("xyz", (cta % grid[0], cta // grid[0] % grid[1],
                                                      cta // grid[0] // grid[1]), strict=True)):
            self.special[f"%ctaid.{name}"][:] = value
            self.special[f"%nctaid.{name}"][:] = grid[i]
        self.params = np.frombuffer(params, np.uint8)
        for array in (self.shared, self.local):
            array[:] = POISON
        for array in (self.shared_known, self.local_known, *self.watched.values()):
            array[:] = 0
        self.asynchronous.reset()
        self.spins[:] = 0
        self.place[:] = np.where((self.inside < self.threads) & (self.cta < count), 0, EXITED)

    def where(self, lane: int) -> str:
        """Thread and CTA of a lane, for messages."""
        inside, cta = int(self.inside[lane]), int(self.cta[lane]) + self.first
        (bx, by, _), (gx, gy, _) = self.block, self.grid
        return (f"thread ({inside % bx}, {inside // bx % by}, {inside // bx // by}) of "
                f"CTA ({cta % gx}, {cta // gx % gy}, {cta // gx // gy})")

    def waits_in_vain(self, n: Indices) -> None:
        """The lanes looked at an mbarrier that has not completed: let other warps run first."""
        self.spins[n] += PATIENCE
        self.vain += 1

    # -- operands ---------------------------------------------------------------------------------------------------

    def register(self, name: str) -> Values | None:
        """The array of a register, made when it is first used; None if it is not declared."""
        array = self.registers.get(name)
        if array is None and name in self.entry.registers:
            array = self.registers[name] = np.zeros(self.lanes, REGISTER[self.entry.registers[name]])
        return array

    def width(self, o: Operand) -> int:
        """Bytes of a register operand, 0 for anything else."""
        return REGISTER[self.entry.registers[o.name]].itemsize if o.kind == "reg" and o.name in self.entry.registers \
            else 0

    def reader(self, o: Operand, kind: str, unwritten: bool = False) -> Callable[[Lanes], Any]:
        """A function from active lanes to the operand's values as `kind`; it may return a view of the register. With
        `unwritten` the register need not have been written: the caller passes on `known`."""
        dtype = NUMPY[kind]
        if o.kind == "reg" and (array := self.register(o.name)) is not None:
            read = self.register_reader(o, array, dtype)
            return self.watch(o.name, read) if o.name in self.watched and not unwritten else read
        if o.kind == "reg" and o.name in self.special:
            source = self.special[o.name]
            if dtype.itemsize == 4:
                values = source.view(dtype)
                return lambda lanes: values if lanes is None else values[lanes]
            return lambda lanes: (source if lanes is None else source[lanes]).astype(dtype)
        if o.kind == "imm":
            constant = self.constant(o, dtype)
            return lambda lanes: constant
        if o.kind == "sym" and o.name in self.addresses:
            address = np.array(self.addresses[o.name], np.uint64).astype(dtype)[()]
            return lambda lanes: address
        raise PtxError(f"operand {o.name or o.kind!r} is not known")

    @staticmethod
    def register_reader(o: Operand, array: Values, dtype: np.dtype[Any]) -> Callable[[Lanes], Any]:
        if array.dtype.itemsize != dtype.itemsize:
            if array.dtype.itemsize < dtype.itemsize or dtype.kind == "f" or dtype.kind == "b":
                raise PtxError(f"register {o.name} is "
                               + ("no predicate" if dtype.kind == "b" else f"not {dtype.itemsize * 8} bits wide"))
            return lambda lanes: (array if lanes is None else array[lanes]).astype(dtype)
        array = array.view(dtype)
        if o.negated:
            return lambda lanes: ~(array if lanes is None else array[lanes])
        return lambda lanes: array if lanes is None else array[lanes]

    def known(self, o: Operand) -> Callable[[Lanes], Any]:
        """A function from active lanes to whether the operand was written."""
        written = self.watched.get(o.name)
        if written is None:
            return lambda lanes: True
        return lambda lanes: written[... if lanes is None else lanes]

    def moving(self, dst: Operand, known: Callable[[Lanes], Any], put: Callable[[Lanes, Any], None],
               values: Callable[[Lanes], Any]) -> Step:
        """A step that moves values, and with them whether they were written."""
        written = self.watched.get(dst.name)
        if written is None:
            return lambda lanes: put(lanes, values(lanes))

        def step(lanes: Lanes) -> None:
            there = np.array(known(lanes))
            put(lanes, values(lanes))
            written[... if lanes is None else lanes] = there
        return step

    def watch(self, name: str, read: Callable[[Lanes], Any]) -> Callable[[Lanes], Any]:
        written = self.watched[name]

        def run(lanes: Lanes) -> Any:
            here = written if lanes is None else written[lanes]
            if not here.all():
                raise LaneError(f"register {name.partition('@')[0]} is read before anything is written to it",
                                int(here.argmin()))
            return read(lanes)
        return run

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
        array = self.register(o.name) if o.kind == "reg" else None
        if array is None:
            raise PtxError(f"{o.name or o.kind!r} is not a register")
        own, written = array.dtype, self.watched.get(o.name)

        def put(lanes: Lanes, values: Any) -> None:
            v = values if isinstance(values, np.ndarray) else np.asarray(values)
            if v.dtype is not own:
                v = v.view(own) if v.dtype.itemsize == own.itemsize else self.widen(v, own)
            if lanes is None:
                array[...] = v
            else:
                array[lanes] = v
            if written is not None:
                written[... if lanes is None else lanes] = True
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
        read = self.reader(base, "u32" if self.width(base) == 4 else "u64")

        def at(lanes: Lanes) -> Values:
            v = read(lanes)
            if not isinstance(v, np.ndarray) or not v.ndim:
                return np.full(self.count(lanes), np.uint64(v) + offset)
            return (v if v.dtype == np.uint64 else v.astype(np.uint64)) + offset
        return at

    def count(self, lanes: Lanes) -> int:
        return self.lanes if lanes is None else lanes.stop - lanes.start if isinstance(lanes, slice) else len(lanes)

    def indices(self, lanes: Lanes) -> Indices:
        return self.everyone if lanes is None else self.everyone[lanes] if isinstance(lanes, slice) else lanes

    def warps(self, lanes: Lanes) -> Indices:
        """Active lanes as [warps, 32]; PtxError if a warp is not whole."""
        n = self.indices(lanes)
        if len(n) % 32 == 0:
            rows = n.reshape(-1, 32)
            if not isinstance(lanes, np.ndarray) and rows[0, 0] % 32 == 0:
                return rows
            if (rows[:, 0] % 32 == 0).all() and (rows[:, 31] - rows[:, 0] == 31).all():
                return rows
        raise PtxError("a warp-wide instruction runs with only part of a warp active")

    # -- memory -----------------------------------------------------------------------------------------------------

    def locate(self, space: str, lanes: Lanes, addresses: Values, nbytes: int) -> tuple[Values, Values, Values]:
        """(bytes, which of them are written, offsets) of accesses of `nbytes` each, checked for bounds and alignment.

        `lanes` own the addresses, one each."""
        off = addresses & np.uint64(nbytes - 1)
        if off.any():
            bad = int(off.argmax())
            raise LaneError(f"misaligned access of {nbytes} bytes at {int(addresses[bad]):#x}", bad)
        if space == "":
            space, addresses = self.resolve(addresses)
        if space == "global":
            return self.heap.bytes, self.heap.known, self.heap.check(addresses, nbytes)
        offsets = addresses.view(np.int64)
        size = {"shared": self.shared_size, "local": self.local_size, "param": len(self.params)}[space]
        if int(offsets.min()) < 0 or int(offsets.max()) + nbytes > size:
            bad = int(((offsets < 0) | (offsets + nbytes > size)).argmax())
            raise LaneError(f"access of {nbytes} bytes at offset {int(offsets[bad])} of {size} bytes of {space} memory",
                            bad)
        if space == "shared":
            return self.shared, self.shared_known, offsets + (
                self.shared_base if lanes is None else self.shared_base[lanes])
        if space == "param":
            return self.params, np.full(len(self.params), 255, np.uint8), offsets
        return self.local, self.local_known, offsets + (self.local_base if lanes is None else self.local_base[lanes])

    @staticmethod
    def resolve(addresses: Values) -> tuple[str, Values]:
        """(space, addresses in it) of generic addresses."""
        low, high = int(addresses.min()), int(addresses.max())
        for space, window in WINDOWS.items():
            if high >= window:
                if low < window:
                    raise LaneError("a generic access mixes state spaces", int(addresses.argmin()))
                return space, addresses - np.uint64(window)
        raise PtxError("no such address")

    def load(self, space: str, lanes: Lanes, addresses: Values, dtype: np.dtype[Any], count: int) -> Values:
        """Values [n, count] of dtype; LaneError if some were never written."""
        nbytes = dtype.itemsize * count
        data, known, offsets = self.locate(space, lanes, addresses, nbytes)
        rows = offsets // nbytes
        whole = len(data) // nbytes * nbytes
        word = np.dtype(f"u{min(8, nbytes)}")
        seen = known[:whole].view(word).reshape(-1, nbytes // word.itemsize)[rows]
        if not (seen == np.iinfo(word).max).all():
            bad = int((seen != np.iinfo(word).max).any(axis=1).argmax())
            raise LaneError(f"reads {nbytes} bytes of {space or 'generic'} memory at {int(addresses[bad]):#x} that "
                            "nothing wrote, or whose asynchronous copy is under way", bad)
        values: Values = data[:whole].view(dtype).reshape(-1, count)[rows]
        return values

    def store(self, space: str, lanes: Lanes, addresses: Values, values: Values) -> None:
        """Write values [n, count]; among lanes with one address the highest wins."""
        count = values.shape[1]
        nbytes = values.dtype.itemsize * count
        data, known, offsets = self.locate(space, lanes, addresses, nbytes)
        rows = offsets // nbytes
        whole = len(data) // nbytes * nbytes
        data[:whole].view(values.dtype).reshape(-1, count)[rows] = values
        word = np.dtype(f"u{min(8, nbytes)}")
        known[:whole].view(word).reshape(-1, nbytes // word.itemsize)[rows] = np.iinfo(word).max
        self.progress += 1
