// What a pass finds when it starts: the columns that blocks multiply by, and the states before its
// first step. One element at a time, so that the threads of a kernel take them in any order.
#pragma once

#include "cuda/layer.h"

namespace rnnfast {
namespace cuda {

// R (G*H, H) as columns of blocks. Forward, (blocks, gates, units, depth), its rows; backward,
// (blocks, units, gates, depth of a gate), its columns. Zeros beyond H.
template <class T>
struct Packing {
    const T* weights;
    int hidden, gates, units, depth;  // units: of a block
    bool backward;
    T* columns;

    RNNFAST_INLINE int rows() const { return backward ? 1 : gates; }  // of R, for each unit
    RNNFAST_INLINE size_t count() const {
        return size_t(whole(hidden, units)) * rows() * units * depth;
    }
    RNNFAST_INLINE void run(size_t i) const {
        const int k = int(i % depth), column = int(i / depth % units);
        const int row = int(i / depth / units % rows());
        const int unit = int(i / depth / units / rows()) * units + column;
        const int gate_depth = backward ? depth / gates : depth;
        const int gate = backward ? k / gate_depth : row, other = k % gate_depth;
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
