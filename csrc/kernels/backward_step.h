// One step of a backward pass, as a thread sees it.
#pragma once

#include "kernels/rows.h"

namespace rnnfast {
namespace {

// The places of a step, the first of them the chunk's row `row`.
template <class T>
struct BackwardStep : StepRows {
    ptrdiff_t row;
    const T* dy;  // the step's part of BackwardArgs::dy; null: zeros

    ptrdiff_t row_of(ptrdiff_t i) const { return row + i * stride; }
    bool is_other() const { return t % 2 != 0; }  // of steps, every other one
};

// The vectors of h, of c and the gates, and of x that are a thread's own.
struct BackwardUnits {
    Shard h, blocks, x;
};

}  // namespace
}  // namespace rnnfast
