// Weight formats: how eight consecutive elements of a row are read. Blocks are exactly as in the file (GGUF layouts as
// in ggml's quants), so Q8_0 (34 B), Q4_0 (18 B) and Q6_K (210 B) are only 2-byte aligned. scaled.cuh has the formats
// whose codes and scales lie in arrays of their own (NVFP4, MXFP4, MXFP8, FP8).
//
// A row is a sequence of chunks of F::ELEMS elements: F::BYTES bytes of codes and F::SCALE_BYTES of scales, one scale of
// SCALE_SIZE bytes for SCALE_BLOCK elements and SCALE_ROWS rows. Chunk element k = 32 j + 8 t + i belongs to piece
// (j, t), t = 0..3; i = 0..7 runs inside the piece. Each format F has
//   decode(chunk, j, t, w)           any thread, any piece, from global or shared memory; w in float32, exactly the
//                                    reference's dequantisation (one rounding)
//   open(chunk, t), piece(quad, ...) the same for the four lanes t of a quad that read one row together: each decodes
//                                    two of the eight sub-block scales and the others fetch them by shuffle
//   pairs<T>(chunk, j, t, r)         where PAIRS: the piece as four registers of two T, exactly
// FACTOR: every row has a float32 factor beside (`factors`), which decode and its like leave out.
// ANY_K: rows may end anywhere; else K is a multiple of 8. GRAIN: alignment of codes in bytes.
// ALIGNED: every chunk starts at a multiple of 16 bytes from the matrix. STRIDE and STAGES are ring.cuh's geometry:
// bytes between the chunks of neighbouring rows in shared memory (room for a chunk and its misaligned head, spread over
// the banks) and the number of chunks of a row that are under way at once; RESIDENT is the number of CTAs that should
// fit on a multiprocessor, as registers allow.
// The macro FORMAT (f32, f16, bf16, q8_0, q4_0, q4_k, q5_k, q6_k, or one of scaled.cuh) gives format_t.
#pragma once
#include "scalar.cuh"

template <typename T> __device__ __forceinline__ T load(const u8* p) { return *reinterpret_cast<const T*>(p); }
struct __align__(8) words2_t { u32 lo, hi; };
struct __align__(16) words4_t { u32 r[4]; };

__device__ __forceinline__ float load_half(const u8* p) {
    f16_t h;
    h.bits = load<u16>(p);
    return to_float(h);
}

// Eight bytes at a 2-byte aligned address, reading not one byte more.
__device__ __forceinline__ words2_t load_8_bytes(const u8* p) {
    const u32 odd = (u32)(u64)p & 2;
    const u32 x = load<u32>(p + odd);
    const u32 y = load<u16>(p + (odd ? 0 : 4));
    const u32 z = load<u16>(p + 6);
    words2_t r;
    r.lo = odd ? (y | (x << 16)) : x;
    r.hi = (odd ? (x >> 16) : y) | (z << 16);
    return r;
}

__device__ __forceinline__ float byte_to_float(u32 word, int i) { return (float)((word >> (8 * i)) & 0xFFu); }

// w = scale * q + offset for the eight unsigned bytes of v.
__device__ __forceinline__ void scale_bytes(words2_t v, float scale, float offset, float (&w)[8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        w[i] = fmaf(byte_to_float(v.lo, i), scale, offset);
        w[i + 4] = fmaf(byte_to_float(v.hi, i), scale, offset);
    }
}

struct no_quad {};

// A chunk: where its codes (or whole blocks) and its scales begin.
struct chunk_t {
    const u8 *codes, *scales;
};

// What formats without arrays of scales have in common.
struct plain_format {
    static const bool PAIRS = false, FACTOR = false;
    static const int GRAIN = 2, SCALE_BYTES = 0, SCALE_BLOCK = 1, SCALE_SIZE = 0, SCALE_ROWS = 1;
};

// Dense rows. Pieces at 16-byte boundaries are read with wide loads, others element by element.
template <typename T, int CHUNK> struct dense_format : plain_format {
    typedef T storage_t;
    typedef no_quad row_t;
    static const bool ANY_K = true;
    static const bool ALIGNED = false;
    static const int ELEMS = CHUNK, BYTES = CHUNK * (int)sizeof(T), STRIDE = sizeof(T) == 4 ? 272 : 320;
    static const int STAGES = 2, RESIDENT = 3;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ float element(chunk_t chunk, int i) {
        return to_float(load<T>(chunk.codes + i * (int)sizeof(T)));
    }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* p = chunk.codes + (32 * j + 8 * t) * (int)sizeof(T);
        if (((u64)p & 15) == 0) {
            words4_t v[sizeof(T) / 2];
#pragma unroll
            for (int i = 0; i < (int)sizeof(T) / 2; i++) v[i] = load<words4_t>(p + 16 * i);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if constexpr (sizeof(T) == 4) {
                    w[i] = __uint_as_float(v[i / 4].r[i % 4]);
                } else {
                    T x;
                    x.bits = (u16)(v[0].r[i / 2] >> (16 * (i % 2)));
                    w[i] = to_float(x);
                }
            }
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) w[i] = to_float(load<T>(p + i * (int)sizeof(T)));
        }
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};
typedef dense_format<f32_t, 64> f32_format;
typedef dense_format<f16_t, 128> f16_format;
typedef dense_format<bf16_t, 128> bf16_format;

// Q8_0: block of 32: @0 f16 d, @2 i8 q[32]; w = d q.
struct q8_0_format : plain_format {
    typedef void storage_t;
    typedef no_quad row_t;
    static const bool ANY_K = false;
    static const int ELEMS = 256, BYTES = 8 * 34, STRIDE = 288, STAGES = 2, RESIDENT = 2;
    static const bool ALIGNED = false;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* block = chunk.codes + 34 * j;
        const float d = load_half(block);
        const words2_t v = load_8_bytes(block + 2 + 8 * t);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            w[i] = d * (float)(i8)(v.lo >> (8 * i));
            w[i + 4] = d * (float)(i8)(v.hi >> (8 * i));
        }
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};

// Q4_0: block of 32: @0 f16 d, @2 16 bytes: byte i holds element i in its low and element i + 16 in its high nibble;
// w = d (q - 8).
struct q4_0_format : plain_format {
    typedef void storage_t;
    typedef no_quad row_t;
    static const bool ANY_K = false;
    static const int ELEMS = 256, BYTES = 8 * 18, STRIDE = 160, STAGES = 3, RESIDENT = 3;
    static const bool ALIGNED = false;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* block = chunk.codes + 18 * j;
        const float d = load_half(block);
        words2_t v = load_8_bytes(block + 2 + 8 * (t & 1));
        const int shift = 4 * (t >> 1);
        v.lo = (v.lo >> shift) & 0x0F0F0F0Fu;
        v.hi = (v.hi >> shift) & 0x0F0F0F0Fu;
        scale_bytes(v, d, -8.0f * d, w);
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};

// Scales of Q4_K and Q5_K: @0 f16 d, @2 f16 dmin, @4 twelve bytes b of six-bit scales and minima of eight sub-blocks
// of 32: j < 4: s = b[j] & 63, m = b[j+4] & 63; else s = (b[j+4] & 15) | (b[j-4] >> 6) << 4, m = (b[j+4] >> 4) |
// (b[j] >> 6) << 4. So bytes t, t + 4 and t + 8 give sub-blocks t and t + 4.
struct k_scales {
    float scale[2], minus_min[2];
};
__device__ __forceinline__ k_scales open_k_scales(const u8* block, int t) {
    const float d = load_half(block), dmin = load_half(block + 2);
    const u32 x = block[4 + t], y = block[8 + t], z = block[12 + t];
    k_scales r;
    r.scale[0] = d * (float)(x & 63);
    r.minus_min[0] = -dmin * (float)(y & 63);
    r.scale[1] = d * (float)((z & 15) | ((x >> 6) << 4));
    r.minus_min[1] = -dmin * (float)((z >> 4) | ((y >> 6) << 4));
    return r;
}

// Q4_K: block of 256: scales as above, @16 qs[128]: sub-blocks 2g and 2g + 1 are the low and high nibbles of
// qs[32 g .. 32 g + 31]; w = d s q - dmin m.
struct q4_k_format : plain_format {
    typedef void storage_t;
    typedef k_scales row_t;
    static const bool ANY_K = false;
    static const int ELEMS = 256, BYTES = 144, STRIDE = 160, STAGES = 3, RESIDENT = 3;
    static const bool ALIGNED = true;
    static __device__ __forceinline__ words2_t codes(const u8* block, int j, int t) {
        words2_t v = load<words2_t>(block + 16 + 32 * (j >> 1) + 8 * t);
        const int shift = 4 * (j & 1);
        v.lo = (v.lo >> shift) & 0x0F0F0F0Fu;
        v.hi = (v.hi >> shift) & 0x0F0F0F0Fu;
        return v;
    }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* block = chunk.codes;
        const k_scales s = open_k_scales(block, j & 3);
        scale_bytes(codes(block, j, t), j < 4 ? s.scale[0] : s.scale[1], j < 4 ? s.minus_min[0] : s.minus_min[1], w);
    }
    static __device__ __forceinline__ row_t open(chunk_t chunk, int t) { return open_k_scales(chunk.codes, t); }
    static __device__ __forceinline__ void piece(const row_t& row, chunk_t chunk, int j, int t, float (&w)[8]) {
        scale_bytes(codes(chunk.codes, j, t), __shfl_sync(0xFFFFFFFFu, j < 4 ? row.scale[0] : row.scale[1], j & 3, 4),
                    __shfl_sync(0xFFFFFFFFu, j < 4 ? row.minus_min[0] : row.minus_min[1], j & 3, 4), w);
    }
};

// Q5_K: block of 256: scales as above, @16 qh[32]: bit j of qh[l] is the fifth bit of element l of sub-block j,
// @48 qs[128] as in Q4_K.
struct q5_k_format : plain_format {
    typedef void storage_t;
    typedef k_scales row_t;
    static const bool ANY_K = false;
    static const int ELEMS = 256, BYTES = 176, STRIDE = 176, STAGES = 3, RESIDENT = 3;
    static const bool ALIGNED = true;
    static __device__ __forceinline__ words2_t codes(const u8* block, int j, int t) {
        words2_t v = load<words2_t>(block + 48 + 32 * (j >> 1) + 8 * t);
        const words2_t h = load<words2_t>(block + 16 + 8 * t);
        const int shift = 4 * (j & 1);
        v.lo = ((v.lo >> shift) & 0x0F0F0F0Fu) | (((h.lo >> j) & 0x01010101u) << 4);
        v.hi = ((v.hi >> shift) & 0x0F0F0F0Fu) | (((h.hi >> j) & 0x01010101u) << 4);
        return v;
    }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* block = chunk.codes;
        const k_scales s = open_k_scales(block, j & 3);
        scale_bytes(codes(block, j, t), j < 4 ? s.scale[0] : s.scale[1], j < 4 ? s.minus_min[0] : s.minus_min[1], w);
    }
    static __device__ __forceinline__ row_t open(chunk_t chunk, int t) { return open_k_scales(chunk.codes, t); }
    static __device__ __forceinline__ void piece(const row_t& row, chunk_t chunk, int j, int t, float (&w)[8]) {
        scale_bytes(codes(chunk.codes, j, t), __shfl_sync(0xFFFFFFFFu, j < 4 ? row.scale[0] : row.scale[1], j & 3, 4),
                    __shfl_sync(0xFFFFFFFFu, j < 4 ? row.minus_min[0] : row.minus_min[1], j & 3, 4), w);
    }
};

// Q6_K: block of 256: @0 ql[128], @128 qh[64], @192 i8 s[16], @208 f16 d. Half h = j / 4, quarter c = j % 4, l = 0..31:
// low bits are a nibble of ql[64 h + 32 (c & 1) + l] (high for c >= 2), high bits are bits 2c, 2c + 1 of qh[32 h + l];
// w = d s[2 j + l / 16] (q - 32).
struct q6_k_format : plain_format {
    typedef void storage_t;
    typedef no_quad row_t;
    static const bool ANY_K = false;
    static const int ELEMS = 256, BYTES = 210, STRIDE = 224, STAGES = 3, RESIDENT = 2;
    static const bool ALIGNED = false;
    static __device__ __forceinline__ row_t open(chunk_t, int) { return row_t(); }
    static __device__ __forceinline__ void decode(chunk_t chunk, int j, int t, float (&w)[8]) {
        const u8* block = chunk.codes;
        const int half = j >> 2, c = j & 3;
        words2_t v = load_8_bytes(block + 64 * half + 32 * (c & 1) + 8 * t);
        const words2_t h = load_8_bytes(block + 128 + 32 * half + 8 * t);
        const int shift = 4 * (c >> 1);
        v.lo = ((v.lo >> shift) & 0x0F0F0F0Fu) | (((h.lo >> (2 * c)) & 0x03030303u) << 4);
        v.hi = ((v.hi >> shift) & 0x0F0F0F0Fu) | (((h.hi >> (2 * c)) & 0x03030303u) << 4);
        const float scale = load_half(block + 208) * (float)(i8)block[192 + 2 * j + (t >> 1)];
        scale_bytes(v, scale, -32.0f * scale, w);
    }
    static __device__ __forceinline__ void piece(const row_t&, chunk_t chunk, int j, int t, float (&w)[8]) {
        decode(chunk, j, t, w);
    }
};

#include "scaled.cuh"

// Bytes of one row of scales.
template <typename F> __device__ __forceinline__ i64 scale_row_bytes(int K) {
    return (i64)((K + F::SCALE_BLOCK - 1) / F::SCALE_BLOCK) * F::SCALE_SIZE;
}

#ifdef FORMAT
typedef PASTE(FORMAT, _format) format_t;
#endif
