// The kernels that are compiled in.
#pragma once

#include "kernels/kernel_table.h"

namespace rnnfast {

struct CompiledIsa {
    const char* name;
    const KernelTable* kernels;  // null: not compiled in; then the next two are null, too
    const LowPrecisionTable* low_precision;
    const LowPrecisionTable* shared;      // has the formats that `low_precision` lacks
    const LowPrecisionTable* with_tiles;  // for a CPU with tile registers; null: not compiled in
};

}  // namespace rnnfast

// Returns one entry for each line of isas.inc, and then one without a name. The kernels are in the shared
// library, which exports this function for the Python module of the same build. A second copy of the
// kernels would make the wheel too large.
extern "C" const rnnfast::CompiledIsa* librnnfast_kernels();
