#include "dispatch/fingerprint.h"

#include <algorithm>
#include <atomic>

#include "dispatch/registry.h"
#include "dispatch/schedule.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

constexpr ptrdiff_t kBlock = ptrdiff_t(128) << 10;
constexpr double kNsPerByte = 1.0 / 40;

}  // namespace

uint64_t fingerprint(const std::vector<Bytes>& arrays) {
    const auto of_block = active_kernels().fingerprint;
    std::vector<Bytes> blocks;
    double all = 0;
    for (const Bytes& array : arrays) {
        all += double(array.count);
        for (ptrdiff_t at = 0; at == 0 || at < array.count; at += kBlock)
            blocks.push_back({array.data + at, std::min(kBlock, array.count - at)});
    }
    std::vector<uint64_t> seen(blocks.size());  // the fingerprint of each block
    const auto take = [&](std::atomic<size_t>& next) {
        for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks.size();)
            seen[i] = of_block(blocks[i].data, blocks[i].count);
    };
    std::atomic<size_t> next{0};
    const double alone_ns = all * kNsPerByte;
    bool has_run = false;
    if (allowed_threads() > 1 && blocks.size() > 1 && worth_a_team(alone_ns)) {
        const Busy busy;
        Team team(int(std::min(blocks.size(), size_t(busy.threads()))), alone_ns,
                  Team::Wait::for_a_part);
        has_run = team.run([&](int) { take(next); });
    }
    if (!has_run) take(next);
    // Include the sizes of the arrays: two whole blocks in one array differ from the same blocks in two.
    for (const Bytes& array : arrays) seen.push_back(uint64_t(array.count));
    const auto* const data = reinterpret_cast<const unsigned char*>(seen.data());
    return of_block(data, ptrdiff_t(seen.size() * sizeof(uint64_t)));
}

}  // namespace rnnfast
