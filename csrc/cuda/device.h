// What a kernel asks of the device. Without nvcc the same names are functions of an emulator
// (tests/cuda_emulator.h), so that tests run the kernels' own code on the host.
#pragma once

#include "cuda/numbers.h"

#if defined(__CUDACC__)
#define RNNFAST_DEVICE __device__ __forceinline__
#define RNNFAST_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define RNNFAST_UNROLL _Pragma("unroll")
#define RNNFAST_ROLLED _Pragma("unroll 1")
#else
#define RNNFAST_DEVICE inline
#define RNNFAST_KERNEL(threads) void
#define RNNFAST_UNROLL
#define RNNFAST_ROLLED
#endif

namespace rnnfast {
namespace cuda {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;

#if defined(__CUDACC__)

RNNFAST_DEVICE int thread() { return int(threadIdx.x); }
RNNFAST_DEVICE int block_x() { return int(blockIdx.x); }
RNNFAST_DEVICE int block_y() { return int(blockIdx.y); }
RNNFAST_DEVICE int blocks_x() { return int(gridDim.x); }
RNNFAST_DEVICE void meet() { __syncthreads(); }
RNNFAST_DEVICE void meet_warp() { __syncwarp(); }

RNNFAST_DEVICE float* shared_floats() {
    extern __shared__ __align__(16) float memory[];
    return memory;
}

// What other blocks may have written since this kernel began: from L2, and after the barrier
// before.
RNNFAST_DEVICE Quad load_fresh(const Quad* p) {
    const uint4 q = __ldcg(reinterpret_cast<const uint4*>(p));
    return {{q.x, q.y, q.z, q.w}};
}

RNNFAST_DEVICE void add_released(uint32_t* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
RNNFAST_DEVICE uint32_t load_acquired(const uint32_t* counter) {
    uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}

// Nanoseconds that pass.
RNNFAST_DEVICE uint64_t clock_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}
// The same bits, of which the compiler does not know that: what is made of them is made here, and
// not kept in registers from before a loop.
RNNFAST_DEVICE uint32_t made_here(uint32_t bits) {
    asm volatile("" : "+r"(bits));
    return bits;
}
// What is read or written after this the compiler does not move before it.
RNNFAST_DEVICE void stay_in_order() { asm volatile("" ::: "memory"); }

// Ends the kernel, and with it the process's use of the device: later calls report an error.
RNNFAST_DEVICE void fail() { __trap(); }

// sums (16, 8) += a (16, 16) b (16, 8), a of bfloat16 by rows and b by columns, each in the lanes
// as the instruction has them.
RNNFAST_DEVICE void mma(float* sums, const uint32_t* a, const uint32_t* b, Bfloat16) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of a (16, 8), b (8, 8) in floats, of which the product reads the first 19 bits.
RNNFAST_DEVICE void mma(float* sums, const uint32_t* a, const uint32_t* b, float) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

int thread();
int block_x();
int block_y();
int blocks_x();
void meet();
void meet_warp();
float* shared_floats();
void add_released(uint32_t* counter);
uint32_t load_acquired(const uint32_t* counter);
uint64_t clock_ns();
void fail();
void mma(float* sums, const uint32_t* a, const uint32_t* b, Bfloat16);
void mma(float* sums, const uint32_t* a, const uint32_t* b, float);
inline Quad load_fresh(const Quad* p) { return *p; }
inline uint32_t made_here(uint32_t bits) { return bits; }
inline void stay_in_order() {}

#endif

}  // namespace cuda
}  // namespace rnnfast
