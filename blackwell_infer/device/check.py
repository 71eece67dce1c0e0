"""What every queue checks of a launch before it happens, and the argument buffer that the driver reads."""
from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import ml_dtypes  # noqa: F401  (registers bfloat16 and the float8 types by name with NumPy)
import numpy as np

from blackwell_infer.device.queue import Dim, Scalar
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import DeviceError, OutOfMemoryError
from blackwell_infer.kernels.kernel import Kernel, Variant
from blackwell_infer.types import Array

SHARED_LIMIT = {"sm_90a": 227 << 10, "sm_100f": 227 << 10, "sm_120f": 99 << 10}
"""Bytes of shared memory that one block may have (CUDA C++ Programming Guide, technical specifications)."""
SCALARS = {"i32": "i4x", "u32": "I4x", "i64": "q", "u64": "Q", "f32": "f4x"}
POINTERS = ("in", "out", "inout")


class Signature:
    """The parameters of a kernel in the form that checks and packs arguments quickly: one 8-byte slot each."""

    def __init__(self, kernel: Kernel) -> None:
        self.entry = kernel.entry
        self.params = kernel.params
        self._expected = tuple(
            (p.kind in POINTERS, np.dtype(p.dtype) if p.kind in POINTERS and p.dtype else None) for p in kernel.params)
        self._pack = struct.Struct("=" + "".join(SCALARS.get(p.kind, "Q") for p in kernel.params))
        self.nbytes = self._pack.size

    def pack(self, buffer: bytearray, args: Sequence[Array | Scalar | None]) -> None:
        """Check `args` and write them to `buffer` (8 bytes per parameter, exact widths). DeviceError names the fault.

        Integers must fit their width and must not be floats; f32 takes any real number that fits.
        """
        expected = self._expected
        if len(args) != len(expected):
            raise DeviceError(f"{self.entry}: {len(args)} arguments given, {len(expected)} declared: "
                              f"{', '.join(p.name for p in self.params)}")
        values: list[Any] = []
        for i, (arg, (pointer, dtype)) in enumerate(zip(args, expected, strict=True)):
            if type(arg) is Tensor:
                if not pointer or (dtype is not None and arg.dtype != dtype):
                    raise self._wrong(i, arg)
                values.append(arg.ptr)
            elif pointer:
                if arg is not None:
                    raise self._wrong(i, arg)
                values.append(0)
            else:
                values.append(arg)
        try:
            self._pack.pack_into(buffer, 0, *values)
        except (struct.error, OverflowError, TypeError):
            raise self._unfit(args) from None

    def _unfit(self, args: Sequence[Array | Scalar | None]) -> DeviceError:
        for i, (arg, p) in enumerate(zip(args, self.params, strict=True)):
            if p.kind in SCALARS:
                try:
                    struct.pack("=" + SCALARS[p.kind], arg)
                except (struct.error, OverflowError, TypeError):
                    return self._wrong(i, arg)
        return DeviceError(f"{self.entry}: an address is not a 64-bit integer")

    def _wrong(self, i: int, arg: object) -> DeviceError:
        p = self.params[i]
        array = f"a device array of {p.dtype or 'any type'}, or None"
        needed = array if p.kind in POINTERS else f"a number of {p.kind}"
        return DeviceError(f"{self.entry}: argument {i} ({p.name}) must be {needed}, not {describe(arg)}")


@cache
def name_of(dtype: np.dtype[Any]) -> str:
    """`dtype.name`, which NumPy puts together anew each time."""
    return dtype.name


def describe(arg: object) -> str:
    """A short name of an argument: "float32[4,64]", "null", "int 7"."""
    if isinstance(arg, Tensor):
        return f"{name_of(arg.dtype)}[{','.join(map(str, arg.shape))}]"
    if arg is None:
        return "null"
    if isinstance(arg, np.ndarray):
        return f"host array {arg.dtype.name}{list(arg.shape)}"
    return f"{type(arg).__name__} {arg!r}"


def check_shape(v: Variant, arch: str, grid: Dim, block: Dim, smem: int) -> None:
    """DeviceError if the launch shape is one that no device of `arch` takes; `smem` is dynamic shared memory, bytes."""
    for dim, largest in ((grid, (2**31 - 1, 65535, 65535)), (block, (1024, 1024, 64))):
        if len(dim) != 3 or not all(1 <= n <= most for n, most in zip(dim, largest, strict=True)):
            raise DeviceError(f"{v.key}: grid {grid} of blocks {block}: {dim} must be three within 1..{largest}")
    if block[0] * block[1] * block[2] > 1024:
        raise DeviceError(f"{v.key}: a block {block} has more than 1024 threads")
    most = SHARED_LIMIT.get(arch, 99 << 10)
    if not 0 <= smem <= most:
        raise DeviceError(f"{v.key}: {smem} bytes of shared memory asked, {most} exist per block on {arch}")


def check_copy(dst: Array, sources: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """The destination of an upload, if types and sizes agree. DeviceError otherwise."""
    if not isinstance(dst, Tensor):
        raise DeviceError(f"an upload needs a device array, not {describe(dst)}")
    if any(dst.dtype != src.dtype for src in sources) or dst.size != sum(src.size for src in sources):
        raise DeviceError(f"cannot upload {described(sources)} into {describe(dst)}")
    return dst


def described(sources: Sequence[np.ndarray[Any, Any]]) -> str:
    """A short name of what is to be uploaded."""
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return describe(sources[0]) + more if sources else "nothing"


def out_of_memory(what: str, needed: int, free: int, total: int) -> OutOfMemoryError:
    """The error that every backend raises when an allocation does not fit."""
    mib = 1 << 20
    return OutOfMemoryError(
        f"out of memory: {what} needs {needed} bytes ({needed / mib:.1f} MiB), {free} bytes ({free / mib:.1f} MiB) "
        f"of {total / mib:.1f} MiB are free; lower max_context, max_batch or max_step_tokens, or take a smaller model")
