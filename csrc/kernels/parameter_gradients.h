// The gradients of the parameters, from the gate gradients of a chunk of rows.
#pragma once

#include "kernels/pack.h"

namespace rnnfast {
namespace {

// Rows are summed by blocks of so many, and the blocks' sums added up: in one long sum a float32
// would lose 1e-5 over 400,000 rows. Blocks also keep the right operand's columns in L1.
constexpr ptrdiff_t kSumRows = 256;

// Adds one thread's part: some of the (block, gate) pairs, each V rows of dW, dR and db.
template <class Cell, class T>
struct ParameterGradients {
    static constexpr ptrdiff_t L = kLanes<T>;

    const Shape<Cell, T>& shape;
    const T* da;  // (rows, [block][slot][lane])
    ptrdiff_t da_ld;
    ptrdiff_t rows;
    Shard pairs;

    // dW += da_x^T x, db += da_x^T 1.
    void input(const T* x, ptrdiff_t x_ld, T* dw, T* db) const {
        const Slots slots{0, 0, Cell::kGates, Cell::gate_of_x_slot};
        weight(slots, x, x_ld, shape.input, dw);
        if (db) bias(slots, db);
    }

    // dR += da_h^T h, db += da_h^T 1; with two products the last slot has r h for h.
    void recurrent(const T* h, ptrdiff_t h_ld, const T* reset_h, ptrdiff_t reset_ld, T* dr,
                   T* db) const {
        constexpr int kFirst = kApart<Cell>, kSecond = kFirst + kFirstGates<Cell>;
        const Slots slots{kFirst, kFirst, Cell::kSlots, Cell::gate_of_h_slot};
        weight({kFirst, kFirst, kSecond, slots.gate_of}, h, h_ld, shape.width, dr);
        weight({kFirst, kSecond, Cell::kSlots, slots.gate_of}, reset_h, reset_ld, shape.width, dr);
        if (db) bias(slots, db);
    }

    // C (m, n) += A^T B over the chunk's rows.
    void outer(ptrdiff_t m, const T* a, ptrdiff_t lda, const T* b, ptrdiff_t ldb, ptrdiff_t n,
               T* c) const {
        each_block([&](ptrdiff_t row, ptrdiff_t k) {
            each_panel<T>(n, [&](auto width, auto edge, ptrdiff_t from, ptrdiff_t last) {
                for (ptrdiff_t i = 0; i < m; i += L)
                    outer_lanes<width.value, edge.value != 0>(
                        smaller(L, m - i), k, a + row * lda + i, lda, b + row * ldb + from, ldb,
                        c + i * n + from, n, last);
            });
        });
    }

private:
    // Slots begin..end-1, of the kGates that start at `first`.
    struct Slots {
        int first, begin, end;
        int (*gate_of)(int);
    };

    // By columns of the right operand that stay in L1 over all the rows of dW.
    void weight(const Slots& slots, const T* right, ptrdiff_t ld, ptrdiff_t n, T* dw) const {
        if (slots.begin == slots.end) return;
        each_block([&](ptrdiff_t first, ptrdiff_t k) {
            each_panel<T>(n, [&](auto width, auto edge, ptrdiff_t from, ptrdiff_t last) {
                each(slots, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
                    outer_lanes<width.value, edge.value != 0>(lanes, k, a + first * da_ld, da_ld,
                                                              right + first * ld + from, ld,
                                                              dw + row * n + from, n, last);
                });
            });
        });
    }

    void bias(const Slots& slots, T* db) const {
        each_block([&](ptrdiff_t first, ptrdiff_t k) {
            each(slots, [&](const T* a, ptrdiff_t row, ptrdiff_t lanes) {
                Vec<T> sum = zero<T>();
                for (ptrdiff_t i = first; i < first + k; ++i) sum = sum + load(a + i * da_ld);
                store_edge(db + row, load_edge(db + row, lanes) + sum, lanes);
            });
        });
    }

    // body(first row, rows) for each block of rows that is summed by itself.
    template <class Body>
    void each_block(const Body& body) const {
        for (ptrdiff_t row = 0; row < rows; row += kSumRows)
            body(row, smaller(kSumRows, rows - row));
    }

    // body(gradients of one of this thread's pairs, the first row of dW they belong to, lanes).
    template <class Body>
    void each(const Slots& slots, const Body& body) const {
        for (ptrdiff_t i = pairs.begin; i < pairs.end; ++i) {
            const ptrdiff_t b = i / Cell::kGates;
            const int slot = int(i % Cell::kGates) + slots.first;
            if (slot >= slots.begin && slot < slots.end)
                body(da + (b * Cell::kSlots + slot) * L, slots.gate_of(slot) * shape.hidden + b * L,
                     shape.lanes(b));
        }
    }
};

}  // namespace
}  // namespace rnnfast
