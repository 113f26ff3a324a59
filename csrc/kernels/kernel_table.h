// What the objects of one ISA export: a constant table with a set of functions for each cell and
// dtype.
#pragma once

#include "core/format.h"

namespace rnnfast {

enum class BackwardPhase { begin, steps, products, end };

// One thread's work in one phase of a backward pass.
struct BackwardWork {
    BackwardPhase phase;
    Chunk chunk;            // in `steps` and `products`
    Slice slice;            // in all phases but `products`; `begin` and `end` read only its rows
    ptrdiff_t part, parts;  // in `products`
    bool first = false;     // whether `products` is the pass's first
};

// One layer of a stream: a forward pass over one step, which is kept from step to step. It reads
// `args`, which may change between calls, and keeps the state in its scratch. Sizes are in
// elements; scratch and packed weights are aligned to 64 bytes.
template <class T>
struct StreamKernels {
    ptrdiff_t (*scratch)(const ForwardArgs<T>& args, const Plan& plan);
    ptrdiff_t bytes;  // the size of a pass; the caller places it, aligned to 64 bytes
    void (*make)(void* pass, const ForwardArgs<T>& args, const Plan& plan, T* scratch);
    void (*step)(void* pass);       // reads args.x, writes args.y
    void (*set_state)(void* pass);  // from args.h0 and args.c0; must be the first call after `make`
    void (*get_state)(void* pass);  // to args.hn and args.cn
    void (*reset)(void* pass);      // sets the state to zero in the rows that args.reset names
};

// The weights of which backward's products read the transpose: W, once for all rows of a chunk
// (`of_input`); or R and the projection, in each step (`of_steps`).
enum class Transposed { of_input, of_steps };

// Sizes are in elements; scratch and packed weights are aligned to 64 bytes.
template <class T>
struct CellKernels {
    ptrdiff_t gates;  // G
    ptrdiff_t few;    // a product of up to this many rows reads the weights once
    bool has_c;       // whether the cell carries a c beside h
    bool projects;    // whether the cell may have a projection, weight_hr
    bool saves_y;     // whether training saves only y: if `saved` is null, backward reads y
    // `format` is that of ForwardArgs.
    ptrdiff_t (*packed_size)(const Sizes&, const Format* format);
    ptrdiff_t (*transposed_size)(const Sizes&, const Format* format, Transposed);
    ptrdiff_t (*saved_row)(const Sizes&);     // the size of a row of ForwardArgs::saved
    ptrdiff_t (*gradient_row)(const Sizes&);  // the size of a row of gate gradients
    ptrdiff_t (*unit_panels)(const Sizes&);   // how many parts threads can share the units in
    int (*meetings)(const Sizes&);            // how often these threads meet in a step
    void (*pack)(const Sizes&, const Format* format, const Weights<const T>&, T* packed);
    void (*pack_transposed)(const Sizes&, const Format* format, const T* packed, Transposed,
                            T* transposed);
    // The parts of a pass that threads share by units have one scratch together.
    ptrdiff_t (*forward_scratch)(const ForwardArgs<T>&, const Plan&, const Slice&);
    void (*forward)(const ForwardArgs<T>&, const Plan&, const Slice&, T* scratch);
    // `rows`: the most rows that a chunk of the pass has.
    ptrdiff_t (*backward_scratch)(const ForwardArgs<T>&, const BackwardArgs<T>&, const Plan&,
                                  ptrdiff_t rows);
    // The scratch that each thread needs in addition, for `products`.
    ptrdiff_t (*products_scratch)(const ForwardArgs<T>&, const BackwardArgs<T>&, ptrdiff_t rows);
    void (*backward)(const ForwardArgs<T>&, const BackwardArgs<T>&, const Plan&, ptrdiff_t rows,
                     T* scratch, T* own_scratch, const BackwardWork&);
    StreamKernels<T> stream;
};

enum class CellId {
#define CELL(name, type) name,
#include "core/cells.inc"
#undef CELL
    count
};

template <class T>
struct DtypeKernels {
    CellKernels<T> cells[int(CellId::count)];
    void (*sigmoid)(const T* x, T* y, ptrdiff_t n);
    void (*tanh)(const T* x, T* y, ptrdiff_t n);
    T (*probe_fma)(ptrdiff_t rounds, ptrdiff_t* flops);
    T (*probe_read)(const T* x, ptrdiff_t n, ptrdiff_t rounds);  // n: a multiple of a vector
};

// The formats, other than the dtype, in which the weights and operands of products may be kept.
enum class FormatId {
#define FORMAT(name, type) name,
#include "core/formats.inc"
#undef FORMAT
    count
};

// The formats of an ISA. They are in an object of their own, which is all that some ISAs have. For
// a format that `has` denies, another ISA's is used.
struct LowPrecisionTable {
    Format formats[int(FormatId::count)];
    bool has[int(FormatId::count)];
};

struct KernelTable {
    int vector_bytes;
    uint64_t (*fingerprint)(const unsigned char* data, ptrdiff_t bytes);
#define DTYPE(name, type) DtypeKernels<type> name;
#include "core/dtypes.inc"
#undef DTYPE
};

}  // namespace rnnfast
