// How raw weights travel to a grouped matmul: 16 rows of a warp, in parts of a chunk (blocks.cuh), two parts under way.
//
// A part is a chunk, or half of one where a chunk is made of smaller blocks: two parts of 128 rows then fit beside the
// tiles of the product in 99 KiB. Only the warp that copied a part reads it.
#pragma once
#include "pairs.cuh"
#include "ring.cuh"

#define PARTS 2

template <typename F> struct halves { static const int DIVISOR = 1; };
template <typename T, int CHUNK> struct halves<dense_format<T, CHUNK>> { static const int DIVISOR = 2; };
template <> struct halves<q8_0_format> { static const int DIVISOR = 2; };
template <> struct halves<fp8_format> { static const int DIVISOR = 2; };
template <> struct halves<mxfp8_format> { static const int DIVISOR = 2; };
template <> struct halves<fp8_block_format> { static const int DIVISOR = 2; };

template <typename F> struct parts_t {
    static const int DIVISOR = halves<F>::DIVISOR;
    static const int ELEMS = F::ELEMS / DIVISOR, BYTES = F::BYTES / DIVISOR, SCALE_BYTES = F::SCALE_BYTES / DIVISOR;
    static const int SCALES_AT = (BYTES + 31) / 16 * 16;
    static const int STRIDE = DIVISOR == 1 ? F::STRIDE : SCALES_AT + (SCALE_BYTES > 0 ? (SCALE_BYTES + 30) / 16 * 16 : 0);
    static const int PART_BYTES = TILE * STRIDE;
    static const int SCALE_TILE = F::SCALE_ROWS == 1 ? TILE : 1;
    static const int STEPS = ELEMS / 32;  // steps of 32 elements

    stream_t<BYTES, F::GRAIN, F::ALIGNED, TILE> codes;
    stream_t<SCALE_BYTES, 1, false, SCALE_TILE> scales;
    int count, lane;
    u8* buffers;
    typename F::row_t row0, row1;

    // Rows first .. end - 1 of w, 16 at most; `buffers`: PARTS * PART_BYTES of this warp.
    __device__ __forceinline__ parts_t(const u8* w, const u8* scale, int K, int first, int end, u8* buffers)
        : buffers(buffers) {
        const i64 bytes = (i64)K * F::BYTES / F::ELEMS;
        codes.first = w + first * bytes;
        codes.row_bytes = (u32)bytes;
        codes.last = min(TILE, end - first) - 1;
        if constexpr (SCALE_BYTES > 0) {
            const i64 row = scale_row_bytes<F>(K);
            scales.first = scale + first / F::SCALE_ROWS * row;
            scales.row_bytes = (u32)row;
            scales.last = SCALE_TILE == 1 ? 0 : codes.last;
        }
        count = (K + ELEMS - 1) / ELEMS;
        lane = threadIdx.x & 31;
    }

    __device__ __forceinline__ void fetch(int part) const {
        if (part >= count) return;
        const u32 target = shared_address(buffers + part % PARTS * PART_BYTES);
        codes.fetch(target, STRIDE, part, lane);
        if constexpr (SCALE_BYTES > 0) scales.fetch(target + SCALES_AT, STRIDE, part, lane);
    }

    __device__ __forceinline__ chunk_t row_of(int part, int r) const {
        const u8* base = buffers + part % PARTS * PART_BYTES;
        chunk_t c = {base + r * STRIDE + codes.head(codes.start(part, r)), nullptr};
        if constexpr (SCALE_BYTES > 0) {
            const int s = SCALE_TILE == 1 ? 0 : r;
            c.scales = base + s * STRIDE + SCALES_AT + scales.head(scales.start(part, s));
        }
        return c;
    }

    // The 32 elements of step `step` of every row as ACT: lane (g, t) gets elements 8 t .. 8 t + 7 of rows g and g + 8.
    // Steps are to be taken in order. Behind the last step of a part the next but one is fetched in its place.
    __device__ __forceinline__ void take(int step, u32 (&r0)[4], u32 (&r1)[4]) {
        const int part = step / STEPS, j = step % STEPS, g = lane >> 2, t = lane & 3;
        const chunk_t c0 = row_of(part, g), c1 = row_of(part, g + 8);
        if (j == 0) {
            row0 = F::open(c0, t);
            row1 = F::open(c1, t);
        }
        weight_pairs<F>(row0, c0, j, t, r0);
        weight_pairs<F>(row1, c1, j, t, r1);
        if (j == STEPS - 1) {
            __syncwarp();
            fetch(part + PARTS);
        }
    }
};
