// A matrix of blocks, as in a GGUF file, in fragment order (fragments.cuh): a permutation of bits.
//
// blocks [N, K / 256 blocks], out: `tiles` tiles of FORMAT for every 16 rows; rows past N become zero.
// Grid: one warp per tile, 4 warps a CTA. Shared memory: none. Archs: all. Bytes moved: the matrix in and out.
#include "fragments.cuh"

// Four bytes at a 2-byte aligned address.
__device__ __forceinline__ u32 load_4_bytes(const u8* p) { return load<u16>(p) | (u32)load<u16>(p + 2) << 16; }

// Four low nibbles of row g and four of row g + 8, for columns 4 t .. + 3 of a product, as one word of the layout.
__device__ __forceinline__ u32 join_nibbles(u32 low, u32 high) {
    return __byte_perm(low & 0x0F0F0F0Fu, 0, 0x3120) | __byte_perm(high & 0x0F0F0F0Fu, 0, 0x3120) << 4;
}

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
    static const int BLOCK = 144;
    static __device__ __forceinline__ u32 quad(const u8* block, int c, int i, int t) {
        return block == nullptr ? 0 : load<u32>(block + 16 + 32 * c + 16 * (i & 1) + 4 * t) >> (4 * (i >> 1));
    }
    static __device__ __forceinline__ void put(const u8* low, const u8* high, const u8* own, u8* tile, int lane) {
        const int t = lane & 3;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            words4_t w;
#pragma unroll
            for (int i = 0; i < 4; i++) w.r[i] = join_nibbles(quad(low, c, i, t), quad(high, c, i, t));
            *reinterpret_cast<words4_t*>(tile + 256 + 512 * c + 16 * lane) = w;
        }
        if (lane < 16) arrange_head(own, tile, lane);
    }
};

struct q6_k_arranged {
    static const int BLOCK = 210;
    static __device__ __forceinline__ u32 quad(const u8* block, int c, int i, int t) {
        if (block == nullptr) return 0;
        return load_4_bytes(block + 64 * (c >> 1) + 32 * (i >> 1) + 16 * (i & 1) + 4 * t) >> (4 * (c & 1));
    }
    static __device__ __forceinline__ u32 pairs(const u8* block, int c, int i, int t) {
        if (block == nullptr) return 0;
        return load_4_bytes(block + 128 + 32 * (c >> 1) + 16 * (i & 1) + 4 * t) >> (4 * (c & 1) + 2 * (i >> 1));
    }
    static __device__ __forceinline__ void put(const u8* low, const u8* high, const u8* own, u8* tile, int lane) {
        const int AT[2][2][2] = {{{4, 2}, {8, 6}}, {{10, 0}, {14, 12}}};
        const int t = lane & 3;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            words4_t w;
            u32 bits[2] = {0, 0};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                w.r[i] = join_nibbles(quad(low, c, i, t), quad(high, c, i, t));
                const u32 two[2] = {pairs(low, c, i, t), pairs(high, c, i, t)};
#pragma unroll
                for (int h = 0; h < 2; h++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        bits[i >> 1] |= ((two[h] >> (8 * e)) & 3u) << (AT[i & 1][h][e >> 1] + 16 * (e & 1));
            }
            *reinterpret_cast<words4_t*>(tile + 512 * c + 16 * lane) = w;
            *reinterpret_cast<words2_t*>(tile + 2048 + 256 * c + 8 * lane) = {bits[0], bits[1]};
        }
        if (lane < 16) {
            u8* scales = tile + 3072 + 16 * lane;
            for (int j = 0; j < 16; j++) scales[j] = own == nullptr ? 128 : own[192 + j] ^ 128;
            *reinterpret_cast<u16*>(tile + 3328 + 2 * lane) = own == nullptr ? 0 : load<u16>(own + 208);
        }
    }
};

typedef PASTE(FORMAT, _arranged) arranged_t;

extern "C" __global__ void __launch_bounds__(128) arrange(const u8* blocks, u8* out, int N, int tiles) {
    const int lane = threadIdx.x & 31;
    const i64 tile = (i64)blockIdx.x * 4 + (threadIdx.x >> 5);
    if (tile >= (i64)((N + 15) / 16) * tiles) return;
    const int row = (int)(tile / tiles) * 16;
    auto block = [&](int r) {
        return row + r < N ? blocks + ((i64)(row + r) * tiles + tile % tiles) * arranged_t::BLOCK : (const u8*)nullptr;
    };
    arranged_t::put(block(lane >> 2), block((lane >> 2) + 8), block(lane & 15), out + tile * fragments_t::BYTES, lane);
}
