// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for many rows m in plain float32 (no TF32).
//
// x [M, K], w [N, K] float32, bias [N] or null, y float32 row-major with `stride` elements between rows; any K.
// Grid: (ceil(M / 128), ceil(N / 128)); 256 threads, each with an 8 x 8 piece of the tile as two by two 4 x 4 quarters.
// K advances by 8: the next slice is in registers while the present one is multiplied from shared memory, where it lies
// k-major (transposed) with rows of 132 floats.
// Shared memory: static, 2 x 8 x 132 floats (8.25 KiB). Archs: all. Bytes moved: x N/128 times and w M/128 times
// through L2, y once. Compiled, not yet measured.
#include "blocks.cuh"

#define TILE 128
#define DEPTH 8
#define PITCH 132

struct slice_t {
    float x[4], w[4];
};

__device__ __forceinline__ slice_t fetch_slice(const float* x, const float* w, int m0, int n0, int k, int M, int N,
                                               int K) {
    slice_t s;
    k += threadIdx.x & 7;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int r = (threadIdx.x >> 3) + 32 * i;
        s.x[i] = m0 + r < M && k < K ? x[(i64)(m0 + r) * K + k] : 0.0f;
        s.w[i] = n0 + r < N && k < K ? w[(i64)(n0 + r) * K + k] : 0.0f;
    }
    return s;
}

extern "C" __global__ void __launch_bounds__(256)
    gemm_f32(const float* x, const float* w, const float* bias, float* y, int M, int N, int K, int stride, int column) {
    __shared__ __align__(16) float tile_x[DEPTH * PITCH];
    __shared__ __align__(16) float tile_w[DEPTH * PITCH];
    const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;
    const int row = (threadIdx.x >> 4) * 4, col = (threadIdx.x & 15) * 4;
    pdl_launch();
    pdl_wait();

    float acc[8][8] = {};
    slice_t next = fetch_slice(x, w, m0, n0, 0, M, N, K);
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = (threadIdx.x & 7) * PITCH + (threadIdx.x >> 3) + 32 * i;
            tile_x[at] = next.x[i];
            tile_w[at] = next.w[i];
        }
        __syncthreads();
        next = fetch_slice(x, w, m0, n0, k0 + DEPTH, M, N, K);
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float a[8], b[8];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const words4_t p = load<words4_t>(reinterpret_cast<const u8*>(tile_x + k * PITCH + row + 64 * h));
                const words4_t q = load<words4_t>(reinterpret_cast<const u8*>(tile_w + k * PITCH + col + 64 * h));
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    a[4 * h + i] = __uint_as_float(p.r[i]);
                    b[4 * h + i] = __uint_as_float(q.r[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < 8; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int m = m0 + row + (i & 3) + 64 * (i >> 2);
        if (m >= M) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const int n = n0 + col + (j & 3) + 64 * (j >> 2);
            if (n < N) y[(i64)m * stride + column + n] = acc[i][j] + (bias != nullptr ? bias[n] : 0.0f);
        }
    }
}
