// Weights in fragment order: the layouts of quant/fragments.py, read by the lanes of a warp.
//
// A matrix is a grid of tiles of 16 rows and F::COLS columns, F::BYTES each, the tiles of 16 rows one after the other.
// With g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8 of a tile; product i (16 columns) of a tile takes from
// it columns 16 i + 4 t .. + 3: the first two as registers a[0] and a[1] of the A fragment of mma.m16n8k16 (mma.cuh), the
// others as a[2] and a[3]. Activations agree (stage.cuh).
// Codes become float16 exactly. Each format F has
//   F(zero)                   masks in registers (see `opaque`)
//   codes_t, take(tile, lane, c)  a lane's codes of columns 64 c .. + 63
//   expand(codes_t, h, a)     the fragments a[2][4] of its half h
//   SPAN                      columns under one scale: 32, or 16
//   OFFSET                    whether row g's integers are 1024 too large (16 times so in row g + 8), which sums of x,
//                             as start values of the products, take away again
//   MINIMA                    whether something is subtracted that the sums of x multiply
//   SHRINK                    power of two with which SHRINK times scales, and that times codes (without OFFSET), stay in
//                             float16's range and lose at most what 11 bits lose; 0 if none does (linear/medium.cu)
//   scales_t<SLOTS>           the scales that a lane applies (small.cu), of rows g and g + 8:
//     (tile, lane), get(form, i, e, s)   s[2] of its i-th sub-block of 32 columns and span e of it
//   minima(tile, lane, a)     the minima as A fragment of mma.m16n8k8: rows g, g + 8, sub-blocks t and t + 4
//   factors(tile, lane, d, e) what multiplies sums of products, and sums of minima times -1024 sums of x; [2]: rows
//   quad(tile, r, k, w)       four weights of row r from column k, a multiple of 4, exactly the reference's dequantisation
// `in_tiles` adds what dense matrices have of their own:
//   fetch(target, w, row_tile, tile, tiles, N, barrier)  copies a tile, COPIED bytes, to BYTES of shared memory
//   multiply(c, a, b0, b1)    c += a b, every product exact
//   stored_quad(w, n, k, tiles, four)  quad of a matrix
#pragma once
#include "blocks.cuh"
#include "bulk.cuh"
#include "mma.cuh"
#include "vector.cuh"

__device__ __forceinline__ void mma_1688_tf32(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ u32 add_halves(u32 a, u32 b) {
    u32 r;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

__device__ __forceinline__ words4_t load_words4(const u8* p) { return *reinterpret_cast<const words4_t*>(p); }
__device__ __forceinline__ words2_t load_words2(const u8* p) { return *reinterpret_cast<const words2_t*>(p); }

// A constant that the compiler cannot see through: else it makes it anew for every use, in an instruction of its own.
__device__ __forceinline__ u32 opaque(u32 value, int zero) {
    u32 r;
    asm volatile("add.u32 %0, %1, %2;" : "=r"(r) : "r"(value), "r"(zero));
    return r;
}

// (a & mask) | b in one instruction.
__device__ __forceinline__ u32 and_or(u32 a, u32 mask, u32 b) {
    u32 r;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(r) : "r"(a), "r"(mask), "r"(b));
    return r;
}

// The word that holds four bits each of columns k .. k + 3 of row r; those of column k + i are at 8 (i / 2) + 16 (i % 2).
__device__ __forceinline__ u32 four_nibbles(const u8* codes, int r, int k) {
    const u8* word = codes + (k >> 6) * 512 + ((r & 7) * 4 + ((k >> 2) & 3)) * 16 + ((k >> 4) & 3) * 4;
    return load<u32>(word) >> (4 * (r >> 3));
}

// The integer in some bits of a word as float: with the exponent of 2^23 its bits are the last of the mantissa.
__device__ __forceinline__ float small_integer(u32 bits) { return __uint_as_float(bits | 0x4B000000u) - 8388608.0f; }

// Half i of a word of two float16, as float.
__device__ __forceinline__ float half_of(u32 word, int i) {
    float both[2];
    unpack2<f16_t>(both, word);
    return both[i];
}

// Bytes, 8 x 512 of them: 16 of a lane for every 32 columns. Their words are row g of a product, row g + 8 of it, and the
// same of the next product.
struct byte_codes {
    static const int COLS = 256;
    struct codes_t {
        words4_t r[2];
    };
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return {{load_words4(tile + c * 1024 + lane * 16), load_words4(tile + c * 1024 + 512 + lane * 16)}};
    }
    // Those of row r from column k.
    static __device__ __forceinline__ u32 four_bytes(const u8* tile, int r, int k) {
        return load<u32>(tile + (k >> 5) * 512 + ((r & 7) * 4 + ((k >> 2) & 3)) * 16 + ((k >> 4) & 1) * 8 + (r >> 3) * 4);
    }
};

// Formats from which nothing is subtracted.
struct no_minima {
    static const bool OFFSET = false, MINIMA = false;
    static __device__ __forceinline__ void minima(const u8*, int, u32 (&)[4]) {}
};

// The first of the sub-blocks of 32 columns whose scales a lane applies, and how many they are (small.cu).
template <int SLOTS> __device__ __forceinline__ int first_sub_block(int t) {
    return SLOTS == 1 ? 0 : SLOTS == 2 ? 4 * (t >> 1) : 2 * t;
}
template <int SLOTS> struct sub_blocks { static const int COUNT = SLOTS == 1 ? 8 : SLOTS == 2 ? 4 : 2; };

// What a format and dense matrices (fragments_dense.cuh) differ in.
template <typename F> struct in_tiles : F {
    static const int COPIED = F::BYTES;
    __device__ __forceinline__ in_tiles(int zero) : F(zero) {}
    static __device__ __forceinline__ void fetch(u32 target, const u8* w, int row_tile, int tile, int tiles, int,
                                                 u32 barrier) {
        copy_bulk(target, w + ((i64)row_tile * tiles + tile) * F::BYTES, F::BYTES, barrier);
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
        mma_16816<f16_t>(c, a, b0, b1);
    }
    static __device__ __forceinline__ void stored_quad(const u8* w, int n, int k, int tiles, float (&four)[4]) {
        F::quad(w + ((i64)(n / 16) * tiles + k / F::COLS) * F::BYTES, n % 16, k % F::COLS, four);
    }
};

#include "fragments_gguf.cuh"
#include "fragments_codes.cuh"
#include "fragments_dense.cuh"

template <typename F> struct with_source { typedef in_tiles<F> type; };
template <typename T> struct with_source<dense_fragments<T>> { typedef dense_fragments<T> type; };

// What the infinities and NaNs of row m of x [M, K] (x_type 1 f16, 2 bf16) add to y[m, n].
template <typename F>
__device__ __forceinline__ float share_of_odd(const void* x, int x_type, int m, int K, const u8* w, int tiles, int n) {
    float v = 0.0f;
#pragma unroll 1
    for (int k = 0; k < K; k++) {
        const u16 bits = static_cast<const u16*>(x)[(i64)m * K + k];
        const float value = x_type == 1 ? to_float(f16_t{bits}) : to_float(bf16_t{bits});
        if ((__float_as_uint(value) & 0x7F800000u) != 0x7F800000u) continue;
        float four[4];
        F::stored_quad(w, n, k & ~3, tiles, four);
        v += value * (k & 2 ? k & 1 ? four[3] : four[2] : k & 1 ? four[1] : four[0]);
    }
    return v;
}

#ifdef FORMAT
typedef with_source<PASTE(FORMAT, _fragments)>::type fragments_t;
#endif
