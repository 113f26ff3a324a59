// Reads NumPy arrays through NumPy's own structs, and tensors, if a call can use them without conversion;
// and makes new ones. pybind11's wrappers, which arrays.h uses, take longer than a step of a small layer.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "bindings/tensors.h"
#include "dispatch/buffer.h"

namespace rnnfast {

namespace py = pybind11;

// T and B of a caller's arrays (T, B, ·). Ragged arrays are (N, ·): they have no padding.
struct Extent {
    ptrdiff_t steps = 1, batch = 1;
    ptrdiff_t ragged = 0;  // N; 0: the arrays are not ragged

    ptrdiff_t rows() const { return ragged ? ragged : steps * batch; }
};

// The positions of T and B among the leading axes of such arrays; -1: there is no such axis, and the size is
// 1. In ragged arrays, N takes the place of B.
struct Axes {
    int steps;
    int batch;

    int count() const { return (steps >= 0) + (batch >= 0); }
    Shape shape(const Extent& extent, ptrdiff_t width) const {
        Shape result;
        result.count = count() + 1;
        if (steps >= 0) result.sizes[steps] = extent.steps;
        if (batch >= 0) result.sizes[batch] = extent.ragged ? extent.ragged : extent.batch;
        result.sizes[count()] = width;
        return result;
    }
};

// Rows (T, B, ·) of unit stride. The other strides are in elements.
template <class T>
struct Rows {
    T* data = nullptr;
    ptrdiff_t step = 0;
    ptrdiff_t row = 0;
};

// NumPy's character for the kind of T.
template <class T>
constexpr char kKind = std::is_floating_point_v<T> ? 'f'
                       : std::is_same_v<T, bool>   ? 'b'
                                                   : 'i';

inline bool is_empty(const Array& array) {
    const auto* const end = array.sizes + array.axes;
    return std::find(array.sizes, end, 0) != end;
}

inline bool is_contiguous(const Array& array) {
    if (is_empty(array)) return true;  // its strides have no meaning
    Py_intptr_t packed = array.item;
    for (int axis = array.axes; axis-- > 0;) {
        if (array.sizes[axis] > 1 && array.strides[axis] != packed) return false;
        packed *= array.sizes[axis];
    }
    return true;
}

// Reads `object` if it is an array of up to three axes, and of no subclass; or, if `tensors`, a tensor. Its
// items may be of any type.
inline bool read_any(PyObject* object, bool tensors, Array& array) {
    using api = py::detail::npy_api;
    if (Py_TYPE(object) != api::get().PyArray_Type_) return tensors && read_tensor(object, array);
    const auto* const proxy = py::detail::array_proxy(object);
    const auto descr = py::reinterpret_borrow<py::dtype>(proxy->descr);
    const bool swapped = descr.byteorder() == (PY_BIG_ENDIAN ? '<' : '>');
    if (proxy->nd > kMostAxes) return false;
    array.data = proxy->data;
    array.axes = proxy->nd;
    // Compare kind and size, not type numbers: if long and long long both have 8 bytes, NumPy has two numbers
    // for int64.
    array.kind = swapped ? '?' : descr.kind();
    array.item = descr.itemsize();
    std::copy_n(proxy->dimensions, array.axes, array.sizes);
    std::copy_n(proxy->strides, array.axes, array.strides);
    return true;
}

// Reads a tuple of contiguous arrays or tensors. Returns false if it is anything else.
inline bool read_all(PyObject* tuple, std::vector<Array>& arrays) {
    if (!PyTuple_CheckExact(tuple)) return false;
    arrays.resize(size_t(PyTuple_GET_SIZE(tuple)));
    for (size_t i = 0; i < arrays.size(); ++i)
        if (!read_any(PyTuple_GET_ITEM(tuple, Py_ssize_t(i)), true, arrays[i]) ||
            !is_contiguous(arrays[i]))
            return false;
    return true;
}

// Whether the array's items are aligned T's. An array without items counts as aligned, as in NumPy.
template <class T>
bool holds(const Array& array) {
    return array.kind == kKind<T> && array.item == ptrdiff_t(sizeof(T)) &&
           (reinterpret_cast<uintptr_t>(array.data) % alignof(T) == 0 || is_empty(array));
}

// Reads like `read_any`, but only an array that holds T's.
template <class T>
bool read_array(PyObject* object, bool tensors, Array& array) {
    return read_any(object, tensors, array) && holds<T>(array);
}

inline bool has_shape(const Array& array, const Shape& shape) {
    return array.axes == shape.count &&
           std::equal(shape.sizes, shape.sizes + shape.count, array.sizes);
}

// Reads the array's rows, if its last axis has unit stride, and the other strides are whole elements and not
// negative.
template <class T>
bool read_rows(const Array& array, const Axes& axes, Rows<const T>& rows) {
    constexpr auto item = ptrdiff_t(sizeof(T));
    ptrdiff_t strides[3] = {0, 0, 0};
    for (int axis = 0; axis < array.axes; ++axis)
        // An axis of size 0 or 1 may have any stride, which has no meaning.
        if (array.sizes[axis] > 1) strides[axis] = array.strides[axis];
    const int last = array.axes - 1;
    bool fits = array.sizes[last] <= 1 || strides[last] == item;
    for (int axis = 0; axis < last; ++axis)
        fits = fits && strides[axis] >= 0 && strides[axis] % item == 0;
    if (!fits && !is_empty(array)) return false;
    rows.data = reinterpret_cast<const T*>(array.data);
    rows.step = axes.steps < 0 ? 0 : strides[axes.steps] / item;
    rows.row = axes.batch < 0 ? 0 : strides[axes.batch] / item;
    return true;
}

// Reads the data of a C-contiguous array of `shape`; None gives null. Returns false for anything else.
template <class T>
bool read_contiguous(PyObject* object, bool tensors, const Shape& shape, const T*& data) {
    data = nullptr;
    if (object == Py_None) return true;
    Array array;
    if (!read_array<T>(object, tensors, array) || !has_shape(array, shape) || !is_contiguous(array))
        return false;
    data = reinterpret_cast<const T*>(array.data);
    return true;
}

// Takes the result of a function of Python's or NumPy's C API: an object, or null if it has set an exception.
inline py::object owned_or_throw(PyObject* object) {
    if (!object) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(object);
}

template <class T>
PyObject* descriptor() {
    return py::detail::npy_api::get().PyArray_DescrFromType_(
        py::detail::npy_format_descriptor<T>::value);
}

// An object that frees `memory` when the last array on it is gone. It does not offer the buffer protocol, so
// that read-only arrays on it stay read-only: NumPy asks the base before it makes an array writable.
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

// An array on memory that `owner` keeps alive.
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

// A new array or tensor, which is not initialised, and its memory.
template <class T>
struct New {
    py::object object;
    T* data;
};

// Large arrays lie on memory that is kept for reuse when they are gone. The system would have to clear each
// page of new memory. `too_large`: see `allocate_bytes`.
template <class T>
New<T> new_array(const Shape& shape, size_t too_large = kLasting) {
    if (shape.swapped) {
        Shape other = shape;
        std::swap(other.sizes[0], other.sizes[1]);
        other.swapped = false;
        const New<T> made = new_array<T>(other, too_large);
        return {made.object.attr("swapaxes")(0, 1), made.data};
    }
    constexpr auto large = ptrdiff_t(kKeptFrom / sizeof(T));
    const ptrdiff_t count = element_count(shape, sizeof(T));
    if (count >= large) {
        Buffer<T> memory = allocate<T>(count, too_large);
        T* const data = memory.get();
        return {array_on(shape, data, owner_of(std::move(memory)), true), data};
    }
    const auto& numpy = py::detail::npy_api::get();
    py::object array = owned_or_throw(
        numpy.PyArray_NewFromDescr_(numpy.PyArray_Type_, descriptor<T>(), shape.count, shape.sizes,
                                    nullptr, nullptr, 0, nullptr));
    auto* const data = reinterpret_cast<T*>(py::detail::array_proxy(array.ptr())->data);
    return {std::move(array), data};
}

// A new tensor if `like`, the caller's x, is one; otherwise a new array.
template <class T>
New<T> new_like(PyObject* like, const Shape& shape, size_t too_large = kLasting) {
    if (!is_tensor(like)) return new_array<T>(shape, too_large);
    NewTensor made = new_tensor(shape, kKind<T>, sizeof(T), too_large);
    return {std::move(made.object), static_cast<T*>(made.data)};
}

}  // namespace rnnfast
