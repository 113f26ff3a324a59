// How a backward pass is cut into chunks.
#pragma once

#include <vector>

#include "core/args.h"

namespace rnnfast {

// Returns chunks of whole steps, in the order in which backward runs them. They depend only on the sizes
// and the rows, so that sums over the rows of a chunk have the same bits for any number of threads.
// gradient_row: the number of gate gradients of a row. weights: the number of elements of W and R.
std::vector<Chunk> make_chunks(const Plan& plan, ptrdiff_t gradient_row, ptrdiff_t weights);

}  // namespace rnnfast
