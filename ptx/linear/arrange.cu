// A matrix as it is stored in fragment order (fragments.cuh): a permutation of bits.
//
// w [N, K] FORMAT: blocks as in a GGUF file, or codes with `scales` and `factors` [N] (null where the format has none);
// out: `tiles` tiles of FORMAT for every 16 rows; rows past N and columns past K become zero.
// Grid: one warp per tile, 4 warps a CTA. Shared memory: none. Archs: all. Bytes moved: the matrix in and out.
#include "fragments.cuh"

struct matrix_t {
    const u8 *codes, *scales;
    const float* factors;
    int N, K;
};

// Four bytes at a 2-byte aligned address.
__device__ __forceinline__ u32 load_4_bytes(const u8* p) { return load<u16>(p) | (u32)load<u16>(p + 2) << 16; }

// A word of every product for rows g and g + 8: Q::join of what Q::quad(w, row, k) has of columns k .. k + 3 of each.
template <typename Q>
__device__ __forceinline__ void put_words(const matrix_t& w, int row, int tile, u8* out, int lane) {
    const int r = row + (lane >> 2);
#pragma unroll
    for (int c = 0; c < 4; c++) {
        words4_t v;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int k = 256 * tile + 64 * c + 16 * i + 4 * (lane & 3);
            v.r[i] = Q::join(Q::quad(w, r, k), Q::quad(w, r + 8, k));
        }
        *reinterpret_cast<words4_t*>(out + 512 * c + 16 * lane) = v;
    }
}
// Four nibbles in the low halves of a quad's bytes, of row g and row g + 8.
template <typename Q> struct nibbles_of : Q {
    static __device__ __forceinline__ u32 join(u32 low, u32 high) {
        return __byte_perm(low & 0x0F0F0F0Fu, 0, 0x3120) | __byte_perm(high & 0x0F0F0F0Fu, 0, 0x3120) << 4;
    }
};
template <typename Q>
__device__ __forceinline__ void put_nibbles(const matrix_t& w, int row, int tile, u8* out, int lane) {
    put_words<nibbles_of<Q>>(w, row, tile, out, lane);
}
// The words of Q::quad as they are.
template <typename Q>
__device__ __forceinline__ void put_bytes(const matrix_t& w, int row, int tile, u8* out, int lane) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
        words4_t v;
#pragma unroll
        for (int i = 0; i < 4; i++)
            v.r[i] = Q::quad(w, row + (lane >> 2) + 8 * (i & 1), 256 * tile + 32 * j + 16 * (i >> 1) + 4 * (lane & 3));
        *reinterpret_cast<words4_t*>(out + 512 * j + 16 * lane) = v;
    }
}

#include "arrange_gguf.cuh"
#include "arrange_codes.cuh"

typedef PASTE(FORMAT, _arranged) arranged_t;

extern "C" __global__ void __launch_bounds__(128)
    arrange(const u8* w, const u8* scales, const float* factors, u8* out, int N, int K, int tiles) {
    const i64 tile = (i64)blockIdx.x * 4 + (threadIdx.x >> 5);
    if (tile >= (i64)((N + 15) / 16) * tiles) return;
    arranged_t::put({w, scales, factors, N, K}, (int)(tile / tiles) * 16, (int)(tile % tiles),
                    out + tile * fragments_t::BYTES, threadIdx.x & 31);
}
