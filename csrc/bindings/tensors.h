// Exchanges tensors with another library, torch, through DLPack's C functions. To read a tensor takes
// 0.05 us, and to make one 0.3 us. `numpy()` and `from_numpy` take 0.7 us each, besides
// the time for NumPy's array.
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
    bool swapped = false;  // whether the second axis comes before the first in memory

    void add(ptrdiff_t size) { sizes[count++] = size; }
};

// The number of elements of an array to be allocated. Throws if the array is too large, as NumPy does: it
// ignores axes of size 0 in that check.
ptrdiff_t element_count(const Shape& shape, size_t item);

// The memory, shape and dtype of an array or tensor of the caller.
struct Array {
    const char* data;
    int axes;
    Py_intptr_t sizes[kMostAxes];
    Py_intptr_t strides[kMostAxes];  // in bytes
    char kind;                       // NumPy's character: b, i or f; another one for other kinds
    ptrdiff_t item;                  // the size of an element, in bytes
};

// Whether the object's type is one given to `take_tensors`, not a subclass of one.
bool is_tensor(PyObject* object);

// Reads `object` if it is a tensor of up to three axes in memory that the CPU can read. Sets no exception. It
// does not tell whether the tensor stands for the negatives of the values in its memory.
bool read_tensor(PyObject* object, Array& array);

// Whether a tensor stands for the negatives of the values in its memory, as some of torch's do. `is_tensor`
// must be true of it.
bool is_negated(PyObject* tensor);

// A new tensor, which is not initialised, and its memory, which begins on a cache line. `too_large`: see
// `allocate_bytes`.
struct NewTensor {
    py::object object;
    void* data;
};
NewTensor new_tensor(const Shape& shape, char kind, size_t item, size_t too_large = kLasting);

// Adds the functions `take_tensors`, which makes a library's types known, and `empty_like` and `copy`, which
// make tensors of these types.
void add_tensors(py::module_& module);

}  // namespace rnnfast
