// Stacks of layers under each schedule that needs several jobs, with all gradients and with some, with
// padding and without, and fingerprints, without Python: for the sanitizers. Whatever one thread
// computes on padded rows, three threads must compute to the bit.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "dispatch/fingerprint.h"
#include "dispatch/registry.h"
#include "dispatch/schedule.h"
#include "dispatch/stack.h"
#include "dispatch/threads.h"

using namespace rnnfast;

namespace {

using Floats1D = std::vector<float>;

std::mt19937 generator(5);

Floats1D normal(size_t n, float scale) {
    std::normal_distribution<float> draw(0, scale);
    Floats1D a(n);
    for (float& v : a) v = draw(generator);
    return a;
}

// Some gradients: at the lowest x, and those of each layer's parameters.
enum Wanted {
    kDx = 1,
    kWeightIh = 2,
    kWeightHh = 4,
    kBiasIh = 8,
    kBiasHh = 16,
    kAll = 31,
    kInBfloat16 = 63
};

// One layer in one direction, and all that its two passes write.
struct Layer {
    Sizes sizes;
    Floats1D w_ih, w_hh, b_ih, b_hh, hn, cn, dw_ih, dw_hh, db_ih, db_hh, dh0, dc0, saved, dx;
    std::vector<const Floats1D*> results(int listed) const {
        std::vector<const Floats1D*> all{&hn, &cn, &dh0, &dc0};
        if (listed & kWeightIh) all.push_back(&dw_ih);
        if (listed & kWeightHh) all.push_back(&dw_hh);
        if (listed & kBiasIh) all.push_back(&db_ih);
        if (listed & kBiasHh) all.push_back(&db_hh);
        return all;
    }
};

constexpr ptrdiff_t kSteps = 50, kBatch = 5, kInput = 20, kHidden = 70;
constexpr int kLayers = 3;

// How arrays (T, B, ·) lie, and how run lists them: whole, or those rows alone that have a step, in
// the order of the plan.
enum class Rows { padded, picked, ragged };

// The rows of an array that have a step. The lengths fall.
Floats1D pick(const Floats1D& array, size_t width, const int64_t* lengths) {
    Floats1D picked;
    for (ptrdiff_t t = 0; t < kSteps; ++t)
        for (ptrdiff_t b = 0; b < kBatch && t < lengths[b]; ++b) {
            const auto row = array.begin() + (t * kBatch + b) * ptrdiff_t(width);
            picked.insert(picked.end(), row, row + ptrdiff_t(width));
        }
    return picked;
}

// Forward and backward of a stack, of the gradients that are `wanted`; returns everything written, in
// one list, of gradients those that are `listed`.
Floats1D run(CellId cell, int directions, const int64_t* lengths, int wanted, int listed,
             Rows how = Rows::padded, const Format* format = nullptr) {
    generator.seed(5);
    const bool ragged = how == Rows::ragged;
    std::vector<int64_t> batch_sizes;
    for (ptrdiff_t t = 0; ragged && t < kSteps; ++t)
        batch_sizes.push_back(
            std::count_if(lengths, lengths + kBatch, [t](int64_t length) { return length > t; }));
    const int64_t* const sizes = ragged ? batch_sizes.data() : nullptr;
    RowPlan plans[2] = {{kSteps, kBatch, false, lengths, sizes},
                        {kSteps, kBatch, true, lengths, sizes}};
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(cell)];
    const size_t gates = size_t(kernels.gates * kHidden), states = size_t(kBatch * kHidden);
    const size_t rows = size_t(plans[0].plan().array_rows()), output = size_t(directions * kHidden);
    Floats1D x = normal(size_t(kSteps * kBatch * kInput), 1);
    Floats1D dy = normal(size_t(kSteps * kBatch) * output, 1);
    if (ragged) x = pick(x, size_t(kInput), lengths), dy = pick(dy, output, lengths);
    // Of ragged rows none is read: the first would lead far outside.
    const auto step_stride = [&](ptrdiff_t row) {
        return ragged ? PTRDIFF_MAX / kSteps / 8 : kBatch * row;
    };
    std::deque<Layer> layers;
    std::deque<PackedWeights<float>> packs;
    std::deque<Floats1D> outputs;
    std::vector<ForwardJob<float>> forward;
    std::vector<BackwardJob<float>> backward;
    for (int l = 0; l < kLayers; ++l) {
        const ptrdiff_t below = l ? ptrdiff_t(output) : kInput;
        outputs.emplace_back(rows * output);
        for (int d = 0; d < directions; ++d) {
            Layer& a = layers.emplace_back();
            a.sizes = {below, kHidden, 0};
            a.w_ih = normal(gates * size_t(below), 0.1f), a.w_hh = normal(gates * kHidden, 0.1f);
            a.b_ih = normal(gates, 1), a.b_hh = normal(gates, 1);
            a.dw_ih.resize(a.w_ih.size()), a.dw_hh.resize(a.w_hh.size());
            a.db_ih.resize(gates), a.db_hh.resize(gates);
            a.hn.resize(states), a.cn.resize(states), a.dh0.resize(states), a.dc0.resize(states);
            a.dx.resize(rows * size_t(below));
            a.saved.resize(size_t(plans[0].rows() * kernels.saved_row(a.sizes)));
            packs.emplace_back(cell, a.sizes,
                               Weights<const float>{a.w_ih.data(), a.w_hh.data(), a.b_ih.data(),
                                                    a.b_hh.data(), nullptr},
                               Held::packed, format);
            ForwardArgs<float> args{};
            args.x = l ? outputs[size_t(l) - 1].data() : x.data();
            args.x_step = step_stride(below), args.x_row = below;
            args.y = outputs.back().data() + d * kHidden;
            args.y_step = step_stride(ptrdiff_t(output)), args.y_row = ptrdiff_t(output);
            args.hn = a.hn.data(), args.cn = kernels.has_c ? a.cn.data() : nullptr;
            args.saved = kernels.saves_y ? nullptr : a.saved.data();
            forward.push_back({&packs.back(), args, &plans[d]});
        }
    }
    run_forward_stack(forward.data(), kLayers, directions);
    for (size_t i = 0; i < layers.size(); ++i) {
        Layer& a = layers[i];
        const size_t d = i % size_t(directions), above = i - d + size_t(directions);
        BackwardArgs<float> grads{};
        grads.dy = (above < layers.size() ? layers[above].dx.data() : dy.data()) + d * kHidden;
        grads.dy_step = step_stride(ptrdiff_t(output)), grads.dy_row = ptrdiff_t(output);
        const bool lowest = i < size_t(directions);
        const auto masked = [wanted](Wanted which, Floats1D& gradient) {
            return wanted & which ? gradient.data() : nullptr;
        };
        grads.dx = lowest ? masked(kDx, a.dx) : a.dx.data();
        grads.dx_step = step_stride(a.sizes.input), grads.dx_row = a.sizes.input;
        grads.dh0 = a.dh0.data(), grads.dc0 = kernels.has_c ? a.dc0.data() : nullptr;
        grads.weights = {masked(kWeightIh, a.dw_ih), masked(kWeightHh, a.dw_hh),
                         masked(kBiasIh, a.db_ih), masked(kBiasHh, a.db_hh), nullptr};
        grads.assign = true;
        backward.push_back({&packs[i], forward[i].args, grads, &plans[d]});
    }
    run_backward_stack(backward.data(), kLayers, directions);
    Floats1D all;
    const auto list = [&all](const Floats1D& part) {
        all.insert(all.end(), part.begin(), part.end());
    };
    const auto list_rows = [&](const Floats1D& part, size_t width) {
        list(how == Rows::picked ? pick(part, width, lengths) : part);
    };
    for (const Floats1D& y : outputs) list_rows(y, output);
    for (size_t i = 0; i < layers.size(); ++i) {
        const bool lowest = i < size_t(directions);
        if (!lowest || listed & kDx) list_rows(layers[i].dx, size_t(layers[i].sizes.input));
        for (const Floats1D* part : layers[i].results(listed)) list(*part);
    }
    return all;
}

// The fingerprint of 2 MiB in two arrays, in pieces that threads take as they come.
uint64_t fingerprint_of_two() {
    static const Floats1D a = normal(400000, 1), b = normal(124288, 1);
    const auto bytes = [](const Floats1D& array) {
        return Bytes{reinterpret_cast<const unsigned char*>(array.data()),
                     ptrdiff_t(array.size() * sizeof(float))};
    };
    return fingerprint({bytes(a), bytes(b)});
}

// Of three threads that call at the same time, one of them under a limit: those that are not as one
// thread has it.
int wrong_fingerprints() {
    set_num_threads(1);
    const uint64_t want = fingerprint_of_two();
    set_num_threads(3);
    std::atomic<int> wrong{0};
    const auto call = [&](int most) {
        const ThreadLimit limit(most);
        for (int i = 0; i < 20; ++i) wrong += fingerprint_of_two() != want;
    };
    std::thread second(call, 0), third(call, 1);
    call(2);
    second.join(), third.join();
    return wrong;
}

bool runs_alone() {
    run(CellId::lstm, 1, nullptr, kAll, kAll);
    return last_schedule() == Forced::none;
}

// Passes on two threads beside another caller's work, which has one of two cores, and then without: how
// many had more than they should, and whether none had what it should.
int wrong_teams() {
    set_num_threads(2);
    set_cpu_quota(2);
    int wrong = 0;
    {
        const Busy other;
        for (int i = 0; i < 10; ++i) wrong += !runs_alone();
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    bool alone = true;  // a worker whose core is busy is not waited for
    while (alone && std::chrono::steady_clock::now() < end) alone = runs_alone();
    return wrong + alone;
}

}  // namespace

int main() {
    try {
        std::printf("ISA %s\n", active_isa().c_str());
    } catch (const std::runtime_error& error) {
        std::printf("%s\n", error.what());
        return 77;  // ctest's sign for a test that was skipped
    }
    const int64_t lengths[kBatch] = {kSteps, 0, 17, 31, 3},
                  falling[kBatch] = {kSteps, 31, 17, 17, 3};
    const struct {
        const int64_t* lengths;
        Rows alone, together;  // as one thread has them, and as three
    } forms[] = {{nullptr, Rows::padded, Rows::padded},
                 {lengths, Rows::padded, Rows::padded},
                 {falling, Rows::picked, Rows::ragged}};
    int failures = 0;
    for (int cell = 0; cell < int(CellId::count); ++cell)
        for (const auto& [some, alone, together] : forms)
            for (Forced schedule :
                 {Forced::layers, Forced::directions, Forced::shards, Forced::units}) {
                const int directions = schedule == Forced::directions ? 2 : 1;
                for (int wanted : {int(kAll), int(kInBfloat16), kWeightHh | kBiasIh,
                                   kDx | kWeightIh | kBiasHh, 0}) {
                    if (wanted == kInBfloat16 && some != lengths) continue;
                    const Format* const format =
                        wanted == kInBfloat16 ? &active_format(FormatId::bfloat16) : nullptr;
                    set_num_threads(1);
                    force_schedule(Forced::none);
                    const Floats1D want =
                        run(CellId(cell), directions, some, kAll, wanted, alone, format);
                    set_num_threads(3);
                    force_schedule(schedule);
                    const Floats1D got =
                        run(CellId(cell), directions, some, wanted, wanted, together, format);
                    const bool same =
                        got.size() == want.size() &&
                        !std::memcmp(got.data(), want.data(), want.size() * sizeof(float));
                    if (same) continue;
                    std::printf("cell %d, schedule %d, gradients %d, rows %d: other bits\n", cell,
                                int(schedule), wanted, int(together));
                    ++failures;
                }
            }
    force_schedule(Forced::none);
    const int wrong = wrong_fingerprints();
    if (wrong) std::printf("%d fingerprints of several threads: others\n", wrong);
    failures += wrong;
    const int teams = wrong_teams();
    if (teams) std::printf("%d passes beside others: on other numbers of threads\n", teams);
    failures += teams;
    std::printf("%d failed\n", failures);
    return failures != 0;
}
