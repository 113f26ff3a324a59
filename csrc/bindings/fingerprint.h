// The function fingerprint of rnnfast._native, and what it gives.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace rnnfast {

// Of contiguous arrays or tensors in a tuple, without the GIL while it pays; `threads`: as in
// _native.pyi. Throws TypeError where they are something else.
uint64_t fingerprint_of(PyObject* arrays, long threads);

void add_fingerprint(pybind11::module_& module);

}  // namespace rnnfast
