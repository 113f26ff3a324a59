// The device of cuda/device.h and cuda/launch.h on the host: the threads of all blocks of a launch
// take turns, in an order that is drawn anew each time, and change where they wait for others; now
// and then a block rests. So a barrier that is missing shows as a wrong result in some order, and
// one too many as a launch that does not end: in the end an error.
//
// What is pushed to another block arrives some rounds later, in any order, and only then counts.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cuda/cluster.h"
#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {
namespace emulator {

// What the lanes of a warp bring to an instruction.
struct Lanes {
    uint32_t a[32][4], b[32][2];
};

// Where `size` threads wait for each other.
struct Barrier {
    int size, waiting = 0;
    long generation = 0;
};

// The blocks of one y, if they are a cluster.
struct Cluster {
    Barrier all;
    std::vector<struct Block*> blocks{};
};

struct Block {
    int x, y;
    Cluster* cluster;
    Barrier all{kThreads};
    std::vector<Barrier> warps{kWarps, Barrier{32}};
    std::vector<Lanes> lanes{kWarps};
    std::vector<Quad> shared{};
    int ended = 0;  // threads

    char* bytes() { return reinterpret_cast<char*>(shared.data()); }
    size_t size() const { return (shared.size() - 1) * sizeof(Quad); }
};

// A ByteBarrier as this device has it.
struct Counting {
    int32_t bytes;     // that are expected, less those that have arrived
    uint16_t missing;  // calls of `expect_bytes`
    uint16_t phase;

    void end_phase() {
        if (bytes == 0 && missing == 0) missing = 1, ++phase;
    }
};

// On its way to another block.
struct Pushed {
    Block *from, *to;
    Quad quad;
    size_t at, barrier;  // bytes into shared memory
};

struct Fiber {
    static constexpr size_t kStack = 64 << 10;
    ucontext_t context;  // it starts from
    jmp_buf place;       // it goes on from, without the system's calls that contexts take
    bool started = false;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Block* block;
    int thread;
    bool ended = false;
};

inline Fiber* running = nullptr;
inline jmp_buf scheduler;
inline int launched_blocks_x = 0;
inline std::function<void()>* body = nullptr;
inline std::mt19937 order(3);

constexpr int kMostRest = 50;          // rounds
constexpr long kMostRounds = 2000000;  // of a launch
constexpr long kRound = 1000000;       // ns
constexpr uint32_t kNan = 0x7fc07fc0;  // in both dtypes
constexpr Quad kNothing{{kNan, kNan, kNan, kNan}};

inline int processors = 8;        // of the device; tests change it
inline int kept = 1 << 20;        // registers that a thread has for columns, at most
inline int launches = 0;          // of passes, not of `launch_each`
inline int cluster_launches = 0;  // of these, those of clusters
inline int cluster_blocks = 0;    // that a cluster may have; 0: the device has none
inline int clusters_at_once = 1;

inline long rounds_run = 0;
inline std::vector<Pushed> pushed;

inline void stop(const char* why) {
    std::printf("FAILED %s\n", why);
    std::exit(1);
}

inline void give_way() {
    if (_setjmp(running->place) == 0) _longjmp(scheduler, 1);
}

// Until it gives way.
[[gnu::noinline]] inline void go_on(Fiber* fiber) {
    running = fiber;
    if (_setjmp(scheduler) != 0) return;
    if (running->started) _longjmp(running->place, 1);
    running->started = true;
    setcontext(&running->context);
}

inline void wait_at(Barrier& barrier) {
    const long own = barrier.generation;
    if (++barrier.waiting == barrier.size) {
        barrier.waiting = 0;
        ++barrier.generation;
    }
    while (barrier.generation == own) give_way();
}

inline void enter() {
    (*body)();
    running->ended = true;
    give_way();
}

inline void make_ready(Fiber* fiber) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = Fiber::kStack;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, enter, 0);
}

// Calls `change` with a barrier of a block's shared memory.
template <class Change>
void at_barrier(Block& block, size_t at, const Change& change) {
    if (at % sizeof(Counting) || at + sizeof(Counting) > block.size())
        stop("a barrier is not in shared memory");
    Counting counting;
    std::memcpy(&counting, block.bytes() + at, sizeof counting);
    change(counting);
    std::memcpy(block.bytes() + at, &counting, sizeof counting);
}

// Some of what was pushed.
inline void deliver() {
    std::shuffle(pushed.begin(), pushed.end(), order);
    for (const Pushed& p : pushed)
        if (p.from->ended == kThreads || p.to->ended == kThreads)
            stop("a block has left before all that it or others had pushed arrived");
    const size_t stay = pushed.empty() ? 0 : order() % (pushed.size() + 1);
    for (; pushed.size() > stay; pushed.pop_back()) {
        const Pushed& p = pushed.back();
        std::memcpy(p.to->bytes() + p.at, &p.quad, sizeof p.quad);
        at_barrier(*p.to, p.barrier, [](Counting& counting) {
            counting.bytes -= int32_t(sizeof(Quad));
            counting.end_phase();
        });
    }
}

// Runs `kernel` in all threads; shared memory starts as NaN, and some lies behind it.
inline void run(const Grid& grid, bool clustered, std::function<void()> kernel) {
    launched_blocks_x = grid.x;
    body = &kernel;
    rounds_run = 0;
    std::vector<Cluster> clusters(size_t(grid.y), Cluster{Barrier{grid.x * kThreads}});
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (int i = 0; i < grid.x * grid.y; ++i) {
        Cluster* const cluster = clustered ? &clusters[size_t(i / grid.x)] : nullptr;
        blocks.emplace_back(new Block{i % grid.x, i / grid.x, cluster});
        if (clustered) cluster->blocks.push_back(blocks.back().get());
        blocks.back()->shared.assign(size_t(grid.shared) / sizeof(Quad) + 1, kNothing);
        for (int thread = 0; thread < kThreads; ++thread) {
            fibers.emplace_back(new Fiber);
            fibers.back()->block = blocks.back().get();
            fibers.back()->thread = thread;
            make_ready(fibers.back().get());
        }
    }
    const Block* late = nullptr;  // rests for some rounds, while the others run as far as they can
    for (int rounds = 0; !fibers.empty(); --rounds) {
        if (++rounds_run > kMostRounds) stop("a launch does not end");
        deliver();
        std::shuffle(fibers.begin(), fibers.end(), order);
        if (rounds <= 0) {
            late = late ? nullptr : fibers[0]->block;
            rounds = int(order() % kMostRest);
        }
        for (auto& fiber : fibers) {
            if (fiber->block == late) continue;
            go_on(fiber.get());
            if (fiber->ended) ++fiber->block->ended;
        }
        fibers.erase(std::remove_if(fibers.begin(), fibers.end(),
                                    [](const auto& fiber) { return fiber->ended; }),
                     fibers.end());
    }
    if (!pushed.empty()) stop("all blocks have left, and what was pushed has not arrived");
    for (const auto& block : blocks)
        if (std::memcmp(&block->shared.back(), &kNothing, sizeof kNothing) != 0)
            stop("past the end of shared memory");
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
inline Error count_processors(int* count) {
    *count = emulator::processors;
    return kFine;
}
template <class Args>
Error prepare(void (*)(Args, int, int), int, int* blocks) {
    *blocks = 1;
    return kFine;
}
template <class Args>
Error prepare_clusters(void (*kernel)(Args, int, int), int blocks, int, int* clusters) {
    *clusters = kernel && blocks <= emulator::cluster_blocks ? emulator::clusters_at_once : 0;
    return kFine;
}
// Not together: in any order, so one after the other.
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             Meeting meeting, Stream) {
    const bool clustered = meeting == Meeting::kCluster;
    if (meeting == Meeting::kAll && grid.x * grid.y > emulator::processors) return 1;
    if (clustered && grid.x > emulator::cluster_blocks) return 1;
    ++emulator::launches;
    emulator::cluster_launches += clustered;
    emulator::run(grid, clustered, [&] { kernel(args, first, last); });
    return kFine;
}
template <class Task>
Error launch_each(const Task& task, Stream) {
    for (size_t i = 0; i < task.count(); ++i) task.run(i);
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
// 2q, 2q + 1 and those 8 further on, and of b the column r at the same k.
inline void mma(float* sums, const uint32_t* a, const uint32_t* b, Bfloat16) {
    of_warp(a, b, [&](const emulator::Lanes& lanes, int i, int row, int column) {
        for (int k = 0; k < 16; ++k) {
            const int quad = k % 8 / 2;
            const uint32_t left = lanes.a[row % 8 * 4 + quad][row / 8 + k / 8 * 2];
            const uint32_t right = lanes.b[column * 4 + quad][k / 8];
            sums[i] += emulator::element(left, k % 2) * emulator::element(right, k % 2);
        }
    });
}
// "mma.m16n8k8", tf32: the rows r and r + 8 at k = q and 4 further on.
inline void mma(float* sums, const uint32_t* a, const uint32_t* b, float) {
    of_warp(a, b, [&](const emulator::Lanes& lanes, int i, int row, int column) {
        for (int k = 0; k < 8; ++k) {
            const uint32_t left = lanes.a[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2];
            const uint32_t right = lanes.b[column * 4 + k % 4][k / 4];
            sums[i] += float_of(left & 0xffffe000u) * float_of(right & 0xffffe000u);
        }
    });
}

}  // namespace cuda
}  // namespace rnnfast
