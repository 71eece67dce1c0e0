// y[m, column + n] = factor_x factors_w[n] sums[m, n] + bias[n] + residual[m, column + n]: what is left of a product of
// NVFP4 or MXFP8 after cuBLASLt has made its float32 sums. Every operation is rounded by itself, as in gemm.cu.
//
// sums [M, N], factor_x [1] or null, factors_w [N] or null, bias [N] or null: float32; residual (or null) and y ACT with
// `stride` elements between rows. Grid: (ceil(N / 256), min(M, 65535)), 256 threads, one element each and row after row.
// Shared memory: none. Archs: all. Bytes: sums and y once. Compiled, not yet measured.
#include "scalar.cuh"

extern "C" __global__ void __launch_bounds__(256)
    scale_sums(const float* sums, const float* factor_x, const float* factors_w, const float* bias,
               const act_t* residual, act_t* y, int M, int N, int stride, int column) {
    const int n = blockIdx.x * 256 + threadIdx.x;
    pdl_launch();
    pdl_wait();
    if (n >= N) return;
    float factor = factors_w != nullptr ? factors_w[n] : 1.0f;
    if (factor_x != nullptr) factor = __fmul_rn(*factor_x, factor);
    const float add = bias != nullptr ? bias[n] : 0.0f;
    for (int m = blockIdx.y; m < M; m += gridDim.y) {
        const i64 at = (i64)m * stride + column + n;
        float v = __fadd_rn(__fmul_rn(sums[(i64)m * N + n], factor), add);
        if (residual != nullptr) v = __fadd_rn(v, to_float(residual[at]));
        y[at] = from_float<act_t>(v);
    }
}
