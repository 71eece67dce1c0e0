// Groups of 4 or 8 neighbouring elements as floats: 8- or 16-byte accesses where the address allows, single ones
// elsewhere.
// The values, and the thread that holds them, are the same either way, so alignment never shows in a result.
#pragma once
#include "scalar.cuh"

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, o);
    return v;
}

__device__ __forceinline__ bool aligned(const void* p, u32 bytes) { return ((u64)p & (bytes - 1)) == 0; }

template <typename T> __device__ __forceinline__ void unpack2(float* y, u32 w) {
    T lo, hi;
    lo.bits = (u16)w;
    hi.bits = (u16)(w >> 16);
    y[0] = to_float(lo);
    y[1] = to_float(hi);
}

__device__ __forceinline__ void load_wide(float (&y)[4], const f32_t* p) {
    float4 a = *(const float4*)p;
    y[0] = a.x, y[1] = a.y, y[2] = a.z, y[3] = a.w;
}
__device__ __forceinline__ void load_wide(float (&y)[8], const f32_t* p) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    y[0] = a.x, y[1] = a.y, y[2] = a.z, y[3] = a.w;
    y[4] = b.x, y[5] = b.y, y[6] = b.z, y[7] = b.w;
}
template <typename T> __device__ __forceinline__ void load_wide(float (&y)[4], const T* p) {
    uint2 a = *(const uint2*)p;
    unpack2<T>(y, a.x), unpack2<T>(y + 2, a.y);
}
template <typename T> __device__ __forceinline__ void load_wide(float (&y)[8], const T* p) {
    uint4 a = *(const uint4*)p;
    unpack2<T>(y, a.x), unpack2<T>(y + 2, a.y), unpack2<T>(y + 4, a.z), unpack2<T>(y + 6, a.w);
}

__device__ __forceinline__ void store_wide(f32_t* p, const float (&y)[4]) {
    *(float4*)p = make_float4(y[0], y[1], y[2], y[3]);
}
__device__ __forceinline__ void store_wide(f32_t* p, const float (&y)[8]) {
    ((float4*)p)[0] = make_float4(y[0], y[1], y[2], y[3]);
    ((float4*)p)[1] = make_float4(y[4], y[5], y[6], y[7]);
}
template <typename T> __device__ __forceinline__ void store_wide(T* p, const float (&y)[4]) {
    *(uint2*)p = make_uint2(pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]));
}
template <typename T> __device__ __forceinline__ void store_wide(T* p, const float (&y)[8]) {
    *(uint4*)p = make_uint4(pack2<T>(y[0], y[1]), pack2<T>(y[2], y[3]), pack2<T>(y[4], y[5]), pack2<T>(y[6], y[7]));
}

// Elements p[0..N), of which `count` exist; the rest are zero. `wide` promises that p is aligned to the whole group.
template <typename T, int N>
__device__ __forceinline__ void load_group(float (&y)[N], const T* p, int count, bool wide) {
    if (wide && count >= N) {
        load_wide(y, p);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = i < count ? to_float(p[i]) : 0.0f;
}
template <typename T, int N>
__device__ __forceinline__ void store_group(T* p, const float (&y)[N], int count, bool wide) {
    if (wide && count >= N) {
        store_wide(p, y);
        return;
    }
#pragma unroll
    for (int i = 0; i < N; ++i)
        if (i < count) p[i] = from_float<T>(y[i]);
}
