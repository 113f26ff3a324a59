// The functions that the equations in cells/ use. They are compiled for vectors of an ISA or, with
// RNNFAST_SCALAR, for one float of a CUDA thread.
#pragma once

#if defined(RNNFAST_SCALAR)
#include "simd/scalar.h"
#else
#include "simd/pair.h"
#endif

namespace rnnfast {
namespace {

// Derivatives, computed from the value of the function: d sigmoid = s (1 - s), d tanh = 1 - t^2.
template <class V>
RNNFAST_INLINE V dsigmoid(V s) {
    return s * (1 - s);
}
template <class V>
RNNFAST_INLINE V dtanh(V t) {
    return 1 - t * t;
}

}  // namespace
}  // namespace rnnfast
