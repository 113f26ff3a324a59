// What the host asks of the device. Without nvcc, functions of an emulator, as in device.h.
#pragma once

#include "cuda/cluster.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace rnnfast {
namespace cuda {

// Blocks of kThreads threads in two dimensions, and the bytes of shared memory of each.
struct Grid {
    int x, y, shared;
};

// Which blocks of a launch wait for each other, and so run at the same time, or the launch is an
// error: none, those of one y, or all.
enum class Meeting { kNone, kCluster, kAll };

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

// Bytes of shared memory that a block may have there.
inline Error most_shared(int* bytes) {
    int device = 0;
    const Error error = cudaGetDevice(&device);
    if (error != kFine) return error;
    return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

// Lets the kernel have all the shared memory that a block may have: another thread may be about to
// launch it for more than this one. blocks: how many of `shared` bytes run at once on a processor.
template <class Args>
Error prepare(void (*kernel)(Args, int, int), int shared, int* blocks) {
    int most = 0;
    Error error = most_shared(&most);
    if (error == kFine)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
    if (error != kFine) return error;
    return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, kernel, kThreads, size_t(shared));
}

// A launch, with what it asks for beside its size.
struct Launch {
    cudaLaunchConfig_t config{};
    cudaLaunchAttribute attribute{};

    Launch(const Grid& grid, Meeting meeting, Stream stream) {
        config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
        config.blockDim = dim3(kThreads);
        config.dynamicSmemBytes = size_t(grid.shared);
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = meeting == Meeting::kNone ? 0 : 1;
        if (meeting == Meeting::kCluster) {
            attribute.id = cudaLaunchAttributeClusterDimension;
            attribute.val.clusterDim.x = unsigned(grid.x);
            attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        } else {
            attribute.id = cudaLaunchAttributeCooperative;
            attribute.val.cooperative = 1;
        }
    }
    Launch(const Launch&) = delete;  // config has the attribute's address
};

// The same of a kernel for clusters of `blocks`, which may be more than any device takes. clusters:
// how many run at once on this one; none where the kernel is not made for it, or a block cannot have
// kMostShared.
template <class Args>
Error prepare_clusters(void (*kernel)(Args, int, int), int blocks, int shared, int* clusters) {
    *clusters = 0;
    cudaFuncAttributes made_for;
    Error error = cudaFuncGetAttributes(&made_for, kernel);
    if (error != kFine || made_for.ptxVersion < 90) return error;
    int allowed = 0;
    error = most_shared(&allowed);
    if (error != kFine || allowed < kMostShared) return error;
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
    if (error == kFine)
        error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
    if (error != kFine) return error;
    const Launch launch({blocks, 1, shared}, Meeting::kCluster, nullptr);
    error = cudaOccupancyMaxActiveClusters(clusters, kernel, &launch.config);
    if (error != cudaErrorInvalidClusterSize) return error;
    *clusters = 0;
    (void)cudaGetLastError();
    return kFine;
}

template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             Meeting meeting, Stream stream) {
    const Launch launch(grid, meeting, stream);
    void* arguments[] = {&args, &first, &last};
    return cudaLaunchKernelExC(&launch.config, reinterpret_cast<const void*>(kernel), arguments);
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
Error most_shared(int* bytes);
template <class Args>
Error prepare(void (*kernel)(Args, int, int), int shared, int* blocks);
template <class Args>
Error prepare_clusters(void (*kernel)(Args, int, int), int blocks, int shared, int* clusters);
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             Meeting meeting, Stream stream);
template <class Task>
Error launch_each(const Task& task, Stream stream);

#endif

}  // namespace cuda
}  // namespace rnnfast
