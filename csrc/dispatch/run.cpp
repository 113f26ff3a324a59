#include "dispatch/run.h"

#include <algorithm>
#include <numeric>

#include "dispatch/float_env.h"
#include "dispatch/registry.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

// A thread's share of the multiplications of a pass below which waking it costs more: 10 to 20 us.
constexpr ptrdiff_t kLeastWork = 1 << 19;
// A shard of fewer rows reads as many weights and multiplies no faster.
constexpr ptrdiff_t kLeastRows = 4;

// How many threads, at most, have enough to do: `rows` over all the steps.
template <class T>
int most_threads(const CellKernels<T>& kernels, const Sizes& sizes, ptrdiff_t rows) {
    const ptrdiff_t work = rows * kernels.gradient_row(sizes) * (sizes.input + sizes.width());
    return int(std::clamp<ptrdiff_t>(work / kLeastWork, 1, num_threads()));
}

int most_shards(ptrdiff_t batch, int threads) {
    return int(std::clamp<ptrdiff_t>(batch / kLeastRows, 1, threads));
}

// Cuts the steps into chunks, in the order in which backward runs them. A chunk's gate gradients
// stay in L2, and it has rows enough to make the parameters' products efficient.
std::vector<Chunk> backward_chunks(const Plan& plan, ptrdiff_t gradient_row, ptrdiff_t weights) {
    constexpr ptrdiff_t kElements = 131072, kRows = 128;
    // Where the parameters' gradients leave L2, each chunk reads and writes them once more.
    constexpr ptrdiff_t kInL2 = 262144, kMostElements = 1048576, kMostRows = 512;
    ptrdiff_t target = std::max(kRows, kElements / gradient_row);
    if (weights > kInL2)
        target = std::max(target, std::min(kMostRows, kMostElements / gradient_row));
    std::vector<Chunk> chunks;
    for (ptrdiff_t done = 0; done < plan.steps;) {
        const ptrdiff_t from = done;
        ptrdiff_t rows = 0;
        while (done < plan.steps && rows < target) {
            rows += plan.rows(plan.reverse ? done : plan.steps - 1 - done);
            ++done;
        }
        chunks.push_back(plan.reverse ? Chunk{from, done}
                                      : Chunk{plan.steps - done, plan.steps - from});
    }
    return chunks;
}

}  // namespace

template <class T>
PackedWeights<T>::PackedWeights(CellId cell, const Sizes& sizes, const Weights<T>& weights)
    : kernels_(active_kernels_for<T>().cells[int(cell)]),
      sizes_(sizes),
      packed_(allocate<T>(kernels_.packed_size(sizes))) {
    const FloatEnv env;  // biases are added
    kernels_.pack(sizes_, weights, packed_.get());
}

template <class T>
PackedWeights<T>::~PackedWeights() {
    if (T* const there = transposed_.load())
        free_bytes(there, size_t(kernels_.transposed_size(sizes_)) * sizeof(T));
}

template <class T>
const T* PackedWeights<T>::transposed() const {
    if (const T* there = transposed_.load(std::memory_order_acquire)) return there;
    // Two threads may both come here; the first to end wins. No lock, which a fork could leave held.
    Buffer<T> made = allocate<T>(kernels_.transposed_size(sizes_));
    kernels_.pack_transposed(sizes_, packed_.get(), made.get());
    T* expected = nullptr;
    if (transposed_.compare_exchange_strong(expected, made.get(), std::memory_order_acq_rel))
        return made.release();
    return expected;
}

RowPlan::RowPlan(ptrdiff_t steps, ptrdiff_t batch, bool reverse, const int64_t* lengths)
    : plan_{steps, batch, reverse, nullptr, nullptr, nullptr} {
    if (!lengths ||
        std::all_of(lengths, lengths + batch, [steps](int64_t length) { return length == steps; }))
        return;
    order_.resize(size_t(batch));
    std::iota(order_.begin(), order_.end(), ptrdiff_t(0));
    std::stable_sort(order_.begin(), order_.end(),
                     [lengths](ptrdiff_t a, ptrdiff_t b) { return lengths[a] > lengths[b]; });
    active_.assign(size_t(steps), 0);
    first_.assign(size_t(steps) + 1, 0);
    for (ptrdiff_t row = 0; row < batch; ++row)
        if (lengths[row] > 0) ++active_[size_t(lengths[row]) - 1];  // rows whose last step it is
    for (size_t t = active_.size(); t-- > 1;) active_[t - 1] += active_[t];
    std::partial_sum(active_.begin(), active_.end(), first_.begin() + 1);
    plan_.order = order_.data();
    plan_.active = active_.data();
    plan_.first = first_.data();
}

template <class T>
void run_forward(const PackedWeights<T>& weights, ForwardArgs<T> args, const RowPlan& rows) {
    const CellKernels<T>& kernels = weights.kernels();
    const Plan& plan = rows.plan();
    if (plan.batch == 0) return;  // whatever T, which costs no memory and may be huge
    args.sizes = weights.sizes();
    args.packed = weights.packed();
    const int most = most_shards(plan.batch, most_threads(kernels, args.sizes, rows.rows()));
    // Allocated here, since a worker must not throw. The first shard of equals is the smallest.
    const ptrdiff_t each = kernels.forward_scratch(args, plan, share(plan.batch, most - 1, most));
    const ScratchBlock block(size_t(each) * size_t(most) * sizeof(T));
    T* const scratch = static_cast<T*>(block.get());
    parallel(most, [&](int index, int team, Barrier&) {
        const FloatEnv env;
        // A team may be smaller than asked for: then a member takes several shards in turn.
        for (int i = index; i < most; i += team)
            kernels.forward(args, plan, share(plan.batch, i, most), scratch + i * each);
    });
}

template <class T>
void run_backward(const PackedWeights<T>& weights, ForwardArgs<T> args, BackwardArgs<T> grads,
                  const RowPlan& rows) {
    const CellKernels<T>& kernels = weights.kernels();
    const Plan& plan = rows.plan();
    if (plan.batch == 0) return;
    args.sizes = weights.sizes();
    grads.transposed = weights.transposed();
    const std::vector<Chunk> chunks =
        backward_chunks(plan, kernels.gradient_row(args.sizes),
                        kernels.gradient_row(args.sizes) * (args.sizes.input + args.sizes.width()));
    ptrdiff_t most_rows = 0;
    for (const Chunk& chunk : chunks)
        most_rows = std::max(most_rows, plan.start(chunk.end) - plan.start(chunk.begin));
    const ScratchBlock block(size_t(kernels.backward_scratch(args, grads, plan, most_rows)) *
                             sizeof(T));
    T* const scratch = static_cast<T*>(block.get());
    // Backward multiplies twice as much as forward.
    const int most = most_threads(kernels, args.sizes, 2 * rows.rows());
    parallel(most, [&](int index, int team, Barrier& barrier) {
        const FloatEnv env;
        const int shards = most_shards(plan.batch, team);
        const bool steps = index < shards;  // the others help with the products alone
        const Shard shard = steps ? share(plan.batch, index, shards) : Shard{0, 0};
        const auto run = [&](BackwardPhase phase, const Chunk& chunk) {
            kernels.backward(args, grads, plan, most_rows, scratch,
                             {phase, chunk, {shard}, index, team});
        };
        if (steps) run(BackwardPhase::begin, {0, 0});
        barrier.wait();
        for (const Chunk& chunk : chunks) {
            if (steps) run(BackwardPhase::steps, chunk);
            barrier.wait();
            run(BackwardPhase::products, chunk);
            barrier.wait();
        }
        if (steps) run(BackwardPhase::end, {0, 0});
    });
}

#define DTYPE(name, type)                                                                         \
    template class PackedWeights<type>;                                                           \
    template void run_forward(const PackedWeights<type>&, ForwardArgs<type>, const RowPlan&);     \
    template void run_backward(const PackedWeights<type>&, ForwardArgs<type>, BackwardArgs<type>, \
                               const RowPlan&);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
