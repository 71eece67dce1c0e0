// Reads memory as fast as it comes: the bandwidth that rooflines are measured against.
//
// words: 32-bit words, a multiple of 8192 of them; out [words / 8192]: CTA i leaves the exclusive or of its tile of
// 8192 words. Grid: tiles, 256 threads; each thread has eight 16-byte loads in flight. Shared memory: 32 bytes.
// Archs: all. Bytes: all of words. Not yet measured.
#include "scalar.cuh"

#define LOADS 8

extern "C" __global__ void __launch_bounds__(256) read_words(const uint4* words, u32* out) {
    __shared__ u32 warps[8];
    const uint4* p = words + (u64)blockIdx.x * 256 * LOADS + threadIdx.x;
    uint4 v[LOADS];
#pragma unroll
    for (int i = 0; i < LOADS; ++i) v[i] = p[i * 256];
    u32 sum = 0;
#pragma unroll
    for (int i = 0; i < LOADS; ++i) sum ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
#pragma unroll
    for (int d = 16; d; d >>= 1) sum ^= __shfl_xor_sync(0xFFFFFFFFu, sum, d);
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x) return;
    for (int i = 1; i < 8; ++i) sum ^= warps[i];
    out[blockIdx.x] = sum;
}
