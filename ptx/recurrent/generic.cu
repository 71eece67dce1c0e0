// A Gated DeltaNet layer between its projections, for heads of any size, token by token (delta.cuh has the layouts).
//
// proj [T, columns] and out [T, nv dv] of ACT; taps [channels, 4], decay [nv], bias [nv], weight [dv] float32; conv
// [S, 3, channels] of ACT, state [S, nv, dk, dv] of STATE; starts [R + 1], from [R], to [T] int32 (see `Batch`).
// A state of 16 bits is rounded after every token of rows of up to `few` tokens, of others where it is stored.
// Grid: (nv, R + 1): CTA (j, r) is value head j of row first + r, a thread owns columns of its state; the last r writes
// zeros for padding tokens. Any multiple of 32 threads: every warp sums squares of a head for itself.
// State and history are read before griddepcontrol.wait: they are of an earlier step. A row may overwrite the slot that it
// continues. Columns of a state belong to one CTA and so do channels of v, but CTAs of all value heads of a key head
// read the history of its q and k: they count themselves once they have, and the last one writes it.
// Shared memory (dynamic): state dk dv, history and inputs of TAPS tokens, u and o: dk dv + 5 (2 dk + dv) + dv floats.
// Archs: all. Bytes: two states a row, and the arguments. Compiled, not yet measured.
#include "delta.cuh"

__device__ u32 readers[COUNTERS];

extern "C" __global__ void __launch_bounds__(256)
delta_generic(const act_t* proj, const float* taps, const float* decay, const float* bias, const float* weight,
              act_t* conv, state_t* state, const int* starts, const int* from, const int* to, act_t* out, int T, int R,
              int nk, int nv, int dk, int dv, int tiled, int few, int first, float eps) {
    extern __shared__ float shared[];
    __shared__ int last_reader;
    const Sizes sizes = {nk, nv, dk, dv, tiled};
    const int head = blockIdx.x, row = first + blockIdx.y, tid = threadIdx.x, lane = tid & 31;
    const int channels = sizes.channels(), columns = sizes.columns(), width = 2 * dk + dv;
    pdl_launch();
    if (row >= R) {
        pdl_wait();
        for (int t = starts[R]; t < T; t++)
            for (int j = tid; j < dv; j += blockDim.x) out[(i64)t * nv * dv + head * dv + j] = from_float<act_t>(0.0f);
        return;
    }
    const int start = starts[row], tokens = starts[row + 1] - start, slot = from[row], kh = sizes.key_head(head);
    if (tokens == 0) {
        pdl_wait();
        return;
    }
    float* s = shared;               // [dk][dv]
    float* x = s + dk * dv;          // [TAPS][width]: input t is row t % TAPS, after the row's tokens -3, -2, -1
    float* u = x + TAPS * width;     // [width]
    float* o = u + width;            // [dv]
    // The channel, in a token's projections, of channel c of this head.
    auto channel = [&](int c) {
        return c < dk ? kh * dk + c : c < 2 * dk ? (nk + kh) * dk + c - dk : 2 * nk * dk + head * dv + c - 2 * dk;
    };
    const i64 cells = (i64)nv * dk * dv;
    for (int i = tid; i < dk * dv; i += blockDim.x)
        s[i] = slot < 0 ? 0.0f : to_float(state[slot * cells + (i64)head * dk * dv + i]);
    for (int i = tid; i < PAST * width; i += blockDim.x) {
        const int c = i % width, t = i / width;
        x[(t + 1) * width + c] = slot < 0 ? 0.0f : to_float(conv[((i64)slot * PAST + t) * channels + channel(c)]);
    }
    __syncthreads();
    pdl_wait();
    if (tid == 0) {  // counters belong to one launch at a time: not before the wait
        u32* counter = readers + (row - first) * nk + kh;
        last_reader = atomicAdd(counter, 1u) + 1 == (u32)sizes.group();
        if (last_reader) *counter = 0;
    }
    for (int t = 0; t < tokens; t++) {
        const act_t* p = proj + (i64)(start + t) * columns;
        const int target = to[start + t];
        for (int c = tid; c < width; c += blockDim.x) {
            x[(t & PAST) * width + c] = to_float(p[channel(c)]);
            float v[TAPS], w[TAPS];
#pragma unroll
            for (int i = 0; i < TAPS; i++)
                v[i] = x[((t + 1 + i) & PAST) * width + c], w[i] = taps[(i64)channel(c) * TAPS + i];
            u[c] = convolved(v, w);
        }
        __syncthreads();
        float qq = 0.0f, kk = 0.0f;
        for (int i = lane; i < dk; i += 32) qq = fmaf(u[i], u[i], qq), kk = fmaf(u[dk + i], u[dk + i], kk);
        const float scale_q = unit_scale(warp_sum(qq)) * rsqrtf((float)dk), scale_k = unit_scale(warp_sum(kk));
        const float beta = sigmoid(to_float(p[channels + nv * dv + head]));
        const float left = expf(log_decay(decay[head], to_float(p[channels + nv * dv + nv + head]) + bias[head]));
        for (int j = tid; j < dv; j += blockDim.x) {
            float known = 0.0f, sum = 0.0f;
            for (int i = 0; i < dk; i++) known = fmaf(u[dk + i] * scale_k, s[i * dv + j] * left, known);
            const float d = (u[2 * dk + j] - known) * beta;
            for (int i = 0; i < dk; i++) {
                const float after = fmaf(u[dk + i] * scale_k, d, s[i * dv + j] * left);
                sum = fmaf(u[i] * scale_q, after, sum);
                s[i * dv + j] = tokens <= few ? stored<state_t>(after) : after;
                if (target >= 0) state[target * cells + ((i64)head * dk + i) * dv + j] = from_float<state_t>(after);
            }
            o[j] = sum;
        }
        __syncthreads();
        float squares = 0.0f;
        for (int j = lane; j < dv; j += 32) squares = fmaf(o[j], o[j], squares);
        const float inverse = rsqrtf(warp_sum(squares) / (float)dv + eps);
        for (int j = tid; j < dv; j += blockDim.x) {
            const float z = to_float(p[channels + head * dv + j]);
            out[(i64)(start + t) * nv * dv + head * dv + j] = from_float<act_t>(o[j] * inverse * weight[j] * silu(z));
        }
        if (target < 0) continue;
        for (int i = tid; i < PAST * width; i += blockDim.x) {
            const int c = i % width, past = i / width;
            if (c >= 2 * dk || last_reader)
                conv[((i64)target * PAST + past) * channels + channel(c)] =
                    from_float<act_t>(x[((t + 2 + past) & PAST) * width + c]);
        }
    }
}
