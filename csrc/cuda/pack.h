// What a pass finds when it starts: the columns that blocks multiply by, and the states before its
// first step. One element at a time, so that the threads of a kernel take them in any order.
#pragma once

#include "cuda/layer.h"

namespace rnnfast {
namespace cuda {

// R (G*H, H) as columns of blocks, (blocks, depth / kGroup, columns, kGroup). Forward its rows, of all
// gates of the block's units; backward its columns, of which each has all gates. Zeros beyond H.
template <class T>
struct Packing {
    const T* weights;
    int hidden, gates, units, depth;  // units: of a block
    bool backward;
    T* columns;

    RNNFAST_INLINE int of_block() const { return backward ? units : gates * units; }
    RNNFAST_INLINE size_t count() const {
        return size_t(whole(hidden, units)) * of_block() * depth;
    }
    RNNFAST_INLINE void run(size_t i) const {
        const size_t line = i / kGroup<T>;  // a group of a column
        const int column = int(line % of_block()), groups = depth / kGroup<T>;
        const int k = int(line / of_block() % groups) * kGroup<T> + int(i % kGroup<T>);
        const int unit = int(line / of_block() / groups) * units + column % units;
        const int gate_depth = backward ? depth / gates : depth;
        const int gate = backward ? k / gate_depth : column / units, other = k % gate_depth;
        const int from = backward ? other : unit, to = backward ? unit : other;
        columns[i] = unit < hidden && other < hidden
                         ? quiet(weights[(size_t(gate) * hidden + from) * hidden + to])
                         : narrow<T>(0);
    }
};

// The states, in the arrays that a pass keeps them in, and nothing published but h.
template <class T>
struct Starting {
    Layer layer;
    Work<T> work;
    const T* h;  // (B, H)  backward: dhn; null: zeros
    const T* c;  // (B, H)  backward: dcn; null: zeros
    bool publishes;
    int shards;

    RNNFAST_INLINE size_t count() const { return 2 * size_t(layer.batch) * work.depth; }
    RNNFAST_INLINE void run(size_t i) const {
        const int k = int(i % work.depth), row = int(i / work.depth % layer.batch);
        const bool is_c = i >= count() / 2;
        float value = 0;
        if (k < layer.hidden) {
            const size_t at = size_t(row) * layer.hidden + k;
            const T* const from = is_c ? c : h;
            if (from) value = quiet(widen(from[at]));
            work.state[(is_c ? size_t(layer.batch) * layer.hidden : 0) + at] = value;
        }
        work.exchange[i] = narrow<T>(publishes && !is_c ? value : 0);
        if (i < size_t(shards)) work.arrived[i] = 0;
    }
};

}  // namespace cuda
}  // namespace rnnfast
