// Products that read the weights where the caller has them, in torch's layout. A tile gets panels
// faster. But a call that must not trust an earlier pack, and reads the weights only once, is
// better off without a pack. Sums run in the same order as with panels, to the same bits.
#pragma once

#include "simd/vec.h"

// Marks a function that is never inlined: else its tiles would be copied into every caller.
#define RNNFAST_OUTLINE __attribute__((noinline))

namespace rnnfast {
namespace {

template <class T>
constexpr ptrdiff_t smaller(T a, T b) {
    return a < b ? a : b;
}

// A product's right operand: the rows of some gates of W (G*H, K) or R (G*H, K); or all rows of the
// projection (P, K), which counts as one gate of P units. As columns of a panel, the rows are in
// the order [block][gate][lane]; as rows of one, in the order [gate][block][lane].
template <class T>
struct Matrix {
    const T* base;
    ptrdiff_t ks;
    ptrdiff_t units;  // the number of rows of a gate
    int gates;
    int (*gate_of)(int);  // the place of the product's gate g among all gates of the array

    ptrdiff_t blocks() const { return vectors<T>(units); }
    // The number of units in block b: V, or fewer in the last block.
    ptrdiff_t lanes(ptrdiff_t b) const { return smaller(kLanes<T>, units - b * kLanes<T>); }
    const T* rows_of(int gate, ptrdiff_t b) const {
        return base + (gate_of(gate) * units + b * kLanes<T>)*ks;
    }
    // The rows that belong to a column of a panel, in vectors.
    const T* rows_at(ptrdiff_t column) const {
        return rows_of(int(column % gates), column / gates);
    }
    ptrdiff_t bytes() const { return gates * units * ks * ptrdiff_t(sizeof(T)); }
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

// Returns the square itself if it is whole. If it has fewer than L rows (`lanes`) or columns
// (`left`), copies it and fills the rest with zeros.
template <class T>
RNNFAST_INLINE Square<T> whole(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left, T* copy) {
    if (lanes >= kLanes<T> && left >= kLanes<T>) return from;
    copy_square(from, lanes, left, copy);
    return {copy, kLanes<T>};
}

// Loads such a square and transposes it: element i of row l becomes lane l of columns[i].
template <class T>
RNNFAST_INLINE void load_columns(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left,
                                 Vec<T> (&columns)[kLanes<T>]) {
    constexpr ptrdiff_t L = kLanes<T>;
    alignas(kVectorBytes) T copy[L * L];
    const Square<T> square = whole(from, lanes, left, copy);
    load_transposed(square.base, square.stride, columns);
}

// Does the same into memory, [i][lane]. It is not inlined into each of the tiles that end with a
// part of a square.
template <class T>
RNNFAST_OUTLINE void copy_columns(const Square<T>& from, ptrdiff_t lanes, ptrdiff_t left, T* to) {
    constexpr ptrdiff_t L = kLanes<T>;
    Vec<T> columns[L];
    load_columns(from, lanes, left, columns);
#pragma GCC unroll 16
    for (ptrdiff_t i = 0; i < L; ++i) store(to + i * L, columns[i]);
}

// acc[m] += a[m*ld] * right.
template <int M, class T>
RNNFAST_INLINE void multiply_vector(const T* a, ptrdiff_t ld, Vec<T> right, Vec<T> (&acc)[M]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = fma(broadcast(a[m * ld]), right, acc[m]);
}

// sums (M, N vectors), with rows `width` vectors apart, += a (M, K) times N vectors of columns of b
// from `column` on. If `fetch`, it fetches the vector after that meanwhile, in order; then N is 1.
template <int M, int N, class T>
RNNFAST_OUTLINE void multiply_few_columns(const T* a, ptrdiff_t ld, const Matrix<T>& b,
                                          ptrdiff_t column, int width, bool fetch, T* sums) {
    constexpr ptrdiff_t L = kLanes<T>, kLine = 64;
    const ptrdiff_t ks = b.ks;
    const T* rows[N];
    ptrdiff_t lanes[N];
    Vec<T> acc[N][M], columns[L];
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
        rows[v] = b.rows_at(column + v), lanes[v] = b.lanes((column + v) / b.gates);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) acc[v][m] = load(sums + (m * width + v) * L);
    }
    const bool is_last = column + N >= b.blocks() * b.gates;
    const auto* next =
        reinterpret_cast<const char*>(fetch && !is_last ? b.rows_at(column + N) : rows[0]);
    ptrdiff_t k = 0;
    for (; k + L <= ks; k += L) {
        if (N == 1 && fetch)
#pragma GCC unroll 16
            for (ptrdiff_t i = 0; i < L * kVectorBytes; i += kLine, next += kLine)
                __builtin_prefetch(next);
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) {
            load_columns<T>({rows[v] + k, ks}, lanes[v], L, columns);
#pragma GCC unroll 16
            for (ptrdiff_t i = 0; i < L; ++i) multiply_vector(a + k + i, ld, columns[i], acc[v]);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < N; ++v) {
        if (k < ks) {
            alignas(kVectorBytes) T right[L * L];
            copy_columns<T>({rows[v] + k, ks}, lanes[v], ks - k, right);
            for (ptrdiff_t i = 0; k + i < ks; ++i)
                multiply_vector(a + k + i, ld, load(right + i * L), acc[v]);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) store(sums + (m * width + v) * L, acc[v][m]);
    }
}

// sums (M, width vectors) += a (M, K) times the columns of b from vector `column` on. It takes one
// vector of columns after the other: the rows of each follow one another in memory, so that memory
// is read in order. If the matrix is in memory, what comes next is fetched meanwhile.
//
// If a has one row, its sum is a single chain of `fma`s, so two vectors go together if caches hold
// the matrix. Neighbours do not if their rows begin a multiple of 2 KiB apart: then all of these
// rows fall into two sets of the L1 cache, which have 8 to 12 lines each.
template <int M, class T>
RNNFAST_INLINE void multiply_columns(const T* a, ptrdiff_t ld, const Matrix<T>& b, ptrdiff_t column,
                                     int width, T* sums) {
    constexpr ptrdiff_t kInMemory = ptrdiff_t(8) << 20, kTwoSets = 2048, kLines = 16;
    const bool fetch = b.bytes() >= kInMemory;
    const bool collide =
        2 * kLanes<T> > kLines && b.gates == 1 && b.ks * ptrdiff_t(sizeof(T)) % kTwoSets == 0;
    for (int v = 0; v < width;) {
        T* const to = sums + v * kLanes<T>;
        if constexpr (M == 1)
            if (!fetch && !collide && v + 2 <= width) {
                multiply_few_columns<M, 2>(a, ld, b, column + v, width, false, to), v += 2;
                continue;
            }
        multiply_few_columns<M, 1>(a, ld, b, column + v++, width, fetch, to);
    }
}

// Returns the product of a row of zeros with a vector of columns of b. A column gives NaN if one of
// its elements is not finite (if several are not, any of their NaNs), -0 if all of its elements are
// negative, and else 0. The rows of the caller's array are read in order.
template <class T>
RNNFAST_OUTLINE Vec<T> zeros_times(const Matrix<T>& b, ptrdiff_t column) {
    constexpr ptrdiff_t L = kLanes<T>, kChains = 4;
    const T* row = b.rows_at(column);
    const ptrdiff_t lanes = b.lanes(column / b.gates);
    alignas(kVectorBytes) T sums[L * L] = {};
    for (ptrdiff_t l = 0; l < lanes; ++l, row += b.ks) {
        Vec<T> chain[kChains];
        for (ptrdiff_t i = 0; i < kChains; ++i) chain[i] = -zero<T>();
        ptrdiff_t k = 0;
        for (; k + kChains * L <= b.ks; k += kChains * L)
#pragma GCC unroll 4
            for (ptrdiff_t i = 0; i < kChains; ++i)
                chain[i] = fma(load(row + k + i * L), zero<T>(), chain[i]);
        for (; k + L <= b.ks; k += L) chain[0] = fma(load(row + k), zero<T>(), chain[0]);
        T rest = -T(0);
        for (; k < b.ks; ++k) rest += row[k] * T(0);
        chain[1] += broadcast(rest);
        store(sums + l * L, (chain[0] + chain[1]) + (chain[2] + chain[3]));
    }
    Vec<T> of_lanes[L], sum = -zero<T>();
    load_transposed(sums, L, of_lanes);
#pragma GCC unroll 16
    for (ptrdiff_t i = 0; i < L; ++i) sum += of_lanes[i];
    return sum;
}

// sums (M, `count` vectors) += a times the rows of b, for the columns from vector `column` on. Each
// run of a, `stride` from the next, meets one block of a gate. Rows that the block lacks count as
// zeros, as in panels; these may still change the sign of a zero.
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
