// Warp-level matrix instructions and asynchronous copies (sm_80 and up): mma.sync m16n8k16, ldmatrix, cp.async.
//
// Fragments of mma m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"), with g = lane >> 2 and t = lane & 3.
// Each 32-bit register holds two neighbours, the lower index in the low half.
//   A [16, 16] row-major:  a[0] = (row g, k 2t..2t+1)     a[1] = (row g + 8, k 2t..2t+1)
//                          a[2] = (row g, k 2t+8..2t+9)   a[3] = (row g + 8, k 2t+8..2t+9)
//   B [16, 8] (k, n):      b0 = (k 2t..2t+1, col g)       b1 = (k 2t+8..2t+9, col g)
//   C [16, 8] float:       c[0], c[1] = (row g, cols 2t, 2t+1)   c[2], c[3] = (row g + 8, cols 2t, 2t+1)
// The order of k is free as long as A and B agree.
#pragma once
#include "scalar.cuh"

// c += a b in float32. T is f16_t or bf16_t.
template <typename T> __device__ __forceinline__ void mma_16816(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void mma_16816<f16_t>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void mma_16816<bf16_t>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The shared-window address that ldmatrix and cp.async take.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four (two) 8x8 matrices of 16-bit elements. Lane i gives the 16-byte aligned address of row i % 8 of matrix i / 8
// (x2 reads lanes 0 to 15); register m of lane l gets elements (row l / 4, columns 2 (l % 4) and the next) of matrix m.
// For A row-major in shared memory the matrices are (rows 0-7, k 0-7), (rows 8-15, k 0-7), (rows 0-7, k 8-15),
// (rows 8-15, k 8-15).
// For B stored as [n, k] (k contiguous): plain; stored as [k, n] (n contiguous): the transposed form.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(u32 (&r)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

// Copy `bytes` (0 to 16) from global to shared memory and fill the rest of 16 with zeros, past L1. Both addresses are
// 16-byte aligned, and `source` is a valid address even when bytes is 0.
__device__ __forceinline__ void copy_async_16(u32 target, const void* source, u32 bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Wait until at most PENDING of this thread's newest groups are under way; other threads still need a barrier.
template <int PENDING> __device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}
