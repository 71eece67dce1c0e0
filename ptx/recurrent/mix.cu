// What a Gated DeltaNet layer does before its delta rule, for rows that go through chunks: convolution, silu and unit length
// of q, k and v, gates, and the state that a row continues (chunk.cuh has the layouts).
//
// Arguments as in generic.cu; of rows with more than `few` tokens are written: tiles, gates and states of a row's first
// chunk; past [R, 3, channels] of ACT, the history that the row continues; firsts [R], its first chunk.
// Grid: (slots, units + 1 + nv), 128 threads, units = 2 nk + nv: a CTA makes a tile, a warp 16 tokens of it, a lane four
// channels; or the gates of a chunk; or copies a state. Archs: all. Bytes: proj, and the tiles.
// H200, 2026-11-25, 4096 tokens, 16/32 heads: 92 us.
#include "chunk.cuh"

extern "C" __global__ void __launch_bounds__(128)
delta_mix(const act_t* proj, const float* taps, const float* decay, const float* bias, const act_t* conv,
          const state_t* state, const int* starts, const int* from, float* tiles, float2* gates, float* states, act_t* past,
          int* firsts, int R, int nk, int nv, int few) {
    const Sizes sizes = {nk, nv, D, D, 0};
    const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, channels = sizes.channels(), columns = sizes.columns();
    const int units = channels / D, unit = blockIdx.y;
    pdl_launch();
    pdl_wait();
    const Chunk chunk = find_chunk(starts, R, few, blockIdx.x);
    if (chunk.row < 0) return;
    const int slot = from[chunk.row], first = chunk.start + chunk.index * CHUNK;
    if (unit > units) {
        if (chunk.index > 0) return;
        const i64 head = unit - units - 1;
        float* to = states + ((i64)chunk.slot * nv + head) * D * D;
        for (int i = tid * 4; i < D * D; i += 128 * 4) {
            float x[4] = {};
            if (slot >= 0) load_wide(x, state + ((i64)slot * nv + head) * D * D + i);
            store_wide(to + i, x);
        }
        return;
    }
    if (unit == units) {
        if (tid == 0 && chunk.index == 0) firsts[chunk.row] = chunk.slot;
        for (int i = tid; i < CHUNK * nv; i += 128) {
            const int t = i / nv, head = i % nv;
            float2 gate = make_float2(0.0f, 0.0f);
            if (t < chunk.tokens) {
                const act_t* p = proj + (i64)(first + t) * columns + channels + nv * D + head;
                gate = make_float2(sigmoid(to_float(p[0])), log_decay(decay[head], to_float(p[nv]) + bias[head]));
                if (gate.y != gate.y) gate = make_float2(gate.y, 0.0f);
            }
            gates[((i64)chunk.slot * nv + head) * CHUNK + t] = gate;
        }
        return;
    }
    const int channel = unit * D + lane * 4, t0 = warp * 16, position = chunk.index * CHUNK + t0;
    const bool wide = columns % 4 == 0 && aligned(proj, 4 * sizeof(act_t));
    float* tile = tiles + ((i64)chunk.slot * units + unit) * TILE_SIZE;
    float w[4][TAPS], x[TAPS][4];
#pragma unroll
    for (int c = 0; c < 4; c++) load_wide(w[c], taps + (i64)(channel + c) * TAPS);
#pragma unroll
    for (int i = 0; i < PAST; i++) {
        const int at = position - PAST + i;
        x[i][0] = x[i][1] = x[i][2] = x[i][3] = 0.0f;
        if (at >= 0) {
            if (t0 < chunk.tokens) load_group(x[i], proj + (i64)(chunk.start + at) * columns + channel, 4, wide);
        } else {
            if (slot >= 0) load_group(x[i], conv + ((i64)slot * PAST + i) * channels + channel, 4, true);
            store_wide(past + ((i64)chunk.row * PAST + i) * channels + channel, x[i]);
        }
    }
    const float scale = unit < nk ? 0.08838834764831845f : 1.0f;
#pragma unroll 4
    for (int t = t0; t < t0 + 16; t++) {
        float u[4] = {};
        if (t < chunk.tokens) {
            load_group(x[PAST], proj + (i64)(first + t) * columns + channel, 4, wide);
            float squares = 0.0f;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float inputs[TAPS] = {x[0][c], x[1][c], x[2][c], x[3][c]};
                u[c] = convolved(inputs, w[c]);
                squares = fmaf(u[c], u[c], squares);
                x[0][c] = x[1][c], x[1][c] = x[2][c], x[2][c] = x[3][c];
            }
            if (unit < 2 * nk) {
                const float length = unit_scale(warp_sum(squares)) * scale;
#pragma unroll
                for (int c = 0; c < 4; c++) u[c] *= length;
            }
        }
        store_wide(tile + place(t, lane), u);
    }
}
