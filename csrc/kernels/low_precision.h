// Products of float32 passes whose operands are in a format of few bits: core/format.h.
#pragma once

#include "core/format.h"
#include "kernels/gemm.h"

namespace rnnfast {
namespace {

// Only passes of float32 have formats.
template <class T>
constexpr bool kHasFormats = false;
template <>
constexpr bool kHasFormats<float> = true;

// The layout of a matrix (K, columns) in a format: the words of a column, the columns, the offsets
// of units and starts, and the size, in elements of 4 bytes.
struct LowLayout {
    ptrdiff_t words, columns, units, starts, size;

    LowLayout(const Format& format, ptrdiff_t ks, ptrdiff_t of_columns)
        : words((ks + format.of_word - 1) / format.of_word),
          columns(of_columns),
          units(words * columns),
          starts(units + (format.has_units ? columns : 0)),
          size(starts + (format.has_units ? columns : 0)) {}
};

// The number of elements of a matrix in a format or, if there is none, in T.
inline ptrdiff_t packed_matrix(const Format* format, ptrdiff_t ks, ptrdiff_t columns) {
    return format ? LowLayout(*format, ks, columns).size : ks * columns;
}

// The right operand of a product: some columns of a matrix in a format.
struct LowRight {
    const float* packed;
    LowLayout at;
    ptrdiff_t begin, end;    // in vectors, as in Right
    bool downwards = false;  // as in Right

    LowPanel panel(const Format& format, ptrdiff_t column, int width, int panels) const {
        constexpr ptrdiff_t L = kLanes<float>;
        const float* const words = packed + column * at.words * L;
        const float* const units = packed + at.units + column * L;
        const float* const starts = packed + at.starts + column * L;
        return {width,
                panels,
                at.words,
                reinterpret_cast<const unsigned char*>(words),
                format.has_units ? units : nullptr,
                format.has_units ? reinterpret_cast<const uint32_t*>(starts) : nullptr};
    }
};

// The memory in which the left operand of a product is encoded.
struct LowRoom {
    float* words;
    float* units;
    Prepared* prepared;

    // The distance between rows of k elements, in words.
    static ptrdiff_t ld(const Format& format, ptrdiff_t k) {
        const ptrdiff_t words = vectors<float>(k) * kLanes<float> / format.of_word;
        return words % 256 == 0 ? words + 16 : words;  // as `spread` does
    }
};

// The rows that sums start from, `ld` apart; null: they do not lie in memory.
struct LowStart {
    const float* base = nullptr;
    ptrdiff_t ld = 0;
};
// A row of zeros as wide as two panels.
alignas(kVectorBytes) constexpr float kLowZeros[2 * panel_width(1) * kLanes<float>] = {};

// Returns where an epilogue's sums start from, if they lie in memory in the order that a product
// needs.
template <class Epilogue>
RNNFAST_INLINE auto starts_at(const Epilogue& epilogue, ptrdiff_t first, ptrdiff_t column, int)
    -> decltype(epilogue.starts_at(first, column)) {
    return epilogue.starts_at(first, column);
}
template <class Epilogue>
RNNFAST_INLINE LowStart starts_at(const Epilogue&, ptrdiff_t, ptrdiff_t, long) {
    return {};
}

// Calls epilogue.finish_rows for n rows of sums (n, W vectors), or epilogue.finish row by row if it
// has no such function.
template <int W, class Epilogue>
RNNFAST_INLINE auto finish_rows(const Epilogue& epilogue, ptrdiff_t first, ptrdiff_t n,
                                ptrdiff_t column, const float* sums, int)
    -> decltype(epilogue.template finish_rows<W>(first, n, column, sums)) {
    epilogue.template finish_rows<W>(first, n, column, sums);
}
template <int W, class Epilogue>
RNNFAST_INLINE void finish_rows(const Epilogue& epilogue, ptrdiff_t first, ptrdiff_t n,
                                ptrdiff_t column, const float* sums, long) {
    for (ptrdiff_t r = 0; r < n; ++r) {
        Floats acc[1][W];
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) acc[0][v] = load(sums + (r * W + v) * kLanes<float>);
        epilogue.finish(first + r, column, acc);
    }
}

// Computes some rows of a product with panels that have W vectors together. The sums go through L1.
template <int W, class Epilogue>
RNNFAST_OUTLINE void low_column(const Format& format, const Shard& rows, ptrdiff_t column,
                                const LowRows& a, const LowPanel& b, const Epilogue& epilogue) {
    constexpr ptrdiff_t L = kLanes<float>;
    constexpr ptrdiff_t kMost = W > panel_width(1) ? 1 : kMostLowRows;  // two panels: one row
    alignas(kVectorBytes) float sums[kMost * W * L];
    for (ptrdiff_t first = rows.begin; first < rows.end; first += format.rows) {
        const ptrdiff_t n = smaller(format.rows, rows.end - first);
        LowStart from = starts_at(epilogue, first, column, 0);
        if (!from.base) {
            for (ptrdiff_t r = 0; r < n; ++r) {
                Floats acc[1][W];
                epilogue.start(first + r, column, acc);
#pragma GCC unroll 8
                for (int v = 0; v < W; ++v) store(sums + (r * W + v) * L, acc[0][v]);
            }
            from = {sums, W * L};
        }
        format.multiply(n, a.from(first), b, {from.base, from.ld, sums, W * L});
        finish_rows<W>(epilogue, first, n, column, sums, 0);
    }
}

// For plain products, format.multiply writes the sums where they belong.
template <int W>
void low_column(const Format& format, const Shard& rows, ptrdiff_t column, const LowRows& a,
                const LowPanel& b, const StoreBiased<float>& epilogue) {
    constexpr ptrdiff_t L = kLanes<float>;
    float* const to = epilogue.c + rows.begin * epilogue.ld + column * L;
    format.multiply(rows.count(), a.from(rows.begin), b,
                    {epilogue.bias + column * L, 0, to, epilogue.ld});
}
template <int W, bool kAdd>
void low_column(const Format& format, const Shard& rows, ptrdiff_t column, const LowRows& a,
                const LowPanel& b, const StoreRows<float, kAdd>& epilogue) {
    float* const to = epilogue.at(rows.begin, column);
    format.multiply(rows.count(), a.from(rows.begin), b,
                    {kAdd ? to : kLowZeros, kAdd ? epilogue.ld : 0, to, epilogue.ld});
}

// Encodes the rows of a left operand in a format.
inline LowRows encode_rows(const Format& format, ptrdiff_t rows, const Operand<float>& a,
                           const LowRoom& room) {
    const ptrdiff_t ld = LowRoom::ld(format, a.k()) * ptrdiff_t(sizeof(float));
    const LowRows to{reinterpret_cast<unsigned char*>(room.words), ld, room.units, room.prepared};
    for (ptrdiff_t r = 0; r < rows; ++r)
        to.units[r] = format.encode({a.base + r * a.ld, a.run, a.runs, a.stride}, to.base + r * ld);
    return to;
}

// The same as `product`, in a format. Some formats prepare for a number of rows. For these, rows
// that are left over, fewer than the format takes at a time, come after all panels of the others.
template <int kWidth, int kGroup, class Epilogue>
void low_product(const Format& format, ptrdiff_t rows, const LowRows& a, const LowRight& b,
                 const Epilogue& epilogue) {
    const ptrdiff_t bytes = (b.end - b.begin) * b.at.words * kVectorBytes;
    const int at_once = rows == 1 ? panels_of_row<kWidth>(bytes, b.at.words, format.waits) : 1;
    ptrdiff_t end = rows;
    if (format.leave && rows > format.rows) end -= rows % format.rows;
    for (ptrdiff_t begin = 0; begin < rows; begin = end, end = rows)
        cut_columns<kWidth, kGroup, kPanelsOfRow>(
            b, at_once, [&](ptrdiff_t column, auto w, auto panels) {
                constexpr int W = decltype(w)::value, P = decltype(panels)::value;
                low_column<W * P>(format, {begin, end}, column, a, b.panel(format, column, W, P),
                                  epilogue);
            });
}

}  // namespace
}  // namespace rnnfast
