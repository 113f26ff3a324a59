// The functions of include/rnnfast.h. They check arguments, and let no exception out.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "api/functions.h"
#include "api/layer_file.h"
#include "api/names.h"
#include "core/format.h"
#include "dispatch/registry.h"
#include "dispatch/stream.h"

namespace rnnfast {
namespace {

// An array, since a string might have to allocate when memory is short.
thread_local char last_error[512] = "";

Stream* of(rnnfast_stream* stream) { return reinterpret_cast<Stream*>(stream); }
const Stream* of(const rnnfast_stream* stream) { return reinterpret_cast<const Stream*>(stream); }

// Keeps `text` as one line. Of a long text, which may begin with the caller's path, this keeps the beginning
// and the end.
void keep_error(const char* text) noexcept {
    constexpr size_t kRoom = sizeof last_error - 1, kBeginning = 200;
    const size_t size = std::strlen(text);
    if (size <= kRoom)
        std::memcpy(last_error, text, size + 1);
    else
        std::snprintf(last_error, sizeof last_error, "%.*s...%s", int(kBeginning), text,
                      text + size - (kRoom - kBeginning - 3));
    for (char* c = last_error; *c; ++c)
        if (static_cast<unsigned char>(*c) < ' ' || *c == 0x7f) *c = '?';
}

// Returns the result of `body`. If `body` throws, this keeps the error and returns null.
template <class Body>
auto guarded(const Body& body) noexcept -> decltype(body()) {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        keep_error("not enough memory");
    } catch (const std::exception& error) {
        keep_error(error.what());
    }
    return nullptr;
}

[[noreturn]] __attribute__((format(printf, 1, 2))) void fail(const char* format, ...) {
    char text[sizeof last_error];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    throw std::invalid_argument(text);
}

// The index of `name` in a list of names. Fails if it is not there.
template <size_t N>
int find(const char* what, const char* name, const char* const (&names)[N]) {
    std::string known;
    for (size_t i = 0; i < N; ++i) {
        if (name && !std::strcmp(name, names[i])) return int(i);
        known += (i ? ", " : "") + std::string(names[i]);
    }
    fail("%s: expected one of %s, got %s", what, known.c_str(), name ? name : "NULL");
}

constexpr const char* kDtypes[] = {
#define DTYPE(name, type) #name,
#include "core/dtypes.inc"
#undef DTYPE
};

void check_least(const char* what, int64_t value, int64_t least) {
    if (value < least)
        fail("%s: expected %lld or more, got %lld", what, static_cast<long long>(least),
             static_cast<long long>(value));
}

void check_most(const char* what, int64_t value, int64_t most) {
    if (value > most)
        fail("%s: expected %lld or less with int8 weights, got %lld", what,
             static_cast<long long>(most), static_cast<long long>(value));
}

// Checks that an index can hold the number of elements of every array, including padding to whole vectors.
void check_product(const StreamConfig& config, ptrdiff_t gates) {
    const double units = double(config.sizes.hidden) + 64, inputs = double(config.sizes.input);
    const double weights = double(gates) * units * (inputs + 2 * units);
    const double rows = double(config.batch) * (double(gates) * 2 * units + inputs);
    if ((weights + rows) * double(config.layers) > double(PTRDIFF_MAX) / 64)
        fail(
            "sizes: expected arrays that fit in memory, got input_size %lld, hidden_size %lld, "
            "num_layers %lld, batch_size %lld",
            static_cast<long long>(config.sizes.input), static_cast<long long>(config.sizes.hidden),
            static_cast<long long>(config.layers), static_cast<long long>(config.batch));
}

template <class T>
StreamConfig checked(const rnnfast_config& c) {
    StreamConfig config{CellId(find("cell", c.cell, kCells)),
                        {ptrdiff_t(c.input_size), ptrdiff_t(c.hidden_size), ptrdiff_t(c.proj_size)},
                        ptrdiff_t(c.num_layers),
                        ptrdiff_t(c.batch_size),
                        {}};
    const CellKernels<T>& kernels = active_kernels_for<T>().cells[int(config.cell)];
    if (c.weights) config.format = find_format("weights", c.weights, c.dtype);
    check_least("input_size", c.input_size, 0);
    check_least("hidden_size", c.hidden_size, 1);
    check_least("proj_size", c.proj_size, 0);
    check_least("num_layers", c.num_layers, 1);
    check_least("batch_size", c.batch_size, 1);
    if (c.proj_size && !kernels.projects)
        fail("proj_size: expected 0 for %s, got %lld", c.cell, static_cast<long long>(c.proj_size));
    if (c.proj_size >= c.hidden_size)
        fail("proj_size: expected less than hidden_size (%lld), got %lld",
             static_cast<long long>(c.hidden_size), static_cast<long long>(c.proj_size));
    if (config.format == FormatId::int8) {
        check_most("input_size", c.input_size, kMostOfInt8);
        check_most("hidden_size", c.hidden_size, kMostOfInt8);
    }
    check_product(config, kernels.gates);
    return config;
}

template <class T>
Weights<const T> checked(const StreamConfig& config, int64_t l, const rnnfast_layer& layer,
                         bool biased) {
    const auto check = [l](const char* name, const void* array, bool wanted) {
        if (!array == wanted)
            fail("%s of layer %lld: expected %s, got %s", name, static_cast<long long>(l),
                 wanted ? "an array" : "NULL", wanted ? "NULL" : "an array");
        return static_cast<const T*>(array);
    };
    const T* const weight_ih = l == 0 && config.sizes.input == 0
                                   ? static_cast<const T*>(layer.weight_ih)  // has no elements
                                   : check("weight_ih", layer.weight_ih, true);
    return {weight_ih, check("weight_hh", layer.weight_hh, true),
            check("bias_ih", layer.bias_ih, biased), check("bias_hh", layer.bias_hh, biased),
            check("weight_hr", layer.weight_hr, config.sizes.projection != 0)};
}

template <class T>
std::unique_ptr<Stream> create_as(const rnnfast_config& given, const rnnfast_layer* layers) {
    const StreamConfig config = checked<T>(given);
    if (!layers) fail("layers: expected an array, got NULL");
    std::vector<Weights<const T>> weights;
    for (int64_t l = 0; l < given.num_layers; ++l)
        weights.push_back(checked<T>(config, l, layers[l], layers[0].bias_ih));
    return make_stream<T>(config, weights.data());
}

// In the order of kDtypes.
constexpr std::unique_ptr<Stream> (*kCreate[])(const rnnfast_config&, const rnnfast_layer*) = {
#define DTYPE(name, type) create_as<type>,
#include "core/dtypes.inc"
#undef DTYPE
};

}  // namespace
}  // namespace rnnfast

using namespace rnnfast;

extern "C" {

rnnfast_stream* rnnfast_create(const rnnfast_config* config, const rnnfast_layer* layers) {
    return guarded([=] {
        if (!config) fail("config: expected a configuration, got NULL");
        const int dtype = find("dtype", config->dtype, kDtypes);
        return reinterpret_cast<rnnfast_stream*>(kCreate[dtype](*config, layers).release());
    });
}

rnnfast_stream* rnnfast_open(const char* path, rnnfast_config* config) {
    return guarded([=] {
        if (!path) fail("path: expected a string, got NULL");
        if (!config) fail("config: expected a configuration, got NULL");
        rnnfast_config found = *config;
        const LayerFile file = read_layer_file(path, found);
        rnnfast_stream* const stream = rnnfast_create(&found, file.layers.data());
        if (stream) *config = found;
        return stream;
    });
}

rnnfast_stream* rnnfast_clone(const rnnfast_stream* stream) {
    return guarded(
        [=] { return reinterpret_cast<rnnfast_stream*>(of(stream)->clone().release()); });
}

void rnnfast_destroy(rnnfast_stream* stream) { delete of(stream); }

void rnnfast_step(rnnfast_stream* stream, const void* x, void* y) { of(stream)->run(1, x, y); }

void rnnfast_run(rnnfast_stream* stream, int64_t steps, const void* x, void* y) {
    of(stream)->run(ptrdiff_t(steps), x, y);
}

void rnnfast_get_state(const rnnfast_stream* stream, void* h, void* c) {
    of(stream)->get_state(h, c);
}

void rnnfast_set_state(rnnfast_stream* stream, const void* h, const void* c) {
    of(stream)->set_state(h, c);
}

void rnnfast_reset(rnnfast_stream* stream, const uint8_t* rows) { of(stream)->reset(rows); }

double rnnfast_step_work(const rnnfast_stream* stream) { return of(stream)->work(); }

size_t rnnfast_weights_bytes(const rnnfast_stream* stream) { return of(stream)->weights_bytes(); }

const char* rnnfast_error(void) { return last_error; }

const char* rnnfast_isa(void) {
    return guarded([] { return active_isa().c_str(); });
}

const rnnfast_functions rnnfast_c_functions = {
    rnnfast_create,    rnnfast_clone,         rnnfast_destroy,   rnnfast_step,
    rnnfast_run,       rnnfast_get_state,     rnnfast_set_state, rnnfast_reset,
    rnnfast_step_work, rnnfast_weights_bytes, rnnfast_error,
};

}  // extern "C"
