// The function `fingerprint` of rnnfast._native, in C++ and in Python.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace rnnfast {

// The fingerprint of contiguous arrays or tensors in a tuple. Releases the GIL if that pays. `threads` is
// described in _native.pyi. Throws TypeError if `arrays` is anything else.
uint64_t fingerprint_of(PyObject* arrays, long threads);

void add_fingerprint(pybind11::module_& module);

}  // namespace rnnfast
