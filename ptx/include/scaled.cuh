// Weight formats of small codes under scales in arrays of their own, for blocks.cuh (which explains the members):
//   nvfp4      E2M1 codes, two a byte (low nibble first); E4M3 scale per 16; factor per row
//   nvfp4_f16  the same with float16 scales
//   mxfp4      E2M1 codes; E8M0 scale per 32
//   mxfp8      E4M3 codes; E8M0 scale per 32
//   fp8        E4M3 codes; factor per row
//   fp8_block  E4M3 codes; float32 scale per block of 128 x 128
// A value is rounded at most once: a code times an E4M3, E8M0 or float16 scale is exact in float32, and only then comes
// the factor (of a sum, or of a value). NVFP4 and FP8 values without their factor are exact in float16 and bfloat16.
#pragma once
#include "nvfp4.cuh"

template <typename T> __device__ __forceinline__ u32 from_f16x2(u32 pair);
template <> __device__ __forceinline__ u32 from_f16x2<f16_t>(u32 pair) { return pair; }
template <> __device__ __forceinline__ u32 from_f16x2<bf16_t>(u32 pair) {
    float lo, hi;
    f16x2_to_floats(pair, lo, hi);
    return pack2<bf16_t>(lo, hi);
}

struct e4m3_scale {
    static const int SIZE = 1;
    static __device__ __forceinline__ float read(const u8* p) { return e4m3_to_float(p[0]); }
};
struct f16_scale {
    static const int SIZE = 2;
    static __device__ __forceinline__ float read(const u8* p) { return load_half(p); }
};
struct e8m0_scale {
    static const int SIZE = 1;
    static __device__ __forceinline__ float read(const u8* p) { return ue8m0_to_float(p[0]); }
};
struct f32_scale {
    static const int SIZE = 4;
    static __device__ __forceinline__ float read(const u8* p) { return load<float>(p); }
};

// E2M1 codes: chunks of 256 elements in 128 bytes; 8 elements are a word at a multiple of 4 bytes.
template <typename S, int BLOCK> struct e2m1_format {
    typedef void storage_t;
    typedef no_quad row_t;
    static const bool ANY_K = false, ALIGNED = false, PAIRS = false;
    static const int ELEMS = 256, BYTES = 128, GRAIN = 4;
    static const int SCALE_BLOCK = BLOCK, SCALE_SIZE = S::SIZE, SCALE_BYTES = ELEMS / BLOCK * S::SIZE, SCALE_ROWS = 1;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ const u8* scale(chunk_t chunk, int j, int t) {
        return chunk.scales + (32 * j + 8 * t) / BLOCK * S::SIZE;
    }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u32 codes = load<u32>(chunk.codes + 16 * j + 4 * t);
        const float s = S::read(scale(chunk, j, t));
#pragma unroll
        for (int i = 0; i < 4; i++) {
            f16x2_to_floats(e2m1_pair(codes, i), w[2 * i], w[2 * i + 1]);
            w[2 * i] *= s;
            w[2 * i + 1] *= s;
        }
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};

struct nvfp4_format : e2m1_format<e4m3_scale, 16> {
    static const bool PAIRS = true, FACTOR = true;
    static const int STRIDE = 176, STAGES = 3, RESIDENT = 3;
    template <typename T> static __device__ __forceinline__ void pairs(chunk_t chunk, int j, int t, u32 (&r)[4]) {
        const u32 codes = load<u32>(chunk.codes + 16 * j + 4 * t), s = *scale(chunk, j, t);
        const u32 both = e4m3x2_to_f16x2(s * 0x101u);
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = from_f16x2<T>(mul_f16x2(e2m1_pair(codes, i), both));
    }
};
struct nvfp4_f16_format : e2m1_format<f16_scale, 16> {
    static const bool FACTOR = true;
    static const int STRIDE = 208, STAGES = 3, RESIDENT = 2;
};
struct mxfp4_format : e2m1_format<e8m0_scale, 32> {
    static const bool FACTOR = false;
    static const int STRIDE = 176, STAGES = 3, RESIDENT = 3;
};

// E4M3 codes: chunks of 256 elements and bytes.
struct e4m3_codes {
    typedef void storage_t;
    typedef no_quad row_t;
    static const bool ALIGNED = false;
    static const int ELEMS = 256, BYTES = 256, GRAIN = 1, STAGES = 2, RESIDENT = 2;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ words2_t codes(const u8* p) {
        if (((u64)p & 7) == 0) return load<words2_t>(p);
        words2_t v = {0, 0};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            v.lo |= (u32)p[i] << (8 * i);
            v.hi |= (u32)p[i + 4] << (8 * i);
        }
        return v;
    }
    static __device__ __forceinline__ void f16_pairs(chunk_t chunk, int j, int t, u32 (&r)[4]) {
        const words2_t v = codes(chunk.codes + 32 * j + 8 * t);
        r[0] = e4m3x2_to_f16x2(v.lo);
        r[1] = e4m3x2_to_f16x2(v.lo >> 16);
        r[2] = e4m3x2_to_f16x2(v.hi);
        r[3] = e4m3x2_to_f16x2(v.hi >> 16);
    }
    static __device__ __forceinline__ void unscaled(chunk_t chunk, int j, int t, float (&w)[8]) {
        u32 r[4];
        f16_pairs(chunk, j, t, r);
#pragma unroll
        for (int i = 0; i < 4; i++) f16x2_to_floats(r[i], w[2 * i], w[2 * i + 1]);
    }
};

struct fp8_format : e4m3_codes {
    static const bool ANY_K = true, PAIRS = true, FACTOR = true;
    static const int SCALE_BYTES = 0, SCALE_BLOCK = 1, SCALE_SIZE = 0, SCALE_ROWS = 1, STRIDE = 272;
    static __device__ __forceinline__ float element(chunk_t chunk, int i) { return e4m3_to_float(chunk.codes[i]); }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        unscaled(chunk, j, t, w);
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        unscaled(chunk, j, t, w);
    }
    template <typename T> static __device__ __forceinline__ void pairs(chunk_t chunk, int j, int t, u32 (&r)[4]) {
        f16_pairs(chunk, j, t, r);
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = from_f16x2<T>(r[i]);
    }
};

template <typename S, int BLOCK, int ROWS> struct scaled_e4m3 : e4m3_codes {
    static const bool PAIRS = false, FACTOR = false;
    static const int SCALE_BLOCK = BLOCK, SCALE_SIZE = S::SIZE, SCALE_BYTES = ELEMS / BLOCK * S::SIZE;
    static const int SCALE_ROWS = ROWS, STRIDE = 304;
    static __device__ __forceinline__ float element(chunk_t chunk, int i) {
        return e4m3_to_float(chunk.codes[i]) * S::read(chunk.scales + i / BLOCK * S::SIZE);
    }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        unscaled(chunk, j, t, w);
        const float s = S::read(chunk.scales + 32 * j / BLOCK * S::SIZE);
#pragma unroll
        for (int i = 0; i < 8; i++) w[i] *= s;
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};
struct mxfp8_format : scaled_e4m3<e8m0_scale, 32, 1> {
    static const bool ANY_K = false;
};
struct fp8_block_format : scaled_e4m3<f32_scale, 128, 128> {
    static const bool ANY_K = true;
};
