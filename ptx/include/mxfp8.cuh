// MXFP8 (OCP Microscaling Formats 1.0): E4M3 elements in blocks of 32 with an E8M0 scale each.
//
// mma m16n8k32 with one scale per row of A and column of B (scale_vec::1X): fragments as fp8.cuh says; the scale is byte
// BYTE of the word that the lanes of nvfp4.cuh hold (row g of A: lane 4g + 2 TA, row g + 8: the next; column g of B: lane
// 4g + TB), so a word serves four steps of k.
#pragma once
#include "arch.cuh"
#include "fp8.cuh"
#include "mma.cuh"

// d += (a sfa) (b sfb) in float32. The stand-in sums one block without scales and multiplies by both powers of two.
template <int BYTE, int TA, int TB>
__device__ __forceinline__ void mma_mxfp8(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 sfa, u32 sfb) {
#if NATIVE_BLOCK_SCALE
    asm("mma.sync.aligned.m16n8k32.row.col.kind::mxf8f6f4.block_scale.scale_vec::1X.f32.e4m3.e4m3.f32.ue8m0 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3}, {%10}, {%12, %13}, {%11}, {%12, %14};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(sfa), "r"(sfb), "n"(BYTE), "n"(TA),
          "n"(TB));
#else
    const u32 lane = threadIdx.x & 31, quad = lane & 28, t = lane & 3;
    float rows[2], columns[2], sum[4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        rows[i] = ue8m0_to_float((__shfl_sync(0xFFFFFFFFu, sfa, quad + 2 * TA + i) >> (8 * BYTE)) & 0xFFu);
        columns[i] = ue8m0_to_float((__shfl_sync(0xFFFFFFFFu, sfb, 4 * (2 * t + i) + TB) >> (8 * BYTE)) & 0xFFu);
    }
    mma_e4m3(sum, a, b0, b1);
#pragma unroll
    for (int i = 0; i < 4; i++) d[i] = fmaf(sum[i] * rows[i >> 1], columns[i & 1], d[i]);
#endif
}

template <int BYTE>
__device__ __forceinline__ void mma_mxfp8_byte(int ta, int tb, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, u32 sfa,
                                               u32 sfb) {
    switch (ta * 4 + tb) {
        case 0: mma_mxfp8<BYTE, 0, 0>(d, a, b0, b1, sfa, sfb); break;
        case 1: mma_mxfp8<BYTE, 0, 1>(d, a, b0, b1, sfa, sfb); break;
        case 2: mma_mxfp8<BYTE, 0, 2>(d, a, b0, b1, sfa, sfb); break;
        case 3: mma_mxfp8<BYTE, 0, 3>(d, a, b0, b1, sfa, sfb); break;
        case 4: mma_mxfp8<BYTE, 1, 0>(d, a, b0, b1, sfa, sfb); break;
        case 5: mma_mxfp8<BYTE, 1, 1>(d, a, b0, b1, sfa, sfb); break;
        case 6: mma_mxfp8<BYTE, 1, 2>(d, a, b0, b1, sfa, sfb); break;
        default: mma_mxfp8<BYTE, 1, 3>(d, a, b0, b1, sfa, sfb); break;
    }
}
// The same where unrolled loops make byte (0 or 1) and lanes constant: ta 0 or 1, tb 0 to 3.
__device__ __forceinline__ void mma_mxfp8_at(int byte, int ta, int tb, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,
                                             u32 sfa, u32 sfb) {
    if (byte == 0)
        mma_mxfp8_byte<0>(ta, tb, d, a, b0, b1, sfa, sfb);
    else
        mma_mxfp8_byte<1>(ta, tb, d, a, b0, b1, sfa, sfb);
}
