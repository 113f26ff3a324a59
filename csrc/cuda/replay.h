// Steps whose blocks do not wait for each other, many launches at a time: graphs of kReplayed steps,
// which are made once and launched again for other passes.
//
// All that a graph's kernels are launched with stays the same, but what the first one gets: the
// arguments of a pass, which it leaves in the graph's place, in memory of the device, for the others.
// A graph's launches run one after the other, whatever their streams, so that a place has the pass
// that is running.
#pragma once

#include <mutex>

#include "cuda/backward.h"
#include "cuda/facts.h"
#include "cuda/forward.h"
#include "cuda/graph.h"

namespace rnnfast {
namespace cuda {

constexpr int kMostGraphs = 64;  // of a process, which keeps them; further passes go without

struct alignas(16) Place {
    char bytes[256];
};
#if defined(__CUDACC__)
__device__ static Place places[kMostGraphs];  // of each device
#else
inline Place places[kMostGraphs];
#endif

// What lies in a place.
template <class Args>
struct Passing {
    Args args;
    int first;  // step of this launch

    RNNFAST_DEVICE static Passing* at(int place) {
        static_assert(sizeof(Passing) <= sizeof(Place));
        return reinterpret_cast<Passing*>(places[place].bytes);
    }
};

template <class Args>
RNNFAST_KERNEL(kThreads)
begin_steps(const Args args, int first, int place) {
    if (thread() == 0) *Passing<Args>::at(place) = {args, first};
}

// In blocks of 8 units. The columns are read once in a launch, so none are kept.
template <class Cell, class Args, class T>
RNNFAST_KERNEL(kThreads)
run_step(int place, int before) {
    const Passing<Args> own = *Passing<Args>::at(place);
    const int step = own.first + before;
    if constexpr (Args::kBackward)
        run_backward<Cell, T, 1, 1, ThroughMemory<T>>(own.args, step, step + 1);
    else
        run_forward<Cell, T, 1, 1, ThroughMemory<T>>(own.args, step, step + 1);
}

// A stream has graphs of its own: no pass waits for one of another stream.
struct KnownGraph {
    int device;
    Stream stream;
    Step step;
    Grid grid;
    Graph graph;

    bool is_for(int other_device, Stream other_stream, Step other_step, const Grid& other) const {
        return device == other_device && stream == other_stream && step == other_step &&
               grid.x == other.x && grid.y == other.y && grid.shared == other.shared;
    }
};
struct KnownGraphs {
    std::mutex mutex;  // held by whoever looks for one, makes one, or launches one
    int count = 0;     // the place of the next
    KnownGraph known[kMostGraphs];
};
inline KnownGraphs graphs;

// Puts as many of the steps on the stream as graphs have: `done`. None where the caller captures the
// stream, since they go into the caller's graph, which may run at the same time as passes here.
template <class Cell, class Args, class T>
Error replay(Args args, const Grid& grid, int steps, Stream stream, int* done) {
    *done = 0;
    args.work.kept = {};
    if (steps < kReplayed) return kFine;
    bool captured = false;
    int device = 0, on_each = 0;
    Error error = is_captured(stream, &captured);
    if (error != kFine || captured) return error;
    error = find_device(&device);
    if (error != kFine) return error;

    const Step step = run_step<Cell, Args, T>;
    const Begin<Args> begin = begin_steps<Args>;
    const std::lock_guard<std::mutex> lock(graphs.mutex);
    int place = 0;
    while (place < graphs.count && !graphs.known[place].is_for(device, stream, step, grid)) ++place;
    if (place == kMostGraphs) return kFine;
    if (place == graphs.count) {
        Graph made;
        error = prepare(step, grid.shared, &on_each);
        if (error == kFine) error = make_graph(begin, step, grid, place, &made);
        if (error != kFine) return error;
        graphs.known[graphs.count++] = {device, stream, step, grid, made};
    }
    for (; *done + kReplayed <= steps; *done += kReplayed) {
        error = launch_graph(graphs.known[place].graph, begin, args, *done, place, stream);
        if (error != kFine) return error;
    }
    return kFine;
}

}  // namespace cuda
}  // namespace rnnfast
