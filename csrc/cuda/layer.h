// What the passes over a sequence have in common: their arguments, who has which rows and units,
// and how the blocks wait for each other.
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
    int shard_rows;     // at most kMostRows
    int first_shard;    // of the launch

    RNNFAST_INLINE T* published(int step, int batch) const {
        return exchange + size_t(step & 1) * batch * depth;
    }
};

// Slots of a cell: of W the first kGates, of R the last. Gates of both in torch's order.
template <class Cell>
constexpr int kFirstHSlot = int(Cell::kSlots) - int(Cell::kGates);

// Rows of the batch that a block has, and of these and its units a thread: one unit of each so many
// rows.
constexpr int kMostRows = 64;
constexpr int kItems = kMostRows * kColumns / kThreads;

struct Shard {
    int index, first, rows, unit;

    template <class T>
    RNNFAST_DEVICE Shard(const Layer& layer, const Work<T>& work)
        : index(work.first_shard + block_y()),
          first(index * work.shard_rows),
          unit(block_x() * kColumns + thread() % kColumns) {
        const int left = layer.batch - first;
        rows = left < work.shard_rows ? left : work.shard_rows;
    }
    // In the shard, of this thread's item.
    RNNFAST_DEVICE static int row(int item) {
        return item * (kThreads / kColumns) + thread() / kColumns;
    }
    RNNFAST_DEVICE static int column() { return thread() % kColumns; }
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

    template <class T>
    RNNFAST_DEVICE State(const Shard& own, const Layer& layer, const Work<T>& work) {
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item) {
            if (!own.has(item, layer)) continue;
            h[item] = work.state[own.at(item, layer)];
            if (Cell::kHasC) c[item] = work.state[offset(layer) + own.at(item, layer)];
        }
    }
    // One item, at the end of a launch.
    template <class T>
    RNNFAST_DEVICE void keep(int item, const Shard& own, const Layer& layer,
                             const Work<T>& work) const {
        work.state[own.at(item, layer)] = h[item];
        if (Cell::kHasC) work.state[offset(layer) + own.at(item, layer)] = c[item];
    }

private:
    RNNFAST_DEVICE static size_t offset(const Layer& layer) {
        return size_t(layer.batch) * layer.hidden;
    }
};

constexpr uint64_t kPatience = 10'000'000'000;  // ns; then a block has died, and waiting ends
constexpr int kLooks = 1024;                    // at the counter, between two at the clock

// All of the block's writes are there for whoever waits for them.
RNNFAST_DEVICE void publish(uint32_t* arrived) {
    meet();
    if (thread() == 0) add_released(arrived);
}

// Returns once the blocks of a shard have published so many times each.
RNNFAST_DEVICE void await(const uint32_t* arrived, int times) {
    if (thread() == 0) {
        const uint32_t wanted = uint32_t(times) * uint32_t(blocks_x());
        uint64_t start = 0;
        for (int looks = 1; int32_t(load_acquired(arrived) - wanted) < 0; ++looks) {
            if (looks % kLooks) continue;
            const uint64_t now = clock_ns();
            if (!start) start = now;
            if (now - start > kPatience) fail();
        }
    }
    meet();
}

}  // namespace cuda
}  // namespace rnnfast
