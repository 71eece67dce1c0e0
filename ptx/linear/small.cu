// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for up to 16 rows m, weights in fragment order or dense; one matrix
// or two in a launch.
//
// x [M, K] of x_type (1 f16, 2 bf16), and the same rows as `staged` operands (stage.cuh); w: tiles of FORMAT or of SECOND,
// as bit 0 of `second` says (fragments.cuh; a kernel of one format has both alike), `tiles` of them per 16 rows, or a dense
// matrix [N, 256 tiles] (fragments_dense.cuh); bias [N] float32 or null; y row-major with `stride` elements between rows, of
// y_type (0 float32, 1 f16, 2 bf16). The other matrix: what ends in 1, and bit 1 of `second`.
// Grid: CTAs of up to WARPS warps, from `first1` on for the other matrix. Of one's CTAs c makes groups c, c + their number,
// ..., at most `turns`, of 2^rows_log = 16 TILES warps / split rows of the matrix, split = 2^split_log. So many warps share
// the tiles of a row: warp s takes tiles s, s + split, ...; the others take other rows. A warp makes 16 TILES rows of
// y for 8 COLUMNS rows of x.
// Weights arrive by bulk copies, `ahead` times TILES tiles ahead for each warp, over the borders of groups, and the first of
// them before the previous kernel has finished. The warp's blocks of x arrive the same way: once, if `depth` blocks hold
// all of them, else `depth` ahead. No warp waits for another but at the end of a group, where the sums of those warps meet
// in order. So the order of additions depends on K, FORMAT and split alone: a row's bits depend on no other row.
// Products: warp_tiles.cuh.
// A row with infinities or NaNs gets their share from scalar products at the end, so that they spread as IEEE says.
// Shared memory: dynamic, per warp `ahead` TILES tiles, `depth` blocks of x, and twice the sums.
// Archs: sm_90 and up. Bytes moved: the weights once.
#include "bulk.cuh"
#include "warp_tiles.cuh"

#define SUM_STRIDE 20  // floats between the sums of neighbouring activation rows: spreads a fragment over the banks
#define SUMS (TILES * COLUMNS * 8 * SUM_STRIDE)  // floats of a warp
#define MOST_BLOCKS 16
#define MOST_AHEAD 2

typedef with_source<PASTE(SECOND, _fragments)>::type second_t;

struct statics_t {
    u64 barriers[WARPS][MOST_AHEAD + MOST_BLOCKS];
    u32 odd[16];  // rows of x with infinities or NaNs
};

// One of two parameters, each loaded from its own place: not the parameter of a chosen place.
template <typename T> __device__ __forceinline__ T picked(bool other, T b, T a) {
    asm("" : "+r"(a));
    return other ? b : a;
}
template <typename T> __device__ __forceinline__ T* picked(bool other, T* b, T* a) {
    asm("" : "+l"(a));
    return other ? b : a;
}

// The matrix of a CTA, which is number `cta` of `ctas`, and what all have in common. What only the end needs is chosen there.
struct task_t {
    bool other;
    const u8* w;
    const float *bias, *bias1;
    int N, turns, ahead, column, column1, cta, ctas;
    const void* x;
    const u8* staged;
    void* y;
    int M, K, tiles, depth, split_log, rows_log, stride, x_type, y_type;
};

template <typename F> __device__ __forceinline__ void multiply(const task_t& task, statics_t& statics, u8* shared) {
    const int M = task.M, N = task.N, turns = task.turns, ahead = task.ahead, cta = task.cta, ctas = task.ctas;
    const int tiles = task.tiles, depth = task.depth, split_log = task.split_log, rows_log = task.rows_log;
    const int lane = threadIdx.x & 31, warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x >> 5, 0);
    const int split = 1 << split_log, warps = blockDim.x >> 5;
    const int share = warp & (split - 1), row_tiles = (N + 15) / 16, groups = (N + (1 << rows_log) - 1) >> rows_log;
    const int own = (tiles - share + split - 1) >> split_log;  // of the blocks of columns
    const int total = own * (turns - (cta + (turns - 1) * ctas >= groups));
    const int size = block_bytes(M);
    u8* ring = shared + warp * (ahead * TILES * F::BYTES);
    u8* blocks = shared + warps * ahead * TILES * F::BYTES + warp * (depth * size);
    float* sums = reinterpret_cast<float*>(shared + warps * (ahead * TILES * F::BYTES + depth * size));
    const u32 barrier = shared_address(statics.barriers[warp]), arrived = barrier + 8 * MOST_AHEAD;
    const u32 ring_address = shared_address(ring), blocks_address = shared_address(blocks);

    // What lane 0 fetches next.
    int next = 0, next_block = 0, next_tile = (cta << (rows_log - 4)) + (warp >> split_log) * TILES;
    auto fetch = [&](int stage) {
        barrier_expect(barrier + 8 * stage, TILES * F::COPIED);
#pragma unroll
        for (int p = 0; p < TILES; p++)  // past the last row tile that one again: nothing stores its sums
            F::fetch(ring_address + (stage * TILES + p) * F::BYTES, task.w, min(next_tile + p, row_tiles - 1),
                     share + (next_block << split_log), tiles, N, barrier + 8 * stage);
        next++;
        if (++next_block == own) next_block = 0, next_tile += ctas << (rows_log - 4);
    };
    auto fetch_block = [&](int b, int slot) {
        barrier_expect(arrived + 8 * slot, size);
        copy_bulk(blocks_address + slot * size, task.staged + (i64)(share + (b << split_log)) * size, size,
                  arrived + 8 * slot);
    };
    if (threadIdx.x < 16) statics.odd[threadIdx.x] = 0;
    if (lane == 0) {
#pragma unroll 1
        for (int s = 0; s < ahead; s++) barrier_init(barrier + 8 * s);
#pragma unroll 1
        for (int s = 0; s < depth; s++) barrier_init(arrived + 8 * s);
        copies_see_shared();
#pragma unroll 1
        for (int s = 0; s < ahead && s < total; s++) fetch(s);
    }
    pdl_launch();
    __syncthreads();
    pdl_wait();
    if (lane == 0)
#pragma unroll 1
        for (int b = 0; b < depth && b < own && b < total; b++) fetch_block(b, b);

    const warp_tiles<F> product(tiles >> 31, lane, M);
    int stage = 0, parity = 0, slot = 0, slot_parity = 0, i = 0, turn = 0;
#pragma unroll 1
    for (int group = cta; group < groups; group += ctas) {
        typename warp_tiles<F>::sums_t acc = {};
#pragma unroll 1
        for (int b = 0; b < own; b++, i++) {
            barrier_wait(arrived + 8 * slot, slot_parity);

            product.multiply(ring + stage * TILES * F::BYTES, blocks + slot * size, statics.odd, acc,
                             [&] { barrier_wait(barrier + 8 * stage, parity); });
            __syncwarp();
            if (lane == 0) {
                if (next < total) fetch(stage);
                if (depth < own && i + depth < total) fetch_block(b + depth < own ? b + depth : b + depth - own, slot);
            }
            if (++stage == ahead) stage = 0, parity ^= 1;
            if (++slot == (depth < own ? depth : own)) slot = 0, slot_parity ^= depth < own;
        }

        float* mine = sums + (turn * warps + warp) * SUMS;
        product.finish(acc, [&](int p, int m, int r, float v) {
            mine[((p * COLUMNS + m / 8) * 8 + m % 8) * SUM_STRIDE + r] = v;
        });
        __syncthreads();
        const float* bias = picked(task.other, task.bias1, task.bias);
        const int column = picked(task.other, task.column1, task.column);
#pragma unroll(XROWS > 1 ? 2 : 1)
        for (int o = threadIdx.x; o < M << rows_log; o += blockDim.x) {
            const int r = o & ((1 << rows_log) - 1), m = o >> rows_log, n = (group << rows_log) + r;
            if (n >= N) continue;
            const float* from = sums + (turn * warps + (r / (16 * TILES) << split_log)) * SUMS +
                                ((r / 16 % TILES * COLUMNS + m / 8) * 8 + m % 8) * SUM_STRIDE + r % 16;
            float v = 0.0f;
#pragma unroll 4
            for (int s = 0; s < split; s++) v += from[s * SUMS];
            if (statics.odd[m]) v += share_of_odd<F>(task.x, task.x_type, m, task.K, task.w, tiles, n);
            if (bias != nullptr) v += bias[n];
            store_as(task.y, (i64)m * task.stride + column + n, v, task.y_type);
        }
        turn ^= 1;
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    linear_small(const void* x, const u8* staged, const u8* w, const u8* w1, const float* bias, const float* bias1, void* y,
                 int M, int N, int N1, int K, int tiles, int turns, int turns1, int ahead, int ahead1, int column, int column1,
                 int first1, int second, int depth, int split_log, int rows_log, int stride, int x_type, int y_type) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) statics_t statics;
    const bool mixed = !same_type<fragments_t, second_t>::value, other = mixed && (int)blockIdx.x >= first1;
    const task_t task = {other, picked(other, w1, w), bias, bias1, picked(other, N1, N), picked(other, turns1, turns),
                         picked(other, ahead1, ahead), column, column1, (int)blockIdx.x - (other ? first1 : 0),
                         mixed && !other ? first1 : (int)gridDim.x - (mixed ? first1 : 0), x, staged, y, M, K, tiles,
                         depth, split_log, rows_log, stride, x_type, y_type};
    if (mixed && second >> (int)other & 1)
        multiply<second_t>(task, statics, shared);
    else
        multiply<fragments_t>(task, statics, shared);
}
