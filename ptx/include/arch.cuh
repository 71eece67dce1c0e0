// What the target can do. A family build (sm_120f, sm_100f) or an architecture build (sm_120a, sm_121a, sm_90a) may use
// instructions that the plain target lacks.
//
// NVRTC defines __CUDA_ARCH_FAMILY_SPECIFIC__ as 1200 for sm_120a and sm_120f, but as 1210 for sm_121a and sm_121f, and
// not at all for plain sm_120: a test for == 1200 would silently take the slow path on sm_121a. Hence the ranges, and
// the error below for a plain build of compute capability 12, which would lose every Blackwell instruction.
//   NATIVE_BLOCK_SCALE  mma.sync with kind::mxf4nvf4 and kind::mxf8f6f4 (compute capability 12)
//   NATIVE_FP4          cvt to and from e2m1 (compute capability 10 and 12)
// Elsewhere the device functions of nvfp4.cuh and mxfp8.cuh compute the same from instructions of sm_89 and up.
#pragma once

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200 && !defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
#error "compile for sm_120f: the plain sm_12x targets lack the block-scaled matrix instructions"
#endif

#if defined(__CUDA_ARCH_FAMILY_SPECIFIC__)
#if __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1200 && __CUDA_ARCH_FAMILY_SPECIFIC__ < 1300
#define NATIVE_BLOCK_SCALE 1
#endif
#if __CUDA_ARCH_FAMILY_SPECIFIC__ >= 1000 && __CUDA_ARCH_FAMILY_SPECIFIC__ < 1300
#define NATIVE_FP4 1
#endif
#endif
#ifndef NATIVE_BLOCK_SCALE
#define NATIVE_BLOCK_SCALE 0
#endif
#ifndef NATIVE_FP4
#define NATIVE_FP4 0
#endif
