// The expert that all tokens share beside those that were chosen: out = x + sigmoid(h . gate) * y in float32, rounded once.
//
// x, y, h, out [T, H] of ACT; gate [H] float32. Grid: T CTAs of min(1024, H / 8 rounded up to warps) threads; a thread has
// elements 8 i .. 8 i + 7 for i = threadIdx.x, + blockDim.x, ... The product is summed within a thread in order, across the
// warp by shuffles, across warps in warp order; the mapping depends on H alone. Shared memory: 128 bytes. Archs: all.
// Bytes: 4 T H elements and the gate, which is loaded before the wait for the previous kernel. Compiled, not yet measured.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(1024)
add_gated(const act_t* x, const act_t* y, const act_t* h, const float* gate, act_t* out, int H) {
    const int first = threadIdx.x * 8, step = blockDim.x * 8;
    const i64 base = (i64)blockIdx.x * H;
    const bool wide = H % 8 == 0 && aligned(x, 16) && aligned(y, 16) && aligned(h, 16) && aligned(out, 16);
    const bool wide_gate = H % 8 == 0 && aligned(gate, 16);
    pdl_launch();
    float w[8], v[8], u[8], sum = 0.0f;
    load_group(w, gate + first, H - first, wide_gate);
    pdl_wait();
    for (int i = first; i < H; i += step) {
        if (i > first) load_group(w, gate + i, H - i, wide_gate);
        load_group(v, h + base + i, H - i, wide);
#pragma unroll
        for (int e = 0; e < 8; ++e) sum = fmaf(v[e], w[e], sum);
    }
    const float share = 1.0f / (1.0f + expf(-row_sum(sum)));
    for (int i = first; i < H; i += step) {
        load_group(v, x + base + i, H - i, wide);
        load_group(u, y + base + i, H - i, wide);
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = fmaf(share, u[e], v[e]);
        store_group(out + base + i, v, H - i, wide);
    }
}
