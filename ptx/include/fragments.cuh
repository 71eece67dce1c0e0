// Weights in fragment order: the layouts of quant/fragments.py, read by the lanes of a warp.
//
// A matrix is a grid of tiles of 16 rows and F::COLS columns, F::BYTES each, the tiles of 16 rows one after the other.
// With g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8 of a tile; product i (16 columns) of a tile takes from
// it columns 16 i + 4 t .. + 3: the first two as registers a[0] and a[1] of the A fragment of mma.m16n8k16 (mma.cuh), the
// others as a[2] and a[3]. Activations agree (stage.cuh).
// Codes become float16 integers exactly. Each format F has
//   F(zero)                   masks in registers (see `opaque`)
//   codes_t, take(tile, lane, c)  a lane's codes of columns 64 c .. + 63
//   expand(codes_t, h, a)     the fragments a[2][4] of its half h
//   SPAN                      columns under one scale: 32, or 16
//   OFFSET                    whether row g's integers are 1024 too large (16 times so in row g + 8), which sums of x,
//                             as start values of the products, take away again
//   MINIMA                    whether something is subtracted that the sums of x multiply
//   scales_t<SLOTS>           the scales that a lane applies (small.cu), of rows g and g + 8:
//     (tile, lane), get(form, i, e, s)   s[2] of its i-th sub-block of 32 columns and span e of it
//   minima(tile, lane, a)     the minima as A fragment of mma.m16n8k8: rows g, g + 8, sub-blocks t and t + 4
//   factors(tile, lane, d, e) what multiplies sums of products, and sums of minima times -1024 sums of x; [2]: rows
//   quad(tile, r, k, w)       four weights of row r from column k, a multiple of 4, exactly the reference's dequantisation
#pragma once
#include "blocks.cuh"
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

// Q4_K, 16 x 256: 16 bytes per row: d, dmin (float16) and three words of 6-bit scales s and minima m, s0..s3 with the low
// byte of m4..m7's 24 bits on top, s4..s7 with the middle one, m0..m3 with the high one; then 4 x 512 bytes of nibbles.
// w = d s q - dmin m. Nibble q of row g becomes 1024 + q, that of row g + 8 becomes 1024 + 16 q; sums of x take 1024 away.
struct q4_k_fragments {
    static const int COLS = 256, BYTES = 2304, SPAN = 32;
    static const bool OFFSET = true, MINIMA = true;
    u32 low_mask, high_mask, field_mask[3];

    __device__ __forceinline__ q4_k_fragments(int zero)
        : low_mask(opaque(0x000F000Fu, zero)), high_mask(opaque(0x00F000F0u, zero)),
          field_mask{opaque(63u, zero), opaque(63u << 6, zero), opaque(63u << 12, zero)} {}
    typedef words4_t codes_t;
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return load_words4(tile + 256 + c * 512 + lane * 16);
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 low = w.r[2 * h + i], high = low >> 8;
            a[i][0] = (low & low_mask) | 0x64006400u;
            a[i][1] = (low & high_mask) | 0x64006400u;
            a[i][2] = (high & low_mask) | 0x64006400u;
            a[i][3] = (high & high_mask) | 0x64006400u;
        }
    }
    // Field i of four that lie at bits 0, 6, 12 and 18, as float.
    __device__ __forceinline__ float field(u32 word, int i) const {
        const u32 w = i == 3 ? word >> 6 : word, one = (u32)(127 + 23 - 6 * min(i, 2)) << 23;
        return __uint_as_float((w & field_mask[min(i, 2)]) | one) - __uint_as_float(one);
    }
    template <int SLOTS> struct scales_t {
        static const int WORDS = SLOTS == 1 ? 2 : 1;
        u32 words[2][WORDS];
        __device__ __forceinline__ scales_t(const u8* tile, int lane) {
            const int t = lane & 3;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u8* head = tile + (lane >> 2) * 16 + 128 * r + 4;
#pragma unroll
                for (int i = 0; i < WORDS; i++) words[r][i] = load<u32>(head + 4 * (SLOTS == 1 ? i : t >> 1));
                if (SLOTS >= 4) words[r][0] >>= 12 * (t & 1);
            }
        }
        __device__ __forceinline__ void get(const q4_k_fragments& form, int i, int, float (&s)[2]) const {
#pragma unroll
            for (int r = 0; r < 2; r++) s[r] = form.field(words[r][SLOTS == 1 ? i >> 2 : 0], i & 3);
        }
    };
    static __device__ __forceinline__ u32 bytes_on_top(const words4_t& h) {
        return __byte_perm(__byte_perm(h.r[1], h.r[2], 0x0073), h.r[3], 0x0710);
    }
    static __device__ __forceinline__ void minima(const u8* tile, int lane, u32 (&a)[4]) {
        const int at = 6 * (lane & 3);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const words4_t h = load_words4(tile + (lane >> 2) * 16 + 128 * r);
            a[r] = __float_as_uint(small_integer((h.r[3] >> at) & 63u));
            a[2 + r] = __float_as_uint(small_integer((bytes_on_top(h) >> at) & 63u));
        }
    }
    static __device__ __forceinline__ void factors(const u8* tile, int lane, float (&d)[2], float (&e)[2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float both[2];
            unpack2<f16_t>(both, load<u32>(tile + (lane >> 2) * 16 + 128 * r));
            d[r] = both[0] * (r == 0 ? 1.0f : 1.0f / 16.0f);
            e[r] = both[1] * (1.0f / 1024.0f);
        }
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u8* head = tile + 16 * r;
        const words4_t h = load_words4(head);
        const int j = k >> 5, at = 6 * (j & 3);
        const u32 s = ((j < 4 ? h.r[1] : h.r[2]) >> at) & 63u, m = ((j < 4 ? h.r[3] : bytes_on_top(h)) >> at) & 63u;
        const float d = load_half(head) * (float)s, low = load_half(head + 2) * (float)m;
        const u32 q = four_nibbles(tile + 256, r, k);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = fmaf((float)((q >> (8 * (i >> 1) + 16 * (i & 1))) & 15u), d, -low);
    }
};

// Q6_K, 16 x 256: 4 x 512 bytes of low nibbles as above; 4 x 256 bytes of high bit pairs, a word for every 32 columns of a
// lane; 16 bytes per row of scales, biased by 128; d of every row, float16. w = d s (q - 32).
struct q6_k_fragments {
    static const int COLS = 256, BYTES = 3360, SPAN = 16;
    static const bool OFFSET = false, MINIMA = false;
    u32 low_mask, high_mask, low_pairs, high_pairs, exponent;

    __device__ __forceinline__ q6_k_fragments(int zero)
        : low_mask(opaque(0x000F000Fu, zero)), high_mask(opaque(0x00F000F0u, zero)),
          low_pairs(opaque(0x00300030u, zero)), high_pairs(opaque(0x03000300u, zero)),
          exponent(opaque(0x4B000000u, zero)) {}
    struct codes_t {
        words4_t low;
        words2_t pairs;
    };
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return {load_words4(tile + c * 512 + lane * 16), load_words2(tile + 2048 + c * 256 + lane * 8)};
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
        const u32 bits = h == 0 ? w.pairs.lo : w.pairs.hi;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 low = w.low.r[2 * h + i], high = low >> 8;
            const u32 p0 = i ? bits >> 6 : bits, p2 = i ? bits << 4 : bits << 2, p3 = i ? bits >> 4 : bits << 2;
            a[i][0] = add_halves(and_or(p0, low_pairs, and_or(low, low_mask, 0x64006400u)), 0xE420E420u);   // -1056
            a[i][1] = add_halves(and_or(p0, high_pairs, and_or(low, high_mask, 0x64006400u)), 0xE600E600u);  // -1536
            a[i][2] = add_halves(and_or(p2, low_pairs, and_or(high, low_mask, 0x64006400u)), 0xE420E420u);
            a[i][3] = add_halves(and_or(p3, high_pairs, and_or(high, high_mask, 0x64006400u)), 0xE600E600u);
        }
    }
    template <int SLOTS> struct scales_t {
        static const int WORDS = SLOTS == 1 ? 4 : SLOTS == 2 ? 2 : 1;
        u32 words[2][WORDS];
        __device__ __forceinline__ scales_t(const u8* tile, int lane) {
            const int t = lane & 3;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u8* head = tile + 3072 + (lane >> 2) * 16 + 128 * r;
#pragma unroll
                for (int i = 0; i < WORDS; i++)
                    words[r][i] = load<u32>(head + 4 * (SLOTS >= 4 ? t : SLOTS == 2 ? 2 * (t >> 1) + i : i));
            }
        }
        __device__ __forceinline__ void get(const q6_k_fragments& form, int i, int e, float (&s)[2]) const {
#pragma unroll
            for (int r = 0; r < 2; r++)
                s[r] = __uint_as_float(__byte_perm(words[r][i >> 1], form.exponent, 0x7440 | ((2 * i + e) & 3))) - 8388736.0f;
        }
    };
    static __device__ __forceinline__ void minima(const u8*, int, u32 (&)[4]) {}
    static __device__ __forceinline__ void factors(const u8* tile, int lane, float (&d)[2], float (&)[2]) {
        const u8* at = tile + 3328 + (lane >> 2) * 2;
        d[0] = load_half(at), d[1] = load_half(at + 16) * (1.0f / 16.0f);
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 q = four_nibbles(tile, r, k);
        const u32 h = load<u32>(tile + 2048 + (k >> 6) * 256 + ((r & 7) * 4 + ((k >> 2) & 3)) * 8 + ((k >> 5) & 1) * 4);
        const float d = load_half(tile + 3328 + 2 * r) * (float)((int)tile[3072 + 16 * r + (k >> 4)] - 128);
        const bool odd = k & 16, low = r < 8;
        const int first = odd ? low ? 10 : 14 : low ? 4 : 8, second = odd ? low ? 0 : 12 : low ? 2 : 6;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 high = (h >> ((i < 2 ? first : second) + 16 * (i & 1))) & 3u;
            w[i] = fmaf((float)(((q >> (8 * (i >> 1) + 16 * (i & 1))) & 15u) | high << 4), d, -32.0f * d);
        }
    }
};

#ifdef FORMAT
typedef PASTE(FORMAT, _fragments) fragments_t;
#endif
