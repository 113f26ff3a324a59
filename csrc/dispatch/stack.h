// Runs a stack of layers, each in one or two directions.
//
// Jobs are in the order of layers and, within a layer, of directions. They describe the whole pass before
// any of it runs: if one job reads what another one writes, both already point to the same memory.
#pragma once

#include "dispatch/run.h"

namespace rnnfast {

template <class T>
struct ForwardJob {
    const PackedWeights<T>* weights;
    ForwardArgs<T> args;  // as for run_forward
    const RowPlan* plan;
};

template <class T>
struct BackwardJob {
    const PackedWeights<T>* weights;
    ForwardArgs<T> args;  // as for run_backward
    BackwardArgs<T> grads;
    const RowPlan* plan;
};

// A layer's x is the y of the layer below, in which the directions lie side by side. Layers l and l + 2 may
// write to the same y: layer l + 2 writes a step only after layer l + 1 has read it.
template <class T>
void run_forward_stack(const ForwardJob<T>* jobs, int layers, int directions);

// A layer's dy is the dx of the layer above. The second direction has a dx of its own, dense and in the same
// order as the first direction's, and is added to that one. Layers l and l + 2 may write to the same dx,
// as above.
template <class T>
void run_backward_stack(const BackwardJob<T>* jobs, int layers, int directions);

}  // namespace rnnfast
