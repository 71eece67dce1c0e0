// Sampling: one token per row of float32 logits, bit for bit the choice of ops/ref/sample.py, in two kernels, or three
// where rows follow guesses.
//
// sample_adjust: grid (ceil(V / 4096), N), 256 threads. Mask, bias, penalties and temperature on a chunk of a row: tokens
//   whose bit in words [M, ceil(V / 32)] at row mask_rows[row] >= 0 is 0 become -inf; null pointers mask nothing. Writes the
//   adjusted logits to scratch [N, V] and, per chunk, the best adjusted and the best plain candidate and the sum of
//   exp(plain - best plain).
// sample_pick: grid N, 512 threads, 40 KiB of shared memory. Joins the chunks; greedy rows are done then. Otherwise
//   top_k and top_p each bin the row by the distance to the largest logit (1/64 wide), collect the boundary bin and
//   search it exactly; the draw finds its tile of ids, then the id.
// sample_settle: one thread per row. Rows behind a guess that does not hold become void (-2); counts what the others chose.
// Penalties of a row add the guesses before it to what is counted; if one of them does not hold, the row is void anyway.
// Archs: all. Bytes: V*4 read and written once, then V*4 read from L2 per pass of sample_pick (greedy 0, a draw 1, top_k
// and top_p 2 each, 1 per reported alternative).
// Order of arithmetic: single IEEE float32 operations (__f*_rn, never contracted) and integer sums, so that neither the
// thread count nor the backend shows. log-probabilities are ordinary float32 with a fixed reduction order.
// A single kernel with radix searches over all keys took 1940 us for top_k and top_p at V = 151936 (H200, 2026-11-20):
// few exponents occur, so its histogram atomics met in a handful of bins.
#include "logits.cuh"
#include "philox.cuh"

#define THREADS 512
#define WARPS 16
#define CHUNK 4096
#define CHUNK_THREADS 256
#define BINS 2048
#define CHAIN 15  // most guesses in a row (engine/guesses.py, MOST)

struct Shared {
    u64 bins[BINS];    // counts or masses per bin, or masses of tiles
    u64 listed[BINS];  // masses of collected elements
    u32 keys[BINS];    // collected elements
    u64 warps[WARPS];
    u64 left;
    u32 bin;
    u32 collected;
};

extern "C" __global__ void __launch_bounds__(CHUNK_THREADS) sample_adjust(
    const float *logits, float *scratch, const float *temperature, const float *repetition, const float *presence,
    const float *frequency, const int *slot, const int *bias_starts, const int *bias_ids, const float *bias_values,
    const int *counts, const u8 *prompt, const int *guess, const int *mask_rows, const u32 *mask_words, u64 *best_parts,
    u64 *plain_parts, float *sum_parts, int V) {
    __shared__ u64 warps[CHUNK_THREADS / 32];
    __shared__ float z[CHUNK];
    __shared__ int fed[CHAIN];  // guesses before this row
    const int row = blockIdx.y, tid = threadIdx.x, from = blockIdx.x * CHUNK, to = min(from + CHUNK, V);
    pdl_wait();
    pdl_launch();
    const float *raw = logits + (size_t)row * V;
    float *out = scratch + (size_t)row * V;
    const float T = temperature[row], r = repetition[row], pres = presence[row], freq = frequency[row];
    const int bias0 = bias_starts[row], bias1 = bias_starts[row + 1], at = slot[row];
    const int masked = mask_rows ? mask_rows[row] : -1;
    const u32 *words = mask_words + (masked > 0 ? (size_t)masked * ((V + 31) / 32) : 0);
    u64 best = 0;
    for (int i = from + tid; i < to; i += CHUNK_THREADS) {
        float x = usable(raw[i]);
        z[i - from] = x;
        u64 c = candidate(x, i);
        best = c > best ? c : best;
    }
    best = block_max(best, warps, CHUNK_THREADS / 32);
    const float plain = candidate_value(best);
    float sum = 0;
    for (int i = from + tid; i < to; i += CHUNK_THREADS) sum += plain > NOTHING ? expf(z[i - from] - plain) : 0.0f;
    sum = block_sum(sum, warps, CHUNK_THREADS / 32);
    const int part = row * gridDim.x + blockIdx.x;
    if (tid == 0) {
        plain_parts[part] = best;
        sum_parts[part] = sum;
    }
    if (bias1 > bias0 || at >= 0 || T > 0 || masked >= 0) {
        if (tid == 0)
            for (int j = bias0; j < bias1; j++) {
                int id = bias_ids[j];
                if (id >= from && id < to) z[id - from] = __fadd_rn(z[id - from], bias_values[j]);
            }
        if (tid == 0) {
            bool chained = guess && at >= 0;
            for (int j = 0; j < CHAIN; j++) {
                chained = chained && j < row && guess[row - j] >= 0;
                fed[j] = chained ? guess[row - j] : -1;
            }
        }
        __syncthreads();
        best = 0;
        for (int base = from; base < to; base += CHUNK_THREADS) {
            const int i = base + tid;
            if (i >= to) continue;
            // A bias leaves -inf what it is, so the order of mask and bias does not show.
            float x = masked >= 0 && !(words[i / 32] >> i % 32 & 1) ? NOTHING : z[i - from];
            if (at >= 0) {
                int count = counts[(size_t)at * V + i];
#pragma unroll
                for (int j = 0; j < CHAIN; j++) count += fed[j] == i;
                if (count > 0 || prompt[(size_t)at * V + i]) x = x > 0 ? __fdiv_rn(x, r) : __fmul_rn(x, r);
                x = __fsub_rn(x, __fmul_rn(freq, (float)count));
                if (count > 0) x = __fsub_rn(x, pres);
            }
            if (T > 0) x = __fdiv_rn(x, T);
            x = usable(x);
            out[i] = x;
            u64 c = candidate(x, i);
            best = c > best ? c : best;
        }
        best = block_max(best, warps, CHUNK_THREADS / 32);
    }
    if (tid == 0) best_parts[part] = best;
}

// A row of adjusted logits and what is kept of it so far.
struct Row {
    const float *z;
    int V;
    float largest;
    float min_p;
    u32 floor_key;
    __device__ __forceinline__ bool keeps(float x) const {
        return order_key(x) >= floor_key && (min_p <= 0 || exp_f32(__fsub_rn(x, largest)) >= min_p);
    }
    // Distance to the largest in steps of 1/64; everything from 32 on shares the last bin.
    __device__ __forceinline__ u32 bin(float x) const {
        float d = __fsub_rn(largest, x);
        return d >= 31.984375f ? BINS - 1 : (u32)(int)(d * 64.0f);
    }
};

// The first bin whose running sum reaches `target` (> 0): s.bin, and in s.left what is missing before that bin.
__device__ void find_bin(const u64 *bins, u64 target, Shared &s) {
    const int per = BINS / THREADS, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    u64 own[per], mine = 0;
#pragma unroll
    for (int j = 0; j < per; j++) mine += own[j] = bins[threadIdx.x * per + j];
    u64 run = mine;
    for (int d = 1; d < 32; d <<= 1) {
        u64 o = __shfl_up_sync(0xFFFFFFFFu, run, d);
        if (lane >= d) run += o;
    }
    __syncthreads();
    if (lane == 31) s.warps[warp] = run;
    __syncthreads();
    for (int w = 0; w < warp; w++) run += s.warps[w];
    u64 before = run - mine;
    if (before < target && target <= run) {
#pragma unroll
        for (int j = 0; j < per; j++) {
            if (before < target && target <= before + own[j]) {
                s.bin = threadIdx.x * per + j;
                s.left = target - before;
            }
            before += own[j];
        }
    }
    __syncthreads();
}

// Radix search, 8 bits a round, for when a bin holds more elements than can be collected (many equal logits): the
// largest key such that the bin's elements at or above it weigh at least `target`.
template <bool COUNT>
__device__ u32 search_keys(const Row &r, u32 bin, u64 target, Shared &s) {
    u32 prefix = 0;
    u64 wanted = target;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        if (threadIdx.x < 256) s.bins[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 1
        for (int i = threadIdx.x; i < r.V; i += THREADS) {
            float x = r.z[i];
            u32 k = order_key(x);
            bool inside = shift == 24 || (k >> (shift + 8)) == (prefix >> (shift + 8));
            if (inside && r.keeps(x) && r.bin(x) == bin)
                atomicAdd(&s.bins[k >> shift & 255], COUNT ? 1 : mass_of(x, r.largest));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = 255;
            u64 left = wanted;
            while (b > 0 && s.bins[b] < left) left -= s.bins[b--];
            s.bin = prefix | (u32)b << shift;
            s.left = left;
        }
        __syncthreads();
        prefix = s.bin;
        wanted = s.left;
    }
    __syncthreads();
    return prefix;
}

// The largest key such that the elements at or above it weigh what find_bin looked for: the bins before s.bin are all
// in, s.left is missing.
template <bool COUNT>
__device__ u32 threshold(const Row &r, Shared &s) {
    const u32 bin = s.bin;
    const u64 left = s.left;
    __syncthreads();
    if (threadIdx.x == 0) s.collected = 0;
    __syncthreads();
    for (int base = threadIdx.x * 4; base < r.V; base += THREADS * 4) {
        float v[4];
        load4(r.z, base, r.V, v);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (r.bin(v[j]) == bin && r.keeps(v[j])) {
                u32 n = atomicAdd(&s.collected, 1u);
                if (n < BINS) {
                    s.keys[n] = order_key(v[j]);
                    s.listed[n] = mass_of(v[j], r.largest);
                }
            }
    }
    __syncthreads();
    const u32 n = s.collected;
    u64 found = 0;
    if (n <= BINS) {
        for (u32 i = threadIdx.x; i < n; i += THREADS) {
            const u32 key = s.keys[i];
            u64 above = 0;
            for (u32 j = 0; j < n; j++) above += s.keys[j] >= key ? (COUNT ? 1 : s.listed[j]) : 0;
            if (above >= left && (u64)key > found) found = key;
        }
        found = block_max(found, s.warps, WARPS);
    } else {
        found = search_keys<COUNT>(r, bin, left, s);
    }
    __syncthreads();
    return (u32)found;
}

// Fill s.bins with the counts (COUNT) or masses of what the row keeps; returns their sum. 64-bit atomics on shared memory
// are loops, so a mass goes to three 32-bit bins of 14, 13 and 13 bits, which 2^18 elements cannot overflow.
template <bool COUNT>
__device__ u64 fill_bins(const Row &r, Shared &s) {
    u32 *narrow = (u32 *)s.listed;  // 3 x BINS words: s.listed and s.keys
    for (int b = threadIdx.x; b < (COUNT ? 1 : 3) * BINS; b += THREADS) narrow[b] = 0;
    __syncthreads();
    for (int base = threadIdx.x * 4; base < r.V; base += THREADS * 4) {
        float v[4];
        load4(r.z, base, r.V, v);
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (r.keeps(v[j])) {
                const u32 b = r.bin(v[j]);
                if (COUNT) {
                    atomicAdd(&narrow[b], 1u);
                } else {
                    const u64 m = mass_of(v[j], r.largest);
                    if (m & 0x3FFF) atomicAdd(&narrow[b], (u32)m & 0x3FFF);
                    if (m >> 14 & 0x1FFF) atomicAdd(&narrow[BINS + b], (u32)(m >> 14) & 0x1FFF);
                    if (m >> 27) atomicAdd(&narrow[2 * BINS + b], (u32)(m >> 27));
                }
            }
    }
    __syncthreads();
    u64 total = 0;
    for (int b = threadIdx.x; b < BINS; b += THREADS) {
        u64 n = narrow[b];
        if (!COUNT) n += ((u64)narrow[BINS + b] << 14) + ((u64)narrow[2 * BINS + b] << 27);
        s.bins[b] = n;
        total += n;
    }
    return block_sum(total, s.warps, WARPS);
}

// Draw one id of the row: filters, then the id whose running mass exceeds the Philox point.
__device__ int draw(Row r, int top_k, float top_p, u64 seed, u32 position, Shared &s) {
    if (top_k > 0 && fill_bins<true>(r, s) > (u64)top_k) {
        find_bin(s.bins, (u64)top_k, s);
        const u32 key = threshold<true>(r, s);
        r.floor_key = key > r.floor_key ? key : r.floor_key;
    }
    if (top_p < 1) {
        const u64 total = fill_bins<false>(r, s), p24 = __float2ull_rz(__fmul_rn(top_p, 16777216.0f));
        const u64 target = (total >> 24) * p24 + (((total & 0xFFFFFFull) * p24) >> 24);
        find_bin(s.bins, target ? target : 1, s);
        const u32 key = threshold<false>(r, s);
        r.floor_key = key > r.floor_key ? key : r.floor_key;
    }
    // Masses of tiles of consecutive ids, then the tile, then the id.
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int tile = 128 * ((r.V + 128 * BINS - 1) / (128 * BINS)), tiles = (r.V + tile - 1) / tile;
    __syncthreads();
    for (int t = threadIdx.x; t < BINS; t += THREADS) s.bins[t] = 0;
    __syncthreads();
    for (int t = warp; t < tiles; t += WARPS) {
        u64 mine = 0;
        for (int i = t * tile + lane * 4; i < min(t * tile + tile, r.V); i += 128) {
            float v[4];
            load4(r.z, i, r.V, v);
#pragma unroll
            for (int j = 0; j < 4; j++) mine += r.keeps(v[j]) ? mass_of(v[j], r.largest) : 0;
        }
        mine = warp_sum(mine);
        if (lane == 0) s.bins[t] = mine;
    }
    __syncthreads();
    u64 total = 0;
    for (int t = threadIdx.x; t < BINS; t += THREADS) total += s.bins[t];
    total = block_sum(total, s.warps, WARPS);
    __syncthreads();
    find_bin(s.bins, __umul64hi(philox(seed, position), total) + 1, s);
    const u64 wanted = s.left;
    const int first = s.bin * tile;
    __syncthreads();
    if (warp == 0) {
        u64 before = 0;
        int token = -1;
        for (int base = first; token < 0; base += 32) {
            const int i = base + lane;
            u64 v = i < r.V && r.keeps(r.z[i]) ? mass_of(r.z[i], r.largest) : 0, run = v;
            for (int d = 1; d < 32; d <<= 1) {
                u64 o = __shfl_up_sync(0xFFFFFFFFu, run, d);
                if (lane >= d) run += o;
            }
            u32 hit = __ballot_sync(0xFFFFFFFFu, before + run >= wanted);
            if (hit) token = base + __ffs(hit) - 1;
            before += __shfl_sync(0xFFFFFFFFu, run, 31);
        }
        if (lane == 0) s.bin = (u32)token;
    }
    __syncthreads();
    return (int)s.bin;
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample_pick(
    const float *logits, const float *scratch, const u64 *best_parts, const u64 *plain_parts, const float *sum_parts,
    const float *temperature, const int *top_k, const float *top_p, const float *min_p, const u64 *seed,
    const int *position, const int *slot, int *counts, int *tokens, float *logprobs, int *top_ids, float *top_logprobs,
    int V, int top, int parts) {
    __shared__ Shared s;
    const int row = blockIdx.x, tid = threadIdx.x;
    pdl_wait();
    pdl_launch();
    const float *raw = logits + (size_t)row * V;
    u64 best = 0, plain = 0;
    for (int i = tid; i < parts; i += THREADS) {
        u64 a = best_parts[row * parts + i], b = plain_parts[row * parts + i];
        best = a > best ? a : best;
        plain = b > plain ? b : plain;
    }
    best = block_max(best, s.warps, WARPS);
    plain = block_max(plain, s.warps, WARPS);
    const float plain_largest = candidate_value(plain), largest = candidate_value(best);
    const bool any = plain_largest > NOTHING;
    float sum = 0;
    for (int i = tid; i < parts; i += THREADS)
        if (any) sum += sum_parts[row * parts + i] * expf(candidate_value(plain_parts[row * parts + i]) - plain_largest);
    const float lse = logf(block_sum(sum, s.warps, WARPS));

    u64 last = ~0ull;
#pragma unroll 1
    for (int j = 0; j < top; j++) {
        u64 next = 0;
        for (int base = tid * 4; base < V; base += THREADS * 4) {
            float v[4];
            load4(raw, base, V, v);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                u64 c = candidate(usable(v[e]), base + e);
                if (base + e < V && c < last && c > next) next = c;
            }
        }
        last = block_max(next, s.warps, WARPS);
        if (tid == 0) {
            bool valid = last != 0 && candidate_value(last) > NOTHING;
            top_ids[row * top + j] = valid ? (int)candidate_id(last) : -1;
            top_logprobs[row * top + j] = valid ? (candidate_value(last) - plain_largest) - lse : NOTHING;
        }
    }

    int token = -1;
    if (largest > NOTHING) {
        if (temperature[row] > 0) {
            Row r = {scratch + (size_t)row * V, V, largest, min_p[row], order_key(NOTHING) + 1};
            token = draw(r, top_k[row], top_p[row], seed[row], (u32)position[row], s);
        } else {
            token = (int)candidate_id(best);
        }
    }
    if (tid == 0) {
        tokens[row] = token;
        logprobs[row] = token >= 0 && any ? (usable(raw[token]) - plain_largest) - lse : NOTHING;
        if (counts && token >= 0 && slot[row] >= 0) counts[(size_t)slot[row] * V + token] += 1;
    }
}

// Grid: ceil(N / 256). A neighbour may have become void already: then so does this row, as it should.
extern "C" __global__ void __launch_bounds__(256) sample_settle(const int *guess, const int *slot, int *counts,
                                                                int *tokens, float *logprobs, int *top_ids,
                                                                float *top_logprobs, int N, int V, int top) {
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x * 256 + threadIdx.x;
    if (row >= N) return;
    const volatile int *seen = tokens;
    bool holds = true;
    for (int j = row; holds && j > 0 && guess[j] >= 0; j--) holds = seen[j - 1] == guess[j];
    if (holds) {
        const int token = tokens[row];
        if (token >= 0 && slot[row] >= 0) atomicAdd(&counts[(size_t)slot[row] * V + token], 1);
        return;
    }
    tokens[row] = -2;
    logprobs[row] = NOTHING;
    for (int j = 0; j < top; j++) {
        top_ids[row * top + j] = -1;
        top_logprobs[row * top + j] = NOTHING;
    }
}
