// Matrices in fragment order as activations, rounded once, to ACT.
//
// w [V, K] as tiles of FORMAT, `tiles` of them per 16 rows (fragments.cuh).
// fragment_rows, for embeddings: out[i, :] = w[ids[i], :]; ids [rows] int32; out [rows, K] ACT. An id outside [0, V) gives
// zeros. Grid: (rows, ceil(K / 1024)), 256 threads, four columns each. Bytes moved: the rows, and out.
// fragment_tiles, for large matmuls: out [rows, K] = the first rows of w. Grid: one warp per tile, 4 warps a CTA; a lane has
// four columns of every 16 of two rows, whose scales it reads once. Bytes moved: the weights and out, once.
// Shared memory: none. Archs: all.
#include "fragments.cuh"

extern "C" __global__ void __launch_bounds__(256)
    fragment_rows(const u8* w, const int* ids, act_t* out, int V, int K, int tiles) {
    const int k = (blockIdx.y * 256 + threadIdx.x) * 4;
    pdl_launch();
    pdl_wait();
    if (k >= K) return;
    const int id = ids[blockIdx.x];
    float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (id >= 0 && id < V)
        fragments_t::quad(w + ((i64)(id / 16) * tiles + k / 256) * fragments_t::BYTES, id % 16, k % 256, v);
    store_group(out + (i64)blockIdx.x * K + k, v, K - k, K % 4 == 0);
}

extern "C" __global__ void __launch_bounds__(128)
    fragment_tiles(const u8* __restrict__ w, act_t* __restrict__ out, int rows, int K, int tiles) {
    const int lane = threadIdx.x & 31, g = lane >> 2, at = blockIdx.x * 4 + (threadIdx.x >> 5);
    const int row = at / tiles * 16, column = at % tiles * 256 + 4 * (lane & 3);
    const u8* tile = w + (i64)at * fragments_t::BYTES;
    const bool wide = K % 4 == 0;
    pdl_launch();
    pdl_wait();
    if (row >= rows) return;
#pragma unroll
    for (int i = 0; i < 16; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int r = row + g + 8 * h, k = column + 16 * i;
            if (r >= rows || k >= K) continue;
            float v[4];
            fragments_t::quad(tile, g + 8 * h, 16 * i + 4 * (lane & 3), v);
            store_group(out + (i64)r * K + k, v, K - k, wide);
        }
}
