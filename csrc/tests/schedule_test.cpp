// How the estimates share work out: few rows or large weights by units, else by rows, and nothing where
// it would not pay.
#include <cstdio>
#include <string>

#include "dispatch/registry.h"
#include "dispatch/run.h"
#include "dispatch/schedule.h"
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
    {CellId::lstm, 100, 32, 256, Forced::shards, Forced::shards},
    {CellId::rnn_tanh, 365, 256, 64, Forced::shards, Forced::shards},
    // Weights of 8 MiB and more are read by one thread or by two.
    {CellId::gru, 100, 32, 1024, Forced::units, Forced::units},
    {CellId::rnn_tanh, 50, 16, 1760, Forced::units, Forced::units},
    {CellId::lstm, 20, 16, 2048, Forced::units, Forced::units},
    // Of many rows that is hidden, and what the threads tell each other is not.
    {CellId::gru, 25, 64, 1024, Forced::units, Forced::shards},
    {CellId::lstm, 25, 512, 1024, Forced::shards, Forced::shards},
};

Forced chosen(const JobWork& work, int threads) {
    if (best_schedule(&work, 1, 1, threads).threads == 1) return Forced::none;
    return schedule_of(best_split(work, threads));
}

void check(const Case& c) {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(c.cell)];
    const Sizes sizes{c.units, c.units, 0};
    const RowPlan rows(c.steps, c.batch, false, nullptr);
    const JobWork forward = forward_work(kernels, sizes, nullptr, rows.plan());
    const JobWork backward = backward_work(kernels, sizes, nullptr, rows.plan(), 4, false);
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

// Gradients of weights alone, of steps that went back before: no step waits for another.
void check_left() {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(CellId::lstm)];
    const RowPlan rows(100, 1, false, nullptr);
    const JobWork work = backward_work(kernels, {1024, 1024, 0}, nullptr, rows.plan(), 4, true);
    expect(work.meetings == 0 && work.far_rows == 0 && work.row_bytes == 0,
           "gradients of steps that went back before: as if they did once more");
}

}  // namespace
}  // namespace rnnfast

int main() {
    for (const rnnfast::Case& c : rnnfast::kCases) rnnfast::check(c);
    rnnfast::check_left();
    std::printf("%d of %d checks failed\n", rnnfast::failures, rnnfast::checked);
    return rnnfast::failures != 0;
}
