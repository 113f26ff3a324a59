// The device of cuda/device.h and cuda/launch.h on the host: the threads of all blocks of a launch
// take turns, in an order that is drawn anew each time, and change where they wait for others; now
// and then a block rests. So a barrier that is missing shows as a wrong result in some order, and
// one too many as a launch that does not end.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

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

struct Block {
    int x, y;
    Barrier all{kThreads};
    std::vector<Barrier> warps{kWarps, Barrier{32}};
    std::vector<Lanes> lanes{kWarps};
    std::vector<float> shared{};
};

struct Fiber {
    static constexpr size_t kStack = 64 << 10;
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Block* block;
    int thread;
    bool ended = false;
};

inline Fiber* running = nullptr;
inline ucontext_t scheduler;
inline int launched_blocks_x = 0;
inline std::function<void()>* body = nullptr;
inline std::mt19937 order(3);

constexpr int kMostRest = 50;  // rounds

inline int processors = 8;  // of the device; tests change it
inline int kept = 1 << 20;  // registers that a thread has for columns, at most
inline int launches = 0;    // of passes, not of `launch_each`

inline void give_way() { swapcontext(&running->context, &scheduler); }

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

// Runs `kernel` in all threads; shared memory starts as NaN.
inline void run(const Grid& grid, std::function<void()> kernel) {
    launched_blocks_x = grid.x;
    body = &kernel;
    std::vector<std::unique_ptr<Block>> blocks;
    std::vector<std::unique_ptr<Fiber>> fibers;
    for (int i = 0; i < grid.x * grid.y; ++i) {
        blocks.emplace_back(new Block{i % grid.x, i / grid.x});
        blocks.back()->shared.assign(size_t(grid.shared) / sizeof(float), float_of(0x7fc00000));
        for (int thread = 0; thread < kThreads; ++thread) {
            fibers.emplace_back(new Fiber);
            fibers.back()->block = blocks.back().get();
            fibers.back()->thread = thread;
            make_ready(fibers.back().get());
        }
    }
    const Block* late = nullptr;  // rests for some rounds, while the others run as far as they can
    for (int rounds = 0; !fibers.empty(); --rounds) {
        std::shuffle(fibers.begin(), fibers.end(), order);
        if (rounds <= 0) {
            late = late ? nullptr : fibers[0]->block;
            rounds = int(order() % kMostRest);
        }
        for (auto& fiber : fibers) {
            if (fiber->block == late) continue;
            running = fiber.get();
            swapcontext(&scheduler, &fiber->context);
        }
        fibers.erase(std::remove_if(fibers.begin(), fibers.end(),
                                    [](const auto& fiber) { return fiber->ended; }),
                     fibers.end());
    }
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
inline float* shared_floats() { return running->block->shared.data(); }
inline void add_released(uint32_t* counter) { ++*counter; }
inline uint32_t load_acquired(const uint32_t* counter) {
    emulator::give_way();
    return *counter;
}
inline uint64_t clock_ns() { return 0; }
inline void fail() {
    std::printf("FAILED a kernel waited too long\n");
    std::exit(1);
}

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
// Not together: in any order, so one after the other.
template <class Args>
Error launch(void (*kernel)(Args, int, int), Args args, int first, int last, const Grid& grid,
             bool together, Stream) {
    if (together && grid.x * grid.y > emulator::processors) return 1;
    ++emulator::launches;
    emulator::run(grid, [&] { kernel(args, first, last); });
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
    emulator::wait_at(running->block->warps[size_t(warp)]);
    for (int i = 0; i < 4; ++i) product(lanes, i, lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2);
    emulator::wait_at(running->block->warps[size_t(warp)]);
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
