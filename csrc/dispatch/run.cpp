#include "dispatch/run.h"

#include <algorithm>
#include <numeric>

#include "dispatch/float_env.h"
#include "dispatch/registry.h"
#include "dispatch/stack.h"

namespace rnnfast {

template <class T>
PackedWeights<T>::PackedWeights(CellId cell, const Sizes& sizes, const Weights<const T>& weights,
                                Held held, const Format* format)
    : kernels_(active_kernels_for<T>().cells[int(cell)]),
      sizes_(sizes),
      format_(format),
      weights_(held == Held::borrowed ? weights : Weights<const T>{}),
      packed_(held == Held::borrowed ? nullptr : allocate<T>(kernels_.packed_size(sizes, format))) {
    if (borrowed()) return;
    const FloatEnv env;  // packing adds biases
    kernels_.pack(sizes_, format, weights, packed_.get());
}

template <class T>
PackedWeights<T>::~PackedWeights() {
    for (auto& transposed : transposed_) delete transposed.load();
}

template <class T>
const T* PackedWeights<T>::transposed(Transposed which, bool make) const {
    if (borrowed()) return nullptr;
    auto& kept = transposed_[int(which)];
    const Buffer<T>* there = kept.load(std::memory_order_acquire);
    if (there) return there->get();
    if (!make) return nullptr;
    // Several threads may be here at once; the first that ends wins. There is no lock, since a fork could
    // leave it held.
    const ptrdiff_t size = kernels_.transposed_size(sizes_, format_, which);
    auto made = std::make_unique<Buffer<T>>(allocate<T>(size));
    kernels_.pack_transposed(sizes_, format_, packed_.get(), which, made->get());
    if (kept.compare_exchange_strong(there, made.get(), std::memory_order_acq_rel))
        return made.release()->get();
    return there->get();
}

RowPlan::RowPlan(ptrdiff_t steps, ptrdiff_t batch, bool reverse, const int64_t* lengths,
                 const int64_t* batch_sizes)
    : plan_{steps, batch, reverse, nullptr, nullptr, nullptr, batch_sizes != nullptr} {
    if (batch_sizes) {
        active_.assign(batch_sizes, batch_sizes + steps);
    } else {
        if (!lengths || std::all_of(lengths, lengths + batch,
                                    [steps](int64_t length) { return length == steps; }))
            return;
        order_.resize(size_t(batch));
        std::iota(order_.begin(), order_.end(), ptrdiff_t(0));
        std::stable_sort(order_.begin(), order_.end(),
                         [lengths](ptrdiff_t a, ptrdiff_t b) { return lengths[a] > lengths[b]; });
        active_.assign(size_t(steps), 0);
        for (ptrdiff_t row = 0; row < batch; ++row)
            if (lengths[row] > 0) ++active_[size_t(lengths[row]) - 1];  // at the row's last step
        for (size_t t = active_.size(); t-- > 1;) active_[t - 1] += active_[t];
        plan_.order = order_.data();
    }
    first_.assign(size_t(steps) + 1, 0);
    std::partial_sum(active_.begin(), active_.end(), first_.begin() + 1);
    plan_.active = active_.data();
    plan_.first = first_.data();
}

template <class T>
void run_forward(const PackedWeights<T>& weights, const ForwardArgs<T>& args, const RowPlan& plan) {
    const ForwardJob<T> job{&weights, args, &plan};
    run_forward_stack(&job, 1, 1);
}

template <class T>
void run_backward(const PackedWeights<T>& weights, const ForwardArgs<T>& args,
                  const BackwardArgs<T>& grads, const RowPlan& plan) {
    const BackwardJob<T> job{&weights, args, grads, &plan};
    run_backward_stack(&job, 1, 1);
}

#define DTYPE(name, type)                                                            \
    template class PackedWeights<type>;                                              \
    template void run_forward(const PackedWeights<type>&, const ForwardArgs<type>&,  \
                              const RowPlan&);                                       \
    template void run_backward(const PackedWeights<type>&, const ForwardArgs<type>&, \
                               const BackwardArgs<type>&, const RowPlan&);
#include "core/dtypes.inc"
#undef DTYPE

}  // namespace rnnfast
