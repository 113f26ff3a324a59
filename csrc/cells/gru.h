// The GRU of Cho et al. 2014, in the two forms that are in use. In both,
//   h_t = (1 - z) n + z h_{t-1}
#pragma once

#include "simd/functions.h"

namespace rnnfast {
namespace {

// Reset after the product, as torch and cuDNN compute it:
//   r, z = sigmoid(W x_t + b_w + R h_{t-1} + b_r)
//   n = tanh(W_n x_t + b_wn + r (R_n h_{t-1} + b_rn))
// The two terms of n have slots of their own: W feeds the slots NX, R, Z and R feeds R, Z, NH.
struct Gru {
    enum Slot { NX, R, Z, NH, kSlots };
    enum Gate { kR, kZ, kN, kGates };  // the gate order; rows of W and R
    static constexpr int gate_of_x_slot(int slot) { return slot == NX ? kN : slot - R + kR; }
    static constexpr int gate_of_h_slot(int slot) { return slot - R + kR; }
    static constexpr bool kHasC = false, kTwoProducts = false, kProjects = false;
    static constexpr bool kDirect = true;  // h_{t-1} reaches h_t also through z
    enum Saved { kSavedR, kSavedZ, kSavedN, kSavedNH, kSaved };
    static constexpr bool kSavesY = false;

    template <class V>
    RNNFAST_INLINE static void forward(const V* a, V h_prev, V, V* saved, V& h, V&) {
        const V r = sigmoid(a[R]), z = sigmoid(a[Z]);
        const V n = tanh(fma(r, a[NH], a[NX]));
        h = fma(z, h_prev - n, n);
        saved[kSavedR] = r, saved[kSavedZ] = z, saved[kSavedN] = n, saved[kSavedNH] = a[NH];
    }
    template <class V>
    RNNFAST_INLINE static void backward(const V* saved, V h_prev, V, V dh, V&, V* da, V& direct) {
        const V r = saved[kSavedR], z = saved[kSavedZ], n = saved[kSavedN];
        da[NX] = dh * (1 - z) * dtanh(n);
        da[NH] = da[NX] * r;
        da[R] = da[NX] * saved[kSavedNH] * dsigmoid(r);
        da[Z] = dh * (h_prev - n) * dsigmoid(z);
        direct = dh * z;
    }
};

// Reset before the product, ONNX's default: n = tanh(W_n x_t + b_wn + R_n (r h_{t-1}) + b_rn). All
// of r h must be there before it is multiplied by R_n, so a step has two products, forward and
// backward. Forward, the order is forward_reset, R_n, forward; backward, it is backward_candidate,
// R_n^T, backward_reset, R_{r,z}^T.
struct GruResetBefore {
    enum Slot { R, Z, N, kSlots };  // the gate order; rows of W and R
    static constexpr int kGates = 3;
    static constexpr int gate_of_x_slot(int slot) { return slot; }
    static constexpr int gate_of_h_slot(int slot) { return slot; }
    static constexpr bool kHasC = false, kTwoProducts = true, kProjects = false;
    static constexpr bool kDirect = true;  // h_{t-1} reaches h_t also through z and r
    enum Saved { kSavedR, kSavedZ, kSavedN, kSaved };
    static constexpr bool kSavesY = false;

    template <class V>
    RNNFAST_INLINE static void forward_reset(const V* a, V h_prev, V* saved, V& rh) {
        saved[kSavedR] = sigmoid(a[R]);
        saved[kSavedZ] = sigmoid(a[Z]);
        rh = saved[kSavedR] * h_prev;
    }
    template <class V>
    RNNFAST_INLINE static void forward(V a_n, V h_prev, V* saved, V& h) {
        const V n = tanh(a_n), z = saved[kSavedZ];
        h = fma(z, h_prev - n, n);
        saved[kSavedN] = n;
    }
    template <class V>
    RNNFAST_INLINE static void backward_candidate(const V* saved, V h_prev, V dh, V* da) {
        const V z = saved[kSavedZ], n = saved[kSavedN];
        da[N] = dh * (1 - z) * dtanh(n);
        da[Z] = dh * (h_prev - n) * dsigmoid(z);
    }
    // drh = R_n^T da[N].
    template <class V>
    RNNFAST_INLINE static void backward_reset(const V* saved, V h_prev, V dh, V drh, V* da, V& rh,
                                              V& direct) {
        const V r = saved[kSavedR], z = saved[kSavedZ];
        da[R] = drh * h_prev * dsigmoid(r);
        rh = r * h_prev;
        direct = fma(drh, r, dh * z);
    }
};

}  // namespace
}  // namespace rnnfast
