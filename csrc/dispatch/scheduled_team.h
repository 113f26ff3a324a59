// The schedule of a stack's jobs, and the team of threads that runs it.
#pragma once

#include <chrono>
#include <cstring>
#include <optional>
#include <vector>

#include "dispatch/schedule.h"
#include "dispatch/threads.h"
#include "dispatch/trials.h"

namespace rnnfast {

class ScheduledTeam {
public:
    // `alone_ns`: the estimated time that the jobs take one thread.
    ScheduledTeam(const std::vector<JobWork>& work, int layers, int directions, double alone_ns) {
        const auto best = [&](int threads, Workers workers) {
            return best_schedule(work.data(), layers, directions, threads, workers);
        };
        const bool is_forced = rnnfast::is_forced();
        const int most = is_forced ? allowed_threads() : busy_.threads();
        Workers workers = Workers::anywhere;
        schedule_ = best(most, workers);
        if (schedule_.threads == 1) schedule_ = best(most, workers = Workers::near);
        if (schedule_.threads == 1) return;
        Way way = Way::team;
        if (alone_ns < kTriedNs && forced_schedule() == Forced::none) {
            start_ = Clock::now();
            kind_ = hash_of(work, most);
            way = way_of(kind_);
        }
        if (way == Way::alone) {
            schedule_ = {};
            return;
        }
        team_.emplace(schedule_.threads, alone_ns,
                      is_forced                  ? Team::Wait::for_all
                      : workers == Workers::near ? Team::Wait::for_none
                                                 : Team::Wait::for_a_part,
                      way == Way::waking_team);
        if (team_->size() < schedule_.threads) schedule_ = best(team_->size(), workers);
        if (schedule_.threads == 1) team_.reset();  // frees its workers, and the pool for others
    }
    ~ScheduledTeam() {
        if (!kind_) return;
        const std::chrono::duration<double, std::nano> took = Clock::now() - start_;
        note_time(kind_, bool(team_), took.count());
    }
    ScheduledTeam(const ScheduledTeam&) = delete;
    ScheduledTeam& operator=(const ScheduledTeam&) = delete;

    const Schedule& schedule() const { return schedule_; }
    // Null if the caller must run alone.
    Team* team() { return team_ ? &*team_ : nullptr; }

private:
    using Clock = std::chrono::steady_clock;
    // Passes that are estimated to take one thread longer than this have no trials. Their estimates are
    // good enough, and one call that others disturb would keep many later calls from having a team.
    static constexpr double kTriedNs = 1e6;

    // A hash of everything that the time of a short pass depends on; never 0.
    static uint64_t hash_of(const std::vector<JobWork>& work, int threads) {
        uint64_t hash = uint64_t(threads);
        const auto add = [&hash](double number) {
            uint64_t bits;
            std::memcpy(&bits, &number, sizeof bits);
            hash = (hash ^ bits) * 0x9E3779B97F4A7C15u;
            hash ^= hash >> 32;
        };
        for (const JobWork& w : work)
            for (const double number : {double(w.steps), w.rows, w.row_step, w.rest,
                                        double(w.panels), double(w.meetings), double(w.phases)})
                add(number);
        return hash | 1;
    }

    const Busy busy_;
    Schedule schedule_;
    std::optional<Team> team_;
    Clock::time_point start_;
    uint64_t kind_ = 0;  // the hash of a pass that has trials; 0: there are none
};

}  // namespace rnnfast
