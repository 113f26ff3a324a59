// Every cell and dtype on the ISA in use, without Python: for the sanitizers, and for running the
// kernels of another architecture under emulation. Outputs are compared with naive.h; gradients
// with the change of naive.h's loss along a random direction, and float32's with float64's.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <stdexcept>

#include "dispatch/registry.h"
#include "dispatch/run.h"
#include "dispatch/schedule.h"
#include "dispatch/threads.h"
#include "tests/naive.h"

using namespace rnnfast;
using naive::Array;

namespace {

std::mt19937_64 generator(7);

Array normal(size_t n, double scale = 1) {
    std::normal_distribution<double> draw(0, scale);
    Array a(n);
    for (double& v : a) v = draw(generator);
    return a;
}

int uniform(int low, int high) {  // both ends included
    return std::uniform_int_distribution<int>(low, high)(generator);
}

// Gradients, or outputs, in one list: x h0 c0 w_ih w_hh b_ih b_hh w_hr.
using Arrays = std::vector<Array>;

std::vector<Array*> inputs(naive::Layer& l) {
    return {&l.x, &l.h0, &l.c0, &l.w_ih, &l.w_hh, &l.b_ih, &l.b_hh, &l.w_hr};
}

CellId cell_id(const std::string& cell) {
#define CELL(name, type) \
    if (cell == #name) return CellId::name;
#include "core/cells.inc"
#undef CELL
    throw std::logic_error(cell);
}

// Relative to the norm of what is wanted, or to 1, the scale of the inputs, where that is small.
double distance(const Array& got, const Array& want) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < want.size(); ++i) {
        error += (got[i] - want[i]) * (got[i] - want[i]);
        norm += want[i] * want[i];
    }
    return std::sqrt(error) / (1 + std::sqrt(norm));
}

// Exactly as long as it must be, so that a sanitizer sees every step outside. Absent stays null.
template <class T>
struct Exact {
    std::vector<T> data;
    explicit Exact(const Array& a) : data(a.begin(), a.end()) { data.shrink_to_fit(); }
    explicit Exact(size_t n) : data(n) {}
    T* get() { return data.empty() ? nullptr : data.data(); }
    operator Array() const { return Array(data.begin(), data.end()); }
};

struct Loss {
    Array dy, dh, dc;

    double of(const naive::Result& r) const {
        double sum = 0;
        for (size_t i = 0; i < dy.size(); ++i) sum += dy[i] * r.y[i];
        for (size_t i = 0; i < dh.size(); ++i) sum += dh[i] * r.h[i];
        for (size_t i = 0; i < dc.size(); ++i) sum += dc[i] * r.c[i];
        return sum;
    }
};

// The layer's x, y and their gradients as a ragged plan has them: the rows that have a step.
Array without_padding(const naive::Layer& l, const Array& padded) {
    if (padded.empty()) return {};
    const ptrdiff_t width = ptrdiff_t(padded.size()) / (l.T * l.B);
    Array rows;
    for (ptrdiff_t t = 0; t < l.T; ++t)
        for (ptrdiff_t b = 0; b < l.B && t < l.lengths[size_t(b)]; ++b) {
            const auto row = padded.begin() + (t * l.B + b) * width;
            rows.insert(rows.end(), row, row + width);
        }
    return rows;
}

// `ragged`: x and the loss's dy have no padding, and so have y and dx; the lengths fall. In a format
// that is not for training there are no gradients.
template <class T>
Arrays run(naive::Layer& l, const Loss& loss, naive::Result& out, Held held = Held::packed,
           bool ragged = false, const Format* format = nullptr) {
    Exact<T> x(l.x), h0(l.h0), c0(l.c0), y(out.y.size()), h(out.h.size()), c(out.c.size());
    Exact<T> w_ih(l.w_ih), w_hh(l.w_hh), b_ih(l.b_ih), b_hh(l.b_hh), w_hr(l.w_hr);
    const Sizes sizes{l.I, l.H, l.P};
    const PackedWeights<T> packed(cell_id(l.cell), sizes,
                                  {w_ih.get(), w_hh.get(), b_ih.get(), b_hh.get(), w_hr.get()},
                                  held, format);
    const bool has_c = packed.kernels().has_c;
    const std::vector<int64_t> lengths(l.lengths.begin(), l.lengths.end());
    std::vector<int64_t> batch_sizes;
    for (int t = 0; ragged && t < l.T; ++t)
        batch_sizes.push_back(std::count_if(lengths.begin(), lengths.end(),
                                            [t](int64_t length) { return length > t; }));
    const RowPlan plan(l.T, l.B, l.reverse, lengths.empty() ? nullptr : lengths.data(),
                       ragged ? batch_sizes.data() : nullptr);
    Exact<T> saved(size_t(plan.rows() * packed.kernels().saved_row(sizes)));
    const ptrdiff_t W = l.width();
    ForwardArgs<T> args{};
    args.x = x.get(), args.x_step = l.B * l.I, args.x_row = l.I;
    args.h0 = h0.get(), args.c0 = c0.get();
    args.reset = l.reset.empty() ? nullptr : l.reset.data();
    args.y = y.get(), args.y_step = l.B * W, args.y_row = W;
    args.hn = h.get(), args.cn = has_c ? c.get() : nullptr;
    run_forward(packed, args, plan);
    const Array inference = y;
    out.y = y, out.h = h;
    if (has_c) out.c = c;
    if (!packed.trains()) return {};
    const bool reads_y = packed.kernels().saves_y && l.T % 2;
    args.saved = reads_y ? nullptr : saved.get();
    run_forward(packed, args, plan);
    if (Array(h) != out.h || Array(y) != inference)
        throw std::runtime_error("training and inference differ");

    Exact<T> dy(loss.dy), dh(loss.dh), dc(loss.dc), dx(l.x.size()), dh0(out.h.size());
    Exact<T> dc0(out.c.size()), dw_ih(l.w_ih.size()), dw_hh(l.w_hh.size()), db_ih(l.b_ih.size());
    Exact<T> db_hh(l.b_hh.size()), dw_hr(l.w_hr.size());
    BackwardArgs<T> grads{};
    grads.dy = dy.get(), grads.dy_step = l.B * W, grads.dy_row = W;
    grads.dhn = dh.get(), grads.dcn = has_c ? dc.get() : nullptr;
    grads.dx = dx.get(), grads.dx_step = l.B * l.I, grads.dx_row = l.I;
    grads.dh0 = dh0.get(), grads.dc0 = has_c ? dc0.get() : nullptr;
    grads.weights = {dw_ih.get(), dw_hh.get(), db_ih.get(), db_hh.get(), dw_hr.get()};
    run_backward(packed, args, grads, plan);
    if (l.h0.empty()) dh0 = Exact<T>(size_t(0));
    if (l.c0.empty()) dc0 = Exact<T>(size_t(0));
    return {dx, dh0, dc0, dw_ih, dw_hh, db_ih, db_hh, dw_hr};
}

// `wide`: units enough to share out.
naive::Layer random_layer(const std::string& cell, bool wide = false) {
    static const int sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 70};
    naive::Layer l;
    l.cell = cell;
    l.T = uniform(0, 9), l.B = uniform(1, 14), l.I = uniform(0, 40);
    l.H = sizes[uniform(0, 14)];
    if (wide) l.H = 64 * uniform(2, 4) - uniform(0, 40);
    l.P = cell == "lstm" && l.H > 1 && uniform(0, 1) ? uniform(1, l.H - 1) : 0;
    l.reverse = uniform(0, 1);
    const size_t T = size_t(l.T), B = size_t(l.B), I = size_t(l.I), H = size_t(l.H);
    const size_t W = size_t(l.width()), G = size_t(l.gates());
    const double scale = 1 / std::sqrt(double(H + I));  // saturated units would lose digits
    l.x = normal(T * B * I);
    l.w_ih = normal(G * H * I, scale), l.w_hh = normal(G * H * W, scale);
    if (uniform(0, 3)) l.b_ih = normal(G * H, scale), l.b_hh = normal(G * H, scale);
    if (l.P) l.w_hr = normal(W * H, scale);
    if (uniform(0, 1)) l.h0 = normal(B * W);
    if (cell == "lstm" && uniform(0, 1)) l.c0 = normal(B * H);
    if (uniform(0, 1))
        for (size_t b = 0; b < B; ++b) l.lengths.push_back(uniform(0, l.T));
    if (uniform(0, 1))
        for (size_t i = 0; i < T * B; ++i) l.reset.push_back(uniform(0, 4) == 0);
    return l;
}

// The change of the loss along `direction`, by a central difference of fourth order.
double slope(naive::Layer& l, const Loss& loss, const Arrays& direction) {
    const auto moved = [&](double by) {
        naive::Layer other = l;
        const std::vector<Array*> to = inputs(other);
        for (size_t a = 0; a < to.size(); ++a)
            for (size_t i = 0; i < to[a]->size(); ++i) (*to[a])[i] += by * direction[a][i];
        return loss.of(naive::forward(other));
    };
    const double e = l.cell == "rnn_relu" ? 1e-7 : 1e-4;  // short of relu's next kink
    return (8 * (moved(e) - moved(-e)) - (moved(2 * e) - moved(-2 * e))) / (12 * e);
}

int failures = 0;

void expect(bool holds, const naive::Layer& l, const char* what, double error) {
    if (holds) return;
    ++failures;
    std::printf("FAILED %s %s: T %d B %d I %d H %d P %d reverse %d: %g\n", l.cell.c_str(), what,
                l.T, l.B, l.I, l.H, l.P, l.reverse, error);
}

// Weights that are read where they are give the bits of their pack.
template <class T>
void check_borrowed(naive::Layer& l, const Loss& loss, const naive::Result& out,
                    const Arrays& grads) {
    naive::Result got = out;
    const bool same = run<T>(l, loss, got, Held::borrowed) == grads && got.y == out.y &&
                      got.h == out.h && got.c == out.c;
    expect(same, l, "borrowed", double(sizeof(T)));
}

// Rows without padding give the bits of those with it. The sequences are sorted, and have a step.
template <class T>
void check_ragged(naive::Layer l, Loss loss, const Format* format = nullptr) {
    if (l.lengths.empty()) l.lengths.assign(size_t(l.B), l.T);
    for (long& length : l.lengths) length = std::max(length, 1L);
    std::sort(l.lengths.begin(), l.lengths.end(), std::greater<>());
    l.lengths[0] = l.T;
    naive::Result padded = naive::forward(l), got = padded;
    Arrays want = run<T>(l, loss, padded, Held::packed, false, format);
    if (!want.empty()) want[0] = without_padding(l, want[0]);
    padded.y = without_padding(l, padded.y);
    l.x = without_padding(l, l.x), loss.dy = without_padding(l, loss.dy), got.y = padded.y;
    const bool same = run<T>(l, loss, got, Held::packed, true, format) == want &&
                      got.y == padded.y && got.h == padded.h && got.c == padded.c;
    expect(same, l, "ragged", double(sizeof(T)));
}

// Low precision is near: not the model of its rounding, which Python's tests have.
void check_format(naive::Layer& l, const Loss& loss, const naive::Result& want, const Arrays& grads,
                  FormatId id) {
    const Format& format = active_format(id);
    naive::Result got = want;
    const Arrays low = run<float>(l, loss, got, Held::packed, false, &format);
    const auto near = [&](const char* what, const Array& a, const Array& b) {
        const double error = distance(a, b);
        expect(error < 0.03, l, what, error);
    };
    near("y in a format", got.y, want.y);
    near("h in a format", got.h, want.h);
    near("c in a format", got.c, want.c);
    // Relu's gradient changes by more where a sum changes its sign.
    for (size_t a = 0; a < low.size() && l.cell != "rnn_relu"; ++a)
        near("gradient in a format", low[a], grads[a]);
    if (l.T > 0) check_ragged<float>(l, loss, &format);
}

// `forms`: also weights that are borrowed, ragged rows, and each format.
void check(naive::Layer l, bool forms = true) {
    const naive::Result want = naive::forward(l);
    const Loss loss{normal(want.y.size()), normal(want.h.size()),
                    l.cell == "lstm" ? normal(want.c.size()) : Array()};
    naive::Result got = want, got32 = want;
    const Arrays grads = run<double>(l, loss, got), grads32 = run<float>(l, loss, got32);
    if (forms) {
        check_borrowed<double>(l, loss, got, grads), check_borrowed<float>(l, loss, got32, grads32);
        if (l.T > 0) check_ragged<double>(l, loss), check_ragged<float>(l, loss);
#define FORMAT(name, type) check_format(l, loss, want, grads, FormatId::name);
#include "core/formats.inc"
#undef FORMAT
    }
    const auto compare = [&](const char* what, const Array& a, const Array& b, double limit) {
        const double error = distance(a, b);
        expect(error < limit, l, what, error);
    };
    compare("y", got.y, want.y, 1e-13), compare("y float32", got32.y, want.y, 1e-6);
    compare("h", got.h, want.h, 1e-13), compare("h float32", got32.h, want.h, 1e-6);
    compare("c", got.c, want.c, 1e-13), compare("c float32", got32.c, want.c, 1e-6);

    Arrays direction;
    double along = 0, size = 0;
    for (size_t a = 0; a < grads.size(); ++a) {
        direction.push_back(normal(grads[a].size()));
        for (size_t i = 0; i < grads[a].size(); ++i) {
            along += grads[a][i] * direction[a][i];
            size += grads[a][i] * grads[a][i];
        }
        // Relu has a kink, where float32 may fall on the other side of zero.
        if (l.cell != "rnn_relu") compare("gradient float32", grads32[a], grads[a], 5e-6);
    }
    const double error = std::abs(along - slope(l, loss, direction)) / (std::sqrt(size) + 1);
    expect(error < (l.cell == "rnn_relu" ? 1e-4 : 1e-7), l, "gradient", error);
}

}  // namespace

int main(int argc, char** argv) {
    const int cases = argc > 1 ? std::atoi(argv[1]) : 40;
    int checked = 0;
    try {
        std::printf("ISA %s\n", active_isa().c_str());
    } catch (const std::runtime_error& error) {
        std::printf("%s\n", error.what());
        return 77;  // ctest's sign for a test that was skipped
    }
#define CELL(name, type)                         \
    for (int i = 0; i < cases; ++i, ++checked) { \
        set_num_threads(1 + i % 3);              \
        check(random_layer(#name));              \
    }
#include "core/cells.inc"
#undef CELL
    // Every way to share out one job, on sizes too small for the estimates to choose it.
    for (Forced forced : {Forced::shards, Forced::units}) {
        force_schedule(forced);
#define CELL(name, type)                         \
    for (int i = 0; i < cases; ++i, ++checked) { \
        set_num_threads(2 + i % 3);              \
        check(random_layer(#name, i % 4 == 0));  \
    }
#include "core/cells.inc"
#undef CELL
    }
    force_schedule(Forced::none);
    // Large enough for several threads and chunks.
    for (const char* cell : {"rnn_tanh", "lstm", "gru", "gru_reset_before"}) {
        naive::Layer l = random_layer(cell);
        l.T = 40, l.B = 19, l.I = 33, l.H = 50, l.P = 0;
        l.lengths.clear(), l.reset.clear(), l.h0.clear(), l.c0.clear(), l.w_hr.clear();
        const size_t rows = size_t(l.gates()) * 50;
        l.x = normal(40 * 19 * 33), l.w_ih = normal(rows * 33, 0.1),
        l.w_hh = normal(rows * 50, 0.1);
        l.b_ih = normal(rows), l.b_hh = normal(rows);
        set_num_threads(3);
        check(l), ++checked;
    }
    // So large that W's transpose is not kept, and that products over gates are cut.
    naive::Layer large = random_layer("gru");
    large.T = 2, large.B = 270, large.I = 290, large.H = 310, large.P = 0, large.reverse = false;
    large.lengths.clear(), large.reset.clear(), large.h0.clear();
    large.x = normal(2 * 270 * 290), large.w_ih = normal(930 * 290, 0.05),
    large.w_hh = normal(930 * 310, 0.05), large.b_ih = normal(930), large.b_hh = normal(930);
    check(large, false), ++checked;
    std::printf("%d passed, %d failed\n", checked - failures, failures);
    return failures != 0;
}
