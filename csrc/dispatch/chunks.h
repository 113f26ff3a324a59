// How a backward pass is cut into chunks.
#pragma once

#include <vector>

#include "core/args.h"

namespace rnnfast {

// Chunks of whole steps, in the order in which backward runs them. They depend on the sizes and the
// rows alone: a chunk's sums over rows have the same bits for any number of threads.
// gradient_row: of a row's gate gradients; weights: of those that have a gradient, both in numbers.
std::vector<Chunk> make_chunks(const Plan& plan, ptrdiff_t gradient_row, ptrdiff_t weights);

}  // namespace rnnfast
