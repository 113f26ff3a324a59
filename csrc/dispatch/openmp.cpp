#include "dispatch/openmp.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <type_traits>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace rnnfast {
namespace {

// The functions of GNU's OpenMP that compiled code calls. LLVM's and Intel's OpenMP have them, too.
struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
    int (*thread_num)();
    int (*num_threads)();
};

// Never freed: another thread may be reading it.
std::atomic<const OpenMp*> known{nullptr};

// How long OpenMP's threads surely still spin after they have run work for this library.
constexpr std::chrono::milliseconds kStillSpinning{2};
// A team calls all of OpenMP's threads, and the caller waits for all of them, so at least half of them
// must have work.
constexpr int kMostCalled = 2;  // threads called for each that has work

#if !defined(_WIN32)
// Whether the process is a fork that has run no other program since. In such a process, OpenMP may know
// threads that only the parent has.
bool is_fork() {
#if defined(__linux__)
    std::FILE* const file = std::fopen("/proc/self/stat", "r");
    if (!file) return true;
    char text[1024];
    text[std::fread(text, 1, sizeof text - 1, file)] = 0;
    std::fclose(file);
    const char* const name_end = std::strrchr(text, ')');
    constexpr unsigned kForkedNoExec = 0x40;
    unsigned flags;  // the field after the state, the parent's number and four other numbers
    return !name_end || std::sscanf(name_end + 1, " %*c %*d %*d %*d %*d %*d %u", &flags) != 1 ||
           flags & kForkedNoExec;
#else
    return false;
#endif
}

// Finds the function that `library` itself calls by `name`: first in the global scope, where a preloaded
// library would be, and then among the libraries with which `library` is linked.
template <class Function>
bool find(void* library, const char* name, Function& function) {
    void* found = dlsym(RTLD_DEFAULT, name);
    if (!found) found = dlsym(library, name);
    function = reinterpret_cast<Function>(found);
    return found;
}
#endif

// OpenMP has a separate set of threads for each thread that calls it, and all these sets would spin at the
// same time. So only the first thread that comes may call it, until that thread ends.
struct Caller {
    using Clock = std::chrono::steady_clock;
    static inline std::atomic<Caller*> first{nullptr};

    ~Caller() {
        Caller* self = this;
        first.compare_exchange_strong(self, nullptr);
    }
    bool is_first() {
        Caller* none = nullptr;
        return first.compare_exchange_strong(none, this) || none == this;
    }

    Clock::time_point last{};  // when OpenMP's threads last ended work for this caller
    bool has_spinning() const { return Clock::now() - last < kStillSpinning; }
};
thread_local Caller caller;

struct Region {
    const OpenMp& openmp;
    const std::function<void(int)>& work;
    const int size;
    std::atomic<bool> has_run{true};
};

void run_part(void* data) {
    auto& region = *static_cast<Region*>(data);
    const int rank = region.openmp.thread_num();
    if (region.openmp.num_threads() < region.size)  // which is the same on all threads
        region.has_run = false;
    else if (rank < region.size)
        region.work(rank);
}

}  // namespace

bool use_openmp([[maybe_unused]] const char* path) {
#if defined(_WIN32)
    return false;
#else
    static const bool can_be_used =
        !is_fork() && pthread_atfork(nullptr, nullptr, [] { known.store(nullptr); }) == 0;
    void* const library = can_be_used ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : nullptr;
    if (!library) return false;
    OpenMp found;
    const bool is_there = find(library, "GOMP_parallel", found.parallel) &&
                          find(library, "omp_get_thread_num", found.thread_num) &&
                          find(library, "omp_get_num_threads", found.num_threads);
    if (is_there)
        known.store(new OpenMp(found));
    else
        dlclose(library);
    return is_there;
#endif
}

bool openmp_runs(bool wakes, int threads, int size) {
    return threads <= kMostCalled * size && known.load() && (wakes || caller.has_spinning()) &&
           caller.is_first();
}

void forget_openmp() { caller.last = {}; }

bool run_by_openmp(int threads, int size, const std::function<void(int)>& work) {
    const OpenMp* const openmp = known.load();
    Region region{*openmp, work, size};
    openmp->parallel(run_part, &region, unsigned(threads), 0);
    caller.last = Caller::Clock::now();
    return region.has_run;
}

}  // namespace rnnfast
