// Backward passes of single steps: of a cell, or of a layer called with one step. Each step has a backward
// pass of its own, but the parameters' gradients of many steps are computed together. To write those of one
// step alone would touch as much memory as its forward pass reads.
#pragma once

#include <vector>

#include "bindings/stack_training.h"

namespace rnnfast {

// Whether a gradient, or one of a tuple, is a tensor that stands for the negatives of the values in its
// memory.
inline bool is_any_negated(PyObject* gradient) {
    if (!PyTuple_CheckExact(gradient)) return is_tensor(gradient) && is_negated(gradient);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(gradient); ++i)
        if (is_any_negated(PyTuple_GET_ITEM(gradient, i))) return true;
    return false;
}

// Arguments: x, state, output, tape, d_output, d_state, wanted, threads. Returns the gradients at x, at the
// state and at the gates.
template <class T>
py::object StackOf<T>::step_backward(PyObject* const* args) const {
    Axes axes;
    PassInputs<T> in;
    if (!leaves_steps() || !read(args, 2, axes, in) || in.steps != 1 || !are_bools(args[6], 3))
        return not_implemented();
    const Shape y_shape = axes.shape(in, layers_.output());
    const Shape tape_shape{{Pass<T>::tape_size(layers_, in.rows())}, 1};
    Rows<const T> y;
    const T* tape;
    PassGradients<T> grads;
    if (!read_rows_or_none(args[2], axes, y_shape, y) || args[3] == Py_None ||
        (layers_.keeps_y && layers_.kernels().saves_y && args[2] == Py_None) ||
        !read_contiguous(args[3], form_.tensors, tape_shape, tape) ||
        (form_.cell && args[4] != Py_None) ||
        !read_rows_or_none(args[4], axes, y_shape, grads.dy) ||
        !read_state(args[5], axes, in.batch, true, grads.dhn, grads.dcn) ||
        is_any_negated(args[4]) || is_any_negated(args[5]))
        return not_implemented();
    Choice choice(args[6]);
    const py::object dx = new_input_gradient(args[0], axes, in, choice, grads);
    const py::object initial = new_state_gradient(args[0], axes, in, choice, grads);
    const bool at_inputs = !(dx.is_none() && initial.is_none());
    if (!runs(in) && (at_inputs || layers_.jobs() > 1)) return not_implemented();
    py::object gates = py::none();
    if (choice.next()) {
        auto made = new_like<T>(args[0], gates_shape(in.batch));
        grads.gates = made.data;
        gates = std::move(made.object);
    }
    grads.weights.resize(layers_.packs.size());  // all null: none is wanted
    const ThreadLimit limit(integer(args[7]));
    const PassOutputs<T> out{{only_read(y.data), y.step, y.row}, nullptr, nullptr};
    const Pass<T> pass(layers_, in, out, true, only_read(tape));
    {
        const GilRelease release(releases(in, 1));
        pass.backward(grads);
    }
    return owned_or_throw(PyTuple_Pack(3, dx.ptr(), initial.ptr(), gates.ptr()));
}

// Arguments: steps, wanted, threads. `steps` is a list of tuples (x, h before the step, tape, gates). h may
// be None, and so may the tape if there is one layer. Returns the gradients of the parameters.
template <class T>
py::object StackOf<T>::steps_backward(PyObject* const* args) const {
    PyObject* const steps = args[0];
    if (!leaves_steps() || !PyList_CheckExact(steps) || PyList_GET_SIZE(steps) == 0 ||
        !are_bools(args[1], parameters()))
        return not_implemented();
    const auto count = size_t(PyList_GET_SIZE(steps)), layers = size_t(layers_.layers());
    std::vector<LeftStep<T>> left(layers * count);  // the steps of each layer are neighbours
    std::vector<Extent> extents(count);
    for (size_t i = 0; i < count; ++i) {
        PyObject* const step = PyList_GET_ITEM(steps, Py_ssize_t(i));
        if (!PyTuple_CheckExact(step) || PyTuple_GET_SIZE(step) != 4) return not_implemented();
        PyObject* const own[] = {PyTuple_GET_ITEM(step, 0), Py_None};
        Axes axes;
        PassInputs<T> in;
        if (!read(own, 2, axes, in) || in.steps != 1) return not_implemented();
        const ptrdiff_t batch = in.batch;
        const Shape h_shape = state_shape(axes, batch, layers_.width());
        const Shape tape_shape{{Pass<T>::tape_size(layers_, batch)}, 1};
        const T *h, *tape, *gates;
        if (!read_contiguous(PyTuple_GET_ITEM(step, 1), form_.tensors, h_shape, h) ||
            !read_contiguous(PyTuple_GET_ITEM(step, 2), form_.tensors, tape_shape, tape) ||
            !read_contiguous(PyTuple_GET_ITEM(step, 3), form_.tensors, gates_shape(batch), gates) ||
            !gates || (!tape && layers > 1))
            return not_implemented();
        for (size_t layer = 0; layer < layers; ++layer) {
            LeftStep<T>& part = left[layer * count + i];
            const auto l = ptrdiff_t(layer);
            part.x = l ? Pass<T>::inner_output(layers_, batch, tape, int(l) - 1) : in.x.data;
            part.x_row = l ? layers_.output() : in.x.row;
            part.h = h ? h + l * batch * layers_.width() : nullptr;
            part.gates = gates + l * batch * Pass<T>::gradient_row(layers_);
        }
        extents[i] = in;
    }
    PassGradients<T> grads;
    Choice choice(args[1]);
    std::vector<py::object> arrays;
    PyObject* const like = PyTuple_GET_ITEM(PyList_GET_ITEM(steps, 0), 0);
    const py::object parameters = new_parameter_gradients(like, choice, grads, arrays);
    const ThreadLimit limit(integer(args[2]));
    double rows = 0;
    for (const Extent& extent : extents) rows += double(extent.rows());
    {
        const GilRelease release(rows * work_ >= RNNFAST_RELEASING_PAYS);
        for (size_t begin = 0, end; begin < count; begin = end) {  // steps of one batch size
            end = begin + 1;
            while (end < count && extents[end].batch == extents[begin].batch) ++end;
            const RowPlan plan(ptrdiff_t(end - begin), extents[begin].batch, false, nullptr);
            for (size_t layer = 0; layer < layers; ++layer) {
                const Weights<T>& w = grads.weights[layer];
                if (!(w.weight_ih || w.weight_hh || w.bias_ih || w.bias_hh)) continue;
                BackwardJob<T> job{layers_.packs[layer].get(), {}, {}, &plan};
                job.grads.weights = w;
                job.grads.assign = begin == 0;
                job.grads.left = &left[layer * count + begin];
                run_backward_stack(&job, 1, 1);
            }
        }
    }
    return parameters;
}

}  // namespace rnnfast
