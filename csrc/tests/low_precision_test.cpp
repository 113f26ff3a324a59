// Streams in low precision, by the C functions: an Elman layer with relu, whose equation rounds nothing,
// has the bits of a scalar model; the bytes, copies and errors of all cells.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "dispatch/registry.h"
#include "dispatch/schedule.h"
#include "include/rnnfast.h"
#include "tests/expect.h"

using namespace rnnfast;

namespace {

std::mt19937 generator(5);

std::vector<float> normal(ptrdiff_t n) {
    std::normal_distribution<float> draw(0, 1);
    std::vector<float> a(size_t(n), 0.f);
    for (float& v : a) v = draw(generator);
    return a;
}

float bfloat16(float x) {
    int exponent;
    const float fraction = std::frexp(x, &exponent);
    return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

// The sums of one unit and row in a format: in the order of tile registers, or of vectors.
float added_in_tiles(float sum, const float* a, const float* b, ptrdiff_t n) {
    for (ptrdiff_t first = 0; first < n; first += 32) {
        float parts[2] = {};  // of even and odd k
        for (ptrdiff_t k = first; k < n && k < first + 32; ++k)
            parts[k % 2] = std::fma(bfloat16(a[k]), bfloat16(b[k]), parts[k % 2]);
        sum += parts[0] + parts[1];
    }
    return sum;
}

float added_bfloat16(float sum, const float* a, const float* b, ptrdiff_t n) {
    if (active_amx()) return added_in_tiles(sum, a, b, n);
    for (ptrdiff_t k = 0; k < n; k += 2)
        for (ptrdiff_t i = k + 1; i >= k; --i)
            if (i < n) sum = std::fma(bfloat16(a[i]), bfloat16(b[i]), sum);
    return sum;
}

struct Quantised {
    float unit = 0;
    std::vector<int> integers;

    Quantised(const float* a, ptrdiff_t n) {
        for (ptrdiff_t k = 0; k < n; ++k) unit = std::fmax(unit, std::fabs(a[k]));
        unit /= 127;
        const float inverse = unit > 0 ? 1 / unit : 0;
        for (ptrdiff_t k = 0; k < n; ++k) integers.push_back(int(std::nearbyint(a[k] * inverse)));
    }
};

float added_int8(float sum, const float* a, const float* b, ptrdiff_t n) {
    const Quantised left(a, n), right(b, n);
    int integer = 0;
    for (size_t k = 0; k < size_t(n); ++k) integer += left.integers[k] * right.integers[k];
    volatile float product = right.unit * float(integer);  // rounded before the sum
    product = product * left.unit;
    return sum + product;
}

// Those of one layer.
struct Parameters {
    std::vector<float> w, r, bias_w, bias_r, p;
    rnnfast_layer layer;

    Parameters(ptrdiff_t gates, ptrdiff_t I, ptrdiff_t H, ptrdiff_t P)
        : w(normal(gates * H * I)),
          r(normal(gates * H * (P ? P : H))),
          bias_w(normal(gates * H)),
          bias_r(normal(gates * H)),
          p(normal(P * H)),
          layer{w.data(), r.data(), bias_w.data(), bias_r.data(), P ? p.data() : nullptr} {}
};

using Added = float (*)(float sum, const float* a, const float* b, ptrdiff_t n);

void check_bits(const char* format, Added added, ptrdiff_t I, ptrdiff_t H, ptrdiff_t B) {
    const Parameters a(1, I, H, 0);
    const rnnfast_config config{"rnn_relu", "float32", format, I, H, 0, 1, B};
    rnnfast_stream* const stream = rnnfast_create(&config, &a.layer);
    const std::string text = std::string(format) + " I " + std::to_string(I) + " H " +
                             std::to_string(H) + " B " + std::to_string(B);
    if (!stream) return expect(false, text + ": " + rnnfast_error());
    const std::vector<float> x = normal(B * I), h = normal(B * H);
    std::vector<float> got(size_t(B * H)), want(got), again(got);
    for (ptrdiff_t b = 0; b < B; ++b)
        for (ptrdiff_t u = 0; u < H; ++u) {
            float sum = a.bias_w[size_t(u)] + a.bias_r[size_t(u)];
            sum = added(sum, x.data() + b * I, a.w.data() + u * I, I);
            sum = added(sum, h.data() + b * H, a.r.data() + u * H, H);
            want[size_t(b * H + u)] = sum < 0 ? 0 : sum;
        }
    const size_t bytes = got.size() * sizeof(float);
    rnnfast_set_state(stream, h.data(), nullptr);
    rnnfast_stream* const copy = rnnfast_clone(stream);
    rnnfast_step(stream, x.data(), got.data());
    expect(!std::memcmp(got.data(), want.data(), bytes), text + ": not the model's bits");
    rnnfast_destroy(stream);
    rnnfast_step(copy, x.data(), again.data());
    expect(!std::memcmp(again.data(), want.data(), bytes), text + ": a copy differs");
    rnnfast_get_state(copy, again.data(), nullptr);
    expect(!std::memcmp(again.data(), want.data(), bytes), text + ": the state is not h");
    rnnfast_destroy(copy);
}

// Not far from float32, and in so much of its bytes.
void check_cell(const char* name, CellId cell, const char* format, double bytes) {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(cell)];
    const ptrdiff_t H = 128, P = kernels.projects ? 64 : 0, I = P ? P : H, B = 2, steps = 4;
    const Parameters a(kernels.gates, I, H, P);
    rnnfast_config config{name, "float32", nullptr, I, H, P, 1, B};
    rnnfast_stream* const full = rnnfast_create(&config, &a.layer);
    config.weights = "float32";
    rnnfast_stream* const named = rnnfast_create(&config, &a.layer);
    config.weights = format;
    rnnfast_stream* const low = rnnfast_create(&config, &a.layer);
    const std::string text = std::string(name) + " " + format;
    if (!full || !named || !low) return expect(false, text + ": " + rnnfast_error());
    const double ratio = double(rnnfast_weights_bytes(low)) / double(rnnfast_weights_bytes(full));
    expect(ratio <= bytes, text + ": bytes of float32's: " + std::to_string(ratio));
    std::vector<float> x = normal(steps * B * I);
    std::vector<float> want(x), got(x), same(x);
    rnnfast_run(full, 1, x.data(), want.data());
    rnnfast_run(named, 1, x.data(), same.data());
    rnnfast_run(low, 1, x.data(), got.data());
    expect(want == same, text + ": float32 by its name is not float32");
    double error = 0, size = 0;
    for (size_t i = 0; i < size_t(B * I); ++i)
        error += std::pow(got[i] - want[i], 2), size += std::pow(want[i], 2);
    expect(error > 0 && error < 0.01 * size, text + ": far from float32");

    // In place, over several steps.
    rnnfast_reset(low, nullptr);
    rnnfast_run(low, steps, x.data(), got.data());
    rnnfast_reset(low, nullptr);
    rnnfast_run(low, steps, x.data(), x.data());
    expect(got == x, text + ": x and y the same");
    for (rnnfast_stream* stream : {full, named, low}) rnnfast_destroy(stream);
}

// Schedules estimate products in a format at its speed.
void check_estimates() {
    const CellKernels<float>& kernels = active_kernels_for<float>().cells[int(CellId::lstm)];
    const Sizes sizes{64, 32, 0};
    const Plan plan{10, 4, false, nullptr, nullptr, nullptr};
    const JobWork full = forward_work(kernels, sizes, nullptr, plan);
    for (int i = 0; i < int(FormatId::count); ++i) {
        const Format& format = active_format(FormatId(i));
        const JobWork low = forward_work(kernels, sizes, &format, plan);
        for (const double speed : {full.row_step / low.row_step, full.rest / low.rest})
            expect(std::fabs(speed - double(format.speed)) < 1e-6,
                   "format " + std::to_string(i) + ": estimated at " + std::to_string(speed));
    }
}

void check_errors() {
    const Parameters a(1, 2, 3, 0);
    const auto refused = [&](const char* want, rnnfast_config config) {
        rnnfast_stream* const stream = rnnfast_create(&config, &a.layer);
        const std::string got = stream ? "a stream" : rnnfast_error();
        expect(got == want, "expected \"" + std::string(want) + "\", got \"" + got + "\"");
        rnnfast_destroy(stream);
    };
    refused("weights: expected float64, got int8", {"rnn_tanh", "float64", "int8", 2, 3, 0, 1, 1});
    refused("weights: expected one of float32, bfloat16, int8, got float64",
            {"rnn_tanh", "float32", "float64", 2, 3, 0, 1, 1});
    refused("input_size: expected 131072 or less with int8 weights, got 131073",
            {"rnn_tanh", "float32", "int8", 131073, 3, 0, 1, 1});
    refused("hidden_size: expected 131072 or less with int8 weights, got 131073",
            {"rnn_tanh", "float32", "int8", 2, 131073, 0, 1, 1});
}

}  // namespace

int main() {
    if (!rnnfast_isa()) {
        std::printf("%s\n", rnnfast_error());
        return 77;  // ctest's sign for a test that was skipped
    }
    std::printf("ISA %s%s\n", rnnfast_isa(), active_amx() ? ", AMX" : "");
    for (const ptrdiff_t H : {1, 3, 15, 16, 17, 35, 64, 81})
        for (const ptrdiff_t B : {1, 2, 3, 7, 17, 33})
            for (const ptrdiff_t I : {0, 1, 5, 16, 300}) {
                check_bits("bfloat16", added_bfloat16, I, H, B);
                check_bits("int8", added_int8, I, H, B);
            }
#define CELL(name, type)                               \
    check_cell(#name, CellId::name, "bfloat16", 0.52); \
    check_cell(#name, CellId::name, "int8", 0.30);
#include "core/cells.inc"
#undef CELL
    check_estimates();
    check_errors();
    std::printf("%d passed, %d failed\n", checked - failures, failures);
    return failures != 0;
}
