// The rest of a Gated DeltaNet layer for rows that go through chunks: results, norm and gate, and the states that are kept.
//
// With S the state before a chunk and d what its tokens write (solved, after pass.ptx): o = e^G q S + (lower triangle of
// q k^T, decayed) d, and the state after token t is e^G(t) S + sum over i <= t of e^(G(t) - G(i)) k(i) d(i)^T.
// Arguments as in generic.cu and mix.cu; written are out, and conv and state at slots `to`.
// Grid: (slots, nv), 128 threads. Warp m multiplies rows 16 m .. + 15 of q k^T, then columns 32 m .. + 31 of o; the state
// and d come from memory in the order of B fragments. A state that is kept is multiplied by itself, in two halves.
// The history of a convolution at the first two tokens is part of what the row continues: mix.cu has saved it, because
// the slot may be overwritten.
// Shared memory (dynamic): 2 tiles of 64 x 144, scores of 64 x 68, sums and 4 x 64 floats: 92672 bytes. Archs: all.
// H200, 2026-11-25, 4096 tokens, 16/32 heads: 453 us.
#include "chunk.cuh"

#define PITCH_P 68

// Columns 32 warp .. + 31 of left S + sum over the first `tokens` of k^T weight d; k [64][PITCH], d a tile.
__device__ __forceinline__ void keep_state(state_t* after, const float* before, const float* k, const float* d,
                                           const float* weights, float left, int tokens, int warp, int lane) {
    const int g = lane >> 2, t = lane & 3;
#pragma unroll 1
    for (int half = 0; half < D; half += 64) {
        float c[4][4][4] = {};
#pragma unroll 1
        for (int x = 0; x < tokens; x += 8) {
            Split<2> y[4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = x + t + 4 * h;
                const float weight = weights[row];
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const int column = 32 * warp + 8 * n + g;
                    y[n].set(h, row < tokens ? d[place(row, column >> 2) + (column & 3)] * weight : 0.0f);
                }
            }
#pragma unroll
            for (int m = 0; m < 4; m++) {
                const float* z = k + (x + t) * PITCH + half + 16 * m + g;
                Split<4> a;
                a.set(0, z[0]), a.set(1, z[8]), a.set(2, z[4 * PITCH]), a.set(3, z[4 * PITCH + 8]);
#pragma unroll
                for (int n = 0; n < 4; n++) multiply(c[m][n], a, y[n]);
            }
        }
#pragma unroll
        for (int m = 0; m < 4; m++)
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    const int at = (half + 16 * m + 8 * h + g) * D + 32 * warp + 8 * n + 2 * t;
                    const float2 s = *(const float2*)(before + at);
                    store_pair(after + at, fmaf(s.x, left, c[m][n][2 * h]), fmaf(s.y, left, c[m][n][2 * h + 1]));
                }
    }
}

extern "C" __global__ void __launch_bounds__(128, 2)
delta_out(const act_t* proj, const float* weight, act_t* conv, state_t* state, const int* starts, const int* to, act_t* out,
          const float* tiles, const float2* gates, const float* states, const act_t* past, const float* solved, int R,
          int nk, int nv, int tiled, int few, float eps) {
    extern __shared__ float shared[];
    const Sizes sizes = {nk, nv, D, D, tiled};
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3, head = blockIdx.y;
    const int channels = sizes.channels(), columns = sizes.columns(), units = channels / D;
    pdl_launch();
    pdl_wait();
    const Chunk chunk = find_chunk(starts, R, few, blockIdx.x);
    if (chunk.row < 0) return;
    float* q = shared;
    float* k = q + CHUNK * PITCH;
    float* p = k + CHUNK * PITCH;
    i64* sums = (i64*)(p + CHUNK * PITCH_P);
    float* squares = (float*)(sums + CHUNK);  // [4][64]
    const i64 first_tile = (i64)chunk.slot * units, at = (i64)chunk.slot * nv + head;
    const int first = chunk.start + chunk.index * CHUNK, key_head = sizes.key_head(head);
    load_tile(q, tiles + (first_tile + key_head) * TILE_SIZE);
    load_tile(k, tiles + (first_tile + nk + key_head) * TILE_SIZE);
    if (warp == 0) sum_decays(sums, gates + at * CHUNK);
    __syncthreads();
    {
        float c[8][4];
        products(c, q, k, warp, lane);
#pragma unroll
        for (int n = 0; n < 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int i = 16 * warp + g + (e >> 1) * 8, j = 8 * n + 2 * t + (e & 1);
                p[i * PITCH_P + j] = j <= i ? c[n][e] * left_of(sums[i] - sums[j]) : 0.0f;
            }
    }
    __syncthreads();

    const float* s = states + at * D * D + 32 * warp + g;
    const float* d = solved + (at * 2 + 1) * TILE_SIZE;
    float o[4][4][4];
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0.0f;
    float b[4][4], ahead[4][4];
    auto fetch = [&](int x) {  // 16 rows of the state, while those before are multiplied
#pragma unroll
        for (int e = 0; e < 4; e++)
#pragma unroll
            for (int n = 0; n < 4; n++) ahead[n][e] = s[(x + 4 * t + e) * D + 8 * n];
    };
    fetch(0);
#pragma unroll 1
    for (int x = 0; x < D; x += 16) {
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) b[n][e] = ahead[n][e];
        if (x + 16 < D) fetch(x + 16);
#pragma unroll
        for (int m = 0; m < 4; m++) {
            float upper[4], lower[4];
            load_wide(upper, q + (16 * m + g) * PITCH + x + 4 * t);
            load_wide(lower, q + (16 * m + g + 8) * PITCH + x + 4 * t);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                Split<4> a;
                a.set(0, upper[2 * h]), a.set(1, lower[2 * h]), a.set(2, upper[2 * h + 1]), a.set(3, lower[2 * h + 1]);
#pragma unroll
                for (int n = 0; n < 4; n++) {
                    Split<2> y;
                    y.set(0, b[n][2 * h]), y.set(1, b[n][2 * h + 1]);
                    multiply(o[m][n], a, y);
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) o[m][n][e] *= left_of(sums[16 * m + g + (e >> 1) * 8]);
#pragma unroll
    for (int x = 0; x < CHUNK; x += 8) {
        Split<2> y[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const int row = x + t + 4 * h, column = 32 * warp + 8 * n + g;
                y[n].set(h, d[place(row, column >> 2) + (column & 3)]);
            }
#pragma unroll
        for (int m = x / 16; m < 4; m++) {
            const float* z = p + (16 * m + g) * PITCH_P + x + t;
            Split<4> a;
            a.set(0, z[0]), a.set(1, z[8 * PITCH_P]), a.set(2, z[4]), a.set(3, z[8 * PITCH_P + 4]);
#pragma unroll
            for (int n = 0; n < 4; n++) multiply(o[m][n], a, y[n]);
        }
    }
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 4; n++)
                sum = fmaf(o[m][n][2 * h], o[m][n][2 * h], fmaf(o[m][n][2 * h + 1], o[m][n][2 * h + 1], sum));
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
            sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
            if (t == 0) squares[warp * CHUNK + 16 * m + 8 * h + g] = sum;
        }
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 4; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int row = 16 * m + 8 * h + g;
            if (row >= chunk.tokens) continue;
            const float sum = (squares[row] + squares[CHUNK + row]) + (squares[2 * CHUNK + row] + squares[3 * CHUNK + row]);
            const float inverse = rsqrtf(sum / (float)D + eps);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                const int column = 32 * warp + 8 * n + 2 * t;
                const float2 z = load_pair(proj + (i64)(first + row) * columns + channels + head * D + column);
                store_pair(out + ((i64)(first + row) * nv + head) * D + column,
                           o[m][n][2 * h] * inverse * weight[column] * silu(z.x),
                           o[m][n][2 * h + 1] * inverse * weight[column + 1] * silu(z.y));
            }
        }

#pragma unroll 1
    for (int end = 0; end < chunk.tokens; end++) {
        const i64 target = to[first + end];
        if (target < 0) continue;
        __syncthreads();
        if (tid < CHUNK) squares[tid] = tid <= end ? left_of(sums[end] - sums[tid]) : 0.0f;
        __syncthreads();
        keep_state(state + (target * nv + head) * D * D, states + at * D * D, k, d, squares, left_of(sums[end]), end + 1,
                   warp, lane);
        for (int unit = head; unit < units; unit += nv)
            for (int i = 0; i < PAST; i++) {
                const int token = chunk.index * CHUNK + end - PAST + 1 + i, channel = unit * D + tid;
                conv[(target * PAST + i) * channels + channel] =
                    token < 0 ? past[((i64)chunk.row * PAST + PAST + token) * channels + channel]
                              : proj[(i64)(chunk.start + token) * columns + channel];
            }
    }
}
