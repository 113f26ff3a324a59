// A stack of layers of one dtype, which reads and returns Python's arrays.
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

// The names of a job's gradients, in the order of `Weights`. None: the job has no such parameter.
using Names = std::array<py::object, 5>;

// `Stack` in _native.pyi describes this class.
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

// `Run` in _native.pyi describes this class.
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

    // The gradients of `pass`, or NotImplemented if an argument cannot be read. If `wanted` is null, they are
    // all gradients, with those of parameters in a dict by name. Otherwise they are those that `wanted`
    // selects, with those of parameters in a list. They are tensors if `like` is one, and otherwise arrays.
    py::object gradients(const Pass<T>& pass, PyObject* like, const Axes& axes,
                         const Extent& extent, PyObject* d_output, PyObject* d_state,
                         PyObject* wanted) const;

private:
    // The arguments of a pass that `read` takes, and their number.
    struct Given {
        PyObject* const* args;
        Py_ssize_t count;
        PyObject* const* all = nullptr;  // all arguments of infer_at or forward_at

        static Given at(PyObject* const* all) {
            return {all + 2, 2, all};  // x and state follow the weights' place and the weights
        }
    };

    // Reads the arguments. Returns false if a pass cannot read them or must not run.
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

    // Whether the weights have the fingerprint `seen`. Always true if `seen` is None.
    static bool is_as_seen(PyObject* weights, PyObject* seen, int threads) {
        if (seen == Py_None) return true;
        const auto wanted = PyLong_AsUnsignedLongLong(seen);
        if (PyErr_Occurred()) throw py::error_already_set();
        return fingerprint_of(weights, threads) == wanted;
    }

    // Make new arrays for the gradients that are wanted, and return None for the others.
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
    // Whether steps can leave gate gradients, for the parameters' gradients of many steps together.
    bool leaves_steps() const {
        return layers_.directions == 1 && !form_.ragged && trains() &&
               layers_.kernels().meetings(layers_.packs[0]->sizes()) == 1;
    }
    // The shape of the gate gradients that a step leaves.
    Shape gates_shape(ptrdiff_t batch) const {
        return {{layers_.jobs(), batch, Pass<T>::gradient_row(layers_)}, 3};
    }
    // Whether a pass runs. With borrowed weights, only passes that read the weights once run. With more steps
    // or rows, a pass with packed weights is faster; with lengths that leave rows out, or resets, it may be.
    // For such passes, callers keep a pack.
    bool runs(const PassInputs<T>& in) const {
        return !layers_.packs[0]->borrowed() ||
               (in.steps == 1 && in.batch <= layers_.kernels().few && in.lengths.empty() &&
                !in.resets[0]);
    }
    // Whether to release the GIL. `passes`: the work, in units of the work of a forward pass.
    bool releases(const Extent& extent, int passes) const {
        return passes * double(extent.rows()) * work_ >= RNNFAST_RELEASING_PAYS;
    }
    py::object state(const py::object& h, const py::object& c) const { return c ? pair(h, c) : h; }

    // New arrays for the results of a pass, and their memory.
    struct Outputs {
        py::object y, state;  // y is None for a cell
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
            out.y = {out.hn, 0, layers_.width()};  // y of one step is h after it
        } else {
            Shape shape = axes.shape(in, layers_.output());
            // Tensors have the memory order of torch's own, since dropout draws its masks in that order.
            shape.swapped = form_.tensors && axes.batch == 0 && axes.steps == 1;
            auto made = new_like<T>(like, shape);
            out.y = dense_rows(made.data, axes, shape);
            y = std::move(made.object);
        }
        return {y, state(hn.object, cn), out};
    }

    // The shape of an array (L*D, B, ·).
    Shape state_shape(const Axes& axes, ptrdiff_t batch, ptrdiff_t width) const {
        Shape shape;
        if (!form_.cell) shape.add(layers_.jobs());
        if (axes.batch >= 0) shape.add(batch);
        shape.add(width);
        return shape;
    }

    static Rows<T> dense_rows(T* data, const Axes& axes, const Shape& shape) {
        const ptrdiff_t width = shape.sizes[shape.count - 1];
        const int outer = shape.swapped;  // the outer one of two axes in memory
        const auto stride = [&](int axis) {
            return axis < 0                             ? 0
                   : axis == outer && axes.count() == 2 ? shape.sizes[1 - outer] * width
                                                        : width;
        };
        return {data, stride(axes.steps), stride(axes.batch)};
    }

    // Reads the rows of an array with these axes and this shape. None leaves `rows` as it is.
    bool read_rows_or_none(PyObject* object, const Axes& axes, const Shape& shape,
                           Rows<const T>& rows) const {
        if (object == Py_None) return true;
        Array array;
        return read_array<T>(object, form_.tensors, array) && has_shape(array, shape) &&
               read_rows(array, axes, rows);
    }

    // Reads a state or its gradient: h, or a pair (h, c), or None. If `partly`, one of a pair may be None.
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

    // Reads `count` arguments: (x, state), (x, state, lengths) or (x, state, lengths, reset, reset_reversed).
    // If x is ragged, batch sizes take the place of lengths, and must be there.
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

    // Reads batch sizes, which a ragged x needs in place of lengths. They give T and B.
    bool read_batch_sizes(PyObject* object, PassInputs<T>& in) const {
        Array sizes;
        if (!read_array<int64_t>(object, form_.tensors, sizes) || sizes.axes != 1 ||
            !is_contiguous(sizes))
            return false;
        in.ragged = in.batch;  // the rows of x
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
    double work_ = 0;  // the cost of a step of one row, in multiplications of its dtype
};

}  // namespace rnnfast
