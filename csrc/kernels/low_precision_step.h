// One layer of a stream with weights and operands in low precision: the equations, states and biases
// are those of the forward pass in float32.
#pragma once

#include "kernels/low_precision.h"
#include "kernels/sequence_forward.h"

namespace rnnfast {
namespace {

// Biases, as PackedLayout has them, and behind them the matrices, in float32 or as long.
template <class Cell>
struct LowPack {
    const Shape<Cell, float> shape;
    const Matrices<Cell, float> from;
    const PackedLayout<Cell, float> biases;
    const LowLayout of_w, of_r, of_second, of_projection;
    ptrdiff_t w, r, r_second, projection, size;

    LowPack(const Sizes& sizes, const Weights<const float>& weights, const FormatFunctions& format)
        : shape(sizes),
          from(shape, weights),
          biases(shape),
          of_w(from.w, format.of_word, format.scaled),
          of_r(from.r, format.of_word, format.scaled),
          of_second(from.r_second, format.of_word, format.scaled),
          of_projection(from.projection, format.of_word, format.scaled) {
        w = biases.w;  // the first behind the biases
        r = w + of_w.size;
        r_second = r + of_r.size;
        projection = r_second + (Cell::kTwoProducts ? of_second.size : 0);
        size = projection + (shape.projection ? of_projection.size : 0);
    }
};

template <class Cell>
RNNFAST_OUTLINE void pack_low_precision(const Sizes& sizes, const Weights<const float>& weights,
                                        const FormatFunctions& format, float* out) {
    const LowPack<Cell> at(sizes, weights, format);
    add_biases(at.shape, weights.bias_ih, weights.bias_hh, out + at.biases.bias_x,
               out + at.biases.bias_h);
    format.pack(at.from.w, out + at.w);
    format.pack(at.from.r, out + at.r);
    if (Cell::kTwoProducts) format.pack(at.from.r_second, out + at.r_second);
    if (at.shape.projection) format.pack(at.from.projection, out + at.projection);
}

template <class Cell>
class LowStepPass : ForwardPass<Cell, float> {
    using Pass = ForwardPass<Cell, float>;
    using Pass::args, Pass::bias_x, Pass::count, Pass::pre, Pass::pre_ld, Pass::shape;
    static constexpr int kGates = Cell::kGates, kInFirst = Pass::kInFirst;

    const FormatFunctions& format;
    LowPanels w, r, r_second, projection;
    LowRoom room;  // for the left operand of the product at hand
    ptrdiff_t sums_ld;
    float* sums;  // of that product, if it is with h

public:
    RNNFAST_OUTLINE LowStepPass(const ForwardArgs<float>& a, const Plan& plan, float* scratch,
                                const FormatFunctions& f)
        : Pass(a, plan, {{0, plan.batch}}, scratch), format(f) {
        place(scratch);
        const LowPack<Cell> at(a.sizes, {}, format);
        w = at.of_w.panels(a.packed + at.w);
        r = at.of_r.panels(a.packed + at.r);
        r_second = at.of_second.panels(a.packed + at.r_second);
        projection = at.of_projection.panels(a.packed + at.projection);
    }

    // As ForwardPass::place.
    RNNFAST_OUTLINE ptrdiff_t place(float* memory) {
        Scratch<float> scratch{memory, Pass::place(memory)};
        const ptrdiff_t widest = shape.input > shape.hidden ? shape.input : shape.hidden;
        // A row in whole vectors of elements.
        const ptrdiff_t words =
            spread<float>(vectors<float>(widest) * kLanes<float> / format.of_word);
        room.rows = reinterpret_cast<unsigned char*>(scratch.take(count * words));
        room.ld = words * kWordBytes;
        room.scales = scratch.take(count);
        sums_ld = spread<float>(kInFirst * shape.padded);
        sums = scratch.take(count * sums_ld);
        return scratch.end;
    }

    // The standard's placement new is an inline function, which might be shared between ISAs.
    static void* operator new(size_t, void* memory) { return memory; }

    // From args.x to args.y, which may be the same memory: all of x is read first.
    RNNFAST_OUTLINE void step() {
        for (ptrdiff_t p = 0; p < count; ++p)
            copy_or_zero(pre + p * pre_ld, bias_x, shape.pre_row());
        multiply<kGates>(args.x, args.x_row, shape.input, w, pre, pre_ld);
        float* const kept = Cell::kTwoProducts ? this->part : nullptr;
        multiply_and_apply<kInFirst>(this->h, this->h_ld, shape.width, r,
                                     typename Pass::FirstStep{this, pre, kept, args.y});
        if constexpr (Cell::kTwoProducts)
            multiply_and_apply<1>(
                this->reset_h, this->unit_ld, shape.hidden, r_second,
                typename Pass::template Step<1, Cell::kSlots - 1>{this, pre, kept, args.y});
        if constexpr (Cell::kProjects)
            if (shape.projection) {
                for (ptrdiff_t p = 0; p < count; ++p)
                    copy_or_zero<float>(this->h_next + p * this->h_ld, nullptr, shape.h_row());
                multiply<1>(this->hidden, this->unit_ld, shape.hidden, projection, this->h_next,
                            this->h_ld);
                for (ptrdiff_t p = 0; p < count; ++p)
                    copy_or_zero(this->y_row(p, args.y), this->h_next + p * this->h_ld,
                                 shape.width);
            }
        this->take_turn(count, args.y);
    }

    RNNFAST_OUTLINE void set_state() { this->start(); }
    RNNFAST_OUTLINE void get_state() { this->finish(0, count); }
    RNNFAST_OUTLINE void reset() {
        for (ptrdiff_t p = 0; p < count; ++p) this->cut(0, p);
    }

private:
    // to += from, rows of n elements, times panels of `kGatesHere` gates.
    template <int kGatesHere>
    void multiply(const float* from, ptrdiff_t from_ld, ptrdiff_t n, const LowPanels& panels,
                  float* to, ptrdiff_t to_ld) {
        format.multiply(panel_width(kGatesHere), count, from, from_ld, n, room, panels,
                        {to, to_ld});
    }

    // The same from where `step`'s sums start, and its equations from the sums.
    template <int kGatesHere, class Step>
    void multiply_and_apply(const float* from, ptrdiff_t from_ld, ptrdiff_t n,
                            const LowPanels& panels, const Step& step) {
        constexpr ptrdiff_t L = kLanes<float>;
        for (ptrdiff_t p = 0; p < count; ++p)
            for (ptrdiff_t b = 0; b < shape.blocks; ++b) {
                Floats a[1][kGatesHere];
                step.start(p, b * kGatesHere, a);
                for (int g = 0; g < kGatesHere; ++g)
                    store(sums + p * sums_ld + (b * kGatesHere + g) * L, a[0][g]);
            }
        multiply<kGatesHere>(from, from_ld, n, panels, sums, sums_ld);
        for (ptrdiff_t p = 0; p < count; ++p)
            for (ptrdiff_t b = 0; b < shape.blocks; ++b) {
                Floats a[kGatesHere];
                for (int g = 0; g < kGatesHere; ++g)
                    a[g] = load(sums + p * sums_ld + (b * kGatesHere + g) * L);
                step.unit_block(p, b, a);
            }
    }
};

}  // namespace
}  // namespace rnnfast
