// Gated activation of float32 products: y = silu(gate) * up, rounded once. For experts whose gate and up projections
// are stored in different formats; elsewhere it is part of the product.
//
// gate_up [P, 2 I] float32, y [P, I] ACT; of both the rows at places [P] (sort.cu), if it is not null.
// Grid: (ceil(I / 128), min(P, 65535)), 128 threads, an element of every row each.
// Shared memory: none. Archs: all. Compiled, not yet measured.
#include "scalar.cuh"

struct __align__(8) place_t { int place, empty; };

extern "C" __global__ void __launch_bounds__(128)
    moe_gate(const float* gate_up, const place_t* places, act_t* y, int P, int I) {
    const int i = blockIdx.x * 128 + threadIdx.x;
    pdl_wait();
    pdl_launch();  // so that what follows knows the experts (small.cu)
    if (i >= I) return;
    for (int p = blockIdx.y; p < P; p += gridDim.y) {
        const i64 row = places == nullptr ? p : places[p].place;
        const float gate = gate_up[row * 2 * I + i], up = gate_up[row * 2 * I + I + i];
        y[row * I + i] = from_float<act_t>(__fdividef(gate, 1.0f + expf(-gate)) * up);
    }
}
