// Streams and graphs on the host, for tests/cuda_emulator.h. Work is done when it is put on a stream;
// or, if work waits, in an order that is drawn: that of each stream is kept, and launches of one graph
// follow on each other.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "tests/emulated_blocks.h"

namespace rnnfast {
namespace cuda {
namespace emulator {

inline bool captures = false;     // whether the caller captures the streams
inline bool work_waits = false;   // until `finish`
inline bool makes_graphs = true;  // false: making one is an error
inline int graphs_made = 0;
inline int graph_launches = 0;

struct Waiting {
    std::function<void()> run;
    int graph, launch;  // of the graph; -1: it is none of a graph's
    bool ends;          // the launch
};
inline std::map<Stream, std::deque<Waiting>> streams;
inline std::map<int, std::deque<int>> launches_of;  // by the graph: those that have not ended

// What is done one after the other, for a graph's launch or alone.
inline void put(Stream stream, const std::vector<std::function<void()>>& work, int graph = -1) {
    if (!work_waits) {
        for (const auto& run : work) run();
        return;
    }
    if (graph >= 0) launches_of[graph].push_back(graph_launches);
    for (size_t i = 0; i < work.size(); ++i)
        streams[stream].push_back({work[i], graph, graph_launches, i + 1 == work.size()});
}

// Does all that waits.
inline void finish() {
    for (;;) {
        std::vector<std::deque<Waiting>*> ready;
        for (auto& [stream, queue] : streams)
            if (!queue.empty() &&
                (queue.front().graph < 0 ||
                 launches_of[queue.front().graph].front() == queue.front().launch))
                ready.push_back(&queue);
        if (ready.empty()) break;
        std::deque<Waiting>& queue = *ready[order() % ready.size()];
        const Waiting next = queue.front();
        queue.pop_front();
        next.run();
        if (next.graph >= 0 && next.ends) launches_of[next.graph].pop_front();
    }
    for (const auto& [stream, queue] : streams)
        if (!queue.empty()) stop("streams wait for each other");
}

}  // namespace emulator

inline Error is_captured(Stream, bool* captured) {
    *captured = emulator::captures;
    return kFine;
}
template <class Args>
Error make_graph(Begin<Args>, Step step, const Grid& grid, int, Graph* graph) {
    if (!emulator::makes_graphs) return 1;
    *graph = {step, grid, emulator::graphs_made++};
    return kFine;
}
template <class Args>
Error launch_graph(const Graph& graph, Begin<Args> begin, Args args, int first, int place,
                   Stream stream) {
    if (emulator::captures) return 1;
    ++emulator::graph_launches;
    std::vector<std::function<void()>> work{
        [=] { emulator::run({1, 1, 0}, false, [=] { begin(args, first, place); }); }};
    for (int before = 0; before < kReplayed; ++before)
        work.push_back(
            [=] { emulator::run(graph.grid, false, [=] { graph.step(place, before); }); });
    emulator::put(stream, work, graph.id);
    return kFine;
}

}  // namespace cuda
}  // namespace rnnfast
