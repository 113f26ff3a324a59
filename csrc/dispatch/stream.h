// A stack of layers in one direction, which keeps its state and runs step by step.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "dispatch/run.h"

namespace rnnfast {

struct StreamConfig {
    CellId cell;
    Sizes sizes;  // of the first layer; the input size of layers above it is W
    ptrdiff_t layers, batch;
    std::optional<FormatId> format;  // of the weights of float32 layers; none: the dtype
};

// A stream of either dtype, which is the dtype of all its arrays. Apart from `clone`, no function allocates,
// locks, throws or calls the system.
class Stream {
public:
    virtual ~Stream() = default;
    // Another stream with the present state, which shares the weights.
    virtual std::unique_ptr<Stream> clone() const = 0;
    // Reads x (steps, B, I) and writes y (steps, B, W). They may share memory if there is one step, or if
    // they are the same array.
    virtual void run(ptrdiff_t steps, const void* x, void* y) noexcept = 0;
    // Copy h (L, B, W) and c (L, B, H) out of the stream, or into it. c is unused if the cell has none.
    // `set_state` takes null as zeros.
    virtual void get_state(void* h, void* c) const noexcept = 0;
    virtual void set_state(const void* h, const void* c) noexcept = 0;
    // Sets the state to zero in the rows whose entry in `rows` (B) is not 0, or in all rows if it is null.
    virtual void reset(const uint8_t* rows) noexcept = 0;
    // The cost of a step, in multiplications of its dtype.
    virtual double work() const noexcept = 0;
    // The size of the packed weights, which clones share.
    virtual size_t weights_bytes() const noexcept = 0;
};

// `weights` has one entry for each layer. The arrays are copied.
template <class T>
std::unique_ptr<Stream> make_stream(const StreamConfig& config, const Weights<const T>* weights);

}  // namespace rnnfast
