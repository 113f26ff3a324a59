#include "dispatch/threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace rnnfast {
namespace {

// Threads that wait spin this long before they sleep: longer than the gaps inside a call and
// between the calls of a loop, short enough to leave the core to others.
constexpr std::chrono::microseconds kSpin{40};

constexpr int kMostThreads = 1024;

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spins until `done()`; false when it took longer than kSpin.
template <class Done>
bool spin(const Done& done) {
    const auto start = std::chrono::steady_clock::now();
    for (;;) {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            relax();
        }
        if (std::chrono::steady_clock::now() - start > kSpin) return false;
    }
}

// A counter that can be waited for: spinning first, then asleep.
class Signal {
public:
    uint64_t value() const { return value_.load(std::memory_order_acquire); }

    void increment() {
        value_.fetch_add(1, std::memory_order_seq_cst);
        if (sleepers_.load(std::memory_order_seq_cst)) {
            {
                std::lock_guard<std::mutex> lock(mutex_);
            }
            condition_.notify_all();
        }
    }

    // Returns once the value is at least `least`.
    void wait(uint64_t least) {
        if (spin([&] { return value() >= least; })) return;
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        {
            std::unique_lock<std::mutex> lock(mutex_);
            condition_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) >= least; });
        }
        sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }

private:
    std::atomic<uint64_t> value_{0};
    std::atomic<int> sleepers_{0};
    std::mutex mutex_;
    std::condition_variable condition_;
};

using Work = std::function<void(int, int, Barrier&)>;

// Every thread counts the barriers that it has passed, and waits until team * that many arrivals.
class TeamBarrier final : public Barrier {
public:
    TeamBarrier(Signal& arrivals, uint64_t before, int team)
        : arrivals_(arrivals), target_(before), team_(team) {}
    void wait() override {
        target_ += uint64_t(team_);
        arrivals_.increment();
        arrivals_.wait(target_);
    }

private:
    Signal& arrivals_;
    uint64_t target_;
    int team_;
};

class Pool {
public:
    void run(int team, const Work& work) {
        team = grow(team);
        work_ = &work;
        team_ = team;
        before_ = arrivals_.value();
        for (int i = 1; i < team; ++i) starts_[size_t(i) - 1]->increment();
        TeamBarrier barrier(arrivals_, before_, team);
        work(0, team, barrier);
        finished_ += uint64_t(team - 1);
        ended_.wait(finished_);
    }

private:
    // Adds workers for a team of `team`; returns the team that there is, which is smaller where the
    // system gives no more threads.
    int grow(int team) {
        try {
            while (int(starts_.size()) + 1 < team) {
                auto made = std::make_unique<Signal>();
                Signal* start = made.get();
                const int index = int(starts_.size()) + 1;
                starts_.reserve(starts_.size() + 1);
                std::thread([this, start, index] { loop(*start, index); }).detach();
                starts_.push_back(std::move(made));
            }
        } catch (const std::exception&) {
            return int(starts_.size()) + 1;
        }
        return team;
    }

    [[noreturn]] void loop(Signal& start, int index) {
        for (uint64_t turn = 1;; ++turn) {
            start.wait(turn);
            TeamBarrier barrier(arrivals_, before_, team_);
            (*work_)(index, team_, barrier);
            ended_.increment();
        }
    }

    std::vector<std::unique_ptr<Signal>> starts_;  // one for each worker thread
    const Work* work_ = nullptr;
    int team_ = 1;
    uint64_t before_ = 0;
    Signal arrivals_;
    Signal ended_;
    uint64_t finished_ = 0;
};

class NoBarrier final : public Barrier {
    void wait() override {}
};

// Made on first use and never destroyed: the threads sleep until the process ends.
struct State {
    std::mutex in_use;
    Pool* pool = nullptr;
    std::atomic<int> threads{1};
};

State& state() {
    static State* const instance = [] {
        auto* made = new State;
#if !defined(_WIN32)
        // A child of fork has none of the threads: it leaves the old pool as it lies and makes a
        // new one when it needs one. The lock is held over the fork, so that it is whole.
        pthread_atfork([] { state().in_use.lock(); }, [] { state().in_use.unlock(); },
                       [] {
                           state().pool = nullptr;
                           state().in_use.unlock();
                       });
#endif
        return made;
    }();
    return *instance;
}

}  // namespace

int num_threads() { return state().threads.load(std::memory_order_relaxed); }

void set_num_threads(int count) {
    state().threads.store(std::clamp(count, 1, kMostThreads), std::memory_order_relaxed);
}

void parallel(int most, const Work& work) {
    const int team = most < num_threads() ? most : num_threads();
    std::unique_lock<std::mutex> lock(state().in_use, std::defer_lock);
    if (team < 2 || !lock.try_lock()) {
        NoBarrier none;
        work(0, 1, none);
        return;
    }
    if (!state().pool) state().pool = new Pool;
    state().pool->run(team, work);
}

}  // namespace rnnfast
