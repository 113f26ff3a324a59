// What crosses from the dispatcher to a kernel. Depends on nothing but <cstddef> and <cstdint>.
//
// Letters: T steps, B batch, I input, H hidden, P projection size (0: none), W width of h (P or H),
// G gates. Strides and sizes are in elements. "in/out" gradients of parameters accumulate (+=);
// gradients of activations are assigned. rnnfast/_backend.py is the same contract in Python.
#pragma once

#include <cstddef>
#include <cstdint>

// Always inlined: an ISA's object must not hold a copy that the linker could hand to other code.
#if defined(__CUDACC__)
#define RNNFAST_INLINE __host__ __device__ inline __attribute__((always_inline))
#else
#define RNNFAST_INLINE inline __attribute__((always_inline))
#endif

namespace rnnfast {

struct Format;  // of low precision: core/format.h

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

// Which rows have which steps. Rows are sorted by length, longest first, so that the rows that have
// a step are always the first ones: "place" is a row's position in that order.
struct Plan {
    ptrdiff_t steps;          // T
    ptrdiff_t batch;          // B
    bool reverse;             // runs from step T-1 down to 0
    const ptrdiff_t* order;   // (B)    the caller's row at each place; null: place = row
    const ptrdiff_t* active;  // (T)    rows that have step t; null: all B
    const ptrdiff_t* first;   // (T+1)  rows of all the steps before t; null: t*B
    // Whether x, y and their gradients hold these rows alone, in the order of the plan, without
    // padding: row `start(t) + place`, and no stride of T. Then place = row.
    bool ragged = false;

    RNNFAST_INLINE ptrdiff_t row(ptrdiff_t place) const { return order ? order[place] : place; }
    RNNFAST_INLINE ptrdiff_t rows(ptrdiff_t t) const { return active ? active[t] : batch; }
    RNNFAST_INLINE ptrdiff_t start(ptrdiff_t t) const { return first ? first[t] : t * batch; }

    // Where step t starts in an array (T, B, ·), from its strides; the caller's row 0 lies there.
    RNNFAST_INLINE ptrdiff_t offset(ptrdiff_t t, ptrdiff_t step, ptrdiff_t row_stride) const {
        return ragged ? start(t) * row_stride : t * step;
    }
    // The rows of such an array that lies without gaps.
    RNNFAST_INLINE ptrdiff_t array_rows() const { return ragged ? start(steps) : steps * batch; }

    // The step that runs just before t, and how many rows have it: the rest of t's rows start at t.
    RNNFAST_INLINE ptrdiff_t previous(ptrdiff_t t) const { return reverse ? t + 1 : t - 1; }
    RNNFAST_INLINE ptrdiff_t rows_before(ptrdiff_t t) const {
        const ptrdiff_t p = previous(t);
        return p < 0 || p >= steps ? 0 : rows(p);
    }
};

// Some of n things, every step-th of begin..end-1: places of a batch, or units.
struct Shard {
    ptrdiff_t begin;
    ptrdiff_t end;
    ptrdiff_t step = 1;

    RNNFAST_INLINE ptrdiff_t at(ptrdiff_t i) const { return begin + i * step; }
    // How many of them are below n.
    RNNFAST_INLINE ptrdiff_t clip(ptrdiff_t n) const {
        const ptrdiff_t last = n < end ? n : end;
        return last <= begin ? 0 : (last - begin + step - 1) / step;
    }
    RNNFAST_INLINE ptrdiff_t count() const { return clip(end); }
};

// Part `part` of `parts` of n things: neighbours, or taken in turn, which is as fair where the things
// are sorted by size.
RNNFAST_INLINE Shard share(ptrdiff_t n, ptrdiff_t part, ptrdiff_t parts) {
    return {n * part / parts, n * (part + 1) / parts};
}
RNNFAST_INLINE Shard share_in_turn(ptrdiff_t n, ptrdiff_t part, ptrdiff_t parts) {
    return {part, n, parts};
}

// A layer among others that run at the same time over the same steps, a chunk apart. Steps count in
// the order run.
struct Relay {
    ptrdiff_t most_steps;                          // in a chunk
    void (*await)(void* state, ptrdiff_t steps);   // returns once so many steps of x are there
    void (*report)(void* state, ptrdiff_t steps);  // so many steps of y are
    void* state;
};

// A thread's work in every step: some of the places, or (parts above 1) some of the units of all of
// them. In that case the threads share their scratch, and meet where a product needs the whole of h.
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

// Steps begin..end-1, in the order of time whatever the direction.
struct Chunk {
    ptrdiff_t begin;
    ptrdiff_t end;
};

template <class T>
struct ForwardArgs {
    Sizes sizes;
    const T* packed;           // what pack() wrote; null: `weights` are read
    Weights<const T> weights;  // null: there is a pack
    const T* x;                // (T, B, I)  in, rows of unit stride
    ptrdiff_t x_step;          //            stride of T; unused where the plan is ragged
    ptrdiff_t x_row;           //            stride of B
    const T* h0;               // (B, W)     in; null: zeros
    const T* c0;               // (B, H)     in; null: zeros, or the cell has no c
    const uint8_t* reset;      // (T, B)  in; null: never. Nonzero: zero state before the step runs
    T* y;                      // (T, B, W)  out in forward (0 past a row's length), in in backward
    ptrdiff_t y_step;
    ptrdiff_t y_row;
    T* hn;     // (B, W)  out in forward, unused in backward; h after each row's last step
    T* cn;     // (B, H)  likewise; null: the cell has no c
    T* saved;  // (rows of the plan, saved_row())  out in forward, in in backward; null: no training,
               // or backward reads y instead
    const Format* format = nullptr;  // of the pack, and of operands; null: T. Not of doubles
};

// A step whose gate gradients an earlier pass has left: what the parameters' gradients take of it.
template <class T>
struct LeftStep {
    const T* x;       // (B, I)  rows of unit stride
    ptrdiff_t x_row;  //         stride of B
    const T* h;       // (B, W)  before the step; null: zeros
    const T* gates;   // (B, gradient_row())
};

template <class T>
struct BackwardArgs {
    const T* transposed;    // of R and P, by pack_transposed(); null: there is no pack, or no need
    const T* transposed_w;  // of W, likewise; null also: made of the pack, piece by piece
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
    Weights<T> weights;  // in/out, accumulated; out, assigned, where `assign`; null: not wanted
    bool assign = false;
    // (B, gradient_row())  out, of one step: the gradients at its gates; null: not wanted
    T* gates = nullptr;
    // (T)  in: all that is read, for the parameters' gradients alone; null: the pass is computed. Not of
    // a cell with two products, nor with a projection.
    const LeftStep<T>* left = nullptr;
};

}  // namespace rnnfast
