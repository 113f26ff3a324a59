#include "bindings/fingerprint.h"

#include <algorithm>
#include <climits>
#include <optional>
#include <vector>

#include "bindings/ndarray.h"
#include "dispatch/fingerprint.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

// Reading less keeps the GIL: it takes 5 us.
constexpr ptrdiff_t kReleasingPays = ptrdiff_t(256) << 10;

PyObject* fingerprint_of(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count < 1 || count > 2 || !PyTuple_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError,
                        "arrays: expected a tuple, and perhaps threads, got another object");
        return nullptr;
    }
    PyObject* const arrays = args[0];
    const long threads = count > 1 ? PyLong_AsLong(args[1]) : 0;
    if (threads == -1 && PyErr_Occurred()) return nullptr;
    try {
        using api = py::detail::npy_api;
        std::vector<Bytes> views;
        ptrdiff_t all = 0;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(arrays); ++i) {
            PyObject* const object = PyTuple_GET_ITEM(arrays, i);
            const bool fits =
                Py_TYPE(object) == api::get().PyArray_Type_ &&
                (py::detail::array_proxy(object)->flags & api::NPY_ARRAY_C_CONTIGUOUS_);
            if (!fits)
                throw py::type_error("arrays: expected contiguous arrays, got another object");
            const auto array = py::reinterpret_borrow<py::array>(object);
            views.push_back({static_cast<const unsigned char*>(array.data()), array.nbytes()});
            all += array.nbytes();
        }
        uint64_t result;
        {
            const ThreadLimit limit(int(std::clamp<long>(threads, 0, INT_MAX)));
            std::optional<py::gil_scoped_release> release;
            if (all >= kReleasingPays) release.emplace();
            result = fingerprint(views);
        }
        return PyLong_FromUnsignedLongLong(result);
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

}  // namespace

void add_fingerprint(py::module_& module) {
    // By way of a function without arguments: compilers take other casts for mistakes.
    const auto plain = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&fingerprint_of));
    static PyMethodDef methods[] = {{"fingerprint", plain, METH_FASTCALL, nullptr}, {}};
    if (PyModule_AddFunctions(module.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace rnnfast
