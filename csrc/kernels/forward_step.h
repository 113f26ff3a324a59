// Epilogues of the forward pass's products: what is done with a tile's sums.
#pragma once

#include "kernels/pack.h"
#include "simd/pair.h"

namespace rnnfast {
namespace {

// Sums over h start from zeros, and the pre-activation W x + b is added at the end. If the sums
// started from it, it would be larger than most terms, and each term would be rounded to its last
// place: layers of 1024 units were twice as far from float64's results. The addition takes time
// that shows beside the short equations of a cell with one gate. So in such a cell only sums of
// more terms than this start from zeros.
constexpr ptrdiff_t kLongSum = 256;

// What every tile of a step needs. The product has `kGatesHere` gates, the first of which has the
// slot `kFirst`.
template <class Pass, int kGatesHere, int kFirst>
struct ForwardStep {
    using Cell = typename Pass::CellType;
    using T = typename Pass::Element;
    using V = Vec<T>;
    static constexpr ptrdiff_t L = kLanes<T>;

    Pass* pass;
    const T* pre;  // the step's first row
    T* saved;      // the step's first row; null: nothing is saved
    T* y;          // the step's first row in the caller's order
    bool is_long;  // whether the sums have more than kLongSum terms

    RNNFAST_INLINE bool from_zeros() const { return Cell::kGates > 1 || is_long; }

    template <int M, int W>
    RNNFAST_INLINE void start(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        if (from_zeros()) return clear<T>(acc);
        const ptrdiff_t block = column / kGatesHere;
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < W; ++v)
                acc[m][v] = before<V>(first + m, block + v / kGatesHere, v % kGatesHere);
    }

    // The value to which a gate's sum over h is added, or from which it starts: a pre-activation,
    // or the bias if only R feeds the gate's slot.
    template <class Values>
    RNNFAST_INLINE Values before(ptrdiff_t p, ptrdiff_t b, int gate) const {
        const int slot = kFirst + gate;
        if (slot < Cell::kGates) return load_rows<Values>(pre_at(p, b) + slot * L, pass->pre_ld);
        return load(pass->bias_h + (b * kApart<Cell> + slot - Cell::kGates) * L);
    }

    // Where the sums start from, in memory. Sums that do not start from zeros are those of a cell
    // with one gate, whose pre-activations lie side by side.
    RNNFAST_INLINE LowStart starts_at(ptrdiff_t first, ptrdiff_t column) const {
        if (from_zeros()) return {kLowZeros};
        return {pre + first * pass->pre_ld + column * L, pass->pre_ld};
    }

    template <int M, int W>
    RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        constexpr int kFew = 4;  // with so few blocks of units, a single row stays in registers
        if constexpr (M == 1 && W / kGatesHere <= kFew) {
#pragma GCC unroll 4
            for (int u = 0; u < W / kGatesHere; ++u)
                units<V>(first, column / kGatesHere + u, &acc[0][u * kGatesHere]);
            return;
        }
        // The sums go through L1 to one function for all tiles: with the equations in each tile the
        // code is six times larger.
        const TileSums<T, M, W> tile(acc);
        finish_rows<W>(first, M, column, tile.sums);
    }

    // Applies the equations to n rows, given their sums (n, W vectors).
    template <int W>
    RNNFAST_OUTLINE void finish_rows(ptrdiff_t first, ptrdiff_t n, ptrdiff_t column,
                                     const T* sums) const {
        const ForwardStep own = *this;  // a copy, which no store can change
        ptrdiff_t r = 0;
        if constexpr (kRegisters == 32)  // 16 do not hold what two rows need
            for (; r + 2 <= n; r += 2, sums += 2 * W * L)
                own.template units_from<Pair<V>, W>(first + r, column, sums);
        for (; r < n; ++r, sums += W * L) own.template units_from<V, W>(first + r, column, sums);
    }

    // Applies the equations to one row, or to a pair of rows.
    template <class Values, int W>
    RNNFAST_INLINE void units_from(ptrdiff_t p, ptrdiff_t column, const T* sums) const {
        for (int u = 0; u < W / kGatesHere; ++u, sums += kGatesHere * L) {
            Values a[kGatesHere];
            for (int g = 0; g < kGatesHere; ++g) a[g] = load_rows<Values>(sums + g * L, W * L);
            units(p, column / kGatesHere + u, a);
        }
    }

    // Does the same for one block of units, given the sums of this product's gates.
    template <class Values>
    RNNFAST_INLINE void units(ptrdiff_t p, ptrdiff_t b, const Values* sums) const {
        Values a[Cell::kSlots], kept[Cell::kSaved] = {}, next{}, c{};
        if constexpr (kApart<Cell> > 0)
            for (int slot = 0; slot < kApart<Cell>; ++slot)
                a[slot] = load_rows<Values>(pre_at(p, b) + slot * L, pass->pre_ld);
#pragma GCC unroll 8
        for (int g = 0; g < kGatesHere; ++g)
            a[kFirst + g] = from_zeros() ? sums[g] + before<Values>(p, b, g) : sums[g];
        Values h_prev{};
        if constexpr (Cell::kDirect)
            h_prev = load_rows<Values>(pass->h + p * pass->h_ld + b * L, pass->h_ld);
        T* keep = saved ? saved + p * pass->saved_ld + b * Cell::kSaved * L : nullptr;
        if constexpr (Cell::kTwoProducts && kFirst == 0) {
            Values rh;
            Cell::forward_reset(a, h_prev, kept, rh);
            store_rows<T>(pass->reset_h + p * pass->unit_ld + b * L, pass->unit_ld, rh);
        } else {
            if constexpr (Cell::kTwoProducts) {
                for (int s = 0; s < Cell::kSaved; ++s)
                    kept[s] = load_rows<Values>(keep + s * L, pass->saved_ld);
                Cell::forward(a[kFirst], h_prev, kept, next);
            } else if constexpr (Cell::kHasC) {
                T* const c_at = pass->c + p * pass->unit_ld + b * L;
                Cell::forward(a, h_prev, load_rows<Values>(c_at, pass->unit_ld), kept, next, c);
                store_rows<T>(c_at, pass->unit_ld, c);
            } else {
                Cell::forward(a, h_prev, c, kept, next, c);
            }
            put_h(p, b, next);
        }
        if (keep)
#pragma GCC unroll 8
            for (int s = 0; s < Cell::kSaved; ++s)
                store_rows<T>(keep + s * L, pass->saved_ld, kept[s]);
    }

    RNNFAST_INLINE void put_h(ptrdiff_t p, ptrdiff_t b, V next) const {
        pass->put_h(p, b, next, y);
    }
    RNNFAST_INLINE void put_h(ptrdiff_t p, ptrdiff_t b, Pair<V> next) const {
        pass->put_h(p, b, next.first, y);
        pass->put_h(p + 1, b, next.second, y);
    }

    RNNFAST_INLINE const T* pre_at(ptrdiff_t p, ptrdiff_t b) const {
        return pre + p * pass->pre_ld + b * Cell::kGates * L;
    }
};

// The epilogue of the projection.
template <class Pass>
struct Projected {
    using T = typename Pass::Element;

    Pass* pass;
    T* y;

    template <int M, int W>
    RNNFAST_INLINE void start(ptrdiff_t, ptrdiff_t, Vec<T> (&acc)[M][W]) const {
        clear<T>(acc);
    }
    template <int M, int W>
    RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        const TileSums<T, M, W> tile(acc);
        finish_rows<W>(first, M, column, tile.sums);
    }

    // Stores the sums of n rows for the next step and for the caller.
    template <int W>
    RNNFAST_OUTLINE void finish_rows(ptrdiff_t first, ptrdiff_t n, ptrdiff_t column,
                                     const T* sums) const {
        constexpr ptrdiff_t L = kLanes<T>;
        for (ptrdiff_t p = first; p < first + n; ++p)
            for (ptrdiff_t from = column * L; from < (column + W) * L; from += L, sums += L) {
                const Vec<T> sum = load(sums);
                store(pass->h_next + p * pass->h_ld + from, sum);
                store_edge(pass->y_row(p, y) + from, sum, pass->shape.width - from);
            }
    }
};

}  // namespace
}  // namespace rnnfast
