// The layouts in memory, and the functions that pack the weights.
//
// Units come in blocks of V (the vector's lanes). A row of gate values, whether pre-activations,
// saved gates or gate gradients, is [block][slot][lane]; a cell says which slots W and R feed. The
// weights of a product, whether or not its results are such rows, are cut into panels of a few
// vectors, [panel][k][vector][lane]: a tile reads a panel from start to end.
#pragma once

#include "core/args.h"
#include "kernels/kernel_table.h"
#include "kernels/low_precision.h"

namespace rnnfast {
namespace {

// The sizes of a layer, and the lengths of its rows.
template <class Cell, class T>
struct Shape {
    ptrdiff_t input, hidden, projection, width;  // I, H, P, W
    ptrdiff_t blocks;                            // of V units
    ptrdiff_t padded;                            // H, rounded up to whole blocks

    explicit Shape(const Sizes& s)
        : input(s.input),
          hidden(s.hidden),
          projection(s.projection),
          width(s.width()),
          blocks(vectors<T>(s.hidden)),
          padded(blocks * kLanes<T>) {}

    // The number of units in block b: V, or fewer in the last block.
    ptrdiff_t lanes(ptrdiff_t b) const { return smaller(kLanes<T>, hidden - b * kLanes<T>); }
    // The lengths of rows: pre-activations from W; gate gradients; what training saves.
    ptrdiff_t pre_row() const { return Cell::kGates * padded; }
    ptrdiff_t gradient_row() const { return Cell::kSlots * padded; }
    ptrdiff_t saved_row() const { return Cell::kSaved * padded; }
    // The length of a row of h in scratch.
    ptrdiff_t h_row() const { return vectors<T>(width) * kLanes<T>; }
};

// The number of slots that only R feeds, which is also that of the slots that only W feeds: W feeds
// the first kGates slots, R the last kGates.
template <class Cell>
constexpr int kApart = Cell::kSlots - Cell::kGates;

// The number of gates in a step's first product: all of them or, with two products, r and z; n is
// then in the second.
template <class Cell>
constexpr int kFirstGates = Cell::kTwoProducts ? Cell::kGates - 1 : Cell::kGates;

template <class Cell, class T>
struct PackedLayout {
    ptrdiff_t bias_x, bias_h, w, r, r_second, projection, r_times_0, size;

    // `format` is that of ForwardArgs.
    PackedLayout(const Shape<Cell, T>& s, const Format* format) {
        ptrdiff_t end = 0;
        const auto take = [&end](ptrdiff_t n) { return end += n, end - n; };
        const auto matrix = [&](ptrdiff_t ks, ptrdiff_t columns) {
            return take(packed_matrix(format, ks, columns));
        };
        bias_x = take(s.pre_row());              // W's slots, plus R's bias if R feeds the slot too
        bias_h = take(kApart<Cell> * s.padded);  // [block][slots that only R feeds][lane]
        w = matrix(s.input, s.pre_row());
        r = matrix(s.width, kFirstGates<Cell> * s.padded);
        r_second = matrix(s.hidden, Cell::kTwoProducts ? s.padded : 0);
        projection = matrix(s.hidden, s.projection ? s.h_row() : 0);
        r_times_0 = take(kFirstGates<Cell> * s.padded);  // `of_zeros` of pack_gates, for r
        size = end;
    }
};

// Where the transposed weights lie, for the backward products, which sum over gates. W is not among
// them: its transpose has memory of its own.
template <class Cell, class T>
struct TransposedLayout {
    ptrdiff_t r, r_second, projection, size;

    // `format` is that of ForwardArgs.
    TransposedLayout(const Shape<Cell, T>& s, const Format* format) {
        ptrdiff_t end = 0;
        const auto matrix = [&](ptrdiff_t ks, ptrdiff_t columns) {
            const ptrdiff_t n = packed_matrix(format, ks, columns);
            return end += n, end - n;
        };
        r = matrix(kFirstGates<Cell> * s.padded, s.h_row());
        r_second = matrix(s.padded, Cell::kTwoProducts ? s.h_row() : 0);
        projection = matrix(s.h_row(), s.projection ? s.padded : 0);
        size = end;
    }
};

// A matrix (K, columns) in panels that are `width` vectors wide; the last one may be narrower.
template <class T>
struct Panels {
    ptrdiff_t width, columns, ks;

    // The index of element (k, column).
    RNNFAST_INLINE ptrdiff_t index(ptrdiff_t k, ptrdiff_t column) const {
        const ptrdiff_t first = panel(column);
        return first * ks + k * step(column) + (column - first);
    }
    // The distance from there to element (k + 1, column).
    RNNFAST_INLINE ptrdiff_t step(ptrdiff_t column) const {
        return smaller(width * kLanes<T>, columns - panel(column));
    }
    // The first column of the panel that contains `column`.
    RNNFAST_INLINE ptrdiff_t panel(ptrdiff_t column) const {
        const ptrdiff_t wide = width * kLanes<T>;
        return column / wide * wide;
    }
};

// The right operands of a cell's products, in the caller's arrays.
template <class Cell, class T>
struct Matrices {
    Matrix<T> w, r, r_second, projection;

    Matrices(const Shape<Cell, T>& s, const Weights<const T>& weights)
        : w{weights.weight_ih, s.input, s.hidden, Cell::kGates,
            [](int g) { return Cell::gate_of_x_slot(g); }},
          r{weights.weight_hh, s.width, s.hidden, kFirstGates<Cell>,
            [](int g) { return Cell::gate_of_h_slot(g + kApart<Cell>); }},
          r_second{weights.weight_hh, s.width, s.hidden, 1,
                   [](int) { return Cell::gate_of_h_slot(Cell::kSlots - 1); }},
          projection{weights.weight_hr, s.hidden, s.projection, 1, [](int) { return 0; }} {}
};

// Writes the biases of the slots that W feeds, with R's added if R feeds the slot too,
// [block][slot][lane] (`bias_x`); and those of the slots that only R feeds, in the same order
// (`bias_h`). Null biases count as zeros.
template <class Cell, class T>
void add_biases(const Shape<Cell, T>& s, const T* bias_ih, const T* bias_hh, T* bias_x, T* bias_h) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (ptrdiff_t b = 0; b < s.blocks; ++b)
        for (int slot = 0; slot < Cell::kSlots; ++slot) {
            const auto of = [&](const T* bias, int gate) {
                return load_edge(bias + gate * s.hidden + b * L, s.lanes(b));
            };
            const bool from_x = slot < Cell::kGates;
            Vec<T> sum = zero<T>();
            if (bias_ih && from_x) sum = of(bias_ih, Cell::gate_of_x_slot(slot));
            if (bias_hh && slot >= kApart<Cell>)
                sum = sum + of(bias_hh, Cell::gate_of_h_slot(slot));
            store(from_x ? bias_x + (b * Cell::kGates + slot) * L
                         : bias_h + (b * kApart<Cell> + slot - Cell::kGates) * L,
                  sum);
        }
}

// Packs a matrix in a format into panels of words, whose columns are [block][gate of this
// product][lane]. For `of_zeros` see pack_gates.
RNNFAST_OUTLINE inline void pack_low(const Format& format, const Matrix<float>& from, float* out,
                                     float* of_zeros) {
    constexpr ptrdiff_t L = kLanes<float>;
    const LowLayout at(format, from.ks, from.blocks() * from.gates * L);
    const Panels<float> panels{panel_width(from.gates), at.columns, at.words};
    for (ptrdiff_t b = 0; b < from.blocks(); ++b)
        for (int g = 0; g < from.gates; ++g) {
            const ptrdiff_t column = (b * from.gates + g) * L;
            format.pack_columns(from.rows_of(g, b), from.lanes(b), from.ks, panels.step(column),
                                out + panels.index(0, column), out + at.units + column,
                                reinterpret_cast<uint32_t*>(out + at.starts) + column,
                                of_zeros ? of_zeros + column : nullptr);
        }
}

// Packs a matrix into such panels, of elements of T or in a format. `of_zeros`, if not null, gets
// the product of a row of zeros with each column: NaN if an element is not finite, -0 if all
// elements are negative, and else 0.
template <class T>
void pack_gates(const Format* format, const Matrix<T>& from, T* out, T* of_zeros = nullptr) {
    constexpr ptrdiff_t L = kLanes<T>;
    if constexpr (kHasFormats<T>)
        if (format) return pack_low(*format, from, out, of_zeros);
    const Panels<T> panels{panel_width(from.gates), from.blocks() * from.gates * L, from.ks};
    for (ptrdiff_t b = 0; b < from.blocks(); ++b)
        for (int g = 0; g < from.gates; ++g) {
            const ptrdiff_t column = (b * from.gates + g) * L, step = panels.step(column);
            const T* const rows = from.rows_of(g, b);
            T* to = out + panels.index(0, column);
            Vec<T> sum = -zero<T>();
            for (ptrdiff_t k = 0; k < from.ks; k += L) {
                Vec<T> square[L];
                load_columns<T>({rows + k, from.ks}, from.lanes(b), from.ks - k, square);
                const ptrdiff_t n = smaller(L, from.ks - k);
#pragma GCC unroll 16
                for (ptrdiff_t i = 0; i < L; ++i)
                    if (i < n) {
                        store(to + (k + i) * step, square[i]);
                        sum = fma(square[i], zero<T>(), sum);
                    }
            }
            if (of_zeros) store(of_zeros + column, sum);
        }
}

// Transposes panels into panels, with K padded to whole vectors. A column [block][gate][lane], with
// `blocks` blocks, becomes row [gate][block][lane]. `rows` and `columns` are those of the transpose
// that are wanted, in vectors; columns must be whole panels, and the first of them goes to `out`.
template <class T>
RNNFAST_OUTLINE void transpose_panels(const Panels<T>& from, const T* source, ptrdiff_t blocks,
                                      int gates, const Shard& rows, const Shard& columns, T* out) {
    constexpr ptrdiff_t L = kLanes<T>;
    const Panels<T> to{panel_width(1), vectors<T>(from.ks) * L, (rows.end - rows.begin) * L};
    const ptrdiff_t skipped = to.index(0, columns.begin * L);
    for (ptrdiff_t r = rows.begin; r < rows.end; ++r) {
        const ptrdiff_t v = r % blocks * gates + r / blocks;
        const ptrdiff_t k = (r - rows.begin) * L, step = from.step(v * L);
        for (ptrdiff_t c = columns.begin; c < columns.end; ++c) {  // squares
            const ptrdiff_t first = c * L;
            Vec<T> square[L];
            load_columns<T>({source + from.index(first, v * L), step}, from.ks - first, L, square);
            T* row = out + (to.index(k, first) - skipped);
#pragma GCC unroll 16
            for (ptrdiff_t l = 0; l < L; ++l) store(row + l * to.step(first), square[l]);
        }
    }
}

template <class Cell, class T>
void pack(const Sizes& sizes, const Format* format, const Weights<const T>& weights, T* out) {
    const Shape<Cell, T> s(sizes);
    const PackedLayout<Cell, T> at(s, format);
    const Matrices<Cell, T> from(s, weights);
    add_biases(s, weights.bias_ih, weights.bias_hh, out + at.bias_x, out + at.bias_h);
    pack_gates(format, from.w, out + at.w);
    pack_gates(format, from.r, out + at.r, out + at.r_times_0);
    if (Cell::kTwoProducts) pack_gates(format, from.r_second, out + at.r_second);
    if (s.projection) pack_gates(format, from.projection, out + at.projection);
}

// Transposes all of a matrix in a format with two k in a word: the transpose's words have two of
// its own k.
inline void transpose_pairs(const Panels<float>& from, const float* source, ptrdiff_t ks,
                            ptrdiff_t taken, int gates, float* out) {
    typedef uint32_t Pairs __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));
    constexpr ptrdiff_t L = kLanes<float>;
    const Panels<float> to{panel_width(1), vectors<float>(ks) * L, taken / 2};
    const ptrdiff_t blocks = taken / gates / L;
    for (ptrdiff_t v = 0; v < taken / L; ++v) {
        const ptrdiff_t k = (v % gates * blocks + v / gates) * L, step = from.step(v * L);
        for (ptrdiff_t first = 0; first < from.ks; first += L) {
            Floats square[L];
            load_columns<float>({source + from.index(first, v * L), step}, from.ks - first, L,
                                square);
            const ptrdiff_t column = 2 * first;
            float* const left = out + to.index(k / 2, column);
            float* const right = out + to.index(k / 2, column + L);
            const bool has_right = column + L < to.columns;
#pragma GCC unroll 8
            for (ptrdiff_t l = 0; l < L; l += 2) {
                const Pairs a = (Pairs)square[l], b = (Pairs)square[l + 1];
                const auto even = (Floats)((a & 0xffff) | b << 16);
                const auto odd = (Floats)(a >> 16 | (b & 0xffff0000));
                store(left + l / 2 * to.step(column), in_turn<float, false>(even, odd));
                if (has_right)
                    store(right + l / 2 * to.step(column + L), in_turn<float, true>(even, odd));
            }
        }
    }
}

template <class Cell, class T>
ptrdiff_t transposed_size(const Sizes& sizes, const Format* format, Transposed which) {
    const Shape<Cell, T> s(sizes);
    if (which == Transposed::of_steps) return TransposedLayout<Cell, T>(s, format).size;
    return packed_matrix(format, s.pre_row(), vectors<T>(s.input) * kLanes<T>);
}

template <class Cell, class T>
void pack_transposed(const Sizes& sizes, const Format* format, const T* packed, Transposed which,
                     T* out) {
    const Shape<Cell, T> s(sizes);
    const PackedLayout<Cell, T> from(s, format);
    const TransposedLayout<Cell, T> to(s, format);
    const auto transpose = [&](ptrdiff_t source, ptrdiff_t ks, ptrdiff_t taken, int group,
                               ptrdiff_t target) {
        Panels<T> panels{panel_width(group), taken, ks};
        if constexpr (kHasFormats<T>)
            if (format) {
                panels.ks = LowLayout(*format, ks, taken).words;
                return transpose_pairs(panels, packed + source, ks, taken, group, out + target);
            }
        transpose_panels(panels, packed + source, taken / kLanes<T> / group, group,
                         {0, taken / kLanes<T>}, {0, vectors<T>(ks)}, out + target);
    };
    const ptrdiff_t first = kFirstGates<Cell> * s.padded;
    if (which == Transposed::of_input)
        return transpose(from.w, s.input, s.pre_row(), Cell::kGates, 0);
    transpose(from.r, s.width, first, kFirstGates<Cell>, to.r);
    if (Cell::kTwoProducts) transpose(from.r_second, s.width, s.padded, 1, to.r_second);
    if (s.projection) transpose(from.projection, s.hidden, s.h_row(), 1, to.projection);
}

}  // namespace
}  // namespace rnnfast
