// What a warp does to one query or key head before it is used: RMS norm, then rotary embedding, in float32.
//
// Lane l holds dims 4 i .. 4 i + 3, i = l, l + 32, ..., and has summed their squares
// in that order, with one fused multiply-add each. Whoever wants these bits calls these functions, so that an
// append of its own (qkv_rope_append.cu) and one inside attention (attention/decode.cu) store the same.
#pragma once
#include "vector.cuh"

// What scales a head to an RMS norm of 1, of the sums of squares of a warp's lanes.
__device__ __forceinline__ float head_scale(float sum, int width, float eps) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
    return rsqrtf(sum / (float)width + eps);
}

// Cosines and sines of dims i .. i + 3: of the first `turned` dims, dims (j, j + half) turn. `fours`: half is a multiple
// of four and cosine, sine [half] are 16-byte aligned.
__device__ __forceinline__ void load_turn(float (&c)[4], float (&s)[4], int i, int turned, int half,
                                          const float* cosine, const float* sine, bool fours) {
    if (fours) {  // all four dims lie in one half; those that do not turn take any
        const int j = i >= turned ? 0 : i < half ? i : i - half;
        load_wide(c, cosine + j), load_wide(s, sine + j);
    } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int j = i + e < half ? i + e : i + e - half;
            if (i + e < turned) c[e] = cosine[j], s[e] = sine[j];
        }
    }
}

// v: dims i .. i + 3 of the head, before and after rotation; x: the whole head before.
__device__ __forceinline__ void rotate_group(float (&v)[4], const float* x, int i, int turned, int half,
                                             const float (&c)[4], const float (&s)[4], bool fours) {
    if (fours) {  // and so do their partners in the other
        const float sign = i < half ? -1.0f : 1.0f;
        float b[4];
        load_wide(b, x + (i >= turned ? i : i < half ? i + half : i - half));
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const float y = fmaf(v[e], c[e], sign * b[e] * s[e]);
            v[e] = i < turned ? y : v[e];
        }
    } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int d = i + e;
            if (d < half) v[e] = fmaf(v[e], c[e], -x[d + half] * s[e]);
            else if (d < turned) v[e] = fmaf(v[e], c[e], x[d - half] * s[e]);
        }
    }
}
