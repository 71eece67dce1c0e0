"""Shapes of `route` and `experts` for medium batches: more cases of `ops.cases`."""
from __future__ import annotations

from blackwell_infer.ops.inputs import Bad

F32, F16, BF16 = "float32", "float16", "bfloat16"
BAD: Bad = ((1, float("nan")), (3, float("inf")), (5, float("-inf")))
Q4, Q6, Q8 = "q4_k_fragments", "q6_k_fragments", "q8_0_fragments"
NVFP4 = "nvfp4_fragments"

ROUTES: tuple[tuple[str, str, int, int, int, int, bool, float, Bad], ...] = (
    # dtype, format of the router, T, H, E, top, norm, step (logits are multiples of it: ties), bad rows
    (BF16, "f32", 17, 512, 128, 8, True, 0, BAD), (F16, "bf16", 64, 264, 33, 3, False, 0.25, BAD),
    (F32, "f32", 130, 64, 200, 4, True, 0.5, ()), (BF16, "f16", 256, 64, 7, 2, True, 0, ()))

EXPERTS: tuple[tuple[str, str, str, int, int, int, int, int, int, Bad], ...] = (
    # dtype, format of gate and up (joined with a `+`: two matrices), of down, T, H, I, E, top, idle experts, bad rows
    (BF16, Q4, Q6, 17, 512, 768, 13, 4, 1, ()), (F16, Q6, Q4, 30, 256, 512, 40, 3, 5, BAD),
    (BF16, Q8, Q8, 64, 256, 256, 33, 2, 0, ()), (F16, f"{Q4}+{Q6}", Q8, 20, 256, 256, 12, 3, 0, BAD[:1]),
    (BF16, Q4, Q4, 255, 256, 256, 24, 2, 0, ()), (BF16, f"{Q8}+{Q8}", Q4, 18, 256, 256, 4, 4, 0, ()),
    (BF16, NVFP4, NVFP4, 33, 512, 256, 9, 3, 1, BAD), (F16, NVFP4, Q4, 40, 256, 256, 4, 2, 0, ()),
    (BF16, NVFP4, NVFP4, 2, 512, 256, 5, 4, 0, ()), (BF16, NVFP4, NVFP4, 100, 256, 256, 3, 2, 0, BAD[:1]))
