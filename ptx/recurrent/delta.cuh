// What every kernel of a Gated DeltaNet layer shares (ops/ref/recurrent.py is the specification): the columns of a token's
// projections, gates, and who may write the history of a convolution in place.
//
// proj [T, channels + nv dv + 2 nv] holds q | k | v | z | b | a, channels = 2 nk dk + nv dv. A slot holds the last PAST
// inputs of q | k | v, oldest first. Channel c of a head counts q (dk), k (dk), then v.
#pragma once
#include "vector.cuh"

#define TAPS 4
#define PAST (TAPS - 1)
#define COUNTERS 16384
#ifdef STATE
typedef PASTE(STATE, _t) state_t;
#endif

// a / b for numbers of heads: exact below 2^16, without the instructions of a division.
__device__ __forceinline__ int quotient(int a, int b) { return (int)__fdividef((float)a + 0.5f, (float)b); }

struct Sizes {
    int nk, nv, dk, dv, tiled;
    __device__ __forceinline__ int channels() const { return 2 * nk * dk + nv * dv; }
    __device__ __forceinline__ int columns() const { return channels() + nv * dv + 2 * nv; }
    __device__ __forceinline__ int group() const { return quotient(nv, nk); }
    __device__ __forceinline__ int key_head(int head) const {
        return tiled ? head - nk * quotient(head, nk) : quotient(head, group());
    }
};

// Quotients here may be off by two units in the last place.
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + expf(-x)); }
__device__ __forceinline__ float silu(float x) { return __fdividef(x, 1.0f + expf(-x)); }
// log(1 + e^x); the quotient corrects for what 1 + e^x loses of a small e^x (Kahan).
__device__ __forceinline__ float softplus(float x) {
    if (x > 20.0f) return x;
    const float y = expf(x), sum = 1.0f + y, rest = sum - 1.0f;
    return rest == 0.0f ? y : logf(sum) * __fdividef(y, rest);
}
// The log of what a token leaves of the state. Not below -128, whose exponential is 0 as well.
__device__ __forceinline__ float log_decay(float decay, float x) {
    const float g = decay * softplus(x);
    return g < -128.0f ? -128.0f : g;
}

// The convolution at one channel: inputs x[0..TAPS), oldest first, weights w.
__device__ __forceinline__ float convolved(const float (&x)[TAPS], const float (&w)[TAPS]) {
    float y = x[0] * w[0];
#pragma unroll
    for (int i = 1; i < TAPS; i++) y = fmaf(x[i], w[i], y);
    return silu(y);
}

// What scales a query or key head to length 1, of the sum of its squares.
__device__ __forceinline__ float unit_scale(float squares) { return rsqrtf(squares + 1e-6f); }

// Orders what this thread, and who met it at a barrier, did to memory with what it does next, for the whole GPU.
__device__ __forceinline__ void fence() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// The value that a state holds after it was stored.
template <typename T> __device__ __forceinline__ float stored(float x) { return to_float(from_float<T>(x)); }
template <> __device__ __forceinline__ float stored<f32_t>(float x) { return x; }
