// A fingerprint of memory, to notice that its content has changed; no defence against an attacker.
#pragma once

#include "simd/vec.h"

namespace rnnfast {
namespace {

typedef uint64_t Words __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
typedef uint64_t WordsAnywhere
    __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(1), may_alias));

// Chains of dependent steps in flight: a step takes about 6 cycles.
constexpr int kFingerprintChains = 8;
constexpr uint64_t kFingerprintFactor = 0x9e3779b97f4a7c15;  // odd: multiplying loses nothing

// What was seen, and then `word`. Bijective in either: one word that changes always shows. The shift
// brings high bits, which the product moves nowhere, down to where the next product spreads them.
template <class W>
RNNFAST_INLINE W fingerprint_step(W seen, W word) {
    const W product = (seen ^ word) * kFingerprintFactor;
    return product ^ (product >> 32);
}

RNNFAST_INLINE uint64_t fingerprint(const unsigned char* data, ptrdiff_t bytes) {
    Words chain[kFingerprintChains];
    for (int i = 0; i < kFingerprintChains; ++i) chain[i] = Words{} + uint64_t(i + 1);
    const auto word = [&](ptrdiff_t at) {
        return Words(*reinterpret_cast<const WordsAnywhere*>(data + at));
    };
    ptrdiff_t at = 0;
    for (; at + kFingerprintChains * kVectorBytes <= bytes;
         at += kFingerprintChains * kVectorBytes) {
#pragma GCC unroll 8
        for (int i = 0; i < kFingerprintChains; ++i)
            chain[i] = fingerprint_step(chain[i], word(at + i * kVectorBytes));
    }
    for (; at + kVectorBytes <= bytes; at += kVectorBytes)
        chain[0] = fingerprint_step(chain[0], word(at));
    uint64_t seen = uint64_t(bytes);
    for (; at < bytes; ++at) seen = fingerprint_step(seen, uint64_t(data[at]));
    for (const Words& own : chain)
        for (int lane = 0; lane < kVectorBytes / 8; ++lane)
            seen = fingerprint_step(seen, own[lane]);
    return seen;
}

}  // namespace
}  // namespace rnnfast
