// The functions of a format (core/format.h), made from a struct like `Int8`; and words as vectors.
#pragma once

#include "core/format.h"
#include "kernels/columns.h"
#include "kernels/probe.h"

namespace rnnfast {
namespace {

typedef uint32_t Words __attribute__((vector_size(RNNFAST_VECTOR_BYTES)));

RNNFAST_INLINE Words load_words(const unsigned char* p) {
    Words words;
    __builtin_memcpy(&words, p, sizeof words);
    return words;
}
RNNFAST_INLINE Words broadcast_word(const unsigned char* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word - Words{};
}

constexpr ptrdiff_t kWordBytes = 4;

// Format::pack_columns. Of each row it encodes as many k at a time as make a square of words, and
// transposes that, so that it writes memory in order. To write a word at a time, each to a cache
// line of its own, took 2 to 4 times as long.
template <class F>
void pack_columns(const float* rows, ptrdiff_t lanes, ptrdiff_t n, ptrdiff_t step, float* to,
                  float* units, uint32_t* starts, float* of_zeros) {
    constexpr ptrdiff_t L = kLanes<float>, kSide = L * F::kOfWord;
    alignas(kVectorBytes) static constexpr float kZeros[kSide] = {};
    alignas(kVectorBytes) unsigned char square[L * kVectorBytes] = {};
    alignas(kVectorBytes) float of_rows[L] = {};
    for (ptrdiff_t l = 0; l < lanes; ++l) of_rows[l] = F::unit(rows + l * n, n);
    for (ptrdiff_t l = lanes; l < L; ++l) F::encode(kZeros, kSide, 0, square + l * kVectorBytes);
    Words sums{};
    Floats times_0 = F::kHasUnits ? load(of_rows) * 0 : -zero<float>();
    for (ptrdiff_t k = 0; k < n; k += kSide) {
        const ptrdiff_t count = smaller(kSide, n - k),
                        words = (count + F::kOfWord - 1) / F::kOfWord;
        for (ptrdiff_t l = 0; l < lanes; ++l)
            F::encode(rows + l * n + k, count, of_rows[l], square + l * kVectorBytes);
        Floats columns[L];
        load_transposed(reinterpret_cast<const float*>(square), L, columns);
#pragma GCC unroll 16
        for (ptrdiff_t i = 0; i < L; ++i)
            if (i < words) {
                const Words word = F::right((Words)columns[i]);
                sums += F::start(word);
                times_0 = F::times_0(word, times_0);
                store(to, (Floats)word);
                to += step;
            }
    }
    if (F::kHasUnits) {
        store(units, load(of_rows));
        __builtin_memcpy(starts, &sums, sizeof sums);
    }
    if (of_zeros) store(of_zeros, times_0);
}

// Format::encode. Rows in a format with units have one run.
template <class F>
float encode(const LowSource& row, unsigned char* to) {
    const float unit = F::unit(row.base, row.run);
    for (ptrdiff_t r = 0; r < row.runs; ++r)
        F::encode(row.base + r * row.stride, row.run, unit,
                  to + r * row.run * kWordBytes / F::kOfWord);
    return unit;
}

template <int M, int W>
RNNFAST_INLINE void load_sums(const LowSums& sums, ptrdiff_t first, Floats (&acc)[M][W]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v)
            acc[m][v] = load(sums.from + (first + m) * sums.from_ld + v * kLanes<float>);
}

template <int M, int W>
RNNFAST_INLINE void store_sums(const LowSums& sums, ptrdiff_t first, const Floats (&acc)[M][W]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v)
            store(sums.to + (first + m) * sums.to_ld + v * kLanes<float>, acc[m][v]);
}

// The words that a product has reached in each of P panels of W vectors.
template <int W, int P>
struct PanelWords {
    const unsigned char* base;
    ptrdiff_t apart;  // the distance between panels in bytes

    RNNFAST_INLINE explicit PanelWords(const LowPanel& b)
        : base(b.base), apart(b.words * W * kVectorBytes) {}

    RNNFAST_INLINE const unsigned char* at(int v) const {
        return base + v / W * apart + v % W * kVectorBytes;
    }
    RNNFAST_INLINE void next() { base += W * kVectorBytes; }
};

template <int W, class F>
RNNFAST_OUTLINE void multiply_panel(ptrdiff_t rows, const LowRows& a, const LowPanel& b,
                                    const LowSums& sums) {
    cut_rows<tile_rows(4)>(rows, [&](ptrdiff_t first, auto m) {
        F::template multiply<decltype(m)::value, W, 1>(a, first, b, sums);
    });
}

// Multiplies one row by two panels.
template <int W, class F>
RNNFAST_OUTLINE void multiply_two_panels(const LowRows& a, const LowPanel& b, const LowSums& sums) {
    F::template multiply<1, W, kPanelsOfRow>(a, 0, b, sums);
}

template <class F>
void multiply(ptrdiff_t rows, const LowRows& a, const LowPanel& b, const LowSums& sums) {
    if (b.panels == kPanelsOfRow)
        return b.width == 4 ? multiply_two_panels<4, F>(a, b, sums)
                            : multiply_two_panels<3, F>(a, b, sums);
    if (b.width == 4) return multiply_panel<4, F>(rows, a, b, sums);
    if (b.width == 3) return multiply_panel<3, F>(rows, a, b, sums);
    if (b.width == 2) return multiply_panel<2, F>(rows, a, b, sums);
    multiply_panel<1, F>(rows, a, b, sums);
}

template <class F>
void outer(ptrdiff_t lanes, ptrdiff_t rows, const float* a, const float* b, ptrdiff_t b_stride,
           float* c, ptrdiff_t ldc, ptrdiff_t n, bool assign, Prepared*) {
    const Columns<float> right{const_cast<float*>(b), b_stride};  // only read
    if (ldc == n && outer_few<F>(lanes, rows, a, right, n, c, assign)) return;
    for (ptrdiff_t v = 0; v < vectors<float>(n);)
        v += outer_panel<F>(lanes, rows, a, right, v, c, ldc, n, assign);
}

template <class F>
ptrdiff_t probe(ptrdiff_t rounds, uint32_t* sums) {
    Words chain[kProbeChains], words = Words{} + 0x01010101;
    for (int i = 0; i < kProbeChains; ++i) chain[i] = Words{} + uint32_t(i);
    for (ptrdiff_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < kProbeChains; ++i) chain[i] = F::add_words(words, words, chain[i]);
    }
    for (int i = 0; i < kProbeChains; ++i) *sums += chain[i][0];
    return rounds * kProbeChains * kLanes<float> * F::kOfWord * 2;
}

template <class F>
constexpr Format format_of() {
    static_assert(4 * tile_rows(4) <= kMostLowRows, "more rows than their sums have room for");
    Format format{F::kOfWord, F::kHasUnits,    F::kSpeed, F::kSpeed,   4 * tile_rows(4),
                  F::kWaits,  pack_columns<F>, encode<F>, multiply<F>, probe<F>};
    if constexpr (F::kTrains)
        format.trains = true, format.join_rows = F::join_rows, format.outer = outer<F>;
    return format;
}

}  // namespace
}  // namespace rnnfast
