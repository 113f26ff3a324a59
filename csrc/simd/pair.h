// Two vectors that go through the same equations side by side. Each operation of an exponential
// waits for the one before it. Two such chains at a time use more of what the processor can do than
// one after the other: its window for waiting instructions is too short to find both by itself.
#pragma once

#include "simd/math.h"

namespace rnnfast {
namespace {

// A pair of vectors of float or double. A function that takes a pair also takes a vector or a
// number, which then stands for both halves.
template <class V>
struct Pair {
    using T = ElementOf<V>;

    V first, second;

    Pair() = default;
    RNNFAST_INLINE Pair(V a, V b) : first(a), second(b) {}
    RNNFAST_INLINE Pair(V both) : first(both), second(both) {}
    RNNFAST_INLINE Pair(T both) : Pair(broadcast(both)) {}

    RNNFAST_INLINE Pair operator-() const { return {-first, -second}; }
    RNNFAST_INLINE friend Pair operator+(Pair a, Pair b) {
        return {a.first + b.first, a.second + b.second};
    }
    RNNFAST_INLINE friend Pair operator-(Pair a, Pair b) {
        return {a.first - b.first, a.second - b.second};
    }
    RNNFAST_INLINE friend Pair operator*(Pair a, Pair b) {
        return {a.first * b.first, a.second * b.second};
    }
    RNNFAST_INLINE friend Pair operator/(Pair a, Pair b) {
        return {a.first / b.first, a.second / b.second};
    }
    RNNFAST_INLINE friend Pair fma(Pair a, Pair b, Pair c) {
        return {fma(a.first, b.first, c.first), fma(a.second, b.second, c.second)};
    }
    RNNFAST_INLINE friend Pair at_least(Pair limit, Pair x) {
        return {at_least(limit.first, x.first), at_least(limit.second, x.second)};
    }
    RNNFAST_INLINE friend Pair at_most(Pair limit, Pair x) {
        return {at_most(limit.first, x.first), at_most(limit.second, x.second)};
    }
    RNNFAST_INLINE friend Pair power_of_two(Pair shifted) {
        return {power_of_two(shifted.first), power_of_two(shifted.second)};
    }
    RNNFAST_INLINE friend Pair with_sign_of(Pair x, Pair sign) {
        return {with_sign_of(x.first, sign.first), with_sign_of(x.second, sign.second)};
    }
    RNNFAST_INLINE friend Pair sigmoid(Pair x) { return sigmoid_of(x); }
    RNNFAST_INLINE friend Pair tanh(Pair x) { return tanh_of(x); }
};

template <class V>
struct ElementOfVector<Pair<V>> {
    using T = ElementOf<V>;
};

// load_rows loads a vector from p or, for a pair, one from p and one from p + step. store_rows
// stores them in the same way.
template <class V, class T>
RNNFAST_INLINE V load_rows(const T* p, ptrdiff_t step) {
    if constexpr (sizeof(V) > kVectorBytes)
        return {load(p), load(p + step)};
    else
        return load(p);
}
template <class T>
RNNFAST_INLINE void store_rows(T* p, ptrdiff_t, Vec<T> v) {
    store(p, v);
}
template <class T>
RNNFAST_INLINE void store_rows(T* p, ptrdiff_t step, Pair<Vec<T>> v) {
    store(p, v.first);
    store(p + step, v.second);
}

}  // namespace
}  // namespace rnnfast
