// The gradients of the parameters, computed from the gate gradients of a chunk of rows.
#pragma once

#include "kernels/columns.h"
#include "kernels/low_precision.h"
#include "kernels/pack.h"

namespace rnnfast {
namespace {

// A right operand of up to this many bytes stays in L1 beside the other data that a tile reads.
constexpr ptrdiff_t kStaysInL1 = 16384;
// A left operand of up to this many bytes stays in L2 beside a few columns of the right one.
constexpr ptrdiff_t kStaysInL2 = 524288;

// The number of vectors, out of `all`, whose rows are joined into words at a time. Few rows take
// all vectors, since their products write C in order. More rows take whole tiles, of four vectors
// in tile registers and of three elsewhere.
inline ptrdiff_t joined_vectors(const Format& format, ptrdiff_t rows, ptrdiff_t all) {
    return rows <= 8 ? all : smaller<ptrdiff_t>(format.leave ? 16 : 15, all);
}
// The stride of vectors whose rows are joined. A word has at least two rows.
inline ptrdiff_t join_stride(ptrdiff_t rows) { return ((rows + 1) / 2 | 1) * kLanes<float>; }

// The elements that a thread needs to join rows of a chunk into words: one vector of A, and those
// of B that are joined at a time.
template <class T>
ptrdiff_t join_room(const ForwardArgs<T>& args, const BackwardArgs<T>& grads, ptrdiff_t rows) {
    const Weights<T>& w = grads.weights;
    if (!args.format || !(w.weight_ih || w.weight_hh || w.weight_hr)) return 0;
    const Sizes& s = args.sizes;
    const ptrdiff_t of_h = s.hidden > s.width() ? s.hidden : s.width();
    const ptrdiff_t widest = vectors<T>(s.input > of_h ? s.input : of_h);
    return (1 + joined_vectors(*args.format, rows, widest)) * join_stride(rows);
}

// Adds up one thread's part of the gradients: some of the (gate, block) pairs, each of which is V
// rows of dW, dR and db.
template <class Cell, class T>
struct ParameterGradients {
    static constexpr ptrdiff_t L = kLanes<T>;

    const Shape<Cell, T>& shape;
    const Columns<T>& da;  // vectors [slot][block]
    ptrdiff_t rows;
    Shard pairs;
    bool assign;                     // whether the gradients are assigned rather than added
    const Format* format = nullptr;  // the format of the operands; null: T
    T* join_room = nullptr;          // scratch for rows that are joined into words
    Prepared* prepared = nullptr;

    // dW += da_x^T x; db += da_x^T 1.
    void input(const Columns<T>& x, T* dw, T* db) const {
        const Slots slots{0, 0, Cell::kGates, Cell::gate_of_x_slot};
        if (dw) weight(slots, x, shape.input, dw);
        if (db) bias(slots, db);
    }

    // dR += da_h^T h; db += da_h^T 1. In a cell with two products, the last slot takes r h in place
    // of h.
    void recurrent(const Columns<T>& h, const Columns<T>& reset_h, T* dr, T* db) const {
        constexpr int kFirst = kApart<Cell>, kSecond = kFirst + kFirstGates<Cell>;
        const Slots slots{kFirst, kFirst, Cell::kSlots, Cell::gate_of_h_slot};
        if (dr) {
            weight({kFirst, kFirst, kSecond, slots.gate_of}, h, shape.width, dr);
            weight({kFirst, kSecond, Cell::kSlots, slots.gate_of}, reset_h, shape.width, dr);
        }
        if (db) bias(slots, db);
    }

    // C (m, n) += A^T B, for those of its m rows that belong to some vectors.
    void outer(const Shard& of_vectors, ptrdiff_t m, const Columns<T>& a, const Columns<T>& b,
               ptrdiff_t n, T* c) const {
        const auto each_of = [&](const Shard& some, const auto& body) {
            for (ptrdiff_t i = some.begin; i < some.end; ++i)
                body(a.at(0, i), i * L, smaller(L, m - i * L));
        };
        if constexpr (kHasFormats<T>)
            if (format) return low_weight(of_vectors, each_of, b, n, c);
        by_panels(of_vectors, each_of, b, n, c);
    }

private:
    // Slots begin..end-1. They are among kGates slots that start at `first`, which the pairs count.
    struct Slots {
        int first, begin, end;
        int (*gate_of)(int);
    };

    void weight(const Slots& slots, const Columns<T>& right, ptrdiff_t n, T* dw) const {
        const ptrdiff_t all = vectors<T>(n);
        if (slots.begin == slots.end || all == 0) return;
        const auto each_of = [&](const Shard& some, const auto& body) { each(some, slots, body); };
        if constexpr (kHasFormats<T>)
            if (format) return low_weight(pairs, each_of, right, n, dw);
        if (all * L * rows * ptrdiff_t(sizeof(T)) <= kStaysInL1) {  // writes dW in order
            each(pairs, slots, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
                if (outer_few<Term<T>>(lanes, rows, a, right, n, dw + row * n, assign)) return;
                for (ptrdiff_t v = 0; v < all;) v += panel(a, row, lanes, right, v, n, dw);
            });
            return;
        }
        by_panels(pairs, each_of, right, n, dw);
    }

    ptrdiff_t panel(const T* a, ptrdiff_t row, ptrdiff_t lanes, const Columns<T>& right,
                    ptrdiff_t v, ptrdiff_t n, T* c) const {
        return outer_panel<Term<T>>(lanes, rows, a, right, v, c + row * n, n, n, assign);
    }

    // C += A^T B, for those vectors of A, among some, for which `each_of` calls its argument. It
    // takes them in groups that stay in L2. Each group goes through all of B, a few columns at a
    // time.
    template <class Each>
    void by_panels(const Shard& of_vectors, const Each& each_of, const Columns<T>& right,
                   ptrdiff_t n, T* c) const {
        const ptrdiff_t count = of_vectors.end - of_vectors.begin;
        const ptrdiff_t bytes = count * rows * L * ptrdiff_t(sizeof(T));
        // At least one group: without rows the sums are zeros.
        const ptrdiff_t groups = smaller(count, bytes / kStaysInL2 + 1);
        for (ptrdiff_t group = 0; group < groups; ++group) {
            Shard own = share(count, group, groups);
            own.begin += of_vectors.begin, own.end += of_vectors.begin;
            for (ptrdiff_t v = 0; v < vectors<T>(n); v += kOuterVectors)
                each_of(own, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
                    panel(a, row, lanes, right, v, n, c);
                });
        }
    }

    // Does the same in a format. It joins the rows of some vectors of B at a time and, while it has
    // these, the rows of A's vectors one after the other.
    template <class Each>
    void low_weight(const Shard& of_vectors, const Each& each_of, const Columns<T>& right,
                    ptrdiff_t n, T* c) const {
        const ptrdiff_t all = vectors<T>(n), most = joined_vectors(*format, rows, all);
        const ptrdiff_t words = (rows + format->of_word - 1) / format->of_word;
        T* const a_joined = join_room;
        const Columns<T> b_joined{join_room + join_stride(rows), join_stride(rows)};
        for (ptrdiff_t from = 0; from < all; from += most) {
            const ptrdiff_t count = smaller(most, all - from);
            const ptrdiff_t columns = smaller(count * L, n - from * L);
            for (ptrdiff_t v = 0; v < count; ++v)
                format->join_rows(right.at(0, from + v), rows, b_joined.at(0, v));
            each_of(of_vectors, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
                format->join_rows(a, rows, a_joined);
                format->outer(lanes, words, a_joined, b_joined.base, b_joined.stride,
                              c + row * n + from * L, n, columns, assign, prepared);
            });
        }
    }

    void bias(const Slots& slots, T* db) const {
        each(pairs, slots, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
            Vec<T> total = zero<T>();
            for (ptrdiff_t first = 0; first < rows; first += kSumRows) {
                Vec<T> sum = zero<T>();
                for (ptrdiff_t i = first; i < smaller(rows, first + kSumRows); ++i)
                    sum = sum + load(a + i * L);
                total = total + sum;
            }
            store_edge(db + row, assign ? total : load_edge(db + row, lanes) + total, lanes);
        });
    }

    // Calls body(gate gradients of a pair, the first row of dW that they belong to, lanes) for some
    // pairs.
    template <class Body>
    void each(const Shard& some, const Slots& slots, const Body& body) const {
        for (ptrdiff_t i = some.begin; i < some.end; ++i) {
            const ptrdiff_t b = i % shape.blocks;
            const int slot = int(i / shape.blocks) + slots.first;
            if (slot >= slots.begin && slot < slots.end)
                body(da.at(0, slot * shape.blocks + b), slots.gate_of(slot) * shape.hidden + b * L,
                     shape.lanes(b));
        }
    }
};

}  // namespace
}  // namespace rnnfast
