// The part of a chunk that needs no state: with A = strictly lower triangle of (beta k) k^T, decayed from token to token,
// w = (I + A)^-1 (beta e^G k) and u = (I + A)^-1 (beta v), of which w S has to be taken away (chunk.cuh, pass.ptx).
//
// factors [slots][nv][64] are, of a token, what is left of the state up to it and what is left of its own at the end.
// Grid: (slots, nv), 128 threads. Warp m multiplies rows 16 m .. + 15, and inverts their 16 x 16 block of I + A: a lane per
// column, forwards. Then a warp has 64 columns of w or u, and goes down four blocks of rows: what the rows above
// contribute is subtracted, and the rest multiplied by the inverted block. All of it in shared memory, in place.
// Shared memory (dynamic): 2 tiles of 64 x 144, A of 64 x 68, 4 blocks of 16 x 20 floats, sums and gates of 64: 97280
// bytes. Archs: all. H200, 2026-11-25, 4096 tokens, 16/32 heads: 279 us.
#include "chunk.cuh"

#define PITCH_A 68
#define PITCH_I 20

// c += a b for rows of a [16][pitch] and b [k][PITCH], k = 0 .. 15.
__device__ __forceinline__ void multiply_block(float (&c)[8][4], const float* a, int pitch, const float* b, int lane) {
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const float* x = a + g * pitch + 8 * s + t;
        Split<4> left;
        left.set(0, x[0]), left.set(1, x[8 * pitch]), left.set(2, x[4]), left.set(3, x[8 * pitch + 4]);
        const float* y = b + (8 * s + t) * PITCH + g;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            Split<2> right;
            right.set(0, y[8 * n]), right.set(1, y[8 * n + 4 * PITCH]);
            multiply(c[n], left, right);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128)
delta_solve(const float* tiles, const float2* gates, const int* starts, float* solved, float2* factors, int R, int nk,
            int nv, int tiled, int few) {
    extern __shared__ float shared[];
    const Sizes sizes = {nk, nv, D, D, tiled};
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3, head = blockIdx.y;
    pdl_launch();
    pdl_wait();
    const Chunk chunk = find_chunk(starts, R, few, blockIdx.x);
    if (chunk.row < 0) return;
    float* k = shared;
    float* v = k + CHUNK * PITCH;
    float* a = v + CHUNK * PITCH;
    float* inverses = a + CHUNK * PITCH_A;
    i64* sums = (i64*)(inverses + 4 * 16 * PITCH_I);
    float* betas = (float*)(sums + CHUNK);
    const i64 units = 2 * nk + nv, first = (i64)chunk.slot * units, at = (i64)chunk.slot * nv + head;
    load_tile(k, tiles + (first + nk + sizes.key_head(head)) * TILE_SIZE);
    load_tile(v, tiles + (first + 2 * nk + head) * TILE_SIZE);
    if (warp == 0) sum_decays(sums, gates + at * CHUNK);
    if (tid < CHUNK) betas[tid] = gates[at * CHUNK + tid].x;
    __syncthreads();
    if (tid < CHUNK) factors[at * CHUNK + tid] = make_float2(left_of(sums[tid]), left_of(sums[CHUNK - 1] - sums[tid]));

    float c[8][4];
    products(c, k, k, warp, lane);
#pragma unroll
    for (int n = 0; n < 8; n++) {
        if (n > 2 * warp + 1) break;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int i = 16 * warp + g + (e >> 1) * 8, j = 8 * n + 2 * t + (e & 1);
            a[i * PITCH_A + j] = j < i ? betas[i] * c[n][e] * left_of(sums[i] - sums[j]) : 0.0f;
        }
    }
    __syncwarp();
    if (lane < 16) {
        const float* block = a + 16 * warp * (PITCH_A + 1);
        float x[16];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            x[i] = i == lane ? 1.0f : 0.0f;
#pragma unroll
            for (int j = 0; j < i; j++) x[i] = fmaf(-block[i * PITCH_A + j], x[j], x[i]);
            inverses[(warp * 16 + i) * PITCH_I + lane] = x[i];
        }
    }
    __syncthreads();

    float* x = (warp < 2 ? k : v) + 64 * (warp & 1);
#pragma unroll 1
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int n = 0; n < 8; n++) c[n][0] = c[n][1] = c[n][2] = c[n][3] = 0.0f;
#pragma unroll 1
        for (int j = 0; j < i; j++)
            multiply_block(c, a + 16 * i * PITCH_A + 16 * j, PITCH_A, x + 16 * j * PITCH, lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = 16 * i + 8 * half + g;
            const float factor = warp < 2 ? betas[row] * left_of(sums[row]) : betas[row];
#pragma unroll
            for (int n = 0; n < 8; n++) {
                float2* p = (float2*)(x + row * PITCH + 8 * n + 2 * t);
                const float2 y = *p;
                *p = make_float2(fmaf(factor, y.x, -c[n][2 * half]), fmaf(factor, y.y, -c[n][2 * half + 1]));
                c[n][2 * half] = c[n][2 * half + 1] = 0.0f;
            }
        }
        __syncwarp();
        multiply_block(c, inverses + 16 * i * PITCH_I, PITCH_I, x + 16 * i * PITCH, lane);
        __syncwarp();
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < 8; n++)
                *(float2*)(x + (16 * i + 8 * half + g) * PITCH + 8 * n + 2 * t) =
                    make_float2(c[n][2 * half], c[n][2 * half + 1]);
        __syncwarp();
    }
    __syncthreads();
    float* to = solved + at * 2 * TILE_SIZE;
    for (int i = tid; i < TILE_SIZE / 4; i += 128) {
        const int row = i >> 5, unit = i & 31;
        *(float4*)(to + place(row, unit)) = *(const float4*)(k + row * PITCH + unit * 4);
        *(float4*)(to + TILE_SIZE + place(row, unit)) = *(const float4*)(v + row * PITCH + unit * 4);
    }
}
