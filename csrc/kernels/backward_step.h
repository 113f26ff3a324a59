// One step of a backward pass, as a thread sees it.
#pragma once

#include "kernels/rows.h"

namespace rnnfast {
namespace {

// The places of a step that a thread has. The first of them is the chunk's row `row`.
template <class T>
struct BackwardStep : StepRows {
    ptrdiff_t row;
    const T* dy;  // where the step starts in BackwardArgs::dy; null: zeros

    ptrdiff_t row_of(ptrdiff_t i) const { return row + i * stride; }
    bool is_other() const { return t % 2 != 0; }  // true for every other step
};

// The vectors that are a thread's own: of h; of c and the gates (`blocks`); of x.
struct BackwardUnits {
    Shard h, blocks, x;
};

}  // namespace
}  // namespace rnnfast
