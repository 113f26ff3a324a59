// One pool of threads for the process.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>

namespace rnnfast {

// The most threads that a call may use, including the caller. It is 1 until it is set.
int num_threads();
void set_num_threads(int count);  // clamped to 1..1024

// Sets the number of cores whose time the process may use. In a container it may be lower than the
// number of cores on which the process may run.
void set_cpu_quota(int count);

// While it lives, the passes of its thread use no more than `most` threads, if `most` is above 0. `most`
// is the number of threads of the library whose OpenMP `use_openmp` has found: long passes then run on
// the threads of that OpenMP.
class ThreadLimit {
public:
    explicit ThreadLimit(int most);
    ~ThreadLimit();
    ThreadLimit(const ThreadLimit&) = delete;
    ThreadLimit& operator=(const ThreadLimit&) = delete;

private:
    const int before_;
};

// The most threads that a pass of the calling thread may use.
int allowed_threads();

// Marks, while it lives, that the calling thread does work that a team may do. If another caller begins
// such work meanwhile, that caller leaves this one a core.
class Busy {
public:
    Busy();
    ~Busy();
    Busy(const Busy&) = delete;
    Busy& operator=(const Busy&) = delete;

    // The most threads for this work: those that are allowed, but no more than the cores that other
    // callers had left.
    int threads() const { return threads_; }

private:
    std::atomic<int>& count_;
    int threads_;
};

// How long a waiting thread spins before it sleeps. Between calls, it spins for longer than the gaps in a
// loop of calls last, and not so long that it keeps the core from others. The longest gaps are the 50 to
// 70 us between a forward and a backward pass of torch's autograd. In a call, it spins for longer than
// one thread's part of a chunk takes, since waking takes 30 us and more. A spinning thread yields to any
// thread that waits for its core.
constexpr std::chrono::microseconds kSpinBetweenCalls{100}, kSpinInCall{1000};

// A counter. A thread that waits for a value spins at first and then sleeps.
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

// A barrier at which the members of a group wait for each other, any number of times. Each member has a
// `Place` of its own, which counts its visits.
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

// The threads that run a pass together: the caller, and the workers of the pool, or the threads of
// OpenMP, that came in time. They belong to the team while it lives. If another caller has the pool, the
// team is the caller alone.
class Team {
public:
    // How long to wait for workers that sleep or whose core another thread uses. With OpenMP's threads:
    // until they come.
    enum class Wait {
        for_none,    // workers are asked only if all that are wanted spin; see ShortCalls
        for_a_part,  // an eighth of the time that the work takes one thread
        for_all      // until they come
    };

    // `alone_ns`: the time that the work takes one thread. `wakes`: with `for_none`, wakes the workers that
    // sleep, for the next call; OpenMP's threads are then woken for this call.
    Team(int most, double alone_ns, Wait wait, bool wakes = false);
    ~Team();
    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return size_; }  // including the caller

    // Runs work(rank) on each thread, for ranks 0 to size()-1; the caller's rank is 0. `work` must not
    // throw. May be called only once. Returns false, and runs nothing, if OpenMP had fewer threads.
    [[nodiscard]] bool run(const std::function<void(int)>& work);

private:
    int size_ = 1;
    bool has_pool_ = false;
    bool by_openmp_ = false;
    // Short work on OpenMP's threads takes less than this if they have cores of their own; 0: not checked.
    std::chrono::nanoseconds longest_{};
};

}  // namespace rnnfast
