// The forward pass of a stack: schedules, scratch, threads.
#include <algorithm>
#include <deque>
#include <vector>

#include "dispatch/float_env.h"
#include "dispatch/scheduled_team.h"
#include "dispatch/stack.h"

namespace rnnfast {
namespace {

// The most pieces into which the steps are cut when layers run at the same time.
constexpr ptrdiff_t kPieces = 16;

template <class T>
struct Job {
    const CellKernels<T>& kernels;
    ForwardArgs<T> args;
    const Plan& plan;

    explicit Job(const ForwardJob<T>& job)
        : kernels(job.weights->kernels()), args(job.args), plan(job.plan->plan()) {
        args.sizes = job.weights->sizes();
        args.packed = job.weights->packed();
        args.format = job.weights->format();
        args.weights = job.weights->weights();
    }

    JobWork work() const {
        return forward_work(kernels, args.sizes, args.format, plan, held(args));
    }

    // The largest scratch that the slice of a thread takes.
    size_t scratch(const Split& split) const {
        ptrdiff_t most = 0;
        for (int rank : {0, split.threads() - 1})
            most = std::max(most, kernels.forward_scratch(args, plan, split.slice(plan, rank)));
        return size_t(most);
    }

    // The part of thread `rank` of a group. `scratch` is the scratch of the group, and `each` the size of
    // the scratch of a slice.
    void run(const Split& split, int rank, Meeting::Place& place, T* scratch, size_t each) const {
        if (rank >= split.threads()) return;
        Slice mine = split.slice(plan, rank);
        mine.wait = Meeting::Place::wait;
        mine.place = &place;
        kernels.forward(args, plan, mine, scratch + (split.units > 1 ? 0 : size_t(rank) * each));
    }
};

// A group of threads, which run some of the jobs together, one job after the other.
template <class T>
class Group {
public:
    Group(const std::vector<Job<T>>& jobs, const std::vector<JobWork>& work, size_t first,
          size_t stride, int threads) {
        for (size_t i = first; i < jobs.size(); i += stride) {
            tasks_.emplace_back(&jobs[i], best_split(work[i], threads));
            each_ = std::max(each_, jobs[i].scratch(tasks_.back().split));
            threads_ = std::max(threads_, tasks_.back().split.threads());
        }
        // Each slice's scratch begins on a cache line of its own.
        each_ = (each_ + 63) / 64 * 64;
    }

    size_t scratch() const { return each_ * size_t(threads_); }
    Forced schedule() const { return schedule_of(tasks_.front().split); }

    // Every thread of the team meets at `all` after each layer.
    void run(int rank, Meeting::Place& all, T* scratch) {
        for (Task& task : tasks_) {
            Meeting::Place place(task.meeting);
            task.job->run(task.split, rank, place, scratch, each_);
            all.wait();
        }
    }

private:
    struct Task {
        Task(const Job<T>* j, const Split& s) : job(j), split(s), meeting(s.units) {}
        const Job<T>* job;
        Split split;
        Meeting meeting;
    };
    std::deque<Task> tasks_;
    size_t each_ = 0;
    int threads_ = 1;
};

template <class T>
void run_alone(const ForwardJob<T>* jobs, size_t count) {
    note_schedule(Forced::none);
    const FormatScope format(jobs->weights->format());
    for (size_t i = 0; i < count; ++i) {
        const Job<T> job(jobs[i]);
        const ScratchBlock block(job.scratch({}) * sizeof(T));
        job.kernels.forward(job.args, job.plan, {{0, job.plan.batch}}, block.template as<T>());
    }
}

template <class T>
bool run_groups(const std::vector<Job<T>>& jobs, const std::vector<JobWork>& work,
                const Schedule& schedule, Team& team) {
    const bool directions = schedule.order == Order::directions;
    const int threads = schedule.threads;  // the team may be larger
    std::deque<Group<T>> groups;
    const size_t count = directions ? 2 : 1;
    size_t scratch = 0;
    for (size_t g = 0; g < count; ++g) {
        const int size = directions ? group_size(threads, int(g)) : threads;
        scratch += groups.emplace_back(jobs, work, g, count, size).scratch();
    }
    note_schedule(directions ? Forced::directions : groups[0].schedule());
    const ScratchBlock block(scratch * sizeof(T));
    Meeting meeting(threads);
    return team.run([&](int rank) {
        if (rank >= threads) return;
        const FloatEnv env;
        const FormatScope format(jobs[0].args.format);
        Meeting::Place all(meeting);
        const int first = directions ? group_size(threads, 0) : threads;
        if (rank < first)
            groups[0].run(rank, all, block.template as<T>());
        else
            groups[1].run(rank - first, all, block.template as<T>() + groups[0].scratch());
    });
}

// With n threads, each runs every n-th layer, one piece behind the layer below.
template <class T>
bool run_layers(const std::vector<Job<T>>& jobs, int wanted, Team& team) {
    note_schedule(Forced::layers);
    struct State {
        Signal* below;
        Signal* own;
        ptrdiff_t reported;
    };
    const size_t threads = size_t(wanted);  // the team may be larger
    size_t each = 0;
    for (const Job<T>& job : jobs) each = std::max(each, job.scratch({}));
    each = (each + 63) / 64 * 64;
    const ScratchBlock block(each * threads * sizeof(T));
    std::vector<Signal> done(jobs.size());
    return team.run([&](int rank) {
        if (rank >= wanted) return;
        const FloatEnv env;
        const FormatScope format(jobs[0].args.format);
        for (size_t l = size_t(rank); l < jobs.size(); l += threads) {
            const Job<T>& job = jobs[l];
            State state{l ? &done[l - 1] : nullptr, &done[l], 0};
            const Relay relay{(job.plan.steps + kPieces - 1) / kPieces,
                              [](void* s, ptrdiff_t steps) {
                                  if (Signal* below = static_cast<State*>(s)->below)
                                      below->wait(uint64_t(steps));
                              },
                              [](void* s, ptrdiff_t steps) {
                                  auto& [below, own, reported] = *static_cast<State*>(s);
                                  own->add(uint64_t(steps - reported));
                                  reported = steps;
                              },
                              &state};
            Slice slice{{0, job.plan.batch}};
            slice.relay = &relay;
            job.kernels.forward(job.args, job.plan, slice,
                                block.template as<T>() + size_t(rank) * each);
        }
    });
}

}  // namespace

template <class T>
void run_forward_stack(const ForwardJob<T>* given, int layers, int directions) {
    const size_t count = size_t(layers) * size_t(directions);
    if (given->plan->plan().batch == 0)
        return;          // for any T, which may be huge, since it costs no memory
    const FloatEnv env;  // also for the estimates, whose exception flags must not remain
    if (allowed_threads() == 1) return run_alone(given, count);
    double alone = 0;
    for (size_t i = 0; i < count; ++i) alone += Job<T>(given[i]).work().alone();
    if (!worth_a_team(alone, Workers::near)) return run_alone(given, count);
    const std::vector<Job<T>> jobs(given, given + count);
    std::vector<JobWork> work;
    for (const Job<T>& job : jobs) work.push_back(job.work());
    ScheduledTeam scheduled(work, layers, directions, alone);
    Team* const team = scheduled.team();
    const Schedule& schedule = scheduled.schedule();
    const bool has_run =
        team && (schedule.order == Order::layers ? run_layers(jobs, schedule.threads, *team)
                                                 : run_groups(jobs, work, schedule, *team));
    if (!has_run) run_alone(given, count);
}

#define DTYPE(name, type) template void run_forward_stack(const ForwardJob<type>*, int, int);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
