// The threads of another library's OpenMP, which may run teams in place of the pool's. They spin for
// milliseconds after that library's own work, and would take turns with the pool's on their cores.
#pragma once

#include <functional>

namespace rnnfast {

// From now on those of the OpenMP that the shared object at `path` calls, which is loaded. False where
// there is none, on Windows, and in a forked process, whose OpenMP may wait for its parent's threads;
// then nothing changes. Those that are forked later do without.
bool use_openmp(const char* path);

// To wake threads that sleep takes 5 to 50 us, and they come when they come: work must take longer.
constexpr double kWorthWakingNs = 200'000;

// Whether `threads` that the library usually has are to run work of this thread for `size` of them.
// `wakes`: also where they sleep. Else soon after the last, while they still spin.
bool openmp_runs(bool wakes, int threads, int size);

// That they did not come soon, as others have their cores: as if they slept.
void forget_openmp();

// Runs work(rank), ranks 0 to size-1, the caller's 0, on the first of `threads`: with another number some
// would end, or others would be made. The caller waits for all of them. False where OpenMP gives fewer
// than `size`, as in a region of its own, and nothing was run. `work` must not throw.
bool run_by_openmp(int threads, int size, const std::function<void(int)>& work);

}  // namespace rnnfast
