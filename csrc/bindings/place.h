// The functions `place`, `moved` and `can_read` of rnnfast._native.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

// Whether a pass may read the tensors in `args`, which are (place, weights, x, states). `can_read` in
// _native.pyi describes them. Throws TypeError if `place` or `weights` is of another type.
bool can_read_all(PyObject* const* args);

void add_place(pybind11::module_& module);

}  // namespace rnnfast
