// Activations into groups of small codes under scales, alone and fused into what makes them: RMS norm, residual sum with
// RMS norm, gated activation. QUANT: nvfp4 (groups of 16), mxfp8 (32), fp8_block (128).
//
// x, residual, s [T, K], gate_up [T, 2 K] of ACT; weight [K] float32; codes [T, K / 2] (nvfp4, low nibble first) or
// [T, K]; scales: tiles of 128 rows by 4 groups, padded with zeros (nvfp4: E4M3, mxfp8: E8M0), or float32
// [T, ceil(K / 128)] (fp8_block); factor [1] and inputs [1] or null: the factor of all rows (nvfp4).
// K is a multiple of 64 (nvfp4) or 32 (mxfp8). The bits are those of the parts of a fused kernel, one after the other.
// Grid: quantize and swiglu_quantize: (rows, ceil(K / 1024)), 128 threads, eight elements each; norms: as
// norm/rms_norm.cu. Rows are T, or T rounded up to 128 where scales are tiled: the rest writes their zeros.
// Shared memory: 128 bytes (norms). Archs: all. Bytes: the inputs once, K / 2 or K bytes and the scales out.
// Compiled, not yet measured.
#include "norm.cuh"
#include "quantize.cuh"

extern "C" __global__ void __launch_bounds__(128)
    quantize(const act_t* x, const float* inputs, u8* codes, u8* scales, float* factor, int T, int K) {
    const quantized_t out = {codes, scales, factor, inputs, T, K};
    const int row = blockIdx.x, i = (blockIdx.y * 128 + threadIdx.x) * 8;
    pdl_launch();
    pdl_wait();
    if (row >= T) {
        pad_scales<groups_t>(out, row, i);
        return;
    }
    float v[8];
    load_group(v, x + (i64)row * K + i, K - i, K % 8 == 0 && aligned(x, 16));
    groups_t::store(out, row, i, v);
}

extern "C" __global__ void __launch_bounds__(128)
    swiglu_quantize(const act_t* gate_up, const float* inputs, u8* codes, u8* scales, float* factor, int T, int K) {
    const quantized_t out = {codes, scales, factor, inputs, T, K};
    const int row = blockIdx.x, i = (blockIdx.y * 128 + threadIdx.x) * 8;
    const bool wide = K % 8 == 0 && aligned(gate_up, 16);
    pdl_launch();
    pdl_wait();
    if (row >= T) {
        pad_scales<groups_t>(out, row, i);
        return;
    }
    const act_t* from = gate_up + (i64)row * 2 * K + i;
    float g[8], u[8];
    load_group(g, from, K - i, wide);
    load_group(u, from + K, K - i, wide);
#pragma unroll
    for (int e = 0; e < 8; ++e)
        g[e] = to_float(from_float<act_t>(__fdividef(g[e], 1.0f + expf(-g[e])) * u[e]));
    groups_t::store(out, row, i, g);
}

extern "C" __global__ void __launch_bounds__(1024)
    rms_norm_quantize(const act_t* x, const float* weight, const float* inputs, u8* codes, u8* scales, float* factor,
                      int T, int K, float eps) {
    norm_row<false>(x, nullptr, weight, nullptr, T, K, eps,
                    group_sink<groups_t>{{codes, scales, factor, inputs, T, K}});
}

extern "C" __global__ void __launch_bounds__(1024)
    add_rms_norm_quantize(const act_t* x, const act_t* residual, const float* weight, const float* inputs, act_t* s,
                          u8* codes, u8* scales, float* factor, int T, int K, float eps) {
    norm_row<true>(x, residual, weight, s, T, K, eps, group_sink<groups_t>{{codes, scales, factor, inputs, T, K}});
}
