// RMS norm of rows, and the residual sum followed by it: y = x / sqrt(mean(x^2) + eps) * weight, in float32, rounded
// once.
//
// x, residual, s, y [T, H] of ACT; weight [H] float32; s = round(x + residual) is stored and normalised as stored;
// blocks: y once more as operands of the small matmuls (stage.cuh), or null.
// Grid: H > 256: one row per CTA of min(1024, H / 8) threads (of the pair 512); else one warp per row, blockDim.y rows per CTA.
// A thread holds elements 8 i .. 8 i + 7 for i = threadIdx.x, + blockDim.x, ...: the first group stays in registers,
// the others (H > 8192) are read again from L1. Sums: within the thread in order, across the warp by shuffles, across
// warps in warp order; the mapping depends on H alone. Shared memory: 128 bytes. Archs: all.
// Bytes: rms_norm 2 T H, add_rms_norm 4 T H elements. The weight is loaded before the wait for the previous kernel.
// H200, 2026-11-25: add_rms_norm 2.4 us for 1 row of 4096, 3.6 us for 64.
#include "norm.cuh"

extern "C" __global__ void __launch_bounds__(1024)
rms_norm(const act_t* x, const float* weight, act_t* y, u8* blocks, int T, int H, float eps) {
    norm_row<false>(x, nullptr, weight, nullptr, T, H, eps, staged_sink{y, blocks, T, H});
}

// Two norms side by side, y [T, 2 H]: blockIdx.y says which. H is a multiple of 256 if there are blocks.
struct side_sink {
    static const bool COLLECTIVE = true;
    act_t* y;
    u8* blocks;
    int T, H, side;
    __device__ __forceinline__ bool wide() const { return dense_sink{y, H}.wide(); }
    __device__ __forceinline__ void store(int row, int i, float (&v)[8], bool wide) const {
        store_group(y + ((i64)row * 2 + side) * H + i, v, H - i, wide);
        if (blocks == nullptr) return;
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = to_float(from_float<act_t>(v[e]));
        stage_in_group(blocks, T, row, (side * H + i) >> 8, 2 * H >> 8, v, threadIdx.x & 31);
    }
    __device__ __forceinline__ void pad(int) const {}
};

extern "C" __global__ void __launch_bounds__(512, 1)
rms_norm_pair(const act_t* a, const act_t* b, const float* weight_a, const float* weight_b, act_t* y, u8* blocks, int T,
              int H, float eps) {
    if (blockIdx.y == 0) norm_row<false>(a, nullptr, weight_a, nullptr, T, H, eps, side_sink{y, blocks, T, H, 0});
    else norm_row<false>(b, nullptr, weight_b, nullptr, T, H, eps, side_sink{y, blocks, T, H, 1});
}

extern "C" __global__ void __launch_bounds__(1024)
add_rms_norm(const act_t* x, const act_t* residual, const float* weight, act_t* s, act_t* y, u8* blocks, int T,
             int H, float eps) {
    norm_row<true>(x, residual, weight, s, T, H, eps, staged_sink{y, blocks, T, H});
}
