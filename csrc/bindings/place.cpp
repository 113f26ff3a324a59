#include "bindings/place.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "bindings/ndarray.h"
#include "bindings/returned.h"

namespace rnnfast {
namespace {

// The address, dtype and shape of an array, as numbers.
struct Place {
    static constexpr int kHead = 4;
    intptr_t numbers[kHead + kMostAxes];
    size_t bytes;

    explicit Place(const Array& array)
        : numbers{reinterpret_cast<intptr_t>(array.data), array.kind, array.item, array.axes},
          bytes(size_t(kHead + array.axes) * sizeof(intptr_t)) {
        std::copy_n(array.sizes, array.axes, numbers + kHead);
    }
};

PyObject* place_of(PyObject*, PyObject* tuple) {
    return returned([&]() -> py::object {
        std::vector<Array> arrays;
        if (!read_all(tuple, arrays)) return py::none();
        std::string all;
        for (const Array& array : arrays) {
            const Place place(array);
            all.append(reinterpret_cast<const char*>(place.numbers), place.bytes);
        }
        return py::bytes(all);
    });
}

// Whether the tensors lie at `place`. If `now` is given, only their shapes and dtypes must be those of
// `place`; they must be aligned, and `now` gets their place.
bool lie_at(PyObject* place, PyObject* tensors, std::string* now = nullptr) {
    const char* at = PyBytes_AS_STRING(place);
    const char* const end = at + PyBytes_GET_SIZE(place);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tensors); ++i) {
        Array array;
        PyObject* const tensor = PyTuple_GET_ITEM(tensors, i);
        if (!read_tensor(tensor, array) || !is_contiguous(array) || is_negated(tensor))
            return false;
        const Place own(array);
        const auto* const bytes = reinterpret_cast<const char*>(own.numbers);
        const size_t from = now ? sizeof own.numbers[0] : 0;  // behind the address
        if (end - at < ptrdiff_t(own.bytes) ||
            std::memcmp(at + from, bytes + from, own.bytes - from) != 0 ||
            (now && own.numbers[0] % array.item != 0))
            return false;
        at += own.bytes;
        if (now) now->append(bytes, own.bytes);
    }
    return at == end;
}

PyObject* moved(PyObject*, PyObject* const* args, Py_ssize_t count) {
    return returned([&]() -> py::object {
        if (count != 2 || !PyBytes_CheckExact(args[0]) || !PyTuple_CheckExact(args[1]))
            throw py::type_error("moved: expected (bytes, tuple)");
        std::string now;
        if (!lie_at(args[0], args[1], &now)) return py::none();
        return py::bytes(now);
    });
}

bool has_elements(PyObject* tensor) {
    Array array;
    const auto* const sizes = array.sizes;
    return read_tensor(tensor, array) && std::count(sizes, sizes + array.axes, 0) == 0;
}

bool is_as_it_lies(PyObject* tensor) { return is_tensor(tensor) && !is_negated(tensor); }

PyObject* can_read(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "can_read: expected (bytes, tuple, x, states)");
        return nullptr;
    }
    return returned([&]() -> py::object { return py::bool_(can_read_all(args)); });
}

}  // namespace

bool can_read_all(PyObject* const* args) {
    PyObject *const place = args[0], *const weights = args[1], *const x = args[2];
    PyObject* const states = args[3];
    if (!PyBytes_CheckExact(place) || !PyTuple_CheckExact(weights))
        throw py::type_error("place, weights: expected bytes and a tuple, got others");
    if (!has_elements(x) || is_negated(x) || !lie_at(place, weights)) return false;
    if (states == Py_None) return true;
    if (!PyTuple_CheckExact(states)) return is_as_it_lies(states);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(states); ++i)
        if (!is_as_it_lies(PyTuple_GET_ITEM(states, i))) return false;
    return true;
}

void add_place(py::module_& module) {
    static PyMethodDef methods[] = {{"place", &place_of, METH_O, nullptr},
                                    fast_method("can_read", &can_read),
                                    fast_method("moved", &moved),
                                    {}};
    if (PyModule_AddFunctions(module.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace rnnfast
