// Choice of rows, bit for bit: y[n] = x[index[n]]; an index outside [0, T) gives a row of zeros and reads nothing.
//
// x [T, H], y [N, H] of ACT; index [N] int32. Grid: (N, ceil(H / (128 E))), 128 threads, E = 16 bytes of elements each.
// Shared memory: none. Archs: all. Bytes: 2 N H elements. Compiled, not yet measured.
#include "vector.cuh"

#define E (16 / (int)sizeof(act_t))

extern "C" __global__ void __launch_bounds__(128) take_rows(const act_t* x, const int* index, act_t* y, int T, int H) {
    const int i = (blockIdx.y * 128 + threadIdx.x) * E;
    pdl_launch();
    pdl_wait();
    if (i >= H) return;
    const int row = index[blockIdx.x];
    const bool real = row >= 0 && row < T;
    const act_t* from = x + (i64)(real ? row : 0) * H + i;
    act_t* to = y + (i64)blockIdx.x * H + i;
    if (H % E == 0 && aligned(x, 16) && aligned(y, 16)) {
        *(uint4*)to = real ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
        return;
    }
#pragma unroll
    for (int e = 0; e < E; ++e)
        if (i + e < H) to[e] = real ? from[e] : from_float<act_t>(0.0f);
}
