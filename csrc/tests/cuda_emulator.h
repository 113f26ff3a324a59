// The device of cuda/device.h, cuda/cluster.h and cuda/launch.h on the host.
#pragma once

#include <cmath>

#include "cuda/graph.h"
#include "tests/emulated_streams.h"

namespace rnnfast {
namespace cuda {
namespace emulator {

inline int device = 0;            // the current one
inline bool has_code = true;      // whether there are kernels for it
inline int questions = 0;         // that it was asked
inline int processors = 8;        // that it has
inline int on_each = 1;           // blocks of a grid that each runs at once
inline int shared = 227 << 10;    // bytes that a block may have
inline int kept = 1 << 20;        // registers that a thread has for columns, at most
inline int launches = 0;          // of passes, not of `launch_each` or graphs
inline int cluster_launches = 0;  // of these, those of clusters
inline int cluster_blocks = 0;    // that a cluster may have; 0: the device has none
inline int clusters_at_once = 1;

// Makes a new device the current one: what one has said stays true of it.
inline void use(int its_processors, int its_cluster_blocks = 0, int its_clusters = 1) {
    static int used = 0;
    device = ++used;
    processors = its_processors;
    cluster_blocks = its_cluster_blocks, clusters_at_once = its_clusters;
}

// Towards zero, as the tensor cores round what they add.
inline float towards_zero(double sum) {
    const float nearest = float(sum);
    const bool beyond = std::isfinite(nearest) && std::fabs(double(nearest)) > std::fabs(sum);
    return beyond ? float_of(bits_of(nearest) - 1) : nearest;
}

// One of the two numbers in a word.
inline float element(uint32_t word, int half) { return float_of((word >> (16 * half)) << 16); }

}  // namespace emulator

using emulator::running;

inline int thread() { return running->thread; }
inline int block_x() { return running->block->x; }
inline int block_y() { return running->block->y; }
inline int blocks_x() { return emulator::launched_blocks_x; }
inline void meet() { emulator::wait_at(running->block->all); }
inline void meet_warp() { emulator::wait_at(running->block->warps[size_t(thread() / 32)]); }
inline float* shared_floats() { return reinterpret_cast<float*>(running->block->bytes()); }
inline void add_released(uint32_t* counter) { ++*counter; }
inline uint32_t load_acquired(const uint32_t* counter) {
    emulator::give_way();
    return *counter;
}
inline uint64_t clock_ns() { return uint64_t(emulator::rounds_run * emulator::kRound); }
inline void fail() { emulator::stop("a kernel waited too long"); }

// Bytes into shared memory.
inline size_t place(const void* p) {
    const auto bytes = reinterpret_cast<const char*>(p) - running->block->bytes();
    if (bytes < 0 || size_t(bytes) + 8 > running->block->size())
        emulator::stop("not in the block's shared memory");
    return size_t(bytes);
}
inline void start_counting(ByteBarrier* barrier) {
    emulator::at_barrier(*running->block, place(barrier),
                         [](emulator::Counting& counting) { counting = {0, 1, 0}; });
}
inline void expect_bytes(ByteBarrier* barrier, size_t bytes) {
    emulator::at_barrier(*running->block, place(barrier), [&](emulator::Counting& counting) {
        counting.bytes += int32_t(bytes);
        if (counting.missing-- != 1) emulator::stop("bytes are expected twice in a phase");
        counting.end_phase();
    });
}
inline bool has_arrived(const ByteBarrier* barrier, uint32_t parity) {
    bool result = false;
    emulator::give_way();
    emulator::at_barrier(*running->block, place(barrier), [&](const emulator::Counting& counting) {
        result = counting.phase % 2 != parity;
    });
    return result;
}
inline void push(const Quad& quad, Quad* to, ByteBarrier* barrier, int peer) {
    emulator::Block* const own = running->block;
    if (peer < 0 || size_t(peer) >= own->cluster->blocks.size() || place(to) % sizeof(Quad))
        emulator::stop("nothing can be pushed there");
    emulator::Block* const other = own->cluster->blocks[size_t(peer)];
    emulator::pushed.push_back({own, other, quad, place(to), place(barrier)});
}
inline void meet_cluster() { emulator::wait_at(running->block->cluster->all); }

inline int most_kept(int registers) { return std::min(registers, emulator::kept); }
inline Error count_devices(int* count) {
    *count = 1;
    return kFine;
}
inline Error find_device(int* device) {
    *device = emulator::device;
    return kFine;
}
template <class Kernel>
Error find_code(Kernel*) {
    return emulator::has_code ? kFine : 1;
}
namespace asked {

inline Error count_processors(int* count) {
    ++emulator::questions;
    *count = emulator::processors;
    return kFine;
}
inline Error most_shared(int* bytes) {
    ++emulator::questions;
    *bytes = emulator::shared;
    return kFine;
}
template <class Kernel>
Error prepare(Kernel*, int shared, int* blocks) {
    ++emulator::questions;
    *blocks = emulator::has_code && shared <= emulator::shared ? emulator::on_each : 0;
    return emulator::has_code ? kFine : 1;
}
template <class Kernel>
Error prepare_clusters(Kernel* kernel, int blocks, int, int* clusters) {
    ++emulator::questions;
    const bool fits = emulator::has_code && kernel && blocks <= emulator::cluster_blocks;
    *clusters = fits ? emulator::clusters_at_once : 0;
    return emulator::has_code ? kFine : 1;
}

}  // namespace asked
// Not together: in any order, so one after the other.
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             Meeting meeting, Stream stream) {
    const bool clustered = meeting == Meeting::kCluster;
    const int at_once = emulator::on_each * emulator::processors;
    if (meeting == Meeting::kAll && grid.x * grid.y > at_once) return 1;
    if (clustered && grid.x > emulator::cluster_blocks) return 1;
    if (grid.shared > emulator::shared) return 1;
    ++emulator::launches;
    emulator::cluster_launches += clustered;
    emulator::put(stream,
                  {[=] { emulator::run(grid, clustered, [=] { kernel(args, first, last); }); }});
    return kFine;
}
template <class Task>
Error launch_each(const Task& task, Stream stream) {
    emulator::put(stream, {[=] {
                      for (size_t i = 0; i < task.count(); ++i) task.run(i);
                  }});
    return kFine;
}

// The lanes' operands, read when all have come.
template <class Product>
void of_warp(const uint32_t* a, const uint32_t* b, const Product& product) {
    const int warp = thread() / 32, lane = thread() % 32;
    auto& lanes = running->block->lanes[size_t(warp)];
    std::copy(a, a + 4, lanes.a[lane]);
    std::copy(b, b + 2, lanes.b[lane]);
    meet_warp();
    for (int i = 0; i < 4; ++i) product(lanes, i, lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
    meet_warp();
}

// PTX ISA, "Matrix fragments for mma.m16n8k16": lane 4r + q holds of a the rows r and r + 8 at k =
// 2q, 2q + 1 and those 8 further on, and of b the column r at the same k. Each half of k is one sum.
inline void mma(float* sums, const uint32_t* a, const uint32_t* b, Bfloat16) {
    of_warp(a, b, [&](const emulator::Lanes& lanes, int i, int row, int column) {
        for (int half = 0; half < 2; ++half) {
            double sum = sums[i];
            for (int k = 0; k < 8; ++k) {
                const uint32_t left = lanes.a[row % 8 * 4 + k / 2][row / 8 + half * 2];
                const uint32_t right = lanes.b[column * 4 + k / 2][half];
                sum += double(emulator::element(left, k % 2)) * emulator::element(right, k % 2);
            }
            sums[i] = emulator::towards_zero(sum);
        }
    });
}
// "mma.m16n8k8", tf32: the rows r and r + 8 at k = q and 4 further on.
inline void mma(float* sums, const uint32_t* a, const uint32_t* b, float) {
    of_warp(a, b, [&](const emulator::Lanes& lanes, int i, int row, int column) {
        for (int half = 0; half < 2; ++half) {
            double sum = sums[i];
            for (int k = 0; k < 4; ++k) {
                const uint32_t left = lanes.a[row % 8 * 4 + k][row / 8 + half * 2];
                const uint32_t right = lanes.b[column * 4 + k][half];
                sum += double(float_of(left & 0xffffe000u)) * float_of(right & 0xffffe000u);
            }
            sums[i] = emulator::towards_zero(sum);
        }
    });
}

}  // namespace cuda
}  // namespace rnnfast
