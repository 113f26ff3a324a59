// The kernels that are compiled in.
#pragma once

#include "kernels/kernel_table.h"

namespace rnnfast {

struct CompiledIsa {
    const char* name;
    const KernelTable* kernels;  // null: not compiled in, nor the next two
    const LowPrecisionTable* low_precision;
    const LowPrecisionTable* shared;      // what has the formats that `low_precision` lacks
    const LowPrecisionTable* with_tiles;  // for a CPU with tile registers; null: not compiled in
};

}  // namespace rnnfast

// One line for each of isas.inc, then one without a name. The kernels lie in the shared library, which
// offers them to the Python module of the same build: twice they would be too large for a wheel.
extern "C" const rnnfast::CompiledIsa* librnnfast_kernels();
