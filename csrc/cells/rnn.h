// The RNN of Elman 1990: h_t = f(W x_t + b_w + R h_{t-1} + b_r), f = tanh or relu.
#pragma once

#include "simd/functions.h"

namespace rnnfast {
namespace {

struct Rnn {
    enum Slot { A, kSlots };
    static constexpr int kGates = 1;
    static constexpr int gate_of_x_slot(int slot) { return slot; }
    static constexpr int gate_of_h_slot(int slot) { return slot; }
    static constexpr bool kHasC = false, kTwoProducts = false, kProjects = false;
    static constexpr bool kDirect = false;  // h_{t-1} reaches h_t only through R
    enum Saved { kH, kSaved };
    static constexpr bool kSavesY = true;  // backward needs nothing but y
};

struct RnnTanh : Rnn {
    template <class V>
    RNNFAST_INLINE static void forward(const V* a, V, V, V* saved, V& h, V&) {
        h = tanh(a[A]);
        saved[kH] = h;
    }
    template <class V>
    RNNFAST_INLINE static void backward(const V* saved, V, V, V dh, V&, V* da, V&) {
        da[A] = dh * dtanh(saved[kH]);
    }
};

struct RnnRelu : Rnn {
    template <class V>
    RNNFAST_INLINE static void forward(const V* a, V, V, V* saved, V& h, V&) {
        h = at_least(V{}, a[A]);
        saved[kH] = h;
    }
    template <class V>
    RNNFAST_INLINE static void backward(const V* saved, V, V, V dh, V&, V* da, V&) {
        da[A] = saved[kH] <= 0 ? V{} : dh;
    }
};

}  // namespace
}  // namespace rnnfast
