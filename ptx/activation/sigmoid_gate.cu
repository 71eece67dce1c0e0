// A gate of attention's result: y = x * sigmoid(gate) in float32, rounded once.
//
// x, y [T, N] of ACT; gates [T, W] of ACT, of which the last N columns count; blocks: y once more as operands of the
// small matmuls (stage.cuh), or null. Grid: (T, ceil(N / 1024)), 128 threads, 8 elements each.
// Shared memory: none. Archs: all. Bytes: 3 T N elements. H200, 2026-11-25, 1 x 4096: 2.0 us.
#include "stage.cuh"

extern "C" __global__ void __launch_bounds__(128)
sigmoid_gate(const act_t* x, const act_t* gates, act_t* y, u8* blocks, int T, int N, int W) {
    const int i = (blockIdx.y * 128 + threadIdx.x) * 8, row = blockIdx.x;
    const bool wide = N % 8 == 0 && W % 8 == 0 && aligned(x, 16) && aligned(gates, 16) && aligned(y, 16);
    pdl_launch();
    pdl_wait();
    if (i - (int)(threadIdx.x & 31) * 8 >= N) return;  // whole warps
    float v[8], g[8];
    load_group(v, x + (i64)row * N + i, N - i, wide);
    load_group(g, gates + (i64)row * W + (W - N) + i, N - i, wide);
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = __fdividef(v[e], 1.0f + expf(-g[e]));
    store_group(y + (i64)row * N + i, v, N - i, wide);
    if (blocks == nullptr) return;
#pragma unroll
    for (int e = 0; e < 8; ++e) v[e] = to_float(from_float<act_t>(v[e]));
    stage_in_group(blocks, T, row, i >> 8, (N + 255) >> 8, v, threadIdx.x & 31);
}
