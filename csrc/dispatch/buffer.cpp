#include "dispatch/buffer.h"

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace rnnfast {
namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t(2) << 20;
// Blocks of so many bytes lie on huge pages.
constexpr size_t kHuge = kHugePage;
// What a thread keeps: enough for the chunks of all but the largest layers.
constexpr size_t kMostKept = size_t(8) << 20;

// Sanitizers watch over malloc's blocks alone.
#if defined(__SANITIZE_ADDRESS__)
#define RNNFAST_MAPS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RNNFAST_MAPS 0
#endif
#endif
#ifndef RNNFAST_MAPS
#if defined(__linux__)
#define RNNFAST_MAPS 1
#else
#define RNNFAST_MAPS 0
#endif
#endif

#if RNNFAST_MAPS
// Blocks of so many bytes are the system's own: malloc may give memory that others had, which lies on
// small pages and stays there.
constexpr bool is_mapped(size_t bytes) { return bytes >= kHuge; }

// On huge pages, if there are some: that is advice, and all that is asked for may lie on others.
void* map(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    void* const all = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    const size_t before = -reinterpret_cast<uintptr_t>(all) % kHugePage;
    char* const p = static_cast<char*>(all) + before;
    // What is left over, in whole small pages, of which nothing has been touched.
    static const auto page = size_t(sysconf(_SC_PAGESIZE));
    const size_t used = (bytes + page - 1) / page * page;
    if (before) (void)munmap(all, before);
    (void)munmap(p + used, kHugePage - before);
    (void)madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return p;
}
#endif

// Null where there is not so much memory.
void* system_allocate(size_t bytes) {
#if defined(_WIN32)
    return ::operator new(bytes, std::align_val_t(kLine), std::nothrow);
#else
#if RNNFAST_MAPS
    if (is_mapped(bytes)) return map(bytes);
#endif
    void* p = nullptr;
    return posix_memalign(&p, kLine, bytes ? bytes : 1) ? nullptr : p;
#endif
}

void system_free(void* p, [[maybe_unused]] size_t bytes) noexcept {
#if defined(_WIN32)
    ::operator delete(p, std::align_val_t(kLine));
#else
#if RNNFAST_MAPS
    if (is_mapped(bytes)) return (void)munmap(p, bytes);
#endif
    free(p);
#endif
}

// A block that is kept; of those freed later the number is higher.
struct Spare {
    void* memory;
    size_t bytes;
    uint64_t number;
};

// Whoever exchanges a pointer for another owns the block.
constexpr size_t kSpares = 8;
std::atomic<Spare*> spares[kSpares];
std::atomic<size_t> next_dropped{0};
std::atomic<uint64_t> next_number{0};

void drop(Spare* s) noexcept {
    if (s) system_free(s->memory, s->bytes);
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

bool fits_better(const Spare& a, const Spare& b) {
    return a.bytes != b.bytes ? a.bytes < b.bytes : a.number > b.number;
}

// The smallest kept block of at least `bytes`, and less than twice as many; null: there is none. One
// that is larger than need be would be missed by whom it fits. Of several the one that was freed last,
// of which most is in a cache: in turns they would all be cold.
Block take(size_t bytes) noexcept {
    Spare* best = nullptr;
    for (std::atomic<Spare*>& slot : spares) {
        Spare* s = slot.exchange(nullptr);
        if (!s) continue;
        if (s->bytes >= bytes && s->bytes / 2 < bytes && (!best || fits_better(*s, *best)))
            std::swap(s, best);
        if (s) keep(s);
    }
    if (!best) return {nullptr, 0};
    const Block block{best->memory, best->bytes};
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

    ~Kept() { system_free(block, bytes); }
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
        if (Spare* const s = new (std::nothrow) Spare{p, bytes, next_number++}) return keep(s);
    system_free(p, bytes);
}

ScratchBlock::ScratchBlock(size_t bytes) : block_(kept.block), bytes_(kept.bytes) {
    kept.block = nullptr;
    kept.bytes = 0;
    if (bytes_ >= bytes && block_) return;
    system_free(block_, bytes_);
    block_ = nullptr;
    block_ = new_block(bytes);
    bytes_ = bytes;
}

ScratchBlock::~ScratchBlock() {
    if (bytes_ <= kMostKept && !kept.block) {
        kept.block = block_;
        kept.bytes = bytes_;
    } else {
        system_free(block_, bytes_);
    }
}

}  // namespace rnnfast
