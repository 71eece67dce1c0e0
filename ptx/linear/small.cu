// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for up to 16 rows m, weights in fragment order or dense.
//
// x [M, K] of x_type (1 f16, 2 bf16), and the same rows as `staged` operands (stage.cuh); w: tiles of FORMAT
// (fragments.cuh), `tiles` of them per 16 rows, or a dense matrix [N, 256 tiles] (fragments_dense.cuh); bias [N] float32 or null; y row-major with `stride` elements between rows, of y_type
// (0 float32, 1 f16, 2 bf16).
// Grid: CTAs of WARPS warps; CTA c makes groups c, c + grid, ..., at most `turns`, of 16 TILES WARPS / split rows of the
// matrix, split = 2^split_log. So many warps share the tiles of a row: warp s takes tiles s, s + split, ...; the others take
// other rows. A warp makes 16 TILES rows of
// y for 8 COLUMNS rows of x.
// Weights arrive by bulk copies, AHEAD times TILES tiles ahead for each warp, over the borders of groups, and the first of
// them before the previous kernel has finished. The warp's blocks of x arrive the same way: once, if `depth` blocks hold
// all of them, else `depth` ahead. No warp waits for another but at the end of a group, where the sums of those warps meet
// in order. So the order of additions depends on K, FORMAT and split alone: a row's bits depend on no other row.
// A product has 8 columns. For fewer rows of x, SLOTS = 8 / XROWS sub-blocks of 32 columns of a tile share them: sub-block
// j multiplies its own columns and zeros elsewhere, so that sums of SLOTS sub-blocks wait side by side for their scales.
// Lanes t then apply the scales of different sub-blocks, to which the lanes of XROWS = 8 keep separate sums: whatever
// XROWS is, the sums of sub-blocks 2 i and 2 i + 1, over all tiles of a warp, are added up in a tree over i = 0..3.
// Products of codes and float16 values are exact and summed in float32; scales multiply the sums.
// A row with infinities or NaNs gets their share from scalar products at the end, so that they spread as IEEE says.
// Shared memory: dynamic, per warp AHEAD TILES tiles, `depth` blocks of x, and twice the sums.
// Archs: sm_90 and up. Bytes moved: the weights once.
#include "bulk.cuh"
#include "fragments.cuh"
#include "stage.cuh"

#define SUM_STRIDE 20  // floats between the sums of neighbouring activation rows: spreads a fragment over the banks
#define SUMS (TILES * COLUMNS * 8 * SUM_STRIDE)  // floats of a warp
#define COLUMNS (XROWS > 8 ? XROWS / 8 : 1)
#define SLOTS (XROWS > 8 ? 1 : 8 / XROWS)
#define ROUNDS (8 / SLOTS)                 // sub-blocks of a slot
#define PAIRS (SLOTS == 1 ? 4 : SLOTS == 2 ? 2 : 1)  // of sub-blocks that a lane has sums of
#define WIDTH (SLOTS == 8 ? 2 : 4)         // sums of a pair: rows g and g + 8, for one or two rows of x
#define SPANS (32 / F::SPAN)
#define MOST_BLOCKS 16

extern "C" __global__ void __launch_bounds__(32 * WARPS, CTAS)
    linear_small(const void* x, const u8* staged, const u8* w, const float* bias, void* y, int M, int N, int K, int tiles,
                 int turns, int depth, int split_log, int stride, int column, int x_type, int y_type) {
    typedef fragments_t F;
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) u64 barriers[WARPS][AHEAD + MOST_BLOCKS];
    __shared__ u32 odd[16];  // rows of x with infinities or NaNs
    const int lane = threadIdx.x & 31, warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x >> 5, 0), g = lane >> 2, t = lane & 3;
    const int split = 1 << split_log, rows_log = TILES + (WARPS == 16 ? 7 : 6) - split_log;  // log2 of rows of a group
    const int share = warp & (split - 1), row_tiles = (N + 15) / 16, groups = (N + (1 << rows_log) - 1) >> rows_log;
    const int own = (tiles - share + split - 1) >> split_log;  // of the blocks of columns
    const int total = own * (turns - ((int)blockIdx.x + (turns - 1) * (int)gridDim.x >= groups));
    const int size = block_bytes(M);
    u8* ring = shared + warp * (AHEAD * TILES * F::BYTES);
    u8* blocks = shared + WARPS * AHEAD * TILES * F::BYTES + warp * (depth * size);
    float* sums = reinterpret_cast<float*>(shared + WARPS * (AHEAD * TILES * F::BYTES + depth * size));
    const u32 barrier = shared_address(barriers[warp]), arrived = barrier + 8 * AHEAD;
    const u32 ring_address = shared_address(ring), blocks_address = shared_address(blocks);

    // What lane 0 fetches next.
    int next = 0, next_block = 0, next_tile = ((int)blockIdx.x << (rows_log - 4)) + (warp >> split_log) * TILES;
    auto fetch = [&](int stage) {
        barrier_expect(barrier + 8 * stage, TILES * F::COPIED);
#pragma unroll
        for (int p = 0; p < TILES; p++)  // past the last row tile that one again: nothing stores its sums
            F::fetch(ring_address + (stage * TILES + p) * F::BYTES, w, min(next_tile + p, row_tiles - 1),
                     share + (next_block << split_log), tiles, N, barrier + 8 * stage);
        next++;
        if (++next_block == own) next_block = 0, next_tile += (int)gridDim.x << (rows_log - 4);
    };
    auto fetch_block = [&](int b, int slot) {
        barrier_expect(arrived + 8 * slot, size);
        copy_bulk(blocks_address + slot * size, staged + (i64)(share + (b << split_log)) * size, size, arrived + 8 * slot);
    };
    if (threadIdx.x < 16) odd[threadIdx.x] = 0;
    if (lane == 0) {
        for (int s = 0; s < AHEAD; s++) barrier_init(barrier + 8 * s);
        for (int s = 0; s < depth; s++) barrier_init(arrived + 8 * s);
        copies_see_shared();
        for (int s = 0; s < AHEAD && s < total; s++) fetch(s);
    }
    pdl_launch();
    __syncthreads();
    pdl_wait();
    if (lane == 0)
        for (int b = 0; b < depth && b < own && b < total; b++) fetch_block(b, b);

    const F form(tiles >> 31);
    // The lane as a column of B: a row of x and a slot. Its columns of C: rows c0 and c1 of x (c1 is another slot's c0 if
    // SLOTS = 8).
    const int of_x = 8 / SLOTS, own_slot = g / of_x;
    const int c0 = SLOTS == 8 ? 0 : 2 * t % of_x, c1 = SLOTS == 8 ? 0 : c0 + 1;
    int stage = 0, parity = 0, slot = 0, slot_parity = 0, i = 0, turn = 0;
    for (int group = blockIdx.x; group < groups; group += gridDim.x) {
        float acc[TILES][COLUMNS][PAIRS][WIDTH] = {};
        for (int b = 0; b < own; b++, i++) {
            const u8* block = ring + stage * TILES * F::BYTES;
            const u8* units = blocks + slot * size + t * 16;
            const float* sides = reinterpret_cast<const float*>(blocks + slot * size + 512 * M);
            barrier_wait(arrived + 8 * slot, slot_parity);

            words4_t v[SLOTS > 1 ? ROUNDS : 1];
            if (SLOTS > 1)
#pragma unroll
                for (int r = 0; r < ROUNDS; r++)
                    v[r] = load_words4(units + ((own_slot * ROUNDS + r) * M + min(g % of_x, M - 1)) * 64);
            float start[ROUNDS][2];  // of the sums of products
            if (F::OFFSET && SLOTS > 1)
#pragma unroll
                for (int r = 0; r < ROUNDS; r++) {
                    const int j = SLOTS == 8 ? 2 * t : 2 * t / of_x * ROUNDS + r;
                    start[r][0] = sides[j * M + min(c0, M - 1)];
                    start[r][1] = sides[(j + (SLOTS == 8)) * M + min(c1, M - 1)];
                }
            float part[TILES][SLOTS > 1 ? ROUNDS : 1][SPANS][4];
            barrier_wait(barrier + 8 * stage, parity);
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
                    const int j = 2 * q + h, round = SLOTS > 1 ? j % ROUNDS : 0;
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        words4_t x_unit;
                        if (SLOTS == 1) {
                            x_unit = load_words4(units + (j * M + min(8 * c + g, M - 1)) * 64);
                            if (F::OFFSET) {
                                start[j][0] = sides[j * M + min(8 * c + c0, M - 1)];
                                start[j][1] = sides[j * M + min(8 * c + c1, M - 1)];
                            }
                        } else {
#pragma unroll
                            for (int r = 0; r < 4; r++) x_unit.r[r] = own_slot == j / ROUNDS ? v[round].r[r] : 0u;
                        }
#pragma unroll
                        for (int p = 0; p < TILES; p++) {
                            if (SLOTS == 1 || j / ROUNDS == 0)
#pragma unroll
                                for (int e = 0; e < SPANS; e++)
#pragma unroll
                                    for (int r = 0; r < 4; r++)
                                        part[p][round][e][r] = F::OFFSET ? start[SLOTS == 1 ? j : round][r & 1] : 0.0f;
#pragma unroll
                            for (int e = 0; e < 2; e++)
                                F::multiply(part[p][round][e % SPANS], a[p][e], x_unit.r[2 * e], x_unit.r[2 * e + 1]);
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
                                    sum[o] = SLOTS == 8 ? fmaf(part[p][0][i][(2 * o + r) & 3], s[o & 1], sum[o])
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
            __syncwarp();
            if (lane == 0) {
                if (next < total) fetch(stage);
                if (depth < own && i + depth < total) fetch_block(b + depth < own ? b + depth : b + depth - own, slot);
            }
            if (++stage == AHEAD) stage = 0, parity ^= 1;
            if (++slot == (depth < own ? depth : own)) slot = 0, slot_parity ^= depth < own;
        }

        float* mine = sums + (turn * WARPS + warp) * SUMS;
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
                    const int x_row = SLOTS == 8 ? 0 : c0 + (o & 1), row = SLOTS == 8 ? o : o >> 1;
                    if (SLOTS == 1 || 2 * t < of_x) mine[((p * COLUMNS + c) * 8 + x_row) * SUM_STRIDE + g + 8 * row] = v;
                }
        __syncthreads();
        for (int o = threadIdx.x; o < M << rows_log; o += 32 * WARPS) {
            const int r = o & ((1 << rows_log) - 1), m = o >> rows_log, n = (group << rows_log) + r;
            if (n >= N) continue;
            const float* from = sums + (turn * WARPS + (r / (16 * TILES) << split_log)) * SUMS +
                                ((r / 16 % TILES * COLUMNS + m / 8) * 8 + m % 8) * SUM_STRIDE + r % 16;
            float v = 0.0f;
#pragma unroll 4
            for (int s = 0; s < split; s++) v += from[s * SUMS];
            if (odd[m])
                for (int k = 0; k < K; k++) {
                    const u16 bits = static_cast<const u16*>(x)[(i64)m * K + k];
                    const float value = x_type == 1 ? to_float(f16_t{bits}) : to_float(bf16_t{bits});
                    if ((__float_as_uint(value) & 0x7F800000u) != 0x7F800000u) continue;
                    float four[4];
                    F::stored_quad(w, n, k & ~3, tiles, four);
                    v += value * (k & 2 ? k & 1 ? four[3] : four[2] : k & 1 ? four[1] : four[0]);
                }
            if (bias != nullptr) v += bias[n];
            const i64 at = (i64)m * stride + column + n;
            if (y_type == 0) {
                static_cast<float*>(y)[at] = v;
            } else {
                static_cast<u16*>(y)[at] = y_type == 1 ? from_float<f16_t>(v).bits : from_float<bf16_t>(v).bits;
            }
        }
        turn ^= 1;
    }
}
