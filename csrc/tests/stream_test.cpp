// Streams, by the C functions: the bits of the layers over the whole sequence, resets, copies, states,
// errors, and that a step allocates nothing and leaves the caller's floating-point environment alone.
#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch/registry.h"
#include "dispatch/run.h"
#include "include/rnnfast.h"
#include "tests/expect.h"

using namespace rnnfast;

// Counts allocations, where the C library lets a program have its own functions for them and no
// sanitizer has put its own there.
#if defined(__has_feature)
#define RNNFAST_HAS_FEATURE(name) __has_feature(name)
#else
#define RNNFAST_HAS_FEATURE(name) 0
#endif
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && \
    !RNNFAST_HAS_FEATURE(address_sanitizer) && !RNNFAST_HAS_FEATURE(thread_sanitizer)
#define RNNFAST_COUNTS 1
static long allocations = 0;
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);
void* malloc(size_t n) noexcept { return ++allocations, __libc_malloc(n); }
void* calloc(size_t n, size_t m) noexcept { return ++allocations, __libc_calloc(n, m); }
void* realloc(void* p, size_t n) noexcept { return ++allocations, __libc_realloc(p, n); }
void* aligned_alloc(size_t a, size_t n) noexcept { return ++allocations, __libc_memalign(a, n); }
int posix_memalign(void** p, size_t a, size_t n) noexcept {
    *p = aligned_alloc(a, n);
    return *p ? 0 : 12;
}
}
#else
#define RNNFAST_COUNTS 0
static const long allocations = 0;
#endif

namespace {

std::mt19937 generator(3);

template <class T>
std::vector<T> normal(ptrdiff_t n, double scale) {
    std::normal_distribution<double> draw(0, scale);
    std::vector<T> a(size_t(n), T(0));
    for (T& v : a) v = T(draw(generator));
    return a;
}

template <class T>
constexpr const char* kDtype = sizeof(T) == 4 ? "float32" : "float64";

struct Case {
    const char* name;
    CellId cell;
    ptrdiff_t I, H, P, L, B;
    bool biased;

    ptrdiff_t width() const { return P ? P : H; }
    rnnfast_config config(const char* dtype) const { return {name, dtype, nullptr, I, H, P, L, B}; }
    std::string text() const {
        return std::string(name) + " I " + std::to_string(I) + " H " + std::to_string(H) + " P " +
               std::to_string(P) + " L " + std::to_string(L) + " B " + std::to_string(B);
    }
};

// Weights of every layer, as the C functions and as the passes over sequences take them.
template <class T>
struct Parameters {
    std::vector<std::vector<T>> arrays;
    std::vector<rnnfast_layer> layers;

    Parameters(const Case& c, ptrdiff_t gates) {
        const ptrdiff_t rows = gates * c.H, W = c.width();
        const double scale = 1 / std::sqrt(double(c.H));
        const auto array = [&](ptrdiff_t n, bool wanted = true) -> const void* {
            if (!wanted) return nullptr;
            return arrays.emplace_back(normal<T>(n, scale)).data();
        };
        for (ptrdiff_t l = 0; l < c.L; ++l) {
            rnnfast_layer layer;
            layer.weight_ih = array(rows * (l ? W : c.I));
            layer.weight_hh = array(rows * W);
            layer.bias_ih = array(rows, c.biased);
            layer.bias_hh = array(rows, c.biased);
            layer.weight_hr = array(W * c.H, c.P != 0);
            layers.push_back(layer);
        }
    }

    Weights<const T> of(ptrdiff_t l) const {
        const rnnfast_layer& a = layers[size_t(l)];
        const auto as = [](const void* p) { return static_cast<const T*>(p); };
        return {as(a.weight_ih), as(a.weight_hh), as(a.bias_ih), as(a.bias_hh), as(a.weight_hr)};
    }
};

template <class T>
struct Result {
    std::vector<T> y, h, c;
    bool operator==(const Result& other) const {
        const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
            return a.size() == b.size() &&
                   (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
        };
        return same(y, other.y) && same(h, other.h) && same(c, other.c);
    }
};

constexpr ptrdiff_t kSteps = 6, kCut = 3;  // rows are reset before step kCut

// The layers over the sequence, from the states in `from`.
template <class T>
Result<T> sequence(const Case& c, const Parameters<T>& parameters, std::vector<T> x,
                   const Result<T>& from, const std::vector<uint8_t>& rows) {
    const ptrdiff_t W = c.width();
    Result<T> out = from;
    std::vector<uint8_t> reset(size_t(kSteps * c.B), 0);
    for (ptrdiff_t b = 0; b < c.B; ++b) reset[size_t(kCut * c.B + b)] = rows[size_t(b)];
    const RowPlan plan(kSteps, c.B, false, nullptr);
    for (ptrdiff_t l = 0; l < c.L; ++l) {
        const Sizes sizes{l ? W : c.I, c.H, c.P};
        const PackedWeights<T> packed(c.cell, sizes, parameters.of(l));
        out.y.assign(size_t(kSteps * c.B * W), T(0));
        ForwardArgs<T> args{};
        args.x = x.data(), args.x_row = sizes.input, args.x_step = c.B * sizes.input;
        args.y = out.y.data(), args.y_row = W, args.y_step = c.B * W;
        args.h0 = from.h.data() + l * c.B * W, args.hn = out.h.data() + l * c.B * W;
        if (packed.kernels().has_c)
            args.c0 = from.c.data() + l * c.B * c.H, args.cn = out.c.data() + l * c.B * c.H;
        args.reset = reset.data();
        run_forward(packed, args, plan);
        x = out.y;
    }
    return out;
}

template <class T>
void check(const Case& c) {
    const CellKernels<T>& kernels = active_kernels_for<T>().cells[int(c.cell)];
    const Parameters<T> parameters(c, kernels.gates);
    const ptrdiff_t W = c.width(), x_step = c.B * c.I, y_step = c.B * W;
    const std::vector<T> x = normal<T>(kSteps * x_step, 1);
    const Result<T> start{std::vector<T>(size_t(kSteps * y_step)), normal<T>(c.L * y_step, 1),
                          normal<T>(kernels.has_c ? c.L * c.B * c.H : 0, 1)};
    std::vector<uint8_t> rows(size_t(c.B), 0);
    for (size_t b = 0; b < rows.size(); b += 2) rows[b] = 1;
    const Result<T> want = sequence(c, parameters, x, start, rows);
    const std::string text = c.text() + " " + kDtype<T>;

    const rnnfast_config config = c.config(kDtype<T>);
    rnnfast_stream* const stream = rnnfast_create(&config, parameters.layers.data());
    if (!stream) return expect(false, text + ": " + rnnfast_error());
    Result<T> got = start;
    rnnfast_set_state(stream, got.h.data(), got.c.data());
    got.h.assign(got.h.size(), T(7)), got.c.assign(got.c.size(), T(7));
    rnnfast_get_state(stream, got.h.data(), got.c.data());
    expect(got == start, text + ": the state set is the one got");
    const long before = allocations;
    rnnfast_stream* copy = nullptr;
    for (ptrdiff_t t = 0; t < kSteps; ++t) {
        if (t == kCut) {
            rnnfast_reset(stream, rows.data());
            const bool none_made = allocations == before;
            expect(none_made, text + ": steps allocate");
            copy = rnnfast_clone(stream);
        }
        rnnfast_step(stream, x.data() + t * x_step, got.y.data() + t * y_step);
    }
    rnnfast_get_state(stream, got.h.data(), got.c.data());
    expect(got == want, text + ": steps differ from the sequence");

    // A copy goes on by itself, here over several steps at once; then in place.
    Result<T> other = want;
    std::fill(other.y.begin() + kCut * y_step, other.y.end(), T(7));
    const long now = allocations;
    rnnfast_run(copy, kSteps - kCut, x.data() + kCut * x_step, other.y.data() + kCut * y_step);
    rnnfast_get_state(copy, other.h.data(), other.c.data());
    const bool none_made = allocations == now;
    expect(none_made, text + ": a run allocates");
    expect(other == want, text + ": a copy differs");
    if (c.I == W) {
        other.y = x;
        rnnfast_set_state(copy, start.h.data(), start.c.data());
        rnnfast_run(copy, kCut, other.y.data(), other.y.data());
        const size_t bytes = size_t(kCut * y_step) * sizeof(T);
        expect(!std::memcmp(other.y.data(), want.y.data(), bytes), text + ": x and y the same");
    }
    rnnfast_destroy(stream);
    rnnfast_reset(copy, nullptr);  // the weights outlive the stream that they were shared with
    rnnfast_step(copy, x.data(), other.y.data());
    Result<T> zeros{start.y, std::vector<T>(start.h.size()), std::vector<T>(start.c.size())};
    const std::vector<uint8_t> none(size_t(c.B), 0);
    const Result<T> anew = sequence(c, parameters, x, zeros, none);
    expect(!std::memcmp(other.y.data(), anew.y.data(), size_t(y_step) * sizeof(T)),
           text + ": a reset of all rows");
    rnnfast_destroy(copy);
}

template <class T>
void check_cell(const char* name, CellId cell) {
    const ptrdiff_t V = active_kernels().vector_bytes / ptrdiff_t(sizeof(T));
    const bool projects = active_kernels_for<T>().cells[int(cell)].projects;
    const ptrdiff_t hidden[] = {1, V - 1, V, V + 1, 2 * V + 3, 4 * V, 5 * V + 1};
    const ptrdiff_t batches[] = {1, 2, 3, 7, 13}, inputs[] = {0, 1, 3, V + 1};
    int turn = 0;
    for (const ptrdiff_t H : hidden)
        for (const ptrdiff_t B : batches)
            for (int variant = 0; variant < 3; ++variant, ++turn) {
                if (H < 1) continue;
                const ptrdiff_t P = projects && variant == 2 ? H / 2 : 0;
                const ptrdiff_t I = variant == 1 ? (P ? P : H) : inputs[turn % 4];
                check<T>({name, cell, I, H, P, 1 + turn / 3 % 3, B, turn % 4 != 0});
            }
}

// A step in another floating-point environment has the same bits, and leaves it as it was.
void check_environment() {
#if defined(__x86_64__) || defined(_M_X64) || defined(__aarch64__)
    const Case c{"lstm", CellId::lstm, 3, 20, 0, 1, 2, true};
    const Parameters<float> parameters(c, 4);
    const rnnfast_config config = c.config("float32");
    rnnfast_stream* const a = rnnfast_create(&config, parameters.layers.data());
    rnnfast_stream* const b = rnnfast_clone(a);
    const std::vector<float> x = normal<float>(6, 1);
    std::vector<float> y(40), other(40);
    rnnfast_step(a, x.data(), y.data());
    std::fesetround(FE_UPWARD);
    std::feclearexcept(FE_ALL_EXCEPT);
    rnnfast_step(b, x.data(), other.data());
    const bool silent = !std::fetestexcept(FE_ALL_EXCEPT), kept = std::fegetround() == FE_UPWARD;
    std::fesetround(FE_TONEAREST);
    expect(silent && kept, "the caller's floating-point environment");
    expect(y == other, "a step depends on the caller's rounding");
    rnnfast_destroy(a), rnnfast_destroy(b);
#endif
}

void check_errors() {
    const Case c{"lstm", CellId::lstm, 3, 5, 2, 2, 1, true};
    const Parameters<float> parameters(c, 4);
    const auto refused = [&](const char* want, auto change) {
        rnnfast_config config = c.config("float32");
        std::vector<rnnfast_layer> layers = parameters.layers;
        change(config, layers);
        rnnfast_stream* const stream = rnnfast_create(&config, layers.data());
        const std::string got = stream ? "a stream" : rnnfast_error();
        expect(got == want, "expected \"" + std::string(want) + "\", got \"" + got + "\"");
        rnnfast_destroy(stream);
    };
    using Config = rnnfast_config;
    using Layers = std::vector<rnnfast_layer>;
    refused("a stream", [](Config&, Layers&) {});
    refused("cell: expected one of rnn_tanh, rnn_relu, lstm, gru, gru_reset_before, got lstn",
            [](Config& a, Layers&) { a.cell = "lstn"; });
    refused("dtype: expected one of float32, float64, got NULL",
            [](Config& a, Layers&) { a.dtype = nullptr; });
    refused("weights: expected one of float32, bfloat16, int8, got int4",
            [](Config& a, Layers&) { a.weights = "int4"; });
    refused("input_size: expected 0 or more, got -1",
            [](Config& a, Layers&) { a.input_size = -1; });
    refused("hidden_size: expected 1 or more, got 0",
            [](Config& a, Layers&) { a.hidden_size = 0; });
    refused("num_layers: expected 1 or more, got 0", [](Config& a, Layers&) { a.num_layers = 0; });
    refused("batch_size: expected 1 or more, got -9",
            [](Config& a, Layers&) { a.batch_size = -9; });
    refused("proj_size: expected less than hidden_size (5), got 5",
            [](Config& a, Layers&) { a.proj_size = 5; });
    refused("proj_size: expected 0 for gru, got 2", [](Config& a, Layers&) { a.cell = "gru"; });
    refused(
        "sizes: expected arrays that fit in memory, got input_size 3, hidden_size "
        "4611686018427387904, num_layers 2, batch_size 1",
        [](Config& a, Layers&) { a.hidden_size = int64_t(1) << 62; });
    if (RNNFAST_COUNTS)  // a sanitizer ends the program instead
        refused("not enough memory", [](Config& a, Layers&) { a.batch_size = int64_t(1) << 44; });
    refused("weight_hh of layer 1: expected an array, got NULL",
            [](Config&, Layers& l) { l[1].weight_hh = nullptr; });
    refused("bias_ih of layer 1: expected an array, got NULL",
            [](Config&, Layers& l) { l[1].bias_ih = nullptr; });
    refused("bias_hh of layer 0: expected NULL, got an array",
            [](Config&, Layers& l) { l[0].bias_ih = nullptr; });
    refused("weight_hr of layer 0: expected NULL, got an array",
            [](Config& a, Layers&) { a.proj_size = 0; });
    expect(!rnnfast_create(nullptr, nullptr) &&
               !std::strcmp(rnnfast_error(), "config: expected a configuration, got NULL"),
           "config: NULL");
    const Config config = c.config("float32");
    expect(!rnnfast_create(&config, nullptr) &&
               !std::strcmp(rnnfast_error(), "layers: expected an array, got NULL"),
           "layers: NULL");
}

}  // namespace

int main() {
    if (!rnnfast_isa()) {
        std::printf("%s\n", rnnfast_error());
        return 77;  // ctest's sign for a test that was skipped
    }
    std::printf("ISA %s; allocations are %scounted\n", rnnfast_isa(), RNNFAST_COUNTS ? "" : "not ");
#define CELL(name, type)                    \
    check_cell<float>(#name, CellId::name); \
    check_cell<double>(#name, CellId::name);
#include "core/cells.inc"
#undef CELL
    check_environment();
    check_errors();
    std::printf("%d passed, %d failed\n", checked - failures, failures);
    return failures != 0;
}
