// What a warp does to one query or key head before it is used: RMS norm, then rotary embedding, in float32.
//
// The head stands in shared memory, x [width]; lane l has summed the squares of dims 4 i .. 4 i + 3, i = l, l + 32,
// ..., in that order, with one fused multiply-add each. Whoever wants these bits calls these functions, so that an
// append of its own (qkv_rope_append.cu) and one inside attention (attention/decode.cu) store the same.
#pragma once
#include "vector.cuh"

// Scale x to an RMS norm of 1 and by weight [width].
__device__ __forceinline__ void norm_head(float* x, float sum, const float* weight, int width, float eps) {
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
    const float inverse = rsqrtf(sum / (float)width + eps);
    for (int i = (threadIdx.x & 31) * 4; i < width; i += 128)
#pragma unroll
        for (int e = 0; e < 4; ++e)
            if (i + e < width) x[i + e] = x[i + e] * inverse * weight[i + e];
}

// Dims i .. i + 3 after rotation: of the first `turned` dims, dims (j, j + half) turn. `fours`: half is a multiple of
// four and cosine, sine [half] are 16-byte aligned.
__device__ __forceinline__ void rotate_group(float (&v)[4], const float* x, int i, int width, int turned, int half,
                                             const float* cosine, const float* sine, bool fours) {
    if (fours && i < turned) {  // all four dims lie in one half, and so do their partners in the other
        const bool lower = i < half;
        const int j = lower ? i : i - half;
        const float sign = lower ? -1.0f : 1.0f;
        float a[4], b[4], c[4], s[4];
        load_wide(a, x + i), load_wide(b, x + (lower ? i + half : j));
        load_wide(c, cosine + j), load_wide(s, sine + j);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = fmaf(a[e], c[e], sign * b[e] * s[e]);
    } else {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int d = i + e;
            if (d >= width) v[e] = 0.0f;
            else if (d >= turned) v[e] = x[d];
            else if (d < half) v[e] = fmaf(x[d], cosine[d], -x[d + half] * sine[d]);
            else v[e] = fmaf(x[d], cosine[d - half], x[d - half] * sine[d - half]);
        }
    }
}
