// The memory that a backward pass works in, and where each array lies in it.
#pragma once

#include "kernels/columns.h"
#include "kernels/low_precision.h"
#include "kernels/pack.h"
#include "kernels/rows.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
struct BackwardMemory {
    static constexpr ptrdiff_t L = kLanes<T>;

    const ForwardArgs<T>& args;
    const BackwardArgs<T>& grads;
    const Plan& plan;
    const Shape<Cell, T> shape;
    const ptrdiff_t h_ld, unit_ld, x_ld;
    const bool dx_regular;
    // Arrays with a row for each row of the chunk, kept by columns:
    Columns<T> da;       // gate gradients, vectors [slot][block]
    Columns<T> h_prev;   // h before the step
    Columns<T> x;        // a copy of x, so that its columns, too, are read in order
    Columns<T> reset_h;  // r h, for the cell with two products
    Columns<T> dp;       // with a projection: the gradient at the projected h,
    Columns<T> hidden;   //                    and h before the projection
    T* dx;               // [row of the chunk][x_ld]  dx, if the caller's rows are not regular
    // Arrays with a row for each row of the batch, by place:
    T* dh;       // [place][h_ld]     the gradient at h that the next step to run reads
    T* dc;       // [place][unit_ld]  the same for c
    T* c0;       // [place][unit_ld]  the initial c, padded
    T* through;  // [place][unit_ld]  the gradient at r h, or at h before the projection
    T* zeros;    // [unit_ld]
    Prepared prepared{};

    BackwardMemory(const ForwardArgs<T>& a, const BackwardArgs<T>& g, const Plan& p, ptrdiff_t rows,
                   T* scratch)
        : args(a),
          grads(g),
          plan(p),
          shape(a.sizes),
          h_ld(spread<T>(shape.h_row())),
          unit_ld(spread<T>(shape.padded)),
          x_ld(spread<T>(vectors<T>(shape.input) * L)),
          dx_regular(regular(p, {0, p.batch}, g.dx_step, g.dx_row)) {
        place(rows, scratch);
    }

    // Gives every array its place in the scratch and returns how many elements they take. `rows`:
    // the most rows that a chunk has.
    ptrdiff_t place(ptrdiff_t rows, T* memory) {
        Scratch<T> scratch{memory};
        const bool projects = Cell::kProjects && shape.projection;
        const ptrdiff_t stride = Columns<T>::stride_for(rows);
        const auto columns = [&](ptrdiff_t n) {
            return Columns<T>{scratch.take(n * stride), stride};
        };
        // Columns that are also left operands of products.
        const auto operands = [&](ptrdiff_t n) {
            Columns<T> made = columns(n);
            if constexpr (kHasFormats<T>)
                if (args.format) {
                    const ptrdiff_t ld = LowRoom::ld(*args.format, n * L);
                    T* const low = scratch.take(rows * ld);
                    made.low = {reinterpret_cast<unsigned char*>(low), ld * ptrdiff_t(sizeof(T)),
                                nullptr, nullptr};
                }
            return made;
        };
        da = operands(Cell::kSlots * shape.blocks);
        h_prev = columns(vectors<T>(shape.width));
        x = columns(vectors<T>(shape.input));
        reset_h = columns(Cell::kTwoProducts ? shape.blocks : 0);
        dp = operands(projects ? vectors<T>(shape.width) : 0);
        hidden = columns(projects ? shape.blocks : 0);
        dx = scratch.take(grads.dx && !dx_regular ? rows * x_ld : 0);
        dh = scratch.take(plan.batch * h_ld);
        dc = scratch.take(Cell::kHasC ? plan.batch * unit_ld : 0);
        c0 = scratch.take(Cell::kHasC ? plan.batch * unit_ld : 0);
        through = scratch.take(Cell::kTwoProducts || projects ? plan.batch * unit_ld : 0);
        zeros = scratch.take(unit_ld);
        return scratch.end;
    }
};

}  // namespace
}  // namespace rnnfast
