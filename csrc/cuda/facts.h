// What devices have answered before. To ask one takes some microseconds, and each pass asks twice what
// it may have of it; the answers stay the same.
#pragma once

#include <map>
#include <mutex>
#include <tuple>

#include "cuda/launch.h"

namespace rnnfast {
namespace cuda {

enum class Fact { kProcessors, kShared, kBlocks, kClusters };

// About a device, or about a kernel there, in launches of such blocks.
struct Question {
    Fact about;
    const void* kernel = nullptr;
    int blocks = 0, shared = 0;
    int device = 0;

    auto key() const { return std::tie(about, kernel, blocks, shared, device); }
    bool operator<(const Question& other) const { return key() < other.key(); }
};

struct Facts {
    std::mutex mutex;
    std::map<Question, int> known;
};
// Never destroyed: threads may ask while the process ends.
inline Facts& facts() {
    static Facts& own = *new Facts;
    return own;
}

// The answer of the current device, by `ask` if it has not answered before. Errors are not kept.
template <class Ask>
Error known(Question question, int* answer, const Ask& ask) {
    const Error error = find_device(&question.device);
    if (error != kFine) return error;
    Facts& own = facts();
    const std::lock_guard<std::mutex> lock(own.mutex);
    const auto found = own.known.find(question);
    if (found != own.known.end()) {
        *answer = found->second;
        return kFine;
    }
    const Error failed = ask(answer);
    if (failed == kFine) own.known[question] = *answer;
    return failed;
}

template <class Kernel>
const void* address_of(Kernel* kernel) {
    return reinterpret_cast<const void*>(kernel);
}

// As the functions of the same names in `asked`.
inline Error count_processors(int* count) {
    return known({Fact::kProcessors}, count, asked::count_processors);
}
inline Error most_shared(int* bytes) { return known({Fact::kShared}, bytes, asked::most_shared); }
template <class Kernel>
Error prepare(Kernel* kernel, int shared, int* blocks) {
    return known({Fact::kBlocks, address_of(kernel), 0, shared}, blocks,
                 [&](int* answer) { return asked::prepare(kernel, shared, answer); });
}
template <class Kernel>
Error prepare_clusters(Kernel* kernel, int blocks, int shared, int* clusters) {
    return known({Fact::kClusters, address_of(kernel), blocks, shared}, clusters, [&](int* answer) {
        return asked::prepare_clusters(kernel, blocks, shared, answer);
    });
}

}  // namespace cuda
}  // namespace rnnfast
