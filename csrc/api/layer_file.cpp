#include "api/layer_file.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>

#include "api/names.h"
#include "api/safetensors.h"
#include "core/format.h"
#include "dispatch/registry.h"

namespace rnnfast {
namespace {

[[noreturn]] void fail(const std::string& text) { throw std::invalid_argument(text); }

[[noreturn]] void fail(const std::string& name, const std::string& expected,
                       const std::string& got) {
    fail(name + ": expected " + expected + ", got " + got);
}

// The options of a layer, as texts. `end` fails unless each of them has been taken.
class Options {
public:
    explicit Options(std::map<std::string, std::string> texts) : texts_(std::move(texts)) {}

    bool has(const std::string& name) const { return texts_.count(name) != 0; }

    std::string take(const std::string& name) {
        const auto found = texts_.find(name);
        if (found == texts_.end()) fail("metadata", "the option " + name, "none");
        const std::string text = found->second.substr(0, 64);
        texts_.erase(found);
        return text;
    }

    void take(const std::string& name, const std::string& want) {
        const std::string text = take(name);
        if (text != want) fail(name, want, text);
    }

    int64_t integer(const std::string& name) {
        const std::string text = take(name);
        const bool digits = text.find_first_not_of("0123456789") == std::string::npos;
        // 18 digits fit an int64_t.
        if (!digits || text.empty() || text.size() > 18 || (text[0] == '0' && text.size() > 1))
            fail(name, "an integer of 0 or more", text);
        return std::stoll(text);
    }

    bool flag(const std::string& name) {
        const std::string text = take(name);
        if (text != "true" && text != "false") fail(name, "true or false", text);
        return text == "true";
    }

    void end() const {
        if (!texts_.empty()) fail("metadata", "no other option", texts_.begin()->first);
    }

private:
    std::map<std::string, std::string> texts_;
};

CellId find_cell(const std::string& name) {
    return CellId(std::find(std::begin(kCells), std::end(kCells), name) - std::begin(kCells));
}

// The cell of the class `kind`, which is named without the suffix Cell.
CellId cell_of(const std::string& kind, Options& options) {
    if (kind == "LSTM") return CellId::lstm;
    if (kind == "GRU") return options.flag("reset_after") ? CellId::gru : CellId::gru_reset_before;
    if (kind != "RNN") fail("class", "RNN, GRU or LSTM, or one of them and Cell", kind);
    const std::string nonlinearity = options.take("nonlinearity");
    const CellId cell = find_cell("rnn_" + nonlinearity);
    if (cell == CellId::count) fail("nonlinearity", "that of a cell", nonlinearity);
    return cell;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
    return "(" + text + ")";
}

LayerFile read(const char* path, rnnfast_config& config) {
    Safetensors file(path);
    Options options(file.metadata);
    options.take("format", "rnnfast");
    options.take("format_version", "1");
    std::string kind = options.take("class");
    const size_t stem = kind.size() < 4 ? kind.size() : kind.size() - 4;
    const bool one_step = kind.compare(stem, std::string::npos, "Cell") == 0;
    if (one_step) kind.resize(stem);
    const CellId cell = cell_of(kind, options);
    config.cell = kCells[int(cell)];
    config.input_size = options.integer("input_size");
    config.hidden_size = options.integer("hidden_size");
    config.num_layers = 1;
    config.proj_size = 0;
    const bool biased = options.flag("bias");
    if (!one_step) {
        config.num_layers = options.integer("num_layers");
        if (kind == "LSTM") config.proj_size = options.integer("proj_size");
        if (options.flag("bidirectional")) fail("bidirectional", "false for a stream", "true");
        options.flag("batch_first");
        options.take("dropout");  // ignored: a stream has no dropout
    }
    const std::string dtype = options.take("dtype");
    const std::string precision = options.has("precision") ? options.take("precision") : dtype;
    options.end();
    if (file.tensors.empty()) fail("file", "arrays", "none");
    config.dtype = file.tensors.begin()->second.dtype;
    if (dtype != config.dtype) fail("dtype", config.dtype, dtype);
    const auto format = find_format("precision", precision, config.dtype);
    if (format == FormatId::int8)
        for (const int64_t size : {config.input_size, config.hidden_size})
            if (size > kMostOfInt8)
                fail("precision", "float32 or bfloat16 of " + std::to_string(size) + " products",
                     precision);
    if (!config.weights) config.weights = format ? kFormats[int(*format)] : config.dtype;
    // Every parameter has at least H elements. This check keeps the sizes below from overflowing.
    if (config.hidden_size > file.bytes)
        fail("hidden_size", "that of the file's arrays", std::to_string(config.hidden_size));
    if (config.num_layers > int64_t(file.tensors.size()))
        fail("num_layers", "the layers of the file", std::to_string(config.num_layers));

    LayerFile out;
    out.layers.resize(size_t(config.num_layers));  // all NULL
    std::vector<std::pair<const void**, int64_t>> places;
    const auto find = [&](const std::string& name, std::vector<int64_t> shape, const void*& array) {
        const auto found = file.tensors.find(name);
        if (found == file.tensors.end()) fail(name, "an array", "none");
        const Tensor& tensor = found->second;
        if (tensor.shape != shape)
            fail(name, "shape " + shape_text(shape), shape_text(tensor.shape));
        if (std::strcmp(tensor.dtype, config.dtype)) fail(name, config.dtype, tensor.dtype);
        places.emplace_back(&array, tensor.begin);
    };
    const int64_t H = config.hidden_size, P = config.proj_size, W = P ? P : H;
    const int64_t rows = active_kernels_for<float>().cells[int(cell)].gates * H;
    for (int64_t l = 0; l < config.num_layers; ++l) {
        rnnfast_layer& layer = out.layers[size_t(l)];
        const std::string suffix = one_step ? "" : "_l" + std::to_string(l);
        find("weight_ih" + suffix, {rows, l ? W : config.input_size}, layer.weight_ih);
        find("weight_hh" + suffix, {rows, W}, layer.weight_hh);
        if (biased) find("bias_ih" + suffix, {rows}, layer.bias_ih);
        if (biased) find("bias_hh" + suffix, {rows}, layer.bias_hh);
        if (P) find("weight_hr" + suffix, {P, H}, layer.weight_hr);
    }
    if (places.size() != file.tensors.size())
        fail("file", std::to_string(places.size()) + " arrays",
             std::to_string(file.tensors.size()));
    out.data = file.read();
    for (const auto& place : places) *place.first = out.data.get() + place.second;
    return out;
}

}  // namespace

LayerFile read_layer_file(const char* path, rnnfast_config& config) {
    try {
        return read(path, config);
    } catch (const std::invalid_argument& error) {
        throw std::invalid_argument(std::string(path) + ": " + error.what());
    }
}

}  // namespace rnnfast
