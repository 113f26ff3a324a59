// Matrices with a row for each row of a chunk, kept by columns: [vector][row][lane]. What walks down
// the rows, as the sums over rows of the parameters' gradients do, then reads memory in order.
#pragma once

#include "core/format.h"
#include "kernels/gemm.h"

namespace rnnfast {
namespace {

template <class T>
struct Columns {
    T* base;
    ptrdiff_t stride;  // between vectors of a row
    LowRows low{};     // the same in a format, if a product takes them as its left operand

    RNNFAST_INLINE T* at(ptrdiff_t row, ptrdiff_t v) const {
        return base + v * stride + row * kLanes<T>;
    }

    // As a product's left operand: from `row` on, the lanes of `count` vectors from v on.
    Operand<T> operand(ptrdiff_t row, ptrdiff_t v, ptrdiff_t count) const {
        return {at(row, v), kLanes<T>, kLanes<T>, count, stride};
    }

    // The same in a format.
    LowRows low_operand(const Format& format, ptrdiff_t row, ptrdiff_t v,
                        Prepared* prepared = nullptr) const {
        const ptrdiff_t vector = kVectorBytes / format.of_word;
        return {low.base + row * low.ld + v * vector, low.ld, nullptr, prepared};
    }
    // Brings `count` vectors of a row, from v on, into it.
    void encode(const Format& format, ptrdiff_t row, ptrdiff_t v, ptrdiff_t count) const {
        format.encode({at(row, v), kLanes<T>, count, stride}, low_operand(format, row, v).base);
    }

    // The stride for so many rows: odd, so that the vectors of a row spread over the L1 cache.
    static ptrdiff_t stride_for(ptrdiff_t rows) { return (rows | 1) * kLanes<T>; }
};

// n elements of a row from `from`, or zeros where it is null, into vectors of `to`; the rest of the
// last vector becomes zeros. `ahead`, a row as long, is fetched; null: there is none.
template <class T>
RNNFAST_INLINE void put_row(const Columns<T>& to, ptrdiff_t row, const T* from, ptrdiff_t n,
                            const Shard& of_vectors, const T* ahead = nullptr) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (ptrdiff_t v = of_vectors.begin; v < of_vectors.end; ++v) {
        if (ahead) __builtin_prefetch(ahead + v * L);
        store(to.at(row, v), from ? load_edge(from + v * L, n - v * L) : zero<T>());
    }
}

// Rows are summed by blocks of so many, and the blocks' sums added up: in one long sum a float32
// would lose 1e-5 over 400,000 rows.
constexpr ptrdiff_t kSumRows = 256;

// A term of such a sum: one row, `of_word` of them where elements are words of a format.
template <class T>
struct Term {
    static constexpr ptrdiff_t kOfWord = 1;

    RNNFAST_INLINE static Vec<T> add(Vec<T> a, Vec<T> b, Vec<T> sum) { return fma(a, b, sum); }
};

// C[m][v] += sum over the rows k of a[k][m] * b[v][k]: M lanes by W vectors. The last vector of C
// has `last` elements. With `assign`, = instead of +=.
template <int M, int W, class Term, class T>
RNNFAST_INLINE void outer_tile(ptrdiff_t rows, const T* a, const T* b, ptrdiff_t b_stride, T* c,
                               ptrdiff_t ldc, ptrdiff_t last, bool assign) {
    constexpr ptrdiff_t L = kLanes<T>, kBlock = kSumRows / Term::kOfWord;
    // Block sums meet here in L1: C, which may be in memory, is touched once. The first block writes
    // them, which GCC 12 does not see where they are few.
    alignas(kVectorBytes) T total[M][W * L];
    __asm__("" : "=m"(total));
    Vec<T> acc[M][W];
    ptrdiff_t first = 0;
    do {
        const ptrdiff_t end = smaller(rows, first + kBlock);
        if (end == rows)  // by the time that the sums are there, so is C
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
                for (int v = 0; v < W; ++v) __builtin_prefetch(c + m * ldc + v * L, 1);
        clear<T>(acc);
        for (ptrdiff_t k = first; k < end; ++k) {
            Vec<T> right[W];
#pragma GCC unroll 4
            for (int v = 0; v < W; ++v) right[v] = load(b + v * b_stride + k * L);
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const Vec<T> left = broadcast(a[k * L + m]);
#pragma GCC unroll 4
                for (int v = 0; v < W; ++v) acc[m][v] = Term::add(left, right[v], acc[m][v]);
            }
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int v = 0; v < W; ++v) {
                T* const sum = &total[m][v * L];
                store(sum, first ? load(sum) + acc[m][v] : acc[m][v]);
            }
        first += kBlock;
    } while (first < rows);
    for (int m = 0; m < M; ++m)
        for (int v = 0; v < W; ++v) {
            T* const to = c + m * ldc + v * L;
            const ptrdiff_t count = v == W - 1 ? last : L;
            const Vec<T> sum = load(&total[m][v * L]);
            store_edge(to, assign ? sum : load_edge(to, count) + sum, count);
        }
}

// One row of C of n elements, from K rows, in the order of outer_tile: with so few, C itself is what
// takes the time, and is written in order.
template <int K, class Term, class T>
RNNFAST_OUTLINE void outer_row(const T* a, const Columns<T>& b, ptrdiff_t n, T* c, bool assign) {
    constexpr ptrdiff_t L = kLanes<T>;
    Vec<T> left[K];
#pragma GCC unroll 4
    for (int k = 0; k < K; ++k) left[k] = broadcast(a[k * L]);
    for (ptrdiff_t v = 0; v * L < n; ++v) {
        Vec<T> sum = zero<T>();
#pragma GCC unroll 4
        for (int k = 0; k < K; ++k) sum = Term::add(left[k], load(b.at(k, v)), sum);
        T* const to = c + v * L;
        const ptrdiff_t count = n - v * L;
        store_edge(to, assign ? sum : load_edge(to, count) + sum, count);
    }
}

// The same for each of `lanes` rows of C; false where there are too many rows for it.
template <class Term, class T>
RNNFAST_INLINE bool outer_few(ptrdiff_t lanes, ptrdiff_t rows, const T* a, const Columns<T>& b,
                              ptrdiff_t n, T* c, bool assign) {
    if (rows < 1 || rows > 4) return false;
    for (ptrdiff_t m = 0; m < lanes; ++m) {
        if (rows == 1) outer_row<1, Term>(a + m, b, n, c + m * n, assign);
        if (rows == 2) outer_row<2, Term>(a + m, b, n, c + m * n, assign);
        if (rows == 3) outer_row<3, Term>(a + m, b, n, c + m * n, assign);
        if (rows == 4) outer_row<4, Term>(a + m, b, n, c + m * n, assign);
    }
    return true;
}

// `lanes` rows of C, as many at a time as registers hold.
template <int W, class Term, class T>
RNNFAST_OUTLINE void outer_lanes(ptrdiff_t lanes, ptrdiff_t rows, const T* a, const T* b,
                                 ptrdiff_t b_stride, T* c, ptrdiff_t ldc, ptrdiff_t last,
                                 bool assign) {
    constexpr int kMost = int(smaller<ptrdiff_t>(kRegisters == 32 ? 8 : 4, kLanes<T>));
    ptrdiff_t m = 0;
    for (; m + kMost <= lanes; m += kMost)
        outer_tile<kMost, W, Term>(rows, a + m, b, b_stride, c + m * ldc, ldc, last, assign);
    if constexpr (kMost > 4)
        if (m + 4 <= lanes)
            outer_tile<4, W, Term>(rows, a + m, b, b_stride, c + m * ldc, ldc, last, assign),
                m += 4;
    if constexpr (kMost > 2)
        if (m + 2 <= lanes)
            outer_tile<2, W, Term>(rows, a + m, b, b_stride, c + m * ldc, ldc, last, assign),
                m += 2;
    if (m < lanes) outer_tile<1, W, Term>(rows, a + m, b, b_stride, c + m * ldc, ldc, last, assign);
}

// Vectors of C that are summed at a time.
constexpr ptrdiff_t kOuterVectors = 3;

// The same for columns of C from vector v on: so many vectors, or as many as are left of its n
// elements. Returns the vectors taken.
template <class Term, class T>
RNNFAST_INLINE ptrdiff_t outer_panel(ptrdiff_t lanes, ptrdiff_t rows, const T* a,
                                     const Columns<T>& b, ptrdiff_t v, T* c, ptrdiff_t ldc,
                                     ptrdiff_t n, bool assign) {
    constexpr ptrdiff_t L = kLanes<T>;
    const ptrdiff_t width = smaller(kOuterVectors, vectors<T>(n) - v);
    const ptrdiff_t last = smaller(L, n - (v + width - 1) * L);
    const T* const right = b.at(0, v);
    T* const to = c + v * L;
    if (width == 3) outer_lanes<3, Term>(lanes, rows, a, right, b.stride, to, ldc, last, assign);
    if (width == 2) outer_lanes<2, Term>(lanes, rows, a, right, b.stride, to, ldc, last, assign);
    if (width == 1) outer_lanes<1, Term>(lanes, rows, a, right, b.stride, to, ldc, last, assign);
    return width;
}

}  // namespace
}  // namespace rnnfast
