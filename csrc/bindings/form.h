// What a stack's caller says of its arguments: how arrays look, and which gradients it wants.
#pragma once

#include "bindings/ndarray.h"

namespace rnnfast {

// How a stack's arrays look to its caller.
struct Form {
    bool cell;  // one step without an axis T, and states without the axis L*D
    bool batch_first;
    bool ragged;   // x and y are (N, ·), as a PackedSequence's data; batch sizes tell T and B
    bool tensors;  // arguments may be tensors, and the results are if x is one

    // Of an array (T, B, ·) with so many axes; false where there is no such form.
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

// Which gradients a caller wants: all, or those for which a tuple has True, asked for in its order.
class Choice {
public:
    explicit Choice(PyObject* tuple) : tuple_(tuple) {}  // null: all
    bool all() const { return !tuple_; }
    bool next() { return !tuple_ || PyTuple_GET_ITEM(tuple_, next_++) == Py_True; }

private:
    PyObject* const tuple_;
    Py_ssize_t next_ = 0;
};

// Whether it is a tuple of so many bools.
inline bool are_bools(PyObject* object, Py_ssize_t count) {
    if (!PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) != count) return false;
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!PyBool_Check(PyTuple_GET_ITEM(object, i))) return false;
    return true;
}

}  // namespace rnnfast
