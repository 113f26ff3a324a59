// The choice of the ISA whose kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace rnnfast {

// The names of the ISAs compiled in, and of those among them that this CPU supports, best first.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// The ISA in use: the one that the environment variable RNNFAST_ISA names, or else the best one. Throws
// std::runtime_error with an explanation if that ISA cannot be used. The environment is read once.
const std::string& active_isa();
// Whether products in low precision use AMX's tile registers: if the CPU has them, Linux grants them, and
// RNNFAST_AMX is not 0. Throws like `active_isa`, and also if RNNFAST_AMX is neither 0 nor 1.
bool active_amx();
const KernelTable& active_kernels();
const Format& active_format(FormatId format);

template <class T>
const DtypeKernels<T>& active_kernels_for();

}  // namespace rnnfast
