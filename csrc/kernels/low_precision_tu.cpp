// This file is compiled once for each ISA, like kernel_tu.cpp. That includes ISAs which use another
// ISA's float32 kernels, and the set for CPUs with AMX.
#include "kernels/bfloat16.h"
#include "kernels/int8.h"
#include "kernels/kernel_table.h"
#if defined(__AMX_TILE__)
#include "kernels/tiles_outer.h"
#endif

#define RNNFAST_JOIN2(a, b) a##b
#define RNNFAST_JOIN(a, b) RNNFAST_JOIN2(a, b)
#define RNNFAST_TABLE RNNFAST_JOIN(low_precision_table_, RNNFAST_ISA)

namespace rnnfast {

namespace {

template <class F>
constexpr Format best_format_of() {
    if constexpr (F::kOwn) {
        Format format = format_of<F>();
#if defined(__AMX_TILE__)
        use_tiles<F>(format);
#endif
        return format;
    } else {
        return {};
    }
}

}  // namespace

extern const LowPrecisionTable RNNFAST_TABLE;
constexpr LowPrecisionTable RNNFAST_TABLE = {
    {
#define FORMAT(name, type) best_format_of<type>(),
#include "core/formats.inc"
#undef FORMAT
    },
    {
#define FORMAT(name, type) type::kOwn,
#include "core/formats.inc"
#undef FORMAT
    },
};

}  // namespace rnnfast
