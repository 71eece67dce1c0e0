// Teacher-forced log-probabilities: log softmax of logits [N, V] float32 at targets [N]; a target of -1 gives 0.
//
// Grid: one CTA of 512 threads per row. Shared memory: 128 B. Archs: all. Bytes: V*4 read twice (the second time from
// L2) per row. Fixed reduction order. Compiled, not yet measured.
#include "logits.cuh"

#define THREADS 512
#define WARPS 16

extern "C" __global__ void __launch_bounds__(THREADS, 1) token_logprobs(const float *logits, const int *targets,
                                                                     float *out, int V) {
    __shared__ u64 warps[WARPS];
    pdl_wait();
    pdl_launch();
    const int row = blockIdx.x, target = targets[row];
    const float *raw = logits + (size_t)row * V;
    u64 best = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) {
        u64 c = candidate(usable(raw[i]), i);
        best = c > best ? c : best;
    }
    const float largest = candidate_value(block_max(best, warps, WARPS));
    float sum = 0;
    for (int i = threadIdx.x; i < V; i += THREADS) sum += expf(usable(raw[i]) - largest);
    const float lse = logf(block_sum(sum, warps, WARPS));
    if (threadIdx.x == 0) out[row] = target < 0 ? 0.0f : (usable(raw[target]) - largest) - lse;
}
