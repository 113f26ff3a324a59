// Weights where the caller has them, in torch's layout, and sums with them. A tile that reads a panel
// is fed faster; but a call that must not trust what it packed before, and reads the weights once, has
// to read them here. Sums run in the order in which panels give them, to the same bits.
#pragma once

#include "simd/vec.h"

// Never inlined: its tiles would be copied into every caller.
#define RNNFAST_OUTLINE __attribute__((noinline))

namespace rnnfast {
namespace {

template <class T>
constexpr ptrdiff_t smaller(T a, T b) {
    return a < b ? a : b;
}

// The rows of a product's gates in W (G*H, K), R (G*H, K) or the projection (P, K): one gate of P
// units. As the columns of a panel they are [block][gate][lane]; as its rows [gate][block][lane].
template <class T>
struct Matrix {
    const T* base;
    ptrdiff_t ks;
    ptrdiff_t units;  // rows of a gate
    int gates;
    int (*gate_of)(int);  // where each of them is among all of the matrix

    ptrdiff_t blocks() const { return vectors<T>(units); }
    // The units that block b has, of V.
    ptrdiff_t lanes(ptrdiff_t b) const { return smaller(kLanes<T>, units - b * kLanes<T>); }
    const T* rows_of(int gate, ptrdiff_t b) const {
        return base + (gate_of(gate) * units + b * kLanes<T>)*ks;
    }
};

// One square of a panel, L of the k by the L units of `lanes` rows, ks - k of which are left.
template <class T>
RNNFAST_INLINE void load_square(const T* from, ptrdiff_t ks, ptrdiff_t lanes, ptrdiff_t left,
                                Vec<T> (&square)[kLanes<T>]) {
    constexpr ptrdiff_t L = kLanes<T>;
    if (lanes == L && left >= L) return load_transposed(from, ks, square);
#pragma GCC unroll 16
    for (ptrdiff_t l = 0; l < L; ++l)
        square[l] = l < lanes ? load_edge(from + l * ks, left) : zero<T>();
    transpose<T>(square);
}

// sums[m] += sum over k of a[m*ld + k] * b[unit][k], for the M rows of a tile and one of its vectors.
// `sums` has `stride` elements a row.
template <int M, class T>
RNNFAST_INLINE void multiply_square(ptrdiff_t n, const T* a, ptrdiff_t ld,
                                    const Vec<T> (&square)[kLanes<T>], T* sums, ptrdiff_t stride) {
    Vec<T> acc[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = load(sums + m * stride);
#pragma GCC unroll 16
    for (ptrdiff_t i = 0; i < kLanes<T>; ++i)
        if (i < n)
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) acc[m] = fma(broadcast(a[m * ld + i]), square[i], acc[m]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) store(sums + m * stride, acc[m]);
}

// k of a square's rows that are read before the next vector's: whole cache lines.
constexpr ptrdiff_t kStripBytes = 64;

// sums (M, width vectors) += a (M, ks) times the columns of b from vector `column` on.
template <int M, class T>
RNNFAST_OUTLINE void multiply_columns(const T* a, ptrdiff_t ld, const Matrix<T>& b,
                                      ptrdiff_t column, int width, T* sums) {
    constexpr ptrdiff_t L = kLanes<T>;
    constexpr auto strip = ptrdiff_t(kStripBytes / sizeof(T));
    for (ptrdiff_t first = 0; first < b.ks; first += strip)
        for (int v = 0; v < width; ++v) {
            const ptrdiff_t block = (column + v) / b.gates;
            const T* from = b.rows_of(int((column + v) % b.gates), block);
            const ptrdiff_t lanes = b.lanes(block);
            for (ptrdiff_t k = first; k < smaller(b.ks, first + strip); k += L) {
                const ptrdiff_t left = b.ks - k;
                Vec<T> square[L];
                load_square(from + k, b.ks, lanes, left, square);
                T* const to = sums + v * L;
                if (left >= L)
                    multiply_square<M>(L, a + k, ld, square, to, width * L);
                else
                    multiply_square<M>(left, a + k, ld, square, to, width * L);
            }
        }
}

// sums (M, `count` vectors) += a times the rows of b, columns from vector `column` on. Each run of a
// is a block of a gate; of the rows that it does not have, zeros, as panels have them.
template <int M, class T>
RNNFAST_OUTLINE void multiply_rows(const T* a, ptrdiff_t ld, ptrdiff_t stride, const Matrix<T>& b,
                                   ptrdiff_t column, ptrdiff_t count, T* sums) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (int gate = 0; gate < b.gates; ++gate)
        for (ptrdiff_t block = 0; block < b.blocks(); ++block, a += stride) {
            const T* const from = b.rows_of(gate, block) + column * L;
            const ptrdiff_t lanes = b.lanes(block);
            for (ptrdiff_t v = 0; v < count; ++v) {
                Vec<T> square[L];
                const ptrdiff_t left = b.ks - (column + v) * L;
                if (lanes == L && left >= L) {
#pragma GCC unroll 16
                    for (ptrdiff_t l = 0; l < L; ++l) square[l] = load(from + l * b.ks + v * L);
                } else {
#pragma GCC unroll 16
                    for (ptrdiff_t l = 0; l < L; ++l)
                        square[l] =
                            l < lanes ? load_edge(from + l * b.ks + v * L, left) : zero<T>();
                }
                multiply_square<M>(L, a, ld, square, sums + v * L, count * L);
            }
        }
}

}  // namespace
}  // namespace rnnfast
