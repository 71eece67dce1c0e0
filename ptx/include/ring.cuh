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

template <typename F> struct ring_t {
    static const int STAGE_BYTES = TILE * F::STRIDE;
    static const int PIECES = F::ALIGNED ? F::BYTES / 16 : (F::BYTES + 29) / 16;

    const u8* weights;  // first of the 16 rows
    u32 row_bytes, last;
    int chunks, lane;
    u8* stages;

    __device__ __forceinline__ ring_t(const u8* w, int K, int first_row, int N, u8* shared) {
        const i64 bytes = (i64)K * F::BYTES / F::ELEMS;
        weights = w + first_row * bytes;
        row_bytes = (u32)bytes;
        last = min(TILE, N - first_row) - 1;
        chunks = (K + F::ELEMS - 1) / F::ELEMS;
        lane = threadIdx.x & 31;
        stages = shared + (threadIdx.x >> 5) * (F::STAGES * STAGE_BYTES);
    }

    // Where a chunk of row r begins, seen from `weights`. Rows past the last are read as the last: their results are
    // never stored.
    __device__ __forceinline__ u32 start(int chunk, u32 r) const {
        return min(r, last) * row_bytes + (u32)(chunk * F::BYTES);
    }
    __device__ __forceinline__ int head(u32 start) const {
        return F::ALIGNED ? 0 : (int)(((u32)(u64)weights + start) & 15);
    }

    // Start copying a chunk of 16 rows into a stage, in 16-byte units that cover it; bytes past the end of a row become
    // zeros.
    __device__ __forceinline__ void fetch(int stage, int chunk) const {
        if (chunk < chunks) {
            const u32 target = shared_address(stages + stage * STAGE_BYTES);
            const int end = (int)row_bytes - chunk * F::BYTES;  // of the row, seen from the chunk
#pragma unroll
            for (int i = 0; i < (TILE * PIECES + 31) / 32; i++) {
                const int unit = lane + 32 * i, r = unit / PIECES, c = unit % PIECES;
                if (TILE * PIECES % 32 != 0 && unit >= TILE * PIECES) break;
                const u32 from = start(chunk, r), to = target + r * F::STRIDE + 16 * c;
                if constexpr (F::ALIGNED) {
                    copy_async_16(to, weights + (from + 16 * c));
                } else {
                    const int skip = head(from), offset = 16 * c - skip;
                    if (offset >= F::BYTES) continue;
                    const int bytes = max(0, min(16, end - offset));
                    copy_async_16(to, weights + (i64)from + (bytes > 0 ? offset : -skip), bytes);
                }
            }
        }
        copy_commit();
    }

    // Row r of a fetched chunk in shared memory.
    __device__ __forceinline__ const u8* chunk_row(int stage, int chunk, int r) const {
        return stages + stage * STAGE_BYTES + r * F::STRIDE + head(start(chunk, r));
    }
};

// Add up the sums [WARPS][16 activation rows][SUM_STRIDE] (16 weight rows each) that the warps left in shared memory,
// add the bias, and store one value per thread: act_t, or float32 for `wide`.
__device__ __forceinline__ void store_sums(const float* sums, const float* bias, void* y, int m0, int M, int n0, int N,
                                           int stride, int column, int wide) {
    const int m = threadIdx.x >> 4, n = threadIdx.x & 15;
    float v = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) v += sums[(i * TILE + m) * SUM_STRIDE + n];
    if (m0 + m >= M || n0 + n >= N) return;
    if (bias != nullptr) v += bias[n0 + n];
    const i64 at = (i64)(m0 + m) * stride + column + n0 + n;
    if (wide) {
        static_cast<float*>(y)[at] = v;
    } else {
        static_cast<act_t*>(y)[at] = from_float<act_t>(v);
    }
}
