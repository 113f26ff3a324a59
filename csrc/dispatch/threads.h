// One pool of threads for the process.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace rnnfast {

// The most threads that a call may use, the caller's among them; 1 until it is set.
int num_threads();
void set_num_threads(int count);  // taken into 1..1024

// The most cores that the process has time of, fewer than it may run on, perhaps, in a container.
void set_cpu_quota(int count);

// While it lives, passes of its thread use no more than `most` threads, if `most` is above 0: the number
// of the library whose OpenMP `use_openmp` has found, whose threads long ones then use.
class ThreadLimit {
public:
    explicit ThreadLimit(int most);
    ~ThreadLimit();
    ThreadLimit(const ThreadLimit&) = delete;
    ThreadLimit& operator=(const ThreadLimit&) = delete;

private:
    const int before_;
};

// The most that a pass of this thread may use.
int allowed_threads();

// Work that a team may do, for the lifetime of the object: such work of other callers that begins
// meanwhile leaves it a core.
class Busy {
public:
    Busy();
    ~Busy();
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

    // The most threads for this work: as many as are allowed, and, of the cores, as others had left.
    int threads() const { return threads_; }

private:
    std::atomic<int>& count_;
    int threads_;
};

// How long threads that wait spin before they sleep. Between calls: longer than the gaps in a loop
// of calls, of which the longest are the 50 to 70 us between a forward and a backward pass of torch's
// autograd, and short enough to leave the core to others. In a call: longer than one thread's part of
// a chunk, since waking takes 30 us and more; who spins yields to whoever waits for the core.
constexpr std::chrono::microseconds kSpinBetweenCalls{100}, kSpinInCall{1000};

// A counter that can be waited for: spinning at first, then asleep.
class Signal {
public:
    uint64_t value() const { return value_.load(std::memory_order_acquire); }
    bool has_sleepers() const { return sleepers_.load(std::memory_order_relaxed); }
    void add(uint64_t count = 1);
    // Returns once the value is at least `least`.
    void wait(uint64_t least, std::chrono::microseconds most_spin = kSpinInCall);

private:
    std::atomic<uint64_t> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable condition_;
};

// Where the members of a group wait for each other, again and again. Each has a place of its own.
class Meeting {
public:
    explicit Meeting(int members) : members_(uint64_t(members)) {}

    class Place {
    public:
        explicit Place(Meeting& meeting) : meeting_(meeting) {}
        void wait() {
            if (meeting_.members_ == 1) return;
            target_ += meeting_.members_;
            meeting_.arrivals_.add();
            meeting_.arrivals_.wait(target_);
        }
        static void wait(void* place) { static_cast<Place*>(place)->wait(); }

    private:
        Meeting& meeting_;
        uint64_t target_ = 0;
    };

private:
    Signal arrivals_;
    const uint64_t members_;
};

// Threads of the pool, for the lifetime of the object: the caller and those workers that came in a
// part of the time of the work. While the pool is in use by another caller there are none.
class Team {
public:
    // How long workers are waited for that sleep, or whose core others have; by OpenMP, until they come.
    enum class Wait {
        for_none,  // only those are asked that spin, if that is all that are wanted; see ShortCalls
        for_a_part,  // an eighth of what the work takes one thread
        for_all      // until they come
    };

    // `alone_ns`: what the work takes one thread. `wakes`: those that are not waited for, for the next call.
    Team(int most, double alone_ns, Wait wait, bool wakes = false);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }  // the caller among them

    // Runs work(rank) on each thread, ranks 0 to size()-1, the caller's 0. `work` must not throw.
    // To be called once. False where OpenMP had fewer threads, and nothing was run.
    [[nodiscard]] bool run(const std::function<void(int)>& work);

private:
    int size_ = 1;
    bool has_pool_ = false;
    bool by_openmp_ = false;
    // What short work takes by OpenMP at most, if its threads have cores; 0: no matter.
    std::chrono::nanoseconds longest_{};
};

}  // namespace rnnfast
