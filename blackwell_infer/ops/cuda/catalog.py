"""Every kernel declaration of the package: what compile tests, the register table and warm-up build."""
from __future__ import annotations

from blackwell_infer.kernels.kernel import Kernel
from blackwell_infer.ops.cuda.activation import KERNELS as ACTIVATION
from blackwell_infer.ops.cuda.attention import KERNELS as ATTENTION
from blackwell_infer.ops.cuda.experts import KERNELS as EXPERTS
from blackwell_infer.ops.cuda.fp8 import KERNELS as FP8
from blackwell_infer.ops.cuda.linear import KERNELS as LINEAR
from blackwell_infer.ops.cuda.norm import KERNELS as NORM
from blackwell_infer.ops.cuda.nvfp4 import KERNELS as NVFP4
from blackwell_infer.ops.cuda.quantize import KERNELS as QUANTIZE
from blackwell_infer.ops.cuda.rope import KERNELS as ROPE
from blackwell_infer.ops.cuda.route import KERNELS as ROUTE
from blackwell_infer.ops.cuda.sample import KERNELS as SAMPLE

ALL_KERNELS: tuple[Kernel, ...] = (*LINEAR, *NORM, *ROPE, *ATTENTION, *ACTIVATION, *SAMPLE, *QUANTIZE, *NVFP4, *FP8,
                                   *ROUTE, *EXPERTS)
