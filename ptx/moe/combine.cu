// y[t] = sum over slots s, in order, of weights[t, s] z[place of t top + s]; rounded once.
//
// z [places, H] float32, weights [T, top] float32, y [T, H] ACT; places [T top] (sort.cu), or null:
// each pair is at its own. Grid: (T, ceil(H / 512)), 128 threads with four
// neighbours each. Shared memory: none. Archs: all. Bytes: 4 T top H, and y. H200, 2026-11-25: 5.3 us
// for 64 tokens of 8 pairs, 2048 wide.
#include "vector.cuh"

struct __align__(8) place_t { int place, empty; };

extern "C" __global__ void __launch_bounds__(128)
    moe_combine(const float* z, const place_t* places, const float* weights, act_t* y, int H, int top) {
    const int h = (blockIdx.y * 128 + threadIdx.x) * 4;
    const bool wide = H % 4 == 0 && aligned(z, 16) && aligned(y, 4 * sizeof(act_t));
    pdl_launch();
    pdl_wait();
    if (h >= H) return;
    const i64 first = (i64)blockIdx.x * top;
    float sum[4] = {};
#pragma unroll 8
    for (int s = 0; s < top; s++) {
        float v[4];
        load_group(v, z + (places == nullptr ? first + s : (i64)places[first + s].place) * H + h, H - h, wide);
        const float w = weights[first + s];
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = fmaf(w, v[i], sum[i]);
    }
    store_group(y + (i64)blockIdx.x * H + h, sum, H - h, wide);
}
