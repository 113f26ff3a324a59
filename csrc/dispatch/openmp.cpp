#include "dispatch/openmp.h"

#include <atomic>
#include <type_traits>

#if !defined(_WIN32)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace rnnfast {
namespace {

// What GNU's OpenMP is called by from compiled code; LLVM's and Intel's have these names too.
struct OpenMp {
    void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
    int (*thread_num)() = nullptr;
    int (*num_threads)() = nullptr;

    bool complete() const { return parallel && thread_num && num_threads; }
};

// Never freed: another thread may be reading it.
std::atomic<const OpenMp*> known{nullptr};

// To wake threads that sleep takes 5 to 50 us, and they come when they come: work must take longer.
constexpr double kLeastNs = 200'000;

struct Region {
    const OpenMp& openmp;
    const std::function<void(int)>& work;
    const int size;
    std::atomic<bool> has_run{true};
};

void run_part(void* data) {
    auto& region = *static_cast<Region*>(data);
    const int rank = region.openmp.thread_num();
    if (region.openmp.num_threads() < region.size)  // on all of them alike
        region.has_run = false;
    else if (rank < region.size)
        region.work(rank);
}

}  // namespace

bool use_openmp([[maybe_unused]] const char* path) {
#if defined(_WIN32)
    return false;
#else
    void* const library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return false;
    OpenMp found;
    const auto find = [library](auto& function, const char* name) {
        function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(library, name));
    };
    find(found.parallel, "GOMP_parallel");
    find(found.thread_num, "omp_get_thread_num");
    find(found.num_threads, "omp_get_num_threads");
    if (!found.complete()) return dlclose(library), false;
    static const int watches_forks = pthread_atfork(nullptr, nullptr, [] { known.store(nullptr); });
    if (watches_forks != 0) return dlclose(library), false;
    known.store(new OpenMp(found));
    return true;
#endif
}

bool openmp_runs(double alone_ns) { return alone_ns >= kLeastNs && known.load(); }

bool run_by_openmp(int threads, int size, const std::function<void(int)>& work) {
    const OpenMp* const openmp = known.load();
    Region region{*openmp, work, size};
    openmp->parallel(run_part, &region, unsigned(threads), 0);
    return region.has_run;
}

}  // namespace rnnfast
