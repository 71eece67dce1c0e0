// What one step leaves for the next, and for the host: the newest token of every slot, and a step's results in one block.
//
// newest_tokens: out[t] = ids[t], or newest[-1 - ids[t]] if ids[t] < 0. ids, out [T], newest [slots] int32. Grid:
//   ceil(T / 256).
// deliver_tokens: block = tokens [N], logprobs [N], top_ids [N, top], top_logprobs [N, top] as 32-bit words, one behind
//   the other; newest[slots[i]] = tokens[i] where slots[i] >= 0. Grid: ceil(N * (2 + 2 top) / 256).
// Shared memory: none. Archs: all. Bytes: a few per token. Compiled, not yet measured.
#include "scalar.cuh"

#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) newest_tokens(const int *newest, const int *ids, int *out, int T) {
    pdl_launch();
    pdl_wait();
    const int t = blockIdx.x * THREADS + threadIdx.x;
    if (t >= T) return;
    const int id = ids[t];
    out[t] = id < 0 ? newest[-1 - id] : id;
}

extern "C" __global__ void __launch_bounds__(THREADS) deliver_tokens(const int *tokens, const int *logprobs,
                                                                     const int *top_ids, const int *top_logprobs,
                                                                     const int *slots, int *newest, int *block, int N,
                                                                     int top) {
    pdl_launch();
    pdl_wait();
    const int i = blockIdx.x * THREADS + threadIdx.x, words = N * top;
    if (i < N) {
        block[i] = tokens[i];
        if (slots[i] >= 0) newest[slots[i]] = tokens[i];
    } else if (i < 2 * N) {
        block[i] = logprobs[i - N];
    } else if (i < 2 * N + words) {
        block[i] = top_ids[i - 2 * N];
    } else if (i < 2 * N + 2 * words) {
        block[i] = top_logprobs[i - 2 * N - words];
    }
}
