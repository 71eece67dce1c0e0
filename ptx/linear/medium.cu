// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for some tens of rows m, weights in fragment order; with
// medium_sums.cu, which follows it. H200, 2026-11-25, 64 rows: 47 us for Q4_K 24576 x 4096, 27 us for Q6_K 4096 x 12288.
//
// staged: M rows of x as operands (stage.cuh); w: tiles of FORMAT (fragments.cuh), `tiles` of them per 16 rows; bias
// [N] float32 or null; y row-major with `stride` elements between rows, of y_type (0 float32, 1 f16, 2 bf16);
// parts [2 CTAs, M, ROWS] float32.
// The matrix is cut into units of ROWS rows and one block of 256 columns, ordered along the rows of the matrix: CTA c
// of a grid (CTAs, ceil(M / XROWS)) takes units c per .. + per - 1 for XROWS rows of x, so CTAs have equally much to do
// whatever the shape. It writes y where it had a whole group of ROWS rows, else its sums: of a group that it began to
// parts[2 c + 1], of one that another CTA began to parts[2 c].
// Each of eight warps multiplies TILES tiles of 16 rows of a unit with all its x. Units arrive by bulk copies, `stages`
// ahead, the first weights before the previous kernel has finished; the warp that is last done with a unit fetches the
// next into its place, so none waits for another.
// A tile is made float16 once for all rows of x: codes times scales, SHRINK times (exact where they have up to 11
// bits, else rounded once). Their products are summed in float32 over a block, then multiplied by the factors of rows
// of w and of x. The order of additions depends on N, K, FORMAT, TILES and `per`, on no row of x beside.
// Infinities and NaNs count as zero here; medium_sums.cu adds their share.
// Shared memory: dynamic, `stages` times a unit. Archs: sm_90 and up. Bytes moved: the weights once per XROWS rows.
#include "bulk.cuh"
#include "fragments.cuh"
#include "stage.cuh"

#define WARPS 8
#define ROWS (16 * TILES * WARPS)
#define COLUMNS (XROWS / 8)
#define X_GROUPS (XROWS / STAGE_ROWS)
#define MOST_STAGES 8

__device__ __forceinline__ u32 mul_halves(u32 a, u32 b) {
    u32 r;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(b));
    return r;
}
__device__ __forceinline__ u32 fma_halves(u32 a, u32 b, u32 c) {
    u32 r;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

typedef fragments_t F;
#define SPANS (32 / F::SPAN)

// Integers of 32 columns become SHRINK times integers times scales.
__device__ __forceinline__ void scale_codes(u32 (&a)[2][4], const float (&scale)[SPANS][2]) {
#pragma unroll
    for (int r = 0; r < 2; r++)
#pragma unroll
        for (int e = 0; e < SPANS; e++) {
            const u32 s = pack2<f16_t>(scale[e][r] * F::SHRINK, scale[e][r] * F::SHRINK);
            const u32 offset = mul_halves(s, 0xE400E400u);  // -1024 s, exact as s has 6 bits
#pragma unroll
            for (int i = e; i < 2; i += SPANS)
#pragma unroll
                for (int k = r; k < 4; k += 2)
                    a[i][k] = F::OFFSET ? fma_halves(a[i][k], s, offset) : mul_halves(a[i][k], s);
        }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    linear_medium(const u8* staged, const u8* w, const float* bias, void* y, float* parts, int M, int N, int tiles,
                  int per, int stages, int stride, int column, int y_type) {
    static_assert(F::SHRINK > 0.0f, "codes times scales of this format do not fit into float16");
    const int X_BYTES = block_bytes(STAGE_ROWS), UNIT_BYTES = X_GROUPS * X_BYTES + WARPS * TILES * F::BYTES;
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) u64 barriers[MOST_STAGES];
    __shared__ u32 returned[MOST_STAGES];  // how often a warp was done with a stage
    const int lane = threadIdx.x & 31, warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x >> 5, 0);
    const int g = lane >> 2, t = lane & 3;
    const int groups = (N + ROWS - 1) / ROWS, row_tiles = (N + 15) / 16, m0 = XROWS * blockIdx.y;
    const int first = blockIdx.x * per, count = min(per, groups * tiles - first);
    int group = first / tiles, b = first - group * tiles;
    const u32 filled = shared_address(barriers);
    int x_rows[X_GROUPS], x_bytes = 0;
#pragma unroll
    for (int v = 0; v < X_GROUPS; v++) {
        x_rows[v] = max(0, min(STAGE_ROWS, M - m0 - STAGE_ROWS * v));
        if (x_rows[v] > 0) x_bytes += block_bytes(x_rows[v]);
    }

    // A lane fetches a row tile of a unit, others the unit's blocks of x.
    auto fetch_weights = [&](int stage, int group, int b) {
        const u32 target = shared_address(shared) + stage * UNIT_BYTES + X_GROUPS * X_BYTES;
        if (lane == 0) barrier_expect(filled + 8 * stage, WARPS * TILES * F::BYTES + x_bytes);
        __syncwarp();
        if (lane < WARPS * TILES) {  // past the last row tile that one again: nothing stores its sums
            const int tile = min(group * (WARPS * TILES) + lane, row_tiles - 1);
            copy_bulk(target + lane * F::BYTES, w + ((i64)tile * tiles + b) * F::BYTES, F::BYTES, filled + 8 * stage);
        }
    };
    auto fetch_x = [&](int stage, int b) {
        const int v = lane - WARPS * TILES, rows = min(STAGE_ROWS, M - m0 - STAGE_ROWS * v);
        if (v >= 0 && v < X_GROUPS && rows > 0)
            copy_bulk(shared_address(shared) + stage * UNIT_BYTES + v * X_BYTES,
                      staged_block(staged, M, m0 + STAGE_ROWS * v, b, tiles), block_bytes(rows), filled + 8 * stage);
    };
    int next_group = group, next_b = b;  // of the unit that goes to the next stage that becomes free
    auto step = [&]() {
        if (++next_b == tiles) next_b = 0, next_group++;
    };
    if (threadIdx.x < MOST_STAGES) {
        returned[threadIdx.x] = 0;
        barrier_init(filled + 8 * threadIdx.x);
        copies_see_shared();
    }
    for (int s = 0; s < stages; s++)  // what is read in the place of rows past the last
#pragma unroll
        for (int v = 0; v < X_GROUPS; v++)
#pragma unroll
            for (int i = 0; i < X_BYTES; i += 16 * 32 * WARPS) {
                const int at = i + 16 * threadIdx.x;
                if (at < X_BYTES && (x_rows[v] == 0 || at >= block_bytes(x_rows[v])))
                    *reinterpret_cast<words4_t*>(shared + s * UNIT_BYTES + v * X_BYTES + at) = words4_t{};
            }
    __syncthreads();
    for (int s = 0; s < stages && s < count; s++) {
        if (warp == 0) fetch_weights(s, next_group, next_b);
        step();
    }
    pdl_launch();
    pdl_wait();
    if (warp == 0)
        for (int s = 0, x_b = b; s < stages && s < count; s++) {
            fetch_x(s, x_b);
            if (++x_b == tiles) x_b = 0;
        }

    const F form(tiles >> 31);
    int stage = 0, parity = 0;
    for (int done = 0; done < count; group++) {
        const int begin = b, end = min(tiles, b + count - done);
        float acc[TILES][COLUMNS][4] = {};
        for (; b < end; b++, done++) {
            const u8* unit = shared + stage * UNIT_BYTES;
            const u8* tile = unit + X_GROUPS * X_BYTES + warp * TILES * F::BYTES;
            float part[TILES][COLUMNS][4] = {};
            barrier_wait(filled + 8 * stage, parity);
            typename F::template scales_t<1> scales[TILES] = {
                {tile, lane},
#if TILES > 1
                {tile + F::BYTES, lane},
#endif
            };
#pragma unroll
            for (int q = 0; q < 4; q++) {
                typename F::codes_t codes[TILES];
#pragma unroll
                for (int p = 0; p < TILES; p++) codes[p] = F::take(tile + p * F::BYTES, lane, q);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int j = 2 * q + h;
                    u32 a[TILES][2][4];
                    float scale[TILES][SPANS][2];
#pragma unroll
                    for (int p = 0; p < TILES; p++) {
                        form.expand(codes[p], h, a[p]);
#pragma unroll
                        for (int e = 0; e < SPANS; e++) scales[p].get(form, j, e, scale[p][e]);
                        scale_codes(a[p], scale[p]);
                    }
                    // In the place of rows of x past the last, others are read or zeros: those columns of the sums are
                    // not stored.
#pragma unroll
                    for (int c = 0; c < COLUMNS; c++) {
                        const u8* of_x = unit + c / 4 * X_BYTES + j * 64 * x_rows[c / 4] + lane * 16;
                        const words4_t x = load_words4(of_x + c % 4 * 512);
#pragma unroll
                        for (int e = 0; e < 2; e++)
#pragma unroll
                            for (int p = 0; p < TILES; p++)
                                mma_16816<f16_t>(part[p][c], a[p][e], x.r[2 * e], x.r[2 * e + 1]);
                    }
                }
            }
            float d[TILES][2], low_d[TILES][2];
            u32 minima[TILES][4];
#pragma unroll
            for (int p = 0; p < TILES; p++) {
                F::factors(tile + p * F::BYTES, lane, d[p], low_d[p]);
                F::minima(tile + p * F::BYTES, lane, minima[p]);
#pragma unroll
                for (int r = 0; r < 2; r++) d[p][r] *= 1.0f / F::SHRINK;
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
                const int rows = x_rows[c / 4], m = 8 * (c % 4);
                const float* sides = reinterpret_cast<const float*>(unit + c / 4 * X_BYTES + 512 * rows) + m;
                const float power[2] = {fabsf(sides[8 * rows + 2 * t]), fabsf(sides[8 * rows + 2 * t + 1])};
#pragma unroll
                for (int p = 0; p < TILES; p++)
#pragma unroll
                    for (int o = 0; o < 4; o++)
                        acc[p][c][o] = fmaf(part[p][c][o] * d[p][o >> 1], power[o & 1], acc[p][c][o]);
                if constexpr (F::MINIMA) {
                    u32 high[2], rest[2];
#pragma unroll
                    for (int r = 0; r < 2; r++) {
                        const float sum = sides[(t + 4 * r) * rows + g];
                        high[r] = __float_as_uint(sum) & 0xFFFFE000u;  // what tf32 holds
                        rest[r] = __float_as_uint(sum - __uint_as_float(high[r]));
                    }
#pragma unroll
                    for (int p = 0; p < TILES; p++) {
                        float low[4] = {};
                        mma_1688_tf32(low, minima[p], high[0], high[1]);
                        mma_1688_tf32(low, minima[p], rest[0], rest[1]);
#pragma unroll
                        for (int o = 0; o < 4; o++)
                            acc[p][c][o] = fmaf(low[o] * low_d[p][o >> 1], power[o & 1], acc[p][c][o]);
                    }
                }
            }
            // The last warp to finish with a unit fetches another in its place.
            int before = 0;
            __syncwarp();
            if (lane == 0) {
                __threadfence_block();
                before = atomicAdd(&returned[stage], 1u);
                __threadfence_block();
            }
            if (done + stages < count && __shfl_sync(0xFFFFFFFFu, before, 0) % WARPS == WARPS - 1) {
                fetch_weights(stage, next_group, next_b);
                fetch_x(stage, next_b);
            }
            step();
            if (++stage == stages) stage = 0, parity ^= 1;
        }

        const bool whole = begin == 0 && end == tiles;
        float* sums = parts + (i64)(2 * blockIdx.x + (begin == 0)) * M * ROWS;
        const int r0 = warp * TILES * 16 + g;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int o = 0; o < 2; o++) {
                const int m = m0 + 8 * c + 2 * t + o;
                if (m >= M) continue;
#pragma unroll
                for (int i = 0; i < 2 * TILES; i++) {
                    const int r = r0 + 8 * i, n = group * ROWS + r;
                    const float v = acc[i >> 1][c][(i & 1) * 2 + o];
                    if (!whole) {
                        sums[(i64)m * ROWS + r] = v;
                    } else if (n < N) {
                        store_as(y, (i64)m * stride + column + n, bias == nullptr ? v : v + bias[n], y_type);
                    }
                }
            }
        b = 0;
    }
}
