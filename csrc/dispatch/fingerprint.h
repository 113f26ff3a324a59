// Fingerprints of arrays. Several threads read the arrays if that is faster.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rnnfast {

struct Bytes {
    const unsigned char* data;
    ptrdiff_t count;
};

// A hash of the contents and sizes of the arrays, in their order. Other arrays have another hash, except by
// chance. It is the same for any number of threads, but differs between ISAs.
uint64_t fingerprint(const std::vector<Bytes>& arrays);

}  // namespace rnnfast
