// Philox4x32-10 (Salmon et al., SC 2011): counter-based random bits, a pure function of key and counter.
#pragma once
#include "scalar.cuh"

// First 64 bits for key `seed` and counter (position, 0, 0, 0).
__device__ __forceinline__ u64 philox(u64 seed, u32 position) {
    u32 c0 = position, c1 = 0, c2 = 0, c3 = 0, k0 = (u32)seed, k1 = (u32)(seed >> 32);
#pragma unroll
    for (int i = 0; i < 10; i++) {
        u64 a = (u64)0xD2511F53u * c0, b = (u64)0xCD9E8D57u * c2;
        u32 d0 = (u32)(b >> 32) ^ c1 ^ k0, d2 = (u32)(a >> 32) ^ c3 ^ k1;
        c1 = (u32)b;
        c3 = (u32)a;
        c0 = d0;
        c2 = d2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return (u64)c0 | (u64)c1 << 32;
}
