// Pairs of (token, slot) in the order of their experts, and the tiles or groups of rows that grouped matmuls walk over.
//
// experts [P] int32, P = T top. A pair's place among those of its expert is that among all pairs, so the order is one.
//   moe_count    counts [C, E] of chunks of CHUNK pairs. Grid: C = ceil(P / CHUNK) CTAs of 256 threads.
//   moe_offsets  counts become the first place of each chunk and expert; offsets [E + 1]: the first place of each
//                expert; tiles [B] (expert, first place) of TILE_M places each, (-1, 0) beyond the last. One CTA of 1024.
//   moe_scatter  order [P]: the pair of each place. Grid as moe_count.
// A thread of these stands for an expert (every 256th) and looks at all pairs of its chunk, so nothing is counted atomically.
//   moe_sort     offsets, tiles and order of P < 65536 pairs at once. One CTA.
//   moe_places   places for medium.cu: an expert's begin at a multiple of `rows`. places [P]: the place of each pair, and how
//                many without a pair follow it in its group; order: the pair of each place; groups [1 + G]: (G, 0, 0, 0), then
//                of each group of `rows` places its expert, the expert's first group, pairs and groups; arrived [zeros]: 0. P
//                and places < 65536. One CTA.
// In these a warp has a run of pairs, 32 at a time. Lanes with the same expert find each other by a ballot for each bit of its
// number; counts of every warp and expert are added up over warps, then over experts, 32 a warp. Predicted: two reads of L2,
// some 1000 cycles of arithmetic, 2.5 us a launch; the loops over all pairs and experts that came before took 15 us.
// Shared memory: static, the experts of a chunk (2 KiB), or dynamic, E counts, or (warps + 2) E + E / 32 + 2 of them. Archs:
// all. H200, 2026-11-25: moe_places 3.2 us for 512 pairs of 128 experts.
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

#define ALL 0xFFFFFFFFu

struct __align__(8) place_t { int place, empty; };
struct __align__(16) group_t { int expert, first, rows, count; };

// The places of up to 65535 pairs: what both kernels of one CTA have in common.
struct ranking_t {
    const int* experts;
    int P, E, bits, lane, warp, warps, first, last;
    int *counts, *totals, *before, *sums;  // [warps, E], [E]: pairs; [E]: (groups << 16 | places) before it in its 32; [E / 32]

    __device__ __forceinline__ ranking_t(const int* experts, int P, int E, int* shared)
        : experts(experts), P(P), E(E), bits(32 - __clz(E - 1)), lane(threadIdx.x & 31), warp(threadIdx.x >> 5),
          warps(blockDim.x >> 5) {
        const int run = (P + (int)blockDim.x - 1) / (int)blockDim.x * 32;
        first = min(P, warp * run), last = min(P, first + run);
        counts = shared, totals = counts + warps * E, before = totals + E, sums = before + E;
    }
    // put(pair, expert, how many pairs of this run with the same expert come before), after `counts` holds these of all
    // before it where `counts` is what it should start with.
    template <typename Put> __device__ __forceinline__ void walk(const Put& put) const {
        int* mine = counts + warp * E;
        for (int i = first; i < last; i += 32) {
            const bool there = i + lane < last;
            const int e = there ? experts[i + lane] : 0;
            u32 same = __ballot_sync(ALL, there);
            for (int b = 0; b < bits; b++) {
                const u32 set = __ballot_sync(ALL, (e >> b) & 1);
                same &= (e >> b) & 1 ? set : ~set;
            }
            const int rank = __popc(same & ((1u << lane) - 1u)), start = there ? mine[e] : 0;
            __syncwarp();
            if (there && rank == 0) mine[e] = start + __popc(same);
            __syncwarp();
            if (there) put(i + lane, e, start + rank);
        }
    }
    // Counts of a warp become those of all warps before it; totals, before and sums follow. A group has `rows` places.
    __device__ __forceinline__ void count(int rows) const {
        for (int i = threadIdx.x; i < warps * E; i += blockDim.x) counts[i] = 0;
        __syncthreads();
        walk([](int, int, int) {});
        __syncthreads();
        for (int e = 32 * warp; e < E; e += blockDim.x) {
            int n = 0;
            if (e + lane < E) {
#pragma unroll 8
                for (int v = 0; v < warps; v++) {
                    const int here = counts[v * E + e + lane];
                    counts[v * E + e + lane] = n;
                    n += here;
                }
                totals[e + lane] = n;
            }
            const int own = ((n + rows - 1) / rows) << 16 | n;
            int sum = own;
#pragma unroll
            for (int o = 1; o < 32; o *= 2) {
                const int other = __shfl_up_sync(ALL, sum, o);
                if (lane >= o) sum += other;
            }
            if (e + lane < E) before[e + lane] = sum - own;
            if (lane == 31) sums[e / 32] = sum;
        }
        __syncthreads();
    }
    // Groups << 16 | places of all experts before e.
    __device__ __forceinline__ u32 start(int e) const {
        int n = e < E ? before[e] : 0;
#pragma unroll 8
        for (int i = 0; i < (e < E ? e >> 5 : (E + 31) >> 5); i++) n += sums[i];
        return (u32)n;
    }
};

extern "C" __global__ void __launch_bounds__(1024)
    moe_sort(const int* experts, int* offsets, tile_t* tiles, int* order, int P, int E, int tile_rows, int B) {
    extern __shared__ int shared[];
    pdl_launch();
    pdl_wait();
    const ranking_t ranking(experts, P, E, shared);
    ranking.count(tile_rows);
    for (int e = threadIdx.x; e <= E; e += blockDim.x) {
        const u32 start = ranking.start(e);
        const int place = start & 0xFFFFu, total = e < E ? ranking.totals[e] : 0;
        int tile = start >> 16;
        offsets[e] = place;
        if (e < E) ranking.totals[e] = place;
        for (int first = 0; first < total; first += tile_rows, tile++)
            tiles[tile].expert = e, tiles[tile].first = place + first;
        if (e == E)
            for (; tile < B; tile++) tiles[tile].expert = -1, tiles[tile].first = 0;
    }
    __syncthreads();
    ranking.walk([&](int pair, int e, int rank) { order[ranking.totals[e] + rank] = pair; });
}

extern "C" __global__ void __launch_bounds__(1024)
    moe_places(const int* experts, place_t* places, int* order, group_t* groups, int* arrived, int P, int E, int rows,
               int zeros) {
    extern __shared__ int shared[];
    pdl_wait();
    pdl_launch();  // so that what follows the next kernel knows the groups before its own wait
    for (int i = threadIdx.x; i < zeros; i += blockDim.x) arrived[i] = 0;
    const ranking_t ranking(experts, P, E, shared);
    ranking.count(rows);
    for (int e = threadIdx.x; e <= E; e += blockDim.x) {
        const int first = ranking.start(e) >> 16;
        if (e == E) {
            groups[0] = {first, 0, 0, 0};
        } else {
            const int total = ranking.totals[e], count = (total + rows - 1) / rows;
            ranking.before[e] = first * rows;
            for (int i = 0; i < count; i++) groups[1 + first + i] = {e, first, total, count};
        }
    }
    __syncthreads();
    ranking.walk([&](int pair, int e, int rank) {
        const int place = ranking.before[e] + rank;
        places[pair] = {place, rank + 1 < ranking.totals[e] ? 0 : rows - 1 - rank % rows};
        order[place] = pair;
    });
}
