"""Every kernel declaration of the package: what compile tests, the register table and warm-up build; and what calls of
vendor libraries cost."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from blackwell_infer.kernels.cost import Cost
from blackwell_infer.kernels.kernel import Kernel
from blackwell_infer.ops.cuda.activation import KERNELS as ACTIVATION
from blackwell_infer.ops.cuda.attention import KERNELS as ATTENTION
from blackwell_infer.ops.cuda.experts import KERNELS as EXPERTS
from blackwell_infer.ops.cuda.fp8 import KERNELS as FP8
from blackwell_infer.ops.cuda.gemm_lt import LIBRARY, library_cost
from blackwell_infer.ops.cuda.linear import KERNELS as LINEAR
from blackwell_infer.ops.cuda.norm import KERNELS as NORM
from blackwell_infer.ops.cuda.nvfp4 import KERNELS as NVFP4
from blackwell_infer.ops.cuda.quantize import KERNELS as QUANTIZE
from blackwell_infer.ops.cuda.recurrent import KERNELS as RECURRENT
from blackwell_infer.ops.cuda.rope import KERNELS as ROPE
from blackwell_infer.ops.cuda.route import KERNELS as ROUTE
from blackwell_infer.ops.cuda.sample import KERNELS as SAMPLE
from blackwell_infer.ops.cuda.stream import KERNELS as STREAM
from blackwell_infer.types import Array

ALL_KERNELS: tuple[Kernel, ...] = (*LINEAR, *NORM, *ROPE, *ATTENTION, *ACTIVATION, *SAMPLE, *QUANTIZE, *NVFP4, *FP8,
                                    *ROUTE, *EXPERTS, *RECURRENT, *STREAM)

LIBRARY_COSTS: Mapping[str, Callable[[Sequence[Array], Sequence[Array]], Cost]] = MappingProxyType({
    LIBRARY: library_cost})
"""By name of a library, from what its call reads and writes"""
