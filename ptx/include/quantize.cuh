// Activations into groups of small codes under a scale: NVFP4 (16), MXFP8 (32), FP8 with a float32 scale per 128. The
// meaning is ops/ref/quantize.py, bit for bit.
//
// The lanes of a warp hold eight consecutive elements each, lane 0 at a multiple of 256: a group is the work of GROUP / 8
// neighbours, which agree on its largest magnitude by shuffles. All lanes call `store`, those past the row with zeros.
// Values are rounded to ACT first, so that a fused kernel gives the bits of its two parts.
// NVFP4 and MXFP8 scales lie in tiles of 128 rows by 4 groups (scale_offset); the places of rows past T and of groups
// past K are zero.
#pragma once
#include "nvfp4.cuh"
#include "vector.cuh"

struct __align__(8) words_pair { u32 lo, hi; };

struct quantized_t {
    u8 *codes, *scales;
    float* factor;        // NVFP4: the factor of all rows, [1]
    const float* inputs;  // NVFP4: that factor where it is above 0; null or 0 means 1
    int T, K;
};

__device__ __forceinline__ float given(const float* inputs) {
    const float g = inputs != nullptr ? *inputs : 0.0f;
    return g > 0.0f ? g : 1.0f;
}

template <int LANES> __device__ __forceinline__ u32 largest_of_lanes(const float (&v)[8]) {
    u32 m = largest_bits(v);
#pragma unroll
    for (int o = 1; o < LANES; o <<= 1) m = max(m, __shfl_xor_sync(0xFFFFFFFFu, m, o));
    return m;
}

// Eight elements times `inverse` as E4M3, zeros where the group is spoilt.
__device__ __forceinline__ words_pair e4m3x8(const float (&v)[8], float inverse, bool bad) {
    float q[8];
#pragma unroll
    for (int e = 0; e < 8; e++) q[e] = bad ? 0.0f : v[e] * inverse;
    return {e4m3x4(q), e4m3x4(q + 4)};
}
__device__ __forceinline__ void store_codes(u8* to, words_pair q, int count) {
    if (count >= 8 && aligned(to, 8)) {
        *(words_pair*)to = q;
        return;
    }
#pragma unroll
    for (int e = 0; e < 8; e++)
        if (e < count) to[e] = (u8)((e < 4 ? q.lo : q.hi) >> (8 * (e & 3)));
}

struct nvfp4_groups {
    static const int GROUP = 16;
    static const bool TILED = true;
    static __device__ __forceinline__ void store(const quantized_t& out, int row, int i, const float (&v)[8]) {
        const float global = given(out.inputs);
        const u32 scale = nvfp4_scale(largest_of_lanes<2>(v), global);
        const u32 codes = nvfp4_codes(v, scale, global);
        if (row == 0 && i == 0) *out.factor = global;
        if (i >= out.K) return;
        *(u32*)(out.codes + (i64)row * (out.K / 2) + i / 2) = codes;
        if (i % 16 == 0) out.scales[scale_offset(row, i / 16, out.K / 16)] = (u8)scale;
    }
};
struct mxfp8_groups {
    static const int GROUP = 32;
    static const bool TILED = true;
    static __device__ __forceinline__ void store(const quantized_t& out, int row, int i, const float (&v)[8]) {
        const u32 largest = largest_of_lanes<4>(v);
        const u32 scale = is_bad(largest) ? 255u : ue8m0_above(__uint_as_float(largest) / E4M3_LARGEST);
        const words_pair q = e4m3x8(v, __uint_as_float((254u - scale) << 23), is_bad(largest));
        if (i < out.K) store_codes(out.codes + (i64)row * out.K + i, q, 8);
        if (i % 32 == 0 && i < ((out.K + 127) & ~127))
            out.scales[scale_offset(row, i / 32, out.K / 32)] = i < out.K ? (u8)scale : (u8)0;
    }
};
struct fp8_block_groups {
    static const int GROUP = 128;
    static const bool TILED = false;
    static __device__ __forceinline__ void store(const quantized_t& out, int row, int i, const float (&v)[8]) {
        const u32 largest = largest_of_lanes<16>(v);
        const float scale = is_bad(largest) ? __uint_as_float(0x7FC00000u) : __uint_as_float(largest) / E4M3_LARGEST;
        const words_pair q = e4m3x8(v, inverse_scale(scale), is_bad(largest));
        if (i >= out.K) return;
        store_codes(out.codes + (i64)row * out.K + i, q, out.K - i);
        if (i % 128 == 0) ((float*)out.scales)[(i64)row * ((out.K + 127) / 128) + i / 128] = scale;
    }
};

// Zero scales for a row past T, elements i .. i + 7 (nothing where scales are not tiled).
template <typename G> __device__ __forceinline__ void pad_scales(const quantized_t& out, int row, int i) {
    const int columns = (out.K / G::GROUP + 3) & ~3;
    if (G::TILED && i % G::GROUP == 0 && i / G::GROUP < columns)
        out.scales[scale_offset(row, i / G::GROUP, columns)] = 0;
}

// Where the rows of a norm go: to groups.
template <typename G> struct group_sink {
    static const bool COLLECTIVE = true;
    quantized_t out;
    __device__ __forceinline__ bool wide() const { return true; }
    __device__ __forceinline__ void store(int row, int i, float (&v)[8], bool) const {
#pragma unroll
        for (int e = 0; e < 8; e++) v[e] = to_float(from_float<act_t>(v[e]));
        G::store(out, row, i, v);
    }
    __device__ __forceinline__ void pad(int row) const {
        const int rows = (out.T + 127) & ~127;
        if (row < rows)
            for (int i = threadIdx.x * 8; i < out.K + 128; i += blockDim.x * 8) pad_scales<G>(out, row, i);
    }
};

#ifdef QUANT
typedef PASTE(QUANT, _groups) groups_t;
#endif
