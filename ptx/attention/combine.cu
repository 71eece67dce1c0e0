// Merges the partial results of an attention's splits, in order, and normalises.
//
// parts_o [T, heads, S, D] and parts_ml [T, heads, S, 2] (m, l) float32 -> out [T, heads D] of ACT. Split s of a token
// at position p counts if it holds a visible key; only those are read. rows[t] = -1 gives zeros. rows and positions are
// inputs of the step and read before griddepcontrol.wait.
// Grid: (T, heads), 128 threads; 128 splits at a time: their weights by a running maximum (exact in any order), then
// each thread sums dims threadIdx.x + 128 i in split order, 32 loads under way at once; those past the last split are
// zeros with weight 0, which change nothing. Shared memory: 1.6 KiB. Archs: all.
// Bytes: 4 T heads S (D + 2). H200, 67 splits of 32 heads of 128: 4.4 us.
#include "softmax.cuh"

#define BATCH 32

extern "C" __global__ void __launch_bounds__(128)
attend_combine(const float* parts_o, const float* parts_ml, const int* rows, const int* positions, act_t* out, int S,
               int D, int window) {
    __shared__ float old_weight[128], new_weight[128], sums[128], tops[4];
    const int t = blockIdx.x, h = blockIdx.y, heads = gridDim.y, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const i64 unit = (i64)t * heads + h;
    pdl_launch();
    const int row = rows[t], position = positions[t], last = position / SPLIT;
    pdl_wait();
    out += unit * D;
    if (row < 0) {
        for (int d = tid; d < D; d += 128) out[d] = from_float<act_t>(0.0f);
        return;
    }
    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f}, total = 0.0f, m = NOTHING;
    for (int base = first_key(position, window) / SPLIT; base <= last; base += 128) {
        const int s = base + tid, count = last + 1 - base < 128 ? last + 1 - base : 128;
        const float* o = parts_o + (unit * S + base) * D + tid;
        float v[BATCH];
        auto load = [&](int j, int i) {
#pragma unroll
            for (int k = 0; k < BATCH; ++k)
                v[k] = j + k < count && tid + 128 * i < D ? o[(i64)(j + k) * D + 128 * i] : 0.0f;
        };
        load(0, 0);
        const float2 ml = s <= last ? ((const float2*)parts_ml)[unit * S + s] : make_float2(NOTHING, 0.0f);
        float upto = ml.x;
#pragma unroll
        for (int o = 1; o < 32; o <<= 1) {
            float y = __shfl_up_sync(0xFFFFFFFFu, upto, o);
            if (lane >= o) upto = fmaxf(upto, y);
        }
        if (lane == 31) tops[warp] = upto;
        float before = __shfl_up_sync(0xFFFFFFFFu, upto, 1);
        if (lane == 0) before = NOTHING;
        __syncthreads();
        before = fmaxf(before, m);
        for (int w = 0; w < 4; ++w) {
            if (w < warp) before = fmaxf(before, tops[w]);
            m = fmaxf(m, tops[w]);
        }
        const Merge merge(before, ml.x);
        old_weight[tid] = merge.old_weight;
        new_weight[tid] = merge.new_weight;
        sums[tid] = ml.y;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (128 * i >= D) break;
            for (int j = 0; j < count; j += BATCH) {
                if (i > 0 || j > 0) load(j, i);
#pragma unroll
                for (int k = 0; k < BATCH; ++k) {
                    if (i == 0) total = fmaf(sums[j + k], new_weight[j + k], __fmul_rn(total, old_weight[j + k]));
                    acc[i] = fmaf(v[k], new_weight[j + k], __fmul_rn(acc[i], old_weight[j + k]));
                }
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (tid + 128 * i < D) out[tid + 128 * i] = from_float<act_t>(normalize(acc[i], total));
}
