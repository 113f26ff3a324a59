// Tensors of another library, torch, exchanged by DLPack's C functions: 0.05 us to read one and 0.3
// to make one, where `numpy()` and `from_numpy` take 0.7 each and NumPy's array comes on top.
#pragma once

#include <pybind11/pybind11.h>

#include <cstddef>

#include "dispatch/buffer.h"

namespace rnnfast {

namespace py = pybind11;

// The shape of an array of up to three axes.
constexpr int kMostAxes = 3;
struct Shape {
    Py_intptr_t sizes[kMostAxes];
    int count = 0;
    bool swapped = false;  // the second axis comes before the first in memory

    void add(ptrdiff_t size) { sizes[count++] = size; }
};

// Of an array of such items to be allocated; throws where NumPy would, which leaves out axes of size 0.
ptrdiff_t element_count(const Shape& shape, size_t item);

// An array or tensor of the caller's, as it lies.
struct Array {
    const char* data;
    int axes;
    Py_intptr_t sizes[kMostAxes];
    Py_intptr_t strides[kMostAxes];  // in bytes
    char kind;                       // as NumPy's: b, i or f; of others any
    ptrdiff_t item;                  // the size of one, in bytes
};

// Whether it is an object of a type given to `take_tensors`, and of no subclass.
bool is_tensor(PyObject* object);

// `object` if it is a tensor of up to three axes with memory that the CPU reads; sets no exception.
// Whether it stands for the negatives of what lies there does not show.
bool read_tensor(PyObject* object, Array& array);

// Whether a tensor does, as some of torch's do; of an object of which `is_tensor` is true.
bool is_negated(PyObject* tensor);

// A new tensor, not initialised, and where it lies, at the start of a cache line; `too_large`: as of
// `allocate_bytes`.
struct NewTensor {
    py::object object;
    void* data;
};
NewTensor new_tensor(const Shape& shape, char kind, size_t item, size_t too_large = kLasting);

// Adds the functions take_tensors, which makes a library's types known, and empty_like and copy, which
// make such tensors.
void add_tensors(py::module_& module);

}  // namespace rnnfast
