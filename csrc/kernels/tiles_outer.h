// The products of backward that sum over rows, in tile registers: kernels/tiles.h.
#pragma once

#include "kernels/tiles.h"

namespace rnnfast {
namespace {

// This many words of the left operand are transposed at a time, into L1.
constexpr ptrdiff_t kTurnedWords = 256;

// Adds the products of `count` words of the operands to W vectors of C, in `lanes` of its rows; if
// `zero`, assigns them. `last`: the number of elements in the last vector of C.
template <class F, int W>
RNNFAST_OUTLINE void outer_tiles(ptrdiff_t lanes, const unsigned char* turned, ptrdiff_t count,
                                 const float* b, ptrdiff_t b_stride, float* c, ptrdiff_t ldc,
                                 ptrdiff_t last, bool zero) {
    constexpr ptrdiff_t L = kLanes<float>, kTurned = kTurnedWords * kWordBytes;
    const bool edge = last < L;
    alignas(64) float sums[kTileRows * L];  // those of the last vector, if it is not whole
    const auto place = [&](ptrdiff_t vector) {
        return edge && vector == W - 1 ? sums : c + vector * L;
    };
    const auto place_ld = [&](ptrdiff_t vector) {
        return (edge && vector == W - 1 ? L : ldc) * kWordBytes;
    };
    for (ptrdiff_t m = 0; edge && !zero && m < lanes; ++m)
        store(sums + m * L, load_edge(c + m * ldc + (W - 1) * L, last));
    each_sum<1, W>([&](auto sum, ptrdiff_t, ptrdiff_t vector) {
        if (zero)
            clear_tile<decltype(sum)::value>();
        else
            load_tile<decltype(sum)::value>(place(vector), place_ld(vector));
    });
    const ptrdiff_t whole = count / kTileWords * kTileWords, vector_step = b_stride * kWordBytes;
    for (ptrdiff_t i = 0; i < whole; i += kTileWords)
        add_words<F, 1, W>({turned + i * kWordBytes, kTurned},
                           {reinterpret_cast<const unsigned char*>(b + i * L), kTileBytes},
                           vector_step);
    if (whole < count) {  // past the end the left operand has zeros, and so must the right one
        alignas(64) float rest[W * kTileWords * L];
        for (ptrdiff_t v = 0; v < W; ++v)
            for (ptrdiff_t i = 0; i < kTileWords; ++i)
                store(rest + (v * kTileWords + i) * L,
                      whole + i < count ? load(b + v * b_stride + (whole + i) * L) : Floats{});
        add_words<F, 1, W>({turned + whole * kWordBytes, kTurned},
                           {reinterpret_cast<const unsigned char*>(rest), kTileBytes},
                           kTileWords * kTileBytes);
    }
    each_sum<1, W>([&](auto sum, ptrdiff_t, ptrdiff_t vector) {
        store_tile<decltype(sum)::value>(place(vector), place_ld(vector));
    });
    for (ptrdiff_t m = 0; edge && m < lanes; ++m)
        store_edge(c + m * ldc + (W - 1) * L, load(sums + m * L), last);
}

// Format::outer.
template <class F>
void outer_by_tiles(ptrdiff_t lanes, ptrdiff_t words, const float* a, const float* b,
                    ptrdiff_t b_stride, float* c, ptrdiff_t ldc, ptrdiff_t n, bool assign,
                    Prepared* prepared) {
    constexpr ptrdiff_t L = kLanes<float>;
    const Columns<float> columns_of_b{const_cast<float*>(b), b_stride};  // only read
    if (ldc == n && outer_few<F>(lanes, words, a, columns_of_b, n, c, assign)) return;
    configure(lanes, prepared);
    alignas(64) unsigned char turned[kTileRows * kTurnedWords * kWordBytes];  // [lane][word]
    ptrdiff_t first = 0;
    do {  // also without words, whose sums are zeros
        const ptrdiff_t count = smaller(kTurnedWords, words - first);
        for (ptrdiff_t i = 0; i < count; i += kTileWords) {
            alignas(64) float last[L * L];
            const float* from = a + (first + i) * L;
            if (i + kTileWords > count) {
                for (ptrdiff_t k = 0; k < kTileWords; ++k)
                    store(last + k * L, i + k < count ? load(from + k * L) : Floats{});
                from = last;
            }
            Floats columns[L];
            load_transposed(from, L, columns);
#pragma GCC unroll 16
            for (ptrdiff_t l = 0; l < L; ++l)
                store(reinterpret_cast<float*>(turned) + l * kTurnedWords + i, columns[l]);
        }
        for (ptrdiff_t v = 0, all = vectors<float>(n); v < all; v += 4)
            count_of<4>(smaller<ptrdiff_t>(4, all - v), [&](auto w) {
                constexpr int W = decltype(w)::value;
                outer_tiles<F, W>(lanes, turned, count, b + v * b_stride + first * L, b_stride,
                                  c + v * L, ldc, smaller(L, n - (v + W - 1) * L),
                                  assign && first == 0);
            });
        first += kTurnedWords;
    } while (first < words);
}

// Makes a format compute its products in tiles.
template <class F>
constexpr void use_tiles(Format& format) {
    format.speed = F::kTileSpeed, format.rows = kBlockRows, format.leave = release_tiles;
    format.multiply = multiply_by_tiles<F>, format.probe = probe_tiles<F>;
    if constexpr (F::kTrains) format.outer = outer_by_tiles<F>;
}

}  // namespace
}  // namespace rnnfast
