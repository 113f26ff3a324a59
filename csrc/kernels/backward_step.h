// One step of a backward pass, as a thread sees it.
#pragma once

#include "core/args.h"

namespace rnnfast {
namespace {

// Step t of `rows` places, the first of them `place` and the chunk's row `row`.
template <class T>
struct BackwardStep {
    ptrdiff_t t, row, place, rows, stride;
    const T* dy;  // the step's part of BackwardArgs::dy; null: zeros

    ptrdiff_t row_of(ptrdiff_t i) const { return row + i * stride; }
    ptrdiff_t place_of(ptrdiff_t i) const { return place + i * stride; }
    bool is_other() const { return t % 2 != 0; }  // of steps, every other one
};

// The vectors of h, of c and the gates, and of x that are a thread's own.
struct BackwardUnits {
    Shard h, blocks, x;
};

}  // namespace
}  // namespace rnnfast
