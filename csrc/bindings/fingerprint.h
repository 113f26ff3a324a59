// The function fingerprint of rnnfast._native.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

void add_fingerprint(pybind11::module_& module);

}  // namespace rnnfast
