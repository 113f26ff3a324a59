// Register tiles. Every sum over k runs in the order of k, from what the tile starts with, with one
// fma for each term. So a result has the same bits whichever tile, batch or thread computes it.
#pragma once

#include "kernels/matrix.h"
#include "kernels/stores.h"

namespace rnnfast {
namespace {

// The left operand (M, K). The elements of each row lie in `runs` runs of `run` elements, which are
// `stride` apart; K = runs * run. An ordinary matrix has one run.
template <class T>
struct Operand {
    const T* base;
    ptrdiff_t ld;
    ptrdiff_t run;
    ptrdiff_t runs = 1;
    ptrdiff_t stride = 0;

    ptrdiff_t k() const { return run * runs; }
    Operand part(const Shard& of_runs) const {
        return {base + of_runs.begin * stride, ld, run, of_runs.end - of_runs.begin, stride};
    }
};

// Tiles of at least this many rows fetch ahead while they compute. In lower tiles all of the time
// goes into reading.
constexpr int kFetchingRows = 3;

// acc[m][v] += sum over k of a[m*ld + k] * b[k][v], for P panels of W vectors, which start `apart`
// elements from one another. For each k it fetches one vector at `ahead`.
template <int M, int W, int P, class T>
RNNFAST_INLINE void multiply(ptrdiff_t k, const T* a, ptrdiff_t ld, const T* b, ptrdiff_t apart,
                             const T* ahead, Vec<T> (&acc)[M][W * P]) {
    for (ptrdiff_t i = 0; i < k; ++i) {
        Vec<T> right[W * P];
#pragma GCC unroll 8
        for (int v = 0; v < W * P; ++v)
            right[v] = load(b + v / W * apart + (i * W + v % W) * kLanes<T>);
        if constexpr (M >= kFetchingRows) __builtin_prefetch(ahead + i * kLanes<T>);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const Vec<T> left = broadcast(a[m * ld + i]);
#pragma GCC unroll 8
            for (int v = 0; v < W * P; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
        }
    }
}

// The rows of a tile that is `width` vectors wide: as many as leave registers for the right
// operand.
constexpr int tile_rows(int width) {
    return kRegisters == 32 ? (width >= 4 ? 6 : 8) : (width >= 4 ? 3 : 4);
}

// The right operand: some columns of a matrix in panels. A panel lies [k][vector][lane]. All panels
// are equally wide, except that the matrix's last one may be narrower. If there are no panels, the
// product reads the matrix itself.
template <class T>
struct Right {
    const T* base;  // null: `matrix` is read
    ptrdiff_t k;
    ptrdiff_t begin, end;  // in vectors: from the start of a panel to the end of one
    Matrix<T> matrix;
    // Whether the product takes the last panel first, as in every other step. It then starts with
    // what the step before it read last, which a cache may still have.
    bool downwards = false;
    ptrdiff_t beside = 0;  // bytes of other weights that are read alternately with these
    ptrdiff_t first = 0;   // the k of a panel at which the left operand starts

    RNNFAST_INLINE const T* panel(ptrdiff_t column, ptrdiff_t width) const {
        return base + (column * k + first * width) * kLanes<T>;
    }
    ptrdiff_t bytes() const { return (end - begin) * k * kVectorBytes + beside; }
    // Whether the operand is too large for the caches near the core to hold it beside the rest. If
    // it is not, fetching ahead only takes up room.
    RNNFAST_INLINE bool is_large() const { return bytes() >= ptrdiff_t(512) << 10; }
    // The panel to fetch while the one at `column`, `width` vectors wide, is used. `most` is the
    // width of all panels except perhaps the last. Null: there is none, or fetching does not pay.
    const T* next(ptrdiff_t column, ptrdiff_t width, ptrdiff_t most) const {
        const ptrdiff_t at = downwards ? column - most : column + width;
        if (!base || at < begin || at >= end || !is_large()) return nullptr;
        return panel(at, smaller(most, end - at));
    }
};

// A number, such as that of a tile's rows, as a type.
template <int M>
struct Count {
    static constexpr int value = M;
};

// Calls body(Count<rows>); rows are kLeast to kMost.
template <int kMost, int kLeast = 1, class Body>
RNNFAST_INLINE void count_of(ptrdiff_t rows, const Body& body) {
    if constexpr (kMost > kLeast)
        if (rows < kMost) return count_of<kMost - 1, kLeast>(rows, body);
    body(Count<kMost>());
}

// Calls body(first row, Count of rows) for tiles as high as the registers allow. The last two are
// about equally high, because a tile of one or two rows takes as long as one of three. There are at
// least kLeast rows, 1 or 2.
template <int kMost, int kLeast = 1, class Body>
RNNFAST_INLINE void cut_rows(ptrdiff_t rows, const Body& body) {
    ptrdiff_t r = 0;
    const auto run = [&](ptrdiff_t count) {
        count_of<kMost, kLeast>(count, [&](auto m) { body(r, m); });
        r += count;
    };
    while (rows - r >= 2 * kMost) run(kMost);
    if (rows - r > kMost) run((rows - r + 1) / 2);
    if (r < rows) run(rows - r);
}

// Computes one tile: rows first..first+M-1 by P panels of W vectors, which start at vector
// `column`. It fetches `ahead` meanwhile; null: nothing.
template <int M, int W, int P, class T, class Epilogue>
void tile(ptrdiff_t first, ptrdiff_t column, const Operand<T>& a, const Right<T>& b,
          const Epilogue& epilogue, const T* ahead = nullptr) {
    constexpr ptrdiff_t L = kLanes<T>;
    constexpr int kVectors = W * P;
    Vec<T> acc[M][kVectors];
    epilogue.start(first, column, acc);
    const T* left = a.base + first * a.ld;
    if (b.base) {
        const T* panel = b.panel(column, W);
        if (!ahead) ahead = panel;
        for (ptrdiff_t r = 0; r < a.runs; ++r, left += a.stride) {
            multiply<M, W, P>(a.run, left, a.ld, panel, b.k * W * L, ahead, acc);
            panel += a.run * W * L, ahead += a.run * L;
        }
    } else {
        // A copy in memory: an array whose address is taken does not stay in registers.
        TileSums<T, M, kVectors> copy(acc);
        multiply_columns<M>(left, a.ld, b.matrix, column, kVectors, copy.sums);
        copy.load_into(acc);
    }
    epilogue.finish(first, column, acc);
}

// Multiplies all rows by one panel of W vectors. Panels are kWidth wide, except perhaps the last.
template <int kWidth, int W, class T, class Epilogue>
RNNFAST_OUTLINE void tile_column(ptrdiff_t rows, ptrdiff_t column, const Operand<T>& a,
                                 const Right<T>& b, const Epilogue& epilogue) {
    const T* next = b.next(column, W, kWidth);
    const ptrdiff_t fetched = a.k() * kLanes<T>;  // by each tile, a vector for each k
    const T* const end = next ? next + W * fetched : nullptr;
    cut_rows<tile_rows(kWidth), 2>(rows, [&](ptrdiff_t first, auto m) {
        tile<decltype(m)::value, W, 1>(first, column, a, b, epilogue, next);
        if (next && (next += fetched) == end) next = nullptr;
    });
}

// Calls body(first vector, Count<vectors of a panel>, Count<panels>) for all panels of `b`. They
// are kWidth vectors wide, except perhaps the last; widths are multiples of kGroup. A call gets
// `at_once` panels, 1 or kMost; what is left at the end goes panel by panel.
template <int kWidth, int kGroup, int kMost, class Columns, class Body>
RNNFAST_INLINE void cut_columns(const Columns& b, int at_once, const Body& body) {
    const ptrdiff_t panels = (b.end - b.begin + kWidth - 1) / kWidth;
    const ptrdiff_t count = at_once > 1 ? (panels + kMost - 1) / kMost : panels;
    for (ptrdiff_t i = 0; i < count; ++i) {
        ptrdiff_t column = b.begin + (b.downwards ? count - 1 - i : i) * at_once * kWidth;
        ptrdiff_t width = smaller<ptrdiff_t>(b.end - column, at_once * kWidth);
        if constexpr (kMost > 1)
            if (width == kMost * kWidth) {
                body(column, Count<kWidth>(), Count<kMost>());
                continue;
            }
        if (width >= kWidth) {
            body(column, Count<kWidth>(), Count<1>());
            column += kWidth, width -= kWidth;
        }
        if constexpr (kWidth > 3 && 3 % kGroup == 0)
            if (width == 3) body(column, Count<3>(), Count<1>());
        if constexpr (kWidth > 2 && 2 % kGroup == 0)
            if (width == 2) body(column, Count<2>(), Count<1>());
        if constexpr (kWidth > 1 && 1 % kGroup == 0)
            if (width == 1) body(column, Count<1>(), Count<1>());
    }
}

// The number of panels that one row takes at a time if one panel gives it too few sums. Each `fma`
// waits some cycles for the one before it in its sum, and meanwhile no more than one row of the
// panel is read. L2 gives 64 bytes a cycle, and less if read at two places at a time; L1 gives
// twice as much, from any two places.
constexpr int kPanelsOfRow = 2;
constexpr ptrdiff_t kFmaWaits = 4;  // on most processors

// Returns how many panels one row takes at a time. `bytes`: the size of all panels; `ks`: the rows
// of each.
template <int kWidth>
RNNFAST_INLINE int panels_of_row(ptrdiff_t bytes, ptrdiff_t ks, ptrdiff_t waits = kFmaWaits) {
    constexpr ptrdiff_t kOfL2 = 64, kMostOfL1 = 32768, kNearL1 = 81920;
    constexpr ptrdiff_t kRow = kWidth * kVectorBytes;
    const bool in_l1 = kPanelsOfRow * kRow * ks <= kMostOfL1 && bytes <= kNearL1;
    return kRow < kOfL2 * waits || in_l1 ? kPanelsOfRow : 1;
}

// A product of one row, whose tiles are inlined: a step of few units takes no longer than a few
// calls.
template <int kWidth, int kGroup, class T, class Epilogue>
__attribute__((flatten)) void product_of_row(const Operand<T>& a, const Right<T>& b,
                                             const Epilogue& epilogue) {
    const int at_once = panels_of_row<kWidth>(b.bytes(), b.k);
    cut_columns<kWidth, kGroup, kPanelsOfRow>(
        b, at_once, [&](ptrdiff_t column, auto w, auto panels) {
            tile<1, decltype(w)::value, decltype(panels)::value>(0, column, a, b, epilogue);
        });
}

// Multiplies A (rows, K) by panels of kWidth vectors. `epilogue.start` fills a tile's accumulators,
// and `epilogue.finish` takes them.
template <int kWidth, int kGroup, class T, class Epilogue>
void product(ptrdiff_t rows, const Operand<T>& a, const Right<T>& b, const Epilogue& epilogue) {
    if (rows == 1) return product_of_row<kWidth, kGroup>(a, b, epilogue);
    if (rows > 1)
        cut_columns<kWidth, kGroup, 1>(b, 1, [&](ptrdiff_t column, auto w, auto) {
            tile_column<kWidth, decltype(w)::value>(rows, column, a, b, epilogue);
        });
}

// A product's k may be cut into pieces of at most about this many. All panels take one piece before
// any takes the next. A panel's piece, the next panel's, and the left operand's then stay in L2.
constexpr ptrdiff_t kPieceOfK = 1024;

inline ptrdiff_t pieces_of_k(ptrdiff_t k, ptrdiff_t rows) {
    constexpr ptrdiff_t kLeft = 131072, kLeast = 256;
    ptrdiff_t piece = kPieceOfK;
    if (rows * piece > kLeft) piece = rows * kLeast < kLeft ? kLeft / rows : kLeast;
    return k < 2 * piece ? 1 : (k + piece - 1) / piece;
}

// Calls body(left operand, its runs, store for the sums) for each piece. The first piece gets
// `store`; the others go on from the sums that it stored.
template <class T, class Store, class Body>
RNNFAST_INLINE void each_piece(ptrdiff_t pieces, const Operand<T>& a, const Store& store,
                               const Body& body) {
    for (ptrdiff_t p = 0; p < pieces; ++p) {
        const Shard runs = share(a.runs, p, pieces);
        if (p == 0)
            body(a.part(runs), runs, store);
        else
            body(a.part(runs), runs, store.resumed());
    }
}

// A product whose k are cut into pieces where that pays. `epilogue` is a store.
template <int kWidth, int kGroup, class T, class Epilogue>
void deep_product(ptrdiff_t rows, const Operand<T>& a, const Right<T>& b,
                  const Epilogue& epilogue) {
    // In these cases one of the two operands is read only once.
    const bool once = rows == 1 || b.end - b.begin <= kWidth;
    const ptrdiff_t pieces = once ? 1 : pieces_of_k(a.k(), rows);
    if (pieces == 1) return product<kWidth, kGroup>(rows, a, b, epilogue);
    each_piece(pieces, a, epilogue, [&](const Operand<T>& left, const Shard& runs, auto store) {
        Right<T> right = b;
        right.first = runs.begin * a.run;
        product<kWidth, kGroup>(rows, left, right, store);
    });
}

// This many bytes of sums stay in L1. The more columns they take, the more of each row of the
// matrix is read at a time.
constexpr ptrdiff_t kSumsInL1 = 8192;

// Multiplies A (rows, K) by the rows of a matrix, for some of its columns. The result is the same
// as from panels of the transpose.
template <class T, class Epilogue>
RNNFAST_OUTLINE void product_rows(ptrdiff_t rows, const Operand<T>& a, const Matrix<T>& b,
                                  const Shard& columns, const Epilogue& epilogue) {
    constexpr ptrdiff_t L = kLanes<T>;
    cut_rows<tile_rows(4)>(rows, [&](ptrdiff_t first, auto count) {
        constexpr int M = decltype(count)::value;
        constexpr ptrdiff_t wide = kSumsInL1 / kVectorBytes / M;
        alignas(kVectorBytes) T sums[M * wide * L];
        for (ptrdiff_t column = columns.begin; column < columns.end; column += wide) {
            const ptrdiff_t width = smaller(wide, columns.end - column);
            Vec<T> acc[M][1];
            for (ptrdiff_t v = 0; v < width; ++v) {
                epilogue.start(first, column + v, acc);
                for (int m = 0; m < M; ++m) store(sums + (m * width + v) * L, acc[m][0]);
            }
            multiply_rows<M>(a.base + first * a.ld, a.ld, a.stride, b, column, width, sums);
            for (ptrdiff_t v = 0; v < width; ++v) {
                for (int m = 0; m < M; ++m) acc[m][0] = load(sums + (m * width + v) * L);
                epilogue.finish(first, column + v, acc);
            }
        }
    });
}

// The width of panels, in vectors, whose columns come in groups of kGroup vectors.
constexpr int panel_width(int group) { return group == 3 ? 3 : 4; }

}  // namespace
}  // namespace rnnfast
