// The types Stack and Run of rnnfast._native, which run a whole pass of a layer or cell in one call.
#pragma once

#include <pybind11/pybind11.h>

namespace rnnfast {

// Adds both types, and the function `stack`, which makes a Stack.
void add_stack(pybind11::module_& module);

}  // namespace rnnfast
