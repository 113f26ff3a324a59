// The arguments that the dispatcher passes to a kernel. This file needs only <cstddef> and <cstdint>.
//
// Letters: T steps, B batch, I input, H hidden, P projection size (0: none), W width of h (P or H),
// G gates. Strides and sizes are in elements. Gradients of parameters marked "in/out" are added to (+=);
// gradients of activations are assigned. rnnfast/_backend.py describes the same contract in Python.
#pragma once

#include <cstddef>
#include <cstdint>

// Functions here are always inlined: if an ISA's object held a copy, the linker could use it for code that
// must run on other CPUs.
#if defined(__CUDACC__)
#define RNNFAST_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define RNNFAST_INLINE inline __attribute__((always_inline))
#endif

namespace rnnfast {

struct Format;  // a format of low precision: core/format.h

struct Sizes {
    ptrdiff_t input;       // I
    ptrdiff_t hidden;      // H
    ptrdiff_t projection;  // P, 0: none

    RNNFAST_INLINE ptrdiff_t width() const { return projection ? projection : hidden; }
};

// Parameters in torch's layout, contiguous.
template <class T>
struct Weights {
    T* weight_ih;  // (G*H, I)
    T* weight_hh;  // (G*H, W)
    T* bias_ih;    // (G*H)  null: none
    T* bias_hh;    // (G*H)  null: none
    T* weight_hr;  // (P, H) null when P = 0
};

// Tells which rows have which steps. Rows are sorted by length, longest first, so that the rows that have
// a step are always the first ones. The "place" of a row is its position in that order.
struct Plan {
    ptrdiff_t steps;          // T
    ptrdiff_t batch;          // B
    bool reverse;             // whether it runs from step T-1 down to 0
    const ptrdiff_t* order;   // (B)    the caller's row at each place; null: place = row
    const ptrdiff_t* active;  // (T)    the number of rows that have step t; null: B
    const ptrdiff_t* first;   // (T+1)  the sum of those numbers over the steps before t; null: t*B
    // Whether x, y and their gradients have only these rows, in the order of the plan and without padding.
    // Then they have no stride of T: step t of a place is row `start(t) + place`. Besides, place = row.
    bool ragged = false;

    RNNFAST_INLINE ptrdiff_t row(ptrdiff_t place) const { return order ? order[place] : place; }
    RNNFAST_INLINE ptrdiff_t rows(ptrdiff_t t) const { return active ? active[t] : batch; }
    RNNFAST_INLINE ptrdiff_t start(ptrdiff_t t) const { return first ? first[t] : t * batch; }

    // The offset of step t, that is, of the caller's row 0, in an array (T, B, ·) with these strides.
    RNNFAST_INLINE ptrdiff_t offset(ptrdiff_t t, ptrdiff_t step, ptrdiff_t row_stride) const {
        return ragged ? start(t) * row_stride : t * step;
    }
    // The number of rows of such an array without gaps.
    RNNFAST_INLINE ptrdiff_t array_rows() const { return ragged ? start(steps) : steps * batch; }

    // The step that runs just before t, and the number of rows that have it. The other rows of t start at t.
    RNNFAST_INLINE ptrdiff_t previous(ptrdiff_t t) const { return reverse ? t + 1 : t - 1; }
    RNNFAST_INLINE ptrdiff_t rows_before(ptrdiff_t t) const {
        const ptrdiff_t p = previous(t);
        return p < 0 || p >= steps ? 0 : rows(p);
    }
};

// Some places of a batch, or some units: every step-th from begin to end-1.
struct Shard {
    ptrdiff_t begin;
    ptrdiff_t end;
    ptrdiff_t step = 1;

    RNNFAST_INLINE ptrdiff_t at(ptrdiff_t i) const { return begin + i * step; }
    // The number of them that are below n.
    RNNFAST_INLINE ptrdiff_t clip(ptrdiff_t n) const {
        const ptrdiff_t last = n < end ? n : end;
        return last <= begin ? 0 : (last - begin + step - 1) / step;
    }
    RNNFAST_INLINE ptrdiff_t count() const { return clip(end); }
};

// Part `part` of `parts` of n things. `share` takes neighbours. `share_in_turn` takes every `parts`-th, which
// is fair if the things are sorted by size.
RNNFAST_INLINE Shard share(ptrdiff_t n, ptrdiff_t part, ptrdiff_t parts) {
    return {n * part / parts, n * (part + 1) / parts};
}
RNNFAST_INLINE Shard share_in_turn(ptrdiff_t n, ptrdiff_t part, ptrdiff_t parts) {
    return {part, n, parts};
}

// How a layer keeps pace with others that run at the same time over the same steps, one chunk apart. Steps
// are counted in the order in which they run.
struct Relay {
    ptrdiff_t most_steps;                          // the most steps in a chunk
    void (*await)(void* state, ptrdiff_t steps);   // returns once x has this many steps
    void (*report)(void* state, ptrdiff_t steps);  // called once y has this many steps
    void* state;
};

// A thread's work in every step: some of the places or, if `parts` is above 1, some of the units of all
// places. In the latter case, the threads share their scratch, and meet before a product needs all of h.
struct Slice {
    Shard rows;
    ptrdiff_t part = 0, parts = 1;
    void (*wait)(void* place) = nullptr;  // returns once all parts have come
    void* place = nullptr;
    const Relay* relay = nullptr;

    RNNFAST_INLINE void meet() const {
        if (parts > 1) wait(place);
    }
};

// Steps begin..end-1, counted in the order of time in both directions.
struct Chunk {
    ptrdiff_t begin;
    ptrdiff_t end;
};

template <class T>
struct ForwardArgs {
    Sizes sizes;
    const T* packed;           // the output of pack(); null: the pass reads `weights`
    Weights<const T> weights;  // all null if there is a pack
    const T* x;                // (T, B, I)  in; rows of unit stride
    ptrdiff_t x_step;          //            stride of T; unused if the plan is ragged
    ptrdiff_t x_row;           //            stride of B
    const T* h0;               // (B, W)     in; null: zeros
    const T* c0;               // (B, H)     in; null: zeros, or the cell has no c
    const uint8_t* reset;  // (T, B)  in; null: never. Nonzero: the state is zero before the step
    T* y;                  // (T, B, W)  out in forward (0 past a row's length); in for backward
    ptrdiff_t y_step;
    ptrdiff_t y_row;
    T* hn;     // (B, W)  out in forward, unused in backward: h after each row's last step
    T* cn;     // (B, H)  likewise for c; null: the cell has no c
    T* saved;  // (rows of the plan, saved_row())  out in forward, in for backward; null: no training,
               // or backward reads y instead
    const Format* format = nullptr;  // of the pack and of operands; null: T. Only if T is float
};

// The data from which the parameters' gradients of one step are computed. An earlier pass over the step has
// stored its gate gradients.
template <class T>
struct LeftStep {
    const T* x;       // (B, I)  rows of unit stride
    ptrdiff_t x_row;  //         stride of B
    const T* h;       // (B, W)  h before the step; null: zeros
    const T* gates;   // (B, gradient_row())
};

template <class T>
struct BackwardArgs {
    const T* transposed;    // R and P from pack_transposed(); null: there is no pack, or no need
    const T* transposed_w;  // W likewise; null also if the pass makes it piece by piece
    const T* dy;            // (T, B, W)  in; null: zeros; not read past a row's length
    ptrdiff_t dy_step;
    ptrdiff_t dy_row;
    const T* dhn;  // (B, W)  in; null: zeros
    const T* dcn;  // (B, H)  in; null: zeros, or the cell has no c
    T* dx;         // (T, B, I)  out, assigned (0 past a row's length); null: not wanted
    ptrdiff_t dx_step;
    ptrdiff_t dx_row;
    T* dh0;              // (B, W)  out, assigned; null: not wanted
    T* dc0;              // (B, H)  out, assigned; null: not wanted, or the cell has no c
    Weights<T> weights;  // in/out, added to; if `assign`, out, assigned; null: not wanted
    bool assign = false;
    // (B, gradient_row())  out: the gradients at the gates, in a pass of one step; null: not wanted
    T* gates = nullptr;
    // (T)  in; null: an ordinary pass. Otherwise the pass reads only this, and computes only the gradients
    // of the parameters. The cell must have neither two products nor a projection.
    const LeftStep<T>* left = nullptr;
};

}  // namespace rnnfast
