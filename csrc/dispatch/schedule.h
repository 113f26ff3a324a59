// How the work of a pass is divided among threads, chosen by estimates of what each way costs.
#pragma once

#include "dispatch/run.h"
#include "kernels/kernel_table.h"

namespace rnnfast {

// How a group of threads shares the steps of one job. Either each thread takes a shard of the batch, and
// they never meet in the time loop; or each takes some of the units of all rows, and they meet in each
// step. At least one of the two numbers is 1.
struct Split {
    int shards = 1;
    int units = 1;

    int threads() const { return shards > units ? shards : units; }

    // The part of thread `rank`.
    Slice slice(const Plan& plan, int rank) const {
        if (units > 1) return {{0, plan.batch}, rank, units};
        if (plan.active) return {share_in_turn(plan.batch, rank, shards)};
        return {share(plan.batch, rank, shards)};
    }
};

// Whether a pass reads packed or borrowed weights.
template <class T>
Held held(const ForwardArgs<T>& args) {
    return args.packed ? Held::packed : Held::borrowed;
}

// What one job costs one thread. A cost is in ns unless its comment says otherwise.
struct JobWork {
    ptrdiff_t steps;
    ptrdiff_t batch;
    ptrdiff_t panels;  // the number of parts in which threads can share the units
    double rows;       // the average number of rows that have a step
    double row_step;   // the recurrent product of one row in one step
    double far_rows;   // the cost of reading R in a step, in units of row_step; 0: R is near
    double row_bytes;  // bytes of a row that threads exchange in a step if they share units
    double rest;       // the work that threads share evenly
    bool rest_by_all;  // whether all threads of the group share `rest`, or only those of the split
    int meetings;      // in a step, of threads that share the units
    ptrdiff_t phases;  // the number of further meetings of all threads, outside the steps
    ptrdiff_t pieces;  // of the steps, for a layer that runs one piece behind; 0: impossible

    double alone() const;
};

// `format`: as in ForwardArgs.
template <class T>
JobWork forward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                     const Plan& plan, Held held = Held::packed);

// `chunks`: the number of chunks of the backward pass. `left`: whether BackwardArgs has a `left`.
template <class T>
JobWork backward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                      const Plan& plan, Held held, ptrdiff_t chunks, bool left);

// For tests: forces a schedule on any sizes, even if the estimates would not choose it. Teams then wait
// for every thread that they ask for.
enum class Forced { none, shards, units, directions, layers, estimated };
void force_schedule(Forced forced);
Forced forced_schedule();
// Whether the forced schedule may differ from the estimates' choice. `estimated` is that choice, without
// trials of other ways, so then this is false.
bool is_forced();

// The schedule of the last pass of any thread, so that tests can check that a forced schedule ran.
// `none`: one thread ran the pass alone.
void note_schedule(Forced ran);
Forced last_schedule();

// The state of the other threads: `anywhere` means that they may sleep, `near` that they spin.
enum class Workers { anywhere, near };

// Whether work that takes one thread `alone_ns` may be worth more threads.
bool worth_a_team(double alone_ns, Workers workers = Workers::anywhere);

inline Forced schedule_of(const Split& split) {
    return split.units > 1 ? Forced::units : split.shards > 1 ? Forced::shards : Forced::none;
}

// The best split for at most `threads`.
Split best_split(const JobWork& work, int threads);

// How a stack of jobs is divided among threads.
enum class Order {
    in_turn,     // all threads run one job after the other
    directions,  // half of them run each direction of a layer
    layers       // each runs a layer of its own, one chunk behind the layer whose results it reads
};
struct Schedule {
    Order order = Order::in_turn;
    int threads = 1;
};

// The fastest schedule on at most `threads` threads; it has 1 thread if more would not pay. `jobs` are in
// the order of layers and, within a layer, of directions.
Schedule best_schedule(const JobWork* jobs, int layers, int directions, int threads,
                       Workers workers = Workers::anywhere);

// The number of threads, of `threads` in all, that run direction `direction` of two.
inline int group_size(int threads, int direction) {
    return direction ? threads / 2 : threads - threads / 2;
}

}  // namespace rnnfast
