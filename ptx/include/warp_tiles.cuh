// The product of a warp: TILES tiles of 16 rows of weights in fragment order (fragments.cuh) by XROWS rows of staged
// activations (stage.cuh), block of 256 columns by block. A source defines both numbers before it includes this.
//
// A product has 8 columns. For fewer rows of x, SLOTS = 8 / XROWS sub-blocks of 32 columns of a tile share them: sub-block
// j multiplies its own columns and zeros elsewhere, so that sums of SLOTS sub-blocks wait side by side for their scales.
// Lanes t then apply the scales of different sub-blocks, to which the lanes of XROWS = 8 keep separate sums: whatever
// XROWS is, the sums of sub-blocks 2 i and 2 i + 1, over all tiles of a warp, are added up in a tree over i = 0..3.
// Products of codes and float16 values are exact and summed in float32; scales multiply the sums.
#pragma once
#include "fragments.cuh"
#include "stage.cuh"

#define COLUMNS (XROWS > 8 ? XROWS / 8 : 1)
#define SLOTS (XROWS > 8 ? 1 : 8 / XROWS)
#define ROUNDS (8 / SLOTS)                 // sub-blocks of a slot
#define PAIRS (SLOTS == 1 ? 4 : SLOTS == 2 ? 2 : 1)  // of sub-blocks that a lane has sums of
#define WIDTH (SLOTS == 8 ? 2 : 4)         // sums of a pair: rows g and g + 8, for one or two rows of x
#define SPANS (32 / F::SPAN)
// Sums of products at a time, each of every CHAINS-th sub-block. Columns 2 t and 2 t + 1 of SLOTS = 8 take nothing from
// each other: they may be two sums, so that not every product waits for the one before.
#define CHAINS (SLOTS == 8 ? 1 + (TILES * SPANS == 1) : SLOTS > 1 ? ROUNDS : 1)

template <typename F> struct warp_tiles {
    typedef float sums_t[TILES][COLUMNS][PAIRS][WIDTH];
    static const int of_x = 8 / SLOTS;
    const F form;
    const int lane, g, t, M;
    // The lane as a column of B: a row of x and a slot. Its columns of C: rows c0 and c1 of x (c1 is another slot's c0 if
    // SLOTS = 8).
    const int c0, c1;
    int place[8];  // in a staged block, of the lane's unit of a sub-block: zeros where it is another slot's

    // `zero`: see `opaque`; M rows of x.
    __device__ __forceinline__ warp_tiles(int zero, int lane, int M)
        : form(zero), lane(lane), g(lane >> 2), t(lane & 3), M(M), c0(SLOTS == 8 ? 0 : 2 * t % of_x),
          c1(SLOTS == 8 ? 0 : c0 + 1) {
#pragma unroll
        for (int j = 0; j < 8; j++)
            place[j] = opaque(g / of_x == j / ROUNDS ? (j * M + min(g % of_x, M - 1)) * 64 + t * 16 : block_bytes(M) - 16,
                              zero);  // in a register: making it anew would be a tenth of a product's instructions
    }

    // Add the product of the tiles at `block` and the staged `rows`, both in shared memory. `wait` returns when the tiles
    // are there. odd[m] becomes 1 where row m of x has infinities or NaNs.
    template <typename Wait>
    __device__ __forceinline__ void multiply(const u8* block, const u8* rows, u32* odd, sums_t& acc,
                                             const Wait& wait) const {
        const float* sides = reinterpret_cast<const float*>(rows + 512 * M);
        float start[ROUNDS][2];  // of the sums of products
        if (F::OFFSET && SLOTS > 1)
#pragma unroll
            for (int r = 0; r < ROUNDS; r++) {
                const int j = SLOTS == 8 ? 2 * t : 2 * t / of_x * ROUNDS + r;
                start[r][0] = sides[j * M + min(c0, M - 1)];
                start[r][1] = sides[(j + (SLOTS == 8)) * M + min(c1, M - 1)];
            }
        float part[TILES][CHAINS][SPANS][4];
        wait();
        float d[TILES][2], e[TILES][2], power[COLUMNS][2];
#pragma unroll
        for (int p = 0; p < TILES; p++) F::factors(block + p * F::BYTES, lane, d[p], e[p]);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const int m = min(8 * c + (r == 0 ? c0 : c1), M - 1);
                power[c][r] = sides[8 * M + m];
                if (power[c][r] < 0.0f) odd[m] = 1;
                power[c][r] = fabsf(power[c][r]);
            }
        auto settle = [&](int p, int c, int pair, const float(&sum)[WIDTH]) {
#pragma unroll
            for (int o = 0; o < WIDTH; o++)
                acc[p][c][pair][o] = fmaf(sum[o] * d[p][SLOTS == 8 ? o : o >> 1], power[c][SLOTS == 8 ? 0 : o & 1],
                                          acc[p][c][pair][o]);
        };
        typename F::template scales_t<SLOTS> scales[TILES] = {
#define SCALES(p) {block + (p) * F::BYTES, lane}
            SCALES(0),
#if TILES > 1
            SCALES(1),
#endif
#if TILES > 2
            SCALES(2),
#endif
        };
#pragma unroll
        for (int q = 0; q < 4; q++) {
            float sum[TILES][COLUMNS][WIDTH] = {};  // of the pair, where SLOTS = 1
            typename F::codes_t codes[TILES];
#pragma unroll
            for (int p = 0; p < TILES; p++) codes[p] = F::take(block + p * F::BYTES, lane, q);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                u32 a[TILES][2][4];
#pragma unroll
                for (int p = 0; p < TILES; p++) form.expand(codes[p], h, a[p]);
                const int j = 2 * q + h, round = SLOTS > 1 ? j % ROUNDS : 0, chain = j % CHAINS;
#pragma unroll
                for (int c = 0; c < COLUMNS; c++) {
                    const words4_t x_unit = load_words4(
                        rows + (SLOTS > 1 ? place[j] : (j * M + min(8 * c + g, M - 1)) * 64 + t * 16));
                    if (F::OFFSET && SLOTS == 1) {
                        start[j][0] = sides[j * M + min(8 * c + c0, M - 1)];
                        start[j][1] = sides[j * M + min(8 * c + c1, M - 1)];
                    }
#pragma unroll
                    for (int p = 0; p < TILES; p++) {
                        if (j < CHAINS || SLOTS == 1)
#pragma unroll
                            for (int e = 0; e < SPANS; e++)
#pragma unroll
                                for (int r = 0; r < 4; r++)
                                    part[p][chain][e][r] = F::OFFSET && (SLOTS < 8 || CHAINS == 1 || (r & 1) == chain)
                                                               ? start[SLOTS == 1 ? j : round][r & 1] : 0.0f;
#pragma unroll
                        for (int e = 0; e < 2; e++)
                            F::multiply(part[p][chain][e % SPANS], a[p][e], x_unit.r[2 * e], x_unit.r[2 * e + 1]);
                        if (SLOTS == 1)
#pragma unroll
                            for (int e = 0; e < SPANS; e++) {
                                float s[2];
                                scales[p].get(form, j, e, s);
#pragma unroll
                                for (int r = 0; r < 4; r++)
                                    sum[p][c][r % WIDTH] = fmaf(part[p][0][e][r], s[r >> 1], sum[p][c][r % WIDTH]);
                            }
                    }
                }
            }
            if (SLOTS == 1)
#pragma unroll
                for (int p = 0; p < TILES; p++)
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) settle(p, c, q % PAIRS, sum[p][c]);
        }
        if (SLOTS > 1)
#pragma unroll
            for (int p = 0; p < TILES; p++)
#pragma unroll
                for (int k = 0; k < PAIRS; k++) {
                    float sum[WIDTH] = {};
#pragma unroll
                    for (int r = 2 * k; r < 2 * k + 2; r++)
#pragma unroll
                        for (int i = 0; i < SPANS; i++) {
                            float s[2];
                            scales[p].get(form, r, i, s);
#pragma unroll
                            for (int o = 0; o < WIDTH; o++)
                                sum[o] = SLOTS == 8 ? fmaf(part[p][r % CHAINS][i][(2 * o + r) & 3], s[o & 1], sum[o])
                                                    : fmaf(part[p][r % ROUNDS][i][o], s[o >> 1], sum[o]);
                        }
                    settle(p, 0, k, sum);
                }
        if (F::MINIMA)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const float* s = sides + min(8 * c + g % of_x, M - 1);
                u32 high[2], rest[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const float x_sum = s[(t + 4 * r) * M];
                    high[r] = __float_as_uint(x_sum) & 0xFFFFE000u;  // what tf32 holds
                    rest[r] = __float_as_uint(x_sum - __uint_as_float(high[r]));
                }
#pragma unroll
                for (int p = 0; p < TILES; p++) {
                    u32 a[4];
                    float low[4] = {};
                    F::minima(block + p * F::BYTES, lane, a);
                    mma_1688_tf32(low, a, high[0], high[1]);
                    mma_1688_tf32(low, a, rest[0], rest[1]);
                    if (SLOTS > 1 && 2 * t >= of_x) continue;  // once, where the first pair is
#pragma unroll
                    for (int o = 0; o < WIDTH; o++)
                        acc[p][c][0][o] = fmaf(low[SLOTS == 8 ? 2 * o : o] * e[p][SLOTS == 8 ? o : o >> 1],
                                               power[c][SLOTS == 8 ? 0 : o & 1], acc[p][c][0][o]);
                }
            }
    }

    // The sums of a warp, added up over its lanes: `put(p, m, r, v)` takes that of row r of tile p and row m of x.
    template <typename Put> __device__ __forceinline__ void finish(const sums_t& acc, const Put& put) const {
#pragma unroll
        for (int p = 0; p < TILES; p++)
#pragma unroll
            for (int c = 0; c < COLUMNS; c++)
#pragma unroll
                for (int o = 0; o < WIDTH; o++) {
                    float v = acc[p][c][0][o];
                    if (PAIRS == 4) {
                        v = (v + acc[p][c][1 % PAIRS][o]) + (acc[p][c][2 % PAIRS][o] + acc[p][c][3 % PAIRS][o]);
                    } else {
                        if (PAIRS == 2) v += acc[p][c][1 % PAIRS][o];
                        if (PAIRS == 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
                        v += __shfl_xor_sync(0xFFFFFFFFu, v, 2);
                    }
                    if (SLOTS == 1 || 2 * t < of_x)
                        put(p, 8 * c + (SLOTS == 8 ? 0 : c0 + (o & 1)), g + 8 * (SLOTS == 8 ? o : o >> 1), v);
                }
    }
};
