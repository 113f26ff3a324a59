#include "dispatch/schedule.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace rnnfast {
namespace {

// Measured on one Zen 4 core near its peak. Only its proportion to the costs of threads below matters.
constexpr double kProductsPerNs = 50;  // float32; half as many in float64; a format has a `speed`
// A product of one row is bound by reading the weights, and takes as long as this many rows together.
constexpr double kLeastRows = 3;
// Weights of this many bytes or more come from L3 or memory in each step. Products hide the time that
// this takes, except for the time of this many rows.
constexpr double kFarBytes = 8 << 20, kFarRows = 4;
// The cost of a meeting of two threads in a step, including the cache lines of h that move between their
// caches: 120 to 300 ns with one row at H = 128 to 256. Each further thread adds to it.
constexpr double kMeetingNs = 250, kMeetingPerThreadNs = 50;
// The bytes per ns at which a thread reads the parts of a step's rows that are in other threads' caches.
constexpr double kMovedBytesPerNs = 3;
// The cost of a team: to gather it, to meet at its end, and to fill the caches of its threads.
constexpr double kTeamNs = 5000, kTeamPerThreadNs = 500;
// The cost of a team whose threads spin. If two cores are far apart, it is 4 us, and a meeting takes three
// times as long as above. Estimates do not know that; the trials of `way_of` find it out.
constexpr double kNearTeamNs = 1500, kNearTeamPerThreadNs = 200;
// One thread runs shorter work alone: with one row of packed weights, the estimate may be three times
// too long.
constexpr double kLeastForNearNs = 20'000;
// More threads are used only if the estimate is below this share of the time of one thread. The share is
// lower for short work, since the workers may be asleep.
constexpr double kGain = 0.85, kGainOfShort = 0.6, kGainOfNear = 0.85, kShortNs = 250000;

double gain(double alone_ns, Workers workers) {
    if (workers == Workers::near) return kGainOfNear;
    return alone_ns < kShortNs ? kGainOfShort : kGain;
}
double team_ns(Workers workers) { return workers == Workers::near ? kNearTeamNs : kTeamNs; }
double team_per_thread_ns(Workers workers) {
    return workers == Workers::near ? kNearTeamPerThreadNs : kTeamPerThreadNs;
}

std::atomic<Forced> forced{Forced::none}, last{Forced::none};

double rows_cost(double rows) { return std::max(rows, kLeastRows); }

double split_ns(const JobWork& w, const Split& split, int threads) {
    const double steps = double(w.steps);
    double loop;
    if (split.units > 1) {
        const double share = std::ceil(double(w.panels) / split.units) / double(w.panels);
        const double others = double(split.units - 1) / split.units;
        loop = steps * ((rows_cost(w.rows) + w.far_rows) * w.row_step * share +
                        w.meetings * (kMeetingNs + kMeetingPerThreadNs * (split.units - 2)) +
                        w.rows * w.row_bytes * others / kMovedBytesPerNs);
    } else {
        // Threads take whole rows of the batch. If rows have ended, the rest is assumed to be in proportion.
        const double share = std::ceil(double(w.batch) / split.shards) / double(w.batch);
        loop = steps * (rows_cost(w.rows * share) + w.far_rows) * w.row_step;
    }
    return loop + w.rest / (w.rest_by_all ? threads : split.threads());
}

double best_ns(const JobWork& w, int threads, Workers workers) {
    const double phases = workers == Workers::near ? double(w.phases) : 0;
    return split_ns(w, best_split(w, threads), threads) + phases * kMeetingNs;
}

template <class T>
JobWork work_of(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                const Plan& plan, Held held) {
    const double speed = !format           ? double(sizeof(float)) / sizeof(T)
                         : plan.batch == 1 ? double(format->row_speed)
                                           : double(format->speed);
    const double per_ns = kProductsPerNs * speed;
    const double row = double(kernels.gradient_row(sizes));  // gates and units, padded
    JobWork w{};
    w.steps = plan.steps;
    w.batch = plan.batch;
    w.rows = double(plan.start(plan.steps)) / double(std::max<ptrdiff_t>(plan.steps, 1));
    w.row_step = row * double(sizes.width()) / per_ns;
    // For forward, the rest is the product with W. Backward adds to it in `backward_work`. Reading a
    // borrowed W takes as long as reading R.
    const double rows_of_all = w.rows * double(w.steps);
    w.rest = (held == Held::borrowed ? rows_cost(rows_of_all) : rows_of_all) * row *
             double(sizes.input) / per_ns;
    const double of_r = double(kernels.gates * sizes.hidden) * double(sizes.width());
    const double element = double(sizeof(T)) / (format ? double(format->of_word) : 1);
    if (of_r * element >= kFarBytes) w.far_rows = kFarRows;
    w.row_bytes = double(sizes.width()) * sizeof(T);
    w.panels = kernels.unit_panels(sizes);
    w.meetings = kernels.meetings(sizes);
    return w;
}

}  // namespace

double JobWork::alone() const { return split_ns(*this, {}, 1); }

template <class T>
JobWork forward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                     const Plan& plan, Held held) {
    JobWork w = work_of(kernels, sizes, format, plan, held);
    w.pieces = plan.steps;
    return w;
}

template <class T>
JobWork backward_work(const CellKernels<T>& kernels, const Sizes& sizes, const Format* format,
                      const Plan& plan, Held held, ptrdiff_t chunks, bool left) {
    constexpr double kCopiedPerNs = 8;  // elements of gate gradients
    constexpr ptrdiff_t kPhases = 5;    // in a chunk: copies, steps and products
    JobWork w = work_of(kernels, sizes, format, plan, held);
    w.rest = (left ? 1 : 2) * w.rest + w.rows * double(w.steps) * w.row_step;
    w.row_bytes = double(kernels.gradient_row(sizes)) * sizeof(T);
    if (left) {  // steps only copy rows
        w.row_step = double(kernels.gradient_row(sizes)) / kCopiedPerNs;
        w.meetings = 0, w.far_rows = 0, w.row_bytes = 0;
    }
    w.rest_by_all = true;
    w.pieces = chunks;
    w.phases = kPhases * chunks;
    return w;
}

void force_schedule(Forced schedule) { forced = schedule; }
Forced forced_schedule() { return forced.load(std::memory_order_relaxed); }
bool is_forced() {
    const Forced now = forced_schedule();
    return now != Forced::none && now != Forced::estimated;
}

void note_schedule(Forced ran) { last.store(ran, std::memory_order_relaxed); }
Forced last_schedule() { return last.load(std::memory_order_relaxed); }

bool worth_a_team(double alone_ns, Workers workers) {
    const bool is_worth = workers == Workers::near ? alone_ns > kLeastForNearNs
                                                   : alone_ns * gain(alone_ns, workers) > kTeamNs;
    return is_worth || is_forced();
}

Split best_split(const JobWork& work, int threads) {
    const Split by_rows{int(std::min<ptrdiff_t>(threads, work.batch)), 1};
    const Split by_units{1, int(std::min<ptrdiff_t>(threads, work.panels))};
    if (forced_schedule() == Forced::shards) return by_rows;
    if (forced_schedule() == Forced::units) return by_units;
    Split best;
    double shortest = split_ns(work, best, threads);
    const auto consider = [&](const Split& split) {
        const double ns = split_ns(work, split, threads);
        if (ns < shortest) shortest = ns, best = split;
    };
    consider(by_rows);
    for (int units = by_units.units; units > 1; units /= 2) consider({1, units});
    return best;
}

Schedule best_schedule(const JobWork* jobs, int layers, int directions, int threads,
                       Workers workers) {
    double alone = 0;
    const int count = layers * directions;
    for (int i = 0; i < count; ++i) alone += jobs[i].alone();
    Schedule best;
    double best_so_far = alone * gain(alone, workers);
    const auto consider = [&](Order order, int n, double ns) {
        ns += team_ns(workers) + team_per_thread_ns(workers) * n;
        if (ns < best_so_far) best_so_far = ns, best = {order, n};
    };
    if (!worth_a_team(alone, workers)) return best;
    switch (forced_schedule()) {
        case Forced::none:
        case Forced::estimated:
            break;
        case Forced::directions:
            return {directions == 2 ? Order::directions : Order::in_turn, threads};
        case Forced::layers:
            if (directions == 1 && layers > 1) return {Order::layers, std::min(threads, layers)};
            return {Order::in_turn, threads};
        default:
            return {Order::in_turn, threads};
    }
    for (int n = threads; n > 1; n /= 2) {
        double in_turn = 0, in_two = 0;
        for (int i = 0; i < count; ++i) in_turn += best_ns(jobs[i], n, workers);
        consider(Order::in_turn, n, in_turn);
        if (directions == 2) {
            for (int i = 0; i < count; i += 2)
                in_two += std::max(best_ns(jobs[i], group_size(n, 0), workers),
                                   best_ns(jobs[i + 1], group_size(n, 1), workers));
            consider(Order::directions, n, in_two);
        }
    }
    if (directions == 1 && layers > 1) {
        const int n = std::min(threads, layers);
        double longest = 0;
        ptrdiff_t pieces = jobs[0].pieces;
        for (int i = 0; i < count; ++i) {
            longest = std::max(longest, jobs[i].alone());
            pieces = std::min(pieces, jobs[i].pieces);
        }
        // Each thread runs `turns` layers. The last thread starts n - 1 pieces after the first.
        const double turns = std::ceil(double(layers) / n);
        if (pieces > 0)
            consider(Order::layers, n,
                     longest * (turns + double(n - 1) / std::min<double>(16, double(pieces))));
    }
    return best;
}

#define DTYPE(name, type)                                                                 \
    template JobWork forward_work(const CellKernels<type>&, const Sizes&, const Format*,  \
                                  const Plan&, Held);                                     \
    template JobWork backward_work(const CellKernels<type>&, const Sizes&, const Format*, \
                                   const Plan&, Held, ptrdiff_t, bool);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
