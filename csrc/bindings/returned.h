// What functions that Python calls without pybind11 return.
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

}  // namespace rnnfast
