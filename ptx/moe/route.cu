// Choice of experts: the `top` largest of each row of logits, best first, and their softmax over all experts.
//
// logits [T, E] float32; experts [T, top] int32, weights [T, top] float32; `norm`: divide the weights by their sum.
// Lowest index first among equals; NaN ranks with -inf. A NaN, or a row whose largest is infinite, makes every weight
// of the row NaN; the experts stay in [0, E). Any E >= top >= 1. With shared_gate a row has a logit more, whose expert E is
// last in every list, of top + 1 then, with its sigmoid.
// Grid: ceil(T / 4) CTAs of 128 threads, a warp for each token. Every round takes the first in order after the one that
// was taken last, so nothing has to be marked.
// Shared memory: none. Archs: all. Bytes: T E logits, read top + 2 times, but for the first from L1. Compiled, not yet
// measured.
#include "scalar.cuh"

#define ALL 0xFFFFFFFFu

__device__ __forceinline__ float rank_of(float z) { return z == z ? z : __int_as_float(0xFF800000); }

extern "C" __global__ void __launch_bounds__(128)
    moe_route(const float* logits, int* experts, float* weights, int T, int E, int top, int norm, int shared_gate) {
    pdl_launch();
    pdl_wait();
    const int token = blockIdx.x * 4 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    if (token >= T) return;
    const int listed = top + shared_gate;
    const float* row = logits + (i64)token * (E + shared_gate);

    float most = __int_as_float(0xFF800000);
    for (int e = lane; e < E; e += 32) most = fmaxf(most, row[e]);
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(ALL, most, i));
    float mass = 0.0f;
    for (int e = lane; e < E; e += 32) mass += expf(row[e] - most);
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) mass += __shfl_xor_sync(ALL, mass, i);

    float last = __int_as_float(0x7F800000), sum = 0.0f;
    int taken = -1;
    for (int s = 0; s < top; s++) {
        float best = 0.0f;
        int index = E;
        for (int e = lane; e < E; e += 32) {
            const float z = rank_of(row[e]);
            const bool left = z < last || (z == last && e > taken);
            if (left && (index == E || z > best)) best = z, index = e;
        }
#pragma unroll
        for (int i = 16; i > 0; i >>= 1) {
            const float z = __shfl_xor_sync(ALL, best, i);
            const int e = __shfl_xor_sync(ALL, index, i);
            if (e < E && (index == E || z > best || (z == best && e < index))) best = z, index = e;
        }
        last = best;
        taken = index;
        const float w = expf(row[index] - most) / mass;
        sum += w;
        if (lane == 0) {
            experts[(i64)token * listed + s] = index;
            weights[(i64)token * listed + s] = w;
        }
    }
    __syncwarp();
    if (norm)
        for (int s = lane; s < top; s += 32) weights[(i64)token * listed + s] /= sum;
    if (shared_gate && lane == 0) {
        experts[(i64)token * listed + top] = E;
        weights[(i64)token * listed + top] = 1.0f / (1.0f + expf(-row[E]));
    }
}
