// Functions for rows of the caller's arrays and of scratch, and for chunks of rows.
#pragma once

#include "core/args.h"
#include "kernels/matrix.h"

namespace rnnfast {
namespace {

// Copies n elements, and meanwhile fetches n elements at `ahead`; null: nothing.
template <class T>
RNNFAST_OUTLINE void copy_row(T* to, const T* from, ptrdiff_t n, const T* ahead) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (ptrdiff_t i = 0; i < n; i += L) {
        if (ahead) __builtin_prefetch(ahead + i);
        if (n - i >= L)
            store(to + i, load(from + i));
        else
            store_part(to + i, load_part(from + i, n - i), n - i);
    }
}

// Copies n elements, or writes zeros if there is no source.
template <class T>
RNNFAST_INLINE void copy_or_zero(T* to, const T* from, ptrdiff_t n) {
    if (from) return copy_row<T>(to, from, n, nullptr);
    for (ptrdiff_t i = 0; i < n; ++i) to[i] = T(0);
}

// Copies n elements, if there is somewhere to copy them to.
template <class T>
RNNFAST_INLINE void copy_if_wanted(T* to, const T* from, ptrdiff_t n) {
    if (to) copy_or_zero(to, from, n);
}

// The same as copy_or_zero, followed by zeros up to `padded` elements.
template <class T>
RNNFAST_INLINE void copy_padded(T* to, const T* from, ptrdiff_t n, ptrdiff_t padded) {
    copy_or_zero(to, from, n);
    copy_or_zero<T>(to + n, nullptr, padded - n);
}

// A row of an optional (B, n) array; null stays null.
template <class T>
RNNFAST_INLINE T* row_of(T* array, ptrdiff_t row, ptrdiff_t n) {
    return array ? array + row * n : nullptr;
}

// Writes zeros over some vectors of a row.
template <class T>
RNNFAST_INLINE void zero_vectors(T* row, const Shard& of_vectors) {
    for (ptrdiff_t v = of_vectors.begin; v < of_vectors.end; ++v)
        store(row + v * kLanes<T>, zero<T>());
}

// A row of an array (T, B, n): that of a step and a place.
struct Row {
    ptrdiff_t t, place;
};

// The address of that row in the caller's array, which has the strides `step` and `row`.
template <class T>
RNNFAST_INLINE T* row_at(T* array, const Plan& plan, const Row& r, ptrdiff_t step, ptrdiff_t row) {
    return array + plan.offset(r.t, step, row) + plan.row(r.place) * row;
}

// The places of a shard that have step t, in order. The step `next` runs after it.
struct StepRows {
    ptrdiff_t t = 0, next = 0, rows = 0, next_rows = 0, place = 0, stride = 1;

    ptrdiff_t place_of(ptrdiff_t i) const { return place + i * stride; }
    Row at(ptrdiff_t i) const { return {t, place_of(i)}; }
    // The row that is read `count` rows after row i, or one step after it if that is sooner. If the
    // next step has too few rows for that, it is row i itself.
    Row after(ptrdiff_t i, ptrdiff_t count) const {
        const ptrdiff_t j = i + smaller(count, rows);
        if (j < rows) return at(j);
        return j - rows < next_rows ? Row{next, place_of(j - rows)} : at(i);
    }
};

inline StepRows rows_of_step(const Plan& plan, const Shard& shard, ptrdiff_t t, ptrdiff_t next) {
    const ptrdiff_t then = next < 0 || next >= plan.steps ? 0 : shard.clip(plan.rows(next));
    return {t, next, shard.clip(plan.rows(t)), then, shard.begin, shard.step};
}

// Rows of arrays of kNearBytes and more, which do not stay near the core, are fetched kFetchedBytes
// of rows ahead, in the order in which they are read. They need not lie in memory in that order.
constexpr ptrdiff_t kNearBytes = 524288, kFetchedBytes = 4096;

// How many rows ahead rows of n elements are fetched; 0: they are not fetched.
template <class T>
ptrdiff_t rows_ahead(const Plan& plan, ptrdiff_t n) {
    const ptrdiff_t bytes = n * ptrdiff_t(sizeof(T));
    return plan.start(plan.steps) * bytes < kNearBytes ? 0 : 1 + kFetchedBytes / bytes;
}

// Whether a chunk's rows in a (T, B, n) array lie at one distance from each other: no row is out of
// order, no row of the batch is missing, and the distance from step to step continues that from row
// to row.
inline bool regular(const Plan& plan, const Shard& shard, ptrdiff_t step, ptrdiff_t row) {
    if (shard.begin != 0 || shard.end != plan.batch || shard.step != 1) return false;
    if (plan.ragged) return true;
    return !plan.active && (plan.batch == 1 || plan.steps == 1 || step == plan.batch * row);
}

// Cuts memory into arrays of whole vectors. Without a base it only counts.
template <class T>
struct Scratch {
    T* base;
    ptrdiff_t end = 0;

    T* take(ptrdiff_t n) {
        T* p = base ? base + end : nullptr;
        end += vectors<T>(n) * kLanes<T>;
        return p;
    }
};

// The distance between rows of a regular array.
inline ptrdiff_t regular_stride(const Plan& plan, ptrdiff_t step, ptrdiff_t row) {
    return plan.batch == 1 && !plan.ragged ? step : row;
}

// Pads the distance between scratch rows of n elements, so that a column of them does not fall into
// one set of the L1 cache: sets repeat every 4 KiB.
template <class T>
constexpr ptrdiff_t spread(ptrdiff_t n) {
    return n * ptrdiff_t(sizeof(T)) % 1024 == 0 ? n + kLanes<T> : n;
}

// Some steps, and the number of rows of a shard that they have.
struct ChunkRows : Chunk {
    ptrdiff_t rows;
};

// The next chunk once `done` steps have run, counted in the order run. It has at most `room` rows,
// but at least one step.
inline ChunkRows next_chunk(const Plan& plan, const Slice& slice, ptrdiff_t room, ptrdiff_t done) {
    ptrdiff_t rows = 0, end = done;
    const ptrdiff_t most = slice.relay ? done + slice.relay->most_steps : plan.steps;
    for (; end < smaller(plan.steps, most); ++end) {
        const ptrdiff_t n = slice.rows.clip(plan.rows(plan.reverse ? plan.steps - 1 - end : end));
        if (end > done && rows + n > room) break;
        rows += n;
    }
    if (plan.reverse) return {{plan.steps - end, plan.steps - done}, rows};
    return {{done, end}, rows};
}

}  // namespace
}  // namespace rnnfast
