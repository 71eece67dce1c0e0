// Rows of pairs as operands of moe/medium.cu: at their places in groups of XROWS rows (stage.cuh, `tiles` blocks of 256
// columns per group).
//
// x, rows of K ACT: pair i has row i / top, or, with top 0, that of its place; places [P] (sort.cu). K is a multiple of 8, x
// 16-byte aligned. Who has the last pair of a group writes zeros to the places after it.
// Grid: (ceil(tiles / warps), P), a warp per block. Shared memory: none. Archs: all. Bytes: x in, as much out. H200,
// 2026-11-25: 7.1 us for 512 pairs of 2048; predicted were 2.5, two dependent reads and a write behind a launch.
#include "stage.cuh"

struct __align__(8) place_t { int place, empty; };

extern "C" __global__ void __launch_bounds__(256)
    moe_stage(const act_t* x, const place_t* places, u8* staged, int K, int top, int tiles) {
    const int lane = threadIdx.x & 31, block = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5), pair = blockIdx.y;
    place_t at = {};
    if (top == 0) at = places[pair];  // written long ago
    pdl_wait();
    pdl_launch();  // so that what follows knows the groups (medium.cu)
    if (block >= tiles) return;
    if (top != 0) at = places[pair];
    const int k = 256 * block + 8 * lane;
    float f[8];
    load_group(f, x + (i64)(top == 0 ? at.place : pair / top) * K + k, K - k, K % 8 == 0);
    u8* target = staged + ((i64)(at.place / XROWS) * tiles + block) * block_bytes(XROWS);
    const int m = at.place % XROWS;
    stage_row(target, XROWS, m, f, lane);
#pragma unroll
    for (int i = 0; i < 8; i++) f[i] = 0.0f;
    for (int i = 1; i <= at.empty; i++) stage_row(target, XROWS, m + i, f, lane);
}
