// GGUF formats in fragment order (fragments.cuh explains the members).
#pragma once

// A float16 scale per row and 32 columns, 16 bytes per row, at byte AT of a tile.
template <int AT> struct half_scales {
    template <int SLOTS> struct scales_t {
        static const int WORDS = sub_blocks<SLOTS>::COUNT / 2;
        u32 words[2][WORDS];
        __device__ __forceinline__ scales_t(const u8* tile, int lane) {
            const u8* head = tile + AT + (lane >> 2) * 16 + 2 * first_sub_block<SLOTS>(lane & 3);
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int i = 0; i < WORDS; i++) words[r][i] = load<u32>(head + 128 * r + 4 * i);
        }
        template <typename F> __device__ __forceinline__ void get(const F&, int i, int, float (&s)[2]) const {
#pragma unroll
            for (int r = 0; r < 2; r++) s[r] = half_of(words[r][i >> 1], i & 1);
        }
    };
    static __device__ __forceinline__ float scale(const u8* tile, int r, int k) {
        return load_half(tile + AT + 16 * r + 2 * (k >> 5));
    }
};

// Q8_0: 8 x 512 bytes of q + 128, then the scales d. w = d q.
struct q8_0_fragments : byte_codes, half_scales<4096>, no_minima {
    static const int BYTES = 4352, SPAN = 32;
    static constexpr float SHRINK = 0.0f;  // float16 scales use its whole range
    u32 exponents;

    __device__ __forceinline__ q8_0_fragments(int zero) : exponents(opaque(0x64646464u, zero)) {}
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++)  // 1024 + 128 + q
                a[i][r] = add_halves(__byte_perm(w.r[h].r[2 * i + (r & 1)], exponents, r < 2 ? 0x4140 : 0x4342),
                                     0xE480E480u);
    }
    static __device__ __forceinline__ void factors(const u8*, int, float (&d)[2], float (&)[2]) { d[0] = d[1] = 1.0f; }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 q = four_bytes(tile, r, k);
        const float d = scale(tile, r, k);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = d * (float)((int)((q >> (8 * i)) & 255u) - 128);
    }
};

// Q4_0: 4 x 512 bytes of nibbles, then the scales d. w = d (q - 8).
struct q4_0_fragments : half_scales<2048>, no_minima {
    static const int COLS = 256, BYTES = 2304, SPAN = 32;
    static constexpr float SHRINK = 0.0f;
    u32 low_mask, high_mask;

    __device__ __forceinline__ q4_0_fragments(int zero)
        : low_mask(opaque(0x000F000Fu, zero)), high_mask(opaque(0x00F000F0u, zero)) {}
    typedef words4_t codes_t;
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return load_words4(tile + c * 512 + lane * 16);
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const u32 v = w.r[2 * h + i] >> (8 * p);
                a[i][2 * p] = add_halves(and_or(v, low_mask, 0x64006400u), 0xE408E408u);       // -1032
                a[i][2 * p + 1] = add_halves(and_or(v, high_mask, 0x64006400u), 0xE480E480u);  // -1152
            }
    }
    static __device__ __forceinline__ void factors(const u8*, int, float (&d)[2], float (&)[2]) {
        d[0] = 1.0f, d[1] = 1.0f / 16.0f;
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 q = four_nibbles(tile, r, k);
        const float d = scale(tile, r, k);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = d * (float)((int)((q >> (8 * (i >> 1) + 16 * (i & 1))) & 15u) - 8);
    }
};

// What Q4_K and Q5_K share: w = d s q - dmin m, and 16 bytes per row of d, dmin (float16) and three words of 6-bit scales
// s and minima m: s0..s3 with the low byte of m4..m7's 24 bits on top, s4..s7 with the middle one, m0..m3 with the high.
// Integer q of row g becomes 1024 + q, that of row g + 8 becomes 1024 + 16 q; sums of x take 1024 away.
struct k_fragments {
    static const int COLS = 256, SPAN = 32;
    static const bool OFFSET = true, MINIMA = true;
    u32 low_mask, high_mask, field_mask[3];

    __device__ __forceinline__ k_fragments(int zero)
        : low_mask(opaque(0x000F000Fu, zero)), high_mask(opaque(0x00F000F0u, zero)),
          field_mask{opaque(63u, zero), opaque(63u << 6, zero), opaque(63u << 12, zero)} {}
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
        __device__ __forceinline__ void get(const k_fragments& form, int i, int, float (&s)[2]) const {
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
    // Weights of the integers q of row r from column k.
    static __device__ __forceinline__ void weights(const u8* tile, int r, int k, const u32 (&q)[4], float (&w)[4]) {
        const u8* head = tile + 16 * r;
        const words4_t h = load_words4(head);
        const int j = k >> 5, at = 6 * (j & 3);
        const u32 s = ((j < 4 ? h.r[1] : h.r[2]) >> at) & 63u, m = ((j < 4 ? h.r[3] : bytes_on_top(h)) >> at) & 63u;
        const float d = load_half(head) * (float)s, low = load_half(head + 2) * (float)m;
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = fmaf((float)q[i], d, -low);
    }
};

// Q4_K: the heads, then 4 x 512 bytes of nibbles.
struct q4_k_fragments : k_fragments {
    static const int BYTES = 2304;
    static constexpr float SHRINK = 1.0f;  // 16 * 15 * 63 and 1024 * 63 fit, 4 + 6 bits are exact
    __device__ __forceinline__ q4_k_fragments(int zero) : k_fragments(zero) {}
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
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 bits = four_nibbles(tile + 256, r, k);
        u32 q[4];
#pragma unroll
        for (int i = 0; i < 4; i++) q[i] = (bits >> (8 * (i >> 1) + 16 * (i & 1))) & 15u;
        weights(tile, r, k, q, w);
    }
};

// Q5_K: the heads, 4 x 512 bytes of low nibbles, 4 x 128 bytes of fifth bits, a word for every 64 columns of a lane.
struct q5_k_fragments : k_fragments {
    static const int BYTES = 2816;
    static constexpr float SHRINK = 1.0f;  // 16 * 31 * 63 fits, 5 + 6 bits are exact
    u32 low_bits, high_bits;

    __device__ __forceinline__ q5_k_fragments(int zero)
        : k_fragments(zero), low_bits(opaque(0x00100010u, zero)), high_bits(opaque(0x01000100u, zero)) {}
    struct codes_t {
        words4_t low;
        u32 bits;
    };
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return {load_words4(tile + 256 + c * 512 + lane * 16), load<u32>(tile + 2304 + c * 128 + lane * 4)};
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const u32 low = w.low.r[2 * h + i] >> (8 * p);
                const int at = 2 * i + p;
                const u32 row = h == 0 ? w.bits >> at : w.bits << (4 - at);
                const u32 next = h == 0 ? w.bits >> at : w.bits >> (4 + at);
                a[i][2 * p] = and_or(row, low_bits, and_or(low, low_mask, 0x64006400u));
                a[i][2 * p + 1] = and_or(next, high_bits, and_or(low, high_mask, 0x64006400u));
            }
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 low = four_nibbles(tile + 256, r, k);
        const u32 high = load<u32>(tile + 2304 + (k >> 6) * 128 + ((r & 7) * 4 + ((k >> 2) & 3)) * 4);
        const int first = (k & 32 ? (r < 8 ? 0 : 12) : (r < 8 ? 4 : 8)) + (k & 16 ? 2 : 0);
        u32 q[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            q[i] = ((low >> (8 * (i >> 1) + 16 * (i & 1))) & 15u) |
                   ((high >> (first + (i >> 1) + 16 * (i & 1))) & 1u) << 4;
        weights(tile, r, k, q, w);
    }
};

// Q6_K, 16 x 256: 4 x 512 bytes of low nibbles as above; 4 x 256 bytes of high bit pairs, a word for every 32 columns of a
// lane; 16 bytes per row of scales, biased by 128; d of every row, float16. w = d s (q - 32).
struct q6_k_fragments {
    static const int COLS = 256, BYTES = 3360, SPAN = 16;
    static constexpr float SHRINK = 1.0f / 16.0f;  // 16 * 32 * 128 does not fit; 12 bits of a product round to 11
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
