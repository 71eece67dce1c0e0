// Parts of decode.cu: the sizes that follow from D and QUERIES, and what stands apart from its loop over keys.
//
// Fragments come from rows of 2 D bytes without padding, 16 bytes a lane, with few bank conflicts:
//   K: lane (g, t) loads dims 32 b + 8 t .. + 7 of key 8 n + g; pairs 0, 1 feed one MMA, pairs 2, 3 the next; Q agrees.
//      Odd g load block b ^ 1 first: none.
//   V: lane (g, t) loads chunk VB g + b of 8 dims (VB = COLUMNS / 64) of keys 2t, 2t+1, 2t+8, 2t+9; elements e, e + 1 of
//      each are rows g and g + 8 of A, so accumulators (b, e / 2) of lane (g, t) hold dims 8 (VB g + b) + e and + 1 of
//      queries 2t and 2t + 1. Odd t load b ^ 1 first: two ways (D = 64: four).
// A masked value must not reach a query even as 0 * NaN: values that no query of the tile sees are made zeros, and
// those that only some see, if not finite, are added by hand and then made zeros too.
#pragma once
#include "softmax.cuh"
#include "stage.cuh"

#define COLUMNS (D > 128 ? 128 : D)  // of the output that one warp sums
#define PARTS (D / COLUMNS)          // warps of a set
#define WARPS (4 / PARTS)            // sets, which share a split's keys
#define STEP (D > 256 ? 16 : 32)     // keys of a step
#define STRIDE (STEP * WARPS)
#define VB (COLUMNS / 64)
#define HALVES (QUERIES / 8)  // of a tile
#define CHUNKS (D / 8)  // 16-byte chunks of a row
#define THREADS 128
#if __CUDA_ARCH__ >= 1200
#define CTAS 1  // of 99 KiB of shared memory
#else
#define CTAS (D > 128 || QUERIES * D > 1024 || __CUDA_ARCH__ >= 1000 ? 2 : 3)
#endif
#define GROUPS (D > 128 ? D / 128 : 1)  // of 4 dims that a lane holds of a head
#define COUNTERS 16384
#define BATCH 8  // splits whose results are under way at once

// Where 4 floats f of a query's D land in a set's output block: turned within 8 so that neither side meets bank
// conflicts.
__device__ __forceinline__ int place(int query, int f) {
    const int pair = (query >> 1) & 3;
    return query * (D / 4) + (f ^ (D > 64 ? pair : (pair & 1) | (pair & 2) << 1));
}

// Whether a step's values hold one that is not finite among rows low..high, in the columns from chunk `column` on.
__device__ __forceinline__ bool found_odd(const uint4* values, int column, int low, int high) {
    u32 odd = 0;
#pragma unroll 1
    for (int c = threadIdx.x & 31; c < STEP * COLUMNS / 8; c += 32) {
        const int j = c / (COLUMNS / 8);
        if (j < low || j > high) continue;
        const uint4 v = values[j * CHUNKS + column + c % (COLUMNS / 8)];
        odd |= odd_halves<act_t>(v.x) | odd_halves<act_t>(v.y) | odd_halves<act_t>(v.z) | odd_halves<act_t>(v.w);
    }
    return __any_sync(0xFFFFFFFFu, odd != 0);
}

// Zeros for them, in a warp's columns of the step.
__device__ __forceinline__ void drop_odd(uint4* values, int column) {
    __syncwarp();
#pragma unroll 1
    for (int c = threadIdx.x & 31; c < STEP * COLUMNS / 8; c += 32) {
        uint4* v = values + c / (COLUMNS / 8) * CHUNKS + column + c % (COLUMNS / 8);
        *v = only_finite<act_t>(*v);
    }
    copies_see_shared();
    __syncwarp();
}

__device__ __forceinline__ void swap_if(bool condition, uint4& a, uint4& b) {
    const uint4 x = a, y = b;
    a = condition ? y : x;
    b = condition ? x : y;
}

// Zeros for tokens from `begin` on in the columns of a KV head's group.
__device__ __forceinline__ void write_zeros(act_t* out, u8* blocks, int begin, int T, int heads, int kv_head, int group) {
    const int tid = threadIdx.x, lane = tid & 31, width = group * D;
#pragma unroll 1
    for (i64 i = tid; i < (i64)(T - begin) * width; i += THREADS)
        out[((begin + i / width) * heads + kv_head * group) * D + i % width] = from_float<act_t>(0.0f);
#pragma unroll 1
    for (int i = tid >> 5; blocks && i < (T - begin) * (width / 256); i += THREADS / 32) {
        float zeros[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
        const int block = kv_head * (width / 256) + i % (width / 256);
        stage_in_group(blocks, T, begin + i / (width / 256), block, heads * D / 256, zeros, lane);
    }
}

// The outer product of 16 values of dims that are elements 2 e, 2 e + 1 of a chunk and the weights of all queries.
#define PAIR(e, word)                                                                                                 \
    {                                                                                                                 \
        const u32 a[4] = {                                                                                            \
            __byte_perm(x[0][b].word, x[1][b].word, 0x5410), __byte_perm(x[0][b].word, x[1][b].word, 0x7632),         \
            __byte_perm(x[2][b].word, x[3][b].word, 0x5410), __byte_perm(x[2][b].word, x[3][b].word, 0x7632)};        \
        _Pragma("unroll") for (int h = 0; h < HALVES; ++h)                                                            \
            mma_16816<act_t>(o[h][b][e], a, weights[h][0], weights[h][1]);                                            \
    }

// 4 columns of a query of a split, of all sets in order: the sum, the largest score and the sum of weights.
__device__ __forceinline__ void merge_sets(float (&x)[4], float& top, float& sum, const float* tops, const float* sums,
                                           const uint4* shared, int mine, int f) {
    float weight[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, tops[w * QUERIES + mine]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        weight[w] = exp2_fast(tops[w * QUERIES + mine] - anchor(top));
        sum = fmaf(sums[w * QUERIES + mine], weight[w], sum);
    }
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
        const float4 y = ((const float4*)(shared + w * (2 * STEP * CHUNKS)))[place(mine, f)];
        x[0] = fmaf(y.x, weight[w], x[0]), x[1] = fmaf(y.y, weight[w], x[1]);
        x[2] = fmaf(y.z, weight[w], x[2]), x[3] = fmaf(y.w, weight[w], x[3]);
    }
}

// Adds values that are not finite, of positions low .. high, to the queries 2t and 2t + 1 of each half that see them;
// `column` is the warp's first.
__device__ __forceinline__ void add_odd(float (&o)[HALVES][VB][4][4], const int (&seen)[HALVES],
                                        const int (&unseen)[HALVES], const act_t* values, int column, int low, int high) {
    const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int h = 0; h < HALVES; ++h)
#pragma unroll
        for (int u = 0; u < 2; ++u) {
            const int above = __shfl_sync(0xFFFFFFFFu, seen[h], 8 * t + 4 * u);
            const int below = __shfl_sync(0xFFFFFFFFu, unseen[h], 8 * t + 4 * u);
#pragma unroll 1
            for (int j = low; j <= high; ++j)
#pragma unroll
                for (int b = 0; b < VB; ++b)
#pragma unroll
                    for (int e = 0; e < 8; ++e) {
                        const int d = column + (VB * g + b) * 8 + e;
                        const float v =
                            to_float(values[(i64)j * D + d]);
                        if (!finite(v) && j <= above && j > below) o[h][b][e / 2][e % 2 * 2 + u] += v;
                    }
        }
}

// 4 columns of a query's splits opened .. final, and their sum of weights. Other CTAs of this launch wrote the parts.
__device__ __forceinline__ float merge_splits(float (&all)[4], const float4* o, const float2* ml, int opened, int final) {
    float sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    float total = 0.0f, running = NOTHING, of_all = 0.0f, highest = NOTHING;
#pragma unroll 1
    for (int s = opened / BATCH * BATCH; s <= final; s += BATCH) {
        float2 y[BATCH];
        float4 x[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {  // outside the visible splits nothing, which changes nothing
            y[k] = make_float2(NOTHING, 0.0f), x[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (s + k >= opened && s + k <= final)
                y[k] = load_past_l1(ml + s + k), x[k] = load_past_l1(o + (s + k) * (D / 4));
        }
#pragma unroll
        for (int k = 0; k < BATCH; ++k) {
            const Merge merge(running, y[k].x);
            running = merge.m;
            total = merge(total, y[k].y);
            sum[0] = merge(sum[0], x[k].x), sum[1] = merge(sum[1], x[k].y);
            sum[2] = merge(sum[2], x[k].z), sum[3] = merge(sum[3], x[k].w);
        }
        if ((s + BATCH) % LEVEL != 0 && s + BATCH <= final) continue;
        const Merge merge(highest, running);
        highest = merge.m;
        of_all = merge(of_all, total);
#pragma unroll
        for (int e = 0; e < 4; ++e) all[e] = merge(all[e], sum[e]), sum[e] = 0.0f;
        running = NOTHING, total = 0.0f;
    }
    return of_all;
}
