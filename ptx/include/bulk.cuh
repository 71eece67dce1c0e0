// Bulk copies from global to shared memory (sm_90 and up; PTX ISA, "cp.async.bulk") and the mbarriers that count their
// bytes. One lane expects the bytes of a phase and issues the copies; whoever reads them waits for the phase. A barrier's
// first phase has parity 0.
#pragma once
#include "scalar.cuh"

// One arrival per phase. The threads of the CTA must meet at a barrier before anybody else uses it.
__device__ __forceinline__ void barrier_init(u32 barrier) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
// Make initialised barriers, and what threads did to shared memory, visible to copies that are issued from now on.
__device__ __forceinline__ void copies_see_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// The bytes of the copies of this phase, all together.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("{ .reg .b64 s; mbarrier.arrive.expect_tx.shared::cta.b64 s, [%0], %1; }" ::"r"(barrier), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(barrier), "r"(parity) : "memory");
    } while (!done);
}

// Copy `bytes`, a multiple of 16, between 16-byte aligned addresses.
__device__ __forceinline__ void copy_bulk(u32 target, const void* source, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(target), "l"(source), "r"(bytes), "r"(barrier) : "memory");
}

// Bring the cache line of p to L2.
__device__ __forceinline__ void prefetch(const float* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
