// NumPy arrays through NumPy's own structs: reads what fits a call as it lies, and makes new ones.
// pybind11's wrappers, which arrays.h uses, take longer than a step of a small layer.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "dispatch/buffer.h"

namespace rnnfast {

namespace py = pybind11;

// The shape of an array of up to three axes.
struct Shape {
    Py_intptr_t sizes[3];
    int count = 0;

    void add(ptrdiff_t size) { sizes[count++] = size; }
};

// Where T and B are among the leading axes of a caller's arrays (T, B, ·); -1: nowhere, it is 1.
struct Axes {
    int steps;
    int batch;

    int count() const { return (steps >= 0) + (batch >= 0); }
    Shape shape(ptrdiff_t step_count, ptrdiff_t rows, ptrdiff_t width) const {
        Shape result;
        result.count = count() + 1;
        if (steps >= 0) result.sizes[steps] = step_count;
        if (batch >= 0) result.sizes[batch] = rows;
        result.sizes[count()] = width;
        return result;
    }
};

// Rows (T, B, ·) of unit stride; strides in elements.
template <class T>
struct Rows {
    T* data = nullptr;
    ptrdiff_t step = 0;
    ptrdiff_t row = 0;
};

// NumPy's struct of `object` if it is an array, of no subclass, of aligned items that are T's in
// this machine's byte order; else null.
template <class T>
const py::detail::PyArray_Proxy* array_of(PyObject* object) {
    using api = py::detail::npy_api;
    if (Py_TYPE(object) != api::get().PyArray_Type_) return nullptr;
    const auto* const array = py::detail::array_proxy(object);
    const auto descr = py::reinterpret_borrow<py::dtype>(array->descr);
    // By kind and size: NumPy has two numbers for int64, long and long long, where both have 8 bytes.
    constexpr char kind = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b' : 'i';
    const bool swapped = descr.byteorder() == (PY_BIG_ENDIAN ? '<' : '>');
    const bool fits = descr.kind() == kind && descr.itemsize() == ptrdiff_t(sizeof(T)) && !swapped;
    return fits && (array->flags & api::NPY_ARRAY_ALIGNED_) ? array : nullptr;
}

inline bool has_shape(const py::detail::PyArray_Proxy& array, const Shape& shape) {
    if (array.nd != shape.count) return false;
    for (int axis = 0; axis < shape.count; ++axis)
        if (array.dimensions[axis] != shape.sizes[axis]) return false;
    return true;
}

// The array's rows, if its last axis has unit stride and the others go forward by whole elements.
template <class T>
bool read_rows(const py::detail::PyArray_Proxy& array, const Axes& axes, Rows<const T>& rows) {
    constexpr auto item = ptrdiff_t(sizeof(T));
    ptrdiff_t strides[3] = {0, 0, 0};
    bool empty = false;
    for (int axis = 0; axis < array.nd; ++axis) {
        // The stride of an axis of one or none may be anything, and means nothing.
        if (array.dimensions[axis] > 1) strides[axis] = array.strides[axis];
        empty = empty || array.dimensions[axis] == 0;
    }
    const int last = array.nd - 1;
    bool fits = array.dimensions[last] <= 1 || strides[last] == item;
    for (int axis = 0; axis < last; ++axis)
        fits = fits && strides[axis] >= 0 && strides[axis] % item == 0;
    if (!fits && !empty) return false;
    rows.data = reinterpret_cast<const T*>(array.data);
    rows.step = axes.steps < 0 ? 0 : strides[axes.steps] / item;
    rows.row = axes.batch < 0 ? 0 : strides[axes.batch] / item;
    return true;
}

// The data of a C-contiguous array of `shape`; None gives null. False where it is something else.
template <class T>
bool read_contiguous(PyObject* object, const Shape& shape, const T*& data) {
    data = nullptr;
    if (object == Py_None) return true;
    const auto* const array = array_of<T>(object);
    if (!array || !has_shape(*array, shape)) return false;
    if (!(array->flags & py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_)) return false;
    data = reinterpret_cast<const T*>(array->data);
    return true;
}

template <class T>
T* array_data(const py::object& array) {
    return reinterpret_cast<T*>(py::detail::array_proxy(array.ptr())->data);
}

// Of an array of T's to be allocated; throws where NumPy would, which leaves out axes of size 0.
template <class T>
ptrdiff_t element_count(const Shape& shape) {
    double bytes = sizeof(T);
    ptrdiff_t count = 1;
    for (int axis = 0; axis < shape.count; ++axis) {
        if (shape.sizes[axis]) bytes *= double(shape.sizes[axis]);
        if (bytes >= double(PTRDIFF_MAX)) throw py::value_error("array is too big");
        count *= shape.sizes[axis];
    }
    return count;
}

// What NumPy's C API returns: an object, or an exception that it has set.
inline py::object owned_or_throw(PyObject* object) {
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

template <class T>
PyObject* descriptor() {
    return py::detail::npy_api::get().PyArray_DescrFromType_(
        py::detail::npy_format_descriptor<T>::value);
}

// An object that frees `memory` when the last array on it has gone. It gives no buffer, so that
// read-only arrays on it stay so: NumPy asks the base before it makes an array writable.
template <class T>
py::object owner_of(Buffer<T> memory) {
    const size_t bytes = memory.get_deleter().bytes;
    py::object owner = owned_or_throw(PyCapsule_New(memory.get(), nullptr, [](PyObject* capsule) {
        free_bytes(PyCapsule_GetPointer(capsule, nullptr),
                   reinterpret_cast<size_t>(PyCapsule_GetContext(capsule)));
    }));
    memory.release();
    if (PyCapsule_SetContext(owner.ptr(), reinterpret_cast<void*>(bytes)))
        throw py::error_already_set();
    return owner;
}

// An array on memory that `owner` keeps.
template <class T>
py::object array_on(const Shape& shape, T* data, const py::object& owner, bool writable) {
    using api = py::detail::npy_api;
    const auto& numpy = api::get();
    constexpr int flags = api::NPY_ARRAY_C_CONTIGUOUS_ | api::NPY_ARRAY_ALIGNED_;
    py::object array = owned_or_throw(numpy.PyArray_NewFromDescr_(
        numpy.PyArray_Type_, descriptor<T>(), shape.count, shape.sizes, nullptr, data,
        flags | (writable ? api::NPY_ARRAY_WRITEABLE_ : 0), nullptr));
    if (numpy.PyArray_SetBaseObject_(array.ptr(), py::object(owner).release().ptr()) < 0)
        throw py::error_already_set();
    return array;
}

// A new array, not initialised. Those that are large lie on memory that is kept when they have gone:
// from the system it would come page by page, cleared.
template <class T>
py::object new_array(const Shape& shape) {
    constexpr auto large = ptrdiff_t(kKeptFrom / sizeof(T));
    const ptrdiff_t count = element_count<T>(shape);
    if (count >= large) {
        Buffer<T> memory = allocate<T>(count);
        T* const data = memory.get();
        return array_on(shape, data, owner_of(std::move(memory)), true);
    }
    const auto& numpy = py::detail::npy_api::get();
    return owned_or_throw(numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, descriptor<T>(),
                                                      shape.count, shape.sizes, nullptr, nullptr, 0,
                                                      nullptr));
}

}  // namespace rnnfast
