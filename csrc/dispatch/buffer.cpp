#include "dispatch/buffer.h"

#include <atomic>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;
// Blocks of so many bytes lie on huge pages.
constexpr size_t kHuge = kHugePage;
// What a thread keeps: enough for the chunks of all but the largest layers.
constexpr size_t kMostKept = size_t(8) << 20;

// Null where there is not so much memory.
void* system_allocate(size_t bytes) {
#if defined(_WIN32)
    return ::operator new(bytes, std::align_val_t(kLine), std::nothrow);
#else
    void* p = nullptr;
    const size_t align = bytes >= kHuge ? kHugePage : kLine;
    if (posix_memalign(&p, align, bytes ? bytes : 1)) return nullptr;
#if defined(__linux__)
    // Advice: where it is refused, the memory is as good as any other.
    if (bytes >= kHuge) (void)madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    return p;
#endif
}

void system_free(void* p) noexcept {
#if defined(_WIN32)
    ::operator delete(p, std::align_val_t(kLine));
#else
    free(p);
#endif
}

// The blocks that are kept: whoever exchanges a pointer for another owns the block.
using Spare = Block;

constexpr size_t kSpares = 8;
std::atomic<Spare*> spares[kSpares];
std::atomic<size_t> next_dropped{0};

void drop(Spare* s) noexcept {
    if (s) system_free(s->memory);
    delete s;
}

// Leaves `s` in an empty slot, or in place of another.
void keep(Spare* s) noexcept {
    for (std::atomic<Spare*>& slot : spares) {
        Spare* empty = nullptr;
        if (slot.compare_exchange_strong(empty, s)) return;
    }
    drop(spares[next_dropped++ % kSpares].exchange(s));
}

// The smallest kept block of at least `bytes`, and less than twice as many; null: there is none. One
// that is larger than need be would be missed by whom it fits.
Block take(size_t bytes) noexcept {
    Spare* best = nullptr;
    for (std::atomic<Spare*>& slot : spares) {
        Spare* s = slot.exchange(nullptr);
        if (!s) continue;
        if (s->bytes >= bytes && s->bytes / 2 < bytes && (!best || s->bytes < best->bytes))
            std::swap(s, best);
        if (s) keep(s);
    }
    if (!best) return {nullptr, 0};
    const Block block = *best;
    delete best;
    return block;
}

// From the system; where it has no more, what is kept is given back first.
void* new_block(size_t bytes) {
    if (void* const p = system_allocate(bytes)) return p;
    for (std::atomic<Spare*>& slot : spares) drop(slot.exchange(nullptr));
    if (void* const p = system_allocate(bytes)) return p;
    throw std::bad_alloc();
}

// The block that the thread keeps.
struct Kept {
    void* block = nullptr;
    size_t bytes = 0;

    ~Kept() { system_free(block); }
};

thread_local Kept kept;

}  // namespace

Block allocate_bytes(size_t bytes) {
    if (bytes >= kKeptFrom) {
        const Block block = take(bytes);
        if (block.memory) return block;
        // Sizes have changed: what was kept for the old ones goes, a block at a time.
        drop(spares[next_dropped++ % kSpares].exchange(nullptr));
    }
    return {new_block(bytes), bytes};
}

void free_bytes(void* p, size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_FREE)
    // For small pages the offer would cost as much as touching new ones.
    const bool offered = bytes < kHuge || !madvise(p, bytes / kHugePage * kHugePage, MADV_FREE);
#else
    const bool offered = bytes < kHuge;
#endif
    if (p && bytes >= kKeptFrom && offered)
        if (Spare* const s = new (std::nothrow) Spare{p, bytes}) return keep(s);
    system_free(p);
}

ScratchBlock::ScratchBlock(size_t bytes) : block_(kept.block), bytes_(kept.bytes) {
    kept.block = nullptr;
    kept.bytes = 0;
    if (bytes_ >= bytes && block_) return;
    system_free(block_);
    block_ = nullptr;
    block_ = new_block(bytes);
    bytes_ = bytes;
}

ScratchBlock::~ScratchBlock() {
    if (bytes_ <= kMostKept && !kept.block) {
        kept.block = block_;
        kept.bytes = bytes_;
    } else {
        system_free(block_);
    }
}

}  // namespace rnnfast
