// The penalty state: what a request's prompt holds and how often its answer has used each token, per slot.
//
// Grid: one thread per token id (clear) or per token of the longer list (count). Archs: all. Run when a request with
// penalties starts, never on the decode path.
#include "scalar.cuh"

#define THREADS 512

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
