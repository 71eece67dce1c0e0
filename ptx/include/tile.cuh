// What the GEMMs of small codes share (ptx/nvfp4, ptx/mxfp8): rows of 64 bytes of codes in shared memory, tiles of
// scales, and the epilogue.
//
// A CTA of 256 threads makes TILE_M x 128 of y. Warps stand 2 x 4 and make TILE_M/2 x 32 each, or 1 x 8 and 16 x 16 each
// (TILE_M 16). A stage holds 64 bytes of TILE_M rows of x and 128 rows of w, then two 512-byte tiles of scales of x and
// two of w (quant/tiled.py). The 16-byte unit c of row r lies at c ^ (r / 2) % 4, so that the eight rows of an ldmatrix
// hit all banks once.
#pragma once
#include "mma.cuh"

#define TILE_N 128
#define STAGES 4
#define ROW_BYTES 64
#define WARPS_M (TILE_M >= 32 ? 2 : 1)
#define WARP_M (TILE_M / WARPS_M)
#define WARP_N (TILE_N * WARPS_M / 8)
#define TILES_M (WARP_M / 16)
#define TILES_N (WARP_N / 8)
#define CODE_BYTES ((TILE_M + TILE_N) * ROW_BYTES)

__device__ __forceinline__ u32 tile_address(u32 base, int r, int c) {
    return base + r * ROW_BYTES + ((c ^ ((r >> 1) & 3)) << 4);
}

// 64 bytes from byte `at` of rows row .. row + ROWS - 1; zeros past the rows and past `row_bytes` (a multiple of 16).
template <int ROWS>
__device__ __forceinline__ void fetch_codes(u32 base, const u8* matrix, int row, int rows, i64 at, i64 row_bytes) {
#pragma unroll
    for (int i = 0; i < (ROWS * 4 + 255) / 256; i++) {
        const int unit = threadIdx.x + 256 * i, r = unit >> 2, c = unit & 3;
        if (ROWS * 4 % 256 != 0 && unit >= ROWS * 4) break;
        const bool inside = row + r < rows && at + 16 * c < row_bytes;
        copy_async_16(tile_address(base, r, c), inside ? matrix + (row + r) * row_bytes + at + 16 * c : matrix,
                      inside ? 16 : 0);
    }
}

// The A fragments of 16 rows from `row`, and B fragments of 16 columns, 32 bytes of k from unit 2 kk.
__device__ __forceinline__ void load_a(u32 (&a)[4], u32 tile, int row, int kk) {
    const int lane = threadIdx.x & 31;
    ldmatrix_x4(a, tile_address(tile, row + (lane & 15), 2 * kk + (lane >> 4)));
}
__device__ __forceinline__ void load_b(u32 (&b)[4], u32 tile, int row, int kk) {
    const int lane = threadIdx.x & 31;
    ldmatrix_x4(b, tile_address(tile, row + (lane & 7) + ((lane >> 4) << 3), 2 * kk + ((lane >> 3) & 1)));
}

struct epilogue_t {
    const float* bias;      // [N] or null
    const act_t* residual;  // where y goes, or null; same strides
    act_t* y;
    int M, N, stride, column;
};

// y = round(v + bias + residual), each sum rounded by itself, of the two neighbours (m, n), (m, n + 1).
__device__ __forceinline__ void store_pair(const epilogue_t& e, int m, int n, float v0, float v1) {
    if (m >= e.M || n >= e.N) return;
    const i64 at = (i64)m * e.stride + e.column + n;
    const bool both = n + 1 < e.N;
    if (e.bias != nullptr) {
        v0 = __fadd_rn(v0, e.bias[n]);
        if (both) v1 = __fadd_rn(v1, e.bias[n + 1]);
    }
    if (e.residual != nullptr) {
        v0 = __fadd_rn(v0, to_float(e.residual[at]));
        if (both) v1 = __fadd_rn(v1, to_float(e.residual[at + 1]));
    }
    e.y[at] = from_float<act_t>(v0);
    if (both) e.y[at + 1] = from_float<act_t>(v1);
}
