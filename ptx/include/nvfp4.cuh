// NVFP4: E2M1 elements (0, 0.5, 1, 1.5, 2, 3, 4, 6 and sign) in blocks of 16 with an unsigned E4M3 scale each. Device
// functions with the native instruction where the target has it (arch.cuh) and an exact stand-in elsewhere.
//
// Fragments of mma m16n8k64 (PTX ISA, "Matrix Fragments for mma.m16n8k64" and "Block Scaling for mma.sync"; CUTLASS
// mma_traits_sm120.hpp agrees), with g = lane >> 2, t = lane & 3; nibble i of a register is bits 4i .. 4i + 3:
//   A [16, 64] row-major:  a[0] = (row g, k 8t + i)   a[1] = (row g + 8, same k)   a[2], a[3]: k + 32
//   B [64, 8] (k, n):      b0 = (k 8t + i, col g)     b1: k + 32
//   C as for m16n8k16.     So plain ldmatrix on the packed bytes loads A and B.
//   Scales: one word of four bytes per row of A or column of B, byte j for k 16j .. 16j + 15. Row g of A is taken from
//   lane 4g + 2 TA, row g + 8 from lane 4g + 2 TA + 1; column g of B from lane 4g + TB. Other lanes may hold the scales
//   of other tiles: two words serve two A tiles (TA 0, 1), one word four B tiles (TB 0 .. 3).
#pragma once
#include "arch.cuh"
#include "fp8.cuh"
#include "mma.cuh"

#define E2M1_LARGEST 6.0f

// Eight floats as E2M1, element i in nibble i: nearest even, saturating, sign of zero kept; NaN gives +6.
__device__ __forceinline__ u32 cvt_e2m1x8(const float* v) {
#if NATIVE_FP4
    u32 r;
    asm("{\n\t.reg .b8 b0, b1, b2, b3;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 b0, %2, %1;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 b1, %4, %3;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 b2, %6, %5;\n\t"
        "cvt.rn.satfinite.e2m1x2.f32 b3, %8, %7;\n\t"
        "mov.b32 %0, {b0, b1, b2, b3};\n\t}"
        : "=r"(r) : "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "f"(v[4]), "f"(v[5]), "f"(v[6]), "f"(v[7]));
    return r;
#else
    u32 r = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float a = fabsf(v[i]);
        u32 code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
        code |= (__float_as_uint(v[i]) >> 31) << 3;
        r |= (a == a ? code : 7u) << (4 * i);
    }
    return r;
#endif
}
// A pair of floats as E2M1 in one byte, lo in the low nibble.
__device__ __forceinline__ u32 cvt_e2m1x2(float lo, float hi) {
    const float v[8] = {lo, hi, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    return cvt_e2m1x8(v) & 0xFFu;
}

__device__ __forceinline__ u32 mul_f16x2(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}

// Elements 2j and 2j + 1 of a word as two f16: exact. The low byte of every such half is zero, so the stand-in looks up
// the high bytes of four magnitudes at once; j should be a constant.
__device__ __forceinline__ u32 e2m1_pair(u32 codes, int j) {
#if NATIVE_FP4
    u32 r;
    asm("{\n\t.reg .b8 b0, b1, b2, b3;\n\tmov.b32 {b0, b1, b2, b3}, %1;\n\tcvt.rn.f16x2.e2m1x2 %0, b0;\n\t}"
        : "=r"(r) : "r"(codes >> (8 * j)));
    return r;
#else
    const u32 sizes = codes & 0x77777777u, b = codes >> (8 * j);
    const u32 bytes = __byte_perm(0x3E3C3800u, 0x46444240u, j < 2 ? sizes : sizes >> 16);
    return __byte_perm(bytes, 0, j & 1 ? 0x3424 : 0x1404) | ((b & 0x08u) << 12) | ((b & 0x80u) << 24);
#endif
}

// Sixteen values in one block: the scale in E4M3 and the codes, two words. `global` > 0 is the factor of the tensor:
// value = code * scale * global, scale = E4M3(largest / 6 / global). A block that holds a NaN or an infinity gets the
// scale NaN and zero codes, so that it spoils its row and nothing else.
struct nvfp4_block {
    u32 scale, codes[2];
};
__device__ __forceinline__ u32 nvfp4_scale(u32 largest, float global) {
    return is_bad(largest) ? 0x7Fu : e4m3x2(__uint_as_float(largest) / E2M1_LARGEST / global, 0.0f) & 0x7Fu;
}
__device__ __forceinline__ u32 nvfp4_codes(const float* v, u32 scale, float global) {
    const float inverse = scale == 0x7Fu ? 0.0f : inverse_scale(e4m3_to_float(scale) * global);
    float q[8];
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = scale == 0x7Fu ? 0.0f : v[i] * inverse;
    return cvt_e2m1x8(q);
}
__device__ __forceinline__ nvfp4_block quantize_nvfp4(const float (&v)[16], float global) {
    nvfp4_block r;
    r.scale = nvfp4_scale(largest_bits(v), global);
    r.codes[0] = nvfp4_codes(v, r.scale, global);
    r.codes[1] = nvfp4_codes(v + 8, r.scale, global);
    return r;
}

// Where the scale of row r and block c lies among tiles of 128 rows by 4 blocks, `columns` blocks a row (a multiple of
// 4 once padded): the layout that cuBLASLt takes (its documentation, "1D block scaling factors layout").
__device__ __forceinline__ u32 scale_offset(u32 r, u32 c, u32 columns) {
    return ((r >> 7) * ((columns + 3) >> 2) + (c >> 2)) * 512 + (r & 31) * 16 + ((r >> 5) & 3) * 4 + (c & 3);
}

// d += (a sfa) (b sfb) in float32. TA and TB choose the lanes whose scales count (above).
template <int TA, int TB>
__device__ __forceinline__ void mma_nvfp4(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 sfa, u32 sfb) {
#if NATIVE_BLOCK_SCALE
    asm("mma.sync.aligned.m16n8k64.row.col.kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {0, %12}, {%11}, {0, %13};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(sfa), "r"(sfb), "n"(TA), "n"(TB));
#else
    // An element times its scale has at most six significant bits between 2^-10 and 2688: exact in f16. The order of k
    // is free as long as A and B agree: product j takes elements 2j, 2j + 1 of every register. Registers 0 and 1 of A
    // and 0 of B lie in block t / 2, the others in block t / 2 + 2.
    const u32 lane = threadIdx.x & 31, quad = lane & 28, shift = (lane & 2) << 2;
    const u32 words[3] = {__shfl_sync(0xFFFFFFFFu, sfa, quad + 2 * TA), __shfl_sync(0xFFFFFFFFu, sfa, quad + 2 * TA + 1),
                          __shfl_sync(0xFFFFFFFFu, sfb, quad + TB)};
    u32 low[3], high[3];
#pragma unroll
    for (int i = 0; i < 3; i++) {
        const u32 w = (words[i] >> shift) & 0x007F007Fu;
        const u32 pair = e4m3x2_to_f16x2(w | (w >> 8));
        low[i] = (pair & 0xFFFFu) * 0x10001u;
        high[i] = (pair >> 16) * 0x10001u;
    }
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const u32 a16[4] = {mul_f16x2(e2m1_pair(a[0], j), low[0]), mul_f16x2(e2m1_pair(a[1], j), low[1]),
                            mul_f16x2(e2m1_pair(a[2], j), high[0]), mul_f16x2(e2m1_pair(a[3], j), high[1])};
        mma_16816<f16_t>(d, a16, mul_f16x2(e2m1_pair(b0, j), low[2]), mul_f16x2(e2m1_pair(b1, j), high[2]));
    }
#endif
}

// The same where unrolled loops make the lanes constant: ta 0 or 1, tb 0 to 3.
__device__ __forceinline__ void mma_nvfp4_at(int ta, int tb, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 sfa,
                                             u32 sfb) {
    switch (ta * 4 + tb) {
        case 0: mma_nvfp4<0, 0>(d, a, b0, b1, sfa, sfb); break;
        case 1: mma_nvfp4<0, 1>(d, a, b0, b1, sfa, sfb); break;
        case 2: mma_nvfp4<0, 2>(d, a, b0, b1, sfa, sfb); break;
        case 3: mma_nvfp4<0, 3>(d, a, b0, b1, sfa, sfb); break;
        case 4: mma_nvfp4<1, 0>(d, a, b0, b1, sfa, sfb); break;
        case 5: mma_nvfp4<1, 1>(d, a, b0, b1, sfa, sfb); break;
        case 6: mma_nvfp4<1, 2>(d, a, b0, b1, sfa, sfb); break;
        default: mma_nvfp4<1, 3>(d, a, b0, b1, sfa, sfb); break;
    }
}
