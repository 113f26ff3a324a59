// The products of a backward pass: those of some rows with transposed weights, and the phase
// `products`, which takes all rows of a chunk.
#pragma once

#include "kernels/backward_memory.h"
#include "kernels/backward_step.h"
#include "kernels/parameter_gradients.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class BackwardProducts : protected BackwardMemory<Cell, T> {
protected:
    using Memory = BackwardMemory<Cell, T>;
    using Memory::args, Memory::grads, Memory::plan, Memory::shape;
    using Memory::da, Memory::h_prev, Memory::x, Memory::reset_h, Memory::dp, Memory::hidden;
    using Memory::dx, Memory::x_ld, Memory::dx_regular, Memory::prepared;
    using Step = BackwardStep<T>;
    static constexpr ptrdiff_t L = kLanes<T>;

    const TransposedLayout<Cell, T> at;
    const Matrices<Cell, T> weights;

    BackwardProducts(const ForwardArgs<T>& a, const BackwardArgs<T>& g, const Plan& p,
                     ptrdiff_t rows, T* scratch)
        : Memory(a, g, p, rows, scratch), at(shape, a.format), weights(shape, a.weights) {}

public:
    // The elements that a thread needs for a panel of W's transpose, if the transpose is not kept.
    static ptrdiff_t panel_room(const ForwardArgs<T>& args, const BackwardArgs<T>& grads) {
        if (!grads.dx || !args.packed || grads.transposed_w) return 0;
        return smaller(Shape<Cell, T>(args.sizes).pre_row(), 2 * kPieceOfK) * panel_width(1) * L;
    }

    // Computes part `part` of `parts` of the parameters' gradients and of the chunk's dx.
    void products(const Chunk& chunk, ptrdiff_t part, ptrdiff_t parts, bool assign, T* room) {
        const ptrdiff_t rows = chunk_row(chunk.end, chunk);
        const ParameterGradients<Cell, T> sums{
            shape,  da,          rows, share(shape.blocks * Cell::kGates, part, parts),
            assign, args.format, room, &prepared};
        const Weights<T>& w = grads.weights;
        sums.input(x, w.weight_ih, w.bias_ih);
        sums.recurrent(h_prev, reset_h, w.weight_hh, w.bias_hh);
        if (Cell::kProjects && w.weight_hr)
            sums.outer(share(vectors<T>(shape.projection), part, parts), shape.projection, dp,
                       hidden, shape.hidden, w.weight_hr);
        if (!grads.dx) return;
        if (panel_room(args, grads) > 0)
            input_gradient_by_panels(chunk, rows, part, parts, room);
        else
            input_gradient(chunk, share(rows, part, parts));
    }

protected:
    ptrdiff_t chunk_row(ptrdiff_t t, const Chunk& chunk) const {
        return plan.start(t) - plan.start(chunk.begin);
    }

    T* dx_of(ptrdiff_t t, ptrdiff_t p) const {
        return grads.dx + plan.offset(t, grads.dx_step, grads.dx_row) + plan.row(p) * grads.dx_row;
    }

    const T* transposed_at(ptrdiff_t offset) const {
        return grads.transposed ? grads.transposed + offset : nullptr;
    }

    // Multiplies `count` vectors of a step's rows, from v on, by the transpose of `matrix`. The
    // transpose's panels lie at `transposed`; if the weights are borrowed, the product reads
    // `matrix` itself.
    template <class Epilogue>
    void times(const Columns<T>& of, const Step& step, ptrdiff_t v, ptrdiff_t count,
               const Matrix<T>& matrix, const T* transposed, const Shard& columns,
               const Epilogue& epilogue) {
        if constexpr (kHasFormats<T>)
            if (const Format* const format = args.format) {
                LowRows a = of.low_operand(*format, step.row, v, &prepared);
                a.ld *= step.stride;
                const LowLayout layout(*format, count * L, vectors<T>(matrix.ks) * L);
                return low_product<panel_width(1), 1>(
                    *format, step.rows, a,
                    {transposed, layout, columns.begin, columns.end, step.is_other()}, epilogue);
            }
        Operand<T> a = of.operand(step.row, v, count);
        a.ld *= step.stride;
        if (!args.packed) return product_rows(step.rows, a, matrix, columns, epilogue);
        Right<T> panels{transposed, a.k(), columns.begin, columns.end, matrix};
        panels.downwards = step.is_other();
        deep_product<panel_width(1), 1>(step.rows, a, panels, epilogue);
    }

private:
    // Computes dx = W^T da for some of the chunk's rows.
    void input_gradient(const Chunk& chunk, const Shard& rows) {
        const ptrdiff_t ld = dx_ld();
        Step all{{}, rows.begin, nullptr};
        all.rows = rows.count();
        times(da, all, 0, Cell::kGates * shape.blocks, weights.w, grads.transposed_w,
              {0, vectors<T>(shape.input)},
              StoreEdges<T>{dx_base(chunk) + rows.begin * ld, ld, shape.input});
        give_dx(chunk, rows, {0, shape.input});
    }

    // Computes dx for some of W's columns and all rows. It makes the transpose piece by piece in
    // `room`.
    void input_gradient_by_panels(const Chunk& chunk, ptrdiff_t rows, ptrdiff_t part,
                                  ptrdiff_t parts, T* room) {
        constexpr int width = panel_width(1);
        const ptrdiff_t all = vectors<T>(shape.input), ld = dx_ld();
        const Shard panels = share((all + width - 1) / width, part, parts);
        const Panels<T> from{panel_width(Cell::kGates), shape.pre_row(), shape.input};
        const Operand<T> a = da.operand(0, 0, Cell::kGates * shape.blocks);
        const T* const w = args.packed + PackedLayout<Cell, T>(shape, nullptr).w;
        const StoreEdges<T> to{dx_base(chunk), ld, shape.input};
        const auto piece = [&](const Operand<T>& left, const Shard& runs, const auto& store) {
            for (ptrdiff_t p = panels.begin; p < panels.end; ++p) {
                const Shard columns{p * width, smaller((p + 1) * width, all)};
                transpose_panels(from, w, shape.blocks, Cell::kGates, runs, columns, room);
                const Right<T> right{room, left.k(), 0, columns.end - columns.begin, weights.w};
                product<width, 1>(rows, left, right, store.from(columns.begin * L));
            }
        };
        each_piece(pieces_of_k(a.k(), rows), a, to, piece);
        give_dx(chunk, {0, rows},
                {panels.begin * width * L, smaller(panels.end * width * L, shape.input)});
    }

    // The place where a product writes the chunk's dx: the caller's array if its rows are regular,
    // else scratch.
    ptrdiff_t dx_ld() const {
        return dx_regular ? regular_stride(plan, grads.dx_step, grads.dx_row) : x_ld;
    }
    T* dx_base(const Chunk& chunk) const { return dx_regular ? dx_of(chunk.begin, 0) : dx; }

    // Copies dx from scratch, if it is there, to the caller: some of the rows, and some of their
    // elements.
    void give_dx(const Chunk& chunk, const Shard& rows, const Shard& elements) {
        if (dx_regular || elements.begin >= elements.end) return;
        for (ptrdiff_t t = chunk.begin; t < chunk.end; ++t)
            for (ptrdiff_t p = 0; p < plan.rows(t); ++p) {
                const ptrdiff_t row = chunk_row(t, chunk) + p;
                if (row >= rows.begin && row < rows.end)
                    copy_or_zero(dx_of(t, p) + elements.begin, dx + row * x_ld + elements.begin,
                                 elements.end - elements.begin);
            }
    }
};

}  // namespace
}  // namespace rnnfast
