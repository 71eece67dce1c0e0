"""Declaration of kernels. A `Kernel` is a source, an entry, typed parameters and its legal defines; a `Variant` is a
kernel with one choice of defines, which is the unit of compilation and launch. Nothing here knows a device."""
from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from blackwell_infer.errors import KernelError
from blackwell_infer.kernels.cost import Call, Cost
from blackwell_infer.types import Array

Value = str | int
ARCHS = ("sm_90a", "sm_100f", "sm_120f")
"""Targets that continuous integration compiles; sm_120f covers compute capability 12.0 and 12.1."""


class Param(msgspec.Struct, frozen=True):
    """One parameter: a pointer ("in", "out", "inout") to elements of `dtype` ("" = any), or a scalar of that kind."""

    name: str
    kind: Literal["in", "out", "inout", "i32", "u32", "i64", "u64", "f32"]
    dtype: str = ""


class Variant(msgspec.Struct, frozen=True):
    """A kernel specialised by defines, sorted by name."""

    kernel: Kernel
    defines: tuple[tuple[str, Value], ...]

    @property
    def key(self) -> str:
        """Stable readable name: entry(NAME=value,...)."""
        return f"{self.kernel.entry}({','.join(f'{k}={v}' for k, v in self.defines)})"


class Kernel(msgspec.Struct, frozen=True):
    """`source` is a path below `ptx/`; `entry` an extern "C" name; `defines` the legal values of each macro.

    `legal` drops combinations that make no sense. `archs` restricts the targets that can run the kernel. `cost` says
    what a launch moves and computes; every kernel of the package has one.
    """

    source: str
    entry: str
    params: tuple[Param, ...]
    defines: Mapping[str, tuple[Value, ...]] = {}
    legal: Callable[[Mapping[str, Value]], bool] | None = None
    archs: tuple[str, ...] = ARCHS
    cost: Callable[[Call], Cost] | None = None

    def estimate(self, args: Sequence[Array | int | float | None], lengths: tuple[int, ...] | None = None) -> Cost:
        """The cost of a launch with these arguments (`lengths`: see `Call`). KernelError: none is declared."""
        if self.cost is None:
            raise KernelError(f"{self.entry}: declares no cost; give its Kernel one")
        return self.cost(Call({p.name: arg for p, arg in zip(self.params, args, strict=True)}, lengths))

    def variant(self, **defines: Value) -> Variant:
        """Choose every define; KernelError names an unknown or missing one and what is legal."""
        if set(defines) != set(self.defines):
            raise KernelError(f"{self.entry}: defines {sorted(defines)} given, {sorted(self.defines)} needed")
        for name, value in defines.items():
            if value not in self.defines[name]:
                raise KernelError(f"{self.entry}: {name}={value!r} is not one of {self.defines[name]}")
        if self.legal is not None and not self.legal(defines):
            raise KernelError(f"{self.entry}: {defines} is not a legal combination")
        return Variant(self, tuple(sorted(defines.items())))

    def variants(self) -> Iterator[Variant]:
        """Every legal variant."""
        for values in itertools.product(*self.defines.values()):
            chosen = dict(zip(self.defines, values, strict=True))
            if self.legal is None or self.legal(chosen):
                yield self.variant(**chosen)
