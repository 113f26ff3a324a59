// The object in which Python holds one layer's weights, packed or borrowed, and its passes in one direction.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include "bindings/arrays.h"
#include "bindings/gil.h"
#include "bindings/ndarray.h"
#include "dispatch/registry.h"
#include "dispatch/run.h"

namespace rnnfast {

struct ForwardObjects {
    py::object x, h0, c0, lengths, reset;
    bool reverse;
    py::object y, hn, cn;
};

// Parameters of a layer, or their gradients.
struct WeightObjects {
    py::object weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
};

struct BackwardObjects {
    py::object dy, dhn, dcn, dx, dh0, dc0;
    WeightObjects weights;
};

// The data that a forward pass keeps for its backward pass. They are opaque to Python.
struct Saved {
    virtual ~Saved() = default;
};

template <class T>
struct SavedOf final : Saved {
    // For a pass that saves n numbers. If `is_y`, y has these numbers, and nothing is saved.
    SavedOf(ptrdiff_t n, bool is_y) : count(n), data(is_y ? nullptr : allocate<T>(n, kPassing)) {}
    const ptrdiff_t count;
    const Buffer<T> data;
};

// The rest of a list of contiguous arrays, from which each pack in turn takes its own.
struct ArraysLeft {
    const Array* next;
    const Array* end;
};

// One layer's weights, packed or borrowed, of any dtype. They are opaque to Python.
struct Packed {
    virtual ~Packed() = default;
    virtual std::unique_ptr<Saved> forward(const ForwardObjects&, bool training) const = 0;
    virtual void backward(const Saved&, const ForwardObjects&, const BackwardObjects&) const = 0;
    // Whether the next arrays have the shapes and the dtype of these weights. Moves past these arrays.
    virtual bool fits(ArraysLeft&) const = 0;
    // The same layer with the weights in the next arrays. If these weights are borrowed, the new ones are,
    // too, and keep `owner`, which keeps the arrays.
    virtual std::unique_ptr<Packed> renewed(ArraysLeft&, const py::object& owner) const = 0;
};

// Views the arrays of `o`. They must be writable if T is not const.
template <class T>
Weights<T> weight_views(const Sizes& sizes, ptrdiff_t gates, const WeightObjects& o) {
    const ptrdiff_t rows = gates * sizes.hidden;
    const auto get = [](const py::object& object, const char* name,
                        std::initializer_list<ptrdiff_t> shape, bool needed) {
        if (needed) not_none(object, name);
        return view<T>(object, {name, shape, !std::is_const_v<T>}).data;
    };
    const ptrdiff_t P = sizes.projection;
    return {get(o.weight_ih, "weight_ih", {rows, sizes.input}, true),
            get(o.weight_hh, "weight_hh", {rows, sizes.width()}, true),
            get(o.bias_ih, "bias_ih", {rows}, false), get(o.bias_hh, "bias_hh", {rows}, false),
            get(o.weight_hr, "weight_hr", {P, sizes.hidden}, P != 0)};
}

template <class T>
class PackedOf final : public Packed {
public:
    PackedOf(CellId cell, const Sizes& sizes, const WeightObjects& weights, Held held,
             const Format* format)
        : id_(cell),
          cell_(active_kernels_for<T>().cells[int(cell)]),
          sizes_(sizes),
          biased_(!weights.bias_ih.is_none()) {
        const auto views = weight_views<const T>(sizes, cell_.gates, weights);
        const auto& [w, r, b_w, b_r, p] = weights;
        hold(views, held, format, py::make_tuple(w, r, b_w, b_r, p));
    }

    const std::shared_ptr<const PackedWeights<T>>& weights() const { return packed_; }

    std::unique_ptr<Saved> forward(const ForwardObjects& o, bool training) const override {
        if (training && !packed_->trains())
            throw py::value_error("format: expected one for training, got another");
        const Call call = views(o, true);
        ForwardArgs<T> args = call.args;
        std::unique_ptr<SavedOf<T>> saved;
        const GilRelease release;
        const RowPlan plan(call.steps, call.batch, o.reverse, call.lengths);
        if (training) {
            saved = std::make_unique<SavedOf<T>>(saved_size(plan), cell_.saves_y);
            args.saved = saved->data.get();
        }
        run_forward(*packed_, args, plan);
        return saved;
    }

    void backward(const Saved& saved, const ForwardObjects& o,
                  const BackwardObjects& g) const override {
        const Call call = views(o, false);
        ForwardArgs<T> args = call.args;
        auto* const kept = dynamic_cast<const SavedOf<T>*>(&saved);
        const RowPlan plan(call.steps, call.batch, o.reverse, call.lengths);
        if (!kept || kept->count != saved_size(plan))
            throw py::value_error(
                "saved: expected that of a forward pass of this layer with these "
                "arguments, got another");
        args.saved = kept->data.get();
        const ptrdiff_t T_ = call.steps, B = call.batch, W = sizes_.width(), H = sizes_.hidden;
        BackwardArgs<T> grads{};
        const auto dy = view<const T>(g.dy, {"dy", {T_, B, W}}, true);
        grads.dy = dy.data, grads.dy_step = dy.strides[0], grads.dy_row = dy.strides[1];
        grads.dhn = view<const T>(g.dhn, {"dhn", {B, W}}).data;
        const auto dx = view<T>(g.dx, {"dx", {T_, B, sizes_.input}, true}, true);
        grads.dx = dx.data, grads.dx_step = dx.strides[0], grads.dx_row = dx.strides[1];
        grads.dh0 = required<T>(g.dh0, {"dh0", {B, W}, true}).data;
        if (cell_.has_c) {
            grads.dcn = view<const T>(g.dcn, {"dcn", {B, H}}).data;
            grads.dc0 = required<T>(g.dc0, {"dc0", {B, H}, true}).data;
        }
        grads.weights = weight_views<T>(sizes_, cell_.gates, g.weights);
        const GilRelease release;
        run_backward(*packed_, args, grads, plan);
    }

    bool fits(ArraysLeft& arrays) const override {
        Weights<const T> views{};
        return take(arrays, views);
    }

    std::unique_ptr<Packed> renewed(ArraysLeft& arrays, const py::object& owner) const override {
        Weights<const T> views{};
        take(arrays, views);
        auto made = std::make_unique<PackedOf>(*this);
        made->hold(views, packed_->borrowed() ? Held::borrowed : Held::packed, packed_->format(),
                   owner);
        return made;
    }

private:
    void hold(const Weights<const T>& views, Held held, const Format* format,
              const py::object& owner) {
        if (held == Held::borrowed) {
            const std::shared_ptr<const Lent> lent(
                new Lent{owner, {id_, sizes_, views, Held::borrowed}});
            packed_ = {lent, &lent->weights};
            return;
        }
        const GilRelease release;
        packed_ =
            std::make_shared<const PackedWeights<T>>(id_, sizes_, views, Held::packed, format);
    }

    bool take(ArraysLeft& arrays, Weights<const T>& views) const {
        const auto next = [&arrays](const T*& data, std::initializer_list<ptrdiff_t> shape) {
            if (arrays.next == arrays.end) return false;
            const Array& array = *arrays.next++;
            data = reinterpret_cast<const T*>(array.data);
            return holds<T>(array) &&
                   std::equal(shape.begin(), shape.end(), array.sizes, array.sizes + array.axes);
        };
        const ptrdiff_t rows = cell_.gates * sizes_.hidden, P = sizes_.projection;
        return next(views.weight_ih, {rows, sizes_.input}) &&
               next(views.weight_hh, {rows, sizes_.width()}) &&
               (!biased_ || (next(views.bias_ih, {rows}) && next(views.bias_hh, {rows}))) &&
               (!P || next(views.weight_hr, {P, sizes_.hidden}));
    }

    // Borrowed weights, and the object that keeps their arrays.
    struct Lent {
        py::object owner;
        PackedWeights<T> weights;
    };

    struct Call {
        ForwardArgs<T> args{};
        ptrdiff_t steps = 0, batch = 0;
        const int64_t* lengths = nullptr;
    };

    ptrdiff_t saved_size(const RowPlan& plan) const {
        return plan.rows() * cell_.saved_row(sizes_);
    }

    // `running`: whether the pass writes y and the final states.
    Call views(const ForwardObjects& o, bool running) const {
        if (!py::isinstance<py::array>(o.x) || py::array(o.x).ndim() != 3)
            throw py::value_error("x: expected an array (T, B, I), got another");
        const py::array x(o.x);
        Call call;
        const ptrdiff_t T_ = call.steps = x.shape(0), B = call.batch = x.shape(1);
        const ptrdiff_t W = sizes_.width(), H = sizes_.hidden;
        ForwardArgs<T>& args = call.args;
        const auto x_view = required<const T>(o.x, {"x", {T_, B, sizes_.input}}, true);
        args.x = x_view.data, args.x_step = x_view.strides[0], args.x_row = x_view.strides[1];
        args.h0 = view<const T>(o.h0, {"h0", {B, W}}).data;
        args.reset =
            reinterpret_cast<const uint8_t*>(view<const bool>(o.reset, {"reset", {T_, B}}).data);
        call.lengths = view<const int64_t>(o.lengths, {"lengths", {B}}).data;
        for (ptrdiff_t row = 0; call.lengths && row < B; ++row)
            if (call.lengths[row] < 0 || call.lengths[row] > T_)
                throw py::value_error("lengths: expected values in 0..T, got another");
        View<T> y;
        if (running) {
            y = required<T>(o.y, {"y", {T_, B, W}, true}, true);
            args.hn = required<T>(o.hn, {"hn", {B, W}, true}).data;
        } else {
            const auto read = required<const T>(o.y, {"y", {T_, B, W}}, true);
            y.data = const_cast<T*>(read.data);  // backward only reads it
            y.strides[0] = read.strides[0], y.strides[1] = read.strides[1];
        }
        args.y = y.data, args.y_step = y.strides[0], args.y_row = y.strides[1];
        if (cell_.has_c) {
            args.c0 = view<const T>(o.c0, {"c0", {B, H}}).data;
            if (running) args.cn = required<T>(o.cn, {"cn", {B, H}, true}).data;
        }
        return call;
    }

    const CellId id_;
    const CellKernels<T>& cell_;
    const Sizes sizes_;
    const bool biased_;
    std::shared_ptr<const PackedWeights<T>> packed_;
};

}  // namespace rnnfast
