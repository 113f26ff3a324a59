// Training passes of a stack. A `Run` keeps the data that backward needs. Other passes keep them on a tape
// that the caller gets, as for torch, whose graph keeps the tape and may move it.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "bindings/stack_of.h"

namespace rnnfast {

// Removes const from memory of a pass that has run. Its backward pass only reads that memory.
template <class T>
T* only_read(const T* data) {
    return const_cast<T*>(data);
}

template <class T>
class RunOf final : public Run {
public:
    // `self` is the Python object of `stack`, and `outputs` the object that keeps the memory of the output.
    RunOf(const StackOf<T>& stack, PyObject* self, py::object outputs, const Axes& axes,
          const Extent& extent, std::unique_ptr<const Pass<T>> pass)
        : stack_(stack),
          self_(py::reinterpret_borrow<py::object>(self)),
          outputs_(std::move(outputs)),
          axes_(axes),
          extent_(extent),
          pass_(std::move(pass)) {}

    py::object backward(PyObject* d_output, PyObject* d_state) const override {
        return stack_.gradients(*pass_, Py_None, axes_, extent_, d_output, d_state, nullptr);
    }

private:
    const StackOf<T>& stack_;
    const py::object self_, outputs_;
    const Axes axes_;
    const Extent extent_;
    const std::unique_ptr<const Pass<T>> pass_;
};

template <class T>
py::object StackOf<T>::record(PyObject* self, PyObject* const* args, Py_ssize_t count) const {
    Axes axes;
    PassInputs<T> in;
    if (form_.ragged || !trains()) return not_implemented();
    if (!read(args, count, axes, in) || !runs(in)) return not_implemented();
    // The states have memory of their own, so that keeping a state does not keep the larger output.
    const Shape y_shape = axes.shape(in, layers_.output());
    const Shape h_shape = state_shape(axes, in.batch, layers_.width());
    const Shape c_shape = state_shape(axes, in.batch, layers_.hidden());
    const ptrdiff_t h_size = Arena<T>::whole_lines(element_count(h_shape, sizeof(T)));
    const ptrdiff_t c_size = has_c() ? element_count(c_shape, sizeof(T)) : 0;
    Buffer<T> y_memory = allocate<T>(element_count(y_shape, sizeof(T)));
    Buffer<T> state_memory = allocate<T>(h_size + c_size);
    PassOutputs<T> out;
    out.y = dense_rows(y_memory.get(), axes, y_shape);
    out.hn = state_memory.get();
    out.cn = has_c() ? out.hn + h_size : nullptr;
    const py::object y_owner = owner_of(std::move(y_memory));
    const py::object state_owner = owner_of(std::move(state_memory));
    const py::object y = array_on(y_shape, out.y.data, y_owner, false);
    const py::object hn = array_on(h_shape, out.hn, state_owner, false);
    py::object cn;
    if (has_c()) cn = array_on(c_shape, out.cn, state_owner, false);
    std::unique_ptr<const Pass<T>> pass;
    {
        const GilRelease release(releases(in, 1));
        pass = std::make_unique<const Pass<T>>(layers_, in, out, true);
        pass->forward();
    }
    const py::object made =
        new_run(*this, std::make_unique<RunOf<T>>(*this, self, y_owner, axes, in, std::move(pass)));
    return owned_or_throw(PyTuple_Pack(3, made.ptr(), y.ptr(), state(hn, cn).ptr()));
}

template <class T>
py::object StackOf<T>::new_input_gradient(PyObject* like, const Axes& axes, const Extent& extent,
                                          Choice& choice, PassGradients<T>& grads) const {
    if (!choice.next()) return py::none();
    const Shape shape = axes.shape(extent, layers_.input());
    auto made = new_like<T>(like, shape);
    grads.dx = dense_rows(made.data, axes, shape);
    return std::move(made.object);
}

template <class T>
py::object StackOf<T>::new_state_gradient(PyObject* like, const Axes& axes, const Extent& extent,
                                          Choice& choice, PassGradients<T>& grads) const {
    if (!choice.next()) return py::none();
    auto dh0 = new_like<T>(like, state_shape(axes, extent.batch, layers_.width()));
    grads.dh0 = dh0.data;
    New<T> dc0{};
    if (has_c()) dc0 = new_like<T>(like, state_shape(axes, extent.batch, layers_.hidden()));
    grads.dc0 = dc0.data;
    return state(dh0.object, dc0.object);
}

template <class T>
py::object StackOf<T>::new_parameter_gradients(PyObject* like, Choice& choice,
                                               PassGradients<T>& grads,
                                               std::vector<py::object>& arrays) const {
    const py::object parameters = owned_or_throw(choice.all() ? PyDict_New() : PyList_New(0));
    const auto add = [&](const py::object& name, const py::object& array) {
        PyObject* const to = parameters.ptr();
        if ((choice.all() ? PyDict_SetItem(to, name.ptr(), array.ptr())
                          : PyList_Append(to, array.ptr())) < 0)
            throw py::error_already_set();
    };
    grads.weights.resize(layers_.packs.size());
    for (size_t k = 0; k < layers_.packs.size(); ++k) {
        const Sizes& sizes = layers_.packs[k]->sizes();
        const ptrdiff_t gates = layers_.kernels().gates * sizes.hidden;
        const auto gradient = [&](size_t which, const Shape& shape) -> T* {
            const py::object& name = names_[k][which];
            if (name.is_none()) return nullptr;
            if (!choice.next()) {
                add(name, py::none());
                return nullptr;
            }
            auto made = new_like<T>(like, shape);
            add(name, made.object);
            arrays.push_back(std::move(made.object));
            return made.data;
        };
        // Braces guarantee that the calls run in this order.
        grads.weights[k] = {gradient(0, {{gates, sizes.input}, 2}),
                            gradient(1, {{gates, sizes.width()}, 2}), gradient(2, {{gates}, 1}),
                            gradient(3, {{gates}, 1}),
                            gradient(4, {{sizes.projection, sizes.hidden}, 2})};
    }
    return parameters;
}

template <class T>
py::object StackOf<T>::gradients(const Pass<T>& pass, PyObject* like, const Axes& axes,
                                 const Extent& extent, PyObject* d_output, PyObject* d_state,
                                 PyObject* wanted) const {
    PassGradients<T> grads;
    const ptrdiff_t batch = extent.batch;
    const Shape y_shape = axes.shape(extent, layers_.output());
    if (!read_rows_or_none(d_output, axes, y_shape, grads.dy)) return not_implemented();
    if (!read_state(d_state, axes, batch, true, grads.dhn, grads.dcn)) return not_implemented();
    Choice choice(wanted);
    const py::object dx = new_input_gradient(like, axes, extent, choice, grads);
    const py::object initial = new_state_gradient(like, axes, extent, choice, grads);
    std::vector<py::object> arrays;  // keeps also arrays whose name a later one takes in the dict
    const py::object parameters = new_parameter_gradients(like, choice, grads, arrays);
    {
        const GilRelease release(releases(extent, 2));
        pass.backward(grads);
    }
    return owned_or_throw(PyTuple_Pack(3, dx.ptr(), initial.ptr(), parameters.ptr()));
}

// Returns the output (None for a cell), the state and the tape.
template <class T>
py::object StackOf<T>::forwarded(const Given& given, int threads) const {
    Axes axes;
    PassInputs<T> in;
    if (!trains() || !admits(given, threads, axes, in) || (given.all && in.steps != 1))
        return not_implemented();
    PyObject* const x = given.args[0];
    const Outputs made = new_outputs(x, axes, in);
    const Shape tape_shape{{Pass<T>::tape_size(layers_, in.rows())}, 1};
    const auto tape = new_like<T>(x, tape_shape, kPassing);
    {
        const ThreadLimit limit(threads);
        const GilRelease release(releases(in, 1));
        Pass<T>(layers_, in, made.out, true, tape.data).forward();
    }
    return owned_or_throw(PyTuple_Pack(3, made.y.ptr(), made.state.ptr(), tape.object.ptr()));
}

// Arguments: x, state, lengths, output, tape, d_output, d_state, wanted, threads. Returns `gradients`.
template <class T>
py::object StackOf<T>::backward(PyObject* const* args) const {
    Axes axes;
    PassInputs<T> in;
    if (!trains() || !read(args, 3, axes, in)) return not_implemented();
    Rows<const T> y;
    const T* tape;
    const Shape y_shape = axes.shape(in, layers_.output());
    const Shape tape_shape{{Pass<T>::tape_size(layers_, in.rows())}, 1};
    if ((args[3] == Py_None) != form_.cell || !read_rows_or_none(args[3], axes, y_shape, y) ||
        !read_contiguous(args[4], form_.tensors, tape_shape, tape) || args[4] == Py_None)
        return not_implemented();
    if (!are_bools(args[7], 2 + parameters())) return not_implemented();
    const bool at_inputs =
        PyTuple_GET_ITEM(args[7], 0) == Py_True || PyTuple_GET_ITEM(args[7], 1) == Py_True;
    if (!runs(in) && (at_inputs || in.steps > 1 || layers_.jobs() > 1)) return not_implemented();
    const PassOutputs<T> out{{only_read(y.data), y.step, y.row}, nullptr, nullptr};
    const ThreadLimit limit(integer(args[8]));
    const Pass<T> pass(layers_, in, out, true, only_read(tape));
    return gradients(pass, args[0], axes, in, args[5], args[6], args[7]);
}

}  // namespace rnnfast
