// Chunks of 64 tokens of the rows that have more than `few`, and products of float32 matrices on tensor cores.
//
// Chunks of all rows are numbered through: `slots` of them exist at most. A tile is 64 tokens of 128 columns of float32, of
// tokens that do not exist zeros; its 16-byte unit c of row r lies at c ^ swizzle(r), for those who copy it whole to
// shared memory: 8 lanes that read a column of 16 bytes of rows r .. r + 1 or 4 r meet no bank twice.
// tiles [slots][2 nk + nv] are q, k, v of heads after convolution and norms; solved [slots][nv][2] are w and u (solve.cu);
// states [slots][nv][128][128] hold the state before a chunk. gates [slots][nv][64] are (beta, g) of tokens.
// Products split a float32 number in two of TF32, which hold 22 bits of it, and leave out the product of the low parts.
#pragma once
#include "delta.cuh"
#include "fragments.cuh"

#define D 128
#define CHUNK 64
#define TILE_SIZE (CHUNK * D)
#define PITCH 144  // floats of a row of a tile in shared memory here: rows 2 r and 2 r + 1 share no bank

__device__ __forceinline__ int swizzle(int row) { return (row & 1) << 2 ^ (row >> 2 & 3) << 1; }
__device__ __forceinline__ int place(int row, int unit) { return row * D + ((unit ^ swizzle(row)) << 2); }

struct Chunk {
    int row, start, index, tokens, slot;  // row -1: there is none; start: the row's first token; tokens of the chunk
};

// Chunk `slot` of the batch. All lanes of a warp call it.
__device__ __forceinline__ Chunk find_chunk(const int* starts, int R, int few, int slot) {
    const int lane = threadIdx.x & 31;
    int before = 0;
    for (int base = 0; base < R; base += 32) {
        const int r = base + lane, begin = r < R ? starts[r] : 0, n = r < R ? starts[r + 1] - begin : 0;
        const int count = n > few ? (n + CHUNK - 1) / CHUNK : 0;
        int upto = count;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
            const int y = __shfl_up_sync(0xFFFFFFFFu, upto, i);
            if (lane >= i) upto += y;
        }
        const u32 found = __ballot_sync(0xFFFFFFFFu, before + upto > slot);
        if (found) {
            const int from = __ffs(found) - 1;
            const int index = __shfl_sync(0xFFFFFFFFu, slot - (before + upto - count), from);
            const int tokens = __shfl_sync(0xFFFFFFFFu, n, from) - index * CHUNK;
            return {base + from, __shfl_sync(0xFFFFFFFFu, begin, from), index, min(tokens, CHUNK), slot};
        }
        before += __shfl_sync(0xFFFFFFFFu, upto, 31);
    }
    return {-1, 0, 0, 0, slot};
}

// Sums of log decays up to every token of a chunk, in units of 2^-40: differences of them lose nothing.
// A NaN has no such number: who reads beta meets it there. All threads of a warp call it, lane l has tokens 2 l, 2 l + 1.
__device__ __forceinline__ void sum_decays(i64* sums, const float2* gates) {
    const int lane = threadIdx.x & 31;
    i64 a = __float2ll_rn(gates[2 * lane].y * 1099511627776.0f), b = __float2ll_rn(gates[2 * lane + 1].y * 1099511627776.0f);
    i64 upto = a + b;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        const i64 y = __shfl_up_sync(0xFFFFFFFFu, upto, i);
        if (lane >= i) upto += y;
    }
    sums[2 * lane] = upto - b, sums[2 * lane + 1] = upto;
}
// What is left, after a difference of such sums.
__device__ __forceinline__ float left_of(i64 difference) { return expf((float)difference * 9.094947017729282e-13f); }

// A tile to shared memory, in rows of PITCH floats.
__device__ __forceinline__ void load_tile(float* to, const float* tile) {
    for (int i = threadIdx.x; i < TILE_SIZE / 4; i += blockDim.x) {
        const int row = i >> 5, unit = i & 31;
        *(float4*)(to + row * PITCH + unit * 4) = *(const float4*)(tile + place(row, unit));
    }
}

// Two neighbours, the first at an even place.
__device__ __forceinline__ float2 load_pair(const f32_t* p) { return *(const float2*)p; }
template <typename T> __device__ __forceinline__ float2 load_pair(const T* p) {
    float y[2];
    unpack2<T>(y, *(const u32*)p);
    return make_float2(y[0], y[1]);
}
__device__ __forceinline__ void store_pair(f32_t* p, float x, float y) { *(float2*)p = make_float2(x, y); }
template <typename T> __device__ __forceinline__ void store_pair(T* p, float x, float y) { *(u32*)p = pack2<T>(x, y); }

template <int N> struct Split {
    u32 high[N], low[N];
    __device__ __forceinline__ void set(int i, float x) {
        high[i] = __float_as_uint(x) & 0xFFFFE000u;
        low[i] = __float_as_uint(x - __uint_as_float(high[i]));
    }
};

// c += a b for m16n8k8 (fragments as in mma.cuh, k = t and t + 4).
__device__ __forceinline__ void multiply(float (&c)[4], const Split<4>& a, const Split<2>& b) {
    mma_1688_tf32(c, a.low, b.high[0], b.high[1]);
    mma_1688_tf32(c, a.high, b.low[0], b.low[1]);
    mma_1688_tf32(c, a.high, b.high[0], b.high[1]);
}

// Products of rows 16 m .. + 15 of x with rows 0 .. 16 m + 15 of y, [64][PITCH] both: c[n] is x y^T at columns 8 n ..
__device__ __forceinline__ void products(float (&c)[8][4], const float* x, const float* y, int m, int lane) {
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < 8; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll 1
    for (int k = 0; k < D; k += 16) {
        float upper[4], lower[4];
        load_wide(upper, x + (16 * m + g) * PITCH + k + 4 * t);
        load_wide(lower, x + (16 * m + g + 8) * PITCH + k + 4 * t);
        Split<4> a[2];
#pragma unroll
        for (int s = 0; s < 2; s++) {
            a[s].set(0, upper[2 * s]), a[s].set(1, lower[2 * s]);
            a[s].set(2, upper[2 * s + 1]), a[s].set(3, lower[2 * s + 1]);
        }
#pragma unroll
        for (int n = 0; n < 8; n++) {
            if (n > 2 * m + 1) break;
            float other[4];
            load_wide(other, y + (8 * n + g) * PITCH + k + 4 * t);
#pragma unroll
            for (int s = 0; s < 2; s++) {
                Split<2> b;
                b.set(0, other[2 * s]), b.set(1, other[2 * s + 1]);
                multiply(c[n], a[s], b);
            }
        }
    }
}
