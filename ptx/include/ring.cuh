// What the small-M matmuls share: 16 rows of a weight matrix stream through shared memory, chunk by chunk (blocks.cuh),
// and the partial sums of the warps of a CTA meet in a fixed order.
//
// The chunks of a row are dealt to the WARPS warps of a CTA in turn: warp i takes chunks i, i + WARPS, ... Each warp
// has a ring of its own of F::STAGES chunks x 16 rows and needs no barrier with the others. The deal depends on K and
// the format alone, so a result never depends on how many activation rows there are.
#pragma once
#include "blocks.cuh"
#include "mma.cuh"

#define WARPS 8
#define TILE 16        // weight rows of a CTA, and activation rows
#define SUM_STRIDE 20  // floats between the sums of neighbouring activation rows: spreads a fragment over the banks

// What a lane needs to copy chunks of some bytes per row: codes and scales are two such streams. Rows are read in
// 16-byte units that cover the chunk; the misaligned head comes along, and bytes past the end of a row become zeros.
template <int BYTES, int GRAIN, bool ALIGNED, int ROWS> struct stream_t {
    static const int PIECES = ALIGNED ? BYTES / 16 : (BYTES + 31 - GRAIN) / 16;

    const u8* first;  // row 0
    u32 row_bytes, last;

    // Where a chunk of row r begins, seen from `first`. Rows past the last are read as the last: their results are
    // never stored.
    __device__ __forceinline__ u32 start(int chunk, u32 r) const {
        return min(r, last) * row_bytes + (u32)(chunk * BYTES);
    }
    __device__ __forceinline__ int head(u32 start) const { return ALIGNED ? 0 : (int)(((u32)(u64)first + start) & 15); }

    __device__ __forceinline__ void fetch(u32 target, int stride, int chunk, int lane) const {
        const int end = (int)row_bytes - chunk * BYTES;  // of the row, seen from the chunk
#pragma unroll
        for (int i = 0; i < (ROWS * PIECES + 31) / 32; i++) {
            const int unit = lane + 32 * i, r = unit / PIECES, c = unit % PIECES;
            if (ROWS * PIECES % 32 != 0 && unit >= ROWS * PIECES) break;
            const u32 from = start(chunk, r), to = target + r * stride + 16 * c;
            if constexpr (ALIGNED) {
                copy_async_16(to, first + (from + 16 * c));
            } else {
                const int skip = head(from), offset = 16 * c - skip;
                if (offset >= BYTES) continue;
                const int bytes = max(0, min(16, end - offset));
                copy_async_16(to, first + (i64)from + (bytes > 0 ? offset : -skip), bytes);
            }
        }
    }
};

template <typename F> struct ring_t {
    static const int STAGE_BYTES = TILE * F::STRIDE;
    static const int SCALES_AT = F::BYTES + 16;  // in a row of a stage
    static const int SCALE_TILE = F::SCALE_ROWS == 1 ? TILE : 1;  // rows of scales of the 16 rows: one block's, or 16

    stream_t<F::BYTES, F::GRAIN, F::ALIGNED, TILE> codes;
    stream_t<F::SCALE_BYTES, 1, false, SCALE_TILE> scales;
    int chunks, lane;
    u8* stages;

    __device__ __forceinline__ ring_t(const u8* w, const u8* scale, int K, int first_row, int N, u8* shared) {
        const i64 bytes = (i64)K * F::BYTES / F::ELEMS;
        codes.first = w + first_row * bytes;
        codes.row_bytes = (u32)bytes;
        codes.last = min(TILE, N - first_row) - 1;
        if constexpr (F::SCALE_BYTES > 0) {
            const i64 row = scale_row_bytes<F>(K);
            scales.first = scale + first_row / F::SCALE_ROWS * row;
            scales.row_bytes = (u32)row;
            scales.last = SCALE_TILE == 1 ? 0 : codes.last;
        }
        chunks = (K + F::ELEMS - 1) / F::ELEMS;
        lane = threadIdx.x & 31;
        stages = shared + (threadIdx.x >> 5) * (F::STAGES * STAGE_BYTES);
    }

    // Start copying a chunk of 16 rows into a stage.
    __device__ __forceinline__ void fetch(int stage, int chunk) const {
        if (chunk < chunks) {
            const u32 target = shared_address(stages + stage * STAGE_BYTES);
            codes.fetch(target, F::STRIDE, chunk, lane);
            if constexpr (F::SCALE_BYTES > 0) scales.fetch(target + SCALES_AT, F::STRIDE, chunk, lane);
        }
        copy_commit();
    }

    // Row r of a fetched chunk in shared memory.
    __device__ __forceinline__ chunk_t chunk_row(int stage, int chunk, int r) const {
        const u8* base = stages + stage * STAGE_BYTES;
        chunk_t c = {base + r * F::STRIDE + codes.head(codes.start(chunk, r)), nullptr};
        if constexpr (F::SCALE_BYTES > 0) {
            const int s = SCALE_TILE == 1 ? 0 : r;
            c.scales = base + s * F::STRIDE + SCALES_AT + scales.head(scales.start(chunk, s));
        }
        return c;
    }
};

// Add up the sums [WARPS][16 activation rows][SUM_STRIDE] (16 weight rows each) that the warps left in shared memory,
// apply the factor of the weight row where the format has one, add the bias, and store one value per thread: act_t, or
// float32 for `wide`.
template <typename F>
__device__ __forceinline__ void store_sums(const float* sums, const float* factors, const float* bias, void* y, int m0,
                                           int M, int n0, int N, int stride, int column, int wide) {
    const int m = threadIdx.x >> 4, n = threadIdx.x & 15;
    float v = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += sums[(i * TILE + m) * SUM_STRIDE + n];
    if (m0 + m >= M || n0 + n >= N) return;
    if (F::FACTOR) v *= factors[n0 + n];
    if (bias != nullptr) v += bias[n0 + n];
    const i64 at = (i64)(m0 + m) * stride + column + n0 + n;
    if (wide) {
        static_cast<float*>(y)[at] = v;
    } else {
        static_cast<act_t*>(y)[at] = from_float<act_t>(v);
    }
}
