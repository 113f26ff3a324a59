// What the exchanges between blocks cost that a recurrence on a device may be made of, in ns each:
// grid.sync(), cluster.sync(), a ring of st.async within a cluster, and a counter in L2 on which
// a block of every processor waits. `python -m bench --device cuda` compiles and runs it.
//
// Each is the difference of two kernels, of which one does it twice as often, so that launches and
// warming up are left out; the least of some runs.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

namespace cg = cooperative_groups;

constexpr int kThreads = 256;
constexpr int kTimes = 2000;  // of an exchange, in the shorter kernel
constexpr int kRuns = 7;
constexpr uint64_t kPatience = 1u << 30;  // ns; then a wait ends in a trap

#define CHECK(call)                                                             \
    do {                                                                        \
        const cudaError_t error = (call);                                       \
        if (error != cudaSuccess) {                                             \
            std::fprintf(stderr, "%s: %s\n", #call, cudaGetErrorString(error)); \
            std::exit(1);                                                       \
        }                                                                       \
    } while (0)

__device__ uint64_t now_ns() {
    uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
}

// Calls `done` until it says yes.
template <class Done>
__device__ void wait_until(const Done& done) {
    const uint64_t start = now_ns();
    while (!done())
        if (now_ns() - start > kPatience) __trap();
}

__global__ void __launch_bounds__(kThreads) grid_syncs(int times, uint32_t*) {
    for (int i = 0; i < times; ++i) cg::this_grid().sync();
}

__global__ void __launch_bounds__(kThreads) l2_exchanges(int times, uint32_t* arrived) {
    for (int i = 1; i <= times; ++i) {
        __syncthreads();
        if (threadIdx.x == 0) {
            asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
            const uint32_t wanted = uint32_t(i) * gridDim.x;
            wait_until([&] {
                uint32_t seen;
                asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                             : "=r"(seen)
                             : "l"(arrived)
                             : "memory");
                return int32_t(seen - wanted) >= 0;
            });
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(kThreads) cluster_syncs(int times, uint32_t*) {
#if __CUDA_ARCH__ >= 900
    for (int i = 0; i < times; ++i) cg::this_cluster().sync();
#endif
}

#if __CUDA_ARCH__ >= 900
// The address, in the window of the cluster, of what lies at `own` in the shared memory of a block.
__device__ uint32_t address_in(uint32_t own, uint32_t block) {
    uint32_t there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(own), "r"(block));
    return there;
}

__device__ void expect_bytes(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
                 : "memory");
}

__device__ bool has_completed(uint32_t barrier, int parity) {
    uint32_t done;
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
    return done != 0;
}
#endif

// A word goes round the cluster; `times` counts how often it is pushed from a block to the next.
__global__ void __launch_bounds__(kThreads) ring(int times, uint32_t*) {
#if __CUDA_ARCH__ >= 900
    __shared__ uint64_t barrier, word;
    const uint32_t blocks = cg::this_cluster().num_blocks(), rank = cg::this_cluster().block_rank();
    const uint32_t own = uint32_t(__cvta_generic_to_shared(&barrier));
    const uint32_t place = uint32_t(__cvta_generic_to_shared(&word));
    const uint32_t next = (rank + 1) % blocks;
    const int laps = times / int(blocks);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(own) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        expect_bytes(own, sizeof word);
    }
    cg::this_cluster().sync();
    if (threadIdx.x == 0) {
        const uint32_t there = address_in(place, next), barrier_there = address_in(own, next);
        const auto push = [&](uint64_t value) {
            asm volatile(
                "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(
                    there),
                "l"(value), "r"(barrier_there)
                : "memory");
        };
        // The first block starts each lap, of which the last ends where it began.
        if (rank == 0) push(1);
        for (int lap = 0; lap < laps; ++lap) {
            const bool is_last = lap + 1 == laps;
            wait_until([&] { return has_completed(own, lap & 1); });
            if (!is_last) expect_bytes(own, sizeof word);
            if (!is_last || rank != 0) push(word + 1);
        }
    }
    cg::this_cluster().sync();  // no block's memory goes while another may write to it
#endif
}

using Kernel = void (*)(int, uint32_t*);

// Milliseconds of one launch. cluster: blocks in one; 0: all blocks of the grid run at once.
float milliseconds(Kernel kernel, int blocks, int cluster, int times, uint32_t* counter) {
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    CHECK(cudaMemset(counter, 0, sizeof *counter));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(unsigned(blocks));
    config.blockDim = dim3(kThreads);
    cudaLaunchAttribute attribute{};
    if (cluster) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = unsigned(cluster);
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    } else {
        attribute.id = cudaLaunchAttributeCooperative;
        attribute.val.cooperative = 1;
    }
    config.attrs = &attribute;
    config.numAttrs = 1;
    CHECK(cudaEventRecord(start));
    CHECK(cudaLaunchKernelEx(&config, kernel, times, counter));
    CHECK(cudaEventRecord(stop));
    CHECK(cudaEventSynchronize(stop));
    float took = 0;
    CHECK(cudaEventElapsedTime(&took, start, stop));
    CHECK(cudaEventDestroy(start));
    CHECK(cudaEventDestroy(stop));
    return took;
}

double nanoseconds(Kernel kernel, int blocks, int cluster, uint32_t* counter) {
    float once = 1e30f, twice = 1e30f;
    for (int run = 0; run < kRuns; ++run) {
        const float a = milliseconds(kernel, blocks, cluster, kTimes, counter);
        const float b = milliseconds(kernel, blocks, cluster, 2 * kTimes, counter);
        once = a < once ? a : once;
        twice = b < twice ? b : twice;
    }
    return 1e6 * double(twice - once) / kTimes;
}

// The largest cluster of 16 blocks or fewer that the device runs.
int largest_cluster() {
    const Kernel kernels[] = {cluster_syncs, ring};
    for (const Kernel kernel : kernels)
        CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    cudaLaunchConfig_t config{};
    config.blockDim = dim3(kThreads);
    config.gridDim = dim3(16);
    int size = 0;
    CHECK(cudaOccupancyMaxPotentialClusterSize(&size, ring, &config));
    return size < 16 ? size : 16;
}

int main() {
    int device = 0, processors = 0, major = 0;
    CHECK(cudaGetDevice(&device));
    CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    CHECK(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    uint32_t* counter = nullptr;
    CHECK(cudaMalloc(&counter, sizeof *counter));
    std::printf("{\"processors\": %d, \"grid_sync\": %.1f, \"l2_exchange\": %.1f", processors,
                nanoseconds(grid_syncs, processors, 0, counter),
                nanoseconds(l2_exchanges, processors, 0, counter));
    if (major >= 9) {
        const int blocks = largest_cluster();
        std::printf(", \"cluster\": %d, \"cluster_sync\": %.1f, \"ring\": %.1f", blocks,
                    nanoseconds(cluster_syncs, blocks, blocks, counter),
                    nanoseconds(ring, blocks, blocks, counter));
    }
    std::printf("}\n");
    CHECK(cudaFree(counter));
    return 0;
}
