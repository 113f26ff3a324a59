// The cores that threads run on.
#pragma once

#include <algorithm>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace rnnfast {

// The core on which the calling thread runs; -1 if the system does not tell.
inline int current_core() {
#if defined(__linux__)
    return sched_getcpu();
#else
    return -1;
#endif
}

// Moves the calling thread from `core` to another of the cores that it may use. The caller of a pass
// spins on its core. A worker that was woken there would share the core until the scheduler looks again,
// which takes milliseconds.
inline void leave_core(int core) {
#if defined(__linux__)
    cpu_set_t own;
    if (core < 0 || core >= CPU_SETSIZE || sched_getaffinity(0, sizeof own, &own)) return;
    cpu_set_t others = own, now;
    CPU_CLR(size_t(core), &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    // Afterwards the thread may use its old core again, unless somebody else has moved it meanwhile.
    if (!sched_getaffinity(0, sizeof now, &now) && CPU_EQUAL(&now, &others))
        (void)sched_setaffinity(0, sizeof own, &own);
#else
    (void)core;
#endif
}

// The number of cores on which the calling thread may run, at least 1.
inline int core_count() {
#if defined(__linux__)
    cpu_set_t own;
    if (!sched_getaffinity(0, sizeof own, &own)) return CPU_COUNT(&own);
#endif
    return std::max(1, int(std::thread::hardware_concurrency()));
}

}  // namespace rnnfast
