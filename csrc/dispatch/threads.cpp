#include "dispatch/threads.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "dispatch/cores.h"
#include "dispatch/openmp.h"

namespace rnnfast {
namespace {

using Clock = std::chrono::steady_clock;

// How long to wait for workers: no more than a part of what the work takes. A worker that spins comes in
// 1 us, and one that sleeps in 5 to 50 us. If another thread has its core, such as a thread of OpenMP that
// spins after its region, it comes when the scheduler next looks, after up to 10 ms.
std::chrono::microseconds patience(double alone_ns) {
    constexpr double kShare = 1.0 / 8, kLeast = 2, kMost = 10'000;
    return std::chrono::microseconds(int(std::clamp(alone_ns / 1000 * kShare, kLeast, kMost)));
}

// Waking a thread takes at most this long if it has a core of its own.
constexpr std::chrono::microseconds kAnyWaking{200};

constexpr int kMostThreads = 1024;
thread_local int thread_limit = kMostThreads;  // set by ThreadLimit

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Spins until `done()` is true. Returns false if that takes longer than `most`.
template <class Done>
bool spin(const Done& done, std::chrono::microseconds most) {
    for (int i = 0; i < 64; ++i) {  // at first without reading the clock, which takes 25 ns
        if (done()) return true;
        relax();
    }
    const auto end = Clock::now() + most;
    do {
        for (int i = 0; i < 16; ++i) {
            if (done()) return true;
            relax();
        }
        std::this_thread::yield();  // to a thread that waits for this core: perhaps the one awaited
    } while (Clock::now() < end);
    return false;
}

// What a worker is doing. The caller offers work; the worker takes the offer, or the caller takes it
// back. The caller starts the work once it knows how many workers have come.
enum class Stage { idle, offered, taken, started };

struct alignas(64) Worker {
    std::atomic<Stage> stage{Stage::idle};
    int rank = 0;
    Signal offers;
};

class Pool {
public:
    // Whether all workers of a team of `most` threads spin. If `wakes`, wakes those that sleep, for the
    // next call.
    bool are_near(int most, bool wakes) {
        if (wakes) grow(most - 1);
        const auto wanted = size_t(most - 1);
        bool near = workers_.size() >= wanted;
        for (size_t i = 0; i < std::min(wanted, workers_.size()); ++i)
            if (workers_[i]->offers.has_sleepers()) {
                near = false;
                if (wakes) workers_[i]->offers.add();
            }
        return near;
    }

    // Gathers a team of at most `most` threads, and returns its size: the caller and the workers that come
    // within `patience`; if `all`, it waits for all of them.
    int gather(int most, std::chrono::microseconds patience, bool all) {
        grow(most - 1);
        core_ = current_core();
        const size_t wanted = std::min(workers_.size(), size_t(most - 1));
        for (size_t i = 0; i < wanted; ++i) {
            workers_[i]->stage.store(Stage::offered);
            workers_[i]->offers.add();
        }
        const auto all_taken = [&] {
            return std::all_of(workers_.begin(), workers_.begin() + ptrdiff_t(wanted),
                               [](const auto& w) { return w->stage.load() == Stage::taken; });
        };
        while (!spin(all_taken, patience) && all) std::this_thread::yield();
        team_.clear();
        for (size_t i = 0; i < wanted; ++i) {
            Stage expected = Stage::offered;
            if (!workers_[i]->stage.compare_exchange_strong(expected, Stage::idle))
                team_.push_back(workers_[i].get());
        }
        return int(team_.size()) + 1;
    }

    // Runs `work` on the gathered team and disbands it. If `work` is null, this only disbands it.
    void run(const std::function<void(int)>* work) {
        work_ = work;
        finished_ += team_.size();
        for (size_t i = 0; i < team_.size(); ++i) {
            team_[i]->rank = int(i) + 1;
            team_[i]->stage.store(Stage::started, std::memory_order_release);
        }
        if (work) (*work)(0);
        ended_.wait(finished_);
    }

private:
    // Makes workers until there are `count`, or fewer if the system gives no more threads.
    void grow(int count) {
        try {
            workers_.reserve(size_t(count));
            team_.reserve(size_t(count));
            while (int(workers_.size()) < count) {
                auto made = std::make_unique<Worker>();
                Worker* const worker = made.get();
                std::thread([this, worker] { loop(*worker); }).detach();
                workers_.push_back(std::move(made));
            }
        } catch (const std::exception&) {
        }
    }

    [[noreturn]] void loop(Worker& worker) {
        for (uint64_t offer = 1;; ++offer) {
            worker.offers.wait(offer, kSpinBetweenCalls);
            Stage expected = Stage::offered;
            if (!worker.stage.compare_exchange_strong(expected, Stage::taken)) continue;
            if (current_core() == core_) leave_core(core_);
            const auto started = [&] {
                return worker.stage.load(std::memory_order_acquire) == Stage::started;
            };
            while (!spin(started, kSpinInCall))
                std::this_thread::yield();  // the caller will start soon
            if (work_) (*work_)(worker.rank);
            worker.stage.store(Stage::idle);
            ended_.add();
        }
    }

    std::vector<std::unique_ptr<Worker>> workers_;
    std::vector<Worker*> team_;
    const std::function<void(int)>* work_ = nullptr;
    std::atomic<int> core_{-1};  // the caller's core
    Signal ended_;
    uint64_t finished_ = 0;
};

// Decides about calls whose work is worth threads that spin, but not worth waking any.
class ShortCalls {
public:
    // Whether a call that begins now may have threads. Sets `wakes` if the call may wake them, because
    // `kThatWake` calls in a row each came soon after the one before.
    bool may_share(double alone_ns, bool& wakes) {
        wakes = false;
        if (calls_alone_ > 0) return --calls_alone_, false;
        const auto now = Clock::now();
        const auto soon = kSpinBetweenCalls + std::chrono::nanoseconds(int64_t(alone_ns));
        in_turn_ = now - last_ < soon ? in_turn_ + 1 : 0;
        last_ = now;
        if (in_turn_ >= kThatWake) wakes = true, in_turn_ = 0;
        return true;
    }
    // Notes whether the threads that should spin came. They did not if other threads have their cores.
    // Waiting for them may then cost a time slice of the scheduler, so each absence in a row doubles the
    // number of calls that run alone before the next attempt.
    void note(bool came) {
        if (!came) calls_alone_ = after_absence_;
        after_absence_ = came ? kLeastAlone : std::min(2 * after_absence_, kMostAlone);
    }

private:
    static constexpr int kThatWake = 8, kLeastAlone = 64, kMostAlone = 1 << 16;
    Clock::time_point last_{};
    int in_turn_ = 0, calls_alone_ = 0, after_absence_ = kLeastAlone;
};

// Made on first use and never destroyed: the threads sleep until the process ends.
struct State {
    std::mutex in_use;
    Pool* pool = nullptr;
    ShortCalls short_calls;
    std::atomic<int> threads{1};
    std::atomic<int> quota{kMostThreads};
    std::atomic<int> busy{0};  // the number of `Busy` objects
};

State*& state_pointer() {
    static State* instance = [] {
#if !defined(_WIN32)
        // A forked child has none of the threads. It makes a new state and leaves the old one as it
        // is, since that may have been in use.
        pthread_atfork(nullptr, nullptr, [] {
            State* const before = state_pointer();
            state_pointer() = new State;
            state_pointer()->threads = before->threads.load();
            state_pointer()->quota = before->quota.load();
        });
#endif
        return new State;
    }();
    return instance;
}

State& state() { return *state_pointer(); }

}  // namespace

int num_threads() { return state().threads.load(std::memory_order_relaxed); }

void set_num_threads(int count) {
    state().threads.store(std::clamp(count, 1, kMostThreads), std::memory_order_relaxed);
}

void set_cpu_quota(int count) {
    state().quota.store(std::max(count, 1), std::memory_order_relaxed);
}

ThreadLimit::ThreadLimit(int most) : before_(thread_limit) {
    if (most > 0) thread_limit = std::min(most, before_);
}
ThreadLimit::~ThreadLimit() { thread_limit = before_; }

int allowed_threads() { return std::min(num_threads(), thread_limit); }

Busy::Busy() : count_(state().busy), threads_(allowed_threads()) {
    const int others = count_.fetch_add(1, std::memory_order_relaxed);
    if (others == 0) return;
    const int cores = std::min(core_count(), state().quota.load(std::memory_order_relaxed));
    threads_ = std::clamp(cores - others, 1, threads_);
}
Busy::~Busy() { count_.fetch_sub(1, std::memory_order_relaxed); }

void Signal::add(uint64_t count) {
    value_.fetch_add(count, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst)) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
        }
        condition_.notify_all();
    }
}

void Signal::wait(uint64_t least, std::chrono::microseconds most_spin) {
    if (spin([&] { return value() >= least; }, most_spin)) return;
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    {
        std::unique_lock<std::mutex> lock(mutex_);
        condition_.wait(lock, [&] { return value_.load(std::memory_order_seq_cst) >= least; });
    }
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
}

Team::Team(int most, double alone_ns, Wait wait, bool wakes) {
    most = std::min(most, allowed_threads());
    if (most < 2 || !state().in_use.try_lock()) return;
    has_pool_ = true;
    const bool is_short = wait == Wait::for_none, is_for_torch = thread_limit < kMostThreads;
    ShortCalls& short_calls = state().short_calls;
    bool is_last_of_some = false;
    if (is_short && !short_calls.may_share(alone_ns, is_last_of_some)) return;
    wakes = is_short && (wakes || is_last_of_some);
    const bool wakes_openmp = is_short ? wakes : alone_ns >= kWorthWakingNs;
    if (is_for_torch && openmp_runs(wakes_openmp, thread_limit, most)) {
        by_openmp_ = true;
        size_ = most;
        if (is_short) longest_ = kAnyWaking + std::chrono::nanoseconds(int64_t(alone_ns));
        return;
    }
    // The pool's workers spin between short calls, and would take half of the time of torch's cores.
    if (is_short && is_for_torch) return;
    try {
        if (!state().pool) state().pool = new Pool;
        Pool& pool = *state().pool;
        if (is_short && !pool.are_near(most, wakes)) return;
        size_ = pool.gather(most, patience(alone_ns), wait == Wait::for_all);
        if (is_short) short_calls.note(size_ == most);
    } catch (...) {
        state().in_use.unlock();
        throw;
    }
}

Team::~Team() {
    if (!has_pool_) return;
    if (size_ > 1 && !by_openmp_) state().pool->run(nullptr);
    state().in_use.unlock();
}

bool Team::run(const std::function<void(int)>& work) {
    if (by_openmp_) {
        const int core = current_core();
        const auto start = Clock::now();
        Signal here;
        const bool has_run = run_by_openmp(thread_limit, size_, [&](int rank) {
            if (rank == 0) {
                here.wait(uint64_t(size_ - 1));  // yields to a thread woken on this core
            } else {
                if (current_core() == core) leave_core(core);
                here.add();
            }
            work(rank);
        });
        if (longest_.count() > 0) {
            const bool came = has_run && Clock::now() - start < longest_;
            state().short_calls.note(came);
            if (!came) forget_openmp();
        }
        return has_run;
    }
    if (size_ == 1)
        work(0);
    else
        state().pool->run(&work);
    size_ = 1;
    return true;
}

}  // namespace rnnfast
