// Matrix-vector products of routed experts for few tokens: every (token, slot) pair reads its own expert.
//
// w [E N, K] FORMAT: blocks exactly as in the file, or codes with `scales` and `factors` [E N] (blocks.cuh; null where
// the format has none), expert e in rows e N to (e + 1) N; experts [T, top] int32, weights [T, top] float32.
// mode GATE:  x [T, K]; N = 2 I: y [T top, I] ACT = silu(gate) * up of each pair.
// mode SUM:   x [T top, K]; y [T, N] ACT = sum over slots, in order, of weight * product.
// mode PLAIN: x [T, K]; y float32 [T top, stride] from column `column`: products.
// Grid: (ceil(rows / 16), T top or T); 256 threads make 16 outputs of a pair or token. What they need is a list of
// segments of 16 weight rows: gate and up (GATE), one of each slot (SUM), one (PLAIN). Chunks of K (ring.cuh) of all
// segments are dealt to the 8 warps in turn, whose sums meet in a fixed order: a result depends on its own token alone.
// Everything is float32 multiply-add of exactly dequantised weights; nothing is rounded below that.
// Shared memory: dynamic, 8 * STAGES * 16 * STRIDE bytes of rings, then 512 bytes for the sums of each segment.
// Archs: all. Bytes moved: the weights of every pair once (L2 serves experts that tokens share). Compiled, not yet
// measured.
#include "ring.cuh"
#include "vector.cuh"

#define ALL 0xFFFFFFFFu
#define GATE 0
#define SUM 1
#define PLAIN 2

extern "C" __global__ void __launch_bounds__(32 * WARPS, format_t::RESIDENT)
    moe_rows(const act_t* x, const u8* w, const u8* scales, const float* factors, const int* experts,
             const float* weights, void* y, int N, int K, int top, int mode, int stride, int column) {
    typedef format_t F;
    extern __shared__ __align__(16) u8 shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const int n0 = blockIdx.x * TILE, I = mode == GATE ? N / 2 : N;
    const int pair = mode == SUM ? (int)blockIdx.y * top : (int)blockIdx.y;  // the first of them
    const int segments = mode == GATE ? 2 : mode == SUM ? top : 1;
    const int chunks = (K + F::ELEMS - 1) / F::ELEMS, units = segments * chunks;
    float* sums = reinterpret_cast<float*>(shared + WARPS * F::STAGES * TILE * F::STRIDE);  // [segments][WARPS][TILE]
    for (int i = threadIdx.x; i < segments * WARPS * TILE; i += 32 * WARPS) sums[i] = 0.0f;
    pdl_wait();
    pdl_launch();  // so that what follows knows the experts (moe/small.cu)
    __syncthreads();

    // First weight row of a segment, and the ring over its 16 rows.
    const auto first_row = [&](int segment) {
        const int expert = experts[mode == SUM ? pair + segment : pair];
        return expert * N + n0 + (mode == GATE ? segment * I : 0);
    };
    const auto ring_of = [&](int segment) {
        const int row = first_row(segment);
        return ring_t<F>(w, scales, K, row, row - n0 + I, shared);
    };
    const auto fetch = [&](int stage, int unit) {
        if (unit < units) {
            ring_of(unit / chunks).fetch(stage, unit % chunks);
        } else {
            copy_commit();
        }
    };
    const bool aligned = (i64)K * sizeof(act_t) % 16 == 0 && ((u64)x & 15) == 0;
#pragma unroll
    for (int s = 0; s < F::STAGES; s++) fetch(s, warp + s * WARPS);

    float acc0 = 0.0f, acc1 = 0.0f;
    int stage = 0;
    for (int unit = warp; unit < units; unit += WARPS) {
        const int segment = unit / chunks, chunk = unit % chunks;
        const act_t* row = x + (i64)(mode == SUM ? pair + segment : pair / top) * K;
        const ring_t<F> ring = ring_of(segment);
        copy_wait<F::STAGES - 1>();
        __syncwarp();
        const chunk_t w0 = ring.chunk_row(stage, chunk, g), w1 = ring.chunk_row(stage, chunk, g + 8);
        const typename F::row_t row0 = F::open(w0, t), row1 = F::open(w1, t);
#pragma unroll 2
        for (int j = 0; j < F::ELEMS / 32; j++) {
            float v[8], v0[8], v1[8];
            const int k = chunk * F::ELEMS + 32 * j + 8 * t;
            load_group(v, row + k, K - k, aligned);
            F::piece(row0, w0, j, t, v0);
            F::piece(row1, w1, j, t, v1);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                acc0 = fmaf(v0[i], v[i], acc0);
                acc1 = fmaf(v1[i], v[i], acc1);
            }
        }
        __syncwarp();
        fetch(stage, unit + F::STAGES * WARPS);
        stage = stage + 1 == F::STAGES ? 0 : stage + 1;
        if (unit + WARPS >= units || (unit + WARPS) / chunks != segment) {  // the warp's last chunk of this segment
            acc0 += __shfl_xor_sync(ALL, acc0, 1);
            acc1 += __shfl_xor_sync(ALL, acc1, 1);
            acc0 += __shfl_xor_sync(ALL, acc0, 2);
            acc1 += __shfl_xor_sync(ALL, acc1, 2);
            if (t == 0) {
                sums[(segment * WARPS + warp) * TILE + g] = acc0;
                sums[(segment * WARPS + warp) * TILE + g + 8] = acc1;
            }
            acc0 = acc1 = 0.0f;
        }
    }
    __syncthreads();

    const int n = threadIdx.x;
    if (n >= TILE || n0 + n >= I) return;
    const auto product = [&](int segment) {
        float v = 0.0f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) v += sums[(segment * WARPS + i) * TILE + n];
        if (F::FACTOR) v *= factors[first_row(segment) + n];
        return v;
    };
    if (mode == GATE) {
        const float gate = product(0);
        static_cast<act_t*>(y)[(i64)pair * I + n0 + n] =
            from_float<act_t>(__fdividef(gate, 1.0f + expf(-gate)) * product(1));
    } else if (mode == SUM) {
        float v = 0.0f;
        for (int s = 0; s < top; s++) v = fmaf(weights[pair + s], product(s), v);
        static_cast<act_t*>(y)[(i64)blockIdx.y * N + n0 + n] = from_float<act_t>(v);
    } else {
        static_cast<float*>(y)[(i64)pair * stride + column + n0 + n] = product(0);
    }
}
