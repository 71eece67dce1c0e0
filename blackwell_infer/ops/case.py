"""One case of an op: how its inputs are made, its name, and how far floats may be off."""
from __future__ import annotations

from collections.abc import Callable

import msgspec

from blackwell_infer.ops.inputs import Kwargs, Random

F32, F16, BF16 = "float32", "float16", "bfloat16"


class Case(msgspec.Struct, frozen=True):
    """`make(rng)` gives the keyword arguments of `op` as NumPy arrays, Weights, Batch and PagedKV."""

    name: str
    op: str
    make: Callable[[Random], Kwargs]
    rtol: float
    atol: float


ULP = {F32: 1e-5, F16: 2.0**-10, BF16: 2.0**-7}
"""Relative tolerance of an output that is rounded once. Two float32 sums in different orders may fall on either side of
a rounding boundary of the output: one unit in the last place, 2^-10 (float16) or 2^-7 (bfloat16) of the value. Float32
outputs carry the summation error itself, about sqrt(K) * 2^-24, below 1e-5 for the sizes here."""

FLOOR = {F32: 1e-5, F16: 1e-4, BF16: 1e-4}
"""Absolute floor where terms of size 1 cancel: the summation error of float32, and subnormals of float16."""

ROUNDED = {F32: 2e-5, F16: 1.5e-3, BF16: 1.2e-2}
"""Absolute floor of matrix products and attention: tensor cores take operands of the activation dtype, so weights of
other formats and softmax weights are rounded to it first (2^-12 or 2^-9 each, relative). With K terms whose squares
sum to about 1 the error is normal with that deviation; the floor is 6 deviations. Accumulation is float32. Dense
weights of the activation dtype need no such rounding: they keep `FLOOR`."""


def text(*parts: object) -> str:
    """A case's name: sizes and formats, with `/` between them; nested tuples are written with `+` and `x`."""
    def one(part: object) -> str:
        if isinstance(part, tuple):
            return ("+" if part and isinstance(part[0], (tuple, str)) else "x").join(map(one, part))
        return str(part)
    return "/".join(one(p) for p in parts)
