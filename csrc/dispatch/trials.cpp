#include "dispatch/trials.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace rnnfast {
namespace {

// One thread runs two calls of so many if teams are faster, and a team runs two of so many if one thread
// is faster. The first of the two fills the caches or wakes the workers. Teams are tried more often
// because they depend on what other threads and processes do.
constexpr uint32_t kAlonePeriod = 512, kTeamPeriod = 64;

// Whether a trial of the slower way begins with this call. There are more trials among the first calls,
// when one slow call may have decided.
bool is_trial(uint32_t call, uint32_t period) {
    return call < period ? (call & (call - 1)) == 0 : call % period == 0;
}

// The first calls of a kind, which go as the estimates say.
constexpr uint32_t kEstimated = 4;

// Several threads may be here at once: what gets lost is one time of many.
struct Kind {
    std::atomic<uint64_t> hash{0};
    std::atomic<uint32_t> calls{0};
    std::atomic<float> alone{0}, team{0};  // ns; 0: not known
};

std::array<Kind, 256> kinds;

// The place of a kind, which it takes from another.
Kind& place_of(uint64_t hash) {
    Kind& place = kinds[hash % kinds.size()];
    if (place.hash.load(std::memory_order_relaxed) != hash) {
        place.hash.store(hash, std::memory_order_relaxed);
        place.calls.store(0, std::memory_order_relaxed);
        place.alone.store(0, std::memory_order_relaxed);
        place.team.store(0, std::memory_order_relaxed);
    }
    return place;
}

}  // namespace

Way way_of(uint64_t hash) {
    Kind& kind = place_of(hash);
    const uint32_t call = kind.calls.fetch_add(1, std::memory_order_relaxed);
    const float alone = kind.alone.load(std::memory_order_relaxed);
    const float team = kind.team.load(std::memory_order_relaxed);
    if (team == 0) return Way::team;  // no worker has come so far
    if (alone == 0) return call < kEstimated ? Way::team : Way::alone;
    const auto tries = [call](uint32_t period) {
        return is_trial(call, period) || is_trial(call - 1, period);
    };
    if (team < alone) return tries(kAlonePeriod) ? Way::alone : Way::team;
    return tries(kTeamPeriod) ? Way::waking_team : Way::alone;
}

void note_time(uint64_t hash, bool by_team, double ns) {
    Kind& kind = place_of(hash);
    std::atomic<float>& kept = by_team ? kind.team : kind.alone;
    const float before = kept.load(std::memory_order_relaxed), now = float(ns);
    // Of a team a mean, which others that take a core for a time raise, and one call among many does not.
    // Of its first calls, and of one thread, the least counts: memory or a sleeping worker may have made
    // one long.
    constexpr uint32_t kFirst = 16;
    float after = now;
    if (before > 0 && now > before)
        after = before + std::min(now - before, 5 * before) / 8;
    else if (before > 0 && by_team && kind.calls.load(std::memory_order_relaxed) >= kFirst)
        after = before + (now - before) / 4;
    kept.store(after, std::memory_order_relaxed);
}

}  // namespace rnnfast
