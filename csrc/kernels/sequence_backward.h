// The backward pass of every cell over time. csrc/README.md shows the loops.
//
// A chunk of steps has two phases, with a barrier after each. `steps` is shared out by rows of the
// batch (or by units) and leaves the chunk's gate gradients in one buffer. `products` is shared out
// by rows of the parameters and, for dx, by rows or columns; it computes the other gradients from
// that buffer. No sum is split, so the bits do not depend on how the work is shared out.
#pragma once

#include "kernels/backward_products.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class BackwardPass : public BackwardProducts<Cell, T> {
    using V = Vec<T>;
    using Step = BackwardStep<T>;
    using Units = BackwardUnits;
    static constexpr ptrdiff_t L = kLanes<T>;

    using Memory = BackwardMemory<Cell, T>;
    using Memory::args, Memory::grads, Memory::plan, Memory::shape;
    using Memory::da, Memory::h_prev, Memory::x, Memory::reset_h, Memory::dp, Memory::hidden;
    using Memory::dh, Memory::dc, Memory::c0, Memory::through, Memory::zeros;
    using Memory::h_ld, Memory::unit_ld;
    using Products = BackwardProducts<Cell, T>;
    using Products::at, Products::weights, Products::transposed_at, Products::times;
    using Products::chunk_row, Products::dx_of;

    const ptrdiff_t h_ahead, x_ahead, saved_ahead;  // from rows_ahead

public:
    BackwardPass(const ForwardArgs<T>& a, const BackwardArgs<T>& g, const Plan& p, ptrdiff_t rows,
                 T* scratch)
        : Products(a, g, p, rows, scratch),
          h_ahead(rows_ahead<T>(p, shape.width)),
          x_ahead(rows_ahead<T>(p, shape.input)),
          saved_ahead(a.saved ? rows_ahead<T>(p, shape.saved_row()) : 0) {}

    using Memory::place;

    // Runs before the first chunk.
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

    // Runs after the last chunk.
    void end(const Shard& shard) {
        for (ptrdiff_t p = shard.begin; p < shard.end; p += shard.step) {
            const ptrdiff_t row = plan.row(p);
            copy_if_wanted(row_of(grads.dh0, row, shape.width), dh + p * h_ld, shape.width);
            copy_if_wanted(row_of(grads.dc0, row, shape.hidden), dc + p * unit_ld, shape.hidden);
        }
    }

    // Computes the gate gradients of the chunk's rows, for some of the places.
    void steps(const Chunk& chunk, const Slice& slice) {
        const Units units = units_of(slice);
        for (ptrdiff_t i = 0; i < chunk.end - chunk.begin; ++i) {
            const ptrdiff_t t = plan.reverse ? chunk.begin + i : chunk.end - 1 - i;
            const T* const dy =
                grads.dy ? grads.dy + plan.offset(t, grads.dy_step, grads.dy_row) : nullptr;
            const Step step{rows_of_step(plan, slice.rows, t, plan.previous(t)),
                            chunk_row(t, chunk) + slice.rows.begin, dy};
            if (grads.left) {
                gather_left(step, units);
                continue;
            }
            gather(step, units);
            if constexpr (Cell::kTwoProducts)
                step_two_products(step, units, slice);
            else
                step_one_product(step, units, slice);
            cut(step, units);
        }
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

    bool is_reset(ptrdiff_t t, ptrdiff_t p) const {
        return args.reset && args.reset[t * plan.batch + plan.row(p)];
    }

    // Copies what a step's rows need from the caller: x, and h before the step.
    void gather(const Step& step, const Units& units) {
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            put_row(h_prev, step.row_of(i), h_before(step.at(i)), shape.width, units.h,
                    h_ahead ? h_before(step.after(i, h_ahead)) : nullptr);
            if (grads.weights.weight_ih)
                put_row(x, step.row_of(i), x_at(step.at(i)), shape.input, units.x,
                        x_ahead ? x_at(step.after(i, x_ahead)) : nullptr);
        }
    }

    // Copies what the products need of a step whose gate gradients are known already.
    void gather_left(const Step& step, const Units& units) {
        const LeftStep<T>& left = grads.left[step.t];
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            if (grads.weights.weight_ih)
                put_row(x, row, left.x + p * left.x_row, shape.input, units.x);
            if (grads.weights.weight_hh)
                put_row(h_prev, row, row_of(left.h, p, shape.width), shape.width, units.h);
            const T* const gates = left.gates + p * shape.gradient_row();
            for (int s = 0; s < Cell::kSlots; ++s)
                for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                    const ptrdiff_t v = s * shape.blocks + b;
                    store(da.at(row, v), load(gates + v * L));
                }
        }
    }

    // The gradient at h_t, block b: the sum of what comes from the steps after it and from the
    // caller's dy. It fetches `later`, a row of dy, meanwhile; null: nothing.
    RNNFAST_INLINE V dh_at(const Step& step, ptrdiff_t p, ptrdiff_t b, const T* later) const {
        const V after = load(dh + p * h_ld + b * L);
        if (!step.dy) return after;
        const T* dy = step.dy + plan.row(p) * grads.dy_row;
        if (later) __builtin_prefetch(later + b * L);
        return after + load_edge(dy + b * L, shape.width - b * L);
    }

    // The row of dy, and that of `saved`, to be fetched while row i is read; null: nothing.
    const T* dy_after(const Step& step, ptrdiff_t i) const {
        if (!step.dy || !h_ahead) return nullptr;
        return row_at(grads.dy, plan, step.after(i, h_ahead), grads.dy_step, grads.dy_row);
    }
    const T* saved_after(const Step& step, ptrdiff_t i) const {
        return saved_ahead ? saved_at(step.after(i, saved_ahead)) : nullptr;
    }

    const T* saved_at(const Row& r) const {
        return args.saved + (plan.start(r.t) + r.place) * shape.saved_row();
    }

    const T* y_at(const Row& r) const {
        return row_at<const T>(args.y, plan, r, args.y_step, args.y_row);
    }

    const T* x_at(const Row& r) const { return row_at(args.x, plan, r, args.x_step, args.x_row); }

    // h before a step; null: it is zeros.
    const T* h_before(const Row& r) const {
        if (is_reset(r.t, r.place)) return nullptr;
        if (r.place < plan.rows_before(r.t)) return y_at({plan.previous(r.t), r.place});
        return row_of(args.h0, plan.row(r.place), shape.width);
    }

    // Writes zeros to the lanes that are not units. They could be NaN there, and a product with
    // weights of zero would keep it.
    static V keep_units(V v, ptrdiff_t units) { return units >= L ? v : keep_first<T>(v, units); }

    RNNFAST_INLINE void store_gradients(ptrdiff_t row, ptrdiff_t b, const V* gradient, int first,
                                        int last) const {
        for (int s = first; s < last; ++s) {
            const ptrdiff_t v = s * shape.blocks + b;
            const V kept = keep_units(gradient[s], shape.lanes(b));
            store(da.at(row, v), kept);
            if (grads.gates) store(grads.gates + row * shape.gradient_row() + v * L, kept);
        }
    }

    void step_one_product(const Step& step, const Units& units, const Slice& slice) {
        const ptrdiff_t t = step.t;
        const bool projects = Cell::kProjects && shape.projection;
        if (projects) {
            for (ptrdiff_t i = 0; i < step.rows; ++i) {
                const T* const dy_later = dy_after(step, i);
                for (ptrdiff_t b = units.h.begin; b < units.h.end; ++b)
                    store(dp.at(step.row_of(i), b),
                          keep_units(dh_at(step, step.place_of(i), b, dy_later),
                                     shape.projection - b * L));
            }
            encode(dp, step, units.h, 0);
            slice.meet();
            times(dp, step, 0, vectors<T>(shape.width), weights.projection,
                  transposed_at(at.projection), units.blocks,
                  StoreRows<T, false>{through + step.place * unit_ld, unit_ld * step.stride});
        }
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            const bool is_y = Cell::kSavesY && !args.saved;
            const T* const saved = is_y ? y_at({t, p}) : saved_at({t, p});
            const T* before = nullptr;  // c before the step: [block], c_stride apart
            ptrdiff_t c_stride = L;
            if constexpr (Cell::kHasC) {
                before = c0 + p * unit_ld;
                if (p < plan.rows_before(t)) {
                    before = saved_at({plan.previous(t), p}) + Cell::kC * L;
                    c_stride = Cell::kSaved * L;
                }
                if (is_reset(t, p)) before = zeros, c_stride = L;
            }
            const T* const dy_later = projects ? nullptr : dy_after(step, i);
            const T* const saved_later = saved_after(step, i);
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                V kept[Cell::kSaved], gradient[Cell::kSlots], direct{}, dc_b{}, c_b{};
                for (int s = 0; s < Cell::kSaved; ++s) {
                    if (saved_later) __builtin_prefetch(saved_later + (b * Cell::kSaved + s) * L);
                    kept[s] = is_y ? load_edge(saved + b * L, shape.hidden - b * L)
                                   : load(saved + (b * Cell::kSaved + s) * L);
                }
                if constexpr (Cell::kHasC) {
                    dc_b = load(dc + p * unit_ld + b * L);
                    c_b = load(before + b * c_stride);
                }
                const V dh_b =
                    projects ? load(through + p * unit_ld + b * L) : dh_at(step, p, b, dy_later);
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
        slice.meet();  // now every thread's units are in da
        recurrent_gradient(step, units.h, kApart<Cell>, Cell::kGates);
    }

    void step_two_products(const Step& step, const Units& units, const Slice& slice) {
        V kept[Cell::kSaved], gradient[Cell::kSlots];
        const ptrdiff_t t = step.t;
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            const T* const saved = saved_at({t, p});
            const T* const saved_later = saved_after(step, i);
            const T* const dy_later = dy_after(step, i);
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                for (int s = 0; s < Cell::kSaved; ++s) {
                    const ptrdiff_t at = (b * Cell::kSaved + s) * L;
                    if (saved_later) __builtin_prefetch(saved_later + at);
                    kept[s] = load(saved + at);
                }
                const V dh_b = dh_at(step, p, b, dy_later);
                Cell::backward_candidate(kept, load(h_prev.at(row, b)), dh_b, gradient);
                store(dh + p * h_ld + b * L, dh_b);
                store_gradients(row, b, gradient, Cell::Z, Cell::kSlots);
            }
        }
        encode(da, step, units.blocks, Cell::Z, Cell::kSlots);
        slice.meet();
        times(da, step, Cell::N * shape.blocks, shape.blocks, weights.r_second,
              transposed_at(at.r_second), units.blocks,
              StoreRows<T, false>{through + step.place * unit_ld, unit_ld * step.stride});
        for (ptrdiff_t i = 0; i < step.rows; ++i) {
            const ptrdiff_t p = step.place_of(i), row = step.row_of(i);
            const T* const saved = saved_at({t, p});
            for (ptrdiff_t b = units.blocks.begin; b < units.blocks.end; ++b) {
                V rh, direct;
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load(saved + (b * Cell::kSaved + s) * L);
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

    // dh = R^T da, for `gates` slots from `slot` on. It is added to the direct part if the cell has
    // one.
    void recurrent_gradient(const Step& step, const Shard& columns, int slot, int gates) {
        if (!grads.dh0 && !plan.rows_before(step.t)) return;  // nobody reads it
        times(da, step, slot * shape.blocks, gates * shape.blocks, weights.r, transposed_at(at.r),
              columns, StoreRows<T, Cell::kDirect>{dh + step.place * h_ld, h_ld * step.stride});
    }

    // If there is a format, encodes what a thread has written of a step's rows: its vectors of the
    // slots first..last-1.
    void encode(const Columns<T>& of, const Step& step, const Shard& own, int first,
                int last = 1) const {
        if constexpr (kHasFormats<T>) {
            const ptrdiff_t blocks = shape.blocks, count = own.end - own.begin;
            const bool adjoin = count == blocks;  // the slots follow one another
            for (ptrdiff_t i = 0; args.format && i < step.rows; ++i)
                for (int s = first; s < (adjoin ? first + 1 : last); ++s)
                    of.encode(*args.format, step.row_of(i), s * blocks + own.begin,
                              adjoin ? (last - first) * blocks : count);
        }
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
};

}  // namespace
}  // namespace rnnfast
