// Rows of activations as operands of linear/small.cu and medium.cu (stage.cuh), for producers that do not write them so
// themselves.
//
// x [M, K] ACT, out: ceil(K / 256) blocks. Grid: (blocks, M), one warp. Shared memory: none. Archs: all.
#include "stage.cuh"

extern "C" __global__ void __launch_bounds__(32) stage(const act_t* x, u8* out, int M, int K) {
    const int lane = threadIdx.x, k = (int)blockIdx.x * 256 + 8 * lane, m = blockIdx.y;
    pdl_launch();
    pdl_wait();
    float f[8];
    load_group(f, x + (i64)m * K + k, K - k, K % 8 == 0 && aligned(x, 16));
    stage_in_group(out, M, m, blockIdx.x, gridDim.x, f, lane);
}
