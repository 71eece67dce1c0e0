// Dense matrices as they are stored, [N, K] with K a multiple of 256, taken like those in fragment order (fragments.cuh).
// A tile is 16 pieces of rows, 544 bytes apart in shared memory: the 64 bits of 16 lanes lie in different banks.
#pragma once

template <typename T> struct dense_fragments : no_scales, no_factors<1>, no_minima {
    static const int COLS = 256, STRIDE = 544, BYTES = 16 * STRIDE, COPIED = 16 * 512;

    __device__ __forceinline__ dense_fragments(int) {}
    struct codes_t {
        words2_t r[4][2];
    };
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        codes_t w;
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                w.r[i][r] = load_words2(tile + ((lane >> 2) + 8 * r) * STRIDE + 128 * c + 32 * i + 8 * (lane & 3));
        return w;
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 2; r++) a[i][r] = w.r[2 * h + i][r].lo, a[i][2 + r] = w.r[2 * h + i][r].hi;
    }
    static __device__ __forceinline__ void fetch(u32 target, const u8* w, int row_tile, int tile, int tiles, int N,
                                                 u32 barrier) {
        const u8* from = w + ((i64)16 * row_tile * tiles + tile) * 512;
        const int last = min(N - 1 - 16 * row_tile, 15);  // rows past it are that one again
#pragma unroll 4
        for (int r = 0; r < 16; r++) {
            copy_bulk(target + STRIDE * r, from, 512, barrier);
            if (r < last) from += (i64)512 * tiles;
        }
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
    static __device__ __forceinline__ void stored_quad(const u8* w, int n, int k, int tiles, float (&four)[4]) {
        load_wide(four, reinterpret_cast<const T*>(w) + (i64)n * tiles * 256 + k);
    }
};
typedef dense_fragments<f16_t> f16_fragments;
typedef dense_fragments<bf16_t> bf16_fragments;

template <>
__device__ __forceinline__ void f16_fragments::multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    mma_16816<f16_t>(c, a, b0, b1);
}
// TF32 holds bfloat16 and float16 exactly: the even columns, then the odd ones.
template <>
__device__ __forceinline__ void bf16_fragments::multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    u32 even[4], odd[4];
#pragma unroll
    for (int i = 0; i < 4; i++) even[i] = a[i] << 16, odd[i] = a[i] & 0xFFFF0000u;
    mma_1688_tf32(c, even, __float_as_uint(half_of(b0, 0)), __float_as_uint(half_of(b1, 0)));
    mma_1688_tf32(c, odd, __float_as_uint(half_of(b0, 1)), __float_as_uint(half_of(b1, 1)));
}
