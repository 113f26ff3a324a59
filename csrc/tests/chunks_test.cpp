// How a backward pass is cut into chunks: each step in one of them, in order, and about as many rows in
// each as are meant to be.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "dispatch/chunks.h"
#include "dispatch/run.h"
#include "tests/expect.h"

namespace rnnfast {
namespace {

struct Layer {
    const char* name;
    ptrdiff_t row, weights;  // numbers of a row's gate gradients; of W and R
    ptrdiff_t target;        // rows that a chunk is meant to have
};

// 128 rows, or 131072 numbers; above 262144 weights 512 rows, or 1310720 numbers.
const Layer kLayers[] = {
    {"RNN 8", 16, 16 * 24, 8192},
    {"LSTM 64", 256, 256 * 128, 512},
    {"GRU 255", 768, 768 * 510, 512},
    {"LSTM 1024", 4096, 4096 * 2048, 320},
    {"LSTM 4096", 16384, ptrdiff_t(16384) * 8192, 128},
};

ptrdiff_t rows_of(const Plan& plan, const Chunk& chunk) {
    return plan.start(chunk.end) - plan.start(chunk.begin);
}

void check(const Plan& plan, const Layer& layer, const std::string& what) {
    const auto chunks = make_chunks(plan, layer.row, layer.weights);
    ptrdiff_t next = plan.reverse ? 0 : plan.steps, most = 0;
    bool in_order = true;
    for (const Chunk& chunk : chunks) {
        in_order =
            in_order && chunk.begin < chunk.end && (plan.reverse ? chunk.begin : chunk.end) == next;
        next = plan.reverse ? chunk.end : chunk.begin;
        most = std::max(most, rows_of(plan, chunk));
    }
    expect(in_order && next == (plan.reverse ? plan.steps : 0), what + ": steps left out or twice");
    // A quarter more than meant, in whole steps.
    const ptrdiff_t steps = plan.batch ? (layer.target + plan.batch - 1) / plan.batch : 1;
    const ptrdiff_t allowed = steps * plan.batch * 5 / 4 + plan.batch;
    expect(most <= allowed, what + ": a chunk of " + std::to_string(most) + " rows");
    // And no fewer than it needs.
    const ptrdiff_t count = ptrdiff_t(chunks.size()), meant = steps * plan.batch;
    expect(count <= 1 || (4 * count - 3) * meant <= 4 * plan.start(plan.steps),
           what + ": " + std::to_string(count) + " chunks");
    // No last one of few. Where rows differ from step to step, or a step has more than a chunk is
    // meant to have, there may be.
    if (plan.active) return;
    for (const Chunk& chunk : chunks)
        expect(rows_of(plan, chunk) + plan.batch >= most,
               what + ": chunks of " + std::to_string(most) + " and of " +
                   std::to_string(rows_of(plan, chunk)) + " rows");
}

void check_layers() {
    for (const Layer& layer : kLayers)
        for (ptrdiff_t steps : {0, 1, 2, 7, 25, 100, 2048})
            for (ptrdiff_t batch : {0, 1, 3, 64, 100, 600})
                for (bool reverse : {false, true}) {
                    const std::string what = std::string(layer.name) + ", " +
                                             std::to_string(steps) + " steps of " +
                                             std::to_string(batch);
                    check(RowPlan(steps, batch, reverse, nullptr).plan(), layer, what);
                    std::vector<int64_t> lengths(size_t(batch), 0);
                    for (ptrdiff_t row = 0; row < batch; ++row)
                        lengths[size_t(row)] = row * 7919 % (steps + 1);
                    const RowPlan ragged(steps, batch, reverse, lengths.data());
                    check(ragged.plan(), layer, what + " at most");
                }
}

void check_even_cut() {
    const RowPlan plan(25, 64, false, nullptr);
    const auto chunks = make_chunks(plan.plan(), 4096, 4096 * 2048);
    expect(chunks.size() == 5, "25 steps of 64 rows, LSTM 1024: not 5 chunks");
    for (const Chunk& chunk : chunks) expect(chunk.end - chunk.begin == 5, "not of 5 steps each");
}

}  // namespace
}  // namespace rnnfast

int main() {
    rnnfast::check_layers();
    rnnfast::check_even_cut();
    std::printf("%d of %d checks failed\n", rnnfast::failures, rnnfast::checked);
    return rnnfast::failures != 0;
}
