// What the objects of one ISA export: a constant table of functions, one set for each cell and dtype.
#pragma once

#include "core/format.h"

namespace rnnfast {

enum class BackwardPhase { begin, steps, products, end };

// One thread's work in one phase of a backward pass.
struct BackwardWork {
    BackwardPhase phase;
    Chunk chunk;            // of `steps` and `products`
    Slice slice;            // in all phases but `products`; rows alone in `begin` and `end`
    ptrdiff_t part, parts;  // of `products`
    bool first = false;     // whether `products` is the pass's first
};

// One layer of a stream: a forward pass over one step, kept from step to step. It reads `args`, which
// may change in between, and keeps the state in its scratch.
// Sizes are in elements; scratch and packed weights are aligned to 64 bytes.
template <class T>
struct StreamKernels {
    ptrdiff_t (*scratch)(const ForwardArgs<T>& args, const Plan& plan);
    ptrdiff_t bytes;  // of the pass, wherever the caller wants it, aligned to 64 bytes
    void (*make)(void* pass, const ForwardArgs<T>& args, const Plan& plan, T* scratch);
    void (*step)(void* pass);       // args.x to args.y
    void (*set_state)(void* pass);  // from args.h0 and args.c0; the first call of all
    void (*get_state)(void* pass);  // to args.hn and args.cn
    void (*reset)(void* pass);      // of the rows that args.reset names
};

// The weights that backward's products read transposed: W, with all rows of a chunk; or the others, in
// each step.
enum class Transposed { of_input, of_steps };

// Sizes are in elements; scratch and packed weights are aligned to 64 bytes.
template <class T>
struct CellKernels {
    ptrdiff_t gates;  // G
    ptrdiff_t few;    // as many rows as a product reads the weights once for
    bool has_c;       // whether it carries a c beside h
    bool projects;    // whether it takes weight_hr
    bool saves_y;     // whether training saves but y: backward reads that where `saved` is null
    // `format`: as that of ForwardArgs.
    ptrdiff_t (*packed_size)(const Sizes&, const Format* format);
    ptrdiff_t (*transposed_size)(const Sizes&, const Format* format, Transposed);
    ptrdiff_t (*saved_row)(const Sizes&);     // of ForwardArgs::saved
    ptrdiff_t (*gradient_row)(const Sizes&);  // of the buffer that a backward chunk fills
    ptrdiff_t (*unit_panels)(const Sizes&);   // into which the units can be cut for threads
    int (*meetings)(const Sizes&);            // of such threads in a step
    void (*pack)(const Sizes&, const Format* format, const Weights<const T>&, T* packed);
    void (*pack_transposed)(const Sizes&, const Format* format, const T* packed, Transposed,
                            T* transposed);
    // Parts of one whole share one scratch.
    ptrdiff_t (*forward_scratch)(const ForwardArgs<T>&, const Plan&, const Slice&);
    void (*forward)(const ForwardArgs<T>&, const Plan&, const Slice&, T* scratch);
    // `rows`: the most rows that a chunk of the pass has.
    ptrdiff_t (*backward_scratch)(const ForwardArgs<T>&, const BackwardArgs<T>&, const Plan&,
                                  ptrdiff_t rows);
    // What each thread takes besides, for `products`.
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

// How the weights and operands of products may be kept, other than in the dtype.
enum class FormatId {
#define FORMAT(name, type) name,
#include "core/formats.inc"
#undef FORMAT
    count
};

// In an object of its own, which is all that some ISAs have; for formats that it lacks there is another's.
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
