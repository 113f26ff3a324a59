// How the work of a pass is shared out to threads: estimates of what each way costs.
#pragma once

#include "dispatch/run.h"
#include "kernels/kernel_table.h"

namespace rnnfast {

// How a group of threads shares the steps of one job: shards of the batch, which never meet in the
// time loop, or the units, of all rows, with a meeting in each step. At least one of them is 1.
struct Split {
    int shards = 1;
    int units = 1;

    int threads() const { return shards > units ? shards : units; }

    // What thread `rank` of them does.
    Slice slice(const Plan& plan, int rank) const {
        if (units > 1) return {{0, plan.batch}, rank, units};
        if (plan.active) return {share_in_turn(plan.batch, rank, shards)};
        return {share(plan.batch, rank, shards)};
    }
};

// How a pass has the weights.
template <class T>
Held held(const ForwardArgs<T>& args) {
    return args.packed ? Held::packed : Held::borrowed;
}

// What one job costs one thread, in ns where nothing else is said.
struct JobWork {
    ptrdiff_t steps;
    ptrdiff_t batch;
    ptrdiff_t panels;  // of units
    double rows;       // with a step, on average
    double row_step;   // the recurrent product of one row in one step
    double far_rows;   // what it costs in a step to read R, in rows of that; 0: R is near
    double row_bytes;  // of what threads that share the units tell each other of a row
    double rest;       // what is shared out evenly
    bool rest_by_all;  // among all threads of the group; otherwise among those of the split
    int meetings;      // of units in a step
    ptrdiff_t phases;  // after which all threads meet, besides the steps
    ptrdiff_t pieces;  // that another layer can run a piece behind; 0: it cannot

    double alone() const;
};

// `format`: as that of ForwardArgs.
template <class T>
JobWork forward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                     const Plan& plan, Held held = Held::packed);

// `chunks`: of the backward pass. `left`: as that of BackwardArgs.
template <class T>
JobWork backward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                      const Plan& plan, Held held, ptrdiff_t chunks, bool left);

// For tests: schedules that estimates would not choose, on whatever sizes. Teams then wait for every
// thread that they ask for.
enum class Forced { none, shards, units, directions, layers, estimated };
void force_schedule(Forced forced);
Forced forced_schedule();
// Whether it is one that estimates might not choose. `estimated` only leaves out trials of other ways.
bool is_forced();

// What the last pass of any thread ran as, to prove that what was forced is what ran; `none`: alone.
void note_schedule(Forced ran);
Forced last_schedule();

// Where the other threads are: they may be asleep, or they spin, near at hand.
enum class Workers { anywhere, near };

// Whether work that takes one thread so long can be worth other threads.
bool worth_a_team(double alone_ns, Workers workers = Workers::anywhere);

inline Forced schedule_of(const Split& split) {
    return split.units > 1 ? Forced::units : split.shards > 1 ? Forced::shards : Forced::none;
}

// The best split for at most `threads`.
Split best_split(const JobWork& work, int threads);

// How a stack of jobs is shared out.
enum class Order {
    in_turn,     // all threads on one job after the other
    directions,  // half of them on each direction of a layer
    layers       // each thread on a layer of its own, a chunk behind the one that it reads
};
struct Schedule {
    Order order = Order::in_turn;
    int threads = 1;
};

// The schedule that is fastest on at most `threads`: 1 where more would not pay. `jobs` stand layer
// by layer, direction by direction.
Schedule best_schedule(const JobWork* jobs, int layers, int directions, int threads,
                       Workers workers = Workers::anywhere);

// Threads of the group that runs direction `direction` of two, of `threads` in all.
inline int group_size(int threads, int direction) {
    return direction ? threads / 2 : threads - threads / 2;
}

}  // namespace rnnfast
