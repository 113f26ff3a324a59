// One pool of threads for the process.
#pragma once

#include <functional>

namespace rnnfast {

// The most threads that a call may use, the caller's among them; 1 until it is set.
int num_threads();
void set_num_threads(int count);  // taken into 1..1024

// What the threads of one `parallel` meet at.
class Barrier {
public:
    virtual ~Barrier() = default;
    // Returns once every thread of the team has come here.
    virtual void wait() = 0;
};

// Runs `work(index, team, barrier)` on a team of at most `most` threads, the caller being index 0,
// and returns when all have ended. The team is smaller where `num_threads()` is, and the caller
// alone where another thread has the pool. `work` must not throw.
void parallel(int most, const std::function<void(int index, int team, Barrier&)>& work);

}  // namespace rnnfast
