// Turns NumPy arrays into the pointers of core/args.h. It checks them, and never copies or computes.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <initializer_list>
#include <string>
#include <vector>

namespace rnnfast {

namespace py = pybind11;

inline std::string shape_text(const ptrdiff_t* sizes, size_t count) {
    std::string text = "(";
    for (size_t i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
    return text + (count == 1 ? ",)" : ")");
}

// The properties that an array must have besides its dtype.
struct Wanted {
    const char* name;
    std::initializer_list<ptrdiff_t> shape;
    bool writable = false;
};

// An array's data, and the strides of its leading axes in elements; its last axis has unit stride.
template <class T>
struct View {
    T* data = nullptr;
    ptrdiff_t strides[2] = {0, 0};
};

// Views an array; None gives a null pointer. If `strided`, the first two axes of three may have any strides
// that are multiples of an element. Otherwise the array must be C-contiguous.
template <class T>
View<T> view(const py::object& object, const Wanted& wanted, bool strided = false) {
    View<T> result;
    if (object.is_none()) return result;
    const std::string name = wanted.name;
    if (!py::isinstance<py::array>(object))
        throw py::type_error(name + ": expected an array, got " +
                             std::string(py::str(py::type::of(object))));
    const auto array = py::reinterpret_borrow<py::array>(object);
    const std::vector<ptrdiff_t> shape(wanted.shape);
    if (!py::isinstance<py::array_t<std::remove_const_t<T>>>(object))
        throw py::type_error(name + ": expected " +
                             std::string(py::str(py::dtype::of<std::remove_const_t<T>>())) +
                             ", got " + std::string(py::str(array.dtype())));
    const std::vector<ptrdiff_t> got(array.shape(), array.shape() + array.ndim());
    if (got != shape)
        throw py::value_error(name + ": expected shape " + shape_text(shape.data(), shape.size()) +
                              ", got " + shape_text(got.data(), got.size()));
    if (wanted.writable && !array.writeable())
        throw py::value_error(name + ": expected a writable array, got a read-only one");
    const auto item = ptrdiff_t(sizeof(T));
    bool fits = reinterpret_cast<uintptr_t>(array.data()) % sizeof(T) == 0 || array.size() == 0;
    ptrdiff_t packed = item;
    for (ptrdiff_t axis = array.ndim(); axis-- > 0;) {
        const ptrdiff_t stride = array.strides(axis);
        const bool free = strided && axis < 2 && array.ndim() == 3;
        if (array.size() && got[size_t(axis)] > 1)
            fits = fits && (free ? stride % item == 0 : stride == packed);
        packed *= got[size_t(axis)];
        if (free) result.strides[axis] = stride / item;
    }
    if (!fits)
        throw py::value_error(name + ": expected aligned rows of unit stride, got another layout");
    result.data = static_cast<T*>(const_cast<void*>(array.data()));
    return result;
}

inline void not_none(const py::object& object, const char* name) {
    if (object.is_none()) throw py::type_error(std::string(name) + ": expected an array, got None");
}

// The same, but None is an error.
template <class T>
View<T> required(const py::object& object, const Wanted& wanted, bool strided = false) {
    not_none(object, wanted.name);
    return view<T>(object, wanted, strided);
}

}  // namespace rnnfast
