// What the equations of cells/ are made of, for the type that they are compiled with: vectors of an
// ISA, or with RNNFAST_SCALAR one float of a CUDA thread.
#pragma once

#if defined(RNNFAST_SCALAR)
#include "simd/scalar.h"
#else
#include "simd/pair.h"
#endif

namespace rnnfast {
namespace {

// From the value that the function gave: d sigmoid = s (1 - s), d tanh = 1 - t^2.
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
