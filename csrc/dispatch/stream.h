// A stack of layers in one direction, run step by step, with its state inside.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "dispatch/run.h"

namespace rnnfast {

struct StreamConfig {
    CellId cell;
    Sizes sizes;  // of the first layer: those above read W
    ptrdiff_t layers, batch;
    std::optional<FormatId> format;  // of the weights of float32 layers; none: the dtype
};

// Of either dtype, which is that of all arrays. Nothing but `clone` allocates, locks, throws or asks
// the system for anything.
class Stream {
public:
    virtual ~Stream() = default;
    // Another with the same weights, which they share, and with the state as it is now.
    virtual std::unique_ptr<Stream> clone() const = 0;
    // x (steps, B, I) to y (steps, B, W). Of one step they may share memory; of several, too, where
    // they are the same array.
    virtual void run(ptrdiff_t steps, const void* x, void* y) noexcept = 0;
    // h (L, B, W) and c (L, B, H), which is unused where the cell has none; null sets zeros.
    virtual void get_state(void* h, void* c) const noexcept = 0;
    virtual void set_state(const void* h, const void* c) noexcept = 0;
    // Zeros for the rows whose entry in `rows` (B) is not 0; null: for all.
    virtual void reset(const uint8_t* rows) noexcept = 0;
    // What a step takes, in multiplications of its dtype.
    virtual double work() const noexcept = 0;
    // Of the packed weights, which its copies share.
    virtual size_t weights_bytes() const noexcept = 0;
};

// `weights` has one entry for each layer; they are copied.
template <class T>
std::unique_ptr<Stream> make_stream(const StreamConfig& config, const Weights<const T>* weights);

}  // namespace rnnfast
