#include "dispatch/trials.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace rnnfast {
namespace {

// Of so many calls one thread runs one where teams are faster, and a team two, of which the first wakes
// its workers, where one thread is. Teams are what depends on others.
constexpr uint32_t kAlonePeriod = 512, kTeamPeriod = 64;

// Whether a call is by the way that has been the slower one; so are more of the first, when either may
// have been slow for once.
bool is_trial(uint32_t call, uint32_t period) {
    return call < period ? (call & (call - 1)) == 0 : call % period == 0;
}

// The first so many calls go as estimated.
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
    if (team == 0) return Way::team;  // whose workers may not come
    if (alone == 0) return call < kEstimated ? Way::team : Way::alone;
    if (team < alone) return is_trial(call, kAlonePeriod) ? Way::alone : Way::team;
    const bool tries = is_trial(call, kTeamPeriod) || is_trial(call - 1, kTeamPeriod);
    return tries ? Way::waking_team : Way::alone;
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
