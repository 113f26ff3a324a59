// The forward pass of every cell over time. csrc/README.md shows the loops.
#pragma once

#include "kernels/forward_step.h"
#include "kernels/rows.h"

namespace rnnfast {
namespace {

// A chunk's pre-activations are about this many numbers, so that they stay in L1 and L2.
constexpr ptrdiff_t kChunkElements = 65536;

template <class Cell, class T>
class ForwardPass {
protected:
    template <class, int, int>
    friend struct ForwardStep;
    template <class>
    friend struct Projected;
    using CellType = Cell;
    using Element = T;
    using V = Vec<T>;
    static constexpr ptrdiff_t L = kLanes<T>;

    const ForwardArgs<T>& args;
    const Plan& plan;
    const Slice slice;
    const Shard& shard;
    const Shape<Cell, T> shape;
    const PackedLayout<Cell, T> at;
    const Matrices<Cell, T> weights;
    const ptrdiff_t count;  // the number of places in the shard
    const ptrdiff_t pre_ld, h_ld, unit_ld, saved_ld;
    const bool x_regular;
    const ptrdiff_t x_ahead;  // from rows_ahead
    T *pre, *x, *h, *h_next, *c, *hidden, *reset_h, *part;
    T *own_bias_x, *own_bias_h, *own_times_0;  // for weights that are not packed
    const T *bias_x, *bias_h;                  // in the order of PackedLayout
    LowRoom low;                               // for the left operand of the present product
    Prepared prepared{};
    bool starts_from_zeros = false;  // because no state was given; never in a stream
    bool is_other = false;           // true for every other step

public:
    ForwardPass(const ForwardArgs<T>& a, const Plan& p, const Slice& s, T* scratch)
        : args(a),
          plan(p),
          slice(s),
          shard(slice.rows),
          shape(a.sizes),
          at(shape, a.format),
          weights(shape, a.weights),
          count(s.rows.count()),
          pre_ld(spread<T>(shape.pre_row())),
          h_ld(spread<T>(shape.h_row())),
          unit_ld(spread<T>(shape.padded)),
          saved_ld(shape.saved_row() * (a.saved ? s.rows.step : 1)),
          x_regular(regular(p, s.rows, a.x_step, a.x_row)),
          x_ahead(x_regular ? 0 : rows_ahead<T>(p, shape.input)) {
        place(scratch);
    }

    // Gives every array its place in the scratch and returns how many elements they take.
    ptrdiff_t place(T* memory) {
        Scratch<T> scratch{memory};
        const ptrdiff_t rows = chunk_rows();
        pre = scratch.take(rows * pre_ld);
        for (ptrdiff_t i = 0; i < slice.parts; ++i) {  // each part has its own copy
            T* const copy = scratch.take(x_regular ? 0 : rows * shape.input);
            if (i == slice.part) x = copy;
            if constexpr (kHasFormats<T>) {
                const LowRoom room = low_room(scratch);
                if (i == slice.part) low = room;
            }
        }
        h = scratch.take(count * h_ld);
        h_next = scratch.take(count * h_ld);
        c = scratch.take(Cell::kHasC ? count * unit_ld : 0);
        hidden = scratch.take(shape.projection ? count * unit_ld : 0);
        reset_h = scratch.take(Cell::kTwoProducts ? count * unit_ld : 0);
        part = scratch.take(Cell::kTwoProducts && !args.saved ? count * shape.saved_row() : 0);
        own_bias_x = scratch.take(args.packed ? 0 : shape.pre_row());
        own_bias_h = scratch.take(args.packed ? 0 : kApart<Cell> * shape.padded);
        own_times_0 = scratch.take(args.packed ? 0 : kFirstGates<Cell> * shape.padded);
        bias_x = args.packed ? args.packed + at.bias_x : own_bias_x;
        bias_h = args.packed ? args.packed + at.bias_h : own_bias_h;
        return scratch.end;
    }

    void run() {
        const bool first = slice.part == 0;
        if (first) start();
        starts_from_zeros = !args.h0;
        slice.meet();
        ptrdiff_t live = count;
        for (ptrdiff_t done = 0; done < plan.steps;) {
            const ChunkRows chunk = next_chunk(plan, slice, chunk_rows(), done);
            done += chunk.end - chunk.begin;
            if (slice.relay) slice.relay->await(slice.relay->state, done);
            input_product(chunk);
            // In a cell with two products, the threads share out the columns of a step's first
            // product by other panels than those here. So each reads pre-activations that others
            // have computed.
            if constexpr (Cell::kTwoProducts) slice.meet();
            ptrdiff_t row = plan.reverse ? chunk.rows : 0;  // the chunk's row where a step starts
            for (ptrdiff_t i = 0; i < chunk.end - chunk.begin; ++i) {
                const ptrdiff_t t = plan.reverse ? chunk.end - 1 - i : chunk.begin + i;
                const ptrdiff_t n = clip(t);
                if (first && !plan.reverse) live = finish(n, live);
                if (plan.reverse) row -= n;
                step(t, n, row);
                if (!plan.reverse) row += n;
            }
            if (slice.relay) slice.relay->report(slice.relay->state, done);
        }
        if (first) finish(0, live);
    }

protected:
    ptrdiff_t clip(ptrdiff_t t) const { return shard.clip(plan.rows(t)); }

    // The most rows that a chunk has: as many as the buffer holds, but at least those of one step.
    ptrdiff_t chunk_rows() const {
        const ptrdiff_t fit = kChunkElements / pre_ld;
        return smaller(fit > count ? fit : count, count * plan.steps);
    }

    LowRoom low_room(Scratch<T>& scratch) {
        if (!args.format) return {};
        const ptrdiff_t rows = chunk_rows();
        const ptrdiff_t widest = shape.padded > shape.h_row() ? shape.padded : shape.h_row();
        const ptrdiff_t of_x = rows * LowRoom::ld(*args.format, shape.input);
        const ptrdiff_t of_h = count * LowRoom::ld(*args.format, widest);
        T* const words = scratch.take(of_x > of_h ? of_x : of_h);
        return {words, scratch.take(rows), &prepared};
    }

    // Sets the initial states. Both buffers of h get them: a row that starts later than others then
    // finds its own in either.
    void start() {
        if (!args.packed)
            add_biases(shape, args.weights.bias_ih, args.weights.bias_hh, own_bias_x, own_bias_h);
        for (ptrdiff_t p = 0; p < count; ++p) {
            const ptrdiff_t row = plan.row(shard.at(p));
            const T* h0 = row_of(args.h0, row, shape.width);
            copy_padded(h + p * h_ld, h0, shape.width, h_ld);
            copy_padded(h_next + p * h_ld, h0, shape.width, h_ld);
            if (Cell::kHasC)
                copy_padded(c + p * unit_ld, row_of(args.c0, row, shape.hidden), shape.hidden,
                            unit_ld);
        }
    }

    // This part's share of a product's columns, in vectors. It consists of whole panels.
    Shard own_columns(ptrdiff_t columns, int width) const {
        const Shard panels = share((columns + width - 1) / width, slice.part, slice.parts);
        return {panels.begin * width, smaller(panels.end * width, columns)};
    }

    template <int kGroup>
    Right<T> right(ptrdiff_t packed, const Matrix<T>& matrix) const {
        const Shard own = own_columns(matrix.blocks() * kGroup, panel_width(kGroup));
        return {args.packed ? args.packed + packed : nullptr, matrix.ks, own.begin, own.end,
                matrix};
    }

    // Multiplies rows of `a` by this part's columns of `matrix`, packed at `packed`. Columns come
    // in groups of kGroup gates.
    template <int kGroup, class Epilogue>
    void times(ptrdiff_t rows, const Operand<T>& a, ptrdiff_t packed, const Matrix<T>& matrix,
               const Epilogue& epilogue) {
        constexpr int kWidth = panel_width(kGroup);
        Right<T> b = right<kGroup>(packed, matrix);
        b.downwards = is_other;
        if constexpr (kHasFormats<T>)
            if (const Format* const format = args.format) {
                const LowLayout layout(*format, matrix.ks, matrix.blocks() * kGroup * L);
                return low_product<kWidth, kGroup>(
                    *format, rows, encode_rows(*format, rows, a, low),
                    {b.base, layout, b.begin, b.end, b.downwards}, epilogue);
            }
        product<kWidth, kGroup>(rows, a, b, epilogue);
    }

    // Computes pre = W x + b for every row of the chunk.
    void input_product(const ChunkRows& chunk) {
        Operand<T> a{args.x + plan.offset(chunk.begin, args.x_step, args.x_row),
                     regular_stride(plan, args.x_step, args.x_row), shape.input};
        if (!x_regular) {
            const auto at = [&](const Row& r) {
                return row_at(args.x, plan, r, args.x_step, args.x_row);
            };
            T* to = x;
            for (ptrdiff_t t = chunk.begin; t < chunk.end; ++t) {
                const StepRows rows = rows_of_step(plan, shard, t, t + 1);
                for (ptrdiff_t i = 0; i < rows.rows; ++i, to += shape.input)
                    copy_row(to, at(rows.at(i)), shape.input,
                             x_ahead ? at(rows.after(i, x_ahead)) : nullptr);
            }
            a = Operand<T>{x, shape.input, shape.input};
        }
        const StoreBiased<T> store_pre{bias_x, pre, pre_ld};
        times<Cell::kGates>(chunk.rows, a, at.w, weights.w, store_pre);
    }

    // Stores h of a block of units, for the next step and the caller or else for the projection.
    RNNFAST_INLINE void put_h(ptrdiff_t p, ptrdiff_t b, V value, T* y) {
        if (Cell::kProjects && shape.projection) {
            store(hidden + p * unit_ld + b * L, value);
            return;
        }
        store(h_next + p * h_ld + b * L, value);
        store_edge(y_row(p, y) + b * L, value, shape.width - b * L);
    }

    RNNFAST_INLINE T* y_row(ptrdiff_t p, T* y) const {
        return y + plan.row(shard.at(p)) * args.y_row;
    }

    // Runs step t for its n rows, whose pre-activations start at the chunk's row `first`.
    void step(ptrdiff_t t, ptrdiff_t n, ptrdiff_t first) {
        const bool first_part = slice.part == 0;
        if (args.reset) {
            for (ptrdiff_t p = 0; first_part && p < n; ++p) cut(t, p);
            slice.meet();
        }
        T* y = args.y + plan.offset(t, args.y_step, args.y_row);
        const T* step_pre = pre + first * pre_ld;
        T* saved = args.saved ? args.saved + (plan.start(t) + shard.begin) * shape.saved_row()
                              : (Cell::kTwoProducts ? part : nullptr);
        const FirstStep first_step{this, step_pre, saved, y, shape.width > kLongSum};
        if (starts_from_zeros && t == (plan.reverse ? plan.steps - 1 : 0)) {
            // The product of R with zeros was found when R was packed; this multiplies it by 1.
            static constexpr T kOne = 1;
            Right<T> b = right<kInFirst>(at.r_times_0, weights.r);
            b.k = 1;
            if (!args.packed) b.base = zeros_times_r(b);
            product<panel_width(kInFirst), kInFirst>(n, Operand<T>{&kOne, 0, 1}, b, first_step);
        } else {
            times<kInFirst>(n, Operand<T>{h, h_ld, shape.width}, at.r, weights.r, first_step);
        }
        if constexpr (Cell::kTwoProducts) {  // not left out for zeros: r h is NaN where r is NaN
            slice.meet();
            times<1>(n, Operand<T>{reset_h, unit_ld, shape.hidden}, at.r_second, weights.r_second,
                     SecondStep{this, step_pre, saved, y, shape.hidden > kLongSum});
        }
        end_step(n, y);
    }

    const T* zeros_times_r(const Right<T>& b) {
        for (ptrdiff_t v = b.begin; v < b.end; ++v)
            store(own_times_0 + v * L, zeros_times(b.matrix, v));
        return own_times_0;
    }

    static constexpr int kInFirst = kFirstGates<Cell>;  // the gates of a step's first product
    using FirstStep = ForwardStep<ForwardPass, kInFirst, Cell::kTwoProducts ? 0 : kApart<Cell>>;
    using SecondStep = ForwardStep<ForwardPass, 1, Cell::kSlots - 1>;

    // Ends a step: computes the projection of its n rows, writes zeros to the rest of y, and swaps
    // the buffers of h.
    void end_step(ptrdiff_t n, T* y) {
        if constexpr (Cell::kProjects)
            if (shape.projection) {
                slice.meet();
                times<1>(n, Operand<T>{hidden, unit_ld, shape.hidden}, at.projection,
                         weights.projection, Projected<ForwardPass>{this, y});
            }
        take_turn(n, y);
    }

    void take_turn(ptrdiff_t n, T* y) {
        for (ptrdiff_t p = n; slice.part == 0 && !plan.ragged && p < count; ++p)
            copy_or_zero<T>(y_row(p, y), nullptr, shape.width);
        slice.meet();
        T* swap = h;
        h = h_next;
        h_next = swap;
        is_other = !is_other;
    }

    // Sets the state of place p to zero before step t, if the caller asks for a reset there.
    void cut(ptrdiff_t t, ptrdiff_t p) {
        if (!args.reset[t * plan.batch + plan.row(shard.at(p))]) return;
        copy_or_zero<T>(h + p * h_ld, nullptr, shape.width);
        if (Cell::kHasC) copy_or_zero<T>(c + p * unit_ld, nullptr, shape.padded);
    }

    // Gives the caller the final states of places n..live-1. Returns n, or `live` if that is less.
    ptrdiff_t finish(ptrdiff_t n, ptrdiff_t live) {
        for (ptrdiff_t p = n; p < live; ++p) {
            const ptrdiff_t row = plan.row(shard.at(p));
            copy_or_zero(args.hn + row * shape.width, h + p * h_ld, shape.width);
            if (Cell::kHasC)
                copy_or_zero(args.cn + row * shape.hidden, c + p * unit_ld, shape.hidden);
        }
        return smaller(n, live);
    }
};

}  // namespace
}  // namespace rnnfast
