// The schedule of a stack's jobs, and the threads that came to run it.
#pragma once

#include <optional>
#include <vector>

#include "dispatch/schedule.h"
#include "dispatch/threads.h"

namespace rnnfast {

class ScheduledTeam {
public:
    // `alone_ns`: what the jobs take one thread.
    ScheduledTeam(const std::vector<JobWork>& work, int layers, int directions, double alone_ns) {
        const auto best = [&](int threads, Workers workers) {
            return best_schedule(work.data(), layers, directions, threads, workers);
        };
        const bool is_forced = forced_schedule() != Forced::none;
        const int most = is_forced ? allowed_threads() : busy_.threads();
        Workers workers = Workers::anywhere;
        schedule_ = best(most, workers);
        if (schedule_.threads == 1) schedule_ = best(most, workers = Workers::near);
        if (schedule_.threads == 1) return;
        team_.emplace(schedule_.threads, alone_ns,
                      is_forced                  ? Team::Wait::for_all
                      : workers == Workers::near ? Team::Wait::for_none
                                                 : Team::Wait::for_a_part);
        if (team_->size() < schedule_.threads) schedule_ = best(team_->size(), workers);
        if (schedule_.threads == 1) team_.reset();  // its workers wait, and so may other callers
    }

    const Schedule& schedule() const { return schedule_; }
    // Null: the caller is to run alone.
    Team* team() { return team_ ? &*team_ : nullptr; }

private:
    const Busy busy_;
    Schedule schedule_;
    std::optional<Team> team_;
};

}  // namespace rnnfast
