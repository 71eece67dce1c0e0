// Split-KV attention of rows with few new tokens (decode, speculative verification) on tensor cores; if asked, with
// what comes before it: head norms, rotary embedding and the append to the cache.
//
// q [T, heads, D], or null and qkv [T, columns]; cache [pages, 2, kv_heads, 32, D], out [T, heads D],
// all of ACT (f16 or bf16); starts [R+1], positions [T], pages [R, P] int32; angles [C, 2, half] float32 (cos, sin),
// q_norm and k_norm [D] float32 or null. Rows with more than `few` new tokens are left to prefill.cu or generic.cu.
// A token at position p sees keys j <= p, with p - j < window if window > 0. scale includes log2(e), or, with a soft
// cap, cap does and scale is over it (softmax.cuh).
//
// A query is a pair (token of the row, head of the KV head's group), in that order; QUERIES (8 or 16) of them are a tile:
// rows of A in the product with keys, the columns of B, 8 a time, in that with values, so that the two sizes give the
// same bits. The smaller one reads keys once for 8 queries, and takes half the registers and instructions.
// Grid: (S, kv_heads * tiles, R or R + 1): CTA (s, ...) handles the 256 keys of split s and writes parts_o [T, heads,
// S, D] and parts_ml [T, heads, S, 2]: for combine.cu, or, if `joins`, for the CTA of its row, KV head and tile that
// arrives last (`arrived` counts), which merges them in the order of splits and leaves the count at zero. A tile that
// sees one split writes out. With null parts (1, ...) a CTA walks its splits. All three give the same bits. An extra
// last z writes zeros for padding tokens. Whoever writes out also writes `blocks` unless null: the rounded results as
// operands of the small matmuls (stage.cuh); then group D is a multiple of 256.
// 4 warps: WARPS sets of PARTS. A set takes every WARPS-th step of STEP keys and its warps split the columns of V; sets
// are merged in order. A query's arithmetic is that of its own row or column of an MMA and masked keys change nothing,
// so its bits depend neither on other queries nor on the row's other tokens.
//
// Keys and values of a step are two bulk copies of whole page (halves), `stages` steps ahead, and the first ones are
// issued before griddepcontrol.wait. What is read there was written before the step began: a step begins with a copy of
// its inputs (starts, positions, pages), which waits for all kernels before it and which all kernels of the step wait
// for, the early ones through the launch that they depend on. Only keys from the row's first new position on are of
// this step. With q they are read after the wait; with qkv every CTA makes those that it needs itself, in shared
// memory, and puts them over what the ring holds there; the tile of token t's own head 0 appends t.
// A lone token's CTA is a chain of latencies, some 4 cycles an instruction: all that the wait does not guard is before.
// Shared memory (dynamic): a ring of stages 2 WARPS STEP 2 D bytes (at the end the sets' outputs), Q fragments 2 QUERIES
// D, new K and V 4 D room, and heads under way 16 D or a walk's sums 8 QUERIES D. Archs: all.
// Bytes: 4 keys D per KV head and tile. H200, 2026-11-25, 32/8 heads of 128: 4.6 us for 69 keys, 22 us for 16 452.
#include "bulk.cuh"
#include "decode.cuh"
#include "head.cuh"
#include "mma.cuh"

__device__ u32 arrived[COUNTERS];

extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
attend_decode(const act_t* q, const act_t* qkv, act_t* cache, const int* starts, const int* positions, const int* pages,
              const float* angles, const float* q_norm, const float* k_norm, act_t* out, u8* blocks, float* parts_o,
              float* parts_ml, int T, int R, int P, int columns, int heads, int kv_heads, int few, int half, int room,
              int stages, int joins, float scale, float cap, float eps, int window) {
    extern __shared__ uint4 shared[];
    __shared__ __align__(8) u64 barriers[2][WARPS][2];
    __shared__ float tops[WARPS * QUERIES], sums[WARPS * QUERIES];
    __shared__ float2 inner[2][QUERIES], outer[2][QUERIES];  // (m, l) of a walk's group of splits and of those before
    __shared__ u32 arrival;
    uint4* fragments = shared + stages * (WARPS * 2 * STEP * CHUNKS);      // [D / 32][HALVES][32], then rounded results
    const int fresh = stages * (WARPS * 2 * STEP * CHUNKS) + D * HALVES;  // [2][room][CHUNKS]
    float4* state = (float4*)(shared + fresh + 2 * room * CHUNKS);        // a walk's sums, [2][QUERIES D / 4]
    const int tid = threadIdx.x, lane = tid & 31, warp = (tid >> 5) % WARPS, g = lane >> 2, t = lane & 3;
    const int part_of_v = tid / (WARPS * 32);
    const int kv_head = blockIdx.y % kv_heads, tile = blockIdx.y / kv_heads, row = blockIdx.z, group = heads / kv_heads;
    pdl_launch();
    if (row == R) {
        pdl_wait();
        if (tile > 0 || blockIdx.x > 0) return;
        write_zeros(out, blocks, starts[R], T, heads, kv_head, group);
        return;
    }
    const int start = starts[row], tokens = starts[row + 1] - start, queries = tokens * group;
    if (tokens > few || tile * QUERIES >= queries) {
        pdl_wait();  // who comes after relies on it even if no CTA has work
        return;
    }
    const float share = inverse_fast((float)group);
    auto token_of = [&](int query) { return (int)(((float)query + 0.5f) * share); };  // query / group, below 2^16
    const int count = queries - tile * QUERIES < QUERIES ? queries - tile * QUERIES : QUERIES;
    const int until = token_of(tile * QUERIES + count - 1);  // the tile's last token
    const int opening = positions[start], lowest = opening + token_of(tile * QUERIES), high = opening + until;
    const int low = first_key(lowest, window);
    const int first = parts_o ? blockIdx.x : low / SPLIT, last = parts_o ? blockIdx.x : high / SPLIT;
    if (first < low / SPLIT || last > high / SPLIT) {
        pdl_wait();
        return;
    }
    auto page_of = [&](int position) { return pages[(i64)row * P + position / PAGE]; };
    auto row_of = [&](int page, int position, int side) {  // the key (side 0) or value at a position and those after it
        return cache + ((((i64)page * 2 + side) * kv_heads + kv_head) * PAGE + position % PAGE) * D;
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
    auto copy = [&](int page, int position, int number, int side) {
        barrier_expect(barrier(number, side), STEP * D * 2);
        copy_bulk(shared_address(shared + slot(number, side)), row_of(page, position, side), STEP * D * 2,
                  barrier(number, side));
    };
    const bool leads = lane == 0 && part_of_v == 0;
    auto fetch = [&](int position, int number) {
        if (!leads || position >= end) return;
        const int page = page_of(position);
        copy(page, position, number, 0);
        copy(page, position, number, 1);
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
#pragma unroll 1
        for (int i = 0; i < stages; ++i) {
            const int position = base + i * STRIDE;
            if ((!q || position + STEP <= opening) == early) fetch(position, i);
        }
    };
    open(true);

    // Everything that the step does not write comes before the wait: also which keys (unseen, seen] are visible to
    // queries g and g + 8, and, with qkv, the constants of this warp's first heads.
    int seen[HALVES], unseen[HALVES];
#pragma unroll
    for (int h = 0; h < HALVES; ++h) {
        const int query = tile * QUERIES + g + 8 * h;
        seen[h] = query < queries ? opening + token_of(query) : -1;
        unseen[h] = window > 0 ? seen[h] - window : -1;
    }
    const bool direct = !parts_o || (joins && low / SPLIT == high / SPLIT);
    const float factor = cap > 0.0f ? 1.0f : scale;
#pragma unroll 1
    for (int c = tid; c < D * HALVES; c += THREADS)  // of queries that do not exist
        if (c / 32 % HALVES * 8 + c % 32 / 4 >= count) fragments[c] = make_uint4(0, 0, 0, 0);
    if (q) {
        pdl_wait();
        open(false);
#pragma unroll 1
        for (int c = tid; c < count * CHUNKS; c += THREADS) {
            const int r = c / CHUNKS, col = c % CHUNKS, query = tile * QUERIES + r, token = token_of(query);
            const act_t* head = q + ((i64)(start + token) * heads + kv_head * group + query - token * group) * D;
            fragments[((col / 4) * HALVES + r / 8) * 32 + (r % 8) * 4 + col % 4] = ((const uint4*)head)[col];
        }
    } else {  // queries of the tile, then keys and values of its new tokens in these splits, one head a warp
        const int from = first * SPLIT > opening ? first * SPLIT - opening : 0;
        const int to = until + 1 < (last + 1) * SPLIT - opening ? until + 1 : (last + 1) * SPLIT - opening;
        const int items = count + (to > from ? 2 * (to - from) : 0);
        float* x = (float*)state + (tid >> 5) * D;
        const int own = lane * 4 % D;  // and, + 128, + 256, ..., the lane's dims; with D = 64 two lanes have the same
        uint2 raw[2][GROUPS];
        int leaves[2] = {0, 0};  // pages of the tokens
        auto source = [&](int item, int& token) {
            const int query = tile * QUERIES + item, side = (item - count) & 1;
            token = item < count ? token_of(query) : from + ((item - count) >> 1);
            const int unit = item < count ? kv_head * group + query - token * group : heads + side * kv_heads + kv_head;
            return qkv + (i64)(start + token) * columns + unit * D + own;
        };
        auto load = [&](uint2(&into)[GROUPS], const act_t* head, int item) {
            if (item >= items) return;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c)
                into[c] = *(const uint2*)(head + 128 * c);
        };
        auto leaf = [&](int item, int token) { return item >= count && item < items ? page_of(opening + token) : 0; };
        int item = tid >> 5, token = 0, next = 0, after;
        float cosine[GROUPS][4], sine[GROUPS][4], weights[2][4];
        const act_t* head = source(item, token);
        const act_t* second = source(item + 4, next);
        leaves[0] = leaf(item, token), leaves[1] = leaf(item + 4, next);
        auto turn = [&](int of) {
            const float* turns = angles + (i64)(opening + of) * 2 * half;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c)
                load_turn(cosine[c], sine[c], own + 128 * c, 2 * half, half, turns, turns + half, true);
        };
        int held = token < tokens ? token : 0;
        turn(held);
        if (GROUPS == 1 && q_norm) load_group(weights[0], q_norm + own, 4, false);  // more would not fit in registers
        if (GROUPS == 1 && k_norm) load_group(weights[1], k_norm + own, 4, false);
#pragma unroll 1
        for (int i = tid * 32; i < (until + 1) * 2 * half; i += THREADS * 32)
            prefetch(angles + (i64)opening * 2 * half + i);
        pdl_wait();
        load(raw[0], head, item);
        load(raw[1], second, item + 4);
#pragma unroll 1
        for (; item < items; item += 4) {
            const bool key = item >= count, value = key && ((item - count) & 1);
            float v[GROUPS][4], sum = 0.0f;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c) {
                unpack2<act_t>(v[c], raw[0][c].x), unpack2<act_t>(v[c] + 2, raw[0][c].y);
#pragma unroll
                for (int e = 0; e < 4; ++e) sum = fmaf(v[c][e], v[c][e], sum);
                raw[0][c] = raw[1][c];
            }
            if (lane * 4 >= D) sum = 0.0f;
            const int page = leaves[0], now = token, position = opening + now;
            head = source(item + 8, after);
            load(raw[1], head, item + 8);
            leaves[0] = leaves[1], leaves[1] = leaf(item + 8, after);
            token = next, next = after;
            if (!value) {
                if (now != held) turn(held = now);
                if (const float* norm = key ? k_norm : q_norm) {
                    const float inverse = head_scale(sum, D, eps);
#pragma unroll
                    for (int c = 0; c < GROUPS; ++c) {
                        float w[4];
                        if constexpr (GROUPS > 1) load_group(w, norm + own + 128 * c, 4, false);
#pragma unroll
                        for (int e = 0; e < 4; ++e)
                            v[c][e] = v[c][e] * inverse * (GROUPS > 1 ? w[e] : key ? weights[1][e] : weights[0][e]);
                    }
                }
#pragma unroll
                for (int c = 0; c < GROUPS; ++c) store_wide(x + own + 128 * c, v[c]);
                __syncwarp();
#pragma unroll
                for (int c = 0; c < GROUPS; ++c)
                    rotate_group(v[c], x, own + 128 * c, 2 * half, half, cosine[c], sine[c], true);
                __syncwarp();
            }
            act_t* target = (act_t*)(shared + fresh + ((value ? room : 0) + now) * CHUNKS) + own;
            // The tile of the token's own head 0 appends it.
            act_t* append = now * group / QUERIES == tile ? row_of(page, position, value ? 1 : 0) + own : nullptr;
#pragma unroll
            for (int c = 0; c < GROUPS; ++c) {
                const int i = own + 128 * c, col = i / 8;
                if (!key) {
                    act_t* to_q = (act_t*)(fragments + ((col / 4) * HALVES + item / 8) * 32 + (item % 8) * 4 + col % 4);
                    store_wide(to_q + i % 8, v[c]);
                } else {
                    store_wide(target + 128 * c, v[c]);
                    if (append) store_wide(append + 128 * c, v[c]);
                }
            }
        }
    }
    const int newest = q ? -1 : high;  // positions opening .. newest are new
    // Rows of a step in the ring that the cache does not hold yet, and zeros for values that no query sees.
    auto patch = [&](int side, int at) {
        const int from = opening > base ? opening : base, to = newest < base + STEP - 1 ? newest : base + STEP - 1;
        const int i = lane + 32 * part_of_v;
        const uint4* made = shared + fresh + (side * room + from - opening) * CHUNKS;
#pragma unroll 1
        for (int c = i; c < (to + 1 - from) * CHUNKS; c += 32 * PARTS)
            shared[at + (from - base) * CHUNKS + c] = made[c];
        auto clear = [&](int c, int to) {
#pragma unroll 1
            for (c += i; c < to; c += 32 * PARTS) shared[c] = make_uint4(0, 0, 0, 0);
        };
        if (side) clear(at, at + (low - base) * CHUNKS), clear(at + (high + 1 - base) * CHUNKS, at + STEP * CHUNKS);
        if (base + stages * STRIDE < end) copies_see_shared();  // one will go there before the end of the split
        set_done();
    };
    auto finish = [&](int mine, int f, i64 unit, float (&x)[4], float total) {
#pragma unroll
        for (int e = 0; e < 4; ++e) x[e] = normalize(x[e], total);
        store_wide(out + unit * D + f * 4, x);
        if (blocks) store_wide((act_t*)fragments + (mine * (D / 4) + f) * 4, x);
    };
    auto unit_of = [&](int mine) {
        const int query = tile * QUERIES + mine, token = token_of(query);
        return (i64)(start + token) * heads + kv_head * group + query - token * group;
    };
    auto stage = [&]() {  // the tile's rounded results, 256 columns a warp, which are columns of one token
        __syncthreads();
#pragma unroll 1
        for (int i = tid >> 5; i < count * D / 256; i += THREADS / 32) {
            const int query = tile * QUERIES + i * 256 / D, token = token_of(query);
            const int block = ((kv_head * group + query - token * group) * D + i * 256 % D) / 256;
            float f[8];
            load_wide(f, (const act_t*)(fragments + i * 32 + lane));
            stage_in_group(blocks, T, start + token, block, heads * D / 256, f, lane);
        }
    };
    __syncthreads();

    for (int s = first; s <= last; ++s) {
        if (s > first) {
            enter(s);
#pragma unroll 1
            for (int i = 0; i < stages; ++i) fetch(base + i * STRIDE, n + i);
        }
        const int opened = n;
        float o[HALVES][VB][4][4] = {}, m[HALVES], l[HALVES] = {};
        m[0] = m[HALVES - 1] = NOTHING;
#pragma unroll 1
        for (; base < end; base += STRIDE, ++n) {
            float p[STEP / 8][4] = {};
            const int keys_at = slot(n, 0), values_at = slot(n, 1);
            const bool is_new = newest >= base && opening < base + STEP;
            const uint4* keys = shared + keys_at + g * CHUNKS + t;
            // The page of the step that takes this one's place, long before it is needed.
            const int ahead = base + stages * STRIDE, page = leads && ahead < end ? page_of(ahead) : 0;
            arrived_at(n, 0);
            if (is_new) patch(0, keys_at);
#pragma unroll D > 256 ? 2 : 4
            for (int b = 0; b < D / 32; b += 2) {
                const uint4 zero = {};
                const uint4 a0 = fragments[b * HALVES * 32 + lane], a1 = fragments[(b + 1) * HALVES * 32 + lane];
                const uint4 c0 = HALVES > 1 ? fragments[b * HALVES * 32 + 32 + lane] : zero;
                const uint4 c1 = HALVES > 1 ? fragments[(b + 1) * HALVES * 32 + 32 + lane] : zero;
                const u32 q0[4] = {a0.x, c0.x, a0.y, c0.y}, q1[4] = {a0.z, c0.z, a0.w, c0.w};
                const u32 q2[4] = {a1.x, c1.x, a1.y, c1.y}, q3[4] = {a1.z, c1.z, a1.w, c1.w};
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k) {
                    const uint4* key = keys + k * 8 * CHUNKS + b * 4;
                    uint4 x = key[(g & 1) * 4], y = key[4 - (g & 1) * 4];
                    swap_if(g & 1, x, y);
                    mma_16816<act_t>(p[k], q0, x.x, x.y);
                    mma_16816<act_t>(p[k], q1, x.z, x.w);
                    mma_16816<act_t>(p[k], q2, y.x, y.y);
                    mma_16816<act_t>(p[k], q3, y.z, y.w);
                }
            }
            set_done();
            if (leads && ahead < end) copy(page, ahead, n + stages, 0);
            const bool whole = base + STEP - 1 <= lowest && (window <= 0 || base > high - window);  // to all
            float shrink[HALVES];
            if (cap > 0.0f) {
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                    for (int i = 0; i < 2 * HALVES; ++i) p[k][i] = capped(p[k][i] * scale, cap);
            }
#pragma unroll
            for (int h = 0; h < HALVES; ++h) {
                float top = m[h];
                if (whole) {
#pragma unroll
                    for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                        for (int i = 2 * h; i < 2 * h + 2; ++i) p[k][i] *= factor;
                } else {
                    const int above = seen[h] - base - t * 2, below = unseen[h] - base - t * 2;
#pragma unroll
                    for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                        for (int i = 0; i < 2; ++i)
                            p[k][2 * h + i] = k * 8 + i <= above && k * 8 + i > below ? p[k][2 * h + i] * factor : NOTHING;
                }
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k) top = fmaxf(top, fmaxf(p[k][2 * h], p[k][2 * h + 1]));
                top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 1));
                top = fmaxf(top, __shfl_xor_sync(0xFFFFFFFFu, top, 2));
                const float zero = anchor(top);
                shrink[h] = exp2_fast(m[h] - zero);
                m[h] = top;
                l[h] = __fmul_rn(l[h], shrink[h]);
#pragma unroll
                for (int k = 0; k < STEP / 8; ++k)
#pragma unroll
                    for (int i = 2 * h; i < 2 * h + 2; ++i) {
                        p[k][i] = exp2_fast(p[k][i] - zero);
                        l[h] += p[k][i];
                    }
                if (n == opened) continue;  // nothing to shrink yet
                const float even = __shfl_sync(0xFFFFFFFFu, shrink[h], 8 * t);  // of queries 2t and 2t + 1
                const float odd = __shfl_sync(0xFFFFFFFFu, shrink[h], 8 * t + 4);
#pragma unroll
                for (int b = 0; b < VB; ++b)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
#pragma unroll
                        for (int i = 0; i < 4; ++i) o[h][b][e][i] *= i & 1 ? odd : even;
            }
            const bool partly = lowest < high && (base + STEP - 1 > lowest || (window > 0 && base <= high - window));
            arrived_at(n, 1);
            if (is_new || base < low || base + STEP - 1 > high) patch(1, values_at);
            if (partly && found_odd(shared + values_at, part_of_v * (COLUMNS / 8), low - base, high - base)) {
                add_odd(o, seen, unseen, (const act_t*)(shared + values_at) - (i64)base * D, part_of_v * COLUMNS,
                        low > base ? low : base, high < base + STEP - 1 ? high : base + STEP - 1);
                drop_odd(shared + values_at, part_of_v * (COLUMNS / 8));
            }
            const uint4* values = shared + values_at + t * 2 * CHUNKS + part_of_v * (COLUMNS / 8) + g * VB;
#pragma unroll
            for (int k = 0; k < STEP / 16; ++k) {
                u32 weights[HALVES][2];
#pragma unroll
                for (int h = 0; h < HALVES; ++h)
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        weights[h][i] = pack2<act_t>(p[2 * k + i][2 * h], p[2 * k + i][2 * h + 1]);
                uint4 x[4][VB];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint4* v = values + (k * 16 + (i & 1) + (i >> 1) * 8) * CHUNKS;
#pragma unroll
                    for (int b = 0; b < VB; ++b) x[i][b] = v[VB > 1 ? b ^ (t & 1) : b];
                    if constexpr (VB > 1) swap_if(t & 1, x[i][0], x[i][VB - 1]);
                }
#pragma unroll
                for (int b = 0; b < VB; ++b) {
                    PAIR(0, x) PAIR(1, y) PAIR(2, z) PAIR(3, w)
                }
            }
            set_done();
            if (leads && ahead < end) copy(page, ahead, n + stages, 1);
        }
        // The set's part of the ring is idle now and takes its outputs.
        float4* outputs = (float4*)(shared + warp * (2 * STEP * CHUNKS));
#pragma unroll
        for (int h = 0; h < HALVES; ++h) {
            l[h] += __shfl_xor_sync(0xFFFFFFFFu, l[h], 1);
            l[h] += __shfl_xor_sync(0xFFFFFFFFu, l[h], 2);
            if (t == 0 && part_of_v == 0) tops[warp * QUERIES + g + 8 * h] = m[h], sums[warp * QUERIES + g + 8 * h] = l[h];
            if (8 * h + 2 * t >= count) continue;
#pragma unroll
            for (int u = 0; u < 2; ++u)
#pragma unroll
                for (int f = 0; f < 2 * VB; ++f) {
                    const auto& even = o[h][f / 2][f % 2 * 2];
                    const auto& odd = o[h][f / 2][f % 2 * 2 + 1];
                    outputs[place(8 * h + 2 * t + u, part_of_v * (COLUMNS / 4) + g * (2 * VB) + f)] =
                        make_float4(even[u], even[2 + u], odd[u], odd[2 + u]);
                }
        }
        __syncthreads();
        // Splits are merged in groups of LEVEL, groups in order: `inner` and the lower half of `state` hold a group so
        // far, `outer` and the upper half the groups before it.
        const bool opens = s == first || s % LEVEL == 0, closes = s == last || s % LEVEL == LEVEL - 1;
        const bool alone = s / LEVEL == first / LEVEL;
#pragma unroll 1
        for (int item = tid; item < count * (D / 4); item += THREADS) {
            const int mine = item / (D / 4), f = item % (D / 4);
            float top = NOTHING, sum = 0.0f, x[4] = {0.0f, 0.0f, 0.0f, 0.0f};
            merge_sets(x, top, sum, tops, sums, shared, mine, f);
            auto add = [&](bool empty, const float2& kept, int at) {
                float2 ml = make_float2(NOTHING, 0.0f);
                float4 old = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (!empty) ml = kept, old = state[at];
                const Merge merge(ml.x, top);
                top = merge.m;
                sum = merge(ml.y, sum);
                x[0] = merge(old.x, x[0]), x[1] = merge(old.y, x[1]), x[2] = merge(old.z, x[2]), x[3] = merge(old.w, x[3]);
            };
            auto keep = [&](float2& ml, int at) {
                if (f == 0) ml = make_float2(top, sum);
                state[at] = make_float4(x[0], x[1], x[2], x[3]);
            };
            add(opens, inner[(s - 1) & 1][mine], item);
            if (!closes) {
                keep(inner[s & 1][mine], item);
                continue;
            }
            if (!alone) add(false, outer[(s / LEVEL - 1) & 1][mine], QUERIES * D / 4 + item);
            if (s < last) {
                keep(outer[s / LEVEL & 1][mine], QUERIES * D / 4 + item);
                continue;
            }
            const i64 unit = unit_of(mine);
            if (direct) finish(mine, f, unit, x, sum);
            else {
                store_wide(parts_o + (unit * gridDim.x + blockIdx.x) * D + f * 4, x);
                if (f == 0) ((float2*)parts_ml)[unit * gridDim.x + blockIdx.x] = make_float2(top, sum);
            }
        }
        if (s < last) {
            copies_see_shared();
            __syncthreads();
        }
    }
    if (direct) {
        if (blocks) stage();
        return;
    }
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
#pragma unroll 1
    for (int item = tid; item < count * (D / 4); item += THREADS) {
        const int mine = item / (D / 4), f = item % (D / 4), position = opening + token_of(tile * QUERIES + mine);
        const i64 unit = unit_of(mine), at = unit * gridDim.x;
        float all[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        const float total = merge_splits(all, (const float4*)(parts_o + at * D) + f, (const float2*)parts_ml + at,
                                         first_key(position, window) / SPLIT, position / SPLIT);
        finish(mine, f, unit, all, total);
    }
    if (blocks) stage();
}
