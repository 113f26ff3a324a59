// Forward over steps: each block has some units of all gates, and publishes their h in each step.
#pragma once

#include "cuda/exchange.h"

namespace rnnfast {
namespace cuda {

template <class T>
struct Forward {
    static constexpr bool kBackward = false;

    Layer layer;
    Work<T> work;
    const T* wx;    // (T, B, G*H)  W x + b_w
    const T* bias;  // (G*H)        b_r; null: none
    T* y;           // (T, B, H)    0 past a row's length
    T* hn;          // (B, H)
    T* cn;          // (B, H)       null: the cell has no c
    T* saved;       // (T, B, kSaved*H)  null: no training
};

// Steps first..last-1 in the order run. Blocks: (units, shards), of kParts * kColumns units; those of
// a shard run at the same time where there is more than one step.
template <class Cell, class T, int kParts, int kGroups, class Exchange>
RNNFAST_DEVICE void run_forward(const Forward<T>& args, int first, int last) {
    constexpr int kGates = Cell::kGates, kUnits = kParts * kColumns;
    // Where rows are far, most warps have all units, so that rows are read once.
    constexpr int kTiles = kGates * kParts;
    constexpr int kApart = Exchange::kNear ? kParts : grid_apart(kTiles);
    using Product = Columns<T, kTiles / kApart, kApart, kGroups>;
    const Layer& layer = args.layer;
    const Work<T>& work = args.work;
    const Shard<kUnits> own(layer, work);
    float* const past_sums = shared_floats() + Product::floats(work.shard_rows);
    const Product product(work.columns + size_t(block_x()) * kGates * kUnits * work.depth,
                          work.depth, work.kept, past_sums);
    const Exchange exchange(own, layer, work, first, past_sums);

    State<Cell> state(own, layer, work);
    float bias[kGates] = {};
    if (args.bias && own.unit < layer.hidden)
        for (int gate = 0; gate < kGates; ++gate)
            bias[gate] = widen(args.bias[gate * layer.hidden + own.unit]);

    for (int step = first; step < last; ++step) {
        const int t = layer.reverse ? layer.steps - 1 - step : step;
        float wx[kItems][kGates] = {};  // read before the others are waited for
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item) {
            if (!own.has(item, layer)) continue;
            RNNFAST_UNROLL
            for (int gate = 0; gate < kGates; ++gate)
                wx[item][gate] =
                    widen(args.wx[layer.at(t, own.first + own.row(item), kGates, gate, own.unit)]);
        }
        if (step > first) exchange.await(step);
        product.multiply(exchange.rows(step), exchange.between(), own.rows, exchange);
        meet();
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item) {
            if (!own.has(item, layer)) continue;
            const int row = own.first + own.row(item);
            const bool runs = t < layer.length(row);
            if (runs) {
                const bool resets = layer.resets_at(t, row);
                float a[Cell::kSlots] = {}, saved[Cell::kSaved];
                RNNFAST_UNROLL
                for (int i = 0; i < kGates; ++i) a[i] = wx[item][Cell::gate_of_x_slot(i)];
                RNNFAST_UNROLL
                for (int i = 0; i < kGates; ++i) {
                    const int slot = i + kFirstHSlot<Cell>;
                    a[slot] += bias[Cell::gate_of_h_slot(slot)];
                    if (!resets)
                        a[slot] += product.sum(own.row(item), i * kUnits + own.column(), own.rows);
                }
                Cell::forward(a, resets ? 0.f : state.h[item], resets ? 0.f : state.c[item], saved,
                              state.h[item], state.c[item]);
                if (args.saved) RNNFAST_UNROLL
                for (int i = 0; i < int(Cell::kSaved); ++i)
                    args.saved[layer.at(t, row, Cell::kSaved, i, own.unit)] = narrow<T>(saved[i]);
            }
            const T narrowed = narrow<T>(state.h[item]);
            args.y[layer.at(t, row, 1, 0, own.unit)] = runs ? narrowed : narrow<T>(0);
            exchange.rows(step + 1)[own.row(item) * exchange.between() + own.unit] = narrowed;
        }
        if (step + 1 < last) exchange.publish(step + 1);
    }
    exchange.leave();

    RNNFAST_UNROLL
    for (int item = 0; item < kItems; ++item) {
        if (!own.has(item, layer)) continue;
        state.keep(item, own, layer, work);
        if (last < layer.steps) continue;
        args.hn[own.at(item, layer)] = narrow<T>(state.h[item]);
        if (Cell::kHasC) args.cn[own.at(item, layer)] = narrow<T>(state.c[item]);
    }
}

}  // namespace cuda
}  // namespace rnnfast
