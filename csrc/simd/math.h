// The exponential, sigmoid and tanh, for vectors of float and double.
//
// exp(x) = 2^n (1 + q) with n = round(x / ln 2) and q = expm1(r), r = x - n ln 2. A Taylor
// polynomial gives q for |r| <= ln(2)/2, within 0.1 ULP at the degrees below. NaN goes through: the
// comparisons keep it, and 2^n is a factor, rather than added to the exponent's bits.
// tests/test_activations.py holds sigmoid and tanh to 2 ULP in float32 and 4 in float64.
#pragma once

#include "simd/vec.h"

namespace rnnfast {
namespace {

template <class T>
struct ExpConstants;

template <>
struct ExpConstants<float> {
    using Ints = Ints32;
    static constexpr int kMantissa = 23;
    static constexpr int32_t kBias = 127;
    static constexpr float kLog2e = 1.44269504f;
    // ln 2 in two parts. The first has so few bits that its product with n is exact without fma.
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr float kRound = 12582912.f;                // 1.5 * 2^23
    static constexpr float kLowest = -87.0f, kHighest = 88.f;  // 2^n stays a normal number
    static constexpr int kTerms = 6;
    static constexpr float kSeries[kTerms] = {1.f / 5040, 1.f / 720, 1.f / 120,
                                              1.f / 24,   1.f / 6,   1.f / 2};
};

template <>
struct ExpConstants<double> {
    using Ints = Ints64;
    static constexpr int kMantissa = 52;
    static constexpr int64_t kBias = 1023;
    static constexpr double kLog2e = 1.4426950408889634;
    static constexpr double kLn2High = 6.93145751953125e-1, kLn2Low = 1.42860682030941723212e-6;
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr double kLowest = -708.0, kHighest = 709.0;
    static constexpr int kTerms = 12;
    static constexpr double kSeries[kTerms] = {
        1. / 6227020800, 1. / 479001600, 1. / 39916800, 1. / 3628800, 1. / 362880, 1. / 40320,
        1. / 5040,       1. / 720,       1. / 120,      1. / 24,      1. / 6,      1. / 2};
};

template <class V>
struct ElementOfVector;
template <>
struct ElementOfVector<Floats> {
    using T = float;
};
template <>
struct ElementOfVector<Doubles> {
    using T = double;
};
template <class V>
using ElementOf = typename ElementOfVector<V>::T;

// The functions below work on vectors and on pairs of vectors (simd/pair.h).

// Returns 2^n, given n + kRound.
template <class V>
RNNFAST_INLINE V power_of_two(V shifted) {
    using K = ExpConstants<ElementOf<V>>;
    return (V)(((typename K::Ints)shifted + K::kBias) << K::kMantissa);
}

// Returns |x| with the sign of `sign`.
template <class V>
RNNFAST_INLINE V with_sign_of(V x, V sign) {
    using I = typename ExpConstants<ElementOf<V>>::Ints;
    const I bit = (I)broadcast(ElementOf<V>(-0.0));
    return (V)(((I)x & ~bit) | ((I)sign & bit));
}

template <class V>
struct Exponential {
    V power;  // 2^n
    V q;      // expm1 of the remainder
};

template <class V>
RNNFAST_INLINE Exponential<V> exponential(V x) {
    using K = ExpConstants<ElementOf<V>>;
    x = at_most(V(broadcast(K::kHighest)), at_least(V(broadcast(K::kLowest)), x));
    const V shifted = fma(x, V(broadcast(K::kLog2e)), V(broadcast(K::kRound)));
    const V n = shifted - K::kRound;
    V r = fma(n, V(broadcast(-K::kLn2High)), x);
    r = fma(n, V(broadcast(-K::kLn2Low)), r);
    V p = broadcast(K::kSeries[0]);
#pragma GCC unroll 16
    for (int i = 1; i < K::kTerms; ++i) p = fma(p, r, V(broadcast(K::kSeries[i])));
    // q = r + r^2 p. The leading term is added last, so that only this rounding is large.
    return {power_of_two(shifted), fma(r * r, p, r)};
}

// 1 / (1 + exp(-x)), whose denominator is summed as (1 + 2^n q) + 2^n. In this order the result is
// at most 1.999 ULP off over every float32; as 1 + (2^n + 2^n q) it is 2.48 off, and as (1 + 2^n) +
// 2^n q it is 2.41.
template <class V>
RNNFAST_INLINE V sigmoid_of(V x) {
    using T = ElementOf<V>;
    const Exponential<V> e = exponential(-x);
    return T(1) / (fma(e.power, e.q, V(broadcast(T(1)))) + e.power);
}

// |tanh x| = (1 - e) / (1 + e) with e = exp(-2|x|) = 2^n (1 + q); the result then gets the sign of
// x. Each of the two sums is rounded once, since 1 - 2^n and 1 + 2^n are exact as long as 2^n is
// not below the last place of 1. Near 0, where n = 0, the numerator is -q itself.
template <class V>
RNNFAST_INLINE V tanh_of(V x) {
    using T = ElementOf<V>;
    const Exponential<V> e = exponential(with_sign_of(x, V(broadcast(T(1)))) * T(-2));
    const V t = fma(-e.power, e.q, T(1) - e.power) / fma(e.power, e.q, e.power + T(1));
    return with_sign_of(t, x);
}

RNNFAST_INLINE Floats sigmoid(Floats x) { return sigmoid_of(x); }
RNNFAST_INLINE Doubles sigmoid(Doubles x) { return sigmoid_of(x); }
RNNFAST_INLINE Floats tanh(Floats x) { return tanh_of(x); }
RNNFAST_INLINE Doubles tanh(Doubles x) { return tanh_of(x); }

}  // namespace
}  // namespace rnnfast
