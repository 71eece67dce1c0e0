// What the attention kernels share: the length of a split, 2^x, and the merge of partial softmax sums.
//
// Keys are cut at multiples of SPLIT. A split's result for one query is (m, l, o): the largest score (base 2), the sum
// of 2^(score - m), and the sum of 2^(score - m) v. Splits are merged in ascending order, one by one, into groups of
// LEVEL (cut at multiples of it), and these in the same way into one, with exactly this arithmetic wherever it happens,
// so the bits of a token do not depend on how splits are spread over CTAs. An empty split or group (m = -inf, l = 0,
// o = 0) changes nothing, and merging the first into nothing gives it back.
#pragma once
#include "scalar.cuh"

#define SPLIT 256
#define LEVEL 16
#define PAGE 32
#define NOTHING __uint_as_float(0xFF800000u)  // -inf

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float inverse_fast(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// What scores are measured from: -inf - -inf would be NaN.
__device__ __forceinline__ float anchor(float m) { return m == NOTHING ? 0.0f : m; }

// Soft cap of a score: cap tanh(x), or x itself without one (cap 0). With one, cap includes log2(e) and x is the score
// over the cap. tanh x = 1 - 2 / (1 + e^2x) is exact to about 2^-23 of the cap.
__device__ __forceinline__ float capped(float x, float cap) {
    if (cap > 0.0f) return cap * fmaf(-2.0f, inverse_fast(1.0f + exp2_fast(x * 2.8853900818f)), 1.0f);
    return x;
}

struct Merge {
    float m, old_weight, new_weight;
    __device__ __forceinline__ Merge(float running, float added) {
        m = fmaxf(running, added);
        old_weight = exp2_fast(running - anchor(m));
        new_weight = exp2_fast(added - anchor(m));
    }
    __device__ __forceinline__ float operator()(float running, float added) const {
        return fmaf(added, new_weight, __fmul_rn(running, old_weight));
    }
};

// o / l, rounded twice: one step of Newton's method makes the inverse of a sum of weights the rounded one, in a tenth of
// the instructions that all other numbers would need.
__device__ __forceinline__ float normalize(float o, float l) {
    const float guess = inverse_fast(l);
    return __fmul_rn(o, fmaf(guess, fmaf(-l, guess, 1.0f), guess));
}

__device__ __forceinline__ int first_key(int position, int window) {
    return window > 0 && position >= window ? position - window + 1 : 0;
}

__device__ __forceinline__ bool finite(float x) { return (__float_as_uint(x) & 0x7F800000u) != 0x7F800000u; }

// The top bit of each 16-bit half that is infinite or NaN: adding one to a full exponent carries into the sign's place.
template <typename T> __device__ __forceinline__ u32 odd_halves(u32 w);
template <> __device__ __forceinline__ u32 odd_halves<f16_t>(u32 w) {
    return ((w & 0x7C007C00u) + 0x04000400u) & 0x80008000u;
}
template <> __device__ __forceinline__ u32 odd_halves<bf16_t>(u32 w) {
    return ((w & 0x7F807F80u) + 0x00800080u) & 0x80008000u;
}

// Zero in place of every half that is not finite.
template <typename T> __device__ __forceinline__ u32 only_finite(u32 w) {
    return w & ~((odd_halves<T>(w) >> 15) * 0xFFFFu);
}
template <typename T> __device__ __forceinline__ uint4 only_finite(uint4 v) {
    return make_uint4(only_finite<T>(v.x), only_finite<T>(v.y), only_finite<T>(v.z), only_finite<T>(v.w));
}

// Partial results that other CTAs of the same launch wrote: L1 may hold what was there before.
__device__ __forceinline__ float4 load_past_l1(const float4* p) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
__device__ __forceinline__ float2 load_past_l1(const float2* p) {
    float2 v;
    asm volatile("ld.global.cg.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}
