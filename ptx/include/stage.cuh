// Activations as B fragments of mma.m16n8k16: written by the kernels that make them, read by small.cu and medium.cu.
//
// Every STAGE_ROWS rows, and those that remain, are a group of M rows of its own: its blocks follow one another, then
// comes the next group.
// A block is 256 columns of M rows, block_bytes(M) bytes. Unit (j, m, t), 16 bytes, at (j * M + m) * 64 + t * 16, holds
// columns 32 j + 4 t .. + 3 and 32 j + 16 + 4 t .. + 3 of row m as float16: registers b0, b1 of products 2 j and 2 j + 1
// (fragments.cuh). Then come, for every row, 8 sums of 32 columns, times -1024 ([8][M] float32), and the power of two that
// the row was divided by ([M] float32). The last 16 bytes of a block are zero: the unit of whoever has none.
// A row's share of a block is divided by a power of two only if a value would overflow float16, or all are below 2^-11.
// Infinities and NaNs count as zero here; the power is negative where there are some.
// Columns past the last are zero.
#pragma once
#include "vector.cuh"

#define STAGE_ROWS 32

__device__ constexpr __forceinline__ int block_bytes(int M) { return 544 * M + ((4 * M + 15) & ~15) + 16; }

// Where block b of `count` of the group of row m lies, of M rows in all.
template <typename T> __device__ __forceinline__ T* staged_block(T* blocks, int M, int m, int b, int count) {
    const int before = m & ~(STAGE_ROWS - 1);
    return blocks + (i64)(before / STAGE_ROWS) * count * block_bytes(STAGE_ROWS) +
           (i64)b * block_bytes(min(STAGE_ROWS, M - before));
}

__device__ __forceinline__ u32 largest_halves(u32 a, u32 b) {
    u32 r;
    asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a & 0x7FFF7FFFu), "r"(b & 0x7FFF7FFFu));
    return r;
}

// A warp writes row m's share of a block; f are the lane's columns 8 lane .. + 7.
__device__ __forceinline__ void stage_row(u8* block, int M, int m, float (&f)[8], int lane) {
    float power = 1.0f;
    u32 h[4];
#pragma unroll
    for (int i = 0; i < 4; i++) h[i] = pack2<f16_t>(f[2 * i], f[2 * i + 1]);
    const u32 top = largest_halves(largest_halves(h[0], h[1]), largest_halves(h[2], h[3]));
    const u32 a = top & 0xFFFFu, b = top >> 16, most = a > b ? a : b;  // NaN > infinity > all others, as integers too
    if (__any_sync(0xFFFFFFFFu, most >= 0x7C00u) || __all_sync(0xFFFFFFFFu, most < 0x1000u)) {
        bool odd = false;
        float large = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const bool finite = (__float_as_uint(f[i]) & 0x7F800000u) != 0x7F800000u;
            odd = odd || !finite;
            if (!finite) f[i] = 0.0f;
            large = fmaxf(large, fabsf(f[i]));
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) large = fmaxf(large, __shfl_xor_sync(0xFFFFFFFFu, large, o));
        // The largest value gets an exponent near 13 unless it has a fair one. Powers and their inverses stay normal.
        const int exponent = max(-126, min(126, (int)(__float_as_uint(large) >> 23) - 127 - 13));
        if (large > 0.0f && (exponent <= -24 || exponent > 2)) {
            power = __uint_as_float((u32)(127 + exponent) << 23);
            const float inverse = __uint_as_float((u32)(127 - exponent) << 23);
#pragma unroll
            for (int i = 0; i < 8; i++) f[i] *= inverse;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) h[i] = pack2<f16_t>(f[2 * i], f[2 * i + 1]);
        if (__any_sync(0xFFFFFFFFu, odd)) power = -power;
    }
    u8* unit = block + ((lane >> 2) * M + m) * 64 + (lane & 1) * 32 + (lane & 2) * 4;
    *reinterpret_cast<uint2*>(unit) = make_uint2(h[0], h[1]);
    *reinterpret_cast<uint2*>(unit + 16) = make_uint2(h[2], h[3]);
    float sum = ((f[0] + f[1]) + (f[2] + f[3])) + ((f[4] + f[5]) + (f[6] + f[7]));
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
    float* sums = reinterpret_cast<float*>(block + 512 * M);
    if ((lane & 3) == 0) sums[(lane >> 2) * M + m] = -1024.0f * sum;
    if (lane == 0) sums[8 * M + m] = power;
    if (lane == 0 && m == 0) *reinterpret_cast<uint4*>(block + block_bytes(M) - 16) = make_uint4(0, 0, 0, 0);
}

// The share of row m of M in block b of `count`: row `m` of the group of `rows` whose block is at `block`.
struct staged_place {
    u8* block;
    int rows, m;
    __device__ __forceinline__ staged_place(u8* blocks, int M, int m, int b, int count)
        : block(staged_block(blocks, M, m, b, count)), rows(min(STAGE_ROWS, M - (m & ~(STAGE_ROWS - 1)))),
          m(m & (STAGE_ROWS - 1)) {}
    // Known from here on: whoever waits for another kernel need not find it out afterwards.
    __device__ __forceinline__ void pin() { asm volatile("" : "+l"(block), "+r"(rows), "+r"(m)); }
};

// A warp writes it; with a group's last row, zeros beside the powers, since whoever has no row reads past the last
// (medium.cu).
__device__ __forceinline__ void stage_at(const staged_place& p, float (&f)[8], int lane) {
    if (p.m == p.rows - 1 && lane > 0 && p.m + lane < ((p.rows + 3) & ~3))
        reinterpret_cast<float*>(p.block + 544 * p.rows)[p.m + lane] = 0.0f;
    stage_row(p.block, p.rows, p.m, f, lane);
}
__device__ __forceinline__ void stage_in_group(u8* blocks, int M, int m, int b, int count, float (&f)[8], int lane) {
    stage_at(staged_place(blocks, M, m, b, count), f, lane);
}
