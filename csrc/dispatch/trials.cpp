#include "dispatch/trials.h"

#include <algorithm>
#include <array>
#include <atomic>

namespace rnnfast {
namespace {

// If teams are faster, one thread runs two calls in each kAlonePeriod. If one thread is faster, a team runs
// two calls in each kTeamPeriod. The first of the two fills the caches or wakes the workers. Teams are
// tried more often because their time depends on what other threads and processes do.
constexpr uint32_t kAlonePeriod = 512, kTeamPeriod = 64;

// Whether a trial of the slower way begins with this call. There are more trials among the first calls,
// when one slow call may have decided.
bool is_trial(uint32_t call, uint32_t period) {
    return call < period ? (call & (call - 1)) == 0 : call % period == 0;
}

// The first calls of a kind follow the estimates. There are this many.
constexpr uint32_t kEstimated = 4;

// Several threads may write at the same time. Then one measured time of many is lost.
struct Kind {
    std::atomic<uint64_t> hash{0};
    std::atomic<uint32_t> calls{0};
    std::atomic<float> alone{0}, team{0};  // ns; 0: not known
};

std::array<Kind, 256> kinds;

// The place of a kind. If another kind had it, that kind's times are dropped.
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
    if (team == 0) return Way::team;  // no team has been timed: no worker has come so far
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
    // A shorter time replaces the kept one at once for one thread, and in the first calls of a kind: new
    // memory or a sleeping worker may have made an earlier call long. Later, a team's time is a running
    // mean. A longer time raises the kept one by an eighth of the difference, and one call by 5/8 at most:
    // others that take a core for a while raise it far more than one slow call does.
    constexpr uint32_t kFirst = 16;
    float after = now;
    if (before > 0 && now > before)
        after = before + std::min(now - before, 5 * before) / 8;
    else if (before > 0 && by_team && kind.calls.load(std::memory_order_relaxed) >= kFirst)
        after = before + (now - before) / 4;
    kept.store(after, std::memory_order_relaxed);
}

}  // namespace rnnfast
