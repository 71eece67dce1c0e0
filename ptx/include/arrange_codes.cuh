// Codes under scales into fragment order (fragments_codes.cuh). Every format has put as in arrange_gguf.cuh.
#pragma once

// `bytes` bytes of scales for every 256 columns of each row of a tile; a row of the matrix has `row_bytes`.
__device__ __forceinline__ void put_scales(const matrix_t& w, int row, int tile, int bytes, int row_bytes, u8* out,
                                           int lane) {
    for (int i = lane; i < 16 * bytes; i += 32) {
        const int r = row + i / bytes, at = tile * bytes + i % bytes;
        out[i] = r < w.N && at < row_bytes ? w.scales[(i64)r * row_bytes + at] : (u8)0;
    }
}
__device__ __forceinline__ void put_factors(const matrix_t& w, int row, u8* out, int lane) {
    if (lane < 16) reinterpret_cast<float*>(out)[lane] = row + lane < w.N ? w.factors[row + lane] : 0.0f;
}

// E2M1: scales of SIZE bytes for BLOCK columns; FACTORS: a factor per row behind them.
template <int SIZE, int BLOCK, bool FACTORS> struct e2m1_arranged {
    // Four codes, each in a byte. A row has K / 2 bytes.
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        if (row >= w.N || k >= w.K) return 0;
        const u32 two = load<u16>(w.codes + (i64)row * (w.K / 2) + k / 2);
        const u32 apart = (two & 0xFFu) | (two & 0xFF00u) << 8;
        return (apart & 0x000F000Fu) | (apart & 0x00F000F0u) << 4;
    }
    // The codes of row g and of row g + 8 as one word.
    static __device__ __forceinline__ u32 join(u32 low, u32 high) {
        u32 word = 0;
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const u32 code = ((h == 0 ? low : high) >> (8 * e)) & 15u;
                const u32 byte = e < 2 ? (code & 8u) << 4 | (code & 7u) << 1 : (code & 7u) << 4 | code >> 3;
                word |= byte << (8 * (1 - h) + 16 * (e & 1));
            }
        return word;
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_words<e2m1_arranged>(w, row, tile, out, lane);
        put_scales(w, row, tile, 256 / BLOCK * SIZE, w.K / BLOCK * SIZE, out + 2048, lane);
        if (FACTORS) put_factors(w, row, out + 2048 + 16 * (256 / BLOCK * SIZE), lane);
    }
};
typedef e2m1_arranged<1, 16, true> nvfp4_arranged;
typedef e2m1_arranged<2, 16, true> nvfp4_f16_arranged;
typedef e2m1_arranged<1, 32, false> mxfp4_arranged;

struct e4m3_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        u32 four = 0;
        if (row < w.N)
            for (int e = 0; e < 4; e++)
                if (k + e < w.K) four |= (u32)w.codes[(i64)row * w.K + k + e] << (8 * e);
        return four;
    }
};
struct fp8_arranged {
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_bytes<e4m3_arranged>(w, row, tile, out, lane);
        put_factors(w, row, out + 4096, lane);
    }
};
struct mxfp8_arranged {
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_bytes<e4m3_arranged>(w, row, tile, out, lane);
        put_scales(w, row, tile, 8, w.K / 32, out + 4096, lane);
    }
};
struct fp8_block_arranged {
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_bytes<e4m3_arranged>(w, row, tile, out, lane);
        const int columns = (w.K + 127) / 128;
        if (lane < 4)  // two, and zeros up to a multiple of 16 bytes
            reinterpret_cast<float*>(out + 4096)[lane] = lane < 2 && 2 * tile + lane < columns
                ? reinterpret_cast<const float*>(w.scales)[(i64)(row / 128) * columns + 2 * tile + lane] : 0.0f;
    }
};
