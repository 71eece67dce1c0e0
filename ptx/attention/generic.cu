// Causal attention for any types and any head_dim up to 512, one query head at a time, in float32 arithmetic.
//
// q [T, heads, D] of ACT; cache [pages, 2, kv_heads, 32, D] of KV; rows, positions [T], starts [R+1], pages [R, P]
// int32; out [T, heads D].
// A token at position p sees keys j <= p, with p - j < window if window > 0. scale includes log2(e), or, with a soft
// cap, cap does and scale is over it (softmax.cuh). Rows of at most `few` new tokens are left to decode.cu.
// Grid: (T, heads, S): CTA s handles split s of 256 keys and writes parts_o [T, heads, S, D], parts_ml [T, heads, S, 2]
// for combine.cu; with null parts (T, heads, 1): the CTA walks its splits in order and writes out. Both give the same
// bits.
// 128 threads. Scores: two keys a thread, the whole row of K by one thread. Values: dims over threads, keys over the
// groups of threads that D leaves (D <= 64), groups summed in order. Masked keys are never read.
// Shared memory: 4 D + 2 KiB bytes. Archs: all. Bytes: 2 keys D of KV per query head, from L2. Compiled, not yet
// measured.
#include "softmax.cuh"
#include "vector.cuh"

typedef PASTE(KV, _t) kv_t;

extern "C" __global__ void __launch_bounds__(128)
attend_generic(const act_t* q, const kv_t* cache, const int* rows, const int* starts, const int* positions,
               const int* pages, act_t* out, float* parts_o, float* parts_ml, int P, int kv_heads, int D, int few,
               float scale, float cap, int window) {
    extern __shared__ float4 shared[];
    __shared__ float weights[SPLIT], partial[128], tops[4], sums[4];
    float* query = (float*)shared;
    const int t = blockIdx.x, h = blockIdx.y, heads = gridDim.y, tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
    const i64 unit = (i64)t * heads + h;
    pdl_launch();
    pdl_wait();
    const int row = rows[t];
    if (row < 0) {
        if (!parts_o)
            for (int d = tid; d < D; d += 128) out[unit * D + d] = from_float<act_t>(0.0f);
        return;
    }
    if (starts[row + 1] - starts[row] <= few) return;
    const int position = positions[t], low = first_key(position, window);
    const int first = parts_o ? blockIdx.z : low / SPLIT, last = parts_o ? blockIdx.z : position / SPLIT;
    if (first < low / SPLIT || last > position / SPLIT) return;

    for (int d = tid; d < D; d += 128) query[d] = to_float(q[unit * D + d]);
    const int* table = pages + (i64)row * P;
    const i64 head_size = (i64)PAGE * D;
    const kv_t* head = cache + (i64)(h / (heads / kv_heads)) * head_size;
    const i64 page_size = 2 * kv_heads * head_size, to_values = kv_heads * head_size;
    const bool wide = D % 8 == 0 && aligned(cache, 16);
    int span = 8;  // threads that share the dims
    while (span < D && span < 128) span *= 2;
    const int groups = 128 / span, group = tid / span, dim = tid % span;

    float acc[4] = {0.0f, 0.0f, 0.0f, 0.0f}, total = 0.0f, m = NOTHING;
    for (int s = first; s <= last; ++s) {
        const int begin = s * SPLIT > low ? s * SPLIT : low;
        const int end = (s + 1) * SPLIT < position + 1 ? (s + 1) * SPLIT : position + 1;
        __syncthreads();  // the query is there, and nobody reads the last split's weights
        float score[2], top = NOTHING;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int j = s * SPLIT + tid + 128 * i;
            score[i] = NOTHING;
            if (j < begin || j >= end) continue;
            const kv_t* key = head + table[j / PAGE] * page_size + (i64)(j % PAGE) * D;
            float dot[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            if (wide) {
                for (int d = 0; d < D; d += 8) {
                    float k[8], a[8];
                    load_wide(k, key + d);
                    load_wide(a, query + d);
#pragma unroll
                    for (int e = 0; e < 8; ++e) dot[e % 4] = fmaf(a[e], k[e], dot[e % 4]);
                }
            } else {
                for (int d = 0; d < D; ++d) dot[0] = fmaf(query[d], to_float(key[d]), dot[0]);
            }
            score[i] = capped(((dot[0] + dot[1]) + (dot[2] + dot[3])) * scale, cap);
            top = fmaxf(top, score[i]);
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, o));
        if (lane == 0) tops[warp] = top;
        __syncthreads();
        top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float w = exp2_fast(score[i] - anchor(top));
            weights[tid + 128 * i] = w;
            sum += w;
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, o);
        if (lane == 0) sums[warp] = sum;
        __syncthreads();
        sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);

        float o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        for (int base = begin / PAGE * PAGE; base < end; base += PAGE) {
            const kv_t* values = head + table[base / PAGE] * page_size + to_values;
#pragma unroll 4
            for (int k = group; k < PAGE; k += groups) {
                const int j = base + k;
                if (j < begin || j >= end) continue;
                const float w = weights[j - s * SPLIT];
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    if (dim + 128 * i < D) o[i] = fmaf(w, to_float(values[(i64)k * D + dim + 128 * i]), o[i]);
            }
        }
        if (groups > 1) {
            partial[tid] = o[0];
            __syncthreads();
            o[0] = 0.0f;
            for (int g = 0; g < groups; ++g) o[0] += partial[g * span + dim];
        }
        const Merge merge(m, top);
        m = merge.m;
        total = merge(total, sum);
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[i] = merge(acc[i], o[i]);
    }
    if (group > 0) return;
    if (parts_o && tid == 0) ((float2*)parts_ml)[unit * gridDim.z + blockIdx.z] = make_float2(m, total);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int d = dim + 128 * i;
        if (d >= D) continue;
        if (parts_o) parts_o[(unit * gridDim.z + blockIdx.z) * D + d] = acc[i];
        else out[unit * D + d] = from_float<act_t>(normalize(acc[i], total));
    }
}
