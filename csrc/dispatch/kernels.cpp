#include "dispatch/kernels.h"

namespace rnnfast {

#define ISA(name, floats, tiles)                                 \
    extern const KernelTable kernel_table_##floats;              \
    extern const LowPrecisionTable low_precision_table_##name;   \
    extern const LowPrecisionTable low_precision_table_##floats; \
    extern const LowPrecisionTable low_precision_table_##tiles;
#include "core/isas.inc"
#undef ISA

}  // namespace rnnfast

using namespace rnnfast;

#if !defined(_WIN32)  // on Windows, CMakeLists.txt exports the function
__attribute__((visibility("default")))
#endif
const CompiledIsa* librnnfast_kernels() {
    static const CompiledIsa isas[] = {
#define ISA(name, floats, tiles)                                    \
    {#name, RNNFAST_HAVE_##name ? &kernel_table_##floats : nullptr, \
     RNNFAST_HAVE_##name ? &low_precision_table_##name : nullptr,   \
     RNNFAST_HAVE_##name ? &low_precision_table_##floats : nullptr, \
     RNNFAST_HAVE_##tiles ? &low_precision_table_##tiles : nullptr},
#include "core/isas.inc"
#undef ISA
        {nullptr, nullptr, nullptr, nullptr, nullptr},
    };
    return isas;
}
