#include "dispatch/buffer.h"

#include <algorithm>
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
// Blocks of this many bytes and more lie on huge pages.
constexpr size_t kHuge = kHugePage;
// The largest scratch block that a thread keeps. It is enough for the chunks of all but the largest layers.
constexpr size_t kMostKept = size_t(8) << 20;

// Sanitizers only check blocks of malloc, so with them all blocks come from it.
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

#if defined(__linux__)
const auto kSmallPage = size_t(sysconf(_SC_PAGESIZE));
// Kept blocks take no more than an eighth of the machine's memory.
const uint64_t kMostBytes = uint64_t(sysconf(_SC_PHYS_PAGES)) * kSmallPage / 8;
#else
constexpr uint64_t kMostBytes = UINT64_MAX;
#endif

#if RNNFAST_MAPS
// Whether a block of `bytes` comes from the system directly. malloc may give memory that was in use
// before, which lies on small pages and stays there.
constexpr bool is_mapped(size_t bytes) { return bytes >= kHuge; }

// Maps `bytes` on huge pages, if there are any: this is advice, and the block may lie on small pages.
void* map(size_t bytes) {
    if (bytes > SIZE_MAX / 2) return nullptr;
    void* const all = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (all == MAP_FAILED) return nullptr;
    const size_t before = -reinterpret_cast<uintptr_t>(all) % kHugePage;
    char* const p = static_cast<char*>(all) + before;
    // Unmap the rest before and after the block, in whole small pages. Nothing there has been touched.
    const size_t used = (bytes + kSmallPage - 1) / kSmallPage * kSmallPage;
    if (before) (void)munmap(all, before);
    (void)munmap(p + used, kHugePage - before);
    (void)madvise(p, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
    return p;
}
#endif

// Returns null if the system has not enough memory.
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

// A freed block that is kept. A block that is freed later has a higher number.
struct Spare {
    void* memory;
    size_t bytes;
    uint64_t number;

    bool fits(size_t wanted, size_t too_large) const {
        return bytes >= wanted && bytes / too_large < wanted;
    }
    // A smaller block is better. Of blocks of one size, the one freed last is better, since more of it is in
    // a cache; if such blocks were used in turn, all of them would be cold.
    bool is_better_than(const Spare& other) const {
        return bytes != other.bytes ? bytes < other.bytes : number > other.number;
    }
};

// A place for one kept block. The thread that exchanges the pointer owns the block. There is no lock, since
// a fork could leave it held. `seen` reads the size and the number without owning the block, so they may
// already be those of another block.
class Slot {
public:
    // An empty slot shows 0 bytes, and the highest number, as if it had been freed last.
    Spare seen() const {
        if (!spare_.load(std::memory_order_relaxed)) return {nullptr, 0, UINT64_MAX};
        return {nullptr, bytes_.load(std::memory_order_relaxed),
                number_.load(std::memory_order_relaxed)};
    }
    Spare* take() { return spare_.exchange(nullptr); }
    // Returns false if the slot has a block already.
    bool put(Spare* s) {
        if (spare_.load(std::memory_order_relaxed)) return false;
        const Spare own = *s;  // another thread may take it at once
        Spare* empty = nullptr;
        if (!spare_.compare_exchange_strong(empty, s)) return false;
        bytes_.store(own.bytes, std::memory_order_relaxed);
        number_.store(own.number, std::memory_order_relaxed);
        return true;
    }
    // Gives the block back to the system.
    void drop() {
        if (Spare* const s = take()) {
            system_free(s->memory, s->bytes);
            delete s;
        }
    }

private:
    std::atomic<Spare*> spare_{nullptr};
    std::atomic<size_t> bytes_{0};
    std::atomic<uint64_t> number_{0};
};

// The number of kept blocks: as many as a training step of a network of eight layers frees.
constexpr size_t kSpares = 64;
// A block is stale once this many others were freed after it: nobody asks for its size any more.
constexpr uint64_t kStale = 2 * kSpares;
Slot slots[kSpares];
std::atomic<uint64_t> next_number{0};

// The slot whose block was freed first.
Slot& oldest() noexcept {
    return *std::min_element(slots, slots + kSpares, [](const Slot& a, const Slot& b) {
        return a.seen().number < b.seen().number;
    });
}

uint64_t all_bytes() noexcept {
    uint64_t all = 0;
    for (const Slot& slot : slots) all += slot.seen().bytes;
    return all;
}

// Puts `s` into a slot. If there are too many blocks or bytes, this drops the oldest blocks.
void keep(Spare* s) noexcept {
    const auto put = [s] {
        return std::any_of(slots, slots + kSpares, [s](Slot& slot) { return slot.put(s); });
    };
    while (!put()) oldest().drop();
    for (size_t k = 0; k < kSpares && all_bytes() > kMostBytes; ++k) oldest().drop();
}

// Takes the kept block that fits best. The result has null memory if none fits.
Block take(size_t bytes, size_t too_large) noexcept {
    for (size_t attempt = 0; attempt < kSpares; ++attempt) {
        Slot* best = nullptr;
        for (Slot& slot : slots) {
            const Spare seen = slot.seen();
            if (seen.fits(bytes, too_large) && (!best || seen.is_better_than(best->seen())))
                best = &slot;
        }
        if (!best) break;
        Spare* const s = best->take();
        if (!s) continue;  // another thread was faster
        if (!s->fits(bytes, too_large)) {
            keep(s);
            continue;
        }
        const Block block{s->memory, s->bytes};
        delete s;
        return block;
    }
    return {nullptr, 0};
}

// Gives the oldest block back to the system if it is stale.
void drop_stale() noexcept {
    Slot& slot = oldest();
    const Spare seen = slot.seen();
    if (seen.bytes && next_number - seen.number > kStale) slot.drop();
}

// A new block from the system. If the system has no memory left, this first gives all kept blocks back.
void* new_block(size_t bytes) {
    if (void* const p = system_allocate(bytes)) return p;
    for (Slot& slot : slots) slot.drop();
    if (void* const p = system_allocate(bytes)) return p;
    throw std::bad_alloc();
}

// The scratch block that the thread keeps.
struct Kept {
    void* block = nullptr;
    size_t bytes = 0;

    ~Kept() { system_free(block, bytes); }
};

thread_local Kept kept;

}  // namespace

Block allocate_bytes(size_t bytes, size_t too_large) {
    if (bytes >= kKeptFrom) {
        const Block block = take(bytes, too_large);
        if (block.memory) return block;
        drop_stale();
    }
    return {new_block(bytes), bytes};
}

void free_bytes(void* p, size_t bytes) noexcept {
#if defined(__linux__) && defined(MADV_FREE)
    // Offers the pages of a huge block to the system. For small pages, the offer would cost as much as
    // touching new ones.
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
