// Sigmoid, tanh and fma of one float, in a CUDA thread, or on the host, where tests run the same
// code.
//
// CUDA's fast exponential and division are off by a few ULP. That is enough: the results are at
// most 1 and are compared with those of other implementations to 1e-5.
#pragma once

#include "core/args.h"

namespace rnnfast {
namespace {

#if defined(__CUDA_ARCH__)
RNNFAST_INLINE float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
RNNFAST_INLINE float exponential(float x) { return __expf(x); }
RNNFAST_INLINE float quotient(float a, float b) { return __fdividef(a, b); }
RNNFAST_INLINE float with_sign_of(float magnitude, float x) { return ::copysignf(magnitude, x); }
#else
RNNFAST_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
RNNFAST_INLINE float exponential(float x) { return __builtin_expf(x); }
RNNFAST_INLINE float quotient(float a, float b) { return a / b; }
RNNFAST_INLINE float with_sign_of(float magnitude, float x) {
    return __builtin_copysignf(magnitude, x);
}
#endif

// Returns x, or the limit if x is less; NaN stays NaN.
RNNFAST_INLINE float at_least(float limit, float x) { return x < limit ? limit : x; }

// The exponential is taken of -|x|: that of a large -x would be infinite, and CUDA's fast division
// by more than 2^126 need not give the right quotient.
RNNFAST_INLINE float sigmoid(float x) {
    const float e = exponential(x < 0 ? x : -x);
    return quotient(x < 0 ? e : 1.f, 1 + e);
}

RNNFAST_INLINE float tanh(float x) {
    const float e = exponential(x < 0 ? 2 * x : -2 * x);
    return with_sign_of(quotient(1 - e, 1 + e), x);
}

}  // namespace
}  // namespace rnnfast
