// Storage types and their conversions, without CUDA headers: the same text compiles under every NVRTC from 13.0 on.
// A source that takes the macro ACT (f32, f16 or bf16) gets act_t; every kernel computes in float and rounds once.
#pragma once
typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

template <typename A, typename B> struct same_type { static const bool value = false; };
template <typename A> struct same_type<A, A> { static const bool value = true; };

typedef float f32_t;
struct f16_t { u16 bits; };
struct bf16_t { u16 bits; };

__device__ __forceinline__ float to_float(f32_t x) { return x; }
__device__ __forceinline__ float to_float(f16_t x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}
__device__ __forceinline__ float to_float(bf16_t x) { return __uint_as_float((u32)x.bits << 16); }

template <typename T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ f32_t from_float<f32_t>(float x) { return x; }
template <> __device__ __forceinline__ f16_t from_float<f16_t>(float x) {
    f16_t y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> __device__ __forceinline__ bf16_t from_float<bf16_t>(float x) {
    bf16_t y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Two values in one 32-bit register, lo in the low half: what mma.sync fragments hold.
template <typename T> __device__ __forceinline__ u32 pack2(float lo, float hi);
template <> __device__ __forceinline__ u32 pack2<f16_t>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}
template <> __device__ __forceinline__ u32 pack2<bf16_t>(float lo, float hi) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(hi), "f"(lo));
    return y;
}

// Element i of an array whose type is known at run time: 0 float32, 1 f16, 2 bf16.
__device__ __forceinline__ float load_as(const void* p, i64 i, int type) {
    if (type == 0) return static_cast<const float*>(p)[i];
    const u16 bits = static_cast<const u16*>(p)[i];
    return type == 1 ? to_float(f16_t{bits}) : to_float(bf16_t{bits});
}
__device__ __forceinline__ void store_as(void* p, i64 i, float v, int type) {
    if (type == 0) {
        static_cast<float*>(p)[i] = v;
    } else {
        static_cast<u16*>(p)[i] = type == 1 ? from_float<f16_t>(v).bits : from_float<bf16_t>(v).bits;
    }
}

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#ifdef ACT
typedef PASTE(ACT, _t) act_t;
#endif

// Programmatic dependent launch: wait until the previous kernel's writes are visible; allow the next one to start.
// Both are no-ops in a launch without the PDL attribute.
__device__ __forceinline__ void pdl_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void pdl_launch() { asm volatile("griddepcontrol.launch_dependents;"); }
