// The backward pass of every cell over time. See csrc/README.md for the shape of the loops.
//
// A chunk of steps has two phases with a barrier after each: `steps`, sharded by rows, leaves the
// chunk's gate gradients in one buffer; `products`, sharded by rows of the parameters, adds them to
// the parameters' gradients. No sum is split, so that the bits don't depend on the shards.
#pragma once

#include "kernels/backward_memory.h"
#include "kernels/backward_step.h"
#include "kernels/parameter_gradients.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class BackwardPass : BackwardMemory<Cell, T> {
    using V = Vec<T>;
    using Step = BackwardStep<T>;
    using Units = BackwardUnits;
    static constexpr ptrdiff_t L = kLanes<T>;

    using Memory = BackwardMemory<Cell, T>;
    using Memory::args, Memory::grads, Memory::plan, Memory::shape;
    using Memory::da, Memory::h_prev, Memory::x, Memory::reset_h, Memory::dp, Memory::hidden;
    using Memory::dx, Memory::dh, Memory::dc, Memory::c0, Memory::through, Memory::zeros;
    using Memory::h_ld, Memory::unit_ld, Memory::x_ld, Memory::dx_regular;

    const PackedLayout<Cell, T> packed;
    const TransposedLayout<Cell, T> at;
    const Matrices<Cell, T> weights;

public:
    BackwardPass(const ForwardArgs<T>& a, const BackwardArgs<T>& g, const Plan& p, ptrdiff_t rows,
                 T* scratch)
        : Memory(a, g, p, rows, scratch),
          packed(shape, a.format),
          at(shape, a.format, Transposed::of_steps),
          weights(shape, a.weights) {}

    // What a thread takes for a panel of W's transpose, where that is not kept.
    static ptrdiff_t panel_room(const ForwardArgs<T>& args, const BackwardArgs<T>& grads) {
        const bool fresh = grads.dx && args.packed && !grads.transposed_w;
        return fresh ? Shape<Cell, T>(args.sizes).pre_row() * panel_width(1) * L : 0;
    }

    using Memory::place;

    // Before the first chunk.
    void begin(const Shard& shard) {
        for (ptrdiff_t p = shard.begin; p < shard.end; p += shard.step) {
            const ptrdiff_t row = plan.row(p);
            copy_padded(dh + p * h_ld, row_of(grads.dhn, row, shape.width), shape.width, h_ld);
            if (!Cell::kHasC) continue;
            copy_padded(dc + p * unit_ld, row_of(grads.dcn, row, shape.hidden), shape.hidden,
                        unit_ld);
            copy_padded(c0 + p * unit_ld, row_of(args.c0, row, shape.hidden), shape.hidden,
                        unit_ld);
        }
        if (shard.begin == 0) copy_or_zero<T>(zeros, nullptr, unit_ld);
        const bool padded = plan.active && !plan.ragged;
        for (ptrdiff_t t = 0; grads.dx && padded && t < plan.steps; ++t)  // past the lengths
            for (ptrdiff_t i = shard.clip(plan.rows(t)), p; (p = shard.at(i)) < shard.end; ++i)
                copy_or_zero<T>(dx_of(t, p), nullptr, shape.input);
    }

    // After the last chunk.
    void end(const Shard& shard) {
        for (ptrdiff_t p = shard.begin; p < shard.end; p += shard.step) {
            const ptrdiff_t row = plan.row(p);
            copy_if_wanted(row_of(grads.dh0, row, shape.width), dh + p * h_ld, shape.width);
            copy_if_wanted(row_of(grads.dc0, row, shape.hidden), dc + p * unit_ld, shape.hidden);
        }
    }

    // Leaves the gate gradients of the chunk's rows, for some of the places.
    void steps(const Chunk& chunk, const Slice& slice) {
        const Units units = units_of(slice);
        for (ptrdiff_t i = 0; i < chunk.end - chunk.begin; ++i) {
            const ptrdiff_t t = plan.reverse ? chunk.begin + i : chunk.end - 1 - i;
            const ptrdiff_t n = slice.rows.clip(plan.rows(t));
            const ptrdiff_t first = slice.rows.begin;
            const T* const dy =
                grads.dy ? grads.dy + plan.offset(t, grads.dy_step, grads.dy_row) : nullptr;
            const Step step{t, chunk_row(t, chunk) + first, first, n, slice.rows.step, dy};
            gather(step, units);
            if constexpr (Cell::kTwoProducts)
                step_two_products(step, units, slice);
            else
                step_one_product(step, units, slice);
            cut(step, units);
        }
    }

    // Part `part` of `parts` of the parameters' gradients, and of the chunk's dx.
    void products(const Chunk& chunk, ptrdiff_t part, ptrdiff_t parts, bool assign, T* room) {
        const ptrdiff_t rows = chunk_row(chunk.end, chunk);
        const ParameterGradients<Cell, T> sums{
            shape,  da,          rows,     share(shape.blocks * Cell::kGates, part, parts),
            assign, args.format, room};
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

private:
    Units units_of(const Slice& slice) const {
        const auto own = [&](ptrdiff_t columns) {  // whole panels of the transposed weights
            constexpr int width = panel_width(1);
            const Shard panels = share((columns + width - 1) / width, slice.part, slice.parts);
            return Shard{panels.begin * width, smaller(panels.end * width, columns)};
        };
        return {own(vectors<T>(shape.width)), own(shape.blocks),
                share(vectors<T>(shape.input), slice.part, slice.parts)};
    }

    ptrdiff_t chunk_row(ptrdiff_t t, const Chunk& chunk) const {
        return plan.start(t) - plan.start(chunk.begin);
    }

    bool is_reset(ptrdiff_t t, ptrdiff_t p) const {
        return args.reset && args.reset[t * plan.batch + plan.row(p)];
    }

    // Copies what a step's rows of the chunk need from the caller: x, and h before the step.
    void gather(const Step& step, const Units& units) {
        const ptrdiff_t before = plan.rows_before(step.t), previous = plan.previous(step.t);
        const T* const y =
            before ? args.y + plan.offset(previous, args.y_step, args.y_row) : nullptr;
        const T* const from_x = args.x + plan.offset(step.t, args.x_step, args.x_row);
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = plan.row(p);
            const T* from = row_of(args.h0, row, shape.width);
            if (p < before) from = y + row * args.y_row;
            if (is_reset(step.t, p)) from = nullptr;
            put_row(h_prev, step.row_of(i), from, shape.width, units.h);
            if (grads.weights.weight_ih)
                put_row(x, step.row_of(i), from_x + row * args.x_row, shape.input, units.x);
        }
    }

    // The gradient at h_t, block b: from the steps after it, and from the caller.
    RNNFAST_INLINE V dh_at(const Step& step, ptrdiff_t p, ptrdiff_t b) const {
        const V later = load(dh + p * h_ld + b * L);
        if (!step.dy) return later;
        const T* dy = step.dy + plan.row(p) * grads.dy_row;
        return later + load_edge(dy + b * L, shape.width - b * L);
    }

    const T* saved_at(ptrdiff_t t, ptrdiff_t p) const {
        return args.saved + (plan.start(t) + p) * shape.saved_row();
    }

    const T* y_at(ptrdiff_t t, ptrdiff_t p) const {
        return args.y + plan.offset(t, args.y_step, args.y_row) + plan.row(p) * args.y_row;
    }

    // Zeros in the lanes that are no units: there they could be NaN, and weights of zero keep NaN.
    static V keep_units(V v, ptrdiff_t units) { return units >= L ? v : keep_first<T>(v, units); }

    RNNFAST_INLINE void store_gradients(ptrdiff_t row, ptrdiff_t b, const V* gradient, int first,
                                        int last) const {
        for (int s = first; s < last; ++s)
            store(da.at(row, s * shape.blocks + b), keep_units(gradient[s], shape.lanes(b)));
    }

    void step_one_product(const Step& step, const Units& units, const Slice& slice) {
        const ptrdiff_t t = step.t;
        const bool projects = Cell::kProjects && shape.projection;
        if (projects) {
            for (ptrdiff_t i = 0; i < step.rows; ++i)
                for (ptrdiff_t b = units.h.begin; b < units.h.end; ++b)
                    store(dp.at(step.row_of(i), b),
                          keep_units(dh_at(step, step.place_of(i), b), shape.projection - b * L));
            encode(dp, step, units.h, 0);
            slice.meet();
            times(dp, step, 0, vectors<T>(shape.width), weights.projection,
                  grads.transposed + at.projection, units.blocks,
                  StoreRows<T, false>{through + step.place * unit_ld, unit_ld * step.stride});
        }
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            const bool is_y = Cell::kSavesY && !args.saved;
            const T* const saved = is_y ? y_at(t, p) : saved_at(t, p);
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
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                V kept[Cell::kSaved], gradient[Cell::kSlots], direct{}, dc_b{}, c_b{};
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = is_y ? load_edge(saved + b * L, shape.hidden - b * L)
                                   : load(saved + (b * Cell::kSaved + s) * L);
                if constexpr (Cell::kHasC) {
                    dc_b = load(dc + p * unit_ld + b * L);
                    c_b = load(before + b * c_stride);
                }
                const V dh_b = projects ? load(through + p * unit_ld + b * L) : dh_at(step, p, b);
                const V h_b = Cell::kDirect ? load(h_prev.at(row, b)) : V{};
                Cell::backward(kept, h_b, c_b, dh_b, dc_b, gradient, direct);
                if constexpr (Cell::kHasC) store(dc + p * unit_ld + b * L, dc_b);
                if constexpr (Cell::kDirect) store(dh + p * h_ld + b * L, direct);
                if constexpr (Cell::kProjects)
                    if (projects) store(hidden.at(row, b), Cell::hidden(kept));
                store_gradients(row, b, gradient, 0, Cell::kSlots);
            }
        }
        encode(da, step, units.blocks, 0, Cell::kSlots);
        slice.meet();  // every thread's units are in da
        recurrent_gradient(step, units.h, kApart<Cell>, Cell::kGates);
    }

    void step_two_products(const Step& step, const Units& units, const Slice& slice) {
        V kept[Cell::kSaved], gradient[Cell::kSlots];
        const ptrdiff_t t = step.t;
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved_at(t, p) + (b * Cell::kSaved + s) * L);
                const V dh_b = dh_at(step, p, b);
                Cell::backward_candidate(kept, load(h_prev.at(row, b)), dh_b, gradient);
                store(dh + p * h_ld + b * L, dh_b);
                store_gradients(row, b, gradient, Cell::Z, Cell::kSlots);
            }
        }
        encode(da, step, units.blocks, Cell::Z, Cell::kSlots);
        slice.meet();
        times(da, step, Cell::N * shape.blocks, shape.blocks, weights.r_second,
              grads.transposed + at.r_second, units.blocks,
              StoreRows<T, false>{through + step.place * unit_ld, unit_ld * step.stride});
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                V rh, direct;
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved_at(t, p) + (b * Cell::kSaved + s) * L);
                Cell::backward_reset(kept, load(h_prev.at(row, b)), load(dh + p * h_ld + b * L),
                                     load(through + p * unit_ld + b * L), gradient, rh, direct);
                store(reset_h.at(row, b), rh);
                store(dh + p * h_ld + b * L, direct);
                store_gradients(row, b, gradient, Cell::R, Cell::R + 1);
            }
        }
        encode(da, step, units.blocks, Cell::R, Cell::R + 1);
        slice.meet();
        recurrent_gradient(step, units.h, 0, kFirstGates<Cell>);
    }

    // dh = R^T da of `gates` slots from `slot` on, added to the direct part where there is one.
    void recurrent_gradient(const Step& step, const Shard& columns, int slot, int gates) {
        if (!grads.dh0 && !plan.rows_before(step.t)) return;  // nobody reads it
        times(da, step, slot * shape.blocks, gates * shape.blocks, weights.r,
              grads.transposed + at.r, columns,
              StoreRows<T, Cell::kDirect>{dh + step.place * h_ld, h_ld * step.stride});
    }

    // In a format, what a thread has written of a step's rows: its vectors of slots first..last-1.
    void encode(const Columns<T>& of, const Step& step, const Shard& own, int first,
                int last = 1) const {
        if constexpr (kHasFormats<T>) {
            const ptrdiff_t blocks = shape.blocks, count = own.end - own.begin;
            const bool adjoin = count == blocks;  // slots follow on one another
            for (ptrdiff_t i = 0; args.format && i < step.rows; ++i)
                for (int s = first; s < (adjoin ? first + 1 : last); ++s)
                    of.encode(*args.format, step.row_of(i), s * blocks + own.begin,
                              adjoin ? (last - first) * blocks : count);
        }
    }

    // A product of `count` vectors of a step's rows, from v on, with the transpose of `matrix`, whose
    // panels lie at `transposed`, unless it is borrowed.
    template <class Epilogue>
    void times(const Columns<T>& of, const Step& step, ptrdiff_t v, ptrdiff_t count,
               const Matrix<T>& matrix, const T* transposed, const Shard& columns,
               const Epilogue& epilogue) {
        if constexpr (kHasFormats<T>)
            if (const Format* const format = args.format) {
                LowRows a = of.low_operand(*format, step.row, v);
                a.ld *= step.stride;
                const LowLayout layout(*format, count * L, vectors<T>(matrix.ks) * L);
                return low_product<panel_width(1), 1>(
                    *format, step.rows, a,
                    {transposed, layout, columns.begin, columns.end}, epilogue);
            }
        Operand<T> a = of.operand(step.row, v, count);
        a.ld *= step.stride;
        if (!args.packed) return product_rows(step.rows, a, matrix, columns, epilogue);
        const Right<T> panels{transposed, a.k(), columns.begin, columns.end, matrix};
        deep_product<panel_width(1), 1>(step.rows, a, panels, epilogue);
    }

    // No gradient crosses a reset.
    void cut(const Step& step, const Units& units) {
        for (ptrdiff_t i = 0; args.reset && i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i);
            if (!is_reset(step.t, p)) continue;
            zero_vectors(dh + p * h_ld, units.h);
            if (Cell::kHasC) zero_vectors(dc + p * unit_ld, units.blocks);
        }
    }

    // dx = W^T da for some of the chunk's rows.
    void input_gradient(const Chunk& chunk, const Shard& rows) {
        const ptrdiff_t ld = dx_ld();
        const Step all{0, rows.begin, 0, rows.end - rows.begin, 1, nullptr};
        times(da, all, 0, Cell::kGates * shape.blocks, weights.w, grads.transposed_w,
              {0, vectors<T>(shape.input)},
              StoreEdges<T>{dx_base(chunk) + rows.begin * ld, ld, shape.input});
        give_dx(chunk, rows, {0, shape.input});
    }

    // The same for some of W's columns and all rows, with pieces of the transpose that are made in
    // `room`, one after the other.
    void input_gradient_by_panels(const Chunk& chunk, ptrdiff_t rows, ptrdiff_t part,
                                  ptrdiff_t parts, T* room) {
        constexpr int width = panel_width(1);
        const ptrdiff_t all = vectors<T>(shape.input), ld = dx_ld();
        const Shard panels = share((all + width - 1) / width, part, parts);
        const Panels<T> from{panel_width(Cell::kGates), shape.pre_row(), shape.input};
        const Operand<T> a = da.operand(0, 0, Cell::kGates * shape.blocks);
        const ptrdiff_t pieces = pieces_of_k(a.k(), rows);
        for (ptrdiff_t piece = 0; piece < pieces; ++piece) {
            const Shard runs = share(a.runs, piece, pieces);
            const Operand<T> left = a.part(runs);
            for (ptrdiff_t p = panels.begin; p < panels.end; ++p) {
                const Shard columns{p * width, smaller((p + 1) * width, all)};
                const ptrdiff_t first = columns.begin * L;
                transpose_panels(from, args.packed + packed.w, shape.blocks, Cell::kGates, runs,
                                 columns, room);
                const Right<T> right{room, left.k(), 0, columns.end - columns.begin, weights.w};
                const StoreEdges<T> store{dx_base(chunk) + first, ld, shape.input - first};
                if (piece == 0)
                    product<width, 1>(rows, left, right, store);
                else
                    product<width, 1>(rows, left, right, store.resumed());
            }
        }
        give_dx(chunk, {0, rows},
                {panels.begin * width * L, smaller(panels.end * width * L, shape.input)});
    }

    // Where the chunk's dx goes first.
    ptrdiff_t dx_ld() const {
        return dx_regular ? regular_stride(plan, grads.dx_step, grads.dx_row) : x_ld;
    }
    T* dx_base(const Chunk& chunk) const { return dx_regular ? dx_of(chunk.begin, 0) : dx; }

    // From there to the caller, if it is not there: some of the rows and their elements.
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

    T* dx_of(ptrdiff_t t, ptrdiff_t p) const {
        return grads.dx + plan.offset(t, grads.dx_step, grads.dx_row) + plan.row(p) * grads.dx_row;
    }
};

}  // namespace
}  // namespace rnnfast
