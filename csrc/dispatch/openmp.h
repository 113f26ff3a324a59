// The threads of another library's OpenMP, which may run teams in place of the pool's. They spin for
// milliseconds after that library's own work, and would take turns with the pool's on their cores.
#pragma once

#include <functional>

namespace rnnfast {

// From now on those of the OpenMP that the shared object at `path`, which is loaded, has or is linked
// with. False where there is none; then nothing changes.
bool use_openmp(const char* path);

// Whether such threads are there for work that takes one thread so long. Those of a forked child are
// gone, with its parent's.
bool openmp_runs(double alone_ns);

// Runs work(rank), ranks 0 to size-1, the caller's 0, on the first of its usual `threads`: with
// another number some would end, or others would be made. False where there are fewer than `size`, and
// nothing was run. `work` must not throw.
bool run_by_openmp(int threads, int size, const std::function<void(int)>& work);

}  // namespace rnnfast
