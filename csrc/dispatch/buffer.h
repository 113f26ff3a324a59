// Memory for scratch, packed weights and the data that training saves: aligned, and not initialised.
#pragma once

#include <cstddef>
#include <memory>

namespace rnnfast {

// `allocate_bytes` returns memory that is aligned to a cache line, and throws std::bad_alloc if there is
// not enough. Blocks of 2 MiB and more lie on huge pages if the system has them: the first touch of a
// small page of 4 KiB costs about 0.25 us, and a product that walks over rows of several KiB would miss
// the TLB at each row.
//
// Up to 64 freed blocks of 256 KiB and more are kept for later requests of about their size. So the steps
// of a training loop reuse their memory, and the system need not clear it each time. The system may take
// the pages of kept huge blocks back whenever it needs them. Systems where this is impossible keep no
// huge blocks.
constexpr size_t kKeptFrom = size_t(256) << 10;

// A request does not take a kept block that is this many times as large as the request, or larger. Memory
// that may last (kLasting) takes no block that is far too large. Memory that a pass gives back at its end
// (kPassing) may take one: each batch brings sequences of another length, and each length would otherwise
// need blocks of its own.
constexpr size_t kLasting = 2, kPassing = 16;

struct Block {
    void* memory;
    size_t bytes;  // at least the number that was requested
};
Block allocate_bytes(size_t bytes, size_t too_large = kLasting);
void free_bytes(void* p, size_t bytes) noexcept;

struct BufferDelete {
    size_t bytes = 0;
    void operator()(void* p) const noexcept { free_bytes(p, bytes); }
};

template <class T>
using Buffer = std::unique_ptr<T[], BufferDelete>;

template <class T>
Buffer<T> allocate(ptrdiff_t count, size_t too_large = kLasting) {
    const Block block = allocate_bytes(size_t(count) * sizeof(T), too_large);
    return Buffer<T>(static_cast<T*>(block.memory), {block.bytes});
}

// The scratch of one call, for use on the thread that makes it. Each thread keeps its last block for the
// next call, unless the block is larger than 8 MiB.
class ScratchBlock {
public:
    explicit ScratchBlock(size_t bytes);
    ~ScratchBlock();
    ScratchBlock(const ScratchBlock&) = delete;
    ScratchBlock& operator=(const ScratchBlock&) = delete;

    template <class T>
    T* as() const {
        return static_cast<T*>(block_);
    }

private:
    void* block_;
    size_t bytes_;
};

}  // namespace rnnfast
