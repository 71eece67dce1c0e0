// Eight-bit floats: E4M3 (OCP, no infinities, 0x7F is NaN) in elements and unsigned scales, E8M0 in MX scales; largest
// magnitudes, and the mma of E4M3 operands. Conversions to and from E4M3 are native on sm_89 and up.
//
// Fragments of mma m16n8k32 with 8-bit elements: as mma.cuh's, with four neighbours k 4t .. 4t + 3 in a register, so
// that plain ldmatrix on the bytes loads them; registers 2 and 3 of A and 1 of B hold k + 16.
#pragma once
#include "scalar.cuh"

#define E4M3_LARGEST 448.0f
#define SMALLEST_NORMAL 1.1754943508222875e-38f

// Two floats as E4M3, lo in the low byte: nearest even, saturating; NaN gives 0x7F.
__device__ __forceinline__ u32 e4m3x2(float lo, float hi) {
    u16 r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
}
__device__ __forceinline__ u32 e4m3x4(const float* v) { return e4m3x2(v[0], v[1]) | (e4m3x2(v[2], v[3]) << 16); }

// Two E4M3 values (low 16 bits) as a register of two f16: exact.
__device__ __forceinline__ u32 e4m3x2_to_f16x2(u32 codes) {
    u32 r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((u16)codes));
    return r;
}
__device__ __forceinline__ void f16x2_to_floats(u32 pair, float& lo, float& hi) {
    f16_t x, y;
    x.bits = (u16)pair;
    y.bits = (u16)(pair >> 16);
    lo = to_float(x);
    hi = to_float(y);
}
__device__ __forceinline__ float e4m3_to_float(u32 code) {
    float lo, hi;
    f16x2_to_floats(e4m3x2_to_f16x2(code), lo, hi);
    return lo;
}

// E8M0: 2^(code - 127); 255 is NaN.
__device__ __forceinline__ float ue8m0_to_float(u32 code) {
    return __uint_as_float(code == 255 ? 0x7FC00000u : code == 0 ? 0x00400000u : code << 23);
}
// The smallest E8M0 power of two that is not below x >= 0; 0 gives 2^-127.
__device__ __forceinline__ u32 ue8m0_above(float x) { return (__float_as_uint(x) + 0x7FFFFFu) >> 23; }

// The largest magnitude of N values as bits: NaN above infinity above every number, whatever the signs.
template <int N> __device__ __forceinline__ u32 largest_bits(const float (&v)[N]) {
    u32 m = 0;
#pragma unroll
    for (int i = 0; i < N; i++) m = max(m, __float_as_uint(v[i]) & 0x7FFFFFFFu);
    return m;
}
__device__ __forceinline__ bool is_bad(u32 magnitude) { return magnitude >= 0x7F800000u; }
// 1 / scale, and 0 for a scale below the normal numbers (all codes are then 0).
__device__ __forceinline__ float inverse_scale(float scale) { return scale >= SMALLEST_NORMAL ? 1.0f / scale : 0.0f; }

// c += a b in float32, E4M3 operands.
__device__ __forceinline__ void mma_e4m3(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
