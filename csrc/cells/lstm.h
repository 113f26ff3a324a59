// The LSTM of Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000:
//   a = W x_t + b_w + R h_{t-1} + b_r;  i, f, o = sigmoid(a_i, a_f, a_o);  g = tanh(a_g)
//   c_t = f c_{t-1} + i g;  h_t = o tanh(c_t)
#pragma once

#include "simd/functions.h"

namespace rnnfast {
namespace {

struct Lstm {
    enum Slot { I, F, G, O, kSlots };  // the gate order; rows of W and R
    static constexpr int kGates = 4;
    static constexpr int gate_of_x_slot(int slot) { return slot; }
    static constexpr int gate_of_h_slot(int slot) { return slot; }
    static constexpr bool kHasC = true, kTwoProducts = false, kProjects = true;
    static constexpr bool kDirect = false;  // h_{t-1} reaches h_t only through R
    enum Saved { kI, kF, kG, kO, kC, kSaved };
    static constexpr bool kSavesY = false;

    template <class V>
    RNNFAST_INLINE static void forward(const V* a, V, V c_prev, V* saved, V& h, V& c) {
        const V i = sigmoid(a[I]), f = sigmoid(a[F]), g = tanh(a[G]), o = sigmoid(a[O]);
        c = fma(f, c_prev, i * g);
        h = o * tanh(c);
        saved[kI] = i, saved[kF] = f, saved[kG] = g, saved[kO] = o, saved[kC] = c;
    }

    // Returns h before the projection, from what training saved.
    template <class V>
    RNNFAST_INLINE static V hidden(const V* saved) {
        return saved[kO] * tanh(saved[kC]);
    }

    // `dc` is the gradient at c_t when the function is called, and the one at c_{t-1} afterwards.
    template <class V>
    RNNFAST_INLINE static void backward(const V* saved, V, V c_prev, V dh, V& dc, V* da, V&) {
        const V i = saved[kI], f = saved[kF], g = saved[kG], o = saved[kO];
        const V t = tanh(saved[kC]);
        const V dct = fma(dh * o, dtanh(t), dc);
        da[I] = dct * g * dsigmoid(i);
        da[F] = dct * c_prev * dsigmoid(f);
        da[G] = dct * i * dtanh(g);
        da[O] = dh * t * dsigmoid(o);
        dc = dct * f;
    }
};

}  // namespace
}  // namespace rnnfast
