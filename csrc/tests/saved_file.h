// Building blocks of the tests of rnnfast_open: files as Python writes them, part by part.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "dispatch/registry.h"
#include "include/rnnfast.h"
#include "tests/expect.h"

namespace rnnfast {

inline std::mt19937 generator(3);
inline int below(size_t n) { return int(generator() % n); }

inline std::string path;  // of the file that a test writes

inline void write(const std::string& content) {
    std::FILE* const file = std::fopen(path.c_str(), "wb");
    std::fwrite(content.data(), 1, content.size(), file);
    std::fclose(file);
}

inline std::string with_length(const std::string& header, const std::string& data) {
    std::string length(8, '\0');
    for (int i = 0; i < 8; ++i) length[size_t(i)] = char(uint64_t(header.size()) >> 8 * i & 255);
    return length + header + data;
}

using Texts = std::vector<std::pair<std::string, std::string>>;

inline std::string object(const Texts& texts) {
    std::string out;
    for (const auto& text : texts)
        out += (out.empty() ? "{\"" : ",\"") + text.first + "\":" + text.second;
    return out + "}";
}

// A file and its parts, to be changed.
struct Content {
    Texts metadata;  // values without quotes
    Texts tensors;   // values in JSON
    std::string data;

    std::string whole() const {
        Texts quoted = metadata, entries = tensors;
        for (auto& item : quoted) item.second = '"' + item.second + '"';
        if (!quoted.empty()) entries.insert(entries.begin(), {"__metadata__", object(quoted)});
        return with_length(object(entries), data);
    }
    std::string& operator[](const std::string& name) {
        for (Texts* const texts : {&metadata, &tensors})
            for (auto& item : *texts)
                if (item.first == name) return item.second;
        metadata.emplace_back(name, "");
        return metadata.back().second;
    }
};

struct Case {
    const char* kind;  // the class in Python
    Texts own;         // its own options
    CellId cell;
    int64_t I, H, P, L;
    bool one_step, biased;
};

// What Python writes, and the arrays in it; `arrays` must not be empty.
template <class T>
Content make(const Case& c, std::vector<std::vector<T>>& arrays,
             std::vector<rnnfast_layer>& layers) {
    const int64_t W = c.P ? c.P : c.H;
    const int64_t rows = active_kernels_for<T>().cells[int(c.cell)].gates * c.H;
    Content out;
    out.metadata = {{"format", "rnnfast"},
                    {"format_version", "1"},
                    {"class", c.kind + std::string(c.one_step ? "Cell" : "")},
                    {"input_size", std::to_string(c.I)},
                    {"hidden_size", std::to_string(c.H)},
                    {"bias", c.biased ? "true" : "false"},
                    {"dtype", sizeof(T) == 4 ? "float32" : "float64"}};
    if (!c.one_step)
        for (const auto& item : Texts{{"num_layers", std::to_string(c.L)},
                                      {"batch_first", "false"},
                                      {"dropout", "0.5"},
                                      {"bidirectional", "false"}})
            out.metadata.push_back(item);
    out.metadata.insert(out.metadata.end(), c.own.begin(), c.own.end());
    std::normal_distribution<double> draw(0, 1 / std::sqrt(double(c.H)));
    const auto add = [&](const std::string& name, int64_t n, int64_t m,
                         bool wanted) -> const void* {
        if (!wanted) return nullptr;
        std::vector<T>& array = arrays.emplace_back(size_t(n * std::max<int64_t>(m, -m)));
        for (T& v : array) v = T(draw(generator));
        const size_t begin = out.data.size();
        out.data.append(reinterpret_cast<const char*>(array.data()), array.size() * sizeof(T));
        const std::string shape = std::to_string(n) + (m < 0 ? "" : "," + std::to_string(m));
        out.tensors.emplace_back(
            name, object({{"dtype", sizeof(T) == 4 ? "\"F32\"" : "\"F64\""},
                          {"shape", "[" + shape + "]"},
                          {"data_offsets", "[" + std::to_string(begin) + "," +
                                               std::to_string(out.data.size()) + "]"}}));
        return array.data();
    };
    arrays.reserve(size_t(5 * c.L));  // keeps what `data` points to
    for (int64_t l = 0; l < c.L; ++l) {
        const std::string suffix = c.one_step ? "" : "_l" + std::to_string(l);
        rnnfast_layer layer;
        layer.weight_ih = add("weight_ih" + suffix, rows, l ? W : c.I, true);
        layer.weight_hh = add("weight_hh" + suffix, rows, W, true);
        layer.bias_ih = add("bias_ih" + suffix, rows, -1, c.biased);
        layer.bias_hh = add("bias_hh" + suffix, rows, -1, c.biased);
        layer.weight_hr = add("weight_hr" + suffix, c.P, c.H, c.P != 0);
        layers.push_back(layer);
    }
    return out;
}

inline Content lstm() {
    std::vector<std::vector<float>> arrays;
    std::vector<rnnfast_layer> layers;
    return make<float>({"LSTM", {{"proj_size", "0"}}, CellId::lstm, 4, 5, 0, 2, false, true},
                       arrays, layers);
}

// After the tests.
inline int report() {
    std::remove(path.c_str());
    std::printf("ISA %s: %d passed, %d failed\n", rnnfast_isa(), checked - failures, failures);
    return failures != 0;
}

}  // namespace rnnfast
