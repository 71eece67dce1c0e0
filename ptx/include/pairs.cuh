// Dequantised weights as operands of 16-bit matrix instructions.
#pragma once
#include "blocks.cuh"

// Piece (j, t) of a weight row as four registers of two ACT values.
template <typename F>
__device__ __forceinline__ void weight_pairs(const typename F::row_t& row, chunk_t chunk, int j, int t, u32 (&r)[4]) {
    if constexpr (same_type<typename F::storage_t, act_t>::value) {
        const u8* p = chunk.codes + 2 * (32 * j + 8 * t);
        if (((u64)p & 15) == 0) {
            const words4_t v = load<words4_t>(p);
#pragma unroll
            for (int i = 0; i < 4; i++) r[i] = v.r[i];
        } else {
#pragma unroll
            for (int i = 0; i < 4; i++) r[i] = load<u16>(p + 4 * i) | ((u32)load<u16>(p + 4 * i + 2) << 16);
        }
    } else if constexpr (F::PAIRS) {
        F::template pairs<act_t>(chunk, j, t, r);
    } else {
        float w[8];
        F::piece(row, chunk, j, t, w);
#pragma unroll
        for (int i = 0; i < 4; i++) r[i] = pack2<act_t>(w[2 * i], w[2 * i + 1]);
    }
}
