// A pass through a stack of layers: it makes the jobs for dispatch/stack.h, and the memory between them.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "bindings/ndarray.h"
#include "dispatch/stack.h"

namespace rnnfast {

// The weights of a stack, in the order of layers and, within a layer, of directions.
template <class T>
struct Layers {
    std::vector<std::shared_ptr<const PackedWeights<T>>> packs;
    int directions;       // D
    bool keeps_y = true;  // false for a cell, whose backward pass does not get y

    int jobs() const { return int(packs.size()); }  // L*D
    int layers() const { return jobs() / directions; }
    const CellKernels<T>& kernels() const { return packs[0]->kernels(); }
    ptrdiff_t input() const { return packs[0]->sizes().input; }
    ptrdiff_t hidden() const { return packs[0]->sizes().hidden; }
    ptrdiff_t width() const { return packs[0]->sizes().width(); }
    ptrdiff_t output() const { return directions * width(); }  // D*W
};

// Lengths and batch sizes are copied, since other threads may change the caller's arrays after the checks.
template <class T>
struct PassInputs : Extent {
    Rows<const T> x;                   // (T, B, I)
    const T* h0 = nullptr;             // (L*D, B, W)  null: zeros
    const T* c0 = nullptr;             // (L*D, B, H)  null: zeros, or the cell has no c
    std::vector<int64_t> lengths;      // (B)  empty: all T
    std::vector<int64_t> batch_sizes;  // (T)  of ragged arrays; empty: not ragged
    const uint8_t* resets[2] = {nullptr, nullptr};  // (T, B)  for each direction; null: never

    // The form in which RowPlan takes them.
    const int64_t* lengths_or_null() const { return lengths.empty() ? nullptr : lengths.data(); }
    const int64_t* batch_sizes_or_null() const {
        return batch_sizes.empty() ? nullptr : batch_sizes.data();
    }
};

template <class T>
struct PassOutputs {
    Rows<T> y;        // (T, B, D*W)
    T* hn = nullptr;  // (L*D, B, W)
    T* cn = nullptr;  // (L*D, B, H)  null: the cell has no c
};

// The gradients that a backward pass reads, and those that it writes.
template <class T>
struct PassGradients {
    Rows<const T> dy;                 // (T, B, D*W)  in; null: zeros
    const T* dhn = nullptr;           // (L*D, B, W)  in; null: zeros
    const T* dcn = nullptr;           // (L*D, B, H)  in; null: zeros
    Rows<T> dx;                       // (T, B, I)    out, assigned; dense; null: not wanted
    T* dh0 = nullptr;                 // (L*D, B, W)  out, assigned; null: not wanted
    T* dc0 = nullptr;                 // (L*D, B, H)  the same; null also if the cell has no c
    std::vector<Weights<T>> weights;  // (L*D)  out, assigned; null: not wanted
    T* gates = nullptr;  // (L, B, gradient_row())  out, of one step and direction: see BackwardArgs
};

// A block of memory that is cut into arrays, which begin on cache lines. Each thread keeps its last block of
// up to 1 MiB for the next arena that needs about as much. For a new block, the system may have to clear
// every page, which takes 0.1 to 0.2 us each. A tape of an LSTM at T = 100, H = 64 has 81 pages.
template <class T>
class Arena {
public:
    static ptrdiff_t whole_lines(ptrdiff_t count) {
        constexpr auto line = ptrdiff_t(64 / sizeof(T));
        return (count + line - 1) / line * line;
    }

    // Uses the caller's memory, and leaves no gaps between arrays.
    explicit Arena(T* memory) : gaps_(false), next_(memory) {}
    explicit Arena(ptrdiff_t count) : memory_{nullptr, count} {
        if (!count) return;
        Memory& spare = thread_spare();
        const bool fits = spare.count >= count && spare.count / 2 <= count;
        memory_ = fits ? std::exchange(spare, {}) : Memory{allocate<T>(count, kPassing), count};
        next_ = memory_.data.get();
    }
    ~Arena() {
        constexpr auto most = ptrdiff_t((1 << 20) / sizeof(T));
        if (memory_.count && memory_.count <= most) thread_spare() = std::move(memory_);
    }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // The number of elements that an array of `count` takes, including the gap after it.
    ptrdiff_t size_of(ptrdiff_t count) const { return gaps_ ? whole_lines(count) : count; }
    T* take(ptrdiff_t count) {
        T* const taken = next_;
        next_ += size_of(count);
        return taken;
    }

private:
    struct Memory {
        Buffer<T> data;
        ptrdiff_t count = 0;
    };
    static Memory& thread_spare() {
        static thread_local Memory spare;
        return spare;
    }

    Memory memory_;
    bool gaps_ = true;
    T* next_ = nullptr;
};

template <class T>
class Pass {
public:
    // If `training`, the pass keeps the data that `backward` needs; `layers` and the memory of the outputs
    // must then live as long as the pass. The data are kept in `tape`, of tape_size() elements, which may be
    // 0; the inputs must then live as long, too. Without a tape, they are kept in memory of the pass,
    // together with copies of the inputs.
    Pass(const Layers<T>& layers, const PassInputs<T>& in, const PassOutputs<T>& out, bool training,
         std::optional<T*> tape = {})
        : layers_(layers),
          extent_(in),
          batch_(in.batch),
          plan_(in.steps, batch_, false, in.lengths_or_null(), in.batch_sizes_or_null()),
          // Without training, layers l and l + 2 share an output, so that two outputs are enough.
          inner_(training ? layers.layers() - 1 : std::min(layers.layers() - 1, 2)),
          arena_(tape ? Arena<T>(*tape) : Arena<T>(memory_needed(in, training))),
          resets_(training && !tape && in.resets[0] ? allocate<uint8_t>(2 * rows()) : nullptr),
          jobs_(size_t(layers.jobs())) {
        if (layers.directions == 2)
            backward_plan_.emplace(in.steps, batch_, true, in.lengths_or_null(),
                                   in.batch_sizes_or_null());
        lay_out(training && !tape ? copied(in) : in, out, training);
    }
    Pass(const Pass&) = delete;
    Pass& operator=(const Pass&) = delete;

    void forward() const { run_forward_stack(jobs_.data(), layers_.layers(), layers_.directions); }
    void backward(const PassGradients<T>& grads) const;

    // The size of the tape of a pass with `rows` rows. Throws if no memory could hold it.
    static ptrdiff_t tape_size(const Layers<T>& layers, ptrdiff_t rows) {
        const ptrdiff_t row = tape_row(layers.kernels(), layers.packs[0]->sizes(), layers.layers(),
                                       layers.directions, layers.keeps_y);
        return element_count({{rows, row}, 2}, sizeof(T));
    }
    // The size of a row of the tape.
    static ptrdiff_t tape_row(const CellKernels<T>& kernels, const Sizes& sizes, int layers,
                              int directions, bool keeps_y = true) {
        const ptrdiff_t saved = kernels.saves_y && keeps_y ? 0 : kernels.saved_row(sizes);
        return directions * (layers * saved + (layers - 1) * sizes.width());
    }

    // The size of a row of a layer's gate gradients.
    static ptrdiff_t gradient_row(const Layers<T>& layers) {
        return layers.kernels().gradient_row(layers.packs[0]->sizes());
    }
    // The output of a layer below the last one, in the tape of a pass with `rows` rows and one direction.
    static const T* inner_output(const Layers<T>& layers, ptrdiff_t rows, const T* tape,
                                 int layer) {
        const ptrdiff_t below = layer * rows * layers.output();
        return tape + layers.jobs() * rows * saved_row(layers) + below;
    }

private:
    static ptrdiff_t saved_row(const Layers<T>& layers) {
        const CellKernels<T>& kernels = layers.kernels();
        const bool is_y = kernels.saves_y && layers.keeps_y;
        return is_y ? 0 : kernels.saved_row(layers.packs[0]->sizes());
    }
    ptrdiff_t rows() const { return extent_.rows(); }
    int lowest_wanted(const PassGradients<T>& grads) const;
    // The part of rows (T, B, D*W) that belongs to one direction.
    template <class U>
    Rows<U> half(const Rows<U>& rows, int direction) const {
        return {rows.data ? rows.data + direction * layers_.width() : nullptr, rows.step, rows.row};
    }
    Rows<T> dense(T* data, ptrdiff_t width) const { return {data, batch_ * width, width}; }

    ptrdiff_t memory_needed(const PassInputs<T>& in, bool training) const {
        const auto lines = [](ptrdiff_t count) { return Arena<T>::whole_lines(count); };
        ptrdiff_t count = inner_ * lines(rows() * layers_.output());
        if (!training) return count;
        count += lines(rows() * layers_.input());
        if (in.h0) count += lines(layers_.jobs() * batch_ * layers_.width());
        if (in.c0) count += lines(layers_.jobs() * batch_ * layers_.hidden());
        return count + layers_.jobs() * lines(saved_size());
    }
    ptrdiff_t saved_size() const { return plan_.rows() * saved_row(layers_); }

    PassInputs<T> copied(const PassInputs<T>& in);
    void lay_out(const PassInputs<T>& in, const PassOutputs<T>& out, bool training);

    const Layers<T>& layers_;
    const Extent extent_;
    const ptrdiff_t batch_;
    const RowPlan plan_;
    std::optional<RowPlan> backward_plan_;  // the plan of the second direction
    const int inner_;                       // the number of inner layers' outputs in memory
    Arena<T> arena_;
    const Buffer<uint8_t> resets_;
    std::vector<ForwardJob<T>> jobs_;
};

template <class T>
PassInputs<T> Pass<T>::copied(const PassInputs<T>& in) {
    PassInputs<T> own = in;
    const ptrdiff_t width = layers_.input();
    T* const x = arena_.take(rows() * width);
    own.x = {x, batch_ * width, width};
    // If there are no rows, T may be huge, since it costs no memory.
    for (ptrdiff_t t = 0; rows() && t < in.steps; ++t)
        for (ptrdiff_t b = 0; b < batch_; ++b)
            std::copy_n(in.x.data + t * in.x.step + b * in.x.row, width,
                        x + (t * batch_ + b) * width);
    const auto copy = [this](const T* from, ptrdiff_t count) -> const T* {
        if (!from) return nullptr;
        T* const to = arena_.take(count);
        std::copy_n(from, count, to);
        return to;
    };
    own.h0 = copy(in.h0, layers_.jobs() * batch_ * layers_.width());
    own.c0 = copy(in.c0, layers_.jobs() * batch_ * layers_.hidden());
    for (int direction = 0; direction < 2; ++direction)
        if (in.resets[direction]) {
            uint8_t* const to = resets_.get() + direction * rows();
            std::copy_n(in.resets[direction], rows(), to);
            own.resets[direction] = to;
        }
    return own;
}

template <class T>
void Pass<T>::lay_out(const PassInputs<T>& in, const PassOutputs<T>& out, bool training) {
    const ptrdiff_t width = layers_.width(), hidden = layers_.hidden();
    const ptrdiff_t output = rows() * layers_.output();
    // The saved gates come first: their rows are whole vectors, which stay aligned without gaps.
    const ptrdiff_t saved_stride = arena_.size_of(saved_size());
    T* const saved = training ? arena_.take(layers_.jobs() * saved_stride) : nullptr;
    const ptrdiff_t inner_stride = arena_.size_of(output);
    T* const inner = arena_.take(inner_ * inner_stride);
    const auto inner_y = [&](int layer) {
        return dense(inner + layer % inner_ * inner_stride, layers_.output());
    };
    Rows<const T> x = in.x;
    for (int layer = 0; layer < layers_.layers(); ++layer) {
        const bool last = layer == layers_.layers() - 1;
        const Rows<T> y = last ? out.y : inner_y(layer);
        for (int direction = 0; direction < layers_.directions; ++direction) {
            const int k = layer * layers_.directions + direction;
            ForwardJob<T>& job = jobs_[size_t(k)];
            job.weights = layers_.packs[size_t(k)].get();
            job.plan = direction ? &*backward_plan_ : &plan_;
            ForwardArgs<T>& args = job.args;
            args.x = x.data, args.x_step = x.step, args.x_row = x.row;
            args.h0 = in.h0 ? in.h0 + k * batch_ * width : nullptr;
            args.c0 = in.c0 ? in.c0 + k * batch_ * hidden : nullptr;
            args.reset = in.resets[direction];
            const Rows<T> own = half(y, direction);
            args.y = own.data, args.y_step = own.step, args.y_row = own.row;
            args.hn = out.hn ? out.hn + k * batch_ * width : nullptr;
            args.cn = out.cn ? out.cn + k * batch_ * hidden : nullptr;
            args.saved = training && saved_stride ? saved + k * saved_stride : nullptr;
        }
        x = {y.data, y.step, y.row};
    }
}

template <class T>
void Pass<T>::backward(const PassGradients<T>& grads) const {
    const ptrdiff_t width = layers_.width(), hidden = layers_.hidden(), output = layers_.output();
    const int directions = layers_.directions, layers = layers_.layers();
    const int lowest = lowest_wanted(grads);
    if (lowest == layers) return;
    const int inner = std::min(layers - 1 - lowest, 2);
    const ptrdiff_t between_size = Arena<T>::whole_lines(rows() * output);
    const ptrdiff_t input = grads.dx.data ? layers_.input() : 0;
    const ptrdiff_t widest = inner ? std::max(output, input) : input;
    const ptrdiff_t second_size = directions == 2 ? rows() * widest : 0;
    Arena<T> arena(inner * between_size + Arena<T>::whole_lines(second_size));
    T* const between = arena.take(inner * between_size);
    T* const second_dx = arena.take(second_size);
    std::vector<BackwardJob<T>> jobs(jobs_.size());
    Rows<const T> dy = grads.dy;
    for (int layer = layers; layer-- > lowest;) {
        const Rows<T> dx =
            layer > lowest ? dense(between + layer % inner * between_size, output) : grads.dx;
        for (int direction = 0; direction < directions; ++direction) {
            const int k = layer * directions + direction;
            const ForwardJob<T>& forward = jobs_[size_t(k)];
            BackwardJob<T>& job = jobs[size_t(k)];
            job.weights = forward.weights;
            job.args = forward.args;
            job.plan = forward.plan;
            BackwardArgs<T>& args = job.grads;
            const Rows<const T> own = half(dy, direction);
            args.dy = own.data, args.dy_step = own.step, args.dy_row = own.row;
            args.dhn = grads.dhn ? grads.dhn + k * batch_ * width : nullptr;
            args.dcn = grads.dcn ? grads.dcn + k * batch_ * hidden : nullptr;
            args.dx = direction && dx.data ? second_dx : dx.data;
            args.dx_step = dx.step, args.dx_row = dx.row;
            args.dh0 = grads.dh0 ? grads.dh0 + k * batch_ * width : nullptr;
            args.dc0 = grads.dc0 ? grads.dc0 + k * batch_ * hidden : nullptr;
            args.weights = grads.weights[size_t(k)];
            args.gates = grads.gates ? grads.gates + k * batch_ * gradient_row(layers_) : nullptr;
            args.assign = true;
        }
        dy = {dx.data, dx.step, dx.row};
    }
    run_backward_stack(jobs.data() + lowest * directions, layers - lowest, directions);
}

// The lowest layer that must run backward: the lowest with a wanted gradient. If no gradient is wanted, the
// number of layers.
template <class T>
int Pass<T>::lowest_wanted(const PassGradients<T>& grads) const {
    if (grads.dx.data || grads.dh0 || grads.dc0 || grads.gates) return 0;
    size_t job = 0;
    for (; job < grads.weights.size(); ++job) {
        const Weights<T>& w = grads.weights[job];
        if (w.weight_ih || w.weight_hh || w.bias_ih || w.bias_hh || w.weight_hr) break;
    }
    return int(job) / layers_.directions;
}

}  // namespace rnnfast
