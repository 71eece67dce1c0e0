// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for many rows m: the portable GEMM of 16-bit operands.
//
// x [M, K] and w [N, K] ACT (f16 or bf16), 16-byte aligned, K a multiple of 8; bias [N] float32 or null; y row-major
// with `stride` elements between rows, ACT or (wide) float32. Sums are float32, rounded once.
// Grid: (ceil(M / TILE_M), ceil(N / 128)), M first so that neighbours share the weights; 256 threads.
// A CTA makes a TILE_M x 128 tile of y; its 8 warps stand 2 x 4 and make TILE_M/2 x 32 each with mma m16n8k16.
// K advances by 32 through a ring of 4 stages filled with cp.async; rows past M or N and k past K read as zeros.
// Shared memory: dynamic, 4 stages x (TILE_M + 128) rows of 64 bytes (48 or 64 KiB). The 16-byte unit c of row r lies
// at c ^ (r / 2) % 4, so that the eight rows of an ldmatrix hit all banks once.
// Archs: all. Bytes moved: x N/128 times and w M/TILE_M times through L2, y once. Compiled, not yet measured.
#include "mma.cuh"

#define TILE_N 128
#define TILE_K 32
#define STAGES 4
#define ROW_BYTES 64
#define STAGE_BYTES ((TILE_M + TILE_N) * ROW_BYTES)
#define TILES_M (TILE_M / 32)  // 16-row tiles of a warp

__device__ __forceinline__ u32 tile_address(u32 base, int r, int c) {
    return base + r * ROW_BYTES + ((c ^ ((r >> 1) & 3)) << 4);
}

template <int ROWS>
__device__ __forceinline__ void fetch_tile(u32 base, const act_t* matrix, int row, int rows, int k, int K) {
#pragma unroll
    for (int i = 0; i < ROWS * 4 / 256; i++) {
        const int unit = threadIdx.x + 256 * i, r = unit >> 2, c = unit & 3;
        const bool inside = row + r < rows && k + 8 * c < K;
        copy_async_16(tile_address(base, r, c), inside ? matrix + (i64)(row + r) * K + k + 8 * c : matrix,
                      inside ? 16 : 0);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    gemm(const act_t* x, const act_t* w, const float* bias, void* y, int M, int N, int K, int stride, int column,
         int wide) {
    extern __shared__ __align__(16) u8 shared[];
    const u32 base = shared_address(shared);
    const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int mw = (warp >> 2) * (TILE_M / 2), nw = (warp & 3) * 32;
    const int steps = (K + TILE_K - 1) / TILE_K;
    pdl_launch();
    pdl_wait();

#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < steps) {
            fetch_tile<TILE_M>(base + s * STAGE_BYTES, x, m0, M, s * TILE_K, K);
            fetch_tile<TILE_N>(base + s * STAGE_BYTES + TILE_M * ROW_BYTES, w, n0, N, s * TILE_K, K);
        }
        copy_commit();
    }

    float acc[TILES_M][4][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        const int ahead = step + STAGES - 1;
        if (ahead < steps) {
            const u32 target = base + ahead % STAGES * STAGE_BYTES;
            fetch_tile<TILE_M>(target, x, m0, M, ahead * TILE_K, K);
            fetch_tile<TILE_N>(target + TILE_M * ROW_BYTES, w, n0, N, ahead * TILE_K, K);
        }
        copy_commit();
        const u32 tile_x = base + step % STAGES * STAGE_BYTES, tile_w = tile_x + TILE_M * ROW_BYTES;
#pragma unroll
        for (int kk = 0; kk < TILE_K / 16; kk++) {
            u32 a[TILES_M][4], b[2][4];
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
                ldmatrix_x4(a[i], tile_address(tile_x, mw + 16 * i + (lane & 15), 2 * kk + (lane >> 4)));
#pragma unroll
            for (int i = 0; i < 2; i++)
                ldmatrix_x4(b[i], tile_address(tile_w, nw + 16 * i + (lane & 7) + ((lane >> 4) << 3),
                                               2 * kk + ((lane >> 3) & 1)));
#pragma unroll
            for (int i = 0; i < TILES_M; i++)
#pragma unroll
                for (int j = 0; j < 4; j++)
                    mma_16816<act_t>(acc[i][j], a[i], b[j >> 1][2 * (j & 1)], b[j >> 1][2 * (j & 1) + 1]);
        }
    }
    copy_wait<0>();

    const bool pairs = ((stride | column) & 1) == 0 && ((u64)y & 7) == 0;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int n = n0 + nw + 8 * j + 2 * (lane & 3);
        const float b0 = bias != nullptr && n < N ? bias[n] : 0.0f;
        const float b1 = bias != nullptr && n + 1 < N ? bias[n + 1] : 0.0f;
#pragma unroll
        for (int i = 0; i < TILES_M; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int m = m0 + mw + 16 * i + 8 * h + (lane >> 2);
                const float v0 = acc[i][j][2 * h] + b0, v1 = acc[i][j][2 * h + 1] + b1;
                const i64 at = (i64)m * stride + column + n;
                if (m >= M || n >= N) continue;
                if (wide) {
                    float* out = static_cast<float*>(y) + at;
                    out[0] = v0;
                    if (n + 1 < N) out[1] = v1;
                } else if (pairs && n + 1 < N) {
                    *reinterpret_cast<u32*>(static_cast<act_t*>(y) + at) = pack2<act_t>(v0, v1);
                } else {
                    act_t* out = static_cast<act_t*>(y) + at;
                    out[0] = from_float<act_t>(v0);
                    if (n + 1 < N) out[1] = from_float<act_t>(v1);
                }
            }
    }
}
