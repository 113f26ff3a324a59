// What the core can do at most, for the benchmark's bounds: arithmetic, and reading an array.
#pragma once

#include "simd/vec.h"

namespace rnnfast {
namespace {

// Chains of dependent operations in flight: two pipes with a latency of 4 need 8 of them, and 12
// leave room for the operands in 16 registers.
constexpr int kProbeChains = 12;

// The sum of all chains, each `rounds` times x <- x/2 + 1. Each starts from a value of its own, or
// they would be one and the same to the compiler; all end at 2, so that no number is special.
template <class T>
T probe_fma(ptrdiff_t rounds, ptrdiff_t* flops) {
    const Vec<T> half = broadcast(T(0.5)), one = broadcast(T(1));
    Vec<T> chain[kProbeChains];
    for (int i = 0; i < kProbeChains; ++i) chain[i] = broadcast(T(i));
    for (ptrdiff_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kProbeChains; ++i) chain[i] = fma(chain[i], half, one);
    }
    Vec<T> sum = chain[0];
    for (int i = 1; i < kProbeChains; ++i) sum += chain[i];
    *flops = rounds * kProbeChains * kLanes<T> * 2;
    return sum[0];
}

// The sum of x, `rounds` times over. The sums run on from one round to the next, so that no round
// can be left out. n is a multiple of a vector.
template <class T>
T probe_read(const T* x, ptrdiff_t n, ptrdiff_t rounds) {
    constexpr ptrdiff_t kStride = kProbeChains * kLanes<T>;
    Vec<T> chain[kProbeChains] = {};
    for (ptrdiff_t round = 0; round < rounds; ++round) {
        ptrdiff_t i = 0;
        for (; i + kStride <= n; i += kStride) {
#pragma GCC unroll 12
            for (int k = 0; k < kProbeChains; ++k) chain[k] += load(x + i + k * kLanes<T>);
        }
        for (; i < n; i += kLanes<T>) chain[0] += load(x + i);
    }
    Vec<T> sum = chain[0];
    for (int i = 1; i < kProbeChains; ++i) sum += chain[i];
    T total = 0;
    for (ptrdiff_t l = 0; l < kLanes<T>; ++l) total += sum[l];
    return total;
}

}  // namespace
}  // namespace rnnfast
