// How raw weights travel to a grouped matmul: 16 rows of a warp, in parts of a chunk (blocks.cuh), two parts under way.
//
// A part is a chunk, or half of one where a chunk is made of smaller blocks: two parts of 128 rows then fit beside the
// tiles of the product in 99 KiB. Only the warp that copied a part reads it. With the macro TILED weights lie in fragment
// order, as whole tiles of rows.
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

#ifdef TILED
#include "fragments.cuh"

// The same of weights in fragment order: a part is a tile of 16 rows and 256 columns.
template <typename F> struct tile_parts_t {
    static const int PART_BYTES = F::BYTES, STEPS = F::COLS / 32;

    const u8* tiles;
    int count, lane;
    u8* buffers;

    // The 16 rows of the tile that holds row `first`.
    __device__ __forceinline__ tile_parts_t(const u8* w, const u8*, int K, int first, int, u8* buffers)
        : tiles(w + (i64)(first / 16) * (K / F::COLS) * F::BYTES), count(K / F::COLS), lane(threadIdx.x & 31),
          buffers(buffers) {}

    __device__ __forceinline__ void fetch(int part) const {
        if (part >= count) return;
        const u32 target = shared_address(buffers + part % PARTS * PART_BYTES);
        for (int i = 16 * lane; i < PART_BYTES; i += 512) copy_async_16(target + i, tiles + (i64)part * PART_BYTES + i);
    }

    __device__ __forceinline__ void take(int step, u32 (&r0)[4], u32 (&r1)[4]) const {
        const int part = step / STEPS, j = step % STEPS, g = lane >> 2, k = 32 * j + 8 * (lane & 3);
        const u8* tile = buffers + part % PARTS * PART_BYTES;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float w0[4], w1[4];
            F::quad(tile, g, k + 4 * h, w0);
            F::quad(tile, g + 8, k + 4 * h, w1);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                r0[2 * h + i] = pack2<act_t>(w0[2 * i], w0[2 * i + 1]);
                r1[2 * h + i] = pack2<act_t>(w1[2 * i], w1[2 * i + 1]);
            }
        }
        if (j == STEPS - 1) {
            __syncwarp();
            fetch(part + PARTS);
        }
    }
};
typedef tile_parts_t<fragments_t> weights_t;
#elif defined(FORMAT)
typedef parts_t<format_t> weights_t;
#endif
