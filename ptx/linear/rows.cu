// Rows of a weight matrix as activations: out[i, :] = w[ids[i], :] (embedding), or w[first + i, :] when ids is null
// (dequantisation of a block of rows for a large matmul). One rounding, to ACT.
//
// w [V, K] FORMAT: blocks exactly as in the file, or codes with `scales` and `factors` [V] (blocks.cuh; null where the
// format has none); ids [rows] int32, out [rows, K] ACT. An id outside [0, V) gives zeros.
// Grid: one CTA of up to 256 threads per row; a thread decodes eight consecutive elements at a time and stores 16 bytes
// (32 for float32). Rows of a K that is not a multiple of 8 (dense and FP8 only) go element by element.
// Shared memory: none. Archs: all. Bytes moved: the blocks once, out once. Compiled, not yet measured.
#include "blocks.cuh"

__device__ __forceinline__ void store_8(f32_t* out, const float (&w)[8]) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        words4_t v;
#pragma unroll
        for (int i = 0; i < 4; i++) v.r[i] = __float_as_uint(w[4 * h + i]);
        reinterpret_cast<words4_t*>(out)[h] = v;
    }
}
template <typename T> __device__ __forceinline__ void store_8(T* out, const float (&w)[8]) {
    words4_t v;
#pragma unroll
    for (int i = 0; i < 4; i++) v.r[i] = pack2<T>(w[2 * i], w[2 * i + 1]);
    *reinterpret_cast<words4_t*>(out) = v;
}

template <typename F> __device__ __forceinline__ float any_element(chunk_t row, int k) {
    const int chunk = k / F::ELEMS;
    const chunk_t c = {row.codes + (i64)chunk * F::BYTES, row.scales + chunk * F::SCALE_BYTES};
    if constexpr (F::ANY_K) return F::element(c, k % F::ELEMS);
    return 0.0f;
}

extern "C" __global__ void __launch_bounds__(256)
    weight_rows(const u8* w, const u8* scales, const float* factors, const int* ids, act_t* out, int first, int V,
                int K) {
    typedef format_t F;
    pdl_launch();
    pdl_wait();
    const int id = ids != nullptr ? ids[blockIdx.x] : first + (int)blockIdx.x;
    act_t* to = out + (i64)blockIdx.x * K;
    const bool present = id >= 0 && id < V;
    const int from = present ? id : 0;
    const chunk_t row = {w + from * ((i64)K * F::BYTES / F::ELEMS),
                         F::SCALE_BYTES > 0 ? scales + from / F::SCALE_ROWS * scale_row_bytes<F>(K) : nullptr};
    const float factor = F::FACTOR ? factors[from] : 1.0f;
    if (F::ANY_K && K % 8 != 0) {
        for (int k = threadIdx.x; k < K; k += blockDim.x) {
            float v = present ? any_element<F>(row, k) : 0.0f;
            if (F::FACTOR && present) v *= factor;
            to[k] = from_float<act_t>(v);
        }
        return;
    }
    for (int p = threadIdx.x; p < K / 8; p += blockDim.x) {
        float v[8] = {};
        const int chunk = p / (F::ELEMS / 8), piece = p % (F::ELEMS / 8);
        const chunk_t c = {row.codes + (i64)chunk * F::BYTES, row.scales + chunk * F::SCALE_BYTES};
        if (present) F::decode(c, piece / 4, piece % 4, v);
        if (F::FACTOR && present)
#pragma unroll
            for (int i = 0; i < 8; i++) v[i] *= factor;
        store_8(to + 8 * p, v);
    }
}
