// The Python module rnnfast._native. It checks arrays, releases the GIL and calls the dispatcher.
// rnnfast/_backend.py describes the arguments of its functions, and rnnfast/_native.pyi has their types.
#include <pybind11/stl.h>

#include <iterator>

#include "api/functions.h"
#include "bindings/fingerprint.h"
#include "bindings/gil.h"
#include "bindings/packed.h"
#include "bindings/pass.h"
#include "bindings/place.h"
#include "bindings/stack.h"
#include "bindings/tensors.h"
#include "dispatch/float_env.h"
#include "dispatch/openmp.h"
#include "dispatch/registry.h"
#include "dispatch/schedule.h"
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

template <class T>
std::unique_ptr<Packed> pack_as(CellId cell, const WeightObjects& weights, Held held,
                                const Format* format) {
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
    return std::make_unique<PackedOf<T>>(cell, sizes, weights, held, format);
}

// The format of the given name, for float32 weights. None gives nullptr: the weights keep their dtype.
const Format* find_format(const py::object& name, const py::array& weights) {
    if (name.is_none()) return nullptr;
    if (!py::isinstance<py::array_t<float>>(weights))
        throw py::type_error("format: expected None for weights that are not float32, got a name");
#define FORMAT(format, type) \
    if (name.equal(py::str(#format))) return &active_format(FormatId::format);
#include "core/formats.inc"
#undef FORMAT
    throw py::value_error("format: expected a name in formats.inc, got " +
                          std::string(py::str(name)));
}

template <Held held>
std::unique_ptr<Packed> pack(const std::string& name, py::array weight_ih, py::array weight_hh,
                             py::object bias_ih, py::object bias_hh, py::object weight_hr,
                             py::object format) {
    const CellId cell = find_cell(name);
    const WeightObjects weights{weight_ih, weight_hh, bias_ih, bias_hh, weight_hr};
    const Format* const kept_in = find_format(format, weight_ih);
#define DTYPE(name, type)                             \
    if (py::isinstance<py::array_t<type>>(weight_ih)) \
        return pack_as<type>(cell, weights, held, kept_in);
#include "core/dtypes.inc"
#undef DTYPE
    throw py::type_error("weight_ih: expected float32 or float64, got " +
                         std::string(py::str(weight_ih.dtype())));
}

// New packs of the same layers with other weights. Returns None if the weights do not fit the layers.
py::object repack(const py::list& given, const py::tuple& weights) {
    std::vector<Array> arrays;
    if (!read_all(weights.ptr(), arrays)) return py::none();
    const auto packs = py::reinterpret_steal<py::tuple>(PyList_AsTuple(given.ptr()));  // keeps them
    ArraysLeft left{arrays.data(), arrays.data() + arrays.size()};
    for (const py::handle pack : packs) {
        if (!py::isinstance<Packed>(pack))
            throw py::type_error("packs: expected those that pack returns, got another object");
        if (!pack.cast<const Packed&>().fits(left)) return py::none();
    }
    if (left.next != left.end) return py::none();
    left.next = arrays.data();
    py::list made;
    for (const py::handle pack : packs)
        made.append(pack.cast<const Packed&>().renewed(left, weights));
    return std::move(made);
}

// Computes y = f(x) with the kernels' own sigmoid or tanh, so that tests can check their accuracy. The
// benchmark repeats it `rounds` times.
template <class T>
void activation(const std::string& name, const py::array_t<T>& x, py::array_t<T>& y,
                ptrdiff_t rounds) {
    const auto from = view<const T>(x, {"x", {x.size()}});
    const auto to = view<T>(y, {"y", {x.size()}, true});
    const DtypeKernels<T>& kernels = active_kernels_for<T>();
    if (name != "sigmoid" && name != "tanh")
        throw py::value_error("name: expected sigmoid or tanh, got " + name);
    const auto function = name == "tanh" ? kernels.tanh : kernels.sigmoid;
    const ptrdiff_t count = x.size();
    const GilRelease release;
    const FloatEnv env;
    for (ptrdiff_t round = 0; round < rounds; ++round) function(from.data, to.data, count);
}

template <class T>
ptrdiff_t tape_row(CellId cell, const Sizes& sizes, int layers, int directions) {
    return Pass<T>::tape_row(active_kernels_for<T>().cells[int(cell)], sizes, layers, directions);
}

// In the order of `Forced`.
constexpr const char* kScheduleNames[] = {"none",       "shards", "units",
                                          "directions", "layers", "estimated"};

Forced find_schedule(const std::string& name) {
    std::string known;
    for (int i = 0; i < int(std::size(kScheduleNames)); ++i) {
        if (name == kScheduleNames[i]) return Forced(i);
        known += (i ? ", " : "") + std::string(kScheduleNames[i]);
    }
    throw py::value_error("schedule: expected one of " + known + ", got " + name);
}

// Two loops that the benchmark times to learn what the core can do. `probe_fma` only computes, and returns
// the number of floating-point operations. `probe_read` only reads an array `rounds` times, and returns a
// sum.
template <class T>
ptrdiff_t probe_fma(ptrdiff_t rounds) {
    const DtypeKernels<T>& kernels = active_kernels_for<T>();
    const GilRelease release;
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
    const GilRelease release;
    return kernels.probe_read(from.data, count, rounds);
}

// Lets a team of `threads` threads meet `rounds` times. Returns its size, or 0 if the team did not run.
int probe_meetings(int threads, ptrdiff_t rounds) {
    const GilRelease release;
    Team team(threads, 0, Team::Wait::for_all);
    const int size = team.size();
    Meeting meeting(size);
    const bool has_run = team.run([&](int) {
        Meeting::Place place(meeting);
        for (ptrdiff_t round = 0; round < rounds; ++round) place.wait();
    });
    return has_run ? size : 0;
}

}  // namespace
}  // namespace rnnfast

#if defined(_WIN32)
#define RNNFAST_EXPORT __declspec(dllexport)
#else
#define RNNFAST_EXPORT __attribute__((visibility("default")))
#endif

// threadpoolctl finds these functions by name in the shared object.
extern "C" RNNFAST_EXPORT int rnnfast_get_num_threads() { return rnnfast::num_threads(); }
extern "C" RNNFAST_EXPORT void rnnfast_set_num_threads(int count) {
    rnnfast::set_num_threads(count);
}

namespace py = pybind11;

// A process may not have several interpreters with this module: NumPy does not support them, and the table
// of torch's types exists once per process.
PYBIND11_MODULE(_native, m, py::mod_gil_not_used(), py::multiple_interpreters::not_supported()) {
    using namespace rnnfast;
    py::class_<Saved>(m, "Saved");
    py::class_<Packed>(m, "Packed");
    m.def("pack", &pack<Held::packed>, py::arg(), py::arg(), py::arg(), py::arg(), py::arg(),
          py::arg(), py::arg() = py::none());
    m.def("borrow", [](const std::string& name, py::array weight_ih, py::array weight_hh,
                       py::object bias_ih, py::object bias_hh, py::object weight_hr) {
        return pack<Held::borrowed>(name, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr,
                                    py::none());
    });
    m.def("repack", &repack);
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
    // The Cython class of streams uses this capsule, since it is not linked against this module.
    m.attr("c_functions") = py::capsule(&rnnfast_c_functions, "rnnfast._native.c_functions");
    add_stack(m);
    m.def("tape_row", [](const std::string& cell, const std::string& dtype, ptrdiff_t input,
                         ptrdiff_t hidden, ptrdiff_t projection, int layers, int directions) {
        const Sizes sizes{input, hidden, projection};
#define DTYPE(name, type) \
    if (dtype == #name) return tape_row<type>(find_cell(cell), sizes, layers, directions);
#include "core/dtypes.inc"
#undef DTYPE
        throw py::value_error("dtype: expected a name in dtypes.inc, got " + dtype);
    });
    add_tensors(m);
    add_fingerprint(m);
    add_place(m);
    m.def("few_rows", [] { return active_kernels_for<float>().cells[0].few; });
    m.def("isas", &compiled_isas);
    m.def("supported_isas", &supported_isas);
    m.def("active_isa", &active_isa);
    m.def("active_amx", &active_amx);
    m.def("vector_bytes", [] { return active_kernels().vector_bytes; });
    m.def("get_num_threads", &num_threads);
    m.def("set_num_threads", &set_num_threads);
    m.def("set_cpu_quota", &set_cpu_quota);
    m.def("force_schedule", [](const std::string& name) { force_schedule(find_schedule(name)); });
    m.def("last_schedule", [] { return kScheduleNames[int(last_schedule())]; });
#define DTYPE(name, type)                                                    \
    m.def("activation", &activation<type>, py::arg(), py::arg().noconvert(), \
          py::arg().noconvert(), py::arg("rounds") = 1);
#include "core/dtypes.inc"
#undef DTYPE
    m.def("probe_fma", [](const std::string& dtype, ptrdiff_t rounds) {
#define DTYPE(name, type) \
    if (dtype == #name) return probe_fma<type>(rounds);
#include "core/dtypes.inc"
#undef DTYPE
        throw py::value_error("dtype: expected a name in dtypes.inc, got " + dtype);
    });
    m.def("probe_dot", [](const std::string& format, ptrdiff_t rounds) {
        uint32_t sums = 0;
#define FORMAT(name, type) \
    if (format == #name) return active_format(FormatId::name).probe(rounds, &sums);
#include "core/formats.inc"
#undef FORMAT
        throw py::value_error("format: expected a name in formats.inc, got " + format);
    });
    m.def("use_openmp", &use_openmp);
    m.def("probe_meetings", &probe_meetings);
#define DTYPE(name, type) m.def("probe_read", &probe_read<type>, py::arg().noconvert(), py::arg());
#include "core/dtypes.inc"
#undef DTYPE
}
