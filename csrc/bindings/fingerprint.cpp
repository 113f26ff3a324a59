#include "bindings/fingerprint.h"

#include <algorithm>
#include <climits>
#include <functional>
#include <numeric>
#include <optional>
#include <vector>

#include "bindings/ndarray.h"
#include "bindings/returned.h"
#include "dispatch/fingerprint.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

// Reading less keeps the GIL: it takes 5 us.
constexpr ptrdiff_t kReleasingPays = ptrdiff_t(256) << 10;

// Contiguous arrays or tensors in a tuple; false where something is none.
bool read_all(PyObject* tuple, std::vector<Array>& arrays) {
    if (!PyTuple_CheckExact(tuple)) return false;
    arrays.resize(size_t(PyTuple_GET_SIZE(tuple)));
    for (size_t i = 0; i < arrays.size(); ++i)
        if (!read_any(PyTuple_GET_ITEM(tuple, Py_ssize_t(i)), true, arrays[i]) ||
            !is_contiguous(arrays[i]))
            return false;
    return true;
}

PyObject* fingerprint_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_TypeError, "fingerprint: got %zd arguments", count);
        return nullptr;
    }
    const long threads = count > 1 ? PyLong_AsLong(args[1]) : 0;
    if (threads == -1 && PyErr_Occurred()) return nullptr;
    return returned([&] {
        std::vector<Array> arrays;
        if (!read_all(args[0], arrays))
            throw py::type_error("arrays: expected contiguous ones in a tuple, got another object");
        std::vector<Bytes> views;
        ptrdiff_t all = 0;
        for (const Array& array : arrays) {
            const Bytes view{reinterpret_cast<const unsigned char*>(array.data),
                             std::accumulate(array.sizes, array.sizes + array.axes, array.item,
                                             std::multiplies<>())};
            views.push_back(view);
            all += view.count;
        }
        uint64_t result;
        {
            const ThreadLimit limit(int(std::clamp<long>(threads, 0, INT_MAX)));
            std::optional<py::gil_scoped_release> release;
            if (all >= kReleasingPays) release.emplace();
            result = fingerprint(views);
        }
        return owned_or_throw(PyLong_FromUnsignedLongLong(result));
    });
}

PyObject* place_of(PyObject*, PyObject* tuple) {
    return returned([&]() -> py::object {
        std::vector<Array> arrays;
        if (!read_all(tuple, arrays)) return py::none();
        std::vector<intptr_t> numbers;
        numbers.reserve(arrays.size() * (kMostAxes + 3));
        for (const Array& array : arrays) {
            numbers.insert(numbers.end(), {reinterpret_cast<intptr_t>(array.data), array.kind,
                                           array.item, array.axes});
            numbers.insert(numbers.end(), array.sizes, array.sizes + array.axes);
        }
        return owned_or_throw(
            PyBytes_FromStringAndSize(reinterpret_cast<const char*>(numbers.data()),
                                      Py_ssize_t(numbers.size() * sizeof(intptr_t))));
    });
}

}  // namespace

void add_fingerprint(py::module_& module) {
    // By way of a function without arguments: compilers take other casts for mistakes.
    const auto plain = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fingerprint_of));
    static PyMethodDef methods[] = {
        {"fingerprint", plain, METH_FASTCALL, nullptr}, {"place", &place_of, METH_O, nullptr}, {}};
    if (PyModule_AddFunctions(module.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace rnnfast
