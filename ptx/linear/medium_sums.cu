// What medium.cu leaves: y where several CTAs had parts of a sum, and the share of infinities and NaNs everywhere.
//
// x [M, K] of x_type (1 f16, 2 bf16); parts [2 CTAs, M, 2^rows_log]; the others as there. The parts of a group are
// added in the order of its columns.
// Grid: (ceil(N / 1024), M), 256 threads, four neighbours of y each. Shared memory: none. Archs: all.
// H200, 2026-11-25, 64 rows: 8.6 us for 24576 columns, 3.9 for 4096.
#include "fragments.cuh"
#include "stage.cuh"

extern "C" __global__ void __launch_bounds__(256)
    linear_medium_sums(const void* x, const u8* staged, const u8* w, const float* bias, const float* parts, void* y,
                       int M, int N, int K, int tiles, int per, int rows_log, int stride, int column, int x_type,
                       int y_type) {
    typedef fragments_t F;
    const int m = blockIdx.y, n0 = blockIdx.x * 1024 + 4 * threadIdx.x, group = n0 >> rows_log;
    pdl_launch();
    const int from = group * tiles / per, to = ((group + 1) * tiles - 1) / per;
    const int of_group = m % STAGE_ROWS, rows = min(STAGE_ROWS, M - m + of_group);
    pdl_wait();
    bool bad = false;
    for (int b = threadIdx.x; b < tiles; b += 256) {
        const u8* block = staged_block(staged, M, m, b, tiles);
        bad = bad || reinterpret_cast<const float*>(block + 512 * rows)[8 * rows + of_group] < 0.0f;
    }
    const bool odd = __syncthreads_or(bad);
    if (n0 >= N || (from == to && !odd)) return;

    float v[4] = {};
    const i64 at = (i64)m * stride + column + n0;
    if (from < to) {
        const i64 size = (i64)M << rows_log;
        const float* sums = parts + ((i64)m << rows_log) + (n0 & ((1 << rows_log) - 1));
        for (int c = from; c <= to; c++) {
            const float4 part = *reinterpret_cast<const float4*>(sums + (2 * c + (c == from)) * size);
            v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
        }
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (n0 + i >= N) break;
        if (odd) v[i] += share_of_odd<F>(x, x_type, m, K, w, tiles, n0 + i);
        if (from < to) {
            if (bias != nullptr) v[i] += bias[n0 + i];
        } else {
            v[i] += load_as(y, at + i, y_type);  // infinities and NaNs survive its rounding
        }
        store_as(y, at + i, v[i], y_type);
    }
}
