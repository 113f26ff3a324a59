// Probes for the benchmark's bounds: how fast the core does arithmetic, and reads an array.
#pragma once

#include "simd/vec.h"

namespace rnnfast {
namespace {

// The number of independent chains of operations. Two pipes with a latency of 4 need 8 of them, and
// 12 leave room for the operands in 16 registers.
constexpr int kProbeChains = 12;

// Runs x <- x/2 + 1 in each chain, `rounds` times, and returns the sum of all chains. Each chain
// starts from a value of its own, or else the compiler could make one of them all. They all
// approach 2, so no chain gets to denormals or infinity.
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

// Returns the sum of x, `rounds` times over. The sums go on from one round to the next, so that the
// compiler cannot leave out a round. n is a multiple of a vector.
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
