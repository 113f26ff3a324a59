// Functions that Python calls without pybind11: what they return, and how they are added.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>
#include <new>

namespace rnnfast {

namespace py = pybind11;

// The object that `function` returns; C++'s exceptions become Python's.
template <class Function>
PyObject* returned(const Function& function) {
    try {
        return function().release().ptr();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

using FastMethod = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

// Of a function or method that takes its arguments as they lie: called in 0.05 us, where pybind11's
// dispatch takes 0.5 and more.
inline PyMethodDef fast_method(const char* name, FastMethod function) {
    // By way of a function without arguments: compilers take other casts between kinds for mistakes.
    const auto plain = reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
    return {name, plain, METH_FASTCALL, nullptr};
}

}  // namespace rnnfast
