// How the estimates share work out: few rows or large weights by units, else by rows, and nothing where
// it would not pay; and what of the cores callers leave each other.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>

#include "dispatch/registry.h"
#include "dispatch/run.h"
#include "dispatch/schedule.h"
#include "dispatch/threads.h"
#include "tests/expect.h"

namespace rnnfast {
namespace {

struct Case {
    CellId cell;
    ptrdiff_t steps, batch, units;
    Forced forward, backward;  // on two threads; none: on one
};

const Case kCases[] = {
    {CellId::lstm, 1, 1, 64, Forced::none, Forced::none},
    {CellId::gru, 0, 8, 64, Forced::none, Forced::none},
    {CellId::rnn_tanh, 100, 1, 8, Forced::none, Forced::none},
    {CellId::lstm, 100, 1, 256, Forced::units, Forced::units},
    {CellId::lstm, 100, 4, 512, Forced::units, Forced::units},
    {CellId::gru, 100, 16, 128, Forced::shards, Forced::shards},
    {CellId::lstm, 100, 32, 256, Forced::shards, Forced::shards},
    {CellId::lstm, 50, 32, 512, Forced::shards, Forced::shards},
    {CellId::rnn_tanh, 365, 256, 64, Forced::shards, Forced::shards},
    // Weights of 8 MiB and more are read whole by each thread, or half of them,
    {CellId::gru, 100, 32, 1024, Forced::units, Forced::units},
    {CellId::rnn_tanh, 50, 16, 1760, Forced::units, Forced::units},
    {CellId::lstm, 20, 16, 2048, Forced::units, Forced::units},
    // which many rows hide.
    {CellId::lstm, 25, 512, 1024, Forced::shards, Forced::shards},
};

Forced chosen(const JobWork& work, int threads, Workers workers = Workers::anywhere) {
    if (best_schedule(&work, 1, 1, threads, workers).threads == 1) return Forced::none;
    return schedule_of(best_split(work, threads));
}

void check(const Case& c) {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(c.cell)];
    const Sizes sizes{c.units, c.units, 0};
    const RowPlan rows(c.steps, c.batch, false, nullptr);
    const JobWork forward = forward_work(kernels, sizes, nullptr, rows.plan());
    const JobWork backward =
        backward_work(kernels, sizes, nullptr, rows.plan(), Held::packed, 4, false);
    const std::string what = "cell " + std::to_string(int(c.cell)) + ", " +
                             std::to_string(c.steps) + " " + std::to_string(c.batch) + " " +
                             std::to_string(c.units);
    expect(chosen(forward, 2) == c.forward, what + ": forward otherwise");
    expect(chosen(backward, 2) == c.backward, what + ": backward otherwise");
    for (const JobWork& work : {forward, backward}) {
        expect(chosen(work, 1) == Forced::none, what + ": shared out to one thread");
        const Split most = best_split(work, 64);
        expect(most.shards <= std::max<ptrdiff_t>(c.batch, 1) && most.units <= work.panels,
               what + ": threads with nothing to do");
    }
}

// From 8 MiB on R is far, whatever its elements: sizes of 7.9 and of 8.1.
template <class T>
bool is_far(CellId cell, ptrdiff_t units, const Format* format = nullptr) {
    const CellKernels<T>& kernels = active_kernels_for<T>().cells[int(cell)];
    const RowPlan rows(10, 4, false, nullptr);
    return forward_work(kernels, {units, units, 0}, format, rows.plan()).far_rows > 0;
}

void check_far() {
    expect(!is_far<float>(CellId::lstm, 720) && is_far<float>(CellId::lstm, 728), "LSTM");
    expect(!is_far<float>(CellId::gru, 832) && is_far<float>(CellId::gru, 840), "GRU");
    expect(!is_far<float>(CellId::rnn_relu, 1440) && is_far<float>(CellId::rnn_relu, 1456), "RNN");
    expect(!is_far<double>(CellId::lstm, 508) && is_far<double>(CellId::lstm, 516), "float64");
    for (int i = 0; i < int(FormatId::count); ++i) {
        const Format& format = active_format(FormatId(i));
        const ptrdiff_t near = format.of_word == 2 ? 1020 : 1440;
        expect(!is_far<float>(CellId::lstm, near, &format) &&
                   is_far<float>(CellId::lstm, near + 16, &format),
               "format " + std::to_string(i));
    }
}

// Work that threads which may be asleep would not pay for, and those that spin do.
void check_near() {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(CellId::lstm)];
    const struct {
        ptrdiff_t steps, batch, units;
        Held held;
        Forced near;
    } cases[] = {
        {1, 1, 192, Held::packed, Forced::none},    {1, 1, 128, Held::borrowed, Forced::none},
        {1, 1, 256, Held::borrowed, Forced::units}, {1, 1, 256, Held::packed, Forced::units},
        {10, 8, 64, Held::packed, Forced::shards},  {1, 8, 64, Held::packed, Forced::none},
        {100, 1, 16, Held::packed, Forced::none},
    };
    for (const auto& c : cases) {
        const RowPlan rows(c.steps, c.batch, false, nullptr);
        const JobWork work =
            forward_work(kernels, {c.units, c.units, 0}, nullptr, rows.plan(), c.held);
        const std::string what = std::to_string(c.steps) + " " + std::to_string(c.batch) + " " +
                                 std::to_string(c.units) + " of threads that ";
        expect(chosen(work, 2) == Forced::none, what + "sleep: not alone");
        expect(chosen(work, 2, Workers::near) == c.near, what + "spin: otherwise");
    }
}

// Short calls one after the other wake the workers, and have them from then on; calls far apart do not.
void check_near_teams() {
    constexpr double kWorkNs = 50'000;
    const int before = num_threads();
    set_num_threads(2);
    const auto meets = [&] {
        Team team(2, kWorkNs, Team::Wait::for_none);
        const int size = team.size();
        return team.run([](int) {}) && size == 2;
    };
    int far = 0;
    for (int i = 0; i < 20; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        far += meets();
    }
    expect(far == 0, "calls far apart: workers that sleep were waited for");
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    bool came = false;
    while (!came && std::chrono::steady_clock::now() < end) came = meets();
    expect(came, "calls one after the other: no worker ever came");
    set_num_threads(before);
}

// Gradients of weights alone, of steps that went back before: no step waits for another.
void check_left() {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(CellId::lstm)];
    const RowPlan rows(100, 1, false, nullptr);
    const JobWork work =
        backward_work(kernels, {1024, 1024, 0}, nullptr, rows.plan(), Held::packed, 4, true);
    expect(work.meetings == 0 && work.far_rows == 0 && work.row_bytes == 0,
           "gradients of steps that went back before: as if they did once more");
}

// Callers at the same time leave each other a core: whoever comes has what the others leave.
void check_busy() {
    constexpr int kMany = 1000;  // more than there are cores
    const int before = num_threads();
    set_num_threads(kMany);
    {
        const Busy first;
        expect(first.threads() == kMany, "the only caller: fewer than are allowed");
        const Busy second;
        const int left = second.threads();
        expect(left >= 1 && left < kMany, "a second caller: as if it were alone");
        const Busy third;
        expect(third.threads() == std::max(1, left - 1), "a third caller: other than one less");
        const ThreadLimit limit(1);
        expect(Busy().threads() == 1, "a caller with a limit: more than that");
    }
    expect(Busy().threads() == kMany, "a caller after others: not all again");
    {
        set_cpu_quota(3);
        const Busy first, second;
        expect(first.threads() == kMany, "the only caller in a container: fewer than are allowed");
        expect(second.threads() <= 2, "a second caller in a container: more than its share");
        set_cpu_quota(kMany);
    }
    set_num_threads(before);
}

}  // namespace
}  // namespace rnnfast

int main() {
    for (const rnnfast::Case& c : rnnfast::kCases) rnnfast::check(c);
    rnnfast::check_far();
    rnnfast::check_left();
    rnnfast::check_busy();
    rnnfast::check_near();
    rnnfast::check_near_teams();
    std::printf("%d of %d checks failed\n", rnnfast::failures, rnnfast::checked);
    return rnnfast::failures != 0;
}
