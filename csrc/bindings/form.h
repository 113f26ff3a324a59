// What the caller of a stack tells of its arguments: the form of arrays, and which gradients it wants.
#pragma once

#include "bindings/ndarray.h"

namespace rnnfast {

// The form that a stack's arrays have for its caller.
struct Form {
    bool cell;  // arrays of one step have no axis T, and states no axis L*D
    bool batch_first;
    bool ragged;  // x and y are (N, ·), like the data of a PackedSequence; batch sizes give T and B
    bool tensors;  // arguments may be tensors; results are tensors if x is one

    // Finds the axes of an array (T, B, ·) with `count` axes. Returns false if none has so many.
    bool axes(int count, Axes& axes) const {
        if (ragged) {
            axes = {-1, 0};
            return count == 2;
        }
        const int most = cell ? 2 : 3;
        if (count != most && count != most - 1) return false;
        const bool batched = count == most;
        const bool swapped = batch_first && batched;
        axes = cell ? Axes{-1, batched ? 0 : -1} : Axes{swapped, batched ? !swapped : -1};
        return true;
    }
};

// The gradients that a caller wants: all, or those whose entry in a tuple is True. `next` must be called for
// each gradient, in the order of the tuple.
class Choice {
public:
    explicit Choice(PyObject* tuple) : tuple_(tuple) {}  // null: all
    bool all() const { return !tuple_; }
    bool next() { return !tuple_ || PyTuple_GET_ITEM(tuple_, next_++) == Py_True; }

private:
    PyObject* const tuple_;
    Py_ssize_t next_ = 0;
};

// Whether `object` is a tuple of `count` bools.
inline bool are_bools(PyObject* object, Py_ssize_t count) {
    if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!PyBool_Check(PyTuple_GET_ITEM(object, i))) return false;
    return true;
}

}  // namespace rnnfast
