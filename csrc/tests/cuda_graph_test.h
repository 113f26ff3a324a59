// What the host keeps from pass to pass, on the emulator: what devices have said, and graphs of steps,
// on several streams and devices, captured by the caller, where there are too many, and where none
// can be made. For a file that has included the kernels.
#pragma once

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda_emulator.h"
#include "tests/expect.h"

namespace rnnfast {
namespace cuda {

// A forward pass of a GRU of random numbers.
class Inference {
public:
    Inference(int steps, int batch, int hidden) : steps_(steps), batch_(batch), hidden_(hidden) {
        const size_t rows = size_t(steps) * batch;
        for (auto [values, size] : {std::pair{&wx_, rows * 3 * hidden},
                                    {&weights_, size_t(3) * hidden * hidden},
                                    {&h0_, size_t(batch) * hidden}}) {
            std::normal_distribution<float> draw(0, 0.5f);
            for (size_t i = 0; i < size; ++i) values->push_back(draw(emulator::order));
        }
        hn_.resize(h0_.size());
        y_.resize(rows * hidden);
    }

    // Whether it was put on the stream.
    bool put(int stream) {
        std::fill(y_.begin(), y_.end(), NAN);
        rnnfast_cuda_pass pass{};
        pass.cell = "gru", pass.dtype = "float32";
        pass.steps = steps_, pass.batch = batch_, pass.hidden = hidden_;
        pass.weight_hh = weights_.data(), pass.h0 = h0_.data();
        pass.stream = reinterpret_cast<void*>(intptr_t(stream));
        size_t bytes = 0;
        if (rnnfast_cuda_workspace(&pass, false, &bytes) != 0) return false;
        memory_.resize(bytes / sizeof(Quad));
        pass.workspace = memory_.data();
        const rnnfast_cuda_outputs out{wx_.data(), y_.data(), hn_.data(), nullptr, nullptr};
        return rnnfast_cuda_forward(&pass, &out) == 0;
    }
    int steps() const { return steps_; }
    const std::vector<float>& y() const { return y_; }

private:
    int steps_, batch_, hidden_;
    std::vector<float> wx_, weights_, h0_, hn_, y_;
    std::vector<Quad> memory_;
};

// Counts since the last call.
struct Counts {
    int launches, graphs, made;
};
inline Counts counts() {
    static int made = 0;
    const Counts result{emulator::launches, emulator::graph_launches, emulator::graphs_made - made};
    emulator::launches = emulator::graph_launches = 0;
    made = emulator::graphs_made;
    return result;
}
inline void expect_counts(const Counts& wanted, const std::string& what) {
    const Counts got = counts();
    expect(got.launches == wanted.launches, what + ": launches " + std::to_string(got.launches));
    expect(got.graphs == wanted.graphs, what + ": graphs " + std::to_string(got.graphs));
    expect(got.made == wanted.made, what + ": graphs made " + std::to_string(got.made));
}

inline void test_graphs() {
    emulator::use(0);
    graphs.count = 0;
    counts();

    // Work of three streams, in any order that they may run in: of the same sizes, and of others.
    struct Put {
        Inference pass;
        int stream;
        std::vector<float> wanted{};
    };
    std::vector<Put> all{{{33, 2, 9}, 1},  {{33, 2, 9}, 2}, {{33, 2, 9}, 1}, {{64, 17, 9}, 2},
                         {{35, 2, 17}, 3}, {{71, 2, 9}, 3}, {{8, 2, 9}, 1}};
    emulator::captures = true;
    for (Put& put : all) {
        expect(put.pass.put(put.stream), "graphs: captured");
        expect_counts({put.pass.steps(), 0, 0}, "captured");
        put.wanted = put.pass.y();
    }
    emulator::captures = false;
    for (int trial = 0; trial < 4; ++trial) {
        emulator::work_waits = true;
        for (Put& put : all) expect(put.pass.put(put.stream), "graphs: put on a stream");
        emulator::finish();
        emulator::work_waits = false;
        expect_counts({1 + 1 + 1 + 0 + 3 + 7 + 8, 1 + 1 + 1 + 2 + 1 + 2, trial ? 0 : 5}, "streams");
        for (const Put& put : all) expect(put.pass.y() == put.wanted, "graphs: results");
    }

    const int device = emulator::device;
    emulator::use(0);
    expect(all[0].pass.put(all[0].stream) && all[0].pass.y() == all[0].wanted, "another device");
    expect_counts({1, 1, 1}, "another device");
    emulator::device = device;

    const int places = graphs.count;
    emulator::makes_graphs = false;
    expect(!all[0].pass.put(4), "a graph that cannot be made");
    expect(std::string(rnnfast_cuda_error()).find("an error of") != std::string::npos, "its error");
    expect(graphs.count == places, "a graph that cannot be made takes no place");
    emulator::makes_graphs = true;
    counts();
    expect(all[0].pass.put(4) && all[0].pass.y() == all[0].wanted, "after an error");
    expect_counts({1, 1, 1}, "after an error");

    for (int stream = 100; stream < 100 + kMostGraphs; ++stream) all[0].pass.put(stream);
    expect(graphs.count == kMostGraphs, "as many graphs as there may be");
    counts();
    expect(all[0].pass.put(5) && all[0].pass.y() == all[0].wanted, "too many graphs");
    expect_counts({33, 0, 0}, "too many graphs");
    expect(all[0].pass.put(4) && all[0].pass.y() == all[0].wanted, "too many graphs, one of them");
    expect_counts({1, 1, 0}, "too many graphs, one of them");
}

// Blocks that cannot run at the same time do not wait for each other.
inline void test_occupancy() {
    for (int hidden : {20, 70}) {  // in blocks of 8 units, and of 16
        Inference pass(35, 3, hidden);
        emulator::use(5);
        counts();
        expect(pass.put(0), "occupancy: together");
        expect_counts({1, 0, 0}, "occupancy: together");
        const std::vector<float> wanted = pass.y();
        emulator::use(5);
        emulator::on_each = 0;
        graphs.count = 0;
        expect(pass.put(0) && pass.y() == wanted, "occupancy: not together");
        expect_counts({3, 1, 1}, "occupancy: not together");
        emulator::on_each = 1;
    }
}

// A device is asked by its first pass of a shape alone, which others may follow on other devices.
inline void test_facts() {
    Inference small(3, 2, 9), large(3, 2, 40);
    emulator::use(2, 3);
    const int first = emulator::device;
    const auto questions = [](Inference& pass) {
        emulator::questions = 0;
        expect(pass.put(0), "facts: a pass");
        return emulator::questions;
    };
    counts();
    expect(questions(small) > 0 && questions(small) == 0, "facts: asked again");
    expect(questions(large) > 0 && questions(large) == 0, "facts: of another shape");
    expect_counts({4, 0, 0}, "facts");
    emulator::use(5);
    expect(questions(large) > 0 && questions(large) == 0, "facts: of another device");
    expect_counts({2, 0, 0}, "facts of another device");
    emulator::device = first, emulator::processors = 2, emulator::cluster_blocks = 3;
    expect(questions(small) == 0 && questions(large) == 0, "facts: of the first device");

    // Errors are no answers.
    int answer = 0;
    const auto ask = [&](int says, Error error) {
        return known({Fact::kBlocks, &answer}, &answer, [=](int* said) {
            *said = says;
            return error;
        });
    };
    expect(ask(7, 1) == 1 && ask(8, kFine) == kFine && answer == 8, "facts: an error is kept");
    expect(ask(9, 1) == kFine && answer == 8, "facts: an answer is not kept");
    emulator::has_code = false;
    expect(rnnfast_cuda_runs() != 0, "facts: no code");
    emulator::has_code = true;
    expect(rnnfast_cuda_runs() == 0, "facts: code");
}

}  // namespace cuda
}  // namespace rnnfast
