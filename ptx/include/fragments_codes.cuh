// Formats of small codes under scales (scaled.cuh) in fragment order (fragments.cuh explains the members). A NaN among
// codes or scales makes its row NaN.
#pragma once

// Scales of type S for every SPAN columns, those of a row side by side, at byte AT of a tile.
template <typename S, int SPAN_, int AT> struct column_scales {
    static const int SPAN = SPAN_, ROW_BYTES = 256 / SPAN * S::SIZE;
    template <int SLOTS> struct scales_t {
        static const int OWN = ROW_BYTES / 8 * sub_blocks<SLOTS>::COUNT, WORDS = (OWN + 3) / 4;  // bytes of a lane's
        u32 words[2][WORDS];
        __device__ __forceinline__ scales_t(const u8* tile, int lane) {
            const u8* head = tile + AT + (lane >> 2) * ROW_BYTES + ROW_BYTES / 8 * first_sub_block<SLOTS>(lane & 3);
#pragma unroll
            for (int r = 0; r < 2; r++)
#pragma unroll
                for (int i = 0; i < WORDS; i++)
                    words[r][i] = OWN == 2 ? (u32)load<u16>(head + 8 * ROW_BYTES * r)
                                           : load<u32>(head + 8 * ROW_BYTES * r + 4 * i);
        }
        template <typename F> __device__ __forceinline__ void get(const F&, int i, int e, float (&s)[2]) const {
            const int at = (i * (32 / SPAN) + e) * S::SIZE;
#pragma unroll
            for (int r = 0; r < 2; r++) s[r] = S::of(words[r][at >> 2], at & 3);
        }
    };
    static __device__ __forceinline__ float scale(const u8* tile, int r, int k) {
        return S::read(tile + AT + ROW_BYTES * r + k / SPAN * S::SIZE);
    }
};

// A scale at byte `at` of a word.
struct e4m3_fragment_scale : e4m3_scale {
    static __device__ __forceinline__ float of(u32 word, int at) {
        return half_of(e4m3x2_to_f16x2(at < 2 ? word : word >> 16), at & 1);
    }
};
struct f16_fragment_scale : f16_scale {
    static __device__ __forceinline__ float of(u32 word, int at) { return half_of(word, at >> 1); }
};
struct e8m0_fragment_scale : e8m0_scale {
    static __device__ __forceinline__ float of(u32 word, int at) { return ue8m0_to_float((word >> (8 * at)) & 255u); }
};

// A float32 factor per row, at byte AT of a tile, times POWER.
template <int AT, int POWER> struct row_factors {
    static __device__ __forceinline__ void factors(const u8* tile, int lane, float (&d)[2], float (&)[2]) {
#pragma unroll
        for (int r = 0; r < 2; r++) d[r] = load<float>(tile + AT + (lane >> 2) * 4 + 32 * r) * (float)POWER;
    }
    static __device__ __forceinline__ float factor(const u8* tile, int r) { return load<float>(tile + AT + 4 * r); }
};
template <int POWER> struct no_factors {
    static __device__ __forceinline__ void factors(const u8*, int, float (&d)[2], float (&)[2]) {
        d[0] = d[1] = (float)POWER;
    }
    static __device__ __forceinline__ float factor(const u8*, int) { return 1.0f; }
};

// E2M1, 4 x 512 bytes: one byte holds the codes of columns e and e + 2 of four: the sign of the first in bit 7 and its
// other bits in 3..1, those of the second in 6..4 and its sign in bit 0. The bytes of a word are row g + 8 of columns 0
// and 2, row g of those, row g + 8 of columns 1 and 3, row g of those. With the exponent's and mantissa's bits where
// float16 has its own, a code is its value times 2^-14.
template <typename S, typename D> struct e2m1_fragments : S, D, no_minima {
    static const int COLS = 256;
    u32 codes_mask, sizes, signs;

    __device__ __forceinline__ e2m1_fragments(int zero)
        : codes_mask(opaque(0x8E008E00u, zero)), sizes(opaque(0x0E0E0E0Eu, zero)), signs(opaque(0x80808080u, zero)) {}
    typedef words4_t codes_t;
    static __device__ __forceinline__ codes_t take(const u8* tile, int lane, int c) {
        return load_words4(tile + c * 512 + lane * 16);
    }
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const u32 v = w.r[2 * h + i];
            const u32 second = and_or(v << 7, signs, (v >> 3) & sizes);
            a[i][0] = v & codes_mask;
            a[i][1] = (v << 8) & codes_mask;
            a[i][2] = second & 0xFF00FF00u;
            a[i][3] = __byte_perm(second, 0, 0x2404);
        }
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 v = four_nibbles(tile, r & 7, k) >> (r < 8 ? 8 : 0);
        const float s = S::scale(tile, r, k), f = D::factor(tile, r);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 b = v >> (16 * (i & 1));
            f16_t code;
            code.bits = (u16)(i < 2 ? (b & 0x8Eu) << 8 : (b & 0x70u) << 5 | (b & 1u) << 15);
            w[i] = to_float(code) * 16384.0f * s * f;
        }
    }
};
struct nvfp4_fragments : e2m1_fragments<column_scales<e4m3_fragment_scale, 16, 2048>, row_factors<2304, 16384>> {
    static const int BYTES = 2368;
    static constexpr float SHRINK = 128.0f;  // 448 * 128 fits; multiples of 2^-17, of 2 + 4 bits, are exact
    __device__ __forceinline__ nvfp4_fragments(int zero) : e2m1_fragments(zero) {}
};
struct nvfp4_f16_fragments : e2m1_fragments<column_scales<f16_fragment_scale, 16, 2048>, row_factors<2560, 16384>> {
    static const int BYTES = 2624;
    static constexpr float SHRINK = 0.0f;
    __device__ __forceinline__ nvfp4_f16_fragments(int zero) : e2m1_fragments(zero) {}
};
struct mxfp4_fragments : e2m1_fragments<column_scales<e8m0_fragment_scale, 32, 2048>, no_factors<16384>> {
    static const int BYTES = 2176;
    static constexpr float SHRINK = 0.0f;
    __device__ __forceinline__ mxfp4_fragments(int zero) : e2m1_fragments(zero) {}
};

// FP8 has no scales but its factor.
struct no_scales {
    static const int SPAN = 32;
    template <int SLOTS> struct scales_t {
        __device__ __forceinline__ scales_t(const u8*, int) {}
        template <typename F> __device__ __forceinline__ void get(const F&, int, int, float (&s)[2]) const {
            s[0] = s[1] = 1.0f;
        }
    };
    static __device__ __forceinline__ float scale(const u8*, int, int) { return 1.0f; }
};
// A float32 scale for all rows of a tile and 128 columns.
struct half_tile_scales {
    static const int SPAN = 32;
    template <int SLOTS> struct scales_t {
        float both[SLOTS == 1 ? 2 : 1];
        __device__ __forceinline__ scales_t(const u8* tile, int lane) {
            both[0] = load<float>(tile + 4096 + (SLOTS == 1 ? 0 : (lane & 2) << 1));
            if (SLOTS == 1) both[SLOTS == 1] = load<float>(tile + 4100);
        }
        template <typename F> __device__ __forceinline__ void get(const F&, int i, int, float (&s)[2]) const {
            s[0] = s[1] = both[SLOTS == 1 ? i >> 2 : 0];
        }
    };
    static __device__ __forceinline__ float scale(const u8* tile, int, int k) {
        return load<float>(tile + 4096 + 4 * (k >> 7));
    }
};

// E4M3, 8 x 512 bytes.
template <typename S, typename D> struct e4m3_fragments : byte_codes, S, D, no_minima {
    __device__ __forceinline__ e4m3_fragments(int) {}
    __device__ __forceinline__ void expand(const codes_t& w, int h, u32 (&a)[2][4]) const {
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const u32 v = w.r[h].r[2 * i + (r & 1)];
                a[i][r] = e4m3x2_to_f16x2(r < 2 ? v : v >> 16);
            }
    }
    static __device__ __forceinline__ void quad(const u8* tile, int r, int k, float (&w)[4]) {
        const u32 v = four_bytes(tile, r, k);
        const float s = S::scale(tile, r, k), f = D::factor(tile, r);
        f16x2_to_floats(e4m3x2_to_f16x2(v), w[0], w[1]);
        f16x2_to_floats(e4m3x2_to_f16x2(v >> 16), w[2], w[3]);
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = w[i] * s * f;
    }
};
struct fp8_fragments : e4m3_fragments<no_scales, row_factors<4096, 1>> {
    static const int BYTES = 4160;
    static constexpr float SHRINK = 1.0f;  // there are no scales
    __device__ __forceinline__ fp8_fragments(int zero) : e4m3_fragments(zero) {}
};
struct fp8_block_fragments : e4m3_fragments<half_tile_scales, no_factors<1>> {
    static const int BYTES = 4112;
    static constexpr float SHRINK = 0.0f;
    __device__ __forceinline__ fp8_block_fragments(int zero) : e4m3_fragments(zero) {}
};
struct mxfp8_fragments : e4m3_fragments<column_scales<e8m0_fragment_scale, 32, 4096>, no_factors<1>> {
    static const int BYTES = 4224;
    static constexpr float SHRINK = 0.0f;
    __device__ __forceinline__ mxfp8_fragments(int zero) : e4m3_fragments(zero) {}
};
