// This file is compiled once for each ISA, with RNNFAST_ISA as its name. Everything but the table
// has internal linkage.
#include "kernels/kernel_table.h"

#include "cells/gru.h"
#include "cells/lstm.h"
#include "cells/rnn.h"
#include "kernels/fingerprint.h"
#include "kernels/probe.h"
#include "kernels/sequence_backward.h"
#include "kernels/sequence_forward.h"
#include "kernels/step.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
ptrdiff_t packed_size(const Sizes& sizes, const Format* format) {
    return PackedLayout<Cell, T>(Shape<Cell, T>(sizes), format).size;
}

template <class Cell, class T>
constexpr StreamKernels<T> stream_kernels() {
    using Pass = StepPass<Cell, T>;
    return {
        [](const ForwardArgs<T>& args, const Plan& plan) {
            return ForwardPass<Cell, T>(args, plan, {{0, plan.batch}}, nullptr).place(nullptr);
        },
        sizeof(Pass),
        [](void* pass, const ForwardArgs<T>& args, const Plan& plan, T* scratch) {
            new (pass) Pass(args, plan, scratch);
        },
        [](void* pass) { static_cast<Pass*>(pass)->step(); },
        [](void* pass) { static_cast<Pass*>(pass)->set_state(); },
        [](void* pass) { static_cast<Pass*>(pass)->get_state(); },
        [](void* pass) { static_cast<Pass*>(pass)->reset(); },
    };
}

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
    return {
        Cell::kGates,
        tile_rows(panel_width(1)),  // the rows of a tile of the widest panels, and of product_rows
        Cell::kHasC,
        Cell::kProjects,
        Cell::kSavesY,
        packed_size<Cell, T>,
        transposed_size<Cell, T>,
        [](const Sizes& s) { return Shape<Cell, T>(s).saved_row(); },
        [](const Sizes& s) { return Shape<Cell, T>(s).gradient_row(); },
        // These are backward's panels: those of h, which are at least as wide as forward's.
        [](const Sizes& s) {
            return (vectors<T>(s.width()) + panel_width(1) - 1) / panel_width(1);
        },
        [](const Sizes& s) { return 1 + (Cell::kTwoProducts || s.projection ? 1 : 0); },
        pack<Cell, T>,
        pack_transposed<Cell, T>,
        [](const ForwardArgs<T>& args, const Plan& plan, const Slice& slice) {
            return ForwardPass<Cell, T>(args, plan, slice, nullptr).place(nullptr);
        },
        [](const ForwardArgs<T>& args, const Plan& plan, const Slice& slice, T* scratch) {
            ForwardPass<Cell, T>(args, plan, slice, scratch).run();
        },
        [](const ForwardArgs<T>& args, const BackwardArgs<T>& grads, const Plan& plan,
           ptrdiff_t rows) {
            return BackwardPass<Cell, T>(args, grads, plan, rows, nullptr).place(rows, nullptr);
        },
        [](const ForwardArgs<T>& args, const BackwardArgs<T>& grads, ptrdiff_t rows) {
            return join_room(args, grads, rows) + BackwardPass<Cell, T>::panel_room(args, grads);
        },
        [](const ForwardArgs<T>& args, const BackwardArgs<T>& grads, const Plan& plan,
           ptrdiff_t rows, T* scratch, T* own_scratch, const BackwardWork& work) {
            BackwardPass<Cell, T> pass(args, grads, plan, rows, scratch);
            switch (work.phase) {
                case BackwardPhase::begin:
                    return pass.begin(work.slice.rows);
                case BackwardPhase::steps:
                    return pass.steps(work.chunk, work.slice);
                case BackwardPhase::products:
                    return pass.products(work.chunk, work.part, work.parts,
                                         grads.assign && work.first, own_scratch);
                case BackwardPhase::end:
                    return pass.end(work.slice.rows);
            }
        },
        stream_kernels<Cell, T>(),
    };
}

template <class T, Vec<T> (*function)(Vec<T>)>
void map(const T* x, T* y, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>)
        store_edge(y + i, function(load_edge(x + i, n - i)), n - i);
}

template <class T>
constexpr DtypeKernels<T> dtype_kernels() {
    return {
        {
#define CELL(name, type) cell_kernels<type, T>(),
#include "core/cells.inc"
#undef CELL
        },
        map<T, sigmoid_of<Vec<T>>>,
        map<T, tanh_of<Vec<T>>>,
        probe_fma<T>,
        probe_read<T>,
    };
}

}  // namespace

#define RNNFAST_JOIN2(a, b) a##b
#define RNNFAST_JOIN(a, b) RNNFAST_JOIN2(a, b)
#define RNNFAST_TABLE RNNFAST_JOIN(kernel_table_, RNNFAST_ISA)

extern const KernelTable RNNFAST_TABLE;
constexpr KernelTable RNNFAST_TABLE = {
    kVectorBytes,
    fingerprint,
#define DTYPE(name, type) dtype_kernels<type>(),
#include "core/dtypes.inc"
#undef DTYPE
};

}  // namespace rnnfast
