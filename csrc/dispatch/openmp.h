// The threads of another library's OpenMP, which may run teams in place of the pool's workers. They spin
// for milliseconds after that library's own work, and the pool's workers would have to share their cores.
#pragma once

#include <functional>

namespace rnnfast {

// From now on, teams may run on the threads of the OpenMP that the shared object at `path` calls. That
// object must be loaded. Returns false, and changes nothing, if it has no OpenMP, on Windows, and in a
// forked process, whose OpenMP may wait for threads of the parent. Processes forked later use no OpenMP.
bool use_openmp(const char* path);

// Work must take longer than this to be worth waking sleeping threads. Waking them takes 5 to 50 us, and the
// caller must wait for all of them, however long that takes.
constexpr double kWorthWakingNs = 200'000;

// Whether OpenMP's threads should run work of the calling thread for `size` threads. `threads` is the number
// that the library usually has. If `wakes`, they may run it even if they sleep; otherwise only soon after
// the last work, while they still spin.
bool openmp_runs(bool wakes, int threads, int size);

// Notes that the threads did not come soon, because others have their cores. They now count as asleep.
void forget_openmp();

// Runs work(rank) for ranks 0 to size-1 on the first of `threads` threads; the caller's rank is 0. OpenMP
// would end threads, or make new ones, if it were asked for another number. The caller waits for all of
// them. Returns false, and runs nothing, if OpenMP gives fewer than `size`, as it does inside one of its
// regions. `work` must not throw.
bool run_by_openmp(int threads, int size, const std::function<void(int)>& work);

}  // namespace rnnfast
