// Choice of experts in one launch: logits, the `top` largest of each token, and their softmax.
//
// x [T, H] ACT, router [E, H] WEIGHT (f32, f16 or bf16), logits [T, E] float32 (scratch); experts [T, top] int32, weights
// [T, top] float32; `norm`: divide the weights by their sum. H is a multiple of 8, E at most 256, top at most 32. Order, NaN
// and infinities as in route.cu, and so is shared_gate: 1 for a row of the router, and an entry of each list, more.
// Grid: (ceil(E / warps), ceil(T / block)), a warp for each expert and `block` tokens. The expert's row comes by a bulk copy
// before the previous kernel has finished.
// Products are exact values, float32 sums: a lane adds up its columns (even and odd ones apart) in order, then lanes meet
// in a tree, so logits do not depend on other tokens. TOKENS rows of x go through a row of weights together.
// Of the CTAs of the same tokens the one that arrives last (`arrived` counts, and is left at zero) chooses, a warp for a
// token: keys whose order is that of the logits stay in registers, and `top` rounds take the largest with the lowest index.
// Shared memory: dynamic, a row of the router per warp. Archs: sm_90 and up. Bytes moved: the router once per block of tokens,
// x once per CTA (from L2), logits in and out. H200, 2026-11-25, 128 experts: 5.0 us for 1 token, 9.4
// for 64. Predicted for 64 tokens, 128 experts and rows of
// 2048: 8 tokens and 8 experts a CTA read 384 KB of shared memory and L1, 1.7 us, behind two reads of L2, before three for
// the arrival and the choice: 6 us.
#include "bulk.cuh"
#include "mma.cuh"
#include "vector.cuh"

#define ALL 0xFFFFFFFFu
#define MOST_WARPS 8
#define MOST_BLOCKS 16
#define PER_LANE 8  // logits of a token that a lane holds

typedef PASTE(WEIGHT, _t) weight_t;

__device__ u32 arrived[MOST_BLOCKS];

// Keys of the same order as the values; NaN ranks with -inf, and -0 with 0. No value has the key 0.
__device__ __forceinline__ u32 key_of(float z) {
    const u32 bits = __float_as_uint(z == z ? z + 0.0f : __int_as_float(0xFF800000));
    return bits ^ ((int)bits < 0 ? 0xFFFFFFFFu : 0x80000000u);
}
__device__ __forceinline__ float value_of(u32 key) {
    return __uint_as_float(key ^ ((int)key < 0 ? 0x80000000u : 0xFFFFFFFFu));
}

extern "C" __global__ void __launch_bounds__(32 * MOST_WARPS, TOKENS == 8 ? 1 : 3)
    moe_router(const act_t* x, const weight_t* router, float* logits, int* experts, float* weights, int T, int E, int H,
               int top, int norm, int shared_gate, int block) {
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) u64 barriers[MOST_WARPS];
    __shared__ u32 arrival;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, e = blockIdx.x * warps + warp;
    const int rows = E + shared_gate, listed = top + shared_gate;
    const u32 bytes = H * sizeof(weight_t), barrier = shared_address(barriers + warp);
    const weight_t* row = reinterpret_cast<const weight_t*>(shared + warp * bytes);
    if (lane == 0) {
        barrier_init(barrier);
        copies_see_shared();
        if (e < rows) {
            barrier_expect(barrier, bytes);
            copy_bulk(shared_address(row), router + (i64)e * H, bytes, barrier);
        }
    }
    pdl_launch();
    const int before = (int)blockIdx.y * block;
    x += (i64)before * H, logits += (i64)before * rows, experts += before * listed, weights += before * listed;
    T = min(block, T - before);
    __syncwarp();
    pdl_wait();
    if (e < rows) {
        barrier_wait(barrier, 0);
#pragma unroll 1
        for (int m = 0; m < T; m += TOKENS) {
            float sum[TOKENS][2] = {};
#pragma unroll(TOKENS == 1 ? 4 : TOKENS == 8 && sizeof(act_t) == 4 ? 1 : 2)
            for (int k = 8 * lane; k < H; k += 256) {
                float w[8];
                load_wide(w, row + k);
#pragma unroll
                for (int i = 0; i < TOKENS; i++) {
                    float f[8];
                    load_wide(f, x + (i64)min(m + i, T - 1) * H + k);
#pragma unroll
                    for (int c = 0; c < 8; c++) sum[i][c & 1] = fmaf(f[c], w[c], sum[i][c & 1]);
                }
            }
#pragma unroll
            for (int i = 0; i < TOKENS; i++) {
                float z = sum[i][0] + sum[i][1];
#pragma unroll
                for (int o = 16; o > 0; o >>= 1) z += __shfl_xor_sync(ALL, z, o);
                if (lane == 0 && m + i < T) logits[(i64)(m + i) * rows + e] = z;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        arrival = atomicAdd(&arrived[blockIdx.y], 1u);
    }
    __syncthreads();
    if (arrival + 1 < gridDim.x) return;
    if (threadIdx.x == 0) arrived[blockIdx.y] = 0;
    __threadfence();

#pragma unroll 1
    for (int token = warp; token < T; token += warps) {
        float z[PER_LANE];
        u32 keys[PER_LANE];
        float most = __int_as_float(0xFF800000), mass = 0.0f;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            z[i] = lane + 32 * i < E ? __ldcg(logits + (i64)token * rows + lane + 32 * i) : 0.0f;
            keys[i] = lane + 32 * i < E ? key_of(z[i]) : 0u;
            if (lane + 32 * i < E) most = fmaxf(most, z[i]);
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) most = fmaxf(most, __shfl_xor_sync(ALL, most, o));
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            if (lane + 32 * i < E) mass += expf(z[i] - most);
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) mass += __shfl_xor_sync(ALL, mass, o);

        int expert = 0;
        float share = 0.0f, sum = 0.0f;  // the lane's, of all
#pragma unroll 1
        for (int s = 0; s < top; s++) {
            u32 best = 0;
#pragma unroll
            for (int i = 0; i < PER_LANE; i++) best = max(best, keys[i]);
            best = __reduce_max_sync(ALL, best);
            u32 index = ALL;
#pragma unroll
            for (int i = PER_LANE - 1; i >= 0; i--) index = keys[i] == best ? lane + 32 * i : index;
            index = __reduce_min_sync(ALL, index);
#pragma unroll
            for (int i = 0; i < PER_LANE; i++)
                if (index == lane + 32 * i) keys[i] = 0;
            const float p = __fdividef(expf(value_of(best) - most), mass);
            sum += p;
            if (lane == s) expert = index, share = p;
        }
        if (lane < top) {
            experts[token * listed + lane] = expert;
            weights[token * listed + lane] = norm ? __fdividef(share, sum) : share;
        } else if (lane < listed) {
            experts[token * listed + lane] = E;
            weights[token * listed + lane] = __fdividef(1.0f, 1.0f + expf(-__ldcg(logits + (i64)token * rows + E)));
        }
    }
}
