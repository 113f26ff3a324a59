// What the kernels run on: packed weights and the plan of rows; one layer in one direction.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "dispatch/buffer.h"
#include "kernels/kernel_table.h"

namespace rnnfast {

// Whether a layer's weights are copied into panels once, or read where the caller has them in each
// pass.
enum class Held { packed, borrowed };

// One layer's weights as the kernels read them. The panels for backward are made when first needed.
template <class T>
class PackedWeights {
public:
    // Borrowed arrays must outlive this. `format`: what packed ones of floats are kept in, if any.
    PackedWeights(CellId cell, const Sizes& sizes, const Weights<const T>& weights,
                  Held held = Held::packed, const Format* format = nullptr);
    ~PackedWeights();
    PackedWeights(const PackedWeights&) = delete;
    PackedWeights& operator=(const PackedWeights&) = delete;

    const CellKernels<T>& kernels() const { return kernels_; }
    const Sizes& sizes() const { return sizes_; }
    const Format* format() const { return format_; }
    // Whether there is a backward pass.
    bool trains() const { return !format_ || format_->trains; }
    // What ForwardArgs and BackwardArgs have of them; borrowed ones have no panels.
    bool borrowed() const { return !packed_; }
    const Weights<const T>& weights() const { return weights_; }
    const T* packed() const { return packed_.get(); }
    // `make`: if it is not there yet; otherwise null.
    const T* transposed(Transposed which, bool make = true) const;

private:
    const CellKernels<T>& kernels_;
    const Sizes sizes_;
    const Format* const format_;
    const Weights<const T> weights_;                            // null where they are packed
    const Buffer<T> packed_;                                    // null where they are borrowed
    mutable std::atomic<const Buffer<T>*> transposed_[2] = {};  // by Transposed
};

// A Plan and the arrays that it points to.
class RowPlan {
public:
    // lengths: (B), each in 0..T; null: all T. Or, of a ragged plan, batch_sizes: (T), the rows that
    // have each step, from B on never more than before, and at least one.
    RowPlan(ptrdiff_t steps, ptrdiff_t batch, bool reverse, const int64_t* lengths,
            const int64_t* batch_sizes = nullptr);
    RowPlan(const RowPlan&) = delete;
    RowPlan& operator=(const RowPlan&) = delete;

    const Plan& plan() const { return plan_; }
    ptrdiff_t rows() const { return plan_.start(plan_.steps); }  // of all steps together

private:
    std::vector<ptrdiff_t> order_, active_, first_;
    Plan plan_;
};

// `args.sizes`, `args.weights`, `args.packed`, `args.format`, `grads.transposed` and
// `grads.transposed_w` are filled in from `weights`.
template <class T>
void run_forward(const PackedWeights<T>& weights, const ForwardArgs<T>& args, const RowPlan& plan);

template <class T>
void run_backward(const PackedWeights<T>& weights, const ForwardArgs<T>& args,
                  const BackwardArgs<T>& grads, const RowPlan& plan);

}  // namespace rnnfast
