// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for few rows m, float32 activations, weights of any format.
//
// x [M, K] float32, w [N, K] FORMAT: blocks exactly as in the file, or codes with `scales` and `factors` [N] (blocks.cuh;
// null where the format has none), bias [N] float32 or null, y row-major float32 with `stride` elements between rows
// (`wide` or not: the output is float32). Everything is float32 multiply-add; nothing is rounded below that.
// Grid: 1-D, ceil(M / 16) * ceil(N / 16) CTAs of 256 threads; CTAs that read the same weights are neighbours.
// A CTA makes a 16 x 16 tile of y; its 8 warps split K by chunks (ring.cuh). A lane holds eight consecutive k of two
// weight rows and multiplies them with every activation row in turn; the four lanes of a quad add up by shuffle, the
// warps through shared memory. The order of additions depends on K and the format alone.
// Shared memory: dynamic, 8 * STAGES * 16 * STRIDE bytes (60 to 84 KiB), reused for the sums.
// Archs: all. Bytes moved: the weights once per 16 activation rows, x from L1 and L2, y once.
// Compiled, not yet measured.
#include "ring.cuh"

extern "C" __global__ void __launch_bounds__(32 * WARPS)
    linear_small_fma(const float* x, const u8* w, const u8* scales, const float* factors, const float* bias, void* y,
                     int M, int N, int K, int stride, int column, int wide) {
    typedef format_t F;
    extern __shared__ __align__(16) u8 shared[];
    const int groups = (M + TILE - 1) / TILE;
    const int m0 = (int)(blockIdx.x % groups) * TILE, n0 = (int)(blockIdx.x / groups) * TILE;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const ring_t<F> ring(w, scales, K, n0, N, shared);

#pragma unroll
    for (int s = 0; s < F::STAGES; s++) ring.fetch(s, warp + s * WARPS);
    pdl_launch();
    pdl_wait();

    const bool aligned = K % 4 == 0 && ((u64)x & 15) == 0;
    const int count = min(TILE, M - m0);
    float acc[TILE][2] = {};
    int stage = 0;
    for (int chunk = warp; chunk < ring.chunks; chunk += WARPS) {
        copy_wait<F::STAGES - 1>();
        __syncwarp();
        const chunk_t w0 = ring.chunk_row(stage, chunk, g);
        const chunk_t w1 = ring.chunk_row(stage, chunk, g + 8);
        const typename F::row_t row0 = F::open(w0, t), row1 = F::open(w1, t);
#pragma unroll 1
        for (int j = 0; j < F::ELEMS / 32; j++) {
            const int k = chunk * F::ELEMS + 32 * j + 8 * t;
            float v0[8], v1[8];
            F::piece(row0, w0, j, t, v0);
            F::piece(row1, w1, j, t, v1);
#pragma unroll
            for (int m = 0; m < TILE; m++) {
                if (m >= count) continue;
                const float* p = x + (i64)(m0 + m) * K + k;
                float v[8];
#pragma unroll
                for (int i = 0; i < 8; i += 4) {
                    if (aligned && k + i + 4 <= K) {
                        const words4_t q = load<words4_t>(reinterpret_cast<const u8*>(p + i));
#pragma unroll
                        for (int e = 0; e < 4; e++) v[i + e] = __uint_as_float(q.r[e]);
                    } else {
#pragma unroll
                        for (int e = 0; e < 4; e++) v[i + e] = k + i + e < K ? p[i + e] : 0.0f;
                    }
                }
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    acc[m][0] = fmaf(v0[i], v[i], acc[m][0]);
                    acc[m][1] = fmaf(v1[i], v[i], acc[m][1]);
                }
            }
        }
        __syncwarp();
        ring.fetch(stage, chunk + F::STAGES * WARPS);
        stage = stage + 1 == F::STAGES ? 0 : stage + 1;
    }

    copy_wait<0>();
    __syncthreads();
    float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int m = 0; m < TILE; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float v = acc[m][h];
            v += __shfl_xor_sync(0xFFFFFFFFu, v, 1);
            v += __shfl_xor_sync(0xFFFFFFFFu, v, 2);
            if (t == 0) sums[(warp * TILE + m) * SUM_STRIDE + g + 8 * h] = v;
        }
    __syncthreads();
    store_sums<F>(sums, factors, bias, y, m0, M, n0, N, stride, column, wide);
}
