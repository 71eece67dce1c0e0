// GGUF blocks into fragment order (fragments_gguf.cuh). Every format has put(w, row, tile, out, lane): a warp writes
// tile `tile` of the 16 rows from `row`.
#pragma once

// The block of 256 columns of row `row`, or null.
__device__ __forceinline__ const u8* whole_block(const matrix_t& w, int row, int tile, int bytes) {
    return row < w.N ? w.codes + ((i64)row * (w.K / 256) + tile) * bytes : nullptr;
}
// The block of 32 columns that holds column k, or null.
__device__ __forceinline__ const u8* small_block(const matrix_t& w, int row, int k, int bytes) {
    return row < w.N && k < w.K ? w.codes + ((i64)row * (w.K / 32) + k / 32) * bytes : nullptr;
}
// Scales d of a tile, which are the first two bytes of blocks of 32 columns.
__device__ __forceinline__ void put_half_scales(const matrix_t& w, int row, int tile, int bytes, u8* out, int lane) {
    for (int i = lane; i < 128; i += 32) {
        const u8* block = small_block(w, row + i / 8, 256 * tile + 32 * (i % 8), bytes);
        *reinterpret_cast<u16*>(out + 2 * i) = block == nullptr ? (u16)0 : load<u16>(block);
    }
}

struct q8_0_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        const u8* block = small_block(w, row, k, 34);
        return (block == nullptr ? 0 : load_4_bytes(block + 2 + k % 32)) ^ 0x80808080u;
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_bytes<q8_0_arranged>(w, row, tile, out, lane);
        put_half_scales(w, row, tile, 34, out + 4096, lane);
    }
};

struct q4_0_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        const u8* block = small_block(w, row, k, 18);
        return block == nullptr ? 0 : load_4_bytes(block + 2 + k % 16) >> (k & 16 ? 4 : 0);
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        put_nibbles<q4_0_arranged>(w, row, tile, out, lane);
        put_half_scales(w, row, tile, 18, out + 2048, lane);
    }
};

__device__ __forceinline__ u32 six_bits(const u8* block, int j, bool minimum) {
    const u8* b = block + 4;
    if (j < 4) return b[j + (minimum ? 4 : 0)] & 63u;
    return minimum ? b[j + 4] >> 4 | (b[j] >> 6) << 4 : (b[j + 4] & 15u) | (b[j - 4] >> 6) << 4;
}

// The head of row r of Q4_K and Q5_K.
__device__ __forceinline__ void arrange_head(const u8* block, u8* tile, int r) {
    u32 words[4] = {0, 0, 0, 0};
    if (block != nullptr) {
        words[0] = load<u32>(block);
        u32 last = 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            words[1] |= six_bits(block, j, false) << (6 * j);
            words[2] |= six_bits(block, j + 4, false) << (6 * j);
            words[3] |= six_bits(block, j, true) << (6 * j);
            last |= six_bits(block, j + 4, true) << (6 * j);
        }
        words[1] |= last << 24, words[2] |= (last >> 8) << 24, words[3] |= (last >> 16) << 24;
    }
    *reinterpret_cast<words4_t*>(tile + 16 * r) = {{words[0], words[1], words[2], words[3]}};
}

struct q4_k_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        const u8* block = whole_block(w, row, k / 256, 144);
        return block == nullptr ? 0 : load<u32>(block + 16 + 32 * (k % 256 / 64) + k % 32) >> (k & 32 ? 4 : 0);
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        if (lane < 16) arrange_head(whole_block(w, row + lane, tile, 144), out, lane);
        put_nibbles<q4_k_arranged>(w, row, tile, out + 256, lane);
    }
};

struct q5_k_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        const u8* block = whole_block(w, row, k / 256, 176);
        return block == nullptr ? 0 : load<u32>(block + 48 + 32 * (k % 256 / 64) + k % 32) >> (k & 32 ? 4 : 0);
    }
    // Fifth bits of four columns, in bits 0, 8, 16 and 24.
    static __device__ __forceinline__ u32 bits(const matrix_t& w, int row, int k) {
        const u8* block = whole_block(w, row, k / 256, 176);
        return block == nullptr ? 0 : load<u32>(block + 16 + k % 32) >> (k % 256 / 32);
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        const int AT[4][2] = {{4, 8}, {6, 10}, {0, 12}, {2, 14}};
        if (lane < 16) arrange_head(whole_block(w, row + lane, tile, 176), out, lane);
        put_nibbles<q5_k_arranged>(w, row, tile, out + 256, lane);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            u32 word = 0;
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 four = bits(w, row + (lane >> 2) + 8 * h, 256 * tile + 64 * c + 16 * i + 4 * (lane & 3));
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        word |= ((four >> (8 * e)) & 1u) << (AT[i][h] + (e >> 1) + 16 * (e & 1));
                }
            *reinterpret_cast<u32*>(out + 2304 + 128 * c + 4 * lane) = word;
        }
    }
};

struct q6_k_arranged {
    static __device__ __forceinline__ u32 quad(const matrix_t& w, int row, int k) {
        const u8* block = whole_block(w, row, k / 256, 210);
        const int at = k % 256;
        return block == nullptr ? 0 : load_4_bytes(block + 64 * (at / 128) + at % 64) >> (at & 64 ? 4 : 0);
    }
    // High pairs of bits of four columns, each in a byte.
    static __device__ __forceinline__ u32 pairs(const matrix_t& w, int row, int k) {
        const u8* block = whole_block(w, row, k / 256, 210);
        const int at = k % 256;
        return block == nullptr ? 0 : load_4_bytes(block + 128 + 32 * (at / 128) + at % 32) >> (at % 128 / 32 * 2);
    }
    static __device__ __forceinline__ void put(const matrix_t& w, int row, int tile, u8* out, int lane) {
        const int AT[2][2][2] = {{{4, 2}, {8, 6}}, {{10, 0}, {14, 12}}};
        put_nibbles<q6_k_arranged>(w, row, tile, out, lane);
#pragma unroll
        for (int c = 0; c < 4; c++) {
            u32 bits[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    const u32 two = pairs(w, row + (lane >> 2) + 8 * h, 256 * tile + 64 * c + 16 * i + 4 * (lane & 3));
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        bits[i >> 1] |= ((two >> (8 * e)) & 3u) << (AT[i & 1][h][e >> 1] + 16 * (e & 1));
                }
            *reinterpret_cast<words2_t*>(out + 2048 + 256 * c + 8 * lane) = {bits[0], bits[1]};
        }
        if (lane < 16) {
            const u8* block = whole_block(w, row + lane, tile, 210);
            for (int j = 0; j < 16; j++) out[3072 + 16 * lane + j] = block == nullptr ? 128 : block[192 + j] ^ 128;
            *reinterpret_cast<u16*>(out + 3328 + 2 * lane) = block == nullptr ? (u16)0 : load<u16>(block + 208);
        }
    }
};
