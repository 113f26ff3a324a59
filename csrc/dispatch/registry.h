// Which ISA's kernels run.
#pragma once

#include <string>
#include <vector>

#include "kernels/kernel_table.h"

namespace rnnfast {

// The names of the ISAs compiled in, and of those of them that this CPU has; best first.
std::vector<std::string> compiled_isas();
std::vector<std::string> supported_isas();

// The best one, or the one that the environment variable RNNFAST_ISA names. Throws
// std::runtime_error with a sentence where that cannot be; asks the environment once.
const std::string& active_isa();
// Whether its formats are multiplied in AMX's tile registers: where the CPU has them, Linux gives
// them, and RNNFAST_AMX is not 0. Throws where that is something else.
bool active_amx();
const KernelTable& active_kernels();
const Format& active_format(FormatId format);

template <class T>
const DtypeKernels<T>& active_kernels_for();

}  // namespace rnnfast
