// RMS norm of rows, and the residual sum followed by it: y = x / sqrt(mean(x^2) + eps) * weight, in float32, rounded
// once.
//
// x, residual, s, y [T, H] of ACT; weight [H] float32; s = round(x + residual) is stored and normalised as stored.
// Grid: H > 256: one row per CTA of min(1024, H / 8) threads; else one warp per row, blockDim.y rows per CTA.
// A thread holds elements 8 i .. 8 i + 7 for i = threadIdx.x, + blockDim.x, ...: the first group stays in registers,
// the others (H > 8192) are read again from L1. Sums: within the thread in order, across the warp by shuffles, across
// warps in warp order; the mapping depends on H alone. Shared memory: 128 bytes. Archs: all.
// Bytes: rms_norm 2 T H, add_rms_norm 4 T H elements. The weight is loaded before the wait for the previous kernel.
// Compiled, not yet measured.
#include "vector.cuh"

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, o);
    return v;
}

__device__ __forceinline__ float row_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    if (blockDim.x == 32) return v;
    int lane = threadIdx.x & 31;
    if (lane == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x >> 5) ? parts[lane] : 0.0f);
}

template <bool ADD>
__device__ __forceinline__ void norm_row(const act_t* x, const act_t* residual, const float* weight, act_t* s, act_t* y,
                                         int T, int H, float eps) {
    const int first = threadIdx.x * 8, step = blockDim.x * 8, row = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 bytes = 8 * sizeof(act_t) < 16 ? 8 * sizeof(act_t) : 16;
    bool wide = H % 8 == 0 && aligned(x, bytes) && aligned(y, bytes);
    if (ADD) wide = wide && aligned(residual, bytes) && aligned(s, bytes);
    const bool wide_weight = H % 8 == 0 && aligned(weight, 16);
    pdl_launch();
    float w[8];
    load_group(w, weight + first, H - first, wide_weight);
    pdl_wait();
    if (row >= T) return;  // whole warps: only where a row is one warp
    const i64 base = (i64)row * H;

    float keep[8], v[8], r[8], sum = 0.0f;
    for (int i = first; i < H; i += step) {
        load_group(v, x + base + i, H - i, wide);
        if (ADD) {
            load_group(r, residual + base + i, H - i, wide);
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = to_float(from_float<act_t>(v[e] + r[e]));
            store_group(s + base + i, v, H - i, wide);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) {
            sum = fmaf(v[e], v[e], sum);
            if (i == first) keep[e] = v[e];
        }
    }
    const float inverse = rsqrtf(row_sum(sum) / (float)H + eps);
    for (int i = first; i < H; i += step) {
        if (i == first) {
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = keep[e];
        } else {
            load_group(v, (ADD ? s : x) + base + i, H - i, wide);
            load_group(w, weight + i, H - i, wide_weight);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = v[e] * inverse * w[e];
        store_group(y + base + i, v, H - i, wide);
    }
}

extern "C" __global__ void __launch_bounds__(1024)
rms_norm(const act_t* x, const float* weight, act_t* y, int T, int H, float eps) {
    norm_row<false>(x, nullptr, weight, nullptr, y, T, H, eps);
}

extern "C" __global__ void __launch_bounds__(1024)
add_rms_norm(const act_t* x, const act_t* residual, const float* weight, act_t* s, act_t* y, int T, int H, float eps) {
    norm_row<true>(x, residual, weight, s, y, T, H, eps);
}
