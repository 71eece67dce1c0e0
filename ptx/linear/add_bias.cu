// y[m, column + n] = round(sums[m, n] + bias[n]): the end of a library product that has a bias.
//
// sums [M, N] float32, bias [N] float32, y row-major with `stride` elements between rows, ACT.
// Grid: (ceil(N / 256), min(M, 65535)); a thread takes one column and every gridDim.y-th row. Shared memory: none.
// Archs: all. Bytes moved: sums and y once. Compiled, not yet measured.
#include "scalar.cuh"

extern "C" __global__ void __launch_bounds__(256)
    add_bias(const float* sums, const float* bias, act_t* y, int M, int N, int stride, int column) {
    pdl_launch();
    pdl_wait();
    const int n = blockIdx.x * 256 + threadIdx.x;
    if (n >= N) return;
    const float b = bias[n];
    for (int m = blockIdx.y; m < M; m += gridDim.y)
        y[(i64)m * stride + column + n] = from_float<act_t>(sums[(i64)m * N + n] + b);
}
