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
    ScheduledTeam(const std::vector<JobWork>& work, int layers, int directions, double alone_ns)
        : schedule_(best_schedule(work.data(), layers, directions, most_threads())) {
        if (schedule_.threads == 1) return;
        team_.emplace(schedule_.threads, alone_ns, forced_schedule() != Forced::none);
        if (team_->size() < schedule_.threads)
            schedule_ = best_schedule(work.data(), layers, directions, team_->size());
        if (schedule_.threads == 1) team_.reset();  // its workers wait, and so may other callers
    }

    const Schedule& schedule() const { return schedule_; }
    // Null: the caller is to run alone.
    Team* team() { return team_ ? &*team_ : nullptr; }

private:
    int most_threads() const {
        return forced_schedule() == Forced::none ? busy_.threads() : allowed_threads();
    }

    const Busy busy_;
    Schedule schedule_;
    std::optional<Team> team_;
};

}  // namespace rnnfast
