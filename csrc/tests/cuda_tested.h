// One pass forward and backward by the CUDA kernels on the emulator: results against plain loops in
// double, gradients against differences of those along random directions. For a file that has
// included the kernels.
#pragma once

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "tests/cuda_cases.h"
#include "tests/cuda_emulator.h"
#include "tests/expect.h"
#include "tests/naive.h"

namespace rnnfast {
namespace cuda {

inline std::mt19937 generator(7);

// Numbers as the device has them, and just those in double.
template <class T>
struct Values {
    std::vector<T> narrowed;
    naive::Array exact;

    Values() = default;
    Values(size_t n, double scale) : narrowed(n), exact(n) {
        std::normal_distribution<float> draw(0, float(scale));
        for (size_t i = 0; i < n; ++i) {
            narrowed[i] = narrow<T>(draw(generator));
            exact[i] = widen(narrowed[i]);
        }
    }
    const T* data() const { return narrowed.empty() ? nullptr : narrowed.data(); }
};

template <class T>
naive::Array widened(const std::vector<T>& values) {
    naive::Array result;
    for (T value : values) result.push_back(widen(value));
    return result;
}

inline double dot(const naive::Array& a, const naive::Array& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

template <class Cell, class T>
class Tested {
public:
    static constexpr int G = Cell::kGates;

    Tested(const std::string& cell, const Case& given)
        : c_(given),
          wx_(size_t(c_.T) * c_.B * G * c_.H, 1),
          weights_(size_t(G) * c_.H * c_.H, 1 / std::sqrt(c_.H)),
          bias_(c_.bias ? size_t(G) * c_.H : 0, 0.5),
          h0_(c_.initial ? states() : 0, 0.5),
          c0_(c_.initial && Cell::kHasC ? states() : 0, 0.5),
          dy_(size_t(c_.T) * states(), 1),
          dhn_(states(), 1),
          dcn_(Cell::kHasC ? states() : 0, 1) {
        what_ = cell + (sizeof(T) == 2 ? " bfloat16" : " float32") + " T " + std::to_string(c_.T) +
                " B " + std::to_string(c_.B) + " H " + std::to_string(c_.H) +
                (c_.reverse ? " reverse" : "") + (c_.lengths ? " lengths" : "") +
                (c_.resets ? " resets" : "") + (c_.persistent ? "" : " step by step") +
                (c_.cluster ? " in clusters of " + std::to_string(c_.cluster) : "") +
                (c_.parts > 1 ? " units " + std::to_string(8 * c_.parts) : "");
        std::uniform_int_distribution<int> length(0, c_.T), one_in(0, 3);
        if (c_.lengths)
            for (int b = 0; b < c_.B; ++b) lengths_.push_back(length(generator));
        if (c_.resets)
            for (int i = 0; i < c_.T * c_.B; ++i) resets_.push_back(one_in(generator) == 0);
        // With W the identity, x is W x.
        naive_.cell = cell, naive_.T = c_.T, naive_.B = c_.B, naive_.I = G * c_.H, naive_.H = c_.H;
        naive_.P = 0, naive_.reverse = c_.reverse, naive_.x = wx_.exact;
        naive_.w_hh = weights_.exact;
        naive_.b_hh = bias_.exact, naive_.h0 = h0_.exact, naive_.c0 = c0_.exact;
        naive_.w_ih.assign(size_t(G) * c_.H * G * c_.H, 0);
        for (int i = 0; i < G * c_.H; ++i) naive_.w_ih[size_t(i) * G * c_.H + i] = 1;
        naive_.lengths.assign(lengths_.begin(), lengths_.end());
        naive_.reset = resets_;
        if (naive_.h0.empty()) naive_.h0.assign(states(), 0);
        if (naive_.c0.empty()) naive_.c0.assign(states(), 0);
    }

    void run() {
        forward();
        backward();
    }

private:
    size_t states() const { return size_t(c_.B) * c_.H; }

    // What the device has for columns: all that there is, or room for just so many groups.
    void limit(bool backward) const {
        const Plan p = plan_grid<T>(c_.B, c_.H, G, backward, {emulator::processors, 0, 0});
        const int wide = p.columns / kColumns, tiles = wide / grid_apart(wide);
        emulator::kept = c_.in_registers < 0 ? 1 << 20 : registers_for(c_.in_registers, tiles);
        emulator::shared =
            c_.in_shared < 0 ? 227 << 10 : p.shared + shared_columns(c_.in_shared, tiles);
    }

    // On a device just large enough for two shards to run at the same time, or too small for one.
    template <class Function, class Arrays>
    void call(Function function, bool backward, const Arrays& arrays) {
        // Or just too small for fewer units to a block.
        const int blocks = whole(c_.H, c_.parts * kColumns);
        const int processors = !c_.persistent  ? whole(c_.H, 4 * kColumns) - 1
                               : c_.parts == 1 ? 2 * blocks
                                               : whole(c_.H, c_.parts * kColumns / 2) - 1;
        emulator::use(processors, c_.cluster, c_.at_once);
        limit(backward);
        graphs.count = 0;  // those of the devices before
        emulator::launches = emulator::cluster_launches = emulator::graph_launches = 0;
        rnnfast_cuda_pass pass{};
        pass.cell = naive_.cell.c_str(), pass.dtype = sizeof(T) == 2 ? "bfloat16" : "float32";
        pass.steps = c_.T, pass.batch = c_.B, pass.hidden = c_.H, pass.reverse = c_.reverse;
        pass.lengths = lengths_.empty() ? nullptr : lengths_.data();
        pass.resets = resets_.empty() ? nullptr : resets_.data();
        pass.weight_hh = weights_.data(), pass.bias_hh = bias_.data();
        pass.h0 = h0_.data(), pass.c0 = c0_.data();
        size_t bytes = 0;
        expect(rnnfast_cuda_workspace(&pass, backward, &bytes) == 0, what_ + ": workspace");
        const size_t quads = bytes / sizeof(Quad);
        std::vector<Quad> memory(quads + 1, Quad{{~0u, ~0u, ~0u, ~0u}});
        pass.workspace = memory.data();
        expect(function(&pass, &arrays) == 0, what_ + ": " + rnnfast_cuda_error());
        expect(memory[quads].word[0] == ~0u, what_ + ": past the workspace");
        // A cluster's blocks have at most 32 units, or as many as they have registers for.
        const int units = sizeof(T) == 2 || G == 1 ? 32 : 16;
        const bool clusters = c_.taken && c_.H <= units * c_.cluster;
        const int steps = c_.T + backward,
                  graphs = clusters || c_.persistent ? 0 : steps / kReplayed;
        const int grid_launches = c_.waves * (c_.persistent ? 1 : steps - graphs * kReplayed);
        expect(emulator::launches == (clusters ? 1 : grid_launches), what_ + ": launches");
        expect(emulator::cluster_launches == clusters, what_ + ": clusters");
        expect(emulator::graph_launches == graphs, what_ + ": graphs");
        if (!clusters) expect(emulator::launched_blocks_x == blocks, what_ + ": blocks");
    }

    void forward() {
        const T nothing = narrow<T>(NAN);
        y_.assign(size_t(c_.T) * states(), nothing);
        saved_.assign(size_t(c_.T) * states() * Cell::kSaved, nothing);
        std::vector<T> hn(states(), nothing), cn(Cell::kHasC ? states() : 0, nothing);
        call(rnnfast_cuda_forward, false,
             rnnfast_cuda_outputs{wx_.data(), y_.data(), hn.data(), cn.data(), saved_.data()});
        const naive::Result wanted = naive::forward(naive_);
        compare("y", widened(y_), wanted.y);
        compare("hn", widened(hn), wanted.h);
        if (Cell::kHasC) compare("cn", widened(cn), wanted.c);
    }

    void backward() {
        const T nothing = narrow<T>(NAN);
        const bool apart = kFirstHSlot<Cell> > 0;
        std::vector<T> da(wx_.narrowed.size(), nothing), da_hidden(apart ? y_.size() : 0, nothing);
        std::vector<T> dh0(states(), nothing), dc0(Cell::kHasC ? states() : 0, nothing);
        call(rnnfast_cuda_backward, true,
             rnnfast_cuda_gradients{saved_.data(), y_.data(), dy_.data(), dhn_.data(), dcn_.data(),
                                    da.data(), da_hidden.data(), dh0.data(), dc0.data()});
        compare_gradient("da", widened(da), naive_.x);
        compare_gradient("dR", of_weights(widened(da), widened(da_hidden)), naive_.w_hh);
        compare_gradient("dh0", widened(dh0), naive_.h0);
        if (Cell::kHasC) compare_gradient("dc0", widened(dc0), naive_.c0);
    }

    // The product over all steps that gives R's gradient, as a caller takes it.
    naive::Array of_weights(const naive::Array& da, const naive::Array& da_hidden) const {
        const int H = c_.H;
        naive::Array result(weights_.exact.size(), 0);
        const naive::Array y = widened(y_);
        for (int t = 0; t < c_.T; ++t)
            for (int b = 0; b < c_.B; ++b) {
                const int before = c_.reverse ? t + 1 : t - 1;
                const bool has_before =
                    before >= 0 && before < (lengths_.empty() ? c_.T : lengths_[b]);
                const double* h =
                    has_before ? &y[(size_t(before) * c_.B + b) * H] : &naive_.h0[size_t(b) * H];
                const size_t at = size_t(t) * c_.B + b;
                if (!resets_.empty() && resets_[at]) continue;
                for (int gate = 0; gate < G; ++gate)
                    for (int u = 0; u < H; ++u) {
                        const bool hidden = !da_hidden.empty() && gate == G - 1;
                        const double d =
                            hidden ? da_hidden[at * H + u] : da[(at * G + gate) * H + u];
                        for (int k = 0; k < H; ++k)
                            result[(size_t(gate) * H + u) * H + k] += d * h[k];
                    }
            }
        return result;
    }

    double loss() const {
        const naive::Result r = naive::forward(naive_);
        return dot(r.y, dy_.exact) + dot(r.h, dhn_.exact) +
               (Cell::kHasC ? dot(r.c, dcn_.exact) : 0);
    }

    double tolerance() const { return sizeof(T) == 2 ? 2e-2 : 1e-5; }

    void compare(const char* name, const naive::Array& got, const naive::Array& wanted) const {
        double worst = got.size() == wanted.size() ? 0 : INFINITY;
        if (c_.exact && worst == 0) {
            naive::Array error = got;
            for (size_t i = 0; i < got.size(); ++i) error[i] -= wanted[i];
            const double relative = std::sqrt(dot(error, error) / dot(wanted, wanted));
            expect(relative < 1e-6, what_ + " " + name + ": " + std::to_string(relative));
        }
        for (size_t i = 0; i < got.size() && i < wanted.size(); ++i) {
            const double error = std::fabs(got[i] - wanted[i]) / (1 + std::fabs(wanted[i]));
            worst = error <= worst ? worst : error;  // this way round NaN is the worst
        }
        expect(worst < tolerance(), what_ + " " + name + ": " + std::to_string(worst));
    }

    // `at`: a member of naive_, moved along random directions.
    void compare_gradient(const char* name, const naive::Array& got, naive::Array& at) const {
        constexpr double kStep = 1e-7;  // so short that next to no unit crosses relu's corner
        std::normal_distribution<double> draw(0, 1);
        for (int trial = 0; trial < 3; ++trial) {
            const naive::Array before = at;
            naive::Array direction(at.size());
            for (double& d : direction) d = draw(generator);
            const auto moved = [&](double step) {
                for (size_t i = 0; i < at.size(); ++i) at[i] = before[i] + step * direction[i];
                return loss();
            };
            const double wanted = (moved(kStep) - moved(-kStep)) / (2 * kStep);
            at = before;
            const double scale = std::sqrt(dot(got, got)) + 1e-3;
            const double error = std::fabs(dot(got, direction) - wanted) / scale;
            expect(error < (c_.exact ? 1e-6 : 3 * tolerance()),
                   what_ + " " + name + ": " + std::to_string(error));
        }
    }

    Case c_;
    std::string what_;
    Values<T> wx_, weights_, bias_, h0_, c0_, dy_, dhn_, dcn_;
    std::vector<int32_t> lengths_;
    std::vector<uint8_t> resets_;
    std::vector<T> y_, saved_;
    naive::Layer naive_;
};

}  // namespace cuda
}  // namespace rnnfast
