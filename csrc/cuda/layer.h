// What the passes over a sequence have in common: their arguments, and who has which rows and units.
#pragma once

#include "cuda/product.h"

namespace rnnfast {
namespace cuda {

// Letters as in core/args.h; arrays are contiguous and on the device. Gates in torch's order.
struct Layer {
    int steps, batch, hidden;
    bool reverse;
    const int32_t* lengths;  // (B)     null: all T
    const uint8_t* resets;   // (T, B)  null: never

    RNNFAST_INLINE int length(int row) const { return lengths ? lengths[row] : steps; }
    RNNFAST_INLINE bool resets_at(int t, int row) const {
        return resets && resets[size_t(t) * batch + row];
    }
    // Element `unit` of part `part` of row (t, row), of an array (T, B, parts * H).
    RNNFAST_INLINE size_t at(int t, int row, int parts, int part, int unit) const {
        return ((size_t(t) * batch + row) * parts + part) * hidden + unit;
    }
    RNNFAST_INLINE int previous(int t) const { return reverse ? t + 1 : t - 1; }
    // Whether a row that has step t has the one before, too.
    RNNFAST_INLINE bool has_previous(int t, int row) const {
        const int p = previous(t);
        return p >= 0 && p < length(row);
    }
};

// What lies between launches, and between blocks: a pass is one launch, or one for each step.
template <class T>
struct Work {
    const T* columns;   // as `pack` writes them
    T* exchange;        // (2, B, depth)  what blocks publish in even and in odd steps; zeros past H
    int depth;          // whole groups
    float* state;       // (2, B, H)  forward h and c; backward dh, but for the product, and dc
    uint32_t* arrived;  // (shards)  how many times a block has published
    int shard_rows;     // at most most_rows(units)
    int first_shard;    // of the launch
    Kept kept;          // of the columns

    RNNFAST_INLINE T* published(int step, int batch) const {
        return exchange + size_t(step & 1) * batch * depth;
    }
};

// Slots of a cell: of W the first kGates, of R the last. Gates of both in torch's order.
template <class Cell>
constexpr int kFirstHSlot = int(Cell::kSlots) - int(Cell::kGates);

// What a thread has of a block's rows and units: one unit of so many rows.
constexpr int kItems = 2;
constexpr int most_rows(int units) { return kItems * kThreads / units; }

// The rows and units of a block with kUnits of them.
template <int kUnits>
struct Shard {
    int index, first, rows, unit;

    template <class T>
    RNNFAST_DEVICE Shard(const Layer& layer, const Work<T>& work)
        : index(work.first_shard + block_y()),
          first(index * work.shard_rows),
          unit(block_x() * kUnits + column()) {
        const int left = layer.batch - first;
        rows = left < work.shard_rows ? left : work.shard_rows;
    }
    // In the shard, of this thread's item.
    RNNFAST_DEVICE static int row(int item) {
        return item * (kThreads / kUnits) + thread() / kUnits;
    }
    RNNFAST_DEVICE static int column() { return thread() % kUnits; }
    // Of an item in an array (B, H).
    RNNFAST_DEVICE size_t at(int item, const Layer& layer) const {
        return size_t(first + row(item)) * layer.hidden + unit;
    }
    RNNFAST_DEVICE bool has(int item, const Layer& layer) const {
        return row(item) < rows && unit < layer.hidden;
    }
};

// What a thread's items take from one launch to the next: forward h and c, backward dh and dc.
template <class Cell>
struct State {
    float h[kItems] = {}, c[kItems] = {};

    template <class Own, class T>
    RNNFAST_DEVICE State(const Own& own, const Layer& layer, const Work<T>& work) {
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item) {
            if (!own.has(item, layer)) continue;
            h[item] = work.state[own.at(item, layer)];
            if (Cell::kHasC) c[item] = work.state[offset(layer) + own.at(item, layer)];
        }
    }
    // One item, at the end of a launch.
    template <class Own, class T>
    RNNFAST_DEVICE void keep(int item, const Own& own, const Layer& layer,
                             const Work<T>& work) const {
        work.state[own.at(item, layer)] = h[item];
        if (Cell::kHasC) work.state[offset(layer) + own.at(item, layer)] = c[item];
    }

private:
    RNNFAST_DEVICE static size_t offset(const Layer& layer) {
        return size_t(layer.batch) * layer.hidden;
    }
};

}  // namespace cuda
}  // namespace rnnfast
