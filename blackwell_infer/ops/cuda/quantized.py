"""Products of quantised activations and weights: the formats choose the kernel."""
from __future__ import annotations

from typing import Protocol

from blackwell_infer.device.queue import Queue
from blackwell_infer.device.tensor import Tensor
from blackwell_infer.errors import KernelError
from blackwell_infer.ops.cuda import fp8, nvfp4
from blackwell_infer.ops.cuda.quantize import ACTS, quantize
from blackwell_infer.quant.format import QUANTISES, Linear, Quantized, Weight, input_scale
from blackwell_infer.quant.tiled import fits
from blackwell_infer.types import Array


class Multiply(Protocol):
    """One row block into its columns of `out` (see `nvfp4.multiply`)."""

    def __call__(self, q: Queue, x: Quantized, w: Weight, bias: Array | None, residual: Array | None, out: Tensor,
                 column: int) -> None: ...


PRODUCTS: dict[tuple[str, str], Multiply] = {
    ("nvfp4", "nvfp4_tiled"): nvfp4.multiply, ("mxfp8", "mxfp8_tiled"): fp8.multiply, ("fp8", "fp8_w8a8"): fp8.multiply,
    ("fp8_block", "fp8_block_w8a8"): fp8.multiply,
}
"""The launcher by format of activations and weights"""


def linear_quantized(q: Queue, x: Quantized, w: Linear, dtype: str, bias: Array | None = None,
                     residual: Array | None = None) -> Array:
    """All row blocks of w side by side. KernelError: no kernel for the types, or K differs or is refused."""
    (m, k), total = x.shape, sum(block.shape[0] for block in w)
    for block in w:
        found = PRODUCTS.get((x.format, block.format))
        if found is None or dtype not in ACTS:
            pairs = ", ".join(f"{a} by {b}" for a, b in PRODUCTS)
            raise KernelError(f"linear_quantized: no kernel for {x.format} activations, {block.format} weights and "
                              f"{dtype} results on {q.arch}; there are {pairs} into {', '.join(ACTS)}")
        if block.shape[1] != k or not fits(x.format, k):
            raise KernelError(f"linear_quantized: {x.format} activations with rows of {k} elements, {block.format} "
                              f"weights with rows of {block.shape[1]}: they must agree, and fill the kernel's steps")
    out = q.empty((m, total), dtype)
    column = 0
    for block in w:
        n = block.shape[0]
        if m and n:
            part = None if bias is None else bias[column:column + n]
            PRODUCTS[x.format, block.format](q, x, block, part, residual, out, column)
        column += n
    return out


def quantise_and_multiply(q: Queue, x: Array, w: Weight, bias: Array | None, out: Tensor, column: int) -> None:
    """One row block of a format of QUANTISES into its columns of `out`."""
    form = QUANTISES[w.format]
    PRODUCTS[form, w.format](q, quantize(q, x, form, input_scale(w)), w, bias, None, out, column)
