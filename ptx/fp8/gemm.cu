// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] + residual[m, column + n]: E4M3 by E4M3 under the scales of FORM.
//
// x [M, K], w [N, K]: E4M3 codes, 16-byte aligned, K a multiple of 16 (mxfp8: 32). Scales by FORM:
//   mxfp8      scales_x, scales_w: E8M0 per 32 in tiles of 128 rows by 4 (quant/tiled.py); block-scaled mma
//   fp8        scales_x float32 [M], scales_w float32 [N]: factors of the finished sums
//   fp8_block  scales_x float32 [M, ceil(K/128)], scales_w float32 [ceil(N/128), ceil(K/128)]: sums of 128 elements start
//              from zero and are added, scaled, to float32 sums
// bias [N] float32 or null; residual and y row-major ACT with `stride` elements between rows, residual null or like y.
// Sums are float32 in ascending k whatever the tile; one rounding at the end.
// Grid: (ceil(M / TILE_M), ceil(N / 128)), M first so that neighbours share the weights; 256 threads (tile.cuh).
// K advances by 64 through a ring of 4 stages filled with cp.async; rows past M or N and k past K read as zeros.
// mma m16n8k32: E4M3 with float32 sums, block-scaled (native on sm_120f, mxfp8.cuh) for mxfp8.
// Shared memory: dynamic, 4 stages x ((TILE_M + 128) x 64 + 1024) bytes (40 to 68 KiB). Archs: all.
// Bytes moved: x N/128 times and w M/TILE_M times through L2, y once. Compiled, not yet measured.
#include "mxfp8.cuh"
#include "tile.cuh"

#define TILE_K 64
#define STAGE_BYTES (CODE_BYTES + 1024)
#define FORM_mxfp8 0
#define FORM_fp8 1
#define FORM_fp8_block 2
#define IS(form) (PASTE(FORM_, FORM) == PASTE(FORM_, form))

#if IS(mxfp8)
typedef u8 scale_t;
#else
typedef float scale_t;
#endif

// The tile of scales of 128 rows for elements 64 step ..: 512 bytes, copied by 32 threads; two steps share it.
__device__ __forceinline__ void fetch_scales(u32 target, const u8* scales, int row, int step, int tiles, int thread) {
    if (thread >= 0 && thread < 32)
        copy_async_16(target + thread * 16, scales + ((i64)(row >> 7) * tiles + (step >> 1)) * 512 + thread * 16);
}
__device__ __forceinline__ u32 scale_word(const u8* tile, int r) {
    return *reinterpret_cast<const u32*>(tile + (r & 31) * 16 + ((r >> 5) & 3) * 4);
}

__device__ __forceinline__ void multiply(int byte, int ta, int tb, float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1,
                                         u32 sfa, u32 sfb) {
#if IS(mxfp8)
    mma_mxfp8_at(byte, ta, tb, d, a, b0, b1, sfa, sfb);
#else
    mma_e4m3(d, a, b0, b1);
#endif
}

extern "C" __global__ void __launch_bounds__(256)
    fp8_gemm(const u8* x, const scale_t* scales_x, const u8* w, const scale_t* scales_w, const float* bias,
             const act_t* residual, act_t* y, int M, int N, int K, int stride, int column) {
    extern __shared__ __align__(16) u8 shared[];
    const u32 base = shared_address(shared);
    const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int mw = warp / (8 / WARPS_M) * WARP_M, nw = warp % (8 / WARPS_M) * WARP_N;
    const int steps = (K + TILE_K - 1) / TILE_K;

    auto fetch_x = [&](int step) {
        const u32 target = base + step % STAGES * STAGE_BYTES;
        fetch_codes<TILE_M>(target, x, m0, M, (i64)step * ROW_BYTES, K);
#if IS(mxfp8)
        fetch_scales(target + CODE_BYTES, scales_x, m0, step, (K + 127) / 128, threadIdx.x);
#endif
    };
    auto fetch_w = [&](int step) {
        const u32 target = base + step % STAGES * STAGE_BYTES;
        fetch_codes<TILE_N>(target + TILE_M * ROW_BYTES, w, n0, N, (i64)step * ROW_BYTES, K);
#if IS(mxfp8)
        fetch_scales(target + CODE_BYTES + 512, scales_w, n0, step, (K + 127) / 128, (int)threadIdx.x - 32);
#endif
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
#if IS(fp8_block)
    float part[TILES_M][TILES_N][4] = {};
    const int blocks = (K + 127) / 128;
#endif
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps) {
            fetch_x(step + STAGES - 1);
            fetch_w(step + STAGES - 1);
        }
        copy_commit();
        const u32 stage = step % STAGES * STAGE_BYTES, tile_x = base + stage, tile_w = tile_x + TILE_M * ROW_BYTES;
#pragma unroll
        for (int kk = 0; kk < 2; kk++) {
            u32 a[TILES_M][4], b[TILES_N / 2][4], sfa[(TILES_M + 1) / 2] = {}, sfb = 0;
#pragma unroll
            for (int i = 0; i < TILES_M; i++) load_a(a[i], tile_x, mw + 16 * i, kk);
#pragma unroll
            for (int i = 0; i < TILES_N / 2; i++) load_b(b[i], tile_w, nw + 16 * i, kk);
#if IS(mxfp8)
            const u8* found = shared + stage + CODE_BYTES;
            const int shift = 16 * (step & 1);
#pragma unroll
            for (int i = 0; i < (TILES_M + 1) / 2; i++)
                sfa[i] = scale_word(found, (m0 & 127) + mw + 32 * i + 16 * (t >> 1) + 8 * (t & 1) + g) >> shift;
            sfb = scale_word(found + 512, nw + 8 * t + g) >> shift;
#endif
#if IS(fp8_block)
#define SUMS part
#else
#define SUMS acc
#endif
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
#pragma unroll
                for (int j = 0; j < TILES_N; j++)
                    multiply(kk, i & 1, j, SUMS[i][j], a[i], b[j >> 1][2 * (j & 1)], b[j >> 1][2 * (j & 1) + 1],
                             sfa[i / 2], sfb);
        }
#if IS(fp8_block)
        if ((step & 1) == 1 || step + 1 == steps) {
            const float sw = scales_w[(i64)(n0 >> 7) * blocks + (step >> 1)];
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const int m = m0 + mw + 16 * i + 8 * h + g;
                    const float s = m < M ? scales_x[(i64)m * blocks + (step >> 1)] * sw : 0.0f;
#pragma unroll
                    for (int j = 0; j < TILES_N; j++)
#pragma unroll
                        for (int e = 2 * h; e < 2 * h + 2; e++) {
                            acc[i][j][e] = fmaf(part[i][j][e], s, acc[i][j][e]);
                            part[i][j][e] = 0.0f;
                        }
                }
        }
#endif
    }
    copy_wait<0>();

    const epilogue_t out = {bias, residual, y, M, N, stride, column};
#pragma unroll
    for (int i = 0; i < TILES_M; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int m = m0 + mw + 16 * i + 8 * h + g;
#if IS(fp8)
            const float fx = m < M ? scales_x[m] : 0.0f;
#endif
#pragma unroll
            for (int j = 0; j < TILES_N; j++) {
                const int n = n0 + nw + 8 * j + 2 * t;
                float v0 = acc[i][j][2 * h], v1 = acc[i][j][2 * h + 1];
#if IS(fp8)
                v0 = __fmul_rn(v0, __fmul_rn(fx, n < N ? scales_w[n] : 0.0f));
                v1 = __fmul_rn(v1, __fmul_rn(fx, n + 1 < N ? scales_w[n + 1] : 0.0f));
#endif
                store_pair(out, m, n, v0, v1);
            }
        }
}
