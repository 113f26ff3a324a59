// Matrices with a row for each row of a chunk, kept by columns: [vector][row][lane]. Code that
// walks down the rows, as the sums over rows of the parameters' gradients do, then reads memory in
// order.
#pragma once

#include "core/format.h"
#include "kernels/gemm.h"

namespace rnnfast {
namespace {

template <class T>
struct Columns {
    T* base;
    ptrdiff_t stride;  // the distance between two vectors of a row
    LowRows low{};     // the same rows in a format, if they are a product's left operand

    RNNFAST_INLINE T* at(ptrdiff_t row, ptrdiff_t v) const {
        return base + v * stride + row * kLanes<T>;
    }

    // Returns a product's left operand: the lanes of `count` vectors from v on, of the rows from
    // `row` on.
    Operand<T> operand(ptrdiff_t row, ptrdiff_t v, ptrdiff_t count) const {
        return {at(row, v), kLanes<T>, kLanes<T>, count, stride};
    }

    // Returns the same operand in a format.
    LowRows low_operand(const Format& format, ptrdiff_t row, ptrdiff_t v,
                        Prepared* prepared = nullptr) const {
        const ptrdiff_t vector = kVectorBytes / format.of_word;
        return {low.base + row * low.ld + v * vector, low.ld, nullptr, prepared};
    }
    // Encodes `count` vectors of a row, from v on, into `low`.
    void encode(const Format& format, ptrdiff_t row, ptrdiff_t v, ptrdiff_t count) const {
        format.encode({at(row, v), kLanes<T>, count, stride}, low_operand(format, row, v).base);
    }

    // The stride for this number of rows. It is odd in vectors, so that the vectors of a row spread
    // over the L1 cache.
    static ptrdiff_t stride_for(ptrdiff_t rows) { return (rows | 1) * kLanes<T>; }
};

// Stores some vectors of a row: n elements from `from`, or zeros if it is null, and then zeros to
// the end of the last vector. Meanwhile it fetches `ahead`, a row of the same length; null: there
// is none.
template <class T>
RNNFAST_INLINE void put_row(const Columns<T>& to, ptrdiff_t row, const T* from, ptrdiff_t n,
                            const Shard& of_vectors, const T* ahead = nullptr) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (ptrdiff_t v = of_vectors.begin; v < of_vectors.end; ++v) {
        if (ahead) __builtin_prefetch(ahead + v * L);
        store(to.at(row, v), from ? load_edge(from + v * L, n - v * L) : zero<T>());
    }
}

// Rows are summed in blocks of this many, and then the blocks' sums are added up: in one long sum a
// float32 would lose 1e-5 over 400,000 rows.
constexpr ptrdiff_t kSumRows = 256;

// A term of such a sum. It takes one row, or `kOfWord` rows if the elements are words of a format.
template <class T>
struct Term {
    static constexpr ptrdiff_t kOfWord = 1;

    RNNFAST_INLINE static Vec<T> add(Vec<T> a, Vec<T> b, Vec<T> sum) { return fma(a, b, sum); }
};

// C[m][v] += sum over the rows k of a[k][m] * b[v][k], for M lanes by W vectors. The last vector of
// C has `last` elements. With `assign` it is = instead of +=.
template <int M, int W, class Term, class T>
RNNFAST_INLINE void outer_tile(ptrdiff_t rows, const T* a, const T* b, ptrdiff_t b_stride, T* c,
                               ptrdiff_t ldc, ptrdiff_t last, bool assign) {
    constexpr ptrdiff_t L = kLanes<T>, kBlock = kSumRows / Term::kOfWord;
    // The blocks' sums are added up here, in L1, so that C, which may be in memory, is touched
    // once. The first block writes all of them. GCC 12 does not see that if they are few, hence the
    // empty asm, which claims to write them.
    alignas(kVectorBytes) T total[M][W * L];
    __asm__("" : "=m"(total));
    Vec<T> acc[M][W];
    ptrdiff_t first = 0;
    do {
        const ptrdiff_t end = smaller(rows, first + kBlock);
        if (end == rows)  // C arrives by the time that the sums are complete
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

// One row of C of n elements, summed over K rows in the same order as in outer_tile. With so few
// rows most of the time goes into C itself, so this writes C in order.
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

// Does the same for each of `lanes` rows of C; returns false if there are too many rows to sum.
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

// Computes `lanes` rows of C, as many at a time as the registers hold.
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

// The number of vectors of C that are summed at a time.
constexpr ptrdiff_t kOuterVectors = 3;

// Does the same for kOuterVectors vectors of C from vector v on, or as many as are left of its n
// elements. Returns how many that were.
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
