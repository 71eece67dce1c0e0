// The RMS norm of a row, alone and after the residual sum; `sink` says where the row goes (dense_sink: memory as ACT).
// norm/rms_norm.cu describes the mapping of elements to threads.
#pragma once
#include "stage.cuh"

__device__ __forceinline__ float row_sum(float v) {
    __shared__ float parts[32];
    v = warp_sum(v);
    if (blockDim.x == 32) return v;
    int lane = threadIdx.x & 31;
    if (lane == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    return warp_sum(lane < (int)(blockDim.x >> 5) ? parts[lane] : 0.0f);
}

// Rows of ACT in memory.
struct dense_sink {
    static const bool COLLECTIVE = false;  // whether all lanes of a warp must call `store` together
    act_t* y;
    int H;
    __device__ __forceinline__ bool wide() const { return aligned(y, 8 * sizeof(act_t) < 16 ? 8 * sizeof(act_t) : 16); }
    __device__ __forceinline__ void store(int row, int i, float (&v)[8], bool wide) const {
        store_group(y + (i64)row * H + i, v, H - i, wide);
    }
    __device__ __forceinline__ void pad(int) const {}
};

// The same, and, unless `blocks` is null, as operands of the small matmuls (stage.cuh).
struct staged_sink {
    static const bool COLLECTIVE = true;
    act_t* y;
    u8* blocks;
    int T, H;
    staged_place first;  // of the thread's first elements
    __device__ __forceinline__ staged_sink(act_t* y, u8* blocks, int T, int H)
        : y(y), blocks(blocks), T(T), H(H),
          first(blocks, T, blockIdx.x * blockDim.y + threadIdx.y, threadIdx.x * 8 >> 8, (H + 255) >> 8) {
        first.pin();
    }
    __device__ __forceinline__ bool wide() const { return dense_sink{y, H}.wide(); }
    __device__ __forceinline__ void store(int row, int i, float (&v)[8], bool wide) const {
        dense_sink{y, H}.store(row, i, v, wide);
        if (blocks == nullptr) return;
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = i + e < H ? to_float(from_float<act_t>(v[e])) : 0.0f;
        stage_at(i == (int)threadIdx.x * 8 ? first : staged_place(blocks, T, row, i >> 8, (H + 255) >> 8), v,
                 threadIdx.x & 31);
    }
    __device__ __forceinline__ void pad(int) const {}
};

template <bool ADD, typename SINK>
__device__ __forceinline__ void norm_row(const act_t* x, const act_t* residual, const float* weight, act_t* s,
                                         int T, int H, float eps, const SINK& sink) {
    const int first = threadIdx.x * 8, step = blockDim.x * 8, row = blockIdx.x * blockDim.y + threadIdx.y;
    const u32 bytes = 8 * sizeof(act_t) < 16 ? 8 * sizeof(act_t) : 16;
    bool wide = H % 8 == 0 && aligned(x, bytes) && sink.wide();
    if (ADD) wide = wide && aligned(residual, bytes) && aligned(s, bytes);
    const bool wide_weight = H % 8 == 0 && aligned(weight, 16);
    pdl_launch();
    float w[8];
    load_group(w, weight + first, H - first, wide_weight);
    pdl_wait();
    if (row >= T) {  // whole warps: a row is one warp, or the CTA
        sink.pad(row);
        return;
    }
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
    for (int i = first; i - (SINK::COLLECTIVE ? (int)(threadIdx.x & 31) * 8 : 0) < H; i += step) {
        if (SINK::COLLECTIVE && i >= H) {
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = w[e] = 0.0f;
        } else if (i == first) {
#pragma unroll
            for (int e = 0; e < 8; ++e) v[e] = keep[e];
        } else {
            load_group(v, (ADD ? s : x) + base + i, H - i, wide);
            load_group(w, weight + i, H - i, wide_weight);
        }
#pragma unroll
        for (int e = 0; e < 8; ++e) v[e] = v[e] * inverse * w[e];
        sink.store(row, i, v, wide);
    }
}
