// What the host asks of the device. Without nvcc, functions of an emulator, as in device.h.
#pragma once

#include "cuda/device.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace rnnfast {
namespace cuda {

// Blocks of kThreads threads in two dimensions, and the bytes of shared memory of each.
struct Grid {
    int x, y, shared;
};

#if defined(__CUDACC__)

using Error = cudaError_t;
using Stream = cudaStream_t;
constexpr Error kFine = cudaSuccess;

inline int most_kept(int registers) { return registers; }  // tests change it
// Which the run-time library forgets: the next call is to report its own errors.
inline const char* text_of(Error error) {
    (void)cudaGetLastError();
    return cudaGetErrorString(error);
}
inline Error count_devices(int* count) { return cudaGetDeviceCount(count); }

// Streaming multiprocessors of the caller's device.
inline Error count_processors(int* count) {
    int device = 0;
    const Error error = cudaGetDevice(&device);
    if (error != kFine) return error;
    return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// Lets the kernel have so much shared memory. blocks: how many then run at once on a processor.
template <class Args>
Error prepare(void (*kernel)(Args, int, int), int shared, int* blocks) {
    const Error error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != kFine) return error;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, kThreads, size_t(shared));
}

// together: all blocks run at the same time, or the launch is an error.
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             bool together, Stream stream) {
    void* arguments[] = {&args, &first, &last};
    const auto start = together ? cudaLaunchCooperativeKernel<void> : cudaLaunchKernel<void>;
    return start(reinterpret_cast<void*>(kernel), dim3(unsigned(grid.x), unsigned(grid.y)),
                 dim3(kThreads), arguments, size_t(grid.shared), stream);
}

template <class Task>
__global__ void __launch_bounds__(kThreads) run_each(const Task task) {
    const size_t stride = size_t(gridDim.x) * kThreads;
    for (size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x; i < task.count(); i += stride)
        task.run(i);
}

// task.run(i) of all i below task.count().
template <class Task>
Error launch_each(const Task& task, Stream stream) {
    constexpr size_t kMostBlocks = 4096;
    const size_t wanted = (task.count() + kThreads - 1) / kThreads;
    const unsigned blocks = unsigned(wanted < kMostBlocks ? wanted : kMostBlocks);
    Task copy = task;
    void* arguments[] = {&copy};
    return cudaLaunchKernel(reinterpret_cast<const void*>(run_each<Task>), dim3(blocks),
                            dim3(kThreads), arguments, 0, stream);
}

#else

using Error = int;
using Stream = void*;
constexpr Error kFine = 0;

int most_kept(int registers);
inline const char* text_of(Error) { return "an error of the emulator"; }
Error count_devices(int* count);
Error count_processors(int* count);
template <class Args>
Error prepare(void (*kernel)(Args, int, int), int shared, int* blocks);
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             bool together, Stream stream);
template <class Task>
Error launch_each(const Task& task, Stream stream);

#endif

}  // namespace cuda
}  // namespace rnnfast
