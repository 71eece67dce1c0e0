// Activations as E4M3 under one float32 factor per row: the given one where inputs[0] > 0, else the row's largest
// magnitude / 448. The meaning is ops/ref/quantize.py, bit for bit.
//
// x [T, K] of ACT, inputs [1] or null, codes [T, K], factors [T]. A row that holds a NaN or an infinity gets the factor
// NaN and zero codes. Grid: T CTAs of 256 threads; a thread takes eight elements at a time and reads the row twice, the
// second time from L1 or L2. Shared memory: 32 bytes. Archs: all. Bytes: x once, K bytes a row out.
// Compiled, not yet measured.
#include "quantize.cuh"

extern "C" __global__ void __launch_bounds__(256)
    quantize_tokens(const act_t* x, const float* inputs, u8* codes, float* factors, int T, int K) {
    __shared__ u32 parts[8];
    const act_t* row = x + (i64)blockIdx.x * K;
    const bool wide = K % 8 == 0 && aligned(x, 16);
    pdl_launch();
    pdl_wait();
    float v[8];
    u32 largest = 0;
    for (int i = threadIdx.x * 8; i < K; i += 2048) {
        load_group(v, row + i, K - i, wide);
        largest = max(largest, largest_bits(v));
    }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) largest = max(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, o));
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = largest;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 8; i++) largest = max(largest, parts[i]);

    const float set = inputs != nullptr ? *inputs : 0.0f;
    float factor = set > 0.0f ? set : __uint_as_float(largest) / E4M3_LARGEST;
    if (is_bad(largest)) factor = __uint_as_float(0x7FC00000u);
    const float inverse = inverse_scale(factor);
    if (threadIdx.x == 0) factors[blockIdx.x] = factor;
    for (int i = threadIdx.x * 8; i < K; i += 2048) {
        load_group(v, row + i, K - i, wide);
        store_codes(codes + (i64)blockIdx.x * K + i, e4m3x8(v, inverse, is_bad(largest)), K - i);
    }
}
