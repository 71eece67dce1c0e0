// Gated activation: y = silu(gate) * up in float32, rounded once.
//
// gate_up [T, 2 I] of ACT, gate in the first I columns; y [T, I]. Grid: (T, ceil(I / 1024)), 128 threads, 8 elements
// each.
// Shared memory: none. Archs: all. Bytes: 3 T I elements. Compiled, not yet measured.
#include "vector.cuh"

extern "C" __global__ void __launch_bounds__(128) swiglu(const act_t* gate_up, act_t* y, int I) {
    const int i = (blockIdx.y * 128 + threadIdx.x) * 8;
    const bool wide = I % 8 == 0 && aligned(gate_up, 16) && aligned(y, 16);
    pdl_launch();
    pdl_wait();
    if (i >= I) return;
    const act_t* row = gate_up + (i64)blockIdx.x * 2 * I + i;
    float g[8], u[8];
    load_group(g, row, I - i, wide);
    load_group(u, row + I, I - i, wide);
#pragma unroll
    for (int e = 0; e < 8; ++e) g[e] = __fdividef(g[e], 1.0f + expf(-g[e])) * u[e];
    store_group(y + (i64)blockIdx.x * I + i, g, I - i, wide);
}
