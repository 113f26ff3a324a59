#include "bindings/fingerprint.h"

#include <algorithm>
#include <climits>
#include <functional>
#include <numeric>
#include <vector>

#include "bindings/gil.h"
#include "bindings/ndarray.h"
#include "bindings/returned.h"
#include "dispatch/fingerprint.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

// A fingerprint of fewer bytes keeps the GIL, since it takes at most about 5 us.
constexpr ptrdiff_t kReleasingPays = ptrdiff_t(256) << 10;

PyObject* python_fingerprint(PyObject*, PyObject* const* args, Py_ssize_t count) {
    if (count < 1 || count > 2) {
        PyErr_Format(PyExc_TypeError, "fingerprint: got %zd arguments", count);
        return nullptr;
    }
    const long threads = count > 1 ? PyLong_AsLong(args[1]) : 0;
    if (threads == -1 && PyErr_Occurred()) return nullptr;
    return returned([&] {
        return owned_or_throw(PyLong_FromUnsignedLongLong(fingerprint_of(args[0], threads)));
    });
}

}  // namespace

uint64_t fingerprint_of(PyObject* tuple, long threads) {
    std::vector<Array> arrays;
    if (!read_all(tuple, arrays))
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
    const ThreadLimit limit(int(std::clamp<long>(threads, 0, INT_MAX)));
    const GilRelease release(all >= kReleasingPays);
    return fingerprint(views);
}

void add_fingerprint(py::module_& module) {
    static PyMethodDef methods[] = {fast_method("fingerprint", &python_fingerprint), {}};
    if (PyModule_AddFunctions(module.ptr(), methods) < 0) throw py::error_already_set();
}

}  // namespace rnnfast
