#include "dispatch/chunks.h"

#include <algorithm>

namespace rnnfast {

std::vector<Chunk> make_chunks(const Plan& plan, ptrdiff_t gradient_row, ptrdiff_t weights) {
    // A chunk's gate gradients stay in L2, but it has enough rows to make the products of the parameters'
    // gradients efficient.
    constexpr ptrdiff_t kElements = 131072, kRows = 128;
    // If the parameters' gradients do not fit in L2, each chunk reads and writes them in memory beyond it, so
    // there are fewer and larger chunks.
    constexpr ptrdiff_t kInL2 = 262144, kMostElements = 1310720, kMostRows = 512;
    ptrdiff_t target = std::max(kRows, kElements / gradient_row);
    if (weights > kInL2)
        target = std::max(target, std::min(kMostRows, kMostElements / gradient_row));
    if (plan.batch) target = (target + plan.batch - 1) / plan.batch * plan.batch;  // whole steps
    // All chunks have about the same number of rows. It is up to a quarter above the target if that avoids a
    // last chunk of few rows.
    const ptrdiff_t all = plan.start(plan.steps);
    const ptrdiff_t count = std::max(ptrdiff_t(1), (4 * all + 3 * target - 1) / (4 * target));
    std::vector<Chunk> chunks;
    ptrdiff_t rows = 0;  // of the steps that are in chunks
    for (ptrdiff_t done = 0; done < plan.steps;) {
        const ptrdiff_t from = done;
        const ptrdiff_t end = all * ptrdiff_t(chunks.size() + 1) / count;
        // A chunk has at least one step. The last chunk also takes all remaining steps without rows.
        while (done < plan.steps && (rows < end || done == from || rows == all)) {
            rows += plan.rows(plan.reverse ? done : plan.steps - 1 - done);
            ++done;
        }
        chunks.push_back(plan.reverse ? Chunk{from, done}
                                      : Chunk{plan.steps - done, plan.steps - from});
    }
    return chunks;
}

}  // namespace rnnfast
