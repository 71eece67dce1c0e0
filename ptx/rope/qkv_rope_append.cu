// Split of a fused q, k, v projection; optional RMS norm of every q and k head; rotary embedding; append to the paged
// cache.
//
// qkv [T, columns] of ACT, the first (heads + 2 kv_heads) D columns -> q [T, heads, D] of ACT, and k (rotated), v into
// cache [pages, 2, kv_heads, 32, D] of KV at page pages[rows[t], positions[t] / 32], slot positions[t] % 32. table [C, 2,
// half] float32: cos, sin; dims (j, j + half) turn, dims from 2 half on pass. Float32 inside, one rounding to ACT after rotation.
// rows[t] = -1: q is zero and the cache is not touched. A null norm weight means no norm.
// Grid: (T, ceil((heads + 2 kv_heads) / 4)), 4 warps, one head each; a lane holds dims 4 i .. 4 i + 3, i = lane, lane +
// 32, ...
// Shared memory: 4 rows of D floats, where a lane finds the other half of its pairs. Archs: all.
// Bytes: 2 T (heads + 2 kv_heads) D elements. Compiled, not yet measured.
#include "head.cuh"

typedef PASTE(KV, _t) kv_t;
#define PAGE 32

extern "C" __global__ void __launch_bounds__(128)
qkv_rope_append(const act_t* qkv, const int* rows, const int* positions, const int* pages, const float* table,
                const float* q_norm, const float* k_norm, act_t* q, kv_t* cache, int P, int columns, int heads,
                int kv_heads, int D, int half, float eps) {
    extern __shared__ float4 shared[];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = blockIdx.x;
    const int unit = blockIdx.y * 4 + warp, units = heads + 2 * kv_heads;
    float* x = (float*)(shared + warp * ((D + 3) / 4));
    pdl_launch();
    pdl_wait();
    if (unit >= units) return;
    const bool is_q = unit < heads, is_v = unit >= heads + kv_heads;
    const bool wide = D % 4 == 0 && aligned(qkv, 16) && aligned(q, 16) && aligned(cache, 16);
    const int row = rows[t];
    act_t* to_q = q + ((i64)t * heads + unit) * D;
    if (row < 0) {
        const float zeros[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (is_q)
            for (int i = lane * 4; i < D; i += 128) store_group(to_q + i, zeros, D - i, wide);
        return;
    }
    const act_t* from = qkv + (i64)t * columns + (i64)unit * D;
    float v[4], sum = 0.0f;
    for (int i = lane * 4; i < D; i += 128) {
        load_group(v, from + i, D - i, wide);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            sum = fmaf(v[e], v[e], sum);
            if (i + e < D) x[i + e] = v[e];
        }
    }
    const float* weight = is_q ? q_norm : is_v ? nullptr : k_norm;
    if (weight) {
        const float inverse = head_scale(sum, D, eps);
        for (int i = lane * 4; i < D; i += 128)
#pragma unroll
            for (int e = 0; e < 4; ++e)
                if (i + e < D) x[i + e] = x[i + e] * inverse * weight[i + e];
    }
    __syncwarp();

    const int position = positions[t], turned = is_v ? 0 : 2 * half;
    const float *cosine = table + (i64)position * 2 * half, *sine = cosine + half;
    kv_t* to_kv = nullptr;
    if (!is_q) {
        const i64 page = pages[(i64)row * P + position / PAGE];
        const int head = is_v ? unit - heads - kv_heads : unit - heads;
        to_kv = cache + (((page * 2 + (is_v ? 1 : 0)) * kv_heads + head) * PAGE + position % PAGE) * D;
    }
    const bool fours = half % 4 == 0 && aligned(table, 16);
    for (int i = lane * 4; i < D; i += 128) {
        float c[4], s[4];
        load_turn(c, s, i, turned, half, cosine, sine, fours);
#pragma unroll
        for (int e = 0; e < 4; ++e) v[e] = i + e < D ? x[i + e] : 0.0f;
        rotate_group(v, x, i, turned, half, c, s, fours);
        if (is_q) {
            store_group(to_q + i, v, D - i, wide);
        } else {
#pragma unroll
            for (int e = 0; e < 4; ++e) v[e] = to_float(from_float<act_t>(v[e]));
            store_group(to_kv + i, v, D - i, wide);
        }
    }
}
