// Memory for scratch, packed weights and what training saves: aligned, not initialised.
#pragma once

#include <cstddef>
#include <memory>

namespace rnnfast {

// Aligned to a cache line. Blocks of 2 MiB and more lie on huge pages where the system has them: a
// first touch of 4 KiB costs about 0.25 us, and a product that walks over rows of several KiB would
// miss the TLB at each. Throws std::bad_alloc where there is not so much memory.
//
// A few blocks of 256 KiB and more that were freed are kept for others of about their size, so that
// the steps of a training loop give each other their memory instead of having the system clear it
// each time. The pages of huge ones are the system's to take back whenever it needs them; where it
// knows no such offer, huge ones are not kept.
constexpr size_t kKeptFrom = size_t(256) << 10;

// So many times as large as need be a kept block is left to others. What may last takes none that would
// hold far more than its own; what a pass gives back at its end may, as sequences of another length
// come with each batch, and would else have blocks of their own.
constexpr size_t kLasting = 2, kPassing = 16;

struct Block {
    void* memory;
    size_t bytes;  // at least what was asked for
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

// Scratch of one call, on the thread that makes it. A thread keeps its last block for the next
// call, unless it is large.
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
