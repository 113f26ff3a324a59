// The backward pass of every cell over time. See csrc/README.md for the shape of the loops.
//
// A chunk of steps has two phases with a barrier after each: `steps`, sharded by rows, leaves the
// chunk's gate gradients in one buffer; `products`, sharded by rows of the parameters, adds them to
// the parameters' gradients. No sum is split, so that the bits don't depend on the shards.
#pragma once

#include "kernels/parameter_gradients.h"
#include "kernels/rows.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class BackwardPass {
    using V = Vec<T>;
    static constexpr ptrdiff_t L = kLanes<T>;

    const ForwardArgs<T>& args;
    const BackwardArgs<T>& grads;
    const Plan& plan;
    const Shape<Cell, T> shape;
    const TransposedLayout<Cell, T> at;
    const ptrdiff_t da_ld, h_ld, unit_ld, x_ld;
    const bool x_regular, dx_regular;
    // Rows of the chunk:
    T* da;       // [row][block][slot][lane]  gate gradients
    T* h_prev;   // [row][h_ld]   h before the step
    T* x;        // [row][x_ld]   copies, where the caller's rows are not regular
    T* dx;       // [row][x_ld]   likewise
    T* reset_h;  // [row][unit_ld]  r h, for the cell with two products
    T* dp;       // [row][h_ld]   with a projection: gradient at the projected h,
    T* hidden;   // [row][unit_ld]                   and h before it
    // Rows of the batch, by place:
    T* dh;       // [place][h_ld]     gradient at h, of the step to come
    T* dc;       // [place][unit_ld]  the same for c
    T* c0;       // [place][unit_ld]  the initial c, padded
    T* through;  // [place][unit_ld]  gradient at r h, or at h before the projection
    T* zeros;    // [unit_ld]

public:
    BackwardPass(const ForwardArgs<T>& a, const BackwardArgs<T>& g, const Plan& p, ptrdiff_t rows,
                 T* scratch)
        : args(a),
          grads(g),
          plan(p),
          shape(a.sizes),
          at(shape),
          da_ld(spread<T>(shape.gradient_row())),
          h_ld(spread<T>(shape.h_row())),
          unit_ld(spread<T>(shape.padded)),
          x_ld(spread<T>(vectors<T>(shape.input) * L)),
          x_regular(regular(p, {0, p.batch}, a.x_step, a.x_row)),
          dx_regular(regular(p, {0, p.batch}, g.dx_step, g.dx_row)) {
        place(rows, scratch);
    }

    // Gives every array its place in the scratch; returns the elements that it takes.
    // `rows`: the most rows that a chunk has.
    ptrdiff_t place(ptrdiff_t rows, T* memory) {
        Scratch<T> scratch{memory};
        const bool projects = Cell::kProjects && shape.projection;
        da = scratch.take(rows * da_ld);
        h_prev = scratch.take(rows * h_ld);
        x = scratch.take(x_regular ? 0 : rows * x_ld);
        dx = scratch.take(grads.dx && !dx_regular ? rows * x_ld : 0);
        reset_h = scratch.take(Cell::kTwoProducts ? rows * unit_ld : 0);
        dp = scratch.take(projects ? rows * h_ld : 0);
        hidden = scratch.take(projects ? rows * unit_ld : 0);
        dh = scratch.take(plan.batch * h_ld);
        dc = scratch.take(Cell::kHasC ? plan.batch * unit_ld : 0);
        c0 = scratch.take(Cell::kHasC ? plan.batch * unit_ld : 0);
        through = scratch.take(Cell::kTwoProducts || projects ? plan.batch * unit_ld : 0);
        zeros = scratch.take(unit_ld);
        return scratch.end;
    }

    // Before the first chunk.
    void begin(const Shard& shard) {
        for (ptrdiff_t p = shard.begin; p < shard.end; ++p) {
            const ptrdiff_t row = plan.row(p);
            copy_padded(dh + p * h_ld, row_of(grads.dhn, row, shape.width), shape.width, h_ld);
            if (!Cell::kHasC) continue;
            copy_padded(dc + p * unit_ld, row_of(grads.dcn, row, shape.hidden), shape.hidden,
                        unit_ld);
            copy_padded(c0 + p * unit_ld, row_of(args.c0, row, shape.hidden), shape.hidden,
                        unit_ld);
        }
        if (shard.begin == 0) copy_or_zero<T>(zeros, nullptr, unit_ld);
        for (ptrdiff_t t = 0; grads.dx && plan.active && t < plan.steps; ++t)  // past the lengths
            for (ptrdiff_t p = plan.rows(t) > shard.begin ? plan.rows(t) : shard.begin;
                 p < shard.end; ++p)
                copy_or_zero<T>(dx_of(t, p), nullptr, shape.input);
    }

    // After the last chunk.
    void end(const Shard& shard) {
        for (ptrdiff_t p = shard.begin; p < shard.end; ++p) {
            const ptrdiff_t row = plan.row(p);
            copy_or_zero(grads.dh0 + row * shape.width, dh + p * h_ld, shape.width);
            if (Cell::kHasC)
                copy_or_zero(grads.dc0 + row * shape.hidden, dc + p * unit_ld, shape.hidden);
        }
    }

    void steps(const Chunk& chunk, const Shard& shard) {
        for (ptrdiff_t i = 0; i < chunk.end - chunk.begin; ++i) {
            const ptrdiff_t t = plan.reverse ? chunk.begin + i : chunk.end - 1 - i;
            const ptrdiff_t n = shard.clip(plan.rows(t));
            const ptrdiff_t first = chunk_row(t, chunk) + shard.begin;
            gather(t, first, shard, n);
            if constexpr (Cell::kTwoProducts)
                step_two_products(t, first, shard, n);
            else
                step_one_product(t, first, shard, n);
            cut(t, shard, n);
        }
    }

    // Part `part` of `parts` of the parameters' gradients, and of the chunk's dx.
    void products(const Chunk& chunk, ptrdiff_t part, ptrdiff_t parts) {
        const ptrdiff_t rows = chunk_row(chunk.end, chunk);
        const ParameterGradients<Cell, T> sums{shape, da, da_ld, rows,
                                               share(shape.blocks * Cell::kGates, part, parts)};
        const T* x_rows = x_regular ? args.x + chunk.begin * args.x_step : x;
        const ptrdiff_t ldx = x_regular ? regular_stride(plan, args.x_step, args.x_row) : x_ld;
        const Weights<T>& w = grads.weights;
        sums.input(x_rows, ldx, w.weight_ih, w.bias_ih);
        sums.recurrent(h_prev, h_ld, reset_h, unit_ld, w.weight_hh, w.bias_hh);
        if (Cell::kProjects && shape.projection) {
            const Shard mine = share(shape.projection, part, parts);
            sums.outer(mine.end - mine.begin, dp + mine.begin, h_ld, hidden, unit_ld, shape.hidden,
                       w.weight_hr + mine.begin * shape.hidden);
        }
        if (grads.dx) input_gradient(chunk, share(rows, part, parts));
    }

private:
    ptrdiff_t chunk_row(ptrdiff_t t, const Chunk& chunk) const {
        return plan.start(t) - plan.start(chunk.begin);
    }

    bool is_reset(ptrdiff_t t, ptrdiff_t p) const {
        return args.reset && args.reset[t * plan.batch + plan.row(p)];
    }

    // Copies what step t's rows of the chunk need from the caller: h before the step, and x where
    // its rows are not regular.
    void gather(ptrdiff_t t, ptrdiff_t first, const Shard& shard, ptrdiff_t n) {
        const ptrdiff_t before = plan.rows_before(t);
        for (ptrdiff_t i = 0; i < n; ++i) {
            const ptrdiff_t p = shard.begin + i, row = plan.row(p);
            const T* from = row_of(args.h0, row, shape.width);
            if (p < before) from = args.y + plan.previous(t) * args.y_step + row * args.y_row;
            if (is_reset(t, p)) from = nullptr;
            copy_padded(h_prev + (first + i) * h_ld, from, shape.width, shape.h_row());
            if (!x_regular)
                copy_or_zero(x + (first + i) * x_ld, args.x + t * args.x_step + row * args.x_row,
                             shape.input);
        }
    }

    // The gradient at h_t, block b: from the steps after it, and from the caller.
    RNNFAST_INLINE V dh_at(ptrdiff_t t, ptrdiff_t p, ptrdiff_t b) const {
        const V later = load(dh + p * h_ld + b * L);
        if (!grads.dy) return later;
        const T* dy = grads.dy + t * grads.dy_step + plan.row(p) * grads.dy_row;
        return later + load_edge(dy + b * L, shape.width - b * L);
    }

    const T* saved_at(ptrdiff_t t, ptrdiff_t p) const {
        return args.saved + (plan.start(t) + p) * shape.saved_row();
    }

    // Zeros in the lanes that are no units: there they could be NaN, and weights of zero keep NaN.
    RNNFAST_INLINE void store_gradients(T* to, ptrdiff_t b, const V* gradient, int first,
                                        int last) const {
        const bool whole = shape.lanes(b) == L;
        for (int s = first; s < last; ++s)
            store(to + (b * Cell::kSlots + s) * L,
                  whole ? gradient[s] : keep_first<T>(gradient[s], shape.lanes(b)));
    }

    void step_one_product(ptrdiff_t t, ptrdiff_t first, const Shard& shard, ptrdiff_t n) {
        const bool projects = Cell::kProjects && shape.projection;
        if (projects) {
            for (ptrdiff_t i = 0; i < n; ++i)
                for (ptrdiff_t b = 0; b < vectors<T>(shape.width); ++b)
                    store(dp + (first + i) * h_ld + b * L, dh_at(t, shard.begin + i, b));
            product<panel_width(1), 1>(
                n, Operand<T>{dp + first * h_ld, h_ld, shape.projection},
                grads.transposed + at.projection, shape.blocks,
                StoreRows<T, false>{through + shard.begin * unit_ld, unit_ld});
        }
        for (ptrdiff_t i = 0; i < n; ++i) {
            const ptrdiff_t p = shard.begin + i, row = first + i;
            const T* saved = saved_at(t, p);
            const T* before = nullptr;  // c before the step: [block], c_stride apart
            ptrdiff_t c_stride = L;
            if constexpr (Cell::kHasC) {
                before = c0 + p * unit_ld;
                if (p < plan.rows_before(t)) {
                    before = saved_at(plan.previous(t), p) + Cell::kC * L;
                    c_stride = Cell::kSaved * L;
                }
                if (is_reset(t, p)) before = zeros, c_stride = L;
            }
            for (ptrdiff_t b = 0; b < shape.blocks; ++b) {
                V kept[Cell::kSaved], gradient[Cell::kSlots], direct{}, dc_b{}, c_b{};
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved + (b * Cell::kSaved + s) * L);
                if constexpr (Cell::kHasC) {
                    dc_b = load(dc + p * unit_ld + b * L);
                    c_b = load(before + b * c_stride);
                }
                const V dh_b = projects ? load(through + p * unit_ld + b * L) : dh_at(t, p, b);
                const V h_b = Cell::kDirect ? load(h_prev + row * h_ld + b * L) : V{};
                Cell::backward(kept, h_b, c_b, dh_b, dc_b, gradient, direct);
                if constexpr (Cell::kHasC) store(dc + p * unit_ld + b * L, dc_b);
                if constexpr (Cell::kDirect) store(dh + p * h_ld + b * L, direct);
                if constexpr (Cell::kProjects)
                    if (projects) store(hidden + row * unit_ld + b * L, Cell::hidden(kept));
                store_gradients(da + row * da_ld, b, gradient, 0, Cell::kSlots);
            }
        }
        recurrent_gradient(first, shard, n, at.r, kApart<Cell>, Cell::kGates);
    }

    void step_two_products(ptrdiff_t t, ptrdiff_t first, const Shard& shard, ptrdiff_t n) {
        V kept[Cell::kSaved], gradient[Cell::kSlots];
        for (ptrdiff_t i = 0; i < n; ++i) {
            const ptrdiff_t p = shard.begin + i, row = first + i;
            for (ptrdiff_t b = 0; b < shape.blocks; ++b) {
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved_at(t, p) + (b * Cell::kSaved + s) * L);
                const V dh_b = dh_at(t, p, b);
                Cell::backward_candidate(kept, load(h_prev + row * h_ld + b * L), dh_b, gradient);
                store(dh + p * h_ld + b * L, dh_b);
                store_gradients(da + row * da_ld, b, gradient, Cell::Z, Cell::kSlots);
            }
        }
        const Operand<T> candidate{da + first * da_ld + Cell::N * L, da_ld, L, shape.blocks,
                                   Cell::kSlots * L};
        product<panel_width(1), 1>(n, candidate, grads.transposed + at.r_second, shape.blocks,
                                   StoreRows<T, false>{through + shard.begin * unit_ld, unit_ld});
        for (ptrdiff_t i = 0; i < n; ++i) {
            const ptrdiff_t p = shard.begin + i, row = first + i;
            for (ptrdiff_t b = 0; b < shape.blocks; ++b) {
                V rh, direct;
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved_at(t, p) + (b * Cell::kSaved + s) * L);
                Cell::backward_reset(kept, load(h_prev + row * h_ld + b * L),
                                     load(dh + p * h_ld + b * L),
                                     load(through + p * unit_ld + b * L), gradient, rh, direct);
                store(reset_h + row * unit_ld + b * L, rh);
                store(dh + p * h_ld + b * L, direct);
                store_gradients(da + row * da_ld, b, gradient, Cell::R, Cell::R + 1);
            }
        }
        recurrent_gradient(first, shard, n, at.r, 0, kFirstGates<Cell>);
    }

    // dh = R^T da, added to the direct part where the cell has one. `gates` slots from `slot` on.
    void recurrent_gradient(ptrdiff_t first, const Shard& shard, ptrdiff_t n, ptrdiff_t packed,
                            int slot, int gates) {
        const Operand<T> a{da + first * da_ld + slot * L, da_ld, gates * L, shape.blocks,
                           Cell::kSlots * L};
        product<panel_width(1), 1>(n, a, grads.transposed + packed, vectors<T>(shape.width),
                                   StoreRows<T, Cell::kDirect>{dh + shard.begin * h_ld, h_ld});
    }

    // No gradient crosses a reset.
    void cut(ptrdiff_t t, const Shard& shard, ptrdiff_t n) {
        for (ptrdiff_t p = shard.begin; args.reset && p < shard.begin + n; ++p) {
            if (!is_reset(t, p)) continue;
            copy_or_zero<T>(dh + p * h_ld, nullptr, h_ld);
            if (Cell::kHasC) copy_or_zero<T>(dc + p * unit_ld, nullptr, unit_ld);
        }
    }

    // dx = W^T da for some of the chunk's rows.
    void input_gradient(const Chunk& chunk, const Shard& rows) {
        const Operand<T> a{da + rows.begin * da_ld, da_ld, Cell::kGates * L, shape.blocks,
                           Cell::kSlots * L};
        const ptrdiff_t ld = dx_regular ? regular_stride(plan, grads.dx_step, grads.dx_row) : x_ld;
        T* base = dx_regular ? grads.dx + chunk.begin * grads.dx_step : dx;
        product<panel_width(1), 1>(rows.end - rows.begin, a, grads.transposed + at.w,
                                   vectors<T>(shape.input),
                                   StoreEdges<T>{base + rows.begin * ld, ld, shape.input});
        if (dx_regular) return;
        for (ptrdiff_t t = chunk.begin; t < chunk.end; ++t)
            for (ptrdiff_t p = 0; p < plan.rows(t); ++p) {
                const ptrdiff_t row = chunk_row(t, chunk) + p;
                if (row >= rows.begin && row < rows.end)
                    copy_or_zero(dx_of(t, p), dx + row * x_ld, shape.input);
            }
    }

    T* dx_of(ptrdiff_t t, ptrdiff_t p) const {
        return grads.dx + t * grads.dx_step + plan.row(p) * grads.dx_row;
    }
};

}  // namespace
}  // namespace rnnfast
