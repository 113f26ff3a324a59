// The CUDA kernels' own code on the host, by an emulator of the device.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "tests/cuda_emulator.h"

#include "cuda/rnnfast_cuda.cu"
#include "tests/cuda_cases.h"
#include "tests/cuda_graph_test.h"
#include "tests/cuda_tested.h"
#include "tests/expect.h"

using namespace rnnfast;
using namespace rnnfast::cuda;

namespace {

template <class Cell>
void test(const char* name) {
    if constexpr (!Cell::kTwoProducts) {  // the others have no kernels here
        for (const Case& c : kCases) {
            Tested<Cell, float>(name, c).run();
            Tested<Cell, Bfloat16>(name, c).run();
        }
        if (Cell::kGates == 4)
            for (const Case& c : exact_cases()) Tested<Cell, float>(name, c).run();
        // bfloat16 rounds sums over relu's corner, where gradients are not continuous.
        const bool corner = std::string(name) == "rnn_relu";
        for (const Case& c : cluster_cases()) {
            Tested<Cell, float>(name, c).run();
            if (!corner) Tested<Cell, Bfloat16>(name, c).run();
        }
        Tested<Cell, float>(name, kLargest[Cell::kGates == 1]).run();
        if (!corner)
            for (const Case& c : kLargest) Tested<Cell, Bfloat16>(name, c).run();
    }
}

// NaN and infinity stay what they are, and other floats lose at most their last bit.
void test_parts() {
    for (uint32_t sign : {0u, 0x80000000u}) {
        for (uint32_t nan : {0x7f800001u, 0x7f801fffu, 0x7fc00000u, 0x7fffefffu, 0x7fffffffu}) {
            const Parts p = parts(bits_of(quiet(float_of(nan | sign))));
            expect(std::isnan(float_of(p.large) + float_of(p.small)), "parts of NaN");
        }
        const Parts infinite = parts(bits_of(quiet(float_of(0x7f800000u | sign))));
        expect(infinite.large == (0x7f800000u | sign) && infinite.small == 0, "parts of infinity");
        for (uint32_t bits : {0u, 0x3f800000u, 0x3f801fffu, 0x3fffffffu, 0x40490fdbu}) {
            const Parts p = parts(bits_of(quiet(float_of(bits | sign))));
            const double x = float_of(bits | sign);
            const double lost = x - float_of(p.large) - float_of(p.small);
            expect(std::fabs(lost) <= std::ldexp(std::fabs(x), -23), "parts of a float");
        }
    }
}

// NaN of few bits that a caller gives, in R or in h0, reaches all that follows of it.
void test_nan() {
    constexpr int H = 8;
    // The other has no part that is zero, and by which infinity would be NaN.
    const float nan = float_of(0x7f800001u), other = 1 + 0x1p-20f;
    emulator::use(1);
    for (bool of_weights : {false, true}) {
        std::vector<float> weights(H * H, other), h0(H, other), wx(H, 1), y(H), hn(H);
        (of_weights ? weights : h0)[0] = nan;
        rnnfast_cuda_pass pass{};
        pass.cell = "rnn_tanh", pass.dtype = "float32";
        pass.steps = pass.batch = 1, pass.hidden = H;
        pass.weight_hh = weights.data(), pass.h0 = h0.data();
        size_t bytes = 0;
        expect(rnnfast_cuda_workspace(&pass, false, &bytes) == 0, "NaN: workspace");
        std::vector<Quad> memory(bytes / sizeof(Quad));
        pass.workspace = memory.data();
        const rnnfast_cuda_outputs out{wx.data(), y.data(), hn.data(), nullptr, nullptr};
        expect(rnnfast_cuda_forward(&pass, &out) == 0, "NaN: forward");
        for (int unit = 0; unit < H; ++unit)
            expect(std::isnan(y[unit]) == (unit == 0 || !of_weights), "NaN of few bits");
    }
}

// A block's rows, as they lie.
struct OwnRows {
    static Quad load(const Quad* p) { return *p; }
    static constexpr bool kNear = false;
};

// As many k as a step of an LSTM of 1024 units has backward.
void test_long_product() {
    constexpr int kDepth = 4096;
    using Product = Columns<float, 1, 1, 0>;
    for (bool positive : {false, true}) {
        Values<float> rows(size_t(kRows) * kDepth, 1), columns(size_t(kColumns) * kDepth, 1);
        if (positive)
            for (Values<float>* values : {&rows, &columns})
                for (size_t i = 0; i < values->exact.size(); ++i)
                    values->exact[i] = values->narrowed[i] = std::fabs(values->narrowed[i]);
        naive::Array error(size_t(kRows) * kColumns), wanted(error.size());
        emulator::run({1, 1, Product::floats(kRows) * int(sizeof(float))}, false, [&] {
            const Product product(columns.data(), kDepth);
            product.multiply(rows.data(), kDepth, kRows, OwnRows{});
            meet();
            for (size_t i = size_t(thread()); i < error.size(); i += kThreads) {
                const size_t row = i / kColumns, column = i % kColumns;
                for (size_t k = 0; k < kDepth; ++k)
                    wanted[i] += rows.exact[row * kDepth + k] * columns.exact[column * kDepth + k];
                error[i] = Product::sum(int(row), int(column), kRows) - wanted[i];
            }
        });
        const double relative = std::sqrt(dot(error, error) / dot(wanted, wanted));
        expect(relative < 5e-7, "a product of 4096 k: " + std::to_string(relative));
    }
}

// What each cluster takes of registers and shared memory, and which H have one at all.
template <class T>
void test_plans() {
    for (int gates : {1, 3, 4})
        for (bool backward : {false, true})
            for (int H = 1; H <= 600; ++H) {
                bool found = false;
                for (int parts : kPartChoices)
                    for (int B : {1, 16, 17, 1000}) {
                        const auto p = plan_cluster<T>(B, H, gates, backward, parts, 7);
                        if (p.blocks == 0) continue;
                        found = true;
                        const int splits = backward ? kWarps : kWarps / parts;
                        const int kept = cluster_groups<T>(parts, gates, backward) * splits;
                        expect(p.blocks <= 16 && p.blocks * p.units >= H &&
                                   p.depth >= H * (backward ? gates : 1) &&
                                   p.depth <= kept * kGroup<T> && p.shared <= 227 << 10 &&
                                   p.shard_rows <= most_rows(p.units) &&
                                   p.shards * p.shard_rows >= B,
                               "the plan of a cluster, H " + std::to_string(H));
                    }
                const int largest = sizeof(T) == 2 || gates == 1 ? 512 : 256;
                expect(found == (H <= largest), "no plan of a cluster, H " + std::to_string(H));
            }
}

}  // namespace

int main() {
    test_graphs();
    test_facts();
    test_plans<float>();
    test_plans<Bfloat16>();
#define CELL(name, type) test<type>(#name);
#include "core/cells.inc"
#undef CELL
    test_parts();
    test_nan();
    test_long_product();
    std::printf("%d checks, %d failed\n", checked, failures);
    return failures != 0;
}
