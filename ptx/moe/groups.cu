// Grouped matrix products of routed experts for many tokens, on tensor cores, straight from stored weights.
//
// Places are pairs of (token, slot) sorted by expert (sort.cu): order [P], offsets [E + 1], tiles [B] of TILE_M places.
// w [E N, K] FORMAT: blocks exactly as in the file, or codes with `scales` and `factors` [E N] (blocks.cuh; null where
// the format has none), or (TILED) in fragment order (fragments.cuh), N and I multiples of 16. K is a multiple of 8, x
// 16-byte aligned.
// mode GATE:  x [T, K] at token order[p] / top; N = 2 I: y [P, I] ACT = silu(gate) * up of each place.
// mode DOWN:  x [P, K] by place; y float32 [P, N], at row order[p].
// mode PLAIN: x [T, K] at token order[p] / top; y float32 [P, stride] by place, from column `column`.
// Grid: (ceil(I / 64) for GATE, else ceil(N / 128), B); tiles beyond the last return at once. 256 threads make
// TILE_M x 128 products; in GATE the 128 are 64 of gate and 64 of up, 8 by 8, so that a thread holds both.
// K advances by 32. Raw rows of w and rows of x arrive by cp.async (two parts, three stages); a step ahead of the
// products every warp dequantises 16 rows to ACT (exactly to float32, one rounding) into one of two tiles. The order of
// additions depends on K alone: a row's bits depend neither on its neighbours nor on TILE_M.
// Shared memory: dynamic, 3 stages x TILE_M rows and 2 tiles x 128 rows of 64 bytes, and 2 parts x 128 rows of raw
// weights (up to 96 KiB). The 16-byte unit c of row r lies at c ^ (r / 2) % 4, so that the eight rows of an ldmatrix
// hit all banks once.
// Archs: all. Bytes moved: an expert's weights once per TILE_M places (L2 serves repeats), x N/128 times through L2, y
// once. Compiled, not yet measured.
#include "parts.cuh"

#define GATE 0
#define DOWN 1
#define PLAIN 2
#define TILE_N 128
#define STAGES 3
#define ROW_BYTES 64
#define STAGE_BYTES (TILE_M * ROW_BYTES)
#define TILE_BYTES (TILE_N * ROW_BYTES)
#define UNITS ((TILE_M * 4 + 255) / 256)  // 16-byte units of a stage that a thread copies
#define WARPS_M (TILE_M >= 64 ? 2 : 1)
#define WARP_M (TILE_M / WARPS_M)
#define WARP_N (TILE_N * WARPS_M / 8)
#define TILES_M (WARP_M / 16)
#define TILES_N (WARP_N / 8)

struct __align__(8) tile_t { int expert, first; };
struct __align__(8) floats2_t { float a, b; };

__device__ __forceinline__ u32 tile_address(u32 base, int r, int c) {
    return base + r * ROW_BYTES + ((c ^ ((r >> 1) & 3)) << 4);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    moe_groups(const act_t* x, const u8* w, const u8* scales, const float* factors, const int* order,
               const int* offsets, const tile_t* tiles, void* y, int N, int K, int top, int mode, int stride,
               int column) {
#ifdef TILED
    const bool FACTOR = false;  // multiplied into every weight
#else
    const bool FACTOR = format_t::FACTOR;
#endif
    extern __shared__ __align__(16) u8 shared[];
    const u32 stages = shared_address(shared), weights = stages + STAGES * STAGE_BYTES;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int mw = warp / (8 / WARPS_M) * WARP_M, nw = warp % (8 / WARPS_M) * WARP_N;
    const int I = mode == GATE ? N / 2 : N, n0 = blockIdx.x * (mode == GATE ? TILE_N / 2 : TILE_N);
    const int steps = (K + 31) / 32;
    pdl_launch();
    pdl_wait();
    const tile_t tile = tiles[blockIdx.y];
    if (tile.expert < 0) return;
    const int end = min(offsets[tile.expert + 1], tile.first + TILE_M);  // of the tile's places

    // The warp's 16 weight rows, and where they go in the tile of weights.
    const bool upper = mode == GATE && warp >= 4;
    const int local = mode == GATE ? 16 * (warp & 3) : 16 * warp;
    const int base = tile.expert * N + (upper ? I : 0);
    weights_t parts(w, scales, K, base + min(n0 + local, I - 1), base + I,
                     shared + STAGES * STAGE_BYTES + 2 * TILE_BYTES + warp * PARTS * weights_t::PART_BYTES);
    const int target0 = mode == GATE ? 2 * local + 8 * upper + g : local + g;
    const int target1 = mode == GATE ? target0 + 16 : target0 + 8;
    const auto dequantise = [&](int step) {
        u32 r0[4], r1[4];
        parts.take(step, r0, r1);
        const u32 tile_w = weights + (step & 1) * TILE_BYTES;
        *reinterpret_cast<words4_t*>(shared + (tile_address(tile_w, target0, t) - stages)) =
            {{r0[0], r0[1], r0[2], r0[3]}};
        *reinterpret_cast<words4_t*>(shared + (tile_address(tile_w, target1, t) - stages)) =
            {{r1[0], r1[1], r1[2], r1[3]}};
    };

    // The rows of x that this thread copies: null past the last place.
    const act_t* rows[UNITS];
#pragma unroll
    for (int i = 0; i < UNITS; i++) {
        const int unit = threadIdx.x + 256 * i, place = tile.first + (unit >> 2);
        const bool inside = place < end && unit < TILE_M * 4;
        const int row = !inside ? 0 : mode == DOWN ? place : order[place] / top;
        rows[i] = inside ? x + (i64)row * K : nullptr;
    }
    const auto fetch = [&](int step) {
        if (step >= steps) return;
#pragma unroll
        for (int i = 0; i < UNITS; i++) {
            const int unit = threadIdx.x + 256 * i, r = unit >> 2, c = unit & 3, k = 32 * step + 8 * c;
            if (TILE_M * 4 % 256 != 0 && unit >= TILE_M * 4) break;
            const bool inside = rows[i] != nullptr && k < K;
            copy_async_16(tile_address(stages + step % STAGES * STAGE_BYTES, r, c), inside ? rows[i] + k : x,
                          inside ? 16 : 0);
        }
    };

    parts.fetch(0);
    copy_commit();
    parts.fetch(1);
    fetch(0);
    copy_commit();
    copy_wait<1>();
    __syncwarp();
    dequantise(0);
    fetch(1);
    copy_commit();

    float acc[TILES_M][TILES_N][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_wait<1>();
        __syncthreads();
        fetch(step + 2);
        if (step + 1 < steps) dequantise(step + 1);
        copy_commit();
        const u32 tile_x = stages + step % STAGES * STAGE_BYTES, tile_w = weights + (step & 1) * TILE_BYTES;
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 a[TILES_M][4], b[TILES_N / 2][4];
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
                ldmatrix_x4(a[i], tile_address(tile_x, mw + 16 * i + (lane & 15), 2 * kk + (lane >> 4)));
#pragma unroll
            for (int j = 0; j < TILES_N / 2; j++)
                ldmatrix_x4(b[j], tile_address(tile_w, nw + 16 * j + (lane & 7) + ((lane >> 4) << 3),
                                               2 * kk + ((lane >> 3) & 1)));
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
#pragma unroll
                for (int j = 0; j < TILES_N; j++)
                    mma_16816<act_t>(acc[i][j], a[i], b[j >> 1][2 * (j & 1)], b[j >> 1][2 * (j & 1) + 1]);
        }
    }
    copy_wait<0>();

    const float* factor = FACTOR ? factors + (i64)tile.expert * N : nullptr;
    const bool even = ((stride | column) & 1) == 0;
#pragma unroll
    for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int place = tile.first + mw + 16 * i + 8 * h + g;
            if (place >= end) continue;
            const i64 at = (i64)(mode == DOWN ? order[place] : place) * stride + column;
            if (mode == GATE) {
#pragma unroll
                for (int j = 0; j < TILES_N; j += 2) {
                    const int n = n0 + (nw + 8 * j) / 2 + 2 * t;
                    float v[2];
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float gate = acc[i][j][2 * h + e], up = acc[i][j + 1][2 * h + e];
                        if (FACTOR && n + e < I) gate *= factor[n + e], up *= factor[I + n + e];
                        v[e] = __fdividef(gate, 1.0f + expf(-gate)) * up;
                    }
                    act_t* out = static_cast<act_t*>(y) + at + n;
                    if (even && n + 1 < I) {
                        *reinterpret_cast<u32*>(out) = pack2<act_t>(v[0], v[1]);
                    } else {
                        if (n < I) out[0] = from_float<act_t>(v[0]);
                        if (n + 1 < I) out[1] = from_float<act_t>(v[1]);
                    }
                }
            } else {
#pragma unroll
                for (int j = 0; j < TILES_N; j++) {
                    const int n = n0 + nw + 8 * j + 2 * t;
                    float v0 = acc[i][j][2 * h], v1 = acc[i][j][2 * h + 1];
                    if (FACTOR) {
                        if (n < N) v0 *= factor[n];
                        if (n + 1 < N) v1 *= factor[n + 1];
                    }
                    float* out = static_cast<float*>(y) + at + n;
                    if (even && n + 1 < N) {
                        *reinterpret_cast<floats2_t*>(out) = {v0, v1};
                    } else {
                        if (n < N) out[0] = v0;
                        if (n + 1 < N) out[1] = v1;
                    }
                }
            }
        }
}
