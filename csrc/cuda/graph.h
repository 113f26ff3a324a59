// CUDA graphs: kernels one after the other, put together once, that are launched as one. Without nvcc,
// functions of an emulator, as in device.h.
#pragma once

#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {

constexpr int kReplayed = 32;  // steps of a graph

// The first kernel of a graph gets a pass's arguments, the first step, and the graph's place; the
// others the place, and how many steps come before theirs.
template <class Args>
using Begin = void (*)(Args, int, int);
using Step = void (*)(int, int);

#if defined(__CUDACC__)

// Never destroyed: launches may be on their way when the process ends.
struct Graph {
    cudaGraph_t made_of;
    cudaGraphNode_t begin;
    cudaGraphExec_t ready;
};

// Whether what is put on the stream goes into a graph of the caller's.
inline Error is_captured(Stream stream, bool* captured) {
    cudaStreamCaptureStatus status;
    const Error error = cudaStreamIsCapturing(stream, &status);
    if (error == kFine) *captured = status != cudaStreamCaptureStatusNone;
    return error;
}

inline cudaKernelNodeParams node_of(const void* kernel, const Grid& grid, void** arguments) {
    cudaKernelNodeParams node{};
    node.func = const_cast<void*>(kernel);
    node.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
    node.blockDim = dim3(kThreads);
    node.sharedMemBytes = unsigned(grid.shared);
    node.kernelParams = arguments;  // which are copied
    return node;
}
template <class Args>
cudaKernelNodeParams node_of(Begin<Args> begin, void** arguments) {
    return node_of(reinterpret_cast<const void*>(begin), {1, 1, 0}, arguments);
}

// Nodes of `made_of`, and what is `ready` of them.
template <class Args>
Error fill(Begin<Args> begin, Step step, const Grid& grid, int place, Graph* graph) {
    Args args{};
    int first = 0;
    void* arguments[] = {&args, &first, &place};
    const cudaKernelNodeParams node = node_of(begin, arguments);
    Error error = cudaGraphAddKernelNode(&graph->begin, graph->made_of, nullptr, 0, &node);
    cudaGraphNode_t last = graph->begin;
    for (int before = 0; before < kReplayed && error == kFine; ++before) {
        void* of_step[] = {&place, &before};
        const cudaKernelNodeParams next =
            node_of(reinterpret_cast<const void*>(step), grid, of_step);
        const cudaGraphNode_t after = last;
        error = cudaGraphAddKernelNode(&last, graph->made_of, &after, 1, &next);
    }
    return error == kFine ? cudaGraphInstantiate(&graph->ready, graph->made_of, 0) : error;
}

// `step` has been prepared.
template <class Args>
Error make_graph(Begin<Args> begin, Step step, const Grid& grid, int place, Graph* graph) {
    // What making one asks for is not to end a capture that this thread or another has begun.
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    Error error = cudaThreadExchangeStreamCaptureMode(&mode);
    if (error != kFine) return error;
    *graph = {};
    error = cudaGraphCreate(&graph->made_of, 0);
    if (error == kFine) error = fill(begin, step, grid, place, graph);
    const Error back = cudaThreadExchangeStreamCaptureMode(&mode);
    if (error == kFine) error = back;
    if (error == kFine) return error;
    if (graph->ready) (void)cudaGraphExecDestroy(graph->ready);
    if (graph->made_of) (void)cudaGraphDestroy(graph->made_of);
    return error;
}

// Launches of the graph before this one keep their arguments, and end before it begins.
template <class Args>
Error launch_graph(const Graph& graph, Begin<Args> begin, Args args, int first, int place,
                   Stream stream) {
    void* arguments[] = {&args, &first, &place};
    const cudaKernelNodeParams node = node_of(begin, arguments);
    const Error error = cudaGraphExecKernelNodeSetParams(graph.ready, graph.begin, &node);
    return error == kFine ? cudaGraphLaunch(graph.ready, stream) : error;
}

#else

struct Graph {
    Step step;
    Grid grid;
    int id;
};
Error is_captured(Stream stream, bool* captured);
template <class Args>
Error make_graph(Begin<Args> begin, Step step, const Grid& grid, int place, Graph* graph);
template <class Args>
Error launch_graph(const Graph& graph, Begin<Args> begin, Args args, int first, int place,
                   Stream stream);

#endif

}  // namespace cuda
}  // namespace rnnfast
