// Gated activation: y = silu(gate) * up in float32, rounded once.
//
// gate_up [T, 2 I] of ACT, gate in the first I columns; y [T, I]; blocks: y once more as operands of the
// small matmuls (stage.cuh), or null. Grid: (T, ceil(I / 1024)), 128 threads, 8 elements
// each.
// Shared memory: none. Archs: all. Bytes: 3 T I elements. H200, 1 x 12288: 1.9 us.
#include "stage.cuh"

extern "C" __global__ void __launch_bounds__(128) swiglu(const act_t* gate_up, act_t* y, u8* blocks, int T, int I) {
    const int i = (blockIdx.y * 128 + threadIdx.x) * 8, row = blockIdx.x;
    const bool wide = I % 8 == 0 && aligned(gate_up, 16) && aligned(y, 16);
    staged_place place(blocks, T, row, i >> 8, (I + 255) >> 8);
    place.pin();
    pdl_launch();
    pdl_wait();
    if (i - (int)(threadIdx.x & 31) * 8 >= I) return;  // whole warps
    const act_t* from = gate_up + (i64)row * 2 * I + i;
    float g[8], u[8];
    load_group(g, from, I - i, wide);
    load_group(u, from + I, I - i, wide);
#pragma unroll
    for (int e = 0; e < 8; ++e) g[e] = __fdividef(g[e], 1.0f + expf(-g[e])) * u[e];
    store_group(y + (i64)row * I + i, g, I - i, wide);
    if (blocks == nullptr) return;
#pragma unroll
    for (int e = 0; e < 8; ++e) g[e] = to_float(from_float<act_t>(g[e]));
    stage_at(place, g, threadIdx.x & 31);
}
