"""Every kernel declaration of the package: what compile tests, the register table and warm-up build."""
from __future__ import annotations

from blackwell_infer.kernels.kernel import Kernel
from blackwell_infer.ops.cuda import activation, attention, linear, norm, rope, sample

ALL_KERNELS: tuple[Kernel, ...] = (
    *linear.KERNELS, *norm.KERNELS, *rope.KERNELS, *attention.KERNELS, *activation.KERNELS, *sample.KERNELS)
