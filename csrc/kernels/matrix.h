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

// L rows of L elements, `stride` apart.
template <class T>
struct Square {
    const T* base;
    ptrdiff_t stride;
};

template <class T>
RNNFAST_OUTLINE void copy_square(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left, T* to) {
    for (ptrdiff_t l = 0; l < kLanes<T>; ++l)
        store(to + l * kLanes<T>,
              l < lanes ? load_edge(from.base + l * from.stride, left) : zero<T>());
}

// A square that has but `lanes` rows, of which `left` elements remain: where either is less than L, a
// copy, with zeros for the rest.
template <class T>
RNNFAST_INLINE Square<T> whole(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left, T* copy) {
    if (lanes >= kLanes<T> && left >= kLanes<T>) return from;
    copy_square(from, lanes, left, copy);
    return {copy, kLanes<T>};
}

// The transpose of such a square: element i of row l becomes lane l of columns[i].
template <class T>
RNNFAST_INLINE void load_columns(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left,
                                 Vec<T> (&columns)[kLanes<T>]) {
    constexpr ptrdiff_t L = kLanes<T>;
    alignas(kVectorBytes) T copy[L * L];
    const Square<T> square = whole(from, lanes, left, copy);
    load_transposed(square.base, square.stride, columns);
}

// acc[m] += a[m*ld] * right.
template <int M, class T>
RNNFAST_INLINE void multiply_vector(const T* a, ptrdiff_t ld, Vec<T> right, Vec<T> (&acc)[M]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = fma(broadcast(a[m * ld]), right, acc[m]);
}

// sums (M, width vectors) += a (M, K) times the columns of b from vector `column` on. One vector after
// the other: its rows follow on one another in memory, which is then read in order, and one row of a
// takes the 64 cycles of its chain for what a core reads from L3 in about as many.
template <int M, class T>
RNNFAST_OUTLINE void multiply_columns(const T* a, ptrdiff_t ld, const Matrix<T>& b,
                                      ptrdiff_t column, int width, T* sums) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (int v = 0; v < width; ++v) {
        const ptrdiff_t block = (column + v) / b.gates;
        const T* const rows = b.rows_of(int((column + v) % b.gates), block);
        const ptrdiff_t ks = b.ks, lanes = b.lanes(block);
        Vec<T> acc[M], columns[L];
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[m] = load(sums + (m * width + v) * L);
        ptrdiff_t k = 0;
        for (; k + L <= ks; k += L) {
            load_columns<T>({rows + k, ks}, lanes, L, columns);
#pragma GCC unroll 16
            for (ptrdiff_t i = 0; i < L; ++i) multiply_vector(a + k + i, ld, columns[i], acc);
        }
        if (k < ks) {
            load_columns<T>({rows + k, ks}, lanes, ks - k, columns);
            alignas(kVectorBytes) T right[L * L];
#pragma GCC unroll 16
            for (ptrdiff_t i = 0; i < L; ++i) store(right + i * L, columns[i]);
            for (ptrdiff_t i = 0; k + i < ks; ++i)
                multiply_vector(a + k + i, ld, load(right + i * L), acc);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) store(sums + (m * width + v) * L, acc[m]);
    }
}

// sums (M, `count` vectors) += a times the rows of b, columns from vector `column` on. Each run of a,
// `stride` from the next, is a block of a gate; for the rows that it lacks there are zeros, as in
// panels, which may still change the sign of a zero.
template <int M, class T>
RNNFAST_OUTLINE void multiply_rows(const T* a, ptrdiff_t ld, ptrdiff_t stride, const Matrix<T>& b,
                                   ptrdiff_t column, ptrdiff_t count, T* sums) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (int gate = 0; gate < b.gates; ++gate)
        for (ptrdiff_t block = 0; block < b.blocks(); ++block, a += stride) {
            const T* const rows = b.rows_of(gate, block) + column * L;
            const ptrdiff_t ks = b.ks, lanes = b.lanes(block);
            for (ptrdiff_t v = 0; v < count; ++v) {
                alignas(kVectorBytes) T copy[L * L];
                const Square<T> square =
                    whole<T>({rows + v * L, ks}, lanes, ks - (column + v) * L, copy);
                Vec<T> acc[M];
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) acc[m] = load(sums + (m * count + v) * L);
#pragma GCC unroll 16
                for (ptrdiff_t l = 0; l < L; ++l)
                    multiply_vector(a + l, ld, load(square.base + l * square.stride), acc);
#pragma GCC unroll 8
                for (int m = 0; m < M; ++m) store(sums + (m * count + v) * L, acc[m]);
            }
        }
}

}  // namespace
}  // namespace rnnfast
