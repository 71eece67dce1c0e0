// Merges the partial results of an attention's splits, as softmax.cuh says, and normalises.
//
// parts_o [T, heads, S, D] and parts_ml [T, heads, S, 2] (m, l) float32 -> out [T, heads D] of ACT and, unless `blocks`
// is null, the same as operands of the small matmuls (stage.cuh). Split s of a token at position p counts if it holds a
// visible key; only those are read. rows[t] = -1 gives zeros. rows and positions are inputs of the step and read before
// griddepcontrol.wait.
// Grid: (T, ceil(heads D / columns)): a CTA's `columns` are a multiple of D, or a part of one head, up to 256; with
// blocks they are 256. 768 threads: 128 pairs of columns, 6 groups of LEVEL splits at a time. A thread loads all splits
// of its group at once and merges them with weights from a running maximum (exact in any order); then the groups are
// merged by the first of them. What is past the last split are zeros with weight 0, which change nothing.
// Shared memory: 16 KiB. Archs: all. Bytes: 4 T heads S (D + 2).
// H200, 2026-11-25: 3.0 us for 65 splits of 32 heads of 128.
#include "softmax.cuh"
#include "stage.cuh"

#define PAIRS 128
#define GROUPS 6
#define SPAN (GROUPS * LEVEL)  // splits at a time
#define HEADS 4                // of a CTA, at most

extern "C" __global__ void __launch_bounds__(PAIRS * GROUPS)
attend_combine(const float* parts_o, const float* parts_ml, const int* rows, const int* positions, act_t* out,
               u8* blocks, int T, int heads, int S, int D, int columns, int window) {
    __shared__ float2 ready[GROUPS][PAIRS];
    __shared__ float4 weights[HEADS][SPAN];  // of what is there, of the split, and the split's l
    __shared__ float tops[HEADS][GROUPS], totals[GROUPS][PAIRS];
    __shared__ __align__(16) act_t rounded[2 * PAIRS];
    const int token = blockIdx.x, tid = threadIdx.x, pair = tid % PAIRS, group = tid / PAIRS, per_head = columns / D;
    const int parts = per_head ? 1 : (D + columns - 1) / columns;  // CTAs of a head
    const int head = per_head ? (int)blockIdx.y * per_head : (int)blockIdx.y / parts;
    const int column = 2 * pair + (per_head ? 0 : (int)blockIdx.y % parts * columns);  // from the head's first on
    const int mine = column / D, d = column - mine * D;
    const bool valid = 2 * pair < columns && (per_head ? head + mine < heads : column < D);
    const int at = token * heads + head;  // the CTA's first head
    pdl_launch();
    const int row = rows[token], position = positions[token];
    const int first = first_key(position, window) / SPLIT, last = row < 0 ? -1 : position / SPLIT;
    pdl_wait();
    float acc[2] = {0.0f, 0.0f}, total = 0.0f, highest = NOTHING;
#pragma unroll 1
    for (int base = first / SPAN * SPAN; base <= last; base += SPAN) {
        const int begin = base + group * LEVEL, of = base + pair;
        const bool used = begin <= last && begin + LEVEL > first;
        const float2* o = (const float2*)(parts_o + ((i64)((int)blockIdx.x * heads + head + mine) * S + begin) * D + d);
        const int from = valid ? first - begin : LEVEL, to = last - begin;
        float2 x[LEVEL];
#pragma unroll
        for (int k = 0; k < LEVEL; ++k) {
            x[k] = make_float2(0.0f, 0.0f);
            if (k >= from && k <= to) x[k] = *o;
            o += D / 2;
        }
        // A head's weights: half a warp a group of splits.
        if (pair < SPAN && group < (per_head ? per_head : 1) && head + group < heads) {
            const bool seen = of >= first && of <= last;
            const float2 y = seen ? ((const float2*)parts_ml)[(i64)(at + group) * S + of] : make_float2(NOTHING, 0.0f);
            float upto = y.x;
#pragma unroll
            for (int i = 1; i < LEVEL; i <<= 1) {
                const float z = __shfl_up_sync(0xFFFFFFFFu, upto, i, LEVEL);
                if (pair % LEVEL >= i) upto = fmaxf(upto, z);
            }
            float before = __shfl_up_sync(0xFFFFFFFFu, upto, 1, LEVEL);
            if (pair % LEVEL == 0) before = NOTHING;
            const Merge merge(before, y.x);
            weights[group][pair] = make_float4(merge.old_weight, merge.new_weight, y.y, 0.0f);
            if (pair % LEVEL == LEVEL - 1) tops[group][pair / LEVEL] = upto;
        }
        __syncthreads();
        if (valid && used) {
            float2 sum = make_float2(0.0f, 0.0f);
            float l = 0.0f;
#pragma unroll
            for (int k = 0; k < LEVEL; ++k) {
                const float4 w = weights[mine][group * LEVEL + k];
                sum.x = fmaf(x[k].x, w.y, __fmul_rn(sum.x, w.x));
                sum.y = fmaf(x[k].y, w.y, __fmul_rn(sum.y, w.x));
                l = fmaf(w.z, w.y, __fmul_rn(l, w.x));
            }
            ready[group][pair] = sum;
            totals[group][pair] = l;
        }
        __syncthreads();
        if (group == 0 && valid) {
#pragma unroll
            for (int k = 0; k < GROUPS; ++k) {
                if (base + k * LEVEL > last || base + (k + 1) * LEVEL <= first) continue;
                const Merge merge(highest, tops[mine][k]);
                const float2 sum = ready[k][pair];
                highest = merge.m;
                acc[0] = merge(acc[0], sum.x), acc[1] = merge(acc[1], sum.y);
                total = merge(total, totals[k][pair]);
            }
        }
        if (base + SPAN <= last) __syncthreads();
    }
    if (group > 0) return;
    if (valid) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            const act_t y = from_float<act_t>(last < 0 ? 0.0f : normalize(acc[e], total));
            out[(i64)(at + mine) * D + d + e] = rounded[2 * pair + e] = y;
        }
    }
    if (blocks == nullptr) return;
    asm volatile("bar.sync 1, %0;" ::"n"(PAIRS) : "memory");
    if (pair >= 32) return;
    float f[8];
    load_wide(f, rounded + 8 * pair);
    stage_in_group(blocks, T, token, blockIdx.y, heads * D / 256, f, pair);
}
