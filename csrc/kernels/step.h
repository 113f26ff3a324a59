// One layer of a stream: a forward pass over one step that is kept from step to step, together with
// its state.
#pragma once

#include "kernels/sequence_forward.h"

namespace rnnfast {
namespace {

template <class Cell, class T>
class StepPass : ForwardPass<Cell, T> {
    using Pass = ForwardPass<Cell, T>;
    using Pass::args, Pass::at, Pass::bias_x, Pass::count, Pass::pre, Pass::pre_ld, Pass::shape;
    static constexpr ptrdiff_t L = kLanes<T>;
    static constexpr int kGates = Cell::kGates, kWidth = panel_width(kGates);

    Right<T> r;  // kept, because to compute it takes divisions

public:
    StepPass(const ForwardArgs<T>& a, const Plan& plan, T* scratch)
        : Pass(a, plan, {{0, plan.batch}}, scratch),
          r(this->template right<Pass::kInFirst>(at.r, this->weights.r)) {
        r.beside = (r.end - r.begin) * kVectorBytes * shape.input;
    }

    // The standard's placement new is an inline function, and the linker might share it between
    // ISAs.
    static void* operator new(size_t, void* memory) { return memory; }

    // Runs one step from args.x to args.y, which may be the same memory.
    void step() {
        this->prepared = {};
        if constexpr (!Cell::kTwoProducts)
            if (!args.format && apart()) {
                r.downwards = this->is_other;
                const Operand<T> h{this->h, this->h_ld, shape.width};
                const bool is_long = shape.width > kLongSum;
                product<kWidth, kGates>(count, h, r,
                                        Fused{{this, pre, nullptr, args.y, is_long}, this});
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
    // Whether x and y do not overlap, so that no y is written where x is yet to be read.
    bool apart() const {
        return args.x + count * shape.input <= args.y || args.y + count * shape.width <= args.x;
    }

    // An epilogue that puts both products of a step into one tile. First it computes the sums over
    // x. The sums over h either go on from them in registers, or start from zeros while the sums
    // over x wait in memory.
    struct Fused {
        typename Pass::FirstStep own;
        const StepPass* pass;

        template <int M, int W>
        RNNFAST_INLINE void start(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
            const ForwardArgs<T>& args = pass->args;
            const ptrdiff_t input = pass->shape.input;
            const T* const panel = args.packed + pass->at.w + column * input * L;
            constexpr int kPanels = W > kWidth ? W / kWidth : 1, kOfPanel = W / kPanels;
            const StoreBiased<T> store_pre{pass->bias_x, pass->pre, pass->pre_ld};
            store_pre.start(first, column, acc);
            multiply<M, kOfPanel, kPanels>(input, args.x + first * args.x_row, args.x_row, panel,
                                           input * kOfPanel * L, panel, acc);
            if (!own.from_zeros()) return;
            store_pre.finish(first, column, acc);
            own.start(first, column, acc);
        }

        template <int M, int W>
        RNNFAST_INLINE void finish(ptrdiff_t first, ptrdiff_t column, Vec<T> (&acc)[M][W]) const {
            own.finish(first, column, acc);
        }
    };
};

}  // namespace
}  // namespace rnnfast
