// The packed weights and the plan of rows on which the kernels run, for one layer in one direction.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "dispatch/buffer.h"
#include "kernels/kernel_table.h"

namespace rnnfast {

// Whether a layer's weights are copied into panels once (packed), or each pass reads them in the caller's
// arrays (borrowed).
enum class Held { packed, borrowed };

// One layer's weights as the kernels read them. The panels for backward are made when they are first needed.
template <class T>
class PackedWeights {
public:
    // Borrowed arrays must outlive this object. `format`: the format of packed weights, which must be of
    // floats; null: their dtype.
    PackedWeights(CellId cell, const Sizes& sizes, const Weights<const T>& weights,
                  Held held = Held::packed, const Format* format = nullptr);
    ~PackedWeights();
    PackedWeights(const PackedWeights&) = delete;
    PackedWeights& operator=(const PackedWeights&) = delete;

    const CellKernels<T>& kernels() const { return kernels_; }
    const Sizes& sizes() const { return sizes_; }
    const Format* format() const { return format_; }
    // Whether the weights' format has a backward pass.
    bool trains() const { return !format_ || format_->trains; }
    // The weights for ForwardArgs and BackwardArgs. Borrowed weights have no panels, packed ones no arrays.
    bool borrowed() const { return !packed_; }
    const Weights<const T>& weights() const { return weights_; }
    const T* packed() const { return packed_.get(); }
    // The panels of a transpose. If they do not exist yet, this makes them if `make`, and else returns null.
    // Borrowed weights have none.
    const T* transposed(Transposed which, bool make = true) const;

private:
    const CellKernels<T>& kernels_;
    const Sizes sizes_;
    const Format* const format_;
    const Weights<const T> weights_;                            // null if they are packed
    const Buffer<T> packed_;                                    // null if they are borrowed
    mutable std::atomic<const Buffer<T>*> transposed_[2] = {};  // indexed by Transposed
};

// A Plan and the arrays that it points to.
class RowPlan {
public:
    // lengths: (B), each in 0..T; null: all T. A ragged plan has batch_sizes instead: (T), the number of
    // rows that have each step. It starts with B, never increases, and is at least 1.
    RowPlan(ptrdiff_t steps, ptrdiff_t batch, bool reverse, const int64_t* lengths,
            const int64_t* batch_sizes = nullptr);
    RowPlan(const RowPlan&) = delete;
    RowPlan& operator=(const RowPlan&) = delete;

    const Plan& plan() const { return plan_; }
    ptrdiff_t rows() const { return plan_.start(plan_.steps); }  // the sum over all steps

private:
    std::vector<ptrdiff_t> order_, active_, first_;
    Plan plan_;
};

// These functions fill in `args.sizes`, `args.weights`, `args.packed`, `args.format`, `grads.transposed`
// and `grads.transposed_w` from `weights`.
template <class T>
void run_forward(const PackedWeights<T>& weights, const ForwardArgs<T>& args, const RowPlan& plan);

template <class T>
void run_backward(const PackedWeights<T>& weights, const ForwardArgs<T>& args,
                  const BackwardArgs<T>& grads, const RowPlan& plan);

}  // namespace rnnfast
