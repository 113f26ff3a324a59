// Compiled once per ISA, as kernel_tu.cpp, also for those that have another's kernels of float32.
#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "kernels/bfloat16.h"
#include "kernels/int8.h"
#include "kernels/low_precision_step.h"
#include "kernels/step_table.h"

namespace rnnfast {
namespace {

template <class Cell, class Format>
struct FormatPass : LowStepPass<Cell> {
    FormatPass(const ForwardArgs<float>& args, const Plan& plan, float* scratch)
        : LowStepPass<Cell>(args, plan, scratch, kFormat<Format>) {}
};

template <class Cell, class Format>
constexpr StreamKernels<float> low_stream_kernels() {
    using Pass = FormatPass<Cell, Format>;
    return kernels_of_pass<Pass, float>(
        [](const Sizes& sizes) { return LowPack<Cell>(sizes, {}, kFormat<Format>).size; },
        [](const Sizes& sizes, const Weights<const float>& weights, float* packed) {
            pack_low_precision<Cell>(sizes, weights, kFormat<Format>, packed);
        },
        [](const ForwardArgs<float>& args, const Plan& plan) {
            return Pass(args, plan, nullptr).place(nullptr);
        });
}

template <class Format>
constexpr FormatKernels format_kernels() {
    return {{
#define CELL(name, type) low_stream_kernels<type, Format>(),
#include "core/cells.inc"
#undef CELL
    }};
}

}  // namespace

#define RNNFAST_JOIN2(a, b) a##b
#define RNNFAST_JOIN(a, b) RNNFAST_JOIN2(a, b)
#define RNNFAST_TABLE RNNFAST_JOIN(low_precision_table_, RNNFAST_ISA)

extern const LowPrecisionTable RNNFAST_TABLE;
constexpr LowPrecisionTable RNNFAST_TABLE = {{
#define FORMAT(name, type) format_kernels<type>(),
#include "core/formats.inc"
#undef FORMAT
}};

}  // namespace rnnfast
