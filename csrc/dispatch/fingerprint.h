// Fingerprints of arrays, by as many threads as read them faster than one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace rnnfast {

struct Bytes {
    const unsigned char* data;
    ptrdiff_t count;
};

// Of the arrays' contents and sizes, in their order: others have another, except by chance. The same
// for any number of threads; it differs between ISAs.
uint64_t fingerprint(const std::vector<Bytes>& arrays);

}  // namespace rnnfast
