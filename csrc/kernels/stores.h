// Epilogues of plain products: they say what a tile's sums start from, and where they go.
#pragma once

#include "kernels/matrix.h"

namespace rnnfast {
namespace {

template <class T, int M, int W>
RNNFAST_INLINE void clear(Vec<T> (&acc)[M][W]) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) acc[m][v] = zero<T>();
}

// The epilogue of a plain product into rows of whole vectors: C = A B or, with kAdd, C += A B.
template <class T, bool kAdd>
struct StoreRows {
    T* c;
    ptrdiff_t ld;

    template <int M, int W>
    RNNFAST_INLINE void start(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < W; ++v)
                acc[m][v] = kAdd ? load(at(first + m, column + v)) : zero<T>();
    }
    template <int M, int W>
    RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < W; ++v) store(at(first + m, column + v), acc[m][v]);
    }
    RNNFAST_INLINE T* at(ptrdiff_t row, ptrdiff_t v) const { return c + row * ld + v * kLanes<T>; }
    StoreRows<T, true> resumed() const { return {c, ld}; }
};

// The same for sums that start from a row of biases: C = bias + A B.
template <class T>
struct StoreBiased {
    const T* bias;
    T* c;
    ptrdiff_t ld;

    template <int M, int W>
    RNNFAST_INLINE void start(ptrdiff_t, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
#pragma GCC unroll 8
        for (int v = 0; v < W; ++v) {
            const Vec<T> from = load(bias + (column + v) * kLanes<T>);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) acc[m][v] = from;
        }
    }
    template <int M, int W>
    RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        StoreRows<T, false>{c, ld}.finish(first, column, acc);
    }
};

// A tile's sums in L1. Through them a tile passes its sums to one function for all tiles, which
// keeps the code of each tile small.
template <class T, int M, int W>
struct TileSums {
    alignas(kVectorBytes) T sums[M * W * kLanes<T>];

    TileSums() {}
    RNNFAST_INLINE explicit TileSums(const Vec<T> (&acc)[M][W]) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < W; ++v) store(sums + (m * W + v) * kLanes<T>, acc[m][v]);
    }
    RNNFAST_INLINE void load_into(Vec<T> (&acc)[M][W]) const {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
            for (int v = 0; v < W; ++v) acc[m][v] = load(sums + (m * W + v) * kLanes<T>);
    }
};

// Load or store a tile's sums, m rows by w vectors. The rows in memory have `count` elements left;
// other elements are loaded as zeros and not stored.
template <class T>
RNNFAST_OUTLINE void load_edges(const T* from, ptrdiff_t ld, int m, int w, ptrdiff_t count,
                                T* sums) {
    for (; m > 0; --m, from += ld)
        for (ptrdiff_t v = 0; v < w * kLanes<T>; v += kLanes<T>, sums += kLanes<T>)
            store(sums, load_edge(from + v, count - v));
}
template <class T>
RNNFAST_OUTLINE void store_edges(const T* sums, int m, int w, T* to, ptrdiff_t ld,
                                 ptrdiff_t count) {
    for (; m > 0; --m, to += ld)
        for (ptrdiff_t v = 0; v < w * kLanes<T>; v += kLanes<T>, sums += kLanes<T>)
            store_edge(to + v, load(sums), count - v);
}

// The epilogue of a plain product into rows of `count` elements: nothing past a row's end is read
// or written.
template <class T, bool kAdd = false>
struct StoreEdges {
    T* c;
    ptrdiff_t ld;
    ptrdiff_t count;

    template <int M, int W>
    RNNFAST_INLINE void start(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        if constexpr (!kAdd) return clear<T>(acc);
        TileSums<T, M, W> tile;
        load_edges(at(first, column), ld, M, W, count - column * kLanes<T>, tile.sums);
        tile.load_into(acc);
    }
    template <int M, int W>
    RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
        const TileSums<T, M, W> tile(acc);
        store_edges(tile.sums, M, W, at(first, column), ld, count - column * kLanes<T>);
    }
    RNNFAST_INLINE T* at(ptrdiff_t row, ptrdiff_t v) const { return c + row * ld + v * kLanes<T>; }
    StoreEdges<T, true> resumed() const { return {c, ld, count}; }
    StoreEdges from(ptrdiff_t element) const { return {c + element, ld, count - element}; }
};

}  // namespace
}  // namespace rnnfast
