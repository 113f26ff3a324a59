// What lies in the device's memory: float, and bfloat16 as its bits. Sums and states are float.
#pragma once

#include "core/args.h"

namespace rnnfast {
namespace cuda {

struct Bfloat16 {
    uint16_t bits;
};

RNNFAST_INLINE uint32_t bits_of(float x) {
    union {
        float value;
        uint32_t bits;
    } both{x};
    return both.bits;
}
RNNFAST_INLINE float float_of(uint32_t bits) {
    union {
        uint32_t bits;
        float value;
    } both{bits};
    return both.value;
}

RNNFAST_INLINE float widen(float x) { return x; }
RNNFAST_INLINE float widen(Bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }

template <class T>
RNNFAST_INLINE T narrow(float x);
template <>
RNNFAST_INLINE float narrow<float>(float x) {
    return x;
}
// To the nearest, ties to even; NaN stays NaN.
template <>
RNNFAST_INLINE Bfloat16 narrow<Bfloat16>(float x) {
    const uint32_t bits = bits_of(x);
    if (x != x) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// NaN with the first bit of its fraction: tensor cores read no more than 10, which may be all zeros,
// as those of infinity are. A caller's NaN may lack it; one that is computed does not.
RNNFAST_INLINE float quiet(float x) { return x != x ? float_of(bits_of(x) | 0x400000u) : x; }
RNNFAST_INLINE Bfloat16 quiet(Bfloat16 x) { return x; }

// 16 bytes of a row: what a thread reads at once.
struct alignas(16) Quad {
    uint32_t word[4];
};

// The numbers in them, and of the k that four threads multiply at once.
template <class T>
constexpr int kPerQuad = int(sizeof(Quad) / sizeof(T));
template <class T>
constexpr int kGroup = 4 * kPerQuad<T>;

RNNFAST_INLINE constexpr int whole(int n, int of) { return (n + of - 1) / of; }
RNNFAST_INLINE constexpr int round_up(int n, int to) { return whole(n, to) * to; }

}  // namespace cuda
}  // namespace rnnfast
