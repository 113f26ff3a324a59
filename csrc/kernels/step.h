// One layer of a stream: a forward pass over one step that is kept from step to step, with its state.
#pragma once

#include "kernels/sequence_forward.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class StepPass : ForwardPass<Cell, T> {
    using Pass = ForwardPass<Cell, T>;
    using Pass::args, Pass::at, Pass::bias_h, Pass::bias_x, Pass::count, Pass::pre, Pass::pre_ld,
        Pass::shape;
    static constexpr ptrdiff_t L = kLanes<T>;
    static constexpr int kGates = Cell::kGates, kWidth = panel_width(kGates);

    Right<T> r;  // kept: to find it takes divisions

public:
    StepPass(const ForwardArgs<T>& a, const Plan& plan, T* scratch)
        : Pass(a, plan, {{0, plan.batch}}, scratch),
          r(this->template right<Pass::kInFirst>(at.r, this->weights.r)) {
        r.beside = (r.end - r.begin) * kVectorBytes * shape.input;
    }

    // The standard's placement new is an inline function, which might be shared between ISAs.
    static void* operator new(size_t, void* memory) { return memory; }

    // From args.x to args.y, which may be the same memory.
    void step() {
        this->prepared = {};
        if constexpr (!Cell::kTwoProducts)
            if (!args.format && apart()) {
                r.downwards = this->is_other;
                const Operand<T> h{this->h, this->h_ld, shape.width};
                product<kWidth, kGates>(count, h, r, Fused{{this, pre, nullptr, args.y}, this});
                return this->end_step(count, args.y);
            }
        this->input_product({{0, 1}, count});
        Pass::step(0, count, 0);
    }

    void set_state() { this->start(); }
    void get_state() { this->finish(0, count); }
    void reset() {
        for (ptrdiff_t p = 0; p < count; ++p) this->cut(0, p);
    }

private:
    // Whether no y is written where an x is yet to be read.
    bool apart() const {
        return args.x + count * shape.input <= args.y || args.y + count * shape.width <= args.x;
    }

    // Both products in one tile: the sums over h go on from those over x in registers.
    struct Fused {
        typename Pass::FirstStep own;
        const StepPass* pass;

        template <int M, int W>
        RNNFAST_INLINE void start(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
            const ForwardArgs<T>& args = pass->args;
            const ptrdiff_t input = pass->shape.input;
            const T* const panel = args.packed + pass->at.w + column * input * L;
            constexpr int kPanels = W > kWidth ? W / kWidth : 1, kOfPanel = W / kPanels;
            StoreBiased<T>{pass->bias_x, nullptr, 0}.start(first, column, acc);
            multiply<M, kOfPanel, kPanels>(input, args.x + first * args.x_row, args.x_row, panel,
                                           input * kOfPanel * L, panel, acc);
            if constexpr (kApart<Cell> > 0) move_apart(first, column / kGates, acc);
        }

        template <int M, int W>
        RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
            own.finish(first, column, acc);
        }

        // From the sums of W's slots to those of R's, of blocks of units: what R does not feed is
        // kept in memory, and what it alone feeds starts from its bias.
        template <int M, int W>
        RNNFAST_INLINE void move_apart(ptrdiff_t first, ptrdiff_t b, Vec<T> (&acc)[M][W]) const {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                T* const kept = pass->pre + (first + m) * pass->pre_ld + b * kGates * L;
#pragma GCC unroll 8
                for (int v = 0; v < W; ++v) {
                    const int slot = v % kGates + kApart<Cell>;
                    const ptrdiff_t apart = (b + v / kGates) * kApart<Cell> + slot - kGates;
                    if (v % kGates < kApart<Cell>) store(kept + v * L, acc[m][v]);
                    acc[m][v] = slot < kGates ? acc[m][(v + kApart<Cell>) % W]
                                              : load(pass->bias_h + apart * L);
                }
            }
        }
    };
};

}  // namespace
}  // namespace rnnfast
