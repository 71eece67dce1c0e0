// Sampling: one token per row of float32 logits, bit for bit the choice of ops/ref/sample.py.
//
// Grid: one CTA of 512 threads per row [N]. Shared memory: 2.5 KiB. Archs: all. scratch [N, V] float32 holds the
// adjusted logits. Bytes: V*4 read and written once, then V*4 read (from L2) per pass: greedy without bias or penalties
// 1 pass, otherwise 2, top_k and top_p 4 to 5 more each, the draw 2, each reported alternative 1.
// Order of arithmetic: single IEEE float32 operations (__f*_rn, never contracted) and integer sums, so that neither the
// thread count nor the backend shows. log-probabilities are ordinary float32 with a fixed reduction order.
// Compiled, not yet measured.
#include "philox.cuh"

#define THREADS 512
#define WARPS 16
#define LARGEST __uint_as_float(0x7F7FFFFFu)
#define NOTHING __uint_as_float(0xFF800000u)  // -inf

// NaN -> -inf, +inf -> largest finite, -0 -> +0.
__device__ __forceinline__ float usable(float z) {
    if (z != z) return NOTHING;
    return __fadd_rn(z > LARGEST ? LARGEST : z, 0.0f);
}

// Unsigned integers that order like the floats.
__device__ __forceinline__ u32 order_key(float z) {
    u32 b = __float_as_uint(z);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

__device__ __forceinline__ float key_value(u32 k) { return __uint_as_float(k & 0x80000000u ? k ^ 0x80000000u : ~k); }

// exp for x <= 0, operation by operation that of ops/ref/sample.py.
__device__ __forceinline__ float exp_f32(float x) {
    if (x < -80.0f) return 0.0f;
    float n = rintf(__fmul_rn(x, 1.4426950408889634f));
    float r = __fsub_rn(__fsub_rn(x, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
    float p = (float)(1.0 / 5040);
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 720));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 120));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 24));
    p = __fadd_rn(__fmul_rn(p, r), (float)(1.0 / 6));
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    p = __fadd_rn(__fmul_rn(p, r), 1.0f);
    return __fmul_rn(p, __uint_as_float((u32)((int)n + 127) << 23));
}

__device__ __forceinline__ u64 mass_of(float z, float largest) {
    return __float2ull_rz(__fmul_rn(exp_f32(__fsub_rn(z, largest)), 1099511627776.0f));  // 2^40
}

__device__ __forceinline__ u64 warp_max(u64 v) {
    for (int d = 16; d; d >>= 1) {
        u64 o = __shfl_xor_sync(0xFFFFFFFFu, v, d);
        v = o > v ? o : v;
    }
    return v;
}

__device__ __forceinline__ u64 warp_sum(u64 v) {
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

__device__ __forceinline__ float warp_sum(float v) {
    for (int d = 16; d; d >>= 1) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
    return v;
}

struct Shared {
    u64 bins[256];
    u64 warps[WARPS];
    u64 word;
    u64 left;
    float value;
};

// Largest u64 of the CTA, in every thread.
__device__ u64 block_max(u64 v, Shared &s) {
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(threadIdx.x % 32 < WARPS ? s.warps[threadIdx.x % 32] : 0);
}

__device__ u64 block_sum(u64 v, Shared &s) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < WARPS ? s.warps[threadIdx.x % 32] : 0);
}

__device__ float block_sum(float v, Shared &s) {
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.warps[threadIdx.x / 32] = __float_as_uint(v);
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < WARPS ? __uint_as_float((u32)s.warps[threadIdx.x % 32]) : 0.0f);
}

// A candidate orders by value, then by lowest id.
__device__ __forceinline__ u64 candidate(float z, u32 id) { return (u64)order_key(z) << 32 | (u32)~id; }
__device__ __forceinline__ u32 candidate_id(u64 c) { return ~(u32)c; }
__device__ __forceinline__ float candidate_value(u64 c) { return key_value((u32)(c >> 32)); }

// Largest key such that keys at or above it reach `target`, each z counting 1 (COUNT) or its mass; keys below `floor`
// are left out. Radix search, 8 bits a round, from the top.
template <bool COUNT>
__device__ u32 find_threshold(const float *z, int V, float largest, u32 floor_key, u64 target, Shared &s) {
    u32 prefix = 0;
    u64 wanted = target;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) s.bins[threadIdx.x] = 0;
        __syncthreads();
#pragma unroll 2
        for (int i = threadIdx.x; i < V; i += THREADS) {
            u32 k = order_key(z[i]);
            bool inside = shift == 24 || (k >> (shift + 8)) == (prefix >> (shift + 8));
            if (k >= floor_key && inside) {
                u64 w = COUNT ? 1 : mass_of(z[i], largest);
                if (w) atomicAdd(&s.bins[k >> shift & 255], w);
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int b = 255;
            u64 left = wanted;
            while (b > 0 && s.bins[b] < left) left -= s.bins[b--];
            s.word = prefix | (u32)b << shift;
            s.left = left;
        }
        __syncthreads();
        prefix = (u32)s.word;
        wanted = s.left;
        __syncthreads();
    }
    return prefix;
}

// log-sum-exp of usable(raw[0..V)) relative to `largest`, in float32, fixed order.
__device__ float log_sum(const float *raw, int V, float largest, Shared &s) {
    float sum = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) sum += expf(usable(raw[i]) - largest);
    return logf(block_sum(sum, s));
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) sample(
    const float *logits, float *scratch, const float *temperature, const int *top_k, const float *top_p,
    const float *min_p, const float *repetition, const float *presence, const float *frequency, const u64 *seed,
    const int *position, const int *slot, const int *bias_starts, const int *bias_ids, const float *bias_values,
    int *counts, const u8 *prompt, int *tokens, float *logprobs, int *top_ids, float *top_logprobs, int V, int top) {
    __shared__ Shared s;
    const int row = blockIdx.x, tid = threadIdx.x;
    pdl_wait();
    pdl_launch();
    const float *raw = logits + (size_t)row * V;
    float *z = scratch + (size_t)row * V;
    const float T = temperature[row], r = repetition[row], pres = presence[row], freq = frequency[row];
    const int bias0 = bias_starts[row], bias1 = bias_starts[row + 1], at = slot[row];

    // The plain distribution: its best token and its log-sum-exp, for log-probabilities.
    u64 best = 0;
    for (int i = tid; i < V; i += THREADS) {
        float x = usable(raw[i]);
        z[i] = x;
        u64 c = candidate(x, i);
        best = c > best ? c : best;
    }
    best = block_max(best, s);
    const float plain_largest = candidate_value(best);
    const bool any = plain_largest > NOTHING;
    const float lse = any ? log_sum(raw, V, plain_largest, s) : 0.0f;

    u64 last = ~0ull;
#pragma unroll 1
    for (int j = 0; j < top; j++) {
        u64 next = 0;
        for (int i = tid; i < V; i += THREADS) {
            u64 c = candidate(usable(raw[i]), i);
            if (c < last && c > next) next = c;
        }
        last = block_max(next, s);
        if (tid == 0) {
            bool valid = last != 0 && candidate_value(last) > NOTHING;
            top_ids[row * top + j] = valid ? (int)candidate_id(last) : -1;
            top_logprobs[row * top + j] = valid ? (candidate_value(last) - plain_largest) - lse : NOTHING;
        }
    }

    // Bias (in order, by one thread), penalties, temperature.
    if (bias1 > bias0 || at >= 0 || T > 0) {
        __syncthreads();
        if (tid == 0)
            for (int j = bias0; j < bias1; j++) {
                int id = bias_ids[j];
                if (id >= 0 && id < V) z[id] = __fadd_rn(z[id], bias_values[j]);
            }
        __syncthreads();
        best = 0;
#pragma unroll 2
        for (int i = tid; i < V; i += THREADS) {
            float x = z[i];
            if (at >= 0) {
                int count = counts[(size_t)at * V + i];
                if (count > 0 || prompt[(size_t)at * V + i]) x = x > 0 ? __fdiv_rn(x, r) : __fmul_rn(x, r);
                x = __fsub_rn(x, __fmul_rn(freq, (float)count));
                if (count > 0) x = __fsub_rn(x, pres);
            }
            if (T > 0) x = __fdiv_rn(x, T);
            x = usable(x);
            z[i] = x;
            u64 c = candidate(x, i);
            best = c > best ? c : best;
        }
        best = block_max(best, s);
    }
    const float largest = candidate_value(best);
    int token = -1;
    if (largest > NOTHING && !(T > 0)) token = (int)candidate_id(best);
    if (largest > NOTHING && T > 0) {
        u32 floor_key = order_key(NOTHING) + 1;
        const int k = top_k[row];
        const float p = top_p[row], m = min_p[row];
        if (k > 0) {
            u64 n = 0;
            for (int i = tid; i < V; i += THREADS) n += z[i] > NOTHING;
            if (block_sum(n, s) > (u64)k) {
                u32 t = find_threshold<true>(z, V, largest, floor_key, (u64)k, s);
                floor_key = t > floor_key ? t : floor_key;
            }
        }
        if (m > 0) {  // e >= min_p is monotone in z: the smallest z that passes is the floor
            u64 lowest = 0;
#pragma unroll 1
            for (int i = tid; i < V; i += THREADS) {
                u32 key = order_key(z[i]);
                if (key >= floor_key && exp_f32(__fsub_rn(z[i], largest)) >= m) {
                    u64 inverted = (u64)(~key);
                    lowest = inverted > lowest ? inverted : lowest;
                }
            }
            u32 t = ~(u32)block_max(lowest, s);
            floor_key = t > floor_key ? t : floor_key;
        }
        u64 total = 0;
#pragma unroll 2
        for (int i = tid; i < V; i += THREADS)
            if (order_key(z[i]) >= floor_key) total += mass_of(z[i], largest);
        total = block_sum(total, s);
        if (p < 1) {
            u64 p24 = __float2ull_rz(__fmul_rn(p, 16777216.0f));
            u64 target = (total >> 24) * p24 + (((total & 0xFFFFFFull) * p24) >> 24);
            u32 t = find_threshold<false>(z, V, largest, floor_key, target ? target : 1, s);
            floor_key = t > floor_key ? t : floor_key;
        }
        // The draw: each warp owns a run of ids; find the warp, then the id whose running mass exceeds the point.
        const int span = (V + WARPS - 1) / WARPS, lane = tid % 32, warp = tid / 32;
        const int from = warp * span, to = min(from + span, V);
        u64 mine = 0;
#pragma unroll 2
        for (int i = from + lane; i < to; i += 32)
            if (order_key(z[i]) >= floor_key) mine += mass_of(z[i], largest);
        mine = warp_sum(mine);
        __syncthreads();
        if (lane == 0) s.warps[warp] = mine;
        __syncthreads();
        if (tid == 0) {
            u64 all = 0;
            for (int w = 0; w < WARPS; w++) all += s.warps[w];
            u64 point = __umul64hi(philox(seed[row], (u32)position[row]), all);
            int w = 0;
            while (w < WARPS - 1 && s.warps[w] <= point) point -= s.warps[w++];
            s.word = (u64)w;
            s.left = point;
        }
        __syncthreads();
        const u64 point = s.left;
        if (warp == (int)s.word) {
            u64 before = 0;
#pragma unroll 1
            for (int base = from; base < to; base += 32) {
                int i = base + lane;
                u64 v = i < to && order_key(z[i]) >= floor_key ? mass_of(z[i], largest) : 0, run = v;
                for (int d = 1; d < 32; d <<= 1) {
                    u64 o = __shfl_up_sync(0xFFFFFFFFu, run, d);
                    if (lane >= d) run += o;
                }
                u32 hit = __ballot_sync(0xFFFFFFFFu, before + run > point);
                if (hit) {
                    token = base + __ffs(hit) - 1;
                    break;
                }
                before += __shfl_sync(0xFFFFFFFFu, run, 31);
            }
            if (lane == 0) s.word = (u64)(u32)token;
        }
        __syncthreads();
        token = (int)(u32)s.word;
    }
    if (tid == 0) {
        tokens[row] = token;
        logprobs[row] = token >= 0 && any ? (usable(raw[token]) - plain_largest) - lse : NOTHING;
        if (token >= 0 && at >= 0) counts[(size_t)at * V + token] += 1;
    }
}

// log softmax of logits [N, V] at targets [N]; a target of -1 gives 0. Grid: one CTA per row.
extern "C" __global__ void __launch_bounds__(THREADS, 1) token_logprobs(const float *logits, const int *targets,
                                                                     float *out, int V) {
    __shared__ Shared s;
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x, target = targets[row];
    const float *raw = logits + (size_t)row * V;
    u64 best = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) {
        u64 c = candidate(usable(raw[i]), i);
        best = c > best ? c : best;
    }
    const float largest = candidate_value(block_max(best, s));
    const float lse = log_sum(raw, V, largest, s);
    if (threadIdx.x == 0) out[row] = target < 0 ? 0.0f : (usable(raw[target]) - largest) - lse;
}

// Clear one slot of the penalty state. Grid: ceil(V / 512).
extern "C" __global__ void __launch_bounds__(THREADS, 1) penalty_clear(int *counts, u8 *prompt, int slot, int V) {
    pdl_wait();
    pdl_launch();
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < V) {
        counts[(size_t)slot * V + i] = 0;
        prompt[(size_t)slot * V + i] = 0;
    }
}

// Flag the prompt's tokens, count the answer's. Grid: ceil(max(prompt, answer) / 512).
extern "C" __global__ void __launch_bounds__(THREADS, 1) penalty_count(int *counts, u8 *prompt, const int *prompt_ids,
                                                                    const int *answer_ids, int slot, int n_prompt,
                                                                    int n_answer, int V) {
    pdl_wait();
    pdl_launch();
    int i = blockIdx.x * THREADS + threadIdx.x;
    if (i < n_prompt) prompt[(size_t)slot * V + prompt_ids[i]] = 1;
    if (i < n_answer) atomicAdd(&counts[(size_t)slot * V + answer_ids[i]], 1);
}
