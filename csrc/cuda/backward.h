// Backward over steps: each block has the gate gradients of some units, which it publishes in each
// step, and multiplies all that were published by its columns of R for dh of the same units.
//
// The gradients of W, R, the biases and x are products over all steps, which the caller takes from
// what is written here.
#pragma once

#include "cuda/exchange.h"

namespace rnnfast {
namespace cuda {

template <class T>
struct Backward {
    static constexpr bool kBackward = true;

    Layer layer;
    Work<T> work;    // published gate gradients: (gates, H rounded up) a row, as R^T's columns
    const T* saved;  // (T, B, kSaved*H)
    const T* y;      // (T, B, H)  null: not read by the cell
    const T* h0;     // (B, H)     null: zeros
    const T* c0;     // (B, H)     null: zeros, or the cell has no c
    const T* dy;     // (T, B, H)  null: zeros
    T* da;           // (T, B, G*H)  out: gradients at W x + b_w; 0 past a row's length
    T* da_hidden;    // (T, B, H)    out: those of the last gate at R h + b_r, where they are others
    T* dh0;          // (B, H)  out; null: not wanted
    T* dc0;          // (B, H)  out; null: not wanted, or the cell has no c

    // h or c before step t.
    RNNFAST_INLINE float before(int t, int row, int unit, const T* kept, int parts, int part,
                                const T* initial) const {
        if (layer.resets_at(t, row)) return 0;
        if (layer.has_previous(t, row))
            return widen(kept[layer.at(layer.previous(t), row, parts, part, unit)]);
        return initial ? widen(initial[size_t(row) * layer.hidden + unit]) : 0;
    }
};

// What a step reads of an item, before others are waited for.
template <class Cell>
struct StepInputs {
    float saved[Cell::kSaved] = {};
    float h = 0, c = 0, dy = 0;
};

template <class Cell, class T>
RNNFAST_DEVICE StepInputs<Cell> step_inputs(const Backward<T>& args, int t, int row, int unit) {
    const Layer& layer = args.layer;
    StepInputs<Cell> in;
    if (t < layer.length(row)) {
        RNNFAST_UNROLL
        for (int i = 0; i < int(Cell::kSaved); ++i)
            in.saved[i] = widen(args.saved[layer.at(t, row, Cell::kSaved, i, unit)]);
        if constexpr (Cell::kDirect) in.h = args.before(t, row, unit, args.y, 1, 0, args.h0);
        if constexpr (Cell::kHasC)
            in.c = args.before(t, row, unit, args.saved, Cell::kSaved, Cell::kC, args.c0);
        if (args.dy) in.dy = widen(args.dy[layer.at(t, row, 1, 0, unit)]);
    }
    return in;
}

// Steps first..last-1 in the order run, last steps of the sequence first; step T is the product
// that gives dh0. Blocks as in run_forward.
template <class Cell, class T, int kParts, int kGroups, class Exchange>
RNNFAST_DEVICE void run_backward(const Backward<T>& args, int first, int last) {
    constexpr int kGates = Cell::kGates, kUnits = kParts * kColumns;
    // Each warp has all units: what is published is long, and so read once.
    using Product = Columns<T, kParts, 1, kGroups>;
    const Layer& layer = args.layer;
    const Work<T>& work = args.work;
    const Shard<kUnits> own(layer, work);
    float* const past_sums = shared_floats() + Product::floats(work.shard_rows);
    const Product product(work.columns + size_t(block_x()) * kUnits * work.depth, work.depth,
                          work.kept, past_sums);
    const Exchange exchange(own, layer, work, first, past_sums);
    const int gate_depth = work.depth / kGates;

    State<Cell> state(own, layer, work);
    float (&dh)[kItems] = state.h, (&dc)[kItems] = state.c;

    for (int step = first; step < last; ++step) {
        const int t = layer.reverse ? step : layer.steps - 1 - step;
        const bool has_step = step < layer.steps;
        StepInputs<Cell> in[kItems];
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item)
            if (has_step && own.has(item, layer))
                in[item] = step_inputs<Cell>(args, t, own.first + own.row(item), own.unit);
        if (step > first) exchange.await(step);
        if (step > 0) {
            product.multiply(exchange.rows(step), exchange.between(), own.rows, exchange);
            meet();
        }
        RNNFAST_UNROLL
        for (int item = 0; item < kItems; ++item) {
            if (!own.has(item, layer)) continue;
            const int row = own.first + own.row(item);
            if (step > 0) dh[item] += product.sum(own.row(item), own.column(), own.rows);
            if (!has_step) continue;
            const bool runs = t < layer.length(row);
            float da[Cell::kSlots] = {}, direct = dh[item];
            if (runs) {
                direct = 0;
                Cell::backward(in[item].saved, in[item].h, in[item].c, dh[item] + in[item].dy,
                               dc[item], da, direct);
            }
            const bool stops = runs && layer.resets_at(t, row);  // the state before had no part
            dh[item] = stops ? 0 : direct;
            if (stops) dc[item] = 0;
            T* const to = exchange.rows(step + 1) + own.row(item) * exchange.between() + own.unit;
            RNNFAST_UNROLL
            for (int i = 0; i < kGates; ++i) {
                const int slot = i + kFirstHSlot<Cell>, gate = Cell::gate_of_h_slot(slot);
                args.da[layer.at(t, row, kGates, Cell::gate_of_x_slot(i), own.unit)] =
                    narrow<T>(da[i]);
                to[gate * gate_depth] = narrow<T>(stops ? 0 : da[slot]);
                if (kFirstHSlot<Cell> > 0 && i == kGates - 1)
                    args.da_hidden[layer.at(t, row, 1, 0, own.unit)] = narrow<T>(da[slot]);
            }
        }
        if (step + 1 < last) exchange.publish(step + 1);
    }
    exchange.leave();

    RNNFAST_UNROLL
    for (int item = 0; item < kItems; ++item) {
        if (!own.has(item, layer)) continue;
        state.keep(item, own, layer, work);
        if (last <= layer.steps) continue;
        const size_t at = own.at(item, layer);
        if (args.dh0) args.dh0[at] = narrow<T>(dh[item]);
        if (Cell::kHasC && args.dc0) args.dc0[at] = narrow<T>(dc[item]);
    }
}

}  // namespace cuda
}  // namespace rnnfast
