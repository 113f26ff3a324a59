#include "dispatch/buffer.h"

#include <atomic>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rnnfast {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;
// Blocks of so many bytes are kept, and those of so many lie on huge pages.
constexpr size_t kLarge = size_t(256) << 10;
constexpr size_t kHuge = 2 * kHugePage;
// What a thread keeps: enough for the chunks of all but the largest layers.
constexpr size_t kMostKept = size_t(8) << 20;

void* system_allocate(size_t bytes) {
#if defined(_WIN32)
    return ::operator new(bytes, std::align_val_t(kLine));
#else
    void* p = nullptr;
    const size_t align = bytes >= kHuge ? kHugePage : kLine;
    if (posix_memalign(&p, align, bytes ? bytes : 1)) throw std::bad_alloc();
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

// The large blocks that are kept: whoever exchanges a pointer for another owns the block.
struct Spare {
    void* block;
    size_t bytes;
};

constexpr size_t kSpares = 8;
std::atomic<Spare*> spares[kSpares];
std::atomic<size_t> oldest{0};

void drop(Spare* s) noexcept {
    if (s) system_free(s->block);
    delete s;
}

// Leaves `s` in an empty slot, or in that of the oldest.
void keep(Spare* s) noexcept {
    for (std::atomic<Spare*>& slot : spares) {
        Spare* empty = nullptr;
        if (slot.compare_exchange_strong(empty, s)) return;
    }
    drop(spares[oldest++ % kSpares].exchange(s));
}

// A kept block of at least `bytes`, and less than twice as many; null: there is none.
void* take(size_t bytes) noexcept {
    for (std::atomic<Spare*>& slot : spares)
        if (Spare* const s = slot.exchange(nullptr)) {
            if (s->bytes >= bytes && s->bytes / 2 < bytes) {
                void* const p = s->block;
                delete s;
                return p;
            }
            keep(s);
        }
    return nullptr;
}

// The block that the thread keeps.
struct Kept {
    void* block = nullptr;
    size_t bytes = 0;

    ~Kept() { system_free(block); }
};

thread_local Kept kept;

}  // namespace

void* allocate_bytes(size_t bytes) {
    if (bytes >= kLarge) {
        if (void* const p = take(bytes)) return p;
        // Sizes have changed: what was kept for the old ones goes, a block at a time.
        drop(spares[oldest++ % kSpares].exchange(nullptr));
    }
    return system_allocate(bytes);
}

void free_bytes(void* p, size_t bytes) noexcept {
    if (p && bytes >= kLarge) {
#if defined(__linux__) && defined(MADV_FREE)
        // For small pages this would cost as much as touching new ones.
        if (bytes >= kHuge) (void)madvise(p, bytes / kHugePage * kHugePage, MADV_FREE);
#endif
        if (Spare* const s = new (std::nothrow) Spare{p, bytes}) return keep(s);
    }
    system_free(p);
}

ScratchBlock::ScratchBlock(size_t bytes) : block_(kept.block), bytes_(kept.bytes) {
    kept.block = nullptr;
    kept.bytes = 0;
    if (bytes_ >= bytes && block_) return;
    system_free(block_);
    block_ = nullptr;
    block_ = system_allocate(bytes);
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
