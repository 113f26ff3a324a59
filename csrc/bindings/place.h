// The functions place and can_read of rnnfast._native.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

void add_place(pybind11::module_& module);

}  // namespace rnnfast
