// Memory for scratch and packed weights: aligned to a cache line, not initialised.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace rnnfast {

struct AlignedDelete {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t(64)); }
};

template <class T>
using Buffer = std::unique_ptr<T[], AlignedDelete>;

// Throws std::bad_alloc where there is not so much memory.
template <class T>
Buffer<T> allocate(ptrdiff_t count) {
    const size_t bytes = size_t(count) * sizeof(T);
    return Buffer<T>(static_cast<T*>(::operator new(bytes, std::align_val_t(64))));
}

}  // namespace rnnfast
