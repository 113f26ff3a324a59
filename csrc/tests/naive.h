// The equations of cells/*.h once more, as plain loops in double: what the kernels are tested by.
#pragma once

#include <cmath>
#include <string>
#include <vector>

namespace naive {

using Array = std::vector<double>;

// One layer, one direction. Absent arrays are empty. Letters as in core/args.h.
struct Layer {
    std::string cell;
    int T, B, I, H, P;
    bool reverse;
    Array x, w_ih, w_hh, b_ih, b_hh, w_hr, h0, c0;
    std::vector<long> lengths;
    std::vector<unsigned char> reset;

    int gates() const { return cell == "lstm" ? 4 : cell.rfind("gru", 0) == 0 ? 3 : 1; }
    int width() const { return P ? P : H; }
};

struct Result {
    Array y, h, c;
};

inline double sigmoid(double a) { return 1 / (1 + std::exp(-a)); }

// Row `row` of weights (rows, n) times v, plus a bias that may be absent.
inline double dot(const Array& weights, const Array& bias, int row, const double* v, int n) {
    double sum = bias.empty() ? 0 : bias[size_t(row)];
    for (int k = 0; k < n; ++k) sum += weights[size_t(row) * n + k] * v[k];
    return sum;
}

inline void step(const Layer& l, const double* x, double* h, double* c) {
    const int H = l.H, W = l.width();
    const Array old(h, h + W);
    Array next(H);
    const auto wx = [&](int gate, int u) { return dot(l.w_ih, l.b_ih, gate * H + u, x, l.I); };
    const auto rh = [&](int gate, int u, const Array& v) {
        return dot(l.w_hh, l.b_hh, gate * H + u, v.data(), W);
    };
    Array gated = old;  // r h
    if (l.cell == "gru_reset_before")
        for (int u = 0; u < H; ++u) gated[u] = sigmoid(wx(0, u) + rh(0, u, old)) * old[u];
    for (int u = 0; u < H; ++u) {
        if (l.cell == "lstm") {
            const double i = sigmoid(wx(0, u) + rh(0, u, old));
            const double f = sigmoid(wx(1, u) + rh(1, u, old));
            const double g = std::tanh(wx(2, u) + rh(2, u, old));
            const double o = sigmoid(wx(3, u) + rh(3, u, old));
            c[u] = f * c[u] + i * g;
            next[u] = o * std::tanh(c[u]);
        } else if (l.gates() == 3) {
            const double r = sigmoid(wx(0, u) + rh(0, u, old));
            const double z = sigmoid(wx(1, u) + rh(1, u, old));
            const double n = l.cell == "gru" ? std::tanh(wx(2, u) + r * rh(2, u, old))
                                             : std::tanh(wx(2, u) + rh(2, u, gated));
            next[u] = (1 - z) * n + z * old[u];
        } else {
            const double a = wx(0, u) + rh(0, u, old);
            next[u] = l.cell == "rnn_tanh" ? std::tanh(a) : a < 0 ? 0 : a;
        }
    }
    for (int p = 0; p < W; ++p) h[p] = l.P ? dot(l.w_hr, {}, p, next.data(), H) : next[p];
}

inline Result forward(const Layer& l) {
    const int W = l.width();
    Result r{Array(size_t(l.T) * l.B * W), l.h0, l.c0};
    if (r.h.empty()) r.h.assign(size_t(l.B) * W, 0);
    if (r.c.empty()) r.c.assign(size_t(l.B) * l.H, 0);
    for (int b = 0; b < l.B; ++b)
        for (int i = 0; i < l.T; ++i) {
            const int t = l.reverse ? l.T - 1 - i : i;
            if (!l.lengths.empty() && t >= l.lengths[b]) continue;
            double *h = &r.h[size_t(b) * W], *c = &r.c[size_t(b) * l.H];
            if (!l.reset.empty() && l.reset[size_t(t) * l.B + b]) {
                for (int k = 0; k < W; ++k) h[k] = 0;
                for (int k = 0; k < l.H; ++k) c[k] = 0;
            }
            step(l, l.x.data() + (size_t(t) * l.B + b) * l.I, h, c);
            for (int k = 0; k < W; ++k) r.y[(size_t(t) * l.B + b) * W + k] = h[k];
        }
    return r;
}

}  // namespace naive
