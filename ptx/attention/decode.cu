// Split-KV attention of rows with few new tokens (decode, speculative verification) on tensor cores; if asked, with
// what comes before it: head norms, rotary embedding and the append to the cache.
//
// q [T, heads, D], or null and qkv [T, (heads + 2 kv_heads) D]; cache [pages, 2, kv_heads, 32, D], out [T, heads D],
// all of ACT (f16 or bf16); starts [R+1], positions [T], pages [R, P] int32; angles [C, 2, half] float32 (cos, sin),
// q_norm and k_norm [D] float32 or null. Rows with more than `few` new tokens are left to prefill.cu or generic.cu.
// A token at position p sees keys j <= p, with p - j < window if window > 0. scale includes log2(e), or, with a soft
// cap, cap does and scale is over it (softmax.cuh).
//
// A query is a pair (token of the row, head of the KV head's group), in that order; 16 of them are a tile, the M of the
// MMA.
// Grid: (S, kv_heads * tiles, R or R + 1): CTA (s, ...) handles the 256 keys of split s and writes parts_o [T, heads,
// S, D] and parts_ml [T, heads, S, 2]: for combine.cu, or, if `joins`, for the CTA of its row, KV head and tile that
// arrives last (`arrived` counts), which merges them in the order of splits and leaves the count at zero. A tile that
// sees one split writes out. With null parts (1, ...) a CTA walks its splits. All three give the same bits. An extra
// last z writes zeros for padding tokens.
// 4 warps: WARPS sets of PARTS. A set takes every WARPS-th step of STEP keys and its warps split the columns of V; sets
// are merged in order. A query's arithmetic is that of its own MMA row and masked keys change nothing, so its bits
// depend neither on other queries nor on the row's other tokens.
//
// Keys and values of a step are two bulk copies of whole page (halves), `stages` steps ahead, and the first ones are
// issued before griddepcontrol.wait. What is read there was written before the step began: a step begins with a copy of
// its inputs (starts, positions, pages), which waits for all kernels before it and which all kernels of the step wait
// for, the early ones through the launch that they depend on. Only keys from the row's first new position on are of
// this step. With q they are read after the wait; with qkv every CTA makes those that it needs itself, in shared
// memory, never reads what the cache holds there, and the tile of token t's own head 0 appends t.
// B fragments come from rows of 2 D bytes without padding, 16 bytes a lane, with few bank conflicts:
//   K: lane (g, t) loads dims 32 b + 8 t .. + 7 of key 8 n + g; pairs 0, 1 feed one MMA, pairs 2, 3 the next; Q agrees.
//      Odd g load block b ^ 1 first: none.
//   V: lane (g, t) loads chunk VB g + b of 8 dims (VB = COLUMNS / 64) of keys 2t, 2t+1, 2t+8, 2t+9; element e of each
//      is column g of n-tile (b, e), so accumulator (b, e) of lane (g, t) holds dims 16 VB t + 8 b + e and + 8 VB of
//      query g. Odd t load b ^ 1 first: two ways (D = 64: four).
// A masked value must not reach a query even as 0 * NaN: values that no query of the tile sees are read as zeros, and
// those that only some see, if not finite, are taken out of the MMA and added by hand.
// Shared memory (dynamic): a ring of stages 2 WARPS STEP 2 D bytes (at the end the sets' outputs), Q fragments 32 D,
// new K and V 4 D room, and heads under way 16 D or sums over splits 64 D.
// Archs: all. Bytes: 4 keys D per KV head and tile. H200, 32/8 heads of 128: 6.7 us for
// 69 keys, 23.8 us (2.87 TB/s) for 16452.
#include "bulk.cuh"
#include "head.cuh"
#include "mma.cuh"
#include "softmax.cuh"

#define COLUMNS (D > 128 ? 128 : D)  // of the output that one warp sums
#define PARTS (D / COLUMNS)          // warps of a set
#define WARPS (4 / PARTS)            // sets, which share a split's keys
#define STEP (D > 256 ? 16 : 32)     // keys of a step
#define STRIDE (STEP * WARPS)
#define VB (COLUMNS / 64)
#define CHUNKS (D / 8)  // 16-byte chunks of a row
#define THREADS 128
#define GROUPS (D > 128 ? D / 128 : 1)  // of 4 dims that a lane holds of a head
#define COUNTERS 16384
#define BATCH 8  // splits whose results are under way at once

__device__ u32 arrived[COUNTERS];

// Where 4 floats f of a query's D land in a set's output block: turned within 8 so that neither side meets bank
// conflicts.
__device__ __forceinline__ int place(int query, int f) {
    return query * (D / 4) + (f ^ ((f >> 3) & 3) ^ ((query & 1) << (D > 64 ? 2 : 1)));
}

// Rows of keys or values by position, as chunks of dynamic shared memory: those of a step in the ring, or new ones that
// this CTA made.
struct rows_t {
    int ring, fresh, base, from, to;  // positions base.. are in the ring, from..to are new
    __device__ __forceinline__ int operator()(int j) const {
        return j >= from && j <= to ? fresh + (j - from) * CHUNKS : ring + (j - base) * CHUNKS;
    }
};

// Whether a step's values hold one that is not finite among positions low..high, in the columns from chunk `column` on.
__device__ __forceinline__ bool found_odd(const uint4* shared, const rows_t& values, int column, int low, int high) {
    u32 odd = 0;
#pragma unroll 1
    for (int c = threadIdx.x & 31; c < STEP * COLUMNS / 8; c += 32) {
        const int j = values.base + c / (COLUMNS / 8);
        if (j < low || j > high) continue;
        const uint4 v = shared[values(j) + column + c % (COLUMNS / 8)];
        odd |= odd_halves<act_t>(v.x) | odd_halves<act_t>(v.y) | odd_halves<act_t>(v.z) | odd_halves<act_t>(v.w);
    }
    return __any_sync(0xFFFFFFFFu, odd != 0);
}

__device__ __forceinline__ void swap_if(bool condition, uint4& a, uint4& b) {
    const uint4 x = a, y = b;
    a = condition ? y : x;
    b = condition ? x : y;
}

extern "C" __global__ void __launch_bounds__(THREADS, D > 64 ? 2 : 3)
attend_decode(const act_t* q, const act_t* qkv, act_t* cache, const int* starts, const int* positions, const int* pages,
              const float* angles, const float* q_norm, const float* k_norm, act_t* out, float* parts_o,
              float* parts_ml, int T, int R, int P, int heads, int kv_heads, int few, int half, int room, int stages,
              int joins, float scale, float cap, float eps, int window) {
    extern __shared__ uint4 shared[];
    __shared__ __align__(8) u64 barriers[2][WARPS][2];
    __shared__ float tops[WARPS * 16], sums[WARPS * 16];
    __shared__ u32 arrival;
    uint4* fragments = shared + stages * (WARPS * 2 * STEP * CHUNKS);  // [D / 32][2][32]
    const int fresh = stages * (WARPS * 2 * STEP * CHUNKS) + 2 * D;    // [2][room][CHUNKS]
    float4* state = (float4*)(shared + fresh + 2 * room * CHUNKS);     // a thread's own sums over splits
    const int tid = threadIdx.x, lane = tid & 31, warp = (tid >> 5) % WARPS, g = lane >> 2, t = lane & 3;
    const int part_of_v = tid / (WARPS * 32);
    const int kv_head = blockIdx.y % kv_heads, tile = blockIdx.y / kv_heads, row = blockIdx.z, group = heads / kv_heads;
    pdl_launch();
    if (row == R) {
        pdl_wait();
        if (tile > 0 || blockIdx.x > 0) return;
        const int begin = starts[R], width = group * D;
        for (i64 i = tid; i < (i64)(T - begin) * width; i += THREADS)
            out[((begin + i / width) * heads + kv_head * group) * D + i % width] = from_float<act_t>(0.0f);
        return;
    }
    const int start = starts[row], tokens = starts[row + 1] - start, queries = tokens * group;
    if (tokens > few || tile * 16 >= queries) {
        pdl_wait();  // who comes after relies on it even if no CTA has work
        return;
    }
    const int count = queries - tile * 16 < 16 ? queries - tile * 16 : 16, final = tile * 16 + count - 1;
    const int opening = positions[start], lowest = opening + tile * 16 / group, high = opening + final / group;
    const int low = first_key(lowest, window);
    const int first = parts_o ? blockIdx.x : low / SPLIT, last = parts_o ? blockIdx.x : high / SPLIT;
    if (first < low / SPLIT || last > high / SPLIT) {
        pdl_wait();
        return;
    }
    auto rows_of = [&](int position, int side) {  // the key (side 0) or value at a position and those after it
        const i64 page = pages[(i64)row * P + position / PAGE];
        return cache + (((page * 2 + side) * kv_heads + kv_head) * PAGE + position % PAGE) * D;
    };

    // The set's steps of a split are at base, base + STRIDE, ... below `end`; its n-th step since the start uses stage
    // n % stages.
    int base = 0, end = 0, n = 0;
    auto enter = [&](int s) {
        base = s * SPLIT + warp * STEP;
        end = high + 1 < (s + 1) * SPLIT ? high + 1 : (s + 1) * SPLIT;
        if (low >= base + STEP) base += ((low - base - STEP) / STRIDE + 1) * STRIDE;
    };
    auto slot = [&](int number, int side) {
        return (((number & (stages - 1)) * WARPS + warp) * 2 + side) * (STEP * CHUNKS);
    };
    auto barrier = [&](int number, int side) { return shared_address(&barriers[number & (stages - 1)][warp][side]); };
    auto fetch = [&](int position, int number, int side) {
        if (lane != 0 || part_of_v != 0 || position >= end) return;
        barrier_expect(barrier(number, side), STEP * D * 2);
        copy_bulk(shared_address(shared + slot(number, side)), rows_of(position, side), STEP * D * 2, barrier(number, side));
    };
    auto arrived_at = [&](int number, int side) { barrier_wait(barrier(number, side), (number >> (stages - 1)) & 1); };
    auto set_done = [&]() {  // all warps of the set have read
        if constexpr (PARTS == 1) __syncwarp();
        else asm volatile("bar.sync %0, %1;" ::"r"(1 + warp), "n"(PARTS * 32) : "memory");
    };
    if (tid < 2 * WARPS * 2) barrier_init(shared_address(&barriers[0][0][0] + tid));
    copies_see_shared();
    __syncthreads();
    enter(first);
    auto open = [&](bool early) {
        for (int i = 0; i < stages; ++i) {
            const int position = base + i * STRIDE;
            if ((!q || position + STEP <= opening) == early) fetch(position, i, 0), fetch(position, i, 1);
        }
    };
    open(true);
    if (!q) {  // constants that the queries will need
        const float* row_of = angles + (i64)opening * 2 * half;
        for (int i = tid * 32; i < (final / group + 1) * 2 * half; i += THREADS * 32) prefetch(row_of + i);
        for (int i = tid * 32; q_norm && i < D; i += THREADS * 32) prefetch(q_norm + i);
        for (int i = tid * 32; k_norm && i < D; i += THREADS * 32) prefetch(k_norm + i);
    }
    pdl_wait();
    open(false);

    for (int c = tid; c < 2 * D; c += THREADS) {
        const int r = c / CHUNKS, col = c % CHUNKS, query = tile * 16 + r;
        if (!q && r < count) continue;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r < count)
            v = ((const uint4*)(q + ((i64)(start + query / group) * heads + kv_head * group + query % group) * D))[col];
        fragments[((col / 4) * 2 + r / 8) * 32 + (r % 8) * 4 + col % 4] = v;
    }
    if (!q) {  // queries of the tile, then keys and values of its new tokens in these splits, one head a warp
        const int from = first * SPLIT > opening ? first * SPLIT - opening : 0;
        const int to = final / group + 1 < (last + 1) * SPLIT - opening ? final / group + 1
                                                                         : (last + 1) * SPLIT - opening;
        const int items = count + (to > from ? 2 * (to - from) : 0);
        const bool fours = half % 4 == 0 && aligned(angles, 16);
        float* x = (float*)state + (tid >> 5) * D;
        uint2 raw[2][GROUPS];
        auto token_of = [&](int item) {
            return item < count ? (tile * 16 + item) / group : from + (item - count) / 2;
        };
        auto load = [&](uint2(&into)[GROUPS], int item) {
            if (item >= items) return;
            const int unit = item < count ? kv_head * group + (tile * 16 + item) % group
                                          : heads + (item - count) % 2 * kv_heads + kv_head;
            const act_t* head = qkv + ((i64)(start + token_of(item)) * (heads + 2 * kv_heads) + unit) * D;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c)
                if (lane * 4 + 128 * c < D) into[c] = *(const uint2*)(head + lane * 4 + 128 * c);
        };
        load(raw[0], tid >> 5);
        load(raw[1], (tid >> 5) + 4);
#pragma unroll 1
        for (int item = tid >> 5; item < items; item += 4) {
            const int token = token_of(item), side = item < count ? 0 : (item - count) % 2;
            float v[4], sum = 0.0f;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c) {
                const int i = lane * 4 + 128 * c;
                if (i >= D) continue;
                unpack2<act_t>(v, raw[0][c].x), unpack2<act_t>(v + 2, raw[0][c].y);
#pragma unroll
                for (int e = 0; e < 4; ++e) sum = fmaf(v[e], v[e], sum);
                store_wide(x + i, v);
                raw[0][c] = raw[1][c];
            }
            load(raw[1], item + 8);
            const float* weight = item < count ? q_norm : side ? nullptr : k_norm;
            if (weight) norm_head(x, sum, weight, D, eps);
            __syncwarp();
            const int position = opening + token, turned = side ? 0 : 2 * half;
            const float* cosine = angles + (i64)position * 2 * half;
            act_t *place_of = (act_t*)(shared + fresh + (side * room + token) * CHUNKS), *append = nullptr;
            if (item >= count && token * group / 16 == tile)
                append = rows_of(position, side);
#pragma unroll
            for (int c = 0; c < GROUPS; ++c) {
                const int i = lane * 4 + 128 * c;
                if (i >= D) continue;
                rotate_group(v, x, i, D, turned, half, cosine, cosine + half, fours);
                if (item < count) {
                    const int col = i / 8;
                    act_t* to_q = (act_t*)(fragments + ((col / 4) * 2 + item / 8) * 32 + (item % 8) * 4 + col % 4);
                    store_wide(to_q + i % 8, v);
                } else {
                    store_wide(place_of + i, v);
                    if (append) store_wide(append + i, v);
                }
            }
            __syncwarp();
        }
    }
    const int newest = q ? -1 : high;  // positions opening .. newest are new
    int seen[2], unseen[2];            // keys in (unseen, seen] are visible to queries g and g + 8
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int query = tile * 16 + g + 8 * i;
        seen[i] = query < queries ? opening + query / group : -1;
        unseen[i] = window > 0 ? seen[i] - window : -1;
    }
    // After the merge of sets a thread owns dims 4 part + 32 i .. + 3 of query `mine`.
    const int mine = tid / 8, part = tid % 8, query = tile * 16 + mine;
    const i64 unit = (i64)(start + query / group) * heads + kv_head * group + query % group;
    const bool direct = !parts_o || (joins && low / SPLIT == high / SPLIT);
    const float factor = cap > 0.0f ? 1.0f : scale;
    float total = 0.0f, running = NOTHING;
    __syncthreads();

    for (int s = first; s <= last; ++s) {
        if (s > first) {
            enter(s);
            for (int i = 0; i < stages; ++i)
                fetch(base + i * STRIDE, n + i, 0), fetch(base + i * STRIDE, n + i, 1);
        }
        float o[VB][8][4], m[2] = {NOTHING, NOTHING}, l[2] = {0.0f, 0.0f};
#pragma unroll
        for (int b = 0; b < VB; ++b)
#pragma unroll
            for (int e = 0; e < 8; ++e)
#pragma unroll
                for (int i = 0; i < 4; ++i) o[b][e][i] = 0.0f;
#pragma unroll 1
        for (; base < end; base += STRIDE, ++n) {
            float p[STEP / 8][4];
#pragma unroll
            for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) p[k][i] = 0.0f;
            const rows_t key_rows = {slot(n, 0), fresh, base, opening, newest};
            const rows_t value_rows = {slot(n, 1), fresh + room * CHUNKS, base, opening, newest};
            int k_rows[STEP / 8];
#pragma unroll
            for (int k = 0; k < STEP / 8; ++k) k_rows[k] = key_rows(base + k * 8 + g) + t;
            arrived_at(n, 0);
#pragma unroll
            for (int b = 0; b < D / 32; b += 2) {
                const uint4 a0 = fragments[b * 64 + lane], c0 = fragments[b * 64 + 32 + lane];
                const uint4 a1 = fragments[b * 64 + 64 + lane], c1 = fragments[b * 64 + 96 + lane];
                const u32 q0[4] = {a0.x, c0.x, a0.y, c0.y}, q1[4] = {a0.z, c0.z, a0.w, c0.w};
                const u32 q2[4] = {a1.x, c1.x, a1.y, c1.y}, q3[4] = {a1.z, c1.z, a1.w, c1.w};
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k) {
                    uint4 x = shared[k_rows[k] + b * 4 + (g & 1) * 4], y = shared[k_rows[k] + b * 4 + 4 - (g & 1) * 4];
                    swap_if(g & 1, x, y);
                    mma_16816<act_t>(p[k], q0, x.x, x.y);
                    mma_16816<act_t>(p[k], q1, x.z, x.w);
                    mma_16816<act_t>(p[k], q2, y.x, y.y);
                    mma_16816<act_t>(p[k], q3, y.z, y.w);
                }
            }
            set_done();
            fetch(base + stages * STRIDE, n + stages, 0);
            float top[2] = {m[0], m[1]}, shrink[2];
            if (cap > 0.0f) {
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                    for (int i = 0; i < 4; ++i) p[k][i] = capped(p[k][i] * scale, cap);
            }
#pragma unroll
            for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int j = base + k * 8 + t * 2 + (i & 1);
                    p[k][i] = j <= seen[i >> 1] && j > unseen[i >> 1] ? p[k][i] * factor : NOTHING;
                    top[i >> 1] = fmaxf(top[i >> 1], p[k][i]);
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
            for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[k][i] = exp2_fast(p[k][i] - anchor(m[i >> 1]));
                    l[i >> 1] += p[k][i];
                }
#pragma unroll
            for (int b = 0; b < VB; ++b)
#pragma unroll
                for (int e = 0; e < 8; ++e)
#pragma unroll
                    for (int i = 0; i < 4; ++i) o[b][e][i] *= shrink[i >> 1];
            const bool partly = lowest < high && (base + STEP - 1 > lowest || (window > 0 && base <= high - window));
            arrived_at(n, 1);
            const bool odd_values = partly && found_odd(shared, value_rows, part_of_v * (COLUMNS / 8), low, high);
            if (odd_values) {
#pragma unroll 1
                for (int j = low > base ? low : base; j < base + STEP && j <= high; ++j)
#pragma unroll
                    for (int b = 0; b < VB; ++b)
#pragma unroll
                        for (int e = 0; e < 16; ++e) {
                            const int d = part_of_v * COLUMNS + (VB * (2 * t + e / 8) + b) * 8 + e % 8;
                            const float v = to_float(((const act_t*)(shared + value_rows(j)))[d]);
                            if (finite(v)) continue;
                            if (j <= seen[0] && j > unseen[0]) o[b][e % 8][e / 8] += v;
                            if (j <= seen[1] && j > unseen[1]) o[b][e % 8][2 + e / 8] += v;
                        }
            }
#pragma unroll
            for (int h = 0; h < STEP / 16; ++h) {
                const u32 a[4] = {pack2<act_t>(p[2 * h][0], p[2 * h][1]), pack2<act_t>(p[2 * h][2], p[2 * h][3]),
                                  pack2<act_t>(p[2 * h + 1][0], p[2 * h + 1][1]),
                                  pack2<act_t>(p[2 * h + 1][2], p[2 * h + 1][3])};
                uint4 x[4][VB];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int j = base + h * 16 + t * 2 + (i & 1) + (i >> 1) * 8;
                    const int v = value_rows(j) + part_of_v * (COLUMNS / 8) + g * VB;
#pragma unroll
                    for (int b = 0; b < VB; ++b) {
                        x[i][b] = make_uint4(0, 0, 0, 0);
                        if (j >= low && j <= high) x[i][b] = shared[v + (VB > 1 ? b ^ (t & 1) : b)];
                    }
                    if constexpr (VB > 1) swap_if(t & 1, x[i][0], x[i][VB - 1]);
                    if (odd_values) {
#pragma unroll
                        for (int b = 0; b < VB; ++b) x[i][b] = only_finite<act_t>(x[i][b]);
                    }
                }
#pragma unroll
                for (int b = 0; b < VB; ++b) {
#define PAIR(e, word)                                                                  \
    mma_16816<act_t>(o[b][e], a, __byte_perm(x[0][b].word, x[1][b].word, 0x5410),       \
                     __byte_perm(x[2][b].word, x[3][b].word, 0x5410));                  \
    mma_16816<act_t>(o[b][e + 1], a, __byte_perm(x[0][b].word, x[1][b].word, 0x7632),   \
                     __byte_perm(x[2][b].word, x[3][b].word, 0x7632));
                    PAIR(0, x) PAIR(2, y) PAIR(4, z) PAIR(6, w)
                }
            }
            set_done();
            fetch(base + stages * STRIDE, n + stages, 1);
        }
        // The set's part of the ring is idle now and takes its outputs.
        float4* outputs = (float4*)(shared + warp * (2 * STEP * CHUNKS));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 1);
            l[i] += __shfl_xor_sync(0xFFFFFFFFu, l[i], 2);
            if (t == 0 && part_of_v == 0) tops[warp * 16 + g + 8 * i] = m[i], sums[warp * 16 + g + 8 * i] = l[i];
#pragma unroll
            for (int u = 0; u < 4 * VB; ++u) {
                const int c = 2 * i + u / (2 * VB), b = u / 2 % VB, e = u % 2 * 4;
                outputs[place(g + 8 * i, part_of_v * (COLUMNS / 4) + t * (4 * VB) + u)] =
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
        for (int i = 0; i < D / 32; ++i) {
            float x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int w = 0; w < WARPS; ++w) {
                const float4 y = ((const float4*)(shared + w * (2 * STEP * CHUNKS)))[place(mine, part + 8 * i)];
                x[0] = fmaf(y.x, weight[w], x[0]), x[1] = fmaf(y.y, weight[w], x[1]);
                x[2] = fmaf(y.z, weight[w], x[2]), x[3] = fmaf(y.w, weight[w], x[3]);
            }
            const float4 old = s > first ? state[i * THREADS + tid] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            x[0] = merge(old.x, x[0]), x[1] = merge(old.y, x[1]), x[2] = merge(old.z, x[2]), x[3] = merge(old.w, x[3]);
            if (s < last) {
                state[i * THREADS + tid] = make_float4(x[0], x[1], x[2], x[3]);
            } else if (query < queries) {
                const int d = (part + 8 * i) * 4;
                if (direct) {
#pragma unroll
                    for (int e = 0; e < 4; ++e) x[e] = normalize(x[e], total);
                    store_wide(out + unit * D + d, x);
                } else {
                    store_wide(parts_o + (unit * gridDim.x + blockIdx.x) * D + d, x);
                }
            }
        }
        copies_see_shared();
        __syncthreads();
    }
    if (direct) return;
    if (query < queries && part == 0)
        ((float2*)parts_ml)[unit * gridDim.x + blockIdx.x] = make_float2(running, total);
    if (!joins) return;

    __syncthreads();
    u32* counter = arrived + row * gridDim.y + blockIdx.y;
    if (tid == 0) {
        __threadfence();
        arrival = atomicAdd(counter, 1u);
    }
    __syncthreads();
    if (arrival < high / SPLIT - low / SPLIT) return;
    if (tid == 0) *counter = 0;
    __threadfence();
    for (int item = tid; item < count * (D / 4); item += THREADS) {
        const int of = tile * 16 + item / (D / 4), position = opening + of / group;
        const i64 at = ((i64)(start + of / group) * heads + kv_head * group + of % group) * gridDim.x;
        const float4* o = (const float4*)(parts_o + at * D) + item % (D / 4);
        const float2* ml = (const float2*)parts_ml + at;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        total = 0.0f, running = NOTHING;
        const int final_split = position / SPLIT;
#pragma unroll 1
        for (int s = first_key(position, window) / SPLIT; s <= final_split; s += BATCH) {
            float2 y[BATCH];
            float4 x[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {  // past the last split nothing, which changes nothing
                y[k] = make_float2(NOTHING, 0.0f), x[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (s + k <= final_split) y[k] = load_past_l1(ml + s + k), x[k] = load_past_l1(o + (s + k) * (D / 4));
            }
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                const Merge merge(running, y[k].x);
                running = merge.m;
                total = merge(total, y[k].y);
                sum = make_float4(merge(sum.x, x[k].x), merge(sum.y, x[k].y), merge(sum.z, x[k].z),
                                  merge(sum.w, x[k].w));
            }
        }
        const float y[4] = {normalize(sum.x, total), normalize(sum.y, total), normalize(sum.z, total),
                            normalize(sum.w, total)};
        store_wide(out + at / gridDim.x * D + item % (D / 4) * 4, y);
    }
}
