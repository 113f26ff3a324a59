// The backward pass of a stack: chunks, schedules, scratch, threads.
#include <algorithm>
#include <deque>
#include <vector>

#include "dispatch/chunks.h"
#include "dispatch/float_env.h"
#include "dispatch/scheduled_team.h"
#include "dispatch/stack.h"

namespace rnnfast {
namespace {

// Whether it pays to keep the transpose of W, for chunks of at most `rows` rows. If W is large and a chunk
// has many rows, each chunk makes the transpose anew: with 512 to 256 rows that takes 2 to 4 % of the
// product with it, which is a third of backward. Threads then share the columns of the transpose, so W
// must have enough of them for several panels.
template <class T>
bool keeps_transposed_w(const CellKernels<T>& kernels, const ForwardArgs<T>& args, ptrdiff_t rows) {
    constexpr ptrdiff_t kLarge = ptrdiff_t(1) << 20, kMany = 96, kWide = 256;  // bytes, rows, I
    const ptrdiff_t size = kernels.gates * args.sizes.hidden * args.sizes.input;
    return args.format || size * ptrdiff_t(sizeof(T)) < kLarge || rows < kMany ||
           args.sizes.input < kWide;
}

template <class T>
struct Job {
    const CellKernels<T>& kernels;
    ForwardArgs<T> args;
    BackwardArgs<T> grads;
    const Plan& plan;
    std::vector<Chunk> chunks;
    ptrdiff_t most_rows = 0;  // the most rows that a chunk has
    size_t shared, own = 0;   // scratch of the pass, and of each of its threads in addition

    explicit Job(const BackwardJob<T>& job)
        : kernels(job.weights->kernels()),
          args(job.args),
          grads(job.grads),
          plan(job.plan->plan()) {
        args.sizes = job.weights->sizes();
        args.weights = job.weights->weights();
        args.packed = job.weights->packed();
        args.format = job.weights->format();
        // Nothing reads the transpose of R in a pass of one step without a gradient at the initial state.
        if (grads.dh0 || (plan.steps > 1 && !grads.left) || kernels.meetings(args.sizes) > 1)
            grads.transposed = job.weights->transposed(Transposed::of_steps);
        const ptrdiff_t row = kernels.gradient_row(args.sizes);
        chunks = make_chunks(plan, row, row * (args.sizes.input + args.sizes.width()));
        for (const Chunk& chunk : chunks)
            most_rows = std::max(most_rows, plan.start(chunk.end) - plan.start(chunk.begin));
        if (grads.dx)
            grads.transposed_w = job.weights->transposed(
                Transposed::of_input, keeps_transposed_w(kernels, args, most_rows));
        const auto whole = [](ptrdiff_t n) { return size_t(n + 63) / 64 * 64; };
        shared = whole(kernels.backward_scratch(args, grads, plan, most_rows));
        own = whole(kernels.products_scratch(args, grads, most_rows));
    }

    JobWork work() const {
        return backward_work(kernels, args.sizes, args.format, plan, held(args),
                             ptrdiff_t(chunks.size()), grads.left != nullptr);
    }

    void phase(const BackwardWork& work, T* memory) const {
        kernels.backward(args, grads, plan, most_rows, memory,
                         memory + shared + own * size_t(work.part), work);
    }

    // await(chunk) returns once the data that the chunk reads are complete. report(chunk) is called once
    // the chunk's results are written.
    template <class Await, class Report>
    void run_alone(T* memory, const Await& await, const Report& report) const {
        const Slice all{{0, plan.batch}};
        // `begin` clears dx past the lengths, in memory that layers share, so it must wait, too.
        if (!chunks.empty()) await(chunks.front());
        phase({BackwardPhase::begin, {0, 0}, all, 0, 1}, memory);
        for (const Chunk& chunk : chunks) {
            await(chunk);
            phase({BackwardPhase::steps, chunk, all, 0, 1}, memory);
            phase({BackwardPhase::products, chunk, all, 0, 1, &chunk == &chunks.front()}, memory);
            report(chunk);
        }
        phase({BackwardPhase::end, {0, 0}, all, 0, 1}, memory);
    }

    void run_alone(T* memory) const {
        run_alone(memory, [](const Chunk&) {}, [](const Chunk&) {});
    }

    // The part of thread `rank` in a group of `size`. All of the group's threads meet at `group`; those that
    // share the units also meet at `units`.
    void run(const Split& split, int rank, int size, Meeting::Place& group, Meeting::Place& units,
             T* memory) const {
        const bool has_steps = rank < split.threads();  // the others only help with the products
        Slice mine = has_steps ? split.slice(plan, rank) : Slice{{0, 0}};
        mine.wait = Meeting::Place::wait;
        mine.place = &units;
        const bool has_rows = has_steps && mine.part == 0;
        if (has_rows) phase({BackwardPhase::begin, {0, 0}, mine, rank, size}, memory);
        group.wait();
        for (const Chunk& chunk : chunks) {
            if (has_steps) phase({BackwardPhase::steps, chunk, mine, rank, size}, memory);
            group.wait();
            phase({BackwardPhase::products, chunk, mine, rank, size, &chunk == &chunks.front()},
                  memory);
            group.wait();
        }
        if (has_rows) phase({BackwardPhase::end, {0, 0}, mine, rank, size}, memory);
    }
};

// Adds part `part` of `parts` of the dx of a layer's second direction to that of its first.
template <class T>
void add_directions(const Job<T>& first, const Job<T>& second, int part, int parts) {
    if (!first.grads.dx) return;
    const ptrdiff_t count = first.plan.array_rows() * first.args.sizes.input;
    const Shard mine = share(count, part, parts);
    for (ptrdiff_t i = mine.begin; i < mine.end; ++i) first.grads.dx[i] += second.grads.dx[i];
}

template <class T>
void clear_gradients(const BackwardJob<T>& job) {
    const Sizes& s = job.weights->sizes();
    const ptrdiff_t rows = job.weights->kernels().gates * s.hidden;
    const Weights<T>& w = job.grads.weights;
    const auto clear = [](T* gradient, ptrdiff_t count) {
        if (gradient) std::fill_n(gradient, count, T(0));
    };
    clear(w.weight_ih, rows * s.input);
    clear(w.weight_hh, rows * s.width());
    clear(w.bias_ih, rows);
    clear(w.bias_hh, rows);
    clear(w.weight_hr, s.projection * s.hidden);
}

template <class T>
void run_alone(const std::vector<Job<T>>& jobs, int directions) {
    note_schedule(Forced::none);
    const FormatScope format(jobs[0].args.format);
    for (size_t end = jobs.size(); end > 0; end -= size_t(directions)) {
        const size_t first = end - size_t(directions);
        for (size_t i = first; i < end; ++i) {
            const ScratchBlock block((jobs[i].shared + jobs[i].own) * sizeof(T));
            jobs[i].run_alone(block.template as<T>());
        }
        if (directions == 2) add_directions(jobs[first], jobs[first + 1], 0, 1);
    }
}

// All threads run one job after the other, or one group of threads runs each direction of a layer.
template <class T>
bool run_groups(const std::vector<Job<T>>& jobs, const std::vector<JobWork>& work, int directions,
                const Schedule& schedule, Team& team) {
    struct Task {
        Task(const Split& s, int size) : split(s), group(size), units(s.units) {}
        Split split;
        Meeting group, units;
    };
    const bool groups = schedule.order == Order::directions;
    const int threads = schedule.threads;  // the team may be larger
    const auto size_of = [&](size_t i) {
        return groups ? group_size(threads, int(i) % 2) : threads;
    };
    std::deque<Task> tasks;
    size_t scratch = 0;  // of one group
    for (size_t i = 0; i < jobs.size(); ++i) {
        tasks.emplace_back(best_split(work[i], size_of(i)), size_of(i));
        scratch = std::max(scratch, jobs[i].shared + jobs[i].own * size_t(size_of(i)));
    }
    note_schedule(groups ? Forced::directions : schedule_of(tasks.front().split));
    const ScratchBlock block((groups ? 2 : 1) * scratch * sizeof(T));
    Meeting everyone(threads);
    return team.run([&](int rank) {
        if (rank >= threads) return;
        const FloatEnv env;
        const FormatScope format(jobs[0].args.format);
        Meeting::Place all(everyone);
        const int first_size = groups ? group_size(threads, 0) : threads;
        const size_t mine = rank < first_size ? 0 : 1;  // the index of its group
        T* const memory = block.template as<T>() + mine * scratch;
        for (size_t end = jobs.size(); end > 0; end -= size_t(directions)) {
            const size_t first = end - size_t(directions);
            for (size_t i = first; i < end; ++i) {
                if (groups && i - first != mine) continue;
                Meeting::Place group(tasks[i].group), units(tasks[i].units);
                jobs[i].run(tasks[i].split, rank - (mine ? first_size : 0), size_of(i), group,
                            units, memory);
                if (!groups) all.wait();
            }
            if (groups) all.wait();
            if (directions == 2) {
                add_directions(jobs[first], jobs[first + 1], rank, threads);
                all.wait();
            }
        }
    });
}

// With n threads, each runs every n-th layer from the top down, one chunk behind the layer above.
template <class T>
bool run_layers(const std::vector<Job<T>>& jobs, int wanted, Team& team) {
    note_schedule(Forced::layers);
    const size_t threads = size_t(wanted);  // the team may be larger
    size_t each = 0;
    for (const Job<T>& job : jobs) each = std::max(each, job.shared + job.own);
    const ScratchBlock block(each * threads * sizeof(T));
    std::vector<Signal> done(jobs.size() + 1);  // for each layer: the steps whose dx is complete
    done.back().add(uint64_t(jobs[0].plan.steps));
    return team.run([&](int rank) {
        if (rank >= wanted) return;
        const FloatEnv env;
        const FormatScope format(jobs[0].args.format);
        for (size_t from_top = size_t(rank); from_top < jobs.size(); from_top += threads) {
            const size_t l = jobs.size() - 1 - from_top;
            const Job<T>& job = jobs[l];
            const auto await = [&](const Chunk& chunk) {
                done[l + 1].wait(uint64_t(job.plan.steps - chunk.begin));
            };
            const auto report = [&](const Chunk& chunk) {
                done[l].add(uint64_t(chunk.end - chunk.begin));
            };
            job.run_alone(block.template as<T>() + size_t(rank) * each, await, report);
        }
    });
}

}  // namespace

template <class T>
void run_backward_stack(const BackwardJob<T>* given, int layers, int directions) {
    const Plan& plan = given->plan->plan();
    if (plan.batch == 0 || plan.steps == 0)  // no chunk would assign the gradients
        for (int i = 0; i < layers * directions; ++i)
            if (given[i].grads.assign) clear_gradients(given[i]);
    if (plan.batch == 0) return;
    const FloatEnv env;  // also for the estimates, whose exception flags must not remain
    const std::vector<Job<T>> jobs(given, given + layers * directions);
    std::vector<JobWork> work;
    double alone = 0;
    for (const Job<T>& job : jobs) {
        work.push_back(job.work());
        alone += work.back().alone();
    }
    if (allowed_threads() == 1 || !worth_a_team(alone, Workers::near))
        return run_alone(jobs, directions);
    ScheduledTeam scheduled(work, layers, directions, alone);
    Team* const team = scheduled.team();
    const Schedule& schedule = scheduled.schedule();
    const bool has_run = team && (schedule.order == Order::layers
                                      ? run_layers(jobs, schedule.threads, *team)
                                      : run_groups(jobs, work, directions, schedule, *team));
    if (!has_run) run_alone(jobs, directions);
}

#define DTYPE(name, type) template void run_backward_stack(const BackwardJob<type>*, int, int);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
