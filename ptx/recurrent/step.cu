// A Gated DeltaNet layer between its projections for rows of few tokens, heads of 128 by 128 (delta.cuh has the layouts).
//
// Arguments as in generic.cu; blocks: out once more as operands of the small matmuls (stage.cuh), or null; sums [T, nv,
// 128] float32 is scratch. Rows of up to `few` tokens are computed; others are left to the kernels of chunks.
// Grid: (PARTS nv, R + 1): CTA (p, h, r) has 128 / PARTS columns of the state of value head h of row first + r, in
// registers; of every 32 of them a warp has 8: lane l rows 8 (l / 2) .. + 7 of columns 4 (l % 2) .. + 3. PARTS is 4 where one
// row shall fill the GPU, and 2 for many rows, where it saves instructions; the bits are the same. Every CTA convolves q
// and k of its head itself. Per token, products with k and q are added up over the lanes in one go, o = q S + (q k) d, and no warp waits for
// another. The CTA of two heads (one, if nv is odd) that arrives last (`arrived` counts) normalises what all of them
// left in `sums`, and stores it. The last r writes zeros for padding tokens.
// A token's arithmetic depends on its row alone, and tokens follow one another through float32 registers: a row's bits
// are the same one by one and all at once.
// State and history are of an earlier step and are read before griddepcontrol.wait; `readers` as in generic.cu. What
// a token leaves is stored when the next one is under way, the last state after the arrival, whose fence would wait, and
// the history at the very end.
// Shared memory: static, 26 KiB. Archs: all. Bytes: two states a row. H200, 2026-11-25, 32 heads: 5.1 us
// for 1 row, 16.4 for 8, 96 for 64 (2.8 TB/s).
#include "delta.cuh"
#include "stage.cuh"

#define D 128
#define COLUMNS (D / PARTS)
#define SETS (COLUMNS / 32)
#define THREADS 128
#define BLOCK 16  // tokens that are convolved before they go through the state

__device__ u32 readers[COUNTERS];
__device__ u32 arrived[COUNTERS];

// What other CTAs have left in L2. The launch may not have looked at it before, and a fence would wait for the states that
// are being stored.
__device__ __forceinline__ void load_shared_sums(float (&y)[8], const float* p) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
        asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(y[i]), "=f"(y[i + 1]), "=f"(y[i + 2]), "=f"(y[i + 3]) : "l"(p + i) : "memory");
}

struct Finish {
    const act_t* proj;
    const float *weight, *sums;
    act_t* out;
    u8* blocks;
    int T, nv, z_at, columns, pair;
    float eps;
    bool wide;

    // A warp normalises token t in the heads of a group. Lane l has columns 8 l .. + 7 of them.
    __device__ __forceinline__ void operator()(int t, int group, int lane, bool exists) const {
        const bool on = pair || lane < D / 8;
        const i64 at = (i64)group * (pair ? 2 * D : D) + lane * 8;
        float y[8] = {}, z[8] = {}, w[8] = {};
        if (exists && on) {
            load_shared_sums(y, sums + (i64)t * nv * D + at);
            load_group(z, proj + (i64)t * columns + z_at + at, 8, wide);
            load_wide(w, weight + (lane & 15) * 8);
        }
        float squares = 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) squares = fmaf(y[i], y[i], squares);
#pragma unroll
        for (int i = 1; i < 16; i <<= 1) squares += __shfl_xor_sync(0xFFFFFFFFu, squares, i);
        const float inverse = rsqrtf(squares * (1.0f / D) + eps);
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = exists ? y[i] * inverse * w[i] * silu(z[i]) : 0.0f;
        if (on) store_group(out + (i64)t * nv * D + at, y, 8, true);
        if (blocks == nullptr) return;
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = to_float(from_float<act_t>(y[i]));
        stage_in_group(blocks, T, t, group, nv / 2, y, lane);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, PARTS == 4 ? 4 : 3)
delta_step(const act_t* proj, const float* taps, const float* decay, const float* bias, const float* weight, act_t* conv,
           state_t* state, const int* starts, const int* from, const int* to, act_t* out, u8* blocks, float* sums, int T,
           int R, int nk, int nv, int tiled, int few, int first, float eps) {
    __shared__ __align__(16) float q[BLOCK][D], k[BLOCK][D], squares[BLOCK][3][THREADS / 32];
    __shared__ float v[BLOCK][COLUMNS], gates[BLOCK][2], history[PAST][3][THREADS];
    __shared__ int targets[BLOCK];
    __shared__ u32 arrival, reader;
    const Sizes sizes = {nk, nv, D, D, tiled};
    const int part = blockIdx.x % PARTS, head = blockIdx.x / PARTS, row = first + blockIdx.y;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const int channels = sizes.channels(), columns = sizes.columns(), pair = !(nv & 1), group = pair ? head / 2 : head;
    const Finish finish = {proj, weight, sums, out, blocks, T, nv, channels, columns, pair, eps,
                           columns % 8 == 0 && aligned(proj, 8 * sizeof(act_t) < 16 ? 8 * sizeof(act_t) : 16)};
    pdl_launch();
    if (row >= R) {
        pdl_wait();
        if (part == 0 && head == (pair ? 2 * group : group))
            for (int t = starts[R] + warp; t < T; t += THREADS / 32) finish(t, group, lane, false);
        return;
    }
    const int start = starts[row], tokens = starts[row + 1] - start, slot = from[row], key_head = sizes.key_head(head);
    if (tokens == 0 || tokens > few) {
        pdl_wait();
        return;
    }
    const int rows = lane >> 1, column = warp * 8 + (lane & 1) * 4;  // the lane's: eights of rows, columns of a set
    float s[SETS][8][4];
    const i64 cells = (i64)nv * D * D, mine = (i64)head * D * D + rows * 8 * D + part * COLUMNS + column;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int e = 0; e < SETS; e++) {
            s[e][i][0] = s[e][i][1] = s[e][i][2] = s[e][i][3] = 0.0f;
            if (slot >= 0) load_wide(s[e][i], state + slot * cells + mine + i * D + 32 * e);
        }
    auto save = [&](int target) {
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
            for (int e = 0; e < SETS; e++) store_wide(state + target * cells + mine + i * D + 32 * e, s[e][i]);
    };
    // A thread convolves a channel of q, one of k and, in the first warps, one of v.
    const int mixed = warp < SETS ? 3 : 2;
    const int channel[3] = {key_head * D + tid, (nk + key_head) * D + tid, (2 * nk + head) * D + part * COLUMNS + tid};
    float x[3][TAPS], w[3][TAPS];
#pragma unroll
    for (int c = 0; c < 3; c++) {
        if (c >= mixed) break;
        load_wide(w[c], taps + (i64)channel[c] * TAPS);
#pragma unroll
        for (int i = 0; i < PAST; i++)
            history[i][c][tid] = x[c][i] =
                slot < 0 ? 0.0f : to_float(conv[((i64)slot * PAST + i) * channels + channel[c]]);
    }
    const float head_decay = decay[head], head_bias = bias[head];
    if (tid < BLOCK && tid < tokens) targets[tid] = to[start + tid];
    __syncthreads();
    pdl_wait();
    // Counters belong to one launch at a time: not before the wait. The answer is needed at the end. What was read lies in
    // shared memory, so nothing has to be ordered.
    u32* const read = readers + (row - first) * nk + key_head;
    u32 before = 0;
    if (tid == 0) before = atomicAdd(read, 1u);

    int left_over = -1;  // slot of the last token
#pragma unroll 1
    for (int base = 0; base < tokens; base += BLOCK) {
        const int n = min(BLOCK, tokens - base);
        const act_t* p = proj + (i64)(start + base) * columns;
        if (base > 0) {
            __syncthreads();
            if (tid < n) targets[tid] = to[start + base + tid];
            __syncthreads();
        }
        if (warp == 3 && lane < n) {
            const act_t* at = p + (i64)lane * columns + channels + nv * D + head;
            const float b = to_float(at[0]), a = to_float(at[nv]);
            gates[lane][0] = sigmoid(b);
            gates[lane][1] = expf(log_decay(head_decay, a + head_bias));
        }
#pragma unroll 1
        for (int t = 0; t < n; t += 2) {
            float raw[3][2];
#pragma unroll
            for (int e = 0; e < 2; e++)
#pragma unroll
                for (int c = 0; c < 3; c++)
                    if (c < mixed && t + e < n) raw[c][e] = to_float(p[(i64)(t + e) * columns + channel[c]]);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (t + e >= n) break;
                float u[3];
#pragma unroll
                for (int c = 0; c < 3; c++) {
                    if (c >= mixed) break;
                    x[c][PAST] = raw[c][e];
                    u[c] = convolved(x[c], w[c]);
#pragma unroll
                    for (int i = 0; i < PAST; i++) x[c][i] = x[c][i + 1];
                }
                q[t + e][tid] = u[0], k[t + e][tid] = u[1];
                if (warp < SETS) v[t + e][tid] = u[2];
                const float qq = warp_sum(u[0] * u[0]), kk = warp_sum(u[1] * u[1]), qk = warp_sum(u[0] * u[1]);
                if (lane == 0)
                    squares[t + e][0][warp] = qq, squares[t + e][1][warp] = kk, squares[t + e][2][warp] = qk;
            }
        }
        __syncthreads();

#pragma unroll 1
        for (int t = 0; t < n; t++) {
            auto total = [&](int of) {
                float y[4];
                load_wide(y, squares[t][of]);
                return (y[0] + y[1]) + (y[2] + y[3]);
            };
            const float scale_q = unit_scale(total(0)) * 0.08838834764831845f, scale_k = unit_scale(total(1));
            const float beta = gates[t][0], left = gates[t][1];
            float key[8], query[8];
            load_wide(key, k[t] + rows * 8);
            load_wide(query, q[t] + rows * 8);
            const int own = (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
#pragma unroll
            for (int e = 0; e < SETS; e++) {
                float a[8] = {};
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++) {
                        s[e][i][c] *= left;
                        a[c] = fmaf(key[i], s[e][i][c], a[c]);
                        a[4 + c] = fmaf(query[i], s[e][i][c], a[4 + c]);
                    }
                // Every exchange halves what a lane answers for: at last lanes with bit 4 have the product with q of
                // column 2 bit 3 + bit 2, others that with k.
#pragma unroll
                for (int half = 4, with = 16; half > 0; half >>= 1, with >>= 1)
#pragma unroll
                    for (int i = 0; i < half; i++) {
                        const float sent = lane & with ? a[i] : a[half + i], kept = lane & with ? a[half + i] : a[i];
                        a[i] = kept + __shfl_xor_sync(0xFFFFFFFFu, sent, with);
                    }
                const float product = a[0] + __shfl_xor_sync(0xFFFFFFFFu, a[0], 2);
                const float change = (v[t][32 * e + column + own] - scale_k * product) * beta;
                float d[4];
#pragma unroll
                for (int c = 0; c < 4; c++)
                    d[c] = __shfl_sync(0xFFFFFFFFu, change, (c >> 1) * 8 + (c & 1) * 4 + (lane & 1));
                const float wrote = lane & 8 ? (lane & 4 ? d[3] : d[2]) : (lane & 4 ? d[1] : d[0]);
                if ((lane & 18) == 16)  // an infinite change makes states of both signs, whose sum is no number
                    sums[((i64)(start + base + t) * nv + head) * D + part * COLUMNS + 32 * e + column + own] =
                        fmaf(scale_q, product, fmaf(total(2) * scale_q * scale_k, wrote, 0.0f * wrote));
#pragma unroll
                for (int i = 0; i < 8; i++)
#pragma unroll
                    for (int c = 0; c < 4; c++)
                        s[e][i][c] = stored<state_t>(fmaf(key[i] * scale_k, d[c], s[e][i][c]));
            }
            left_over = targets[t];
            if (left_over >= 0 && base + t + 1 < tokens) save(left_over);
        }
    }

    __syncthreads();
    const int groups = pair ? nv / 2 : nv;
    u32* counter = arrived + (row - first) * groups + group;
    if (tid == 0) {
        fence();
        arrival = atomicAdd(counter, 1u);
        reader = before;
    }
    if (left_over >= 0) save(left_over);
    __syncthreads();
    if (arrival + 1 == PARTS * (pair ? 2 : 1)) {
        if (tid == 0) *counter = 0;
        for (int t = warp; t < tokens; t += THREADS / 32) finish(start + t, group, lane, true);
    }
    const bool last_reader = reader + 1 == PARTS * sizes.group();
    if (tid == 0 && last_reader) *read = 0;
#pragma unroll
    for (int c = 0; c < 3; c++) {
        if (c >= mixed || (c < 2 && !last_reader)) continue;
        auto store = [&](i64 target, int i, float value) {
            conv[(target * PAST + i) * channels + channel[c]] = from_float<act_t>(value);
        };
#pragma unroll 1
        for (int t = 0; t + 1 < tokens; t++) {
            const int target = to[start + t];
            if (target < 0) continue;
#pragma unroll
            for (int i = 0; i < PAST; i++) {
                const int at = t - PAST + 1 + i;
                store(target, i, at < 0 ? history[PAST + at][c][tid]
                                        : to_float(proj[(i64)(start + at) * columns + channel[c]]));
            }
        }
        if (left_over >= 0)
#pragma unroll
            for (int i = 0; i < PAST; i++) store(left_over, i, x[c][i]);
    }
}
