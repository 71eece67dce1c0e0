// Rows of a matrix in fragment order as activations: out[i, :] = w[ids[i], :] (embedding), or w[first + i, :] when ids is
// null (dequantisation of a block of rows for a large matmul). One rounding, to ACT.
//
// w [V, K] as tiles of FORMAT, `tiles` of them per 16 rows (fragments.cuh); ids [rows] int32; out [rows, K] ACT. An id
// outside [0, V) gives zeros.
// Grid: (rows, ceil(K / 1024)), 256 threads, four columns each. Shared memory: none. Archs: all.
// Bytes moved: the weights once (a row and the one 8 below it share words), out once.
#include "fragments.cuh"

extern "C" __global__ void __launch_bounds__(256)
    fragment_rows(const u8* w, const int* ids, act_t* out, int first, int V, int K, int tiles) {
    const int k = (blockIdx.y * 256 + threadIdx.x) * 4;
    pdl_launch();
    pdl_wait();
    if (k >= K) return;
    const int id = ids != nullptr ? ids[blockIdx.x] : first + (int)blockIdx.x;
    float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (id >= 0 && id < V)
        fragments_t::quad(w + ((i64)(id / 16) * tiles + k / 256) * fragments_t::BYTES, id % 16, k % 256, v);
    store_group(out + (i64)blockIdx.x * K + k, v, K - k, K % 4 == 0);
}
