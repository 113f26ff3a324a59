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
        // bfloat16 rounds sums over relu's corner, where gradients are not continuous: in few steps of
        // few units by no more than what is allowed.
        const bool corner = std::string(name) == "rnn_relu";
        for (const Case& c : kCases) {
            Tested<Cell, float>(name, c).run();
            if (!corner || c.T < kReplayed) Tested<Cell, Bfloat16>(name, c).run();
        }
        if (Cell::kGates == 4)
            for (const Case& c : exact_cases()) Tested<Cell, float>(name, c).run();
        for (const auto& cases : {grid_cases(), cluster_cases()})
            for (const Case& c : cases) {
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

// A product of a block, which keeps some of its columns: the error of all of it, relative.
template <class T, int kTiles, int kParts, int kGroups>
double error_of_product(const Values<T>& rows, const Values<T>& columns, int depth,
                        const Kept& kept) {
    using Product = Columns<T, kTiles, kParts, kGroups>;
    constexpr int kWide = kTiles * Product::kUnits;
    const int count = int(rows.exact.size()) / depth;
    std::vector<T> packed;
    for (int group = 0; group < depth; group += kGroup<T>)
        for (int column = 0; column < kWide; ++column)
            for (int k = group; k < group + kGroup<T>; ++k)
                packed.push_back(columns.narrowed[size_t(column) * depth + k]);
    naive::Array error(size_t(count) * kWide), wanted(error.size());
    const int bytes = Product::floats(count) * int(sizeof(float));
    emulator::run({1, 1, bytes + shared_columns(kept.shared, kTiles)}, false, [&] {
        const Product product(packed.data(), depth, kept, shared_floats() + bytes / sizeof(float));
        product.multiply(rows.data(), depth, count, OwnRows{});
        meet();
        for (size_t i = size_t(thread()); i < error.size(); i += kThreads) {
            const size_t row = i / kWide, column = i % kWide;
            for (int k = 0; k < depth; ++k)
                wanted[i] += rows.exact[row * depth + k] * columns.exact[column * depth + k];
            error[i] = Product::sum(int(row), int(column), count) - wanted[i];
        }
    });
    return std::sqrt(dot(error, error) / dot(wanted, wanted));
}

// As many k as a step of an LSTM of 1024 units has backward.
void test_long_product() {
    constexpr int kDepth = 4096;
    for (bool positive : {false, true}) {
        Values<float> rows(size_t(kRows) * kDepth, 1), columns(size_t(kColumns) * kDepth, 1);
        if (positive)
            for (Values<float>* values : {&rows, &columns})
                for (size_t i = 0; i < values->exact.size(); ++i)
                    values->exact[i] = values->narrowed[i] = std::fabs(values->narrowed[i]);
        const double error = error_of_product<float, 1, 1, 1>(rows, columns, kDepth, {0, 0});
        expect(error < 5e-7, "a product of 4096 k: " + std::to_string(error));
    }
}

// Columns in registers, in shared memory and in memory, of warps that have as many groups and of
// others.
template <class T, int kTiles, int kParts, int kGroups>
void test_kept() {
    for (int groups : {1, 15, 40, 45})
        for (int rows : {3, 20})
            for (const Kept kept :
                 {Kept{0, 0}, {1, 0}, {kGroups, 0}, {0, 2}, {1, 1}, {kGroups, 2}}) {
                const int depth = groups * kGroup<T>;
                const Values<T> left(size_t(rows) * depth, 1);
                const Values<T> right(size_t(depth) * kTiles * kParts * kColumns, 1);
                const double error =
                    error_of_product<T, kTiles, kParts, kGroups>(left, right, depth, kept);
                expect(error < 1e-6, "a product of " + std::to_string(groups) + " groups, kept " +
                                         std::to_string(kept.registers) + " and " +
                                         std::to_string(kept.shared) + ": " +
                                         std::to_string(error));
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

// What a grid takes of a device, and of which blocks it is.
template <class T>
void test_grid(int batch, int H, int gates, bool backward, const Room& room) {
    const auto p = plan_grid<T>(batch, H, gates, backward, room);
    const bool together = p.meeting == Meeting::kAll;
    const int wide = p.columns / kColumns, splits = kWarps / grid_apart(wide);
    const int tiles = wide * splits / kWarps, groups = whole(p.depth / kGroup<T>, splits);
    const int kept = p.kept.registers + p.kept.shared, each = shared_columns(1, tiles);
    const int sums = shared_floats_for(p.shard_rows, p.columns, splits) * int(sizeof(float));
    const auto fits = [&](int units) { return whole(H, units) <= room.processors; };
    const bool holds =
        together == fits(32) && (p.units == 8 || (together && !fits(p.units / 2))) &&
        p.columns == p.units * (backward ? 1 : gates) && p.blocks == whole(H, p.units) &&
        p.depth == (backward ? gates : 1) * round_up(H, kGroup<T>) &&
        (!together || p.blocks * p.at_once <= room.processors) && p.shard_rows % kRows == 0 &&
        p.shard_rows <= most_rows(p.units) && p.shards * p.shard_rows >= batch &&
        p.shared == sums + p.kept.shared * each && p.shared <= room.shared &&
        p.kept.registers <= most_groups<T>(p.units / kColumns, tiles) && kept <= groups &&
        (together ? kept == groups || p.shared + each > room.shared : p.kept.shared == 0);
    if (!holds) expect(false, "the plan of a grid, H " + std::to_string(H));
}

template <class T>
void test_grids() {
    for (int gates : {1, 3, 4})
        for (int bits = 0; bits < 8; ++bits)
            for (int H = 1; H <= 5000; ++H)
                for (int B : {1, 16, 17, 64, 1000})
                    test_grid<T>(B, H, gates, bits & 1,
                                 {bits & 2 ? 108 : 132, (bits & 4 ? 163 : 227) << 10, 1 << 20});
    // Of an LSTM in 16 bit all is kept up to here, of 16 rows.
    const auto at = [](int H) {
        return plan_grid<Bfloat16>(16, H, 4, false, {132, 227 << 10, 128});
    };
    expect(at(1024).kept.shared == 0 && at(2048).kept.registers + at(2048).kept.shared == 8,
           "what a grid keeps");
}

}  // namespace

int main() {
    test_graphs();
    test_occupancy();
    test_facts();
    test_plans<float>();
    test_plans<Bfloat16>();
    test_grids<float>();
    test_grids<Bfloat16>();
    test_kept<float, 1, 1, 3>();
    test_kept<float, 3, 2, 2>();
    test_kept<Bfloat16, 4, 1, 4>();
    test_kept<Bfloat16, 8, 2, 3>();
#define CELL(name, type) test<type>(#name);
#include "core/cells.inc"
#undef CELL
    test_parts();
    test_nan();
    test_long_product();
    std::printf("%d checks, %d failed\n", checked, failures);
    return failures != 0;
}
