// A fingerprint of memory, which shows whether its content has changed. It is no defence against an
// attacker.
#pragma once

#include "simd/vec.h"

namespace rnnfast {
namespace {

typedef uint64_t Words __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
typedef uint64_t WordsAnywhere
    __attribute__((vector_size(RNNFAST_VECTOR_BYTES), aligned(1), may_alias));

// The number of chains that run side by side: a step, which takes about 6 cycles, waits for the one
// before it in its chain.
constexpr int kFingerprintChains = 8;
constexpr uint64_t kFingerprintFactor = 0x9e3779b97f4a7c15;  // odd: no product loses bits

// The fingerprint of what was seen so far (`seen`) followed by `word`. It is a bijection in either,
// so that a change of one word always shows. A product moves bits only upwards. So the shift brings
// the high bits down first, and the product spreads them too, before another word could undo the
// change. A shift by 32 would make the signs of the two float32 in a word meet.
template <class W>
RNNFAST_INLINE W fingerprint_step(W seen, W word) {
    const W both = seen ^ word;
    return (both ^ (both >> 29)) * kFingerprintFactor;
}

RNNFAST_INLINE uint64_t fingerprint(const unsigned char* data, ptrdiff_t bytes) {
    Words chain[kFingerprintChains];
    for (int i = 0; i < kFingerprintChains; ++i)
        chain[i] = Words{} + uint64_t(i + 1) * kFingerprintFactor;
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
    // A change of the high bits of a chain's last word is still in the high bits. These two steps
    // spread it, so that where chains are joined it meets another chain's change as one random
    // number meets another.
    for (int i = 0; i < kFingerprintChains; ++i)
        chain[i] = fingerprint_step(fingerprint_step(chain[i], Words{}), Words{});
    for (int i = 1; i < kFingerprintChains; ++i) chain[0] = fingerprint_step(chain[0], chain[i]);
    uint64_t seen = uint64_t(bytes);
    for (; at < bytes; ++at) seen = fingerprint_step(seen, uint64_t(data[at]));
    for (int lane = 0; lane < kVectorBytes / 8; ++lane)
        seen = fingerprint_step(seen, uint64_t(chain[0][lane]));
    return fingerprint_step(seen, seen >> 32);  // the low bits, too, depend on all
}

}  // namespace
}  // namespace rnnfast
