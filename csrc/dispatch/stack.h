// Runs a stack of layers, each in one or two directions.
//
// Jobs stand layer by layer and, within a layer, direction by direction. They describe the whole
// pass before any of it runs: what one job writes and another reads is the same memory already.
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

// A layer's x is the y of the layer below, whose directions stand side by side in it. Layers l and
// l + 2 may write the same y: layer l + 2 writes a step only after layer l + 1 has read it.
template <class T>
void run_forward_stack(const ForwardJob<T>* jobs, int layers, int directions);

// A layer's dy is the dx of the layer above. A second direction has a dx of its own, dense like the
// first's and in the same order, which is added to the first's. Layers l and l + 2 may write the
// same dx, as above.
template <class T>
void run_backward_stack(const BackwardJob<T>* jobs, int layers, int directions);

}  // namespace rnnfast
