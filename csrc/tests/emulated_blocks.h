// Blocks of threads on the host, for tests/cuda_emulator.h: those of a launch take turns, in an order
// that is drawn anew each time, and change where they wait for others; now and then a block rests. So a
// barrier that is missing shows as a wrong result in some order, and one too many as a launch that
// does not end: in the end an error.
//
// What is pushed to another block arrives some rounds later, in any order, and only then counts.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {
namespace emulator {

// Where to go on, without the system's calls that contexts take.
using Place = void* [5];

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
    Place place;         // it goes on from
    bool started = false;
    std::unique_ptr<char[]> stack{new char[kStack]};
    Block* block;
    int thread;
    bool ended = false;
};

inline Fiber* running = nullptr;
inline Place scheduler;
inline int launched_blocks_x = 0;
inline std::function<void()>* body = nullptr;
inline std::mt19937 order(3);

constexpr int kMostRest = 50;          // rounds
constexpr long kMostRounds = 2000000;  // of a launch
constexpr long kRound = 1000000;       // ns
constexpr uint32_t kNan = 0x7fc07fc0;  // in both dtypes
constexpr Quad kNothing{{kNan, kNan, kNan, kNan}};

inline long rounds_run = 0;
inline std::vector<Pushed> pushed;

inline void stop(const char* why) {
    std::printf("FAILED %s\n", why);
    std::exit(1);
}

// The compiler is not to know what these leave of the registers: others have had them since.
#if defined(__clang__)
#define RNNFAST_APART [[gnu::noinline]]
#else
#define RNNFAST_APART [[gnu::noipa]]
#endif

RNNFAST_APART [[noreturn]] inline void go_to(Place& place) { __builtin_longjmp(place, 1); }

RNNFAST_APART inline void give_way() {
    if (__builtin_setjmp(running->place) == 0) go_to(scheduler);
}

// Until it gives way.
RNNFAST_APART inline void go_on(Fiber* fiber) {
    running = fiber;
    if (__builtin_setjmp(scheduler) != 0) return;
    if (running->started) go_to(running->place);
    running->started = true;
    setcontext(&running->context);
}

#undef RNNFAST_APART

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

}  // namespace emulator
}  // namespace cuda
}  // namespace rnnfast
