// A stack of layers and its training runs, of one dtype, with Python's arrays in and out.
#pragma once

#include <algorithm>
#include <array>
#include <climits>
#include <utility>

#include "api/functions.h"
#include "bindings/fingerprint.h"
#include "bindings/form.h"
#include "bindings/gil.h"
#include "bindings/packed.h"
#include "bindings/pass.h"
#include "bindings/place.h"
#include "dispatch/threads.h"

namespace rnnfast {

inline py::object not_implemented() {
    return py::reinterpret_borrow<py::object>(Py_NotImplemented);
}

inline int integer(PyObject* object) {
    const long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    return int(std::clamp<long>(value, INT_MIN, INT_MAX));
}

inline py::object pair(const py::object& first, const py::object& second) {
    return owned_or_throw(PyTuple_Pack(2, first.ptr(), second.ptr()));
}

// The names of a job's gradients, in the order of `Weights`; None: it has no such parameter.
using Names = std::array<py::object, 5>;

// What `Stack` in _native.pyi describes.
class Stack {
public:
    explicit Stack(py::object type_of_runs) : run_type(std::move(type_of_runs)) {}
    virtual ~Stack() = default;
    virtual py::object infer(PyObject* const* args, Py_ssize_t count) const = 0;
    virtual py::object infer_at(PyObject* const* args) const = 0;
    virtual py::object record(PyObject* self, PyObject* const* args, Py_ssize_t count) const = 0;
    virtual py::object forward(PyObject* const* args) const = 0;
    virtual py::object forward_at(PyObject* const* args) const = 0;
    virtual py::object backward(PyObject* const* args) const = 0;
    virtual py::object step_backward(PyObject* const* args) const = 0;
    virtual py::object steps_backward(PyObject* const* args) const = 0;
    const py::object run_type;
};

// What `Run` in _native.pyi describes.
class Run {
public:
    virtual ~Run() = default;
    virtual py::object backward(PyObject* d_output, PyObject* d_state) const = 0;
};

// Makes the Python object that owns `run`.
py::object new_run(const Stack& stack, std::unique_ptr<const Run> run);

template <class T>
class StackOf final : public Stack {
public:
    StackOf(Layers<T> layers, std::vector<Names> names, const Form& form, py::object run_type)
        : Stack(std::move(run_type)),
          layers_(std::move(layers)),
          names_(std::move(names)),
          form_(form) {
        for (const auto& pack : layers_.packs) {
            const Sizes& sizes = pack->sizes();
            work_ += double(pack->kernels().gates) * double(sizes.hidden) *
                     double(sizes.input + sizes.width());
        }
        if (const Format* const format = layers_.packs[0]->format())
            work_ /= double(format->row_speed);
    }

    py::object infer(PyObject* const* args, Py_ssize_t count) const override {
        return inferred({args, count}, count > 5 ? integer(args[5]) : 0);
    }
    py::object infer_at(PyObject* const* args) const override {
        return inferred(Given::at(args), integer(args[4]));
    }

    py::object record(PyObject* self, PyObject* const* args, Py_ssize_t count) const override;

    py::object forward(PyObject* const* args) const override {
        return forwarded({args, 3}, integer(args[3]));
    }
    py::object forward_at(PyObject* const* args) const override {
        return forwarded(Given::at(args), integer(args[4]));
    }
    py::object backward(PyObject* const* args) const override;
    py::object step_backward(PyObject* const* args) const override;
    py::object steps_backward(PyObject* const* args) const override;

    // The gradients of `pass`, or NotImplemented where an argument is not what can be read: all of
    // them, those of parameters by name; or those that `wanted` tells, in a list. Arrays, or tensors
    // if `like` is one.
    py::object gradients(const Pass<T>& pass, PyObject* like, const Axes& axes,
                         const Extent& extent, PyObject* d_output, PyObject* d_state,
                         PyObject* wanted) const;

private:
    // So many arguments of a pass, as `read` takes them.
    struct Given {
        PyObject* const* args;
        Py_ssize_t count;
        PyObject* const* all = nullptr;  // those of infer_at and forward_at, which ask for more

        static Given at(PyObject* const* all) {
            return {all + 2, 2, all};  // after the weights' place and themselves
        }
    };

    // Whether a pass can read them, and runs.
    bool admits(const Given& given, int threads, Axes& axes, PassInputs<T>& in) const {
        if (!read(given.args, given.count, axes, in) || !runs(in)) return false;
        PyObject* const* const all = given.all;
        return !all || (can_read_all(all) && is_as_seen(all[1], all[5], threads));
    }

    py::object inferred(const Given& given, int threads) const {
        Axes axes;
        PassInputs<T> in;
        if (!admits(given, threads, axes, in)) return not_implemented();
        const Outputs made = new_outputs(given.args[0], axes, in);
        {
            const ThreadLimit limit(threads);
            const GilRelease release(releases(in, 1));
            Pass<T>(layers_, in, made.out, false).forward();
        }
        return pair(made.y, made.state);
    }

    py::object forwarded(const Given& given, int threads) const;

    // Whether the weights have that fingerprint; None: it does not matter.
    static bool is_as_seen(PyObject* weights, PyObject* seen, int threads) {
        if (seen == Py_None) return true;
        const auto wanted = PyLong_AsUnsignedLongLong(seen);
        if (PyErr_Occurred()) throw py::error_already_set();
        return fingerprint_of(weights, threads) == wanted;
    }

    // New arrays for the gradients that are wanted; None for others.
    py::object new_input_gradient(PyObject* like, const Axes& axes, const Extent& extent,
                                  Choice& choice, PassGradients<T>& grads) const;
    py::object new_state_gradient(PyObject* like, const Axes& axes, const Extent& extent,
                                  Choice& choice, PassGradients<T>& grads) const;
    py::object new_parameter_gradients(PyObject* like, Choice& choice, PassGradients<T>& grads,
                                       std::vector<py::object>& arrays) const;

    bool has_c() const { return layers_.kernels().has_c; }
    Py_ssize_t parameters() const {
        Py_ssize_t count = 0;
        for (const Names& own : names_)
            for (const py::object& name : own) count += !name.is_none();
        return count;
    }
    bool trains() const { return layers_.packs[0]->trains(); }
    // Whether the gradients of the parameters can be those of many steps together.
    bool leaves_steps() const {
        return layers_.directions == 1 && !form_.ragged && trains() &&
               layers_.kernels().meetings(layers_.packs[0]->sizes()) == 1;
    }
    // Of what a step leaves for them.
    Shape gates_shape(ptrdiff_t batch) const {
        return {{layers_.jobs(), batch, Pass<T>::gradient_row(layers_)}, 3};
    }
    // Borrowed weights are for passes that read them once, or not at all. Of more steps or rows, those
    // that pack them are faster, and so may be those whose lengths leave rows out: callers keep a pack
    // for these.
    bool runs(const PassInputs<T>& in) const {
        return !layers_.packs[0]->borrowed() ||
               (in.steps == 1 && in.batch <= layers_.kernels().few && in.lengths.empty() &&
                !in.resets[0]);
    }
    // `passes`: how often as much is multiplied as in a forward pass.
    bool releases(const Extent& extent, int passes) const {
        return passes * double(extent.rows()) * work_ >= RNNFAST_RELEASING_PAYS;
    }
    py::object state(const py::object& h, const py::object& c) const { return c ? pair(h, c) : h; }

    // New arrays for what a pass gives, and where they lie.
    struct Outputs {
        py::object y, state;  // a cell's y: None
        PassOutputs<T> out;
    };
    Outputs new_outputs(PyObject* like, const Axes& axes, const PassInputs<T>& in) const {
        PassOutputs<T> out;
        auto hn = new_like<T>(like, state_shape(axes, in.batch, layers_.width()));
        out.hn = hn.data;
        py::object cn, y = py::none();
        if (has_c()) {
            auto made = new_like<T>(like, state_shape(axes, in.batch, layers_.hidden()));
            out.cn = made.data;
            cn = std::move(made.object);
        }
        if (form_.cell) {
            out.y = {out.hn, 0, layers_.width()};  // of one step: h after it
        } else {
            Shape shape = axes.shape(in, layers_.output());
            // Tensors lie as torch's own do, whose dropout draws its masks in the order of memory.
            shape.swapped = form_.tensors && axes.batch == 0 && axes.steps == 1;
            auto made = new_like<T>(like, shape);
            out.y = dense_rows(made.data, axes, shape);
            y = std::move(made.object);
        }
        return {y, state(hn.object, cn), out};
    }

    // Of an array (L*D, B, ·).
    Shape state_shape(const Axes& axes, ptrdiff_t batch, ptrdiff_t width) const {
        Shape shape;
        if (!form_.cell) shape.add(layers_.jobs());
        if (axes.batch >= 0) shape.add(batch);
        shape.add(width);
        return shape;
    }

    static Rows<T> dense_rows(T* data, const Axes& axes, const Shape& shape) {
        const ptrdiff_t width = shape.sizes[shape.count - 1];
        const int outer = shape.swapped;  // of two axes
        const auto stride = [&](int axis) {
            return axis < 0                             ? 0
                   : axis == outer && axes.count() == 2 ? shape.sizes[1 - outer] * width
                                                        : width;
        };
        return {data, stride(axes.steps), stride(axes.batch)};
    }

    // The rows of an array with these axes and sizes, or None.
    bool read_rows_or_none(PyObject* object, const Axes& axes, const Shape& shape,
                           Rows<const T>& rows) const {
        if (object == Py_None) return true;
        Array array;
        return read_array<T>(object, form_.tensors, array) && has_shape(array, shape) &&
               read_rows(array, axes, rows);
    }

    // A state, or its gradient: h, or a pair (h, c). One of a pair may be None if `partly`.
    bool read_state(PyObject* object, const Axes& axes, ptrdiff_t batch, bool partly, const T*& h,
                    const T*& c) const {
        if (object == Py_None) return true;
        const Shape h_shape = state_shape(axes, batch, layers_.width());
        if (!has_c()) return read_contiguous(object, form_.tensors, h_shape, h);
        if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != 2) return false;
        return read_contiguous(PyTuple_GET_ITEM(object, 0), form_.tensors, h_shape, h) &&
               read_contiguous(PyTuple_GET_ITEM(object, 1), form_.tensors,
                               state_shape(axes, batch, layers_.hidden()), c) &&
               (partly || (h && c));
    }

    // Of so many arguments: x and state; from 3 on lengths, or of ragged x batch sizes, which it needs;
    // from 4 on reset and reset_reversed too.
    bool read(PyObject* const* args, Py_ssize_t count, Axes& axes, PassInputs<T>& in) const {
        Array x;
        if (!read_array<T>(args[0], form_.tensors, x) || !form_.axes(x.axes, axes)) return false;
        if (axes.steps >= 0) in.steps = x.sizes[axes.steps];
        if (axes.batch >= 0) in.batch = x.sizes[axes.batch];
        if (x.sizes[x.axes - 1] != layers_.input() || !read_rows(x, axes, in.x)) return false;
        if (form_.ragged ? count == 2 || !read_batch_sizes(args[2], in)
                         : count > 2 && !read_lengths(args[2], in))
            return false;
        if (!read_state(args[1], axes, in.batch, false, in.h0, in.c0)) return false;
        return count <= 3 || read_resets(args + 3, axes, in);
    }

    bool read_lengths(PyObject* object, PassInputs<T>& in) const {
        Shape rows;
        rows.add(in.batch);
        const int64_t* lengths;
        if (!read_contiguous(object, form_.tensors, rows, lengths)) return false;
        if (lengths) in.lengths.assign(lengths, lengths + in.batch);
        return std::all_of(in.lengths.begin(), in.lengths.end(),
                           [&in](int64_t length) { return length >= 0 && length <= in.steps; });
    }

    // In place of lengths, where x is ragged: they tell T and B.
    bool read_batch_sizes(PyObject* object, PassInputs<T>& in) const {
        Array sizes;
        if (!read_array<int64_t>(object, form_.tensors, sizes) || sizes.axes != 1 ||
            !is_contiguous(sizes))
            return false;
        in.ragged = in.batch;  // as x has it
        in.steps = sizes.sizes[0];
        const auto* const given = reinterpret_cast<const int64_t*>(sizes.data);
        in.batch_sizes.assign(given, given + in.steps);
        int64_t rest = in.ragged, before = rest;
        for (const int64_t size : in.batch_sizes) {
            if (size < 1 || size > before || size > rest) return false;
            rest -= size, before = size;
        }
        if (in.steps == 0 || rest != 0) return false;
        in.batch = in.batch_sizes[0];
        return true;
    }

    bool read_resets(PyObject* const* args, const Axes& axes, PassInputs<T>& in) const {
        Shape resets;
        resets.add(in.steps);
        if (axes.batch >= 0) resets.add(in.batch);
        for (int direction = 0; direction < 2; ++direction) {
            const bool* reset;
            if (!read_contiguous(args[direction], form_.tensors, resets, reset)) return false;
            in.resets[direction] = reinterpret_cast<const uint8_t*>(reset);
        }
        return !in.resets[0] == !in.resets[1];
    }

    const Layers<T> layers_;
    const std::vector<Names> names_;
    const Form form_;
    double work_ = 0;  // of a step of one row, in multiplications of its dtype
};

}  // namespace rnnfast
