// Attention of rows with many new tokens on tensor cores (Dao, "FlashAttention-2", 2023), over a paged cache.
//
// q [T, heads, D], cache [pages, 2, kv_heads, 32, D], out [T, heads D], all of ACT (f16 or bf16); starts [R+1],
// positions [T], lengths [R], pages [R, P] int32. Rows of at most `few` new tokens are left to decode.cu.
// scale is positive and includes log2(e), or, with a soft cap (CAPPED), cap does and scale is over it (softmax.cuh).
// A token at position p sees keys j <= p, with p - j < window if window > 0.
//
// A query is a pair (token of the row, head of the KV head's group), in that order: the heads of a group share K and V.
// Grid: (ceil(max_new group / ROWS), kv_heads, R), ROWS / 16 warps; a warp owns 16 queries, the last tiles start first.
// K and V tiles of KEYS keys from a multiple of KEYS on, double-buffered by cp.async one tile ahead; tiles outside
// every query's sight are skipped. A masked value must not reach a query even as 0 * NaN: slots beyond the row's length
// are filled with zeros, and in a tile that only some queries see, values that are not finite are added by hand. P
// stays in registers: the accumulator of q k is the A fragment of p v.
// Shared memory (dynamic): (ROWS + 4 KEYS) D elements, 32 static bytes; 16-byte chunk c of row r stands at c ^ (r % 8),
// so that ldmatrix meets no bank conflict. Archs: all. FLOPs: 4 D per visible (query, key). Bytes: K and V once per
// tile, from L2.
// H200, 2026-11-20: 221 TFLOP/s at 4096 tokens, 32/8 heads of 128.
#include "mma.cuh"
#include "softmax.cuh"

#define THREADS (ROWS * 2)
#define HELD (D <= 128)  // Q fragments fit in registers; otherwise they are read again for every tile

__device__ __forceinline__ u32 chunk_at(u32 base, int r, int c) { return base + r * (D * 2) + ((c ^ (r & 7)) << 4); }

// Whether a tile of values holds one that is not finite; every thread of the CTA asks.
__device__ __forceinline__ bool found_odd(const uint4* values) {
    __shared__ u32 flags[THREADS / 32];
    u32 odd = 0;
#pragma unroll 1
    for (int c = threadIdx.x; c < KEYS * D / 8; c += THREADS) {
        const uint4 v = values[c];
        odd |= odd_halves<act_t>(v.x) | odd_halves<act_t>(v.y) | odd_halves<act_t>(v.z) | odd_halves<act_t>(v.w);
    }
    const bool found = __any_sync(0xFFFFFFFFu, odd != 0);
    if (threadIdx.x % 32 == 0) flags[threadIdx.x / 32] = found;
    __syncthreads();
    odd = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; ++w) odd |= flags[w];
    return odd != 0;
}

extern "C" __global__ void __launch_bounds__(THREADS)
attend_prefill(const act_t* q, const act_t* cache, const int* starts, const int* positions, const int* pages,
               act_t* out, const int* lengths, int P, int heads, int kv_heads, int few, float scale, float cap,
               int window) {
    extern __shared__ uint4 shared[];
    const u32 q_tile = shared_address(shared), k_tiles = q_tile + ROWS * D * 2, v_tiles = k_tiles + 2 * KEYS * D * 2;
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
    const int kv_head = blockIdx.y, row = blockIdx.z, group = heads / kv_heads, tile = gridDim.x - 1 - blockIdx.x;
    pdl_launch();
    pdl_wait();
    const int start = starts[row], tokens = starts[row + 1] - start, queries = tokens * group;
    if (tokens <= few || tile * ROWS >= queries) return;
    const int final = tile * ROWS + ROWS - 1 < queries ? tile * ROWS + ROWS - 1 : queries - 1;
    const int lowest = positions[start + tile * ROWS / group], highest = positions[start + final / group];
    const int length = lengths[row];
    const int* table = pages + (i64)row * P;
    const i64 head_size = (i64)PAGE * D, page_size = 2 * kv_heads * head_size, to_values = kv_heads * head_size;
    const act_t* head = cache + kv_head * head_size;

    for (int c = tid; c < ROWS * (D / 8); c += THREADS) {
        const int r = c / (D / 8), col = c % (D / 8), query = tile * ROWS + r;
        const bool real = query < queries;
        const i64 unit = real ? (i64)(start + query / group) * heads + kv_head * group + query % group : 0;
        copy_async_16(chunk_at(q_tile, r, col), q + unit * D + col * 8, real ? 16 : 0);
    }
    auto fetch = [&](int base, int stage) {
#pragma unroll(D > 128 ? 2 : 8)
        for (int c = tid; c < KEYS * (D / 8); c += THREADS) {
            const int r = c / (D / 8), col = c % (D / 8), j = base + r;
            const bool real = j < length;
            const act_t* from = head + (real ? table[j / PAGE] * page_size + (i64)(j % PAGE) * D : 0) + col * 8;
            copy_async_16(chunk_at(k_tiles + stage * KEYS * D * 2, r, col), from, real ? 16 : 0);
            copy_async_16(chunk_at(v_tiles + stage * KEYS * D * 2, r, col), from + to_values, real ? 16 : 0);
        }
        copy_commit();
    };
    auto values_at = [&](int stage) { return shared + (ROWS + 2 * KEYS + stage * KEYS) * (D / 8); };
    int base = first_key(lowest, window) / KEYS * KEYS, stage = 0;
    fetch(base, stage);

    int seen[2], unseen[2];  // keys in (unseen, seen] are visible to queries g and g + 8 of the warp
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int query = tile * ROWS + warp * 16 + g + 8 * i;
        seen[i] = query < queries ? positions[start + query / group] : -1;
        unseen[i] = window > 0 ? seen[i] - window : -1;
    }
    float o[D / 8][4], m[2] = {NOTHING, NOTHING}, l[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[n][i] = 0.0f;
    u32 held[HELD ? D / 16 : 1][4];
    const float factor = CAPPED ? cap : scale;  // of what stands in p

    for (bool opening = true; base <= highest; base += KEYS, stage ^= 1, opening = false) {
        copy_wait<0>();
        __syncthreads();  // this tile is there, and every warp has left the one before
        if (HELD && opening) {
#pragma unroll
            for (int c = 0; c < D / 16; ++c)
                ldmatrix_x4(held[HELD ? c : 0], chunk_at(q_tile, warp * 16 + (lane & 15), c * 2 + (lane >> 4)));
        }
        if (base + KEYS <= highest) fetch(base + KEYS, stage ^ 1);
        const u32 k_tile = k_tiles + stage * KEYS * D * 2, v_tile = v_tiles + stage * KEYS * D * 2;

        float p[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) p[n][i] = 0.0f;
#pragma unroll
        for (int c = 0; c < D / 16; ++c) {
            u32 loaded[4], b[4];
            if (!HELD) ldmatrix_x4(loaded, chunk_at(q_tile, warp * 16 + (lane & 15), c * 2 + (lane >> 4)));
            const u32(&a)[4] = HELD ? held[HELD ? c : 0] : loaded;
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                ldmatrix_x4(b, chunk_at(k_tile, n * 16 + (lane >> 4) * 8 + (lane & 7), c * 2 + (lane >> 3 & 1)));
                mma_16816<act_t>(p[2 * n], a, b[0], b[1]);
                mma_16816<act_t>(p[2 * n + 1], a, b[2], b[3]);
            }
        }
        if (CAPPED) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) p[n][i] = capped(p[n][i] * scale, 1.0f);
        }
        const bool partly = base + KEYS - 1 > lowest || (window > 0 && base <= highest - window);
        if (partly) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int j = base + n * 8 + t * 2 + (i & 1);
                    if (j > seen[i >> 1] || j <= unseen[i >> 1]) p[n][i] = NOTHING;
                }
        }
        float top[2] = {m[0], m[1]}, shrink[2], zero[2];
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) top[i >> 1] = fmaxf(top[i >> 1], p[n][i]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            top[i] = fmaxf(top[i], __shfl_xor_sync(0xFFFFFFFFu, top[i], 1));
            top[i] = fmaxf(top[i], __shfl_xor_sync(0xFFFFFFFFu, top[i], 2));
            zero[i] = anchor(top[i]) * factor;
            shrink[i] = exp2_fast(fmaf(m[i], factor, -zero[i]));
            m[i] = top[i];
            l[i] *= shrink[i];
        }
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                p[n][i] = exp2_fast(fmaf(p[n][i], factor, -zero[i >> 1]));
                l[i >> 1] += p[n][i];
            }
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) o[n][i] *= shrink[i >> 1];
        if (partly && found_odd(values_at(stage))) {
#pragma unroll 1
            for (int j = 0; j < KEYS; ++j)
#pragma unroll
                for (int n = 0; n < D / 8; ++n)
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const uint4* chunk = values_at(stage) + j * (D / 8) + (n ^ (j & 7));
                        const float v = to_float(((const act_t*)chunk)[t * 2 + (i & 1)]);
                        if (!finite(v) && base + j <= seen[i >> 1] && base + j > unseen[i >> 1]) o[n][i] += v;
                    }
            __syncthreads();
            for (int c = tid; c < KEYS * D / 8; c += THREADS) {
                uint4& chunk = values_at(stage)[c];
                chunk = only_finite<act_t>(chunk);
            }
            __syncthreads();
        }
#pragma unroll
        for (int c = 0; c < KEYS / 16; ++c) {
            const u32 a[4] = {pack2<act_t>(p[2 * c][0], p[2 * c][1]), pack2<act_t>(p[2 * c][2], p[2 * c][3]),
                              pack2<act_t>(p[2 * c + 1][0], p[2 * c + 1][1]),
                              pack2<act_t>(p[2 * c + 1][2], p[2 * c + 1][3])};
#pragma unroll
            for (int n = 0; n < D / 16; ++n) {
                u32 b[4];
                ldmatrix_x4_trans(b, chunk_at(v_tile, c * 16 + (lane & 15), n * 2 + (lane >> 4)));
                mma_16816<act_t>(o[2 * n], a, b[0], b[1]);
                mma_16816<act_t>(o[2 * n + 1], a, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 1);
        l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 2);
        const int query = tile * ROWS + warp * 16 + g + 8 * i;
        if (query >= queries) continue;
        const i64 unit = (i64)(start + query / group) * heads + kv_head * group + query % group;
#pragma unroll
        for (int n = 0; n < D / 8; ++n)
            *(u32*)(out + unit * D + n * 8 + t * 2) =
                pack2<act_t>(normalize(o[n][2 * i], l[i]), normalize(o[n][2 * i + 1], l[i]));
    }
}
