// Products of routed experts for few tokens, weights in fragment order: every (token, slot) pair reads its own expert.
//
// w: a stack [E N, K] as tiles of FORMAT (fragments.cuh), expert e from row e N on;
// experts [T, top] int32, weights [T, top] float32. N is a multiple of 16, for gate of 32.
// MODE gate:  x [T, K]; N = 2 I: y [T top, I] ACT = silu(gate) * up of each pair.
// MODE sum:   x [T top, K]; y [T, N] ACT = sum over slots, in order, of weight * product.
// MODE plain: x [T, K]; y float32 [T top, stride] from column `column`: products.
// Grid: (16 rows of y, slots (sum: 1), T), WARPS warps. The tiles of a CTA's 16 rows (gate: of gate and up, side by side) in
// all its segments (sum: its token's slots; else one) are dealt to the warps in turn. A tile's sum goes to shared memory;
// they meet in order of slots and columns. So the order of additions depends on shapes alone.
// Weights arrive by bulk copies, `depth` tiles of each warp ahead. Activations are staged (stage.cuh) by the warp that
// needs them, 256 columns of a row at a time. Products: warp_tiles.cuh; infinities and NaNs as in linear/small.cu.
// Between the choice of experts and a sum no kernel lets its successor start before it has waited for its predecessor, so
// a sum knows the experts before its own wait, and fetches weights while the products before it are under way.
// Shared memory: dynamic; per warp `depth` (gate: pairs of) tiles and 560 bytes of activations; 64 bytes of sums per tile
// of a CTA; 8 bytes per segment.
// Archs: sm_90 and up. Bytes moved: the weights of every pair once (L2 serves experts that tokens share).
#define MODE_gate 0
#define MODE_sum 1
#define MODE_plain 2
#define XROWS 1
#define TILES (IS(gate) ? 2 : 1)
#define IS(mode) (PASTE(MODE_, MODE) == MODE_##mode)
#include "bulk.cuh"
#include "warp_tiles.cuh"

#define WARPS 8
#define MOST_DEPTH 8
#define RESIDENT (IS(gate) && fragments_t::SPAN == 16 ? 2 : 3)  // CTAs: room for those of the next launch

extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT)
    moe_small(const act_t* x, const u8* w, const int* experts, const float* weights, void* y, int N, int K, int top,
              int depth, int stride, int column) {
    typedef fragments_t F;
    const int STAGE = TILES * F::BYTES, tiles = K / F::COLS;
    extern __shared__ __align__(128) u8 shared[];
    __shared__ __align__(8) u64 barriers[WARPS][MOST_DEPTH];
    const int lane = threadIdx.x & 31, warp = __shfl_sync(0xFFFFFFFFu, (int)threadIdx.x >> 5, 0);
    const int token = blockIdx.z, segments = IS(sum) ? top : 1, first = token * top + (IS(sum) ? 0 : (int)blockIdx.y);
    const int units = segments * tiles, size = block_bytes(1);
    u8* ring = shared + warp * (depth * STAGE);
    u8* rows = shared + WARPS * depth * STAGE + warp * size;
    float* sums = reinterpret_cast<float*>(shared + WARPS * (depth * STAGE + size));  // [units][TILES][16]
    u32* odd = reinterpret_cast<u32*>(sums + units * TILES * 16);                     // [segments]
    float* shares = reinterpret_cast<float*>(odd + segments);                         // [segments]
    const u32 barrier = shared_address(barriers[warp]), ring_address = shared_address(ring);

    // The segment of a unit: the quotient is further from an integer above than rounding may err.
    const float inverse = __fdividef(1.0f, (float)tiles);
    const auto segment_of = [&](int unit) { return IS(sum) ? (int)(((float)unit + 0.5f) * inverse) : 0; };
    // The tile of a unit; of gate and up, the tile of gate.
    const auto tile_of = [&](int segment, int block) {
        return w + (((i64)experts[first + segment] * (N / 16) + blockIdx.x) * tiles + block) * F::BYTES;
    };
    const auto fetch = [&](int stage, int unit) {
        const int segment = segment_of(unit);
        const u8* tile = tile_of(segment, unit - segment * tiles);
        barrier_expect(barrier + 8 * stage, STAGE);
#pragma unroll
        for (int p = 0; p < TILES; p++)
            copy_bulk(ring_address + stage * STAGE + p * F::BYTES, tile + (i64)p * (N / 32) * tiles * F::BYTES, F::BYTES,
                      barrier + 8 * stage);
    };
    if (lane == 0) {
#pragma unroll 1
        for (int s = 0; s < depth; s++) barrier_init(barrier + 8 * s);
        copies_see_shared();
    }
    __syncwarp();
    if (!IS(sum)) {
        pdl_wait();
        pdl_launch();
    }
    if (lane < depth && warp + lane * WARPS < units) fetch(lane, warp + lane * WARPS);
#pragma unroll 1
    for (int s = threadIdx.x; s < segments; s += 32 * WARPS) {
        odd[s] = 0;
        if (IS(sum)) shares[s] = weights[first + s];
    }
    if (IS(sum)) {
        pdl_launch();
        pdl_wait();
    }
    __syncthreads();

    const auto row_of = [&](int segment) { return x + (i64)(IS(sum) ? first + segment : token) * K; };
    const auto columns_of = [&](int unit) {
        const int segment = segment_of(unit);
        return load_words4(reinterpret_cast<const u8*>(row_of(segment) + (unit - segment * tiles) * 256 + 8 * lane));
    };
    const warp_tiles<F> product(K >> 31, lane, 1);
    int stage = 0, parity = 0;
    words4_t next = {};
    if (warp < units) next = columns_of(warp);
#pragma unroll 1
    for (int unit = warp; unit < units; unit += WARPS) {
        float f[8];
#pragma unroll
        for (int i = 0; i < 4; i++) unpack2<act_t>(f + 2 * i, next.r[i]);
        stage_row(rows, 1, 0, f, lane);
        __syncwarp();
        if (unit + WARPS < units) next = columns_of(unit + WARPS);
        warp_tiles<F>::sums_t acc = {};
        product.multiply(ring + stage * STAGE, rows, odd + segment_of(unit), acc,
                         [&] { barrier_wait(barrier + 8 * stage, parity); });
        product.finish(acc, [&](int p, int, int r, float v) { sums[(unit * TILES + p) * 16 + r] = v; });
        __syncwarp();
        if (lane == stage && unit + depth * WARPS < units) fetch(stage, unit + depth * WARPS);
        if (++stage == depth) stage = 0, parity ^= 1;
    }
    __syncthreads();

    // The product of a row and a segment takes the place of the first of its sums.
#pragma unroll 1
    for (int o = threadIdx.x; o < segments * TILES * 16; o += 32 * WARPS) {
        const int r = o & 15, p = o / 16 % TILES, segment = o / 16 / TILES;
        float* from = sums + (segment * tiles * TILES + p) * 16 + r;
        float v = from[0];
#pragma unroll 4
        for (int b = 1; b < tiles; b++) v += from[b * TILES * 16];
        if (odd[segment])
#pragma unroll 1
            for (int k = 0; k < K; k++) {
                const float value = to_float(row_of(segment)[k]);
                if ((__float_as_uint(value) & 0x7F800000u) != 0x7F800000u) continue;
                float four[4];
                F::quad(tile_of(segment, k >> 8) + (i64)p * (N / 32) * tiles * F::BYTES, r, k & 252, four);
                v += value * (k & 2 ? k & 1 ? four[3] : four[2] : k & 1 ? four[1] : four[0]);
            }
        from[0] = v;
    }
    __syncthreads();
    const int r = threadIdx.x;
    if (r >= 16) return;
    const i64 at = (IS(sum) ? token : first) * (i64)stride + column + (int)blockIdx.x * 16 + r;
    if (IS(gate)) {
        const float gate = sums[r];
        static_cast<act_t*>(y)[at] = from_float<act_t>(__fdividef(gate, 1.0f + expf(-gate)) * sums[16 + r]);
    } else if (IS(sum)) {
        float v = 0.0f;
#pragma unroll 1
        for (int s = 0; s < segments; s++) v = fmaf(shares[s], sums[s * tiles * 16 + r], v);
        static_cast<act_t*>(y)[at] = from_float<act_t>(v);
    } else {
        static_cast<float*>(y)[at] = sums[r];
    }
}
