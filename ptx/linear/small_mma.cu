// y[m, column + n] = sum_k x[m, k] w[n, k] + bias[n] for few rows m, 16-bit activations, weights of any format.
//
// x [M, K] ACT (f16 or bf16), w [N, K] FORMAT: blocks exactly as in the file, or codes with `scales` and `factors` [N]
// (blocks.cuh; null where the format has none), bias [N] float32 or null, y row-major with `stride` elements between
// rows, ACT or (wide) float32.
// Grid: 1-D, ceil(M / 16) * ceil(N / 16) CTAs of 256 threads; CTAs that read the same weights are neighbours.
// A CTA makes a 16 x 16 tile of y. Its 8 warps split K by chunks (ring.cuh). A warp takes weight rows as the rows of
// the m16n8k16 A operand and activation rows as the columns of B (8 of them, or 16 with a second product), so one or
// sixteen activation rows read the same weight bytes, with the same order of additions: a row's bits do not depend on
// the others.
// Weights are dequantised in registers to float32 exactly and rounded once to ACT; products are summed in float32, and
// the sums take the factors.
// A lane holds eight consecutive k of two weight rows (g and g + 8) and of one activation row; two products use them,
// with k permuted alike in A and B (mma.cuh).
// Shared memory: dynamic, 8 * STAGES * 16 * STRIDE bytes (60 to 84 KiB), reused for the sums.
// Archs: all. Bytes moved: the weights once per 16 activation rows (L2 serves repeats), x from L1 and L2, y once.
// H200, 2026-11-20, 1 row of Q4_K, 24576 x 4096: 40 us, 1.40 TB/s, launch included.
#include "pairs.cuh"
#include "ring.cuh"

// x[k .. k+7] of one activation row; zeros past K and for a row that is not there (null).
template <typename F> __device__ __forceinline__ words4_t activation_pairs(const act_t* x, int k, int K, bool aligned) {
    words4_t v = {{0, 0, 0, 0}};
    if (x == nullptr) return v;
    if (!F::ANY_K || aligned) {
        if (k < K) v = load<words4_t>(reinterpret_cast<const u8*>(x + k));
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++)
            if (k + i < K) v.r[i / 2] |= (u32)x[k + i].bits << (16 * (i % 2));
    }
    return v;
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, format_t::RESIDENT)
    linear_small_mma(const act_t* x, const u8* w, const u8* scales, const float* factors, const float* bias, void* y,
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

    const bool second = m0 + 8 < M, aligned = K % 8 == 0 && ((u64)x & 15) == 0;
    const act_t* x0 = m0 + g < M ? x + (i64)(m0 + g) * K : nullptr;
    const act_t* x1 = m0 + g + 8 < M ? x + (i64)(m0 + g + 8) * K : nullptr;
    float acc[2][4] = {};
    int stage = 0;
    for (int chunk = warp; chunk < ring.chunks; chunk += WARPS) {
        copy_wait<F::STAGES - 1>();
        __syncwarp();
        const chunk_t w0 = ring.chunk_row(stage, chunk, g);
        const chunk_t w1 = ring.chunk_row(stage, chunk, g + 8);
        const typename F::row_t row0 = F::open(w0, t), row1 = F::open(w1, t);
#pragma unroll
        for (int j = 0; j < F::ELEMS / 32; j++) {
            const int k = chunk * F::ELEMS + 32 * j + 8 * t;
            const words4_t b = activation_pairs<F>(x0, k, K, aligned);
            u32 r0[4], r1[4];
            weight_pairs<F>(row0, w0, j, t, r0);
            weight_pairs<F>(row1, w1, j, t, r1);
            const u32 a0[4] = {r0[0], r1[0], r0[1], r1[1]}, a1[4] = {r0[2], r1[2], r0[3], r1[3]};
            mma_16816<act_t>(acc[0], a0, b.r[0], b.r[1]);
            mma_16816<act_t>(acc[0], a1, b.r[2], b.r[3]);
            if (second) {
                const words4_t c = activation_pairs<F>(x1, k, K, aligned);
                mma_16816<act_t>(acc[1], a0, c.r[0], c.r[1]);
                mma_16816<act_t>(acc[1], a1, c.r[2], c.r[3]);
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
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[(warp * TILE + 8 * h + 2 * t + (i & 1)) * SUM_STRIDE + g + 8 * (i >> 1)] = acc[h][i];
    __syncthreads();
    store_sums<F>(sums, factors, bias, y, m0, M, n0, N, stride, column, wide);
}
