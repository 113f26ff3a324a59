// Memory that is kept from call to call: that a loop gets its own again, however many blocks it takes
// and whatever lengths come, that no two owners ever have the same, and that what is too large is an
// error.
#include "dispatch/buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <new>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "tests/expect.h"

namespace rnnfast {
namespace {

// Of these the system must know that it may take them back, which it does of none under a sanitizer.
#if defined(__linux__) && !defined(__SANITIZE_ADDRESS__)
constexpr int kHuge = 2 << 20;
#else
constexpr int kHuge = 1 << 19;
#endif

using Blocks = std::vector<Buffer<char>>;

std::set<const char*> places(const Blocks& blocks) {
    std::set<const char*> found;
    for (const auto& block : blocks) found.insert(block.get());
    return found;
}

// As the steps of training: all blocks of one are freed before those of the next are asked for.
void check_loop(ptrdiff_t count, ptrdiff_t smallest) {
    const auto step = [&] {
        Blocks blocks;
        for (ptrdiff_t k = 0; k < count; ++k) blocks.push_back(allocate<char>(smallest + k * 64));
        return blocks;
    };
    const std::set<const char*> first = places(step());
    const std::string what = std::to_string(count) + " blocks of " + std::to_string(smallest);
    expect(first.size() == size_t(count), what + ": one place for two");
    for (int k = 0; k < 3; ++k) expect(places(step()) == first, what + ": not the same again");
}

void check_sizes() {
    for (const ptrdiff_t size : {0, 1, 63, 1 << 18, (1 << 18) + 1, 3 << 20, (2 << 20) - 1}) {
        const Buffer<char> block = allocate<char>(size);
        const std::string what = std::to_string(size) + " bytes";
        expect(reinterpret_cast<uintptr_t>(block.get()) % 64 == 0, what + ": not aligned");
        expect(block.get_deleter().bytes >= size_t(size), what + ": fewer than were asked for");
        std::fill_n(block.get(), size, char(1));  // a sanitizer sees what is too small
    }
    allocate<char>(33 << 20);
    const Buffer<char> smaller = allocate<char>(2 << 20),
                       passing = allocate<char>(2 << 20, kPassing);
    expect(smaller.get_deleter().bytes < size_t(4) << 20, "one that lasts of twice the size");
    expect(passing.get_deleter().bytes < size_t(32) << 20, "one of 16 times the size");
}

// Steps on shorter sequences take the memory of those on longer ones, which get it back.
void check_lengths(ptrdiff_t longest) {
    const auto step = [](ptrdiff_t size) {
        Blocks blocks;
        for (ptrdiff_t k = 0; k < 7; ++k) blocks.push_back(allocate<char>(size, kPassing));
        return places(blocks);
    };
    const std::set<const char*> first = step(longest);
    for (const ptrdiff_t size : {longest / 3, longest / 5 * 4, longest / 7, longest})
        expect(step(size) == first, std::to_string(size) + " bytes: not those of the longest");
}

void check_too_much() {
    const Buffer<char> kept = allocate<char>(3 << 20);
    for (const size_t bytes : {SIZE_MAX, SIZE_MAX / 2 - 64, SIZE_MAX / 4}) {
        bool refused = false;
        try {
            free_bytes(allocate_bytes(bytes).memory, bytes);
        } catch (const std::bad_alloc&) {
            refused = true;
        }
        expect(refused, "got " + std::to_string(bytes) + " bytes");
    }
}

// Each thread marks its blocks, and finds its mark when it frees them.
void check_threads() {
    constexpr int kThreads = 4, kRounds = 400'000;
    std::vector<int> strangers(kThreads);
    std::vector<std::thread> threads;
    for (int id = 0; id < kThreads; ++id)
        threads.emplace_back([id, &strangers] {
            constexpr ptrdiff_t kCount = (ptrdiff_t(1) << 18) / ptrdiff_t(sizeof(int));
            uint32_t chance = uint32_t(id) + 1;
            struct {
                Buffer<int> data;
                ptrdiff_t count = 0;
            } blocks[24];
            for (int round = 0; round < kRounds; ++round) {
                chance = chance * 1664525u + 1013904223u;
                auto& block = blocks[(chance >> 8) % std::size(blocks)];
                if (block.data && (block.data[0] != id || block.data[block.count - 1] != id))
                    ++strangers[size_t(id)];
                block.data.reset();
                if (chance >> 31) continue;
                block.count = kCount + ptrdiff_t(chance >> 12) % kCount;
                block.data = allocate<int>(block.count);
                if (block.data.get_deleter().bytes < size_t(block.count) * sizeof(int))
                    ++strangers[size_t(id)];
                block.data[0] = block.data[block.count - 1] = id;
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (const int count : strangers) expect(count == 0, "a block of two threads, or too small");
}

}  // namespace
}  // namespace rnnfast

int main() {
    using namespace rnnfast;
    check_lengths(kHuge > 1 << 19 ? 16 << 20 : (2 << 20) - 64);  // first: there are no others yet
    check_sizes();
    for (const ptrdiff_t count : {1, 7, 60}) {
        check_loop(count, 1 << 18);
        check_loop(count, 1 << 20);
        if (count < 60) check_loop(count, kHuge);  // no more than a small machine keeps
    }
    check_too_much();
    check_threads();
    std::printf("%d of %d checks failed\n", failures, checked);
    return failures != 0;
}
