// Split-KV attention of rows with few new tokens (decode, speculative verification) on tensor cores.
//
// q [T, heads, D], cache [pages, 2, kv_heads, 32, D], out [T, heads D], all of ACT (f16 or bf16); starts [R+1],
// positions [T], pages [R, P] int32. Rows with more than `few` new tokens are left to prefill.cu.
// scale includes log2(e). A token at position p sees keys j <= p, with p - j < window if window > 0.
//
// A query is a pair (token of the row, head of the KV head's group), in that order; 16 of them are a tile, the M of the
// MMA.
// Grid: (S, kv_heads * tiles, R): CTA (s, ...) handles the 256 keys of split s and writes parts_o [T, heads, S, D] and
// parts_ml [T, heads, S, 2] for combine.cu. With null parts (1, kv_heads * tiles, R + 1): the CTA walks its splits in
// order and writes out; the last z writes zeros for padding tokens. Both give the same bits.
// 4 warps of 64 keys each, 32 at a time, then merged in warp order; for D = 256 twice 4 warps that split the columns of
// V. A query's arithmetic is that of its own MMA row and masked keys change nothing, so its bits depend neither on
// other queries nor on the row's other tokens.
// A masked value must not reach a query even as 0 * NaN: values that no query of the tile sees are read as zeros, and
// those that only some see, if not finite, are taken out of the MMA and added by hand.
// K and V go from global memory to B fragments without shared memory, 16 bytes a lane:
//   K: lane (g, t) loads dims 32 b + 8 t .. + 7 of key 8 n + g; pairs 0, 1 feed one MMA, pairs 2, 3 the next; Q agrees.
//   V: lane (g, t) loads dims 64 b + 8 g .. + 7 of keys 2t, 2t+1, 2t+8, 2t+9; element e of each is column g of n-tile
//      e, so accumulator e of lane (g, t) holds dims 64 b + 16 t + e and + 8 + e of query g.
// Shared memory (dynamic): Q fragments 32 D, outputs of 4 warps 256 D, sums over splits 64 D, m and l of warps 512
// bytes.
// Archs: all. Bytes: 4 keys D per KV head and tile. H200, 2026-11-20: 1.60 TB/s at 16384 keys.
#include "mma.cuh"
#include "softmax.cuh"
#include "vector.cuh"

#define WARPS 4                      // that share a split's keys
#define COLUMNS (D > 128 ? 128 : D)  // of the output that one warp sums
#define PARTS (D / COLUMNS)          // sets of WARPS warps
#define THREADS (WARPS * PARTS * 32)

// Where 4 floats f of a query's D land in a warp's output block: rotated within 8 so that neither side meets bank
// conflicts.
__device__ __forceinline__ int place(int query, int f) {
    return query * (D / 4) + (f ^ ((f >> 3) & 1) ^ ((query & 1) << 1));
}

// Whether a page holds a value that is not finite among positions low..high; the page starts at position base.
__device__ __forceinline__ bool found_odd(const act_t* values, int base, int low, int high) {
    u32 odd = 0;
#pragma unroll 1
    for (int c = threadIdx.x & 31; c < PAGE * D / 8; c += 32) {
        const int j = base + c / (D / 8);
        if (j < low || j > high) continue;
        const uint4 v = ((const uint4*)values)[c];
        odd |= odd_halves<act_t>(v.x) | odd_halves<act_t>(v.y) | odd_halves<act_t>(v.z) | odd_halves<act_t>(v.w);
    }
    return __any_sync(0xFFFFFFFFu, odd != 0);
}

extern "C" __global__ void __launch_bounds__(THREADS, D == 64 ? 3 : D == 128 ? 2 : 1)
attend_decode(const act_t* q, const act_t* cache, const int* starts, const int* positions, const int* pages, act_t* out,
              float* parts_o, float* parts_ml, int T, int R, int P, int heads, int kv_heads, int few, float scale,
              int window) {
    extern __shared__ uint4 shared[];
    uint4* fragments = shared;                              // [D / 32][2][32]
    float4* outputs = (float4*)(shared + 2 * D);            // [WARPS][16][D / 4]
    float4* state = outputs + WARPS * 4 * D;                // a thread's own sums over splits
    float* tops = (float*)(state + WARPS * D);              // [WARPS][16]
    float* sums = tops + WARPS * 16;                        // [WARPS][16]
    const int tid = threadIdx.x, lane = tid & 31, warp = (tid >> 5) % WARPS, g = lane >> 2, t = lane & 3;
    const int half = tid / (WARPS * 32);
    const int kv_head = blockIdx.y % kv_heads, tile = blockIdx.y / kv_heads, row = blockIdx.z, group = heads / kv_heads;
    pdl_launch();
    pdl_wait();
    if (row == R) {
        if (tile > 0) return;
        const int begin = starts[R], width = group * D;
        for (i64 i = tid; i < (i64)(T - begin) * width; i += THREADS)
            out[((begin + i / width) * heads + kv_head * group) * D + i % width] = from_float<act_t>(0.0f);
        return;
    }
    const int start = starts[row], tokens = starts[row + 1] - start, queries = tokens * group;
    if (tokens > few || tile * 16 >= queries) return;
    const int final = tile * 16 + 15 < queries ? tile * 16 + 15 : queries - 1;
    const int lowest = positions[start + tile * 16 / group], high = positions[start + final / group];
    const int low = first_key(lowest, window);
    const int first = parts_o ? blockIdx.x : low / SPLIT, last = parts_o ? blockIdx.x : high / SPLIT;
    if (first < low / SPLIT || last > high / SPLIT) return;
    const int* table = pages + (i64)row * P;
    const i64 head_size = (i64)PAGE * D, page_size = 2 * kv_heads * head_size;
    const act_t *keys = cache + kv_head * head_size, *values = keys + kv_heads * head_size;

    for (int c = tid; c < 2 * D; c += THREADS) {
        const int r = c / (D / 8), col = c % (D / 8), query = tile * 16 + r;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (query < queries)
            v = ((const uint4*)(q + ((i64)(start + query / group) * heads + kv_head * group + query % group) * D))[col];
        fragments[((col / 4) * 2 + r / 8) * 32 + (r % 8) * 4 + col % 4] = v;
    }
    int seen[2], unseen[2];  // keys in (unseen, seen] are visible to queries g and g + 8
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int query = tile * 16 + g + 8 * i;
        seen[i] = query < queries ? positions[start + query / group] : -1;
        unseen[i] = window > 0 ? seen[i] - window : -1;
    }
    // After the merge of warps a thread owns dims 4 part + 32 PARTS i .. + 3 of query `mine`.
    const int mine = tid / (8 * PARTS), part = tid % (8 * PARTS);
    float total = 0.0f, running = NOTHING;
    for (int i = 0; i < COLUMNS / 32; ++i) state[i * THREADS + tid] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    __syncthreads();

    for (int s = first; s <= last; ++s) {
        float o[COLUMNS / 64][8][4], m[2] = {NOTHING, NOTHING}, l[2] = {0.0f, 0.0f};
#pragma unroll
        for (int b = 0; b < COLUMNS / 64; ++b)
#pragma unroll
            for (int e = 0; e < 8; ++e)
#pragma unroll
                for (int i = 0; i < 4; ++i) o[b][e][i] = 0.0f;
#pragma unroll 1
        for (int base = s * SPLIT + warp * 64; base < s * SPLIT + warp * 64 + 64; base += PAGE) {
            if (base > high || base + PAGE <= low) continue;
            const i64 page = table[base / PAGE] * page_size;
            const act_t* k = keys + page + g * D + t * 8;
            float p[4][4];
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) p[n][i] = 0.0f;
#pragma unroll
            for (int b = 0; b < D / 32; ++b) {
                const uint4 a = fragments[b * 64 + lane], c = fragments[b * 64 + 32 + lane];
                const u32 even[4] = {a.x, c.x, a.y, c.y}, odd[4] = {a.z, c.z, a.w, c.w};
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const uint4 x = *(const uint4*)(k + n * 8 * D + b * 32);
                    mma_16816<act_t>(p[n], even, x.x, x.y);
                    mma_16816<act_t>(p[n], odd, x.z, x.w);
                }
            }
            float top[2] = {m[0], m[1]}, shrink[2];
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int j = base + n * 8 + t * 2 + (i & 1);
                    p[n][i] = j <= seen[i >> 1] && j > unseen[i >> 1] ? p[n][i] * scale : NOTHING;
                    top[i >> 1] = fmaxf(top[i >> 1], p[n][i]);
                }
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                top[i] = fmaxf(top[i], __shfl_xor_sync(0xFFFFFFFFu, top[i], 1));
                top[i] = fmaxf(top[i], __shfl_xor_sync(0xFFFFFFFFu, top[i], 2));
                shrink[i] = exp2_fast(m[i] - anchor(top[i]));
                m[i] = top[i];
                l[i] = __fmul_rn(l[i], shrink[i]);
            }
#pragma unroll
            for (int n = 0; n < 4; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[n][i] = exp2_fast(p[n][i] - anchor(m[i >> 1]));
                    l[i >> 1] += p[n][i];
                }
#pragma unroll
            for (int b = 0; b < COLUMNS / 64; ++b)
#pragma unroll
                for (int e = 0; e < 8; ++e)
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[b][e][i] *= shrink[i >> 1];
            const bool partly = lowest < high && (base + PAGE - 1 > lowest || (window > 0 && base <= high - window));
            const bool odd_values = partly && found_odd(values + page, base, low, high);
            if (odd_values) {
#pragma unroll 1
                for (int j = low > base ? low : base; j < base + PAGE && j <= high; ++j)
#pragma unroll
                    for (int b = 0; b < COLUMNS / 64; ++b)
#pragma unroll
                        for (int e = 0; e < 16; ++e) {
                            const int d = half * COLUMNS + b * 64 + t * 16 + e;
                            const float v = to_float(values[page + (j - base) * D + d]);
                            if (finite(v)) continue;
                            if (j <= seen[0] && j > unseen[0]) o[b][e % 8][e / 8] += v;
                            if (j <= seen[1] && j > unseen[1]) o[b][e % 8][2 + e / 8] += v;
                        }
            }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const u32 a[4] = {pack2<act_t>(p[2 * h][0], p[2 * h][1]), pack2<act_t>(p[2 * h][2], p[2 * h][3]),
                                  pack2<act_t>(p[2 * h + 1][0], p[2 * h + 1][1]),
                                  pack2<act_t>(p[2 * h + 1][2], p[2 * h + 1][3])};
                const act_t* v = values + page + (h * 16 + t * 2) * D + half * COLUMNS + g * 8;
                const int j = base + h * 16 + t * 2;
#pragma unroll
                for (int b = 0; b < COLUMNS / 64; ++b) {
                    uint4 x[4];
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int slot = (i & 1) + (i >> 1) * 8;
                        x[i] = make_uint4(0, 0, 0, 0);
                        if (j + slot >= low && j + slot <= high) x[i] = *(const uint4*)(v + slot * D + b * 64);
                        if (odd_values) x[i] = only_finite<act_t>(x[i]);
                    }
#define PAIR(e, word)                                                          \
    mma_16816<act_t>(o[b][e], a, __byte_perm(x[0].word, x[1].word, 0x5410),     \
                     __byte_perm(x[2].word, x[3].word, 0x5410));                \
    mma_16816<act_t>(o[b][e + 1], a, __byte_perm(x[0].word, x[1].word, 0x7632), \
                     __byte_perm(x[2].word, x[3].word, 0x7632));
                    PAIR(0, x) PAIR(2, y) PAIR(4, z) PAIR(6, w)
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 1);
            l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 2);
            const int query = g + 8 * i;
            if (t == 0 && half == 0) tops[warp * 16 + query] = m[i], sums[warp * 16 + query] = l[i];
#pragma unroll
            for (int b = 0; b < COLUMNS / 64; ++b)
#pragma unroll
                for (int u = 0; u < 4; ++u) {
                    const int e = u % 2 * 4, c = 2 * i + u / 2;
                    outputs[warp * 4 * D + place(query, half * (COLUMNS / 4) + b * 16 + t * 4 + u)] =
                        make_float4(o[b][e][c], o[b][e + 1][c], o[b][e + 2][c], o[b][e + 3][c]);
                }
        }
        __syncthreads();
        float top = NOTHING, sum = 0.0f, weight[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; ++w) top = fmaxf(top, tops[w * 16 + mine]);
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
            weight[w] = exp2_fast(tops[w * 16 + mine] - anchor(top));
            sum = fmaf(sums[w * 16 + mine], weight[w], sum);
        }
        const Merge merge(running, top);
        running = merge.m;
        total = merge(total, sum);
#pragma unroll
        for (int i = 0; i < COLUMNS / 32; ++i) {
            float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float4 y = outputs[w * 4 * D + place(mine, part + 8 * PARTS * i)];
                x[0] = fmaf(y.x, weight[w], x[0]), x[1] = fmaf(y.y, weight[w], x[1]);
                x[2] = fmaf(y.z, weight[w], x[2]), x[3] = fmaf(y.w, weight[w], x[3]);
            }
            float4& sum4 = state[i * THREADS + tid];
            sum4 = make_float4(merge(sum4.x, x[0]), merge(sum4.y, x[1]), merge(sum4.z, x[2]), merge(sum4.w, x[3]));
        }
        __syncthreads();
    }

    const int query = tile * 16 + mine;
    if (query >= queries) return;
    const i64 unit = (i64)(start + query / group) * heads + kv_head * group + query % group;
    const i64 slot = unit * gridDim.x + blockIdx.x;
    if (parts_o && part == 0) ((float2*)parts_ml)[slot] = make_float2(running, total);
#pragma unroll
    for (int i = 0; i < COLUMNS / 32; ++i) {
        const int d = (part + 8 * PARTS * i) * 4;
        const float4 x = state[i * THREADS + tid];
        if (parts_o) {
            *(float4*)(parts_o + slot * D + d) = x;
        } else {
            const float y[4] = {normalize(x.x, total), normalize(x.y, total), normalize(x.z, total),
                                normalize(x.w, total)};
            store_wide(out + unit * D + d, y);
        }
    }
}
