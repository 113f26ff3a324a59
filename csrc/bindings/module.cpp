// The Python module rnnfast._native: checks arrays, releases the GIL, calls the dispatcher.
// Its functions take what rnnfast/_backend.py describes; rnnfast/_native.pyi has their types.
#include <pybind11/stl.h>

#include <memory>

#include "bindings/arrays.h"
#include "dispatch/float_env.h"
#include "dispatch/registry.h"
#include "dispatch/run.h"
#include "dispatch/threads.h"

namespace rnnfast {
namespace {

constexpr const char* kCellNames[] = {
#define CELL(name, type) #name,
#include "core/cells.inc"
#undef CELL
};

CellId find_cell(const std::string& name) {
    for (int i = 0; i < int(CellId::count); ++i)
        if (name == kCellNames[i]) return CellId(i);
    throw py::value_error("cell: expected a name in cells.inc, got " + name);
}

struct ForwardObjects {
    py::object x, h0, c0, lengths, reset;
    bool reverse;
    py::object y, hn, cn;
};

// Parameters, or their gradients.
struct WeightObjects {
    py::object weight_ih, weight_hh, bias_ih, bias_hh, weight_hr;
};

struct BackwardObjects {
    py::object dy, dhn, dcn, dx, dh0, dc0;
    WeightObjects weights;
};

// What a forward pass keeps for its backward pass; opaque to Python.
struct Saved {
    virtual ~Saved() = default;
};

template <class T>
struct SavedOf final : Saved {
    explicit SavedOf(ptrdiff_t n) : count(n), data(allocate<T>(n)) {}
    const ptrdiff_t count;
    const Buffer<T> data;
};

// One layer's packed weights, of whichever dtype; opaque to Python.
struct Packed {
    virtual ~Packed() = default;
    virtual std::unique_ptr<Saved> forward(const ForwardObjects&, bool training) const = 0;
    virtual void backward(const Saved&, const ForwardObjects&, const BackwardObjects&) const = 0;
};

template <class T>
Weights<T> weight_views(const Sizes& sizes, ptrdiff_t gates, const WeightObjects& o,
                        bool writable) {
    const ptrdiff_t rows = gates * sizes.hidden;
    const auto get = [writable](const py::object& object, const char* name,
                                std::initializer_list<ptrdiff_t> shape, bool needed) {
        if (needed) not_none(object, name);
        // Packing only reads; const is cast away because gradients share the struct.
        if (writable) return view<T>(object, {name, shape, true}).data;
        return const_cast<T*>(view<const T>(object, {name, shape}).data);
    };
    const ptrdiff_t P = sizes.projection;
    return {get(o.weight_ih, "weight_ih", {rows, sizes.input}, true),
            get(o.weight_hh, "weight_hh", {rows, sizes.width()}, true),
            get(o.bias_ih, "bias_ih", {rows}, false), get(o.bias_hh, "bias_hh", {rows}, false),
            get(o.weight_hr, "weight_hr", {P, sizes.hidden}, P != 0)};
}

template <class T>
class PackedOf final : public Packed {
public:
    PackedOf(CellId cell, const Sizes& sizes, const WeightObjects& weights)
        : cell_(active_kernels_for<T>().cells[int(cell)]), sizes_(sizes) {
        const Weights<T> views = weight_views<T>(sizes, cell_.gates, weights, false);
        py::gil_scoped_release release;
        packed_ = std::make_unique<PackedWeights<T>>(cell, sizes, views);
    }

    std::unique_ptr<Saved> forward(const ForwardObjects& o, bool training) const override {
        const Call call = views(o, true);
        ForwardArgs<T> args = call.args;
        std::unique_ptr<SavedOf<T>> saved;
        py::gil_scoped_release release;
        const RowPlan plan(call.steps, call.batch, o.reverse, call.lengths);
        if (training) {
            saved = std::make_unique<SavedOf<T>>(plan.rows() * cell_.saved_row(sizes_));
            args.saved = saved->data.get();
        }
        run_forward(*packed_, args, plan);
        return saved;
    }

    void backward(const Saved& saved, const ForwardObjects& o,
                  const BackwardObjects& g) const override {
        const Call call = views(o, false);
        ForwardArgs<T> args = call.args;
        auto* const kept = dynamic_cast<const SavedOf<T>*>(&saved);
        const RowPlan plan(call.steps, call.batch, o.reverse, call.lengths);
        if (!kept || kept->count != plan.rows() * cell_.saved_row(sizes_))
            throw py::value_error(
                "saved: expected that of a forward pass of this layer with these "
                "arguments, got another");
        args.saved = kept->data.get();
        const ptrdiff_t T_ = call.steps, B = call.batch, W = sizes_.width(), H = sizes_.hidden;
        BackwardArgs<T> grads{};
        const auto dy = view<const T>(g.dy, {"dy", {T_, B, W}}, true);
        grads.dy = dy.data, grads.dy_step = dy.strides[0], grads.dy_row = dy.strides[1];
        grads.dhn = view<const T>(g.dhn, {"dhn", {B, W}}).data;
        const auto dx = view<T>(g.dx, {"dx", {T_, B, sizes_.input}, true}, true);
        grads.dx = dx.data, grads.dx_step = dx.strides[0], grads.dx_row = dx.strides[1];
        grads.dh0 = required<T>(g.dh0, {"dh0", {B, W}, true}).data;
        if (cell_.has_c) {
            grads.dcn = view<const T>(g.dcn, {"dcn", {B, H}}).data;
            grads.dc0 = required<T>(g.dc0, {"dc0", {B, H}, true}).data;
        }
        grads.weights = weight_views<T>(sizes_, cell_.gates, g.weights, true);
        py::gil_scoped_release release;
        run_backward(*packed_, args, grads, plan);
    }

private:
    struct Call {
        ForwardArgs<T> args{};
        ptrdiff_t steps = 0, batch = 0;
        const int64_t* lengths = nullptr;
    };

    // `running`: y and the final states are to be written.
    Call views(const ForwardObjects& o, bool running) const {
        if (!py::isinstance<py::array>(o.x) || py::array(o.x).ndim() != 3)
            throw py::value_error("x: expected an array (T, B, I), got another");
        const py::array x(o.x);
        Call call;
        const ptrdiff_t T_ = call.steps = x.shape(0), B = call.batch = x.shape(1);
        const ptrdiff_t W = sizes_.width(), H = sizes_.hidden;
        ForwardArgs<T>& args = call.args;
        const auto x_view = required<const T>(o.x, {"x", {T_, B, sizes_.input}}, true);
        args.x = x_view.data, args.x_step = x_view.strides[0], args.x_row = x_view.strides[1];
        args.h0 = view<const T>(o.h0, {"h0", {B, W}}).data;
        args.reset =
            reinterpret_cast<const uint8_t*>(view<const bool>(o.reset, {"reset", {T_, B}}).data);
        call.lengths = view<const int64_t>(o.lengths, {"lengths", {B}}).data;
        for (ptrdiff_t row = 0; call.lengths && row < B; ++row)
            if (call.lengths[row] < 0 || call.lengths[row] > T_)
                throw py::value_error("lengths: expected values in 0..T, got another");
        View<T> y;
        if (running) {
            y = required<T>(o.y, {"y", {T_, B, W}, true}, true);
            args.hn = required<T>(o.hn, {"hn", {B, W}, true}).data;
        } else {
            const auto read = required<const T>(o.y, {"y", {T_, B, W}}, true);
            y.data = const_cast<T*>(read.data);  // backward only reads it
            y.strides[0] = read.strides[0], y.strides[1] = read.strides[1];
        }
        args.y = y.data, args.y_step = y.strides[0], args.y_row = y.strides[1];
        if (cell_.has_c) {
            args.c0 = view<const T>(o.c0, {"c0", {B, H}}).data;
            if (running) args.cn = required<T>(o.cn, {"cn", {B, H}, true}).data;
        }
        return call;
    }

    const CellKernels<T>& cell_;
    const Sizes sizes_;
    std::unique_ptr<PackedWeights<T>> packed_;
};

template <class T>
std::unique_ptr<Packed> pack_as(CellId cell, const WeightObjects& weights) {
    const py::array weight_ih(weights.weight_ih), weight_hh(weights.weight_hh);
    const CellKernels<T>& kernels = active_kernels_for<T>().cells[int(cell)];
    const bool projects = !weights.weight_hr.is_none();
    const ptrdiff_t rows = weight_ih.ndim() == 2 ? weight_ih.shape(0) : 0;
    if (rows == 0 || rows % kernels.gates || weight_hh.ndim() != 2)
        throw py::value_error("weight_ih: expected shape (G*H, I), got another");
    if (projects && !kernels.projects)
        throw py::value_error("weight_hr: expected None, got an array");
    if (weights.bias_ih.is_none() != weights.bias_hh.is_none())
        throw py::value_error("bias_hh: expected both biases or none, got one");
    const Sizes sizes{weight_ih.shape(1), rows / kernels.gates, projects ? weight_hh.shape(1) : 0};
    return std::make_unique<PackedOf<T>>(cell, sizes, weights);
}

std::unique_ptr<Packed> pack(const std::string& name, py::array weight_ih, py::array weight_hh,
                             py::object bias_ih, py::object bias_hh, py::object weight_hr) {
    const CellId cell = find_cell(name);
    const WeightObjects weights{weight_ih, weight_hh, bias_ih, bias_hh, weight_hr};
#define DTYPE(name, type) \
    if (py::isinstance<py::array_t<type>>(weight_ih)) return pack_as<type>(cell, weights);
#include "core/dtypes.inc"
#undef DTYPE
    throw py::type_error("weight_ih: expected float32 or float64, got " +
                         std::string(py::str(weight_ih.dtype())));
}

// y = f(x) by the kernels' own sigmoid and tanh, for the tests of their accuracy.
template <class T>
void activation(const std::string& name, const py::array_t<T>& x, py::array_t<T>& y) {
    const auto from = view<const T>(x, {"x", {x.size()}});
    const auto to = view<T>(y, {"y", {x.size()}, true});
    const DtypeKernels<T>& kernels = active_kernels_for<T>();
    if (name != "sigmoid" && name != "tanh")
        throw py::value_error("name: expected sigmoid or tanh, got " + name);
    const auto function = name == "tanh" ? kernels.tanh : kernels.sigmoid;
    const ptrdiff_t count = x.size();
    py::gil_scoped_release release;
    const FloatEnv env;
    function(from.data, to.data, count);
}

// The floating-point operations done, and the sum of an array read `rounds` times, by loops that do
// nothing else: the benchmark times them to learn what the core can do.
template <class T>
ptrdiff_t probe_fma(ptrdiff_t rounds) {
    const DtypeKernels<T>& kernels = active_kernels_for<T>();
    py::gil_scoped_release release;
    ptrdiff_t flops = 0;
    kernels.probe_fma(rounds, &flops);
    return flops;
}

template <class T>
T probe_read(const py::array_t<T>& array, ptrdiff_t rounds) {
    const auto from = view<const T>(array, {"array", {array.size()}});
    const ptrdiff_t lanes = active_kernels().vector_bytes / ptrdiff_t(sizeof(T));
    const DtypeKernels<T>& kernels = active_kernels_for<T>();
    const ptrdiff_t count = array.size() / lanes * lanes;
    py::gil_scoped_release release;
    return kernels.probe_read(from.data, count, rounds);
}

}  // namespace
}  // namespace rnnfast

#if defined(_WIN32)
#define RNNFAST_EXPORT __declspec(dllexport)
#else
#define RNNFAST_EXPORT __attribute__((visibility("default")))
#endif

// For threadpoolctl, which finds them by name in the shared object.
extern "C" RNNFAST_EXPORT int rnnfast_get_num_threads() { return rnnfast::num_threads(); }
extern "C" RNNFAST_EXPORT void rnnfast_set_num_threads(int count) {
    rnnfast::set_num_threads(count);
}

namespace py = pybind11;

PYBIND11_MODULE(_native, m, py::mod_gil_not_used(),
                py::multiple_interpreters::per_interpreter_gil()) {
    using namespace rnnfast;
    py::class_<Saved>(m, "Saved");
    py::class_<Packed>(m, "Packed");
    m.def("pack", &pack);
    m.def("forward", [](const Packed& packed, py::object x, py::object h0, py::object c0,
                        py::object lengths, py::object reset, bool reverse, py::object y,
                        py::object hn, py::object cn, bool training) {
        return packed.forward({x, h0, c0, lengths, reset, reverse, y, hn, cn}, training);
    });
    m.def("backward", [](const Packed& packed, const Saved& saved, py::object x, py::object h0,
                         py::object c0, py::object lengths, py::object reset, bool reverse,
                         py::object y, py::object dy, py::object dhn, py::object dcn, py::object dx,
                         py::object dh0, py::object dc0, py::object weight_ih, py::object weight_hh,
                         py::object bias_ih, py::object bias_hh, py::object weight_hr) {
        packed.backward(
            saved, {x, h0, c0, lengths, reset, reverse, y, py::none(), py::none()},
            {dy, dhn, dcn, dx, dh0, dc0, {weight_ih, weight_hh, bias_ih, bias_hh, weight_hr}});
    });
    m.def("isas", &compiled_isas);
    m.def("supported_isas", &supported_isas);
    m.def("active_isa", &active_isa);
    m.def("vector_bytes", [] { return active_kernels().vector_bytes; });
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads);
#define DTYPE(name, type) \
    m.def("activation", &activation<type>, py::arg(), py::arg().noconvert(), py::arg().noconvert());
#include "core/dtypes.inc"
#undef DTYPE
    m.def("probe_fma", [](const std::string& dtype, ptrdiff_t rounds) {
#define DTYPE(name, type) \
    if (dtype == #name) return probe_fma<type>(rounds);
#include "core/dtypes.inc"
#undef DTYPE
        throw py::value_error("dtype: expected a name in dtypes.inc, got " + dtype);
    });
#define DTYPE(name, type) m.def("probe_read", &probe_read<type>, py::arg().noconvert(), py::arg());
#include "core/dtypes.inc"
#undef DTYPE
}
