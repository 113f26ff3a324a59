#include "dispatch/chunks.h"

#include <algorithm>

namespace rnnfast {

std::vector<Chunk> make_chunks(const Plan& plan, ptrdiff_t gradient_row, ptrdiff_t weights) {
    // Gate gradients that stay in L2, and rows enough to make the parameters' products efficient.
    constexpr ptrdiff_t kElements = 131072, kRows = 128;
    // Where the parameters' gradients leave L2, each chunk reads and writes them once more.
    constexpr ptrdiff_t kInL2 = 262144, kMostElements = 1310720, kMostRows = 512;
    ptrdiff_t target = std::max(kRows, kElements / gradient_row);
    if (weights > kInL2)
        target = std::max(target, std::min(kMostRows, kMostElements / gradient_row));
    if (plan.batch) target = (target + plan.batch - 1) / plan.batch * plan.batch;  // whole steps
    // Of about as many rows each, a quarter more where that saves a last one of few.
    const ptrdiff_t all = plan.start(plan.steps);
    const ptrdiff_t count = std::max(ptrdiff_t(1), (4 * all + 3 * target - 1) / (4 * target));
    std::vector<Chunk> chunks;
    ptrdiff_t rows = 0;  // of the steps that are done
    for (ptrdiff_t done = 0; done < plan.steps;) {
        const ptrdiff_t from = done;
        const ptrdiff_t end = all * ptrdiff_t(chunks.size() + 1) / count;
        // At least a step; the last has all of those without rows.
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
