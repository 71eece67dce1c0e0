// Products of routed experts for some tens to hundreds of tokens, weights in fragment order: an expert's weights are read
// once for up to XROWS of its pairs. H200, 2026-11-25, 64 tokens of Qwen3-30B-A3B: 86 us for gate and up of Q4_K
// (2.6 TB/s), 51 us for down of Q6_K (3.3).
//
// Pairs of (token, slot) lie sorted by expert, each expert's from a multiple of XROWS on (sort.cu, moe_places): `groups` of
// XROWS places, which `staged` holds as operands (stage.cu: blocks of XROWS rows, tiles(K) of them per group).
// w: a stack [E N, K] as tiles of FORMAT (fragments.cuh), expert e from row e N on; N is a multiple of 16, for gate of 32.
// MODE gate:  N = 2 I: y [places, I] ACT = silu(gate) * up, and the same as operands of the next product, `next`: whichever
//             warp is last done with 256 columns of a group (`arrived` counts, from zero and back) stages them.
// MODE plain: y float32 [places, stride] from column `column`: products.
// x: what was staged, rows of ACT: of place q row order[q] / top, or q itself where top is 0. Only its infinities and NaNs
// are read.
// A unit is 32 rows of an expert's matrix (gate: 16 of gate and the same 16 of up) and a group. Units are ordered by
// expert, row, group: so the groups of an expert meet its weights at about the same time, and all but the first find them
// in L2. CTA c of the grid makes an equal part of all of them, its warps take them in turn; the grid does not depend on the
// routing.
// Each warp multiplies a whole row: no warp waits for another. Weights arrive by bulk copies, `ahead` pairs of tiles for each
// warp, over the borders of units and, of the first of them, before the previous kernel has finished: between
// moe_places and this no kernel lets its successor start before its own wait. Activations are read from global memory: the
// warps of a CTA are all at about the same group, which L1 keeps.
// Products: warp_tiles.cuh; the sums of a block of 256 columns are added up alone, then blocks in order, then infinities and
// NaNs: the bits of moe/small.cu, whoever stands beside a pair.
// Predicted, on an H200 (132 x 4 schedulers at 1.75 GHz), for 64 tokens, 8 of 128 experts, 2048 x 768: a pair of tiles and
// 8 rows are 700 instructions for 4.6 KB of Q4_K, 250 of them at half rate: 6 TB/s if none waited; the matmul of few rows
// reaches 2.5 TB/s with 8 warps, so 12 make 3.3: gate and up 227 MB in 70 us (memory alone 49), down 113 MB in 35. Q6_K: 900
// for 6.7 KB, down 165 MB in 50. 16 rows: a third more instructions, 8 warps. First weights: launch, two dependent reads
// of L2 for the groups, then memory.
// Shared memory: dynamic, `ahead` pairs of tiles per warp. Archs: sm_90 and up. Bytes moved: the weights of every expert
// that has pairs, operands.
#define MODE_gate 0
#define MODE_plain 1
#define IS(mode) (PASTE(MODE_, MODE) == MODE_##mode)
#define TILES 2
#include "bulk.cuh"
#include "warp_tiles.cuh"

#define MOST_AHEAD 4
#define RECORDS 8  // more than units that are under way in a warp

struct __align__(16) group_t { int expert, first, rows, count; };  // of an expert: its first group, pairs, groups
struct __align__(16) cursor_t { group_t expert; int at, made; };  // a unit of those of an expert; units so far
struct __align__(16) unit_t { int row_tile, group, rows, expert; };

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    moe_medium(const act_t* x, const u8* staged, const u8* w, const group_t* groups, const int* order, void* y, u8* next,
               int* arrived, int N, int K, int top, int ahead, int stride, int column) {
    typedef fragments_t F;
    static_assert(SLOTS == 1, "a pair's sums lie in one lane");
    const int STAGE = TILES * F::BYTES, GROUP = block_bytes(XROWS);
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) u64 barriers[WARPS][MOST_AHEAD];
    __shared__ unit_t records[WARPS][RECORDS];
    __shared__ cursor_t cursors[WARPS];  // what lane 0 needs once a unit; registers are for the others
    __shared__ u32 odd_rows[WARPS][XROWS];
    const int lane = threadIdx.x & 31, warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x >> 5, 0);
    const int warps = blockDim.x >> 5, tiles = (K + F::COLS - 1) / F::COLS, row_tiles = N / 16;
    const int per_group = (row_tiles + 1) / 2;  // units
    u8* ring = shared + warp * (ahead * STAGE);
    const u32 barrier = shared_address(barriers[warp]), ring_address = shared_address(ring);
    u32* odd = odd_rows[warp];

    const int total = groups[0].expert * per_group, each = total / (int)gridDim.x, rest = total - each * (int)gridDim.x;
    const int begin = (int)blockIdx.x * each + min((int)blockIdx.x, rest);
    const int count = each + ((int)blockIdx.x < rest) - warp;  // units from the warp's first on, every `warps`-th its own

    // What lane 0 fetches next.
    cursor_t& cursor = cursors[warp];
    int left = count, block = 0;
    i64 second = 0;  // from a tile to the other of its pair
    const u8* from = nullptr;
    const auto fetch = [&](int stage) {
        if (block == 0) {
            group_t expert = cursor.expert;
            int at = cursor.at;
            while (at >= expert.count * per_group) {
                at -= expert.count * per_group;
                expert = groups[1 + expert.first + expert.count];
            }
            const int row = expert.count == 1 ? at : at / expert.count, group = at - row * expert.count;
            const int tile = IS(gate) ? row : 2 * row;
            second = IS(gate) ? (i64)(row_tiles / 2) * tiles * F::BYTES : tile + 1 < row_tiles ? tiles * F::BYTES : 0;
            from = w + ((i64)expert.expert * row_tiles + tile) * tiles * F::BYTES;
            records[warp][cursor.made % RECORDS] = {tile, expert.first + group, min(XROWS, expert.rows - group * XROWS),
                                                    expert.expert};
            cursor = {expert, at + warps, cursor.made + 1};
        }
        barrier_expect(barrier + 8 * stage, STAGE);
        copy_bulk(ring_address + stage * STAGE, from, F::BYTES, barrier + 8 * stage);
        copy_bulk(ring_address + stage * STAGE + F::BYTES, from + second, F::BYTES, barrier + 8 * stage);
        from += F::BYTES;
        if (++block == tiles) block = 0, left -= warps;
    };
    if (lane == 0) {
#pragma unroll 1
        for (int s = 0; s < ahead; s++) barrier_init(barrier + 8 * s);
        copies_see_shared();
        if (left > 0) {
            const group_t expert = groups[1 + begin / per_group];
            cursor = {expert, begin - expert.first * per_group + warp, 0};
        }
#pragma unroll 1
        for (int s = 0; s < ahead && left > 0; s++) fetch(s);
    }
    pdl_wait();
    pdl_launch();

    const warp_tiles<F> product(K >> 31, lane, XROWS);
    int stage = 0, parity = 0, turn = 0;
#pragma unroll 1
    for (int todo = count; todo > 0; todo -= warps, turn++) {
        if (lane < XROWS) odd[lane] = 0;
        __syncwarp();
        const unit_t unit = records[warp][turn % RECORDS];
        const u8* rows = staged + (i64)unit.group * tiles * GROUP;
        float sums[TILES][COLUMNS][4] = {};
#pragma unroll 1
        for (int b = 0; b < tiles; b++) {
            warp_tiles<F>::sums_t acc = {};
            product.multiply(ring + stage * STAGE, rows, odd, acc, [&] { barrier_wait(barrier + 8 * stage, parity); });
            __syncwarp();
            if (lane == 0 && left > 0) fetch(stage);
#pragma unroll
            for (int p = 0; p < TILES; p++)
#pragma unroll
                for (int c = 0; c < COLUMNS; c++)
#pragma unroll
                    for (int o = 0; o < 4; o++)
                        sums[p][c][o] += (acc[p][c][0][o] + acc[p][c][1][o]) + (acc[p][c][2][o] + acc[p][c][3][o]);
            rows += GROUP;
            if (++stage == ahead) stage = 0, parity ^= 1;
        }

        // The lane's rows of the matrix and of x: g and g + 8 of each tile, 2 t and 2 t + 1 of every eight.
        const int g = lane >> 2, t = lane & 3;
#pragma unroll
        for (int c = 0; c < COLUMNS; c++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const int m = 8 * c + 2 * t + e;
                if (m >= unit.rows) continue;
                const i64 place = (i64)unit.group * XROWS + m;
                float v[TILES][2];
#pragma unroll
                for (int p = 0; p < TILES; p++)
#pragma unroll
                    for (int r = 0; r < 2; r++) v[p][r] = sums[p][c][2 * r + e];
                if (odd[m]) {
                    const act_t* row = x + (top == 0 ? place : (i64)(order[place] / top)) * K;
#pragma unroll 1
                    for (int k = 0; k < K; k++) {
                        const float value = to_float(row[k]);
                        if ((__float_as_uint(value) & 0x7F800000u) != 0x7F800000u) continue;
                        for (int p = 0; p < TILES; p++) {
                            const int tile = unit.row_tile + p * (IS(gate) ? row_tiles / 2 : 1);
                            if (tile >= row_tiles) continue;
                            const u8* stored = w + (((i64)unit.expert * row_tiles + tile) * tiles + (k >> 8)) * F::BYTES;
                            for (int r = 0; r < 2; r++) {
                                float four[4];
                                F::quad(stored, g + 8 * r, k & 252, four);
                                v[p][r] += value * (k & 2 ? k & 1 ? four[3] : four[2] : k & 1 ? four[1] : four[0]);
                            }
                        }
                    }
                }
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const i64 to = place * stride + column + unit.row_tile * 16 + g + 8 * r;
                    if (IS(gate)) {
                        const float gate = v[0][r];
                        const float h = __fdividef(gate, 1.0f + expf(-gate)) * v[1][r];
                        static_cast<act_t*>(y)[to] = from_float<act_t>(h);
                    } else {
                        static_cast<float*>(y)[to] = v[0][r];
                        if (unit.row_tile + 1 < row_tiles) static_cast<float*>(y)[to + 16] = v[1][r];
                    }
                }
            }
        if (!IS(gate)) continue;
        const int I = N / 2, blocks = (I + 255) / 256, block_of = unit.row_tile / 16;
        int before = 0;
        __threadfence();
        __syncwarp();
        if (lane == 0) before = atomicAdd(&arrived[unit.group * blocks + block_of], 1);
        if (__shfl_sync(0xFFFFFFFFu, before, 0) + 1 < min(16, I / 16 - 16 * block_of)) continue;
        if (lane == 0) arrived[unit.group * blocks + block_of] = 0;
        __threadfence();
        u8* target = next + ((i64)unit.group * blocks + block_of) * GROUP;
        const int k = 256 * block_of + 8 * lane;
#pragma unroll 1  // all at once would be the largest part of the kernel
        for (int first = 0; first < XROWS; first += 4) {
            uint4 bits[4];
#pragma unroll
            for (int m = 0; m < 4; m++) {
                bits[m] = make_uint4(0, 0, 0, 0);
                if (first + m < unit.rows && k < I)
                    bits[m] = __ldcg(reinterpret_cast<const uint4*>(
                        static_cast<const act_t*>(y) + ((i64)unit.group * XROWS + first + m) * stride + k));
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                float f[8];
                unpack2<act_t>(f, bits[m].x), unpack2<act_t>(f + 2, bits[m].y);
                unpack2<act_t>(f + 4, bits[m].z), unpack2<act_t>(f + 6, bits[m].w);
                stage_row(target, XROWS, first + m, f, lane);
            }
        }
    }
}
