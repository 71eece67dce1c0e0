// y[m, column + n] = factor_x factor_w[n] sum_k x[m, k] w[n, k] + bias[n] + residual[m, column + n]: NVFP4 by NVFP4.
//
// x [M, K/2], w [N, K/2]: E2M1 codes, low nibble first, 16-byte aligned, K a multiple of 64; scales_x, scales_w: E4M3 per
// 16 in tiles of 128 rows by 4 (quant/tiled.py); factor_x [1], factors_w [N], bias [N] or null: float32; residual and y
// row-major ACT (f32, f16, bf16) with `stride` elements between rows, residual null or like y. Sums are float32 in
// ascending k whatever the tile, so a row's bits do not depend on the others; one rounding at the end.
// Grid: (ceil(M / TILE_M), ceil(N / 128)), M first so that neighbours share the weights; 256 threads (tile.cuh).
// K advances by 128 through a ring of 4 stages filled with cp.async; rows past M or N and k past K read as zeros.
// mma m16n8k64 with block scales: native on sm_120f, elsewhere its stand-in of four m16n8k16 in f16 (nvfp4.cuh). A lane
// holds scales of two A tiles and of four B tiles, which the mma picks by thread id: one 4-byte load each.
// Shared memory: dynamic, 4 stages x ((TILE_M + 128) x 64 + 2048) bytes (44 to 72 KiB). Archs: all.
// Bytes moved: x N/128 times and w M/TILE_M times through L2 at 4.5 bits an element, y once. Compiled, not yet measured.
#include "nvfp4.cuh"
#include "tile.cuh"

#define TILE_K 128
#define STAGE_BYTES (CODE_BYTES + 2048)

// Two tiles of scales (8 groups from group `c`) of the 128 rows that hold `row`; zeros past the last group.
__device__ __forceinline__ void fetch_scales(u32 target, const u8* scales, int row, int c, int groups) {
    const int half = threadIdx.x >> 5, unit = threadIdx.x & 31;
    if (half >= 2) return;
    const bool inside = c + 4 * half < groups;
    copy_async_16(target + half * 512 + unit * 16,
                  inside ? scales + scale_offset(row & ~127, c + 4 * half, groups) + unit * 16 : scales, inside ? 16 : 0);
}
// The four scales of row r (of the 128 of a tile).
__device__ __forceinline__ u32 scale_word(const u8* tile, int r) {
    return *reinterpret_cast<const u32*>(tile + (r & 31) * 16 + ((r >> 5) & 3) * 4);
}

extern "C" __global__ void __launch_bounds__(256)
    nvfp4_gemm(const u8* x, const u8* scales_x, const float* factor_x, const u8* w, const u8* scales_w,
               const float* factors_w, const float* bias, const act_t* residual, act_t* y, int M, int N, int K,
               int stride, int column) {
    extern __shared__ __align__(16) u8 shared[];
    const u32 base = shared_address(shared);
    const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int mw = warp / (8 / WARPS_M) * WARP_M, nw = warp % (8 / WARPS_M) * WARP_N;
    const int steps = (K + TILE_K - 1) / TILE_K;

    auto fetch_x = [&](int step) {
        const u32 target = base + step % STAGES * STAGE_BYTES;
        fetch_codes<TILE_M>(target, x, m0, M, (i64)step * ROW_BYTES, K / 2);
        fetch_scales(target + CODE_BYTES, scales_x, m0, step * 8, K / 16);
    };
    auto fetch_w = [&](int step) {
        const u32 target = base + step % STAGES * STAGE_BYTES;
        fetch_codes<TILE_N>(target + TILE_M * ROW_BYTES, w, n0, N, (i64)step * ROW_BYTES, K / 2);
        fetch_scales(target + CODE_BYTES + 1024, scales_w, n0, step * 8, K / 16);
    };
    // Weights depend on no kernel: their copies start before the wait. The first group holds all of these.
    pdl_launch();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++)
        if (s < steps) fetch_w(s);
    pdl_wait();
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) fetch_x(s);
        copy_commit();
    }

    float acc[TILES_M][TILES_N][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            fetch_x(step + STAGES - 1);
            fetch_w(step + STAGES - 1);
        }
        copy_commit();
        const u32 stage = step % STAGES * STAGE_BYTES, tile_x = base + stage, tile_w = tile_x + TILE_M * ROW_BYTES;
        const u8* found = shared + stage + CODE_BYTES;
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 a[TILES_M][4], b[TILES_N / 2][4], sfa[(TILES_M + 1) / 2];
#pragma unroll
            for (int i = 0; i < TILES_M; i++) load_a(a[i], tile_x, mw + 16 * i, kk);
#pragma unroll
            for (int i = 0; i < TILES_N / 2; i++) load_b(b[i], tile_w, nw + 16 * i, kk);
#pragma unroll
            for (int i = 0; i < (TILES_M + 1) / 2; i++)
                sfa[i] = scale_word(found + kk * 512, (m0 & 127) + mw + 32 * i + 16 * (t >> 1) + 8 * (t & 1) + g);
            const u32 sfb = scale_word(found + 1024 + kk * 512, nw + 8 * t + g);
            // The tile's place chooses the lanes that give its scales; constants, as all loops are unrolled.
#pragma unroll
            for (int i = 0; i < TILES_M; i += 2)
#pragma unroll
                for (int h = 0; h < (TILES_M < 2 ? 1 : 2); h++)
#pragma unroll
                    for (int j = 0; j < TILES_N; j++) {
                        const u32 b0 = b[j >> 1][2 * (j & 1)], b1 = b[j >> 1][2 * (j & 1) + 1];
                        mma_nvfp4_at(h, j, acc[i + h][j], a[i + h], b0, b1, sfa[i / 2], sfb);
                    }
        }
    }
    copy_wait<0>();

    const epilogue_t out = {bias, residual, y, M, N, stride, column};
    const float fx = *factor_x;
#pragma unroll
    for (int j = 0; j < TILES_N; j++) {
        const int n = n0 + nw + 8 * j + 2 * t;
        const float f0 = n < N ? fx * factors_w[n] : 0.0f, f1 = n + 1 < N ? fx * factors_w[n + 1] : 0.0f;
#pragma unroll
        for (int i = 0; i < TILES_M; i++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                store_pair(out, m0 + mw + 16 * i + 8 * h + g, n, __fmul_rn(acc[i][j][2 * h], f0),
                           __fmul_rn(acc[i][j][2 * h + 1], f1));
    }
}
