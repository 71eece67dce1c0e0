// Pairs of (token, slot) in the order of their experts, and the tiles of rows that grouped matmuls walk over.
//
// experts [P] int32, P = T top. A pair's place among those of its expert is that among all pairs, so the order is one.
//   moe_count    counts [C, E] of chunks of CHUNK pairs. Grid: C = ceil(P / CHUNK) CTAs of 256 threads.
//   moe_offsets  counts become the first place of each chunk and expert; offsets [E + 1]: the first place of each
//                expert; tiles [B] (expert, first place) of TILE_M places each, (-1, 0) beyond the last. One CTA of 1024.
//   moe_scatter  order [P]: the pair of each place. Grid as moe_count.
//   moe_sort     offsets, tiles and order of P <= CHUNK pairs at once. One CTA of 512.
// A thread stands for an expert (every 256th, or 512th) and looks at all pairs of its chunk, so nothing is counted atomically.
// Shared memory: static, the experts of a chunk (2 KiB), or dynamic, E counts. Archs: all. Compiled, not yet measured.
#include "scalar.cuh"

#define CHUNK 512
#define THREADS 256

struct __align__(8) tile_t { int expert, first; };

// The experts of this CTA's chunk into shared memory; how many there are.
__device__ __forceinline__ int load_chunk(int* chunk, const int* experts, int P) {
    const int first = blockIdx.x * CHUNK, count = min(CHUNK, P - first);
    for (int i = threadIdx.x; i < count; i += blockDim.x) chunk[i] = experts[first + i];
    __syncthreads();
    return count;
}

// How many pairs of a chunk go to expert e.
__device__ __forceinline__ int count_in(const int* chunk, int count, int e) {
    int n = 0;
#pragma unroll 8
    for (int i = 0; i < count; i++) n += chunk[i] == e;
    return n;
}

// The pairs of expert e of a chunk, `first` being that of the chunk, in order from `place` on.
__device__ __forceinline__ void place_in(int* order, const int* chunk, int count, int first, int e, int place) {
#pragma unroll 4
    for (int i = 0; i < count; i++)
        if (chunk[i] == e) order[place++] = first + i;
}

// The first place of expert e, into `offsets`, and its tiles, of all experts' totals; e == E stands for the end.
__device__ __forceinline__ int lay_out(int* offsets, tile_t* tiles, const int* totals, int e, int E, int tile_rows,
                                       int B) {
    int place = 0, tile = 0;
#pragma unroll 8
    for (int i = 0; i < e; i++) {
        place += totals[i];
        tile += (totals[i] + tile_rows - 1) / tile_rows;
    }
    offsets[e] = place;
    if (e == E) {
        for (; tile < B; tile++) tiles[tile].expert = -1, tiles[tile].first = 0;
    } else {
        for (int first = 0; first < totals[e]; first += tile_rows, tile++)
            tiles[tile].expert = e, tiles[tile].first = place + first;
    }
    return place;
}

extern "C" __global__ void __launch_bounds__(THREADS) moe_count(const int* experts, int* counts, int P, int E) {
    __shared__ int chunk[CHUNK];
    pdl_launch();
    pdl_wait();
    const int count = load_chunk(chunk, experts, P);
    for (int e = threadIdx.x; e < E; e += THREADS) counts[(i64)blockIdx.x * E + e] = count_in(chunk, count, e);
}

extern "C" __global__ void __launch_bounds__(1024)
    moe_offsets(int* counts, int* offsets, tile_t* tiles, int chunks, int E, int tile_rows, int B) {
    extern __shared__ int totals[];  // [E]
    pdl_launch();
    pdl_wait();
    for (int e = threadIdx.x; e < E; e += blockDim.x) {
        int n = 0;
#pragma unroll 8
        for (int c = 0; c < chunks; c++) n += counts[(i64)c * E + e];
        totals[e] = n;
    }
    __syncthreads();
    for (int e = threadIdx.x; e <= E; e += blockDim.x) {
        int place = lay_out(offsets, tiles, totals, e, E, tile_rows, B);
        if (e == E) continue;
        for (int c = 0; c < chunks; c += 8) {  // eight loads under way at once
            int n[8];
#pragma unroll
            for (int i = 0; i < 8; i++) n[i] = c + i < chunks ? counts[(i64)(c + i) * E + e] : 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (c + i < chunks) counts[(i64)(c + i) * E + e] = place;
                place += n[i];
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    moe_scatter(const int* experts, const int* places, int* order, int P, int E) {
    __shared__ int chunk[CHUNK];
    pdl_launch();
    pdl_wait();
    const int count = load_chunk(chunk, experts, P), first = blockIdx.x * CHUNK;
    for (int e = threadIdx.x; e < E; e += THREADS)
        place_in(order, chunk, count, first, e, places[(i64)blockIdx.x * E + e]);
}

extern "C" __global__ void __launch_bounds__(512)
    moe_sort(const int* experts, int* offsets, tile_t* tiles, int* order, int P, int E, int tile_rows, int B) {
    extern __shared__ int totals[];  // [E]
    __shared__ int chunk[CHUNK];
    pdl_launch();
    pdl_wait();
    const int count = load_chunk(chunk, experts, P);
    for (int e = threadIdx.x; e < E; e += blockDim.x) totals[e] = count_in(chunk, count, e);
    __syncthreads();
    for (int e = threadIdx.x; e <= E; e += blockDim.x) {
        const int place = lay_out(offsets, tiles, totals, e, E, tile_rows, B);
        if (e < E) place_in(order, chunk, count, 0, e, place);
    }
}
