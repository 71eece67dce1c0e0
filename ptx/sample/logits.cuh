// Logits as the sampler and the scorer read them: clean values, an order on them, exact exponentials, CTA reductions.
#pragma once
#include "scalar.cuh"

#define LARGEST __uint_as_float(0x7F7FFFFFu)
#define NOTHING __uint_as_float(0xFF800000u)  // -inf

// NaN -> -inf, +inf -> largest finite, -0 -> +0.
__device__ __forceinline__ float usable(float z) {
    if (z != z) return NOTHING;
    return __fadd_rn(z > LARGEST ? LARGEST : z, 0.0f);
}

// Unsigned integers that order like the floats.
__device__ __forceinline__ u32 order_key(float z) {
    u32 b = __float_as_uint(z);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

__device__ __forceinline__ float key_value(u32 k) { return __uint_as_float(k & 0x80000000u ? k ^ 0x80000000u : ~k); }

// exp for x <= 0, operation by operation that of ops/ref/sample.py.
__device__ __forceinline__ float exp_f32(float x) {
    if (x < -80.0f) return 0.0f;
    float n = rintf(__fmul_rn(x, 1.4426950408889634f));
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    float p = (float)(1.0 / 5040);
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 720));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 120));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 24));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 6));
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    return __fmul_rn(p, __uint_as_float((u32)((int)n + 127) << 23));
}

__device__ __forceinline__ u64 mass_of(float z, float largest) {
    return __float2ull_rz(__fmul_rn(exp_f32(__fsub_rn(z, largest)), 1099511627776.0f));  // 2^40
}

__device__ __forceinline__ u64 warp_max(u64 v) {
    for (int d = 16; d; d >>= 1) {
        u64 o = __shfl_xor_sync(0xFFFFFFFFu, v, d);
        v = o > v ? o : v;
    }
    return v;
}

__device__ __forceinline__ u64 warp_sum(u64 v) {
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

// Largest u64 of the CTA, in every thread.
__device__ u64 block_max(u64 v, u64 *warps, int n) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < n ? warps[threadIdx.x % 32] : 0);
}

__device__ u64 block_sum(u64 v, u64 *warps, int n) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < n ? warps[threadIdx.x % 32] : 0);
}

__device__ float block_sum(float v, u64 *warps, int n) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = __float_as_uint(v);
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < n ? __uint_as_float((u32)warps[threadIdx.x % 32]) : 0.0f);
}

// A candidate orders by value, then by lowest id.
__device__ __forceinline__ u64 candidate(float z, u32 id) { return (u64)order_key(z) << 32 | (u32)~id; }
__device__ __forceinline__ u32 candidate_id(u64 c) { return ~(u32)c; }
__device__ __forceinline__ float candidate_value(u64 c) { return key_value((u32)(c >> 32)); }

// Elements i .. i+3 of a row of V; those past the end are -inf. Rows are 16-byte aligned iff V is a multiple of 4.
__device__ __forceinline__ void load4(const float *row, int i, int V, float *v) {
    if (V % 4 == 0) {
        float4 f = *(const float4 *)(row + i);
        v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
    } else {
#pragma unroll
        for (int j = 0; j < 4; j++) v[j] = i + j < V ? row[i + j] : NOTHING;
    }
}
