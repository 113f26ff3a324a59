// rnnfast_open: the bits of a stream made of the same arrays, and random damage to its file.
#include <cerrno>
#include <iterator>

#include "tests/saved_file.h"

using namespace rnnfast;

namespace {

// Of one batch, whatever its size: zeros in.
template <class T>
std::vector<T> outputs(rnnfast_stream* stream, const rnnfast_config& config) {
    const int64_t W = config.proj_size ? config.proj_size : config.hidden_size,
                  B = config.batch_size;
    std::vector<T> x(size_t(3 * B * config.input_size), T(0.25)), y(size_t(3 * B * W));
    rnnfast_run(stream, 3, x.data(), y.data());
    return y;
}

template <class T>
void check(const Case& c) {
    std::vector<std::vector<T>> arrays;
    std::vector<rnnfast_layer> layers;
    const Content content = make<T>(c, arrays, layers);
    const std::string text = c.kind + std::string(sizeof(T) == 4 ? " float32" : " float64");
    // Padded with spaces, as Python does, and not: then the arrays are not aligned in the file.
    for (const std::string spaces : {"", " \n"}) {
        std::string whole = content.whole();
        const size_t end = whole.size() - content.data.size();
        write(with_length(whole.substr(8, end - 8) + spaces, content.data));
        rnnfast_config config{};
        config.batch_size = 2;
        rnnfast_stream* const opened = rnnfast_open(path.c_str(), &config);
        if (!opened) return expect(false, text + ": " + rnnfast_error());
        expect(config.input_size == c.I && config.hidden_size == c.H && config.proj_size == c.P &&
                   config.num_layers == c.L && config.batch_size == 2 &&
                   !std::strcmp(config.weights, config.dtype),
               text + ": sizes");
        rnnfast_stream* const made = rnnfast_create(&config, layers.data());
        if (!made) return expect(false, text + ": " + rnnfast_error());
        const std::vector<T> got = outputs<T>(opened, config), want = outputs<T>(made, config);
        expect(!std::memcmp(got.data(), want.data(), got.size() * sizeof(T)), text + ": bits");
        rnnfast_destroy(opened), rnnfast_destroy(made);
    }
}

const std::vector<Case>& cases() {
    static const std::vector<Case> all = {
        {"RNN", {{"nonlinearity", "tanh"}}, CellId::rnn_tanh, 4, 5, 0, 2, false, true},
        {"RNN", {{"nonlinearity", "relu"}}, CellId::rnn_relu, 0, 17, 0, 1, false, false},
        {"GRU", {{"reset_after", "true"}}, CellId::gru, 4, 5, 0, 3, false, true},
        {"GRU", {{"reset_after", "false"}}, CellId::gru_reset_before, 3, 33, 0, 1, false, true},
        {"LSTM", {{"proj_size", "0"}}, CellId::lstm, 4, 5, 0, 2, false, false},
        {"LSTM", {{"proj_size", "3"}}, CellId::lstm, 4, 5, 3, 2, false, true},
        {"RNN", {{"nonlinearity", "relu"}}, CellId::rnn_relu, 4, 5, 0, 1, true, true},
        {"GRU", {{"reset_after", "false"}}, CellId::gru_reset_before, 4, 5, 0, 1, true, false},
        {"LSTM", {}, CellId::lstm, 4, 5, 0, 1, true, true},
    };
    return all;
}

// Of calls that fail before a file is read, or after.
void check_calls() {
    rnnfast_config config{};
    const auto fails = [&](const char* from, rnnfast_config* as, const std::string& want) {
        rnnfast_stream* const stream = rnnfast_open(from, as);
        const std::string got = stream ? "a stream" : rnnfast_error();
        expect(got == want, "expected \"" + want + "\", got \"" + got + "\"");
        rnnfast_destroy(stream);
    };
    fails(nullptr, &config, "path: expected a string, got NULL");
    fails("x", nullptr, "config: expected a configuration, got NULL");
    fails("none/such", &config, "none/such: " + std::string(std::strerror(ENOENT)));
#if !defined(_WIN32)
    fails(".", &config, ".: " + std::string(std::strerror(EISDIR)));
#endif
    write(lstm().whole());
    fails(path.c_str(), &config, "batch_size: expected 1 or more, got 0");
    config.batch_size = 1, config.weights = "int4";
    fails(path.c_str(), &config, "weights: expected one of float32, bfloat16, int8, got int4");
}

// Without a name of its own a stream has the precision of the file, and of its arrays' dtype where
// that has none.
void check_precision() {
    const Case c{"LSTM", {{"proj_size", "0"}}, CellId::lstm, 4, 5, 0, 2, false, true};
    for (const char* const precision : {"", "float32", "bfloat16", "int8"})
        for (const char* const asked : {"", "float32", "bfloat16", "int8"}) {
            std::vector<std::vector<float>> arrays;
            std::vector<rnnfast_layer> layers;
            Content content = make<float>(c, arrays, layers);
            if (*precision) content["precision"] = precision;
            write(content.whole());
            const std::string want = *asked ? asked : *precision ? precision : "float32";
            const std::string text =
                std::string("a layer in \"") + precision + "\", asked for in \"" + asked + "\"";
            rnnfast_config config{};
            config.batch_size = 1;
            config.weights = *asked ? asked : nullptr;
            rnnfast_stream* const opened = rnnfast_open(path.c_str(), &config);
            if (!opened) return expect(false, text + ": " + rnnfast_error());
            expect(config.weights == want, text + ": " + config.weights);
            config.weights = want.c_str();
            rnnfast_stream* const made = rnnfast_create(&config, layers.data());
            if (!made) return expect(false, text + ": " + rnnfast_error());
            const auto got = outputs<float>(opened, config), same = outputs<float>(made, config);
            expect(!std::memcmp(got.data(), same.data(), got.size() * sizeof(float)), text);
            rnnfast_destroy(opened), rnnfast_destroy(made);
        }
}

// Random damage: each file is a stream that can be stepped, or refused.
void check_mutations() {
    const char* const pieces[] = {"\"", "{",    "}",    "[",   "]",   ",",       ":",  "-1", "1e9",
                                  "0",  "true", "null", "GRU", "F64", "\\u0031", "\\", "_l0"};
    std::vector<std::string> files;
    for (const Case& c : cases()) {
        std::vector<std::vector<float>> arrays;
        std::vector<rnnfast_layer> layers;
        files.push_back(make<float>(c, arrays, layers).whole());
    }
    int opened = 0, rounds = 2000;
    for (int round = 0; round < rounds; ++round) {
        std::string content = files[size_t(below(files.size()))];
        const std::string& other = files[size_t(below(files.size()))];
        for (int i = below(3); i >= 0 && content.size() > 8; --i) {
            const size_t end = content.rfind("]}}") + 3, before = content.size();
            const size_t at = size_t(below(below(4) && end > 3 && end < before ? end : before));
            const std::string piece = pieces[below(std::size(pieces))];
            const size_t size = std::min(size_t(below(24)), before - at);
            switch (below(7)) {
                case 0:
                    content[at] = char(generator());
                    break;
                case 1:
                    content.resize(at);
                    break;
                case 2:
                    content.erase(at, size);
                    break;
                case 3:
                    content.insert(at, content.substr(at, size));
                    break;
                case 4:
                    content = content.substr(0, at) + other.substr(std::min(at, other.size()));
                    break;
                case 5:
                    content.insert(at, piece);
                    break;
                default:
                    content.replace(at, std::min(piece.size(), before - at), piece);
            }
            // The header's length fits again, so that more than it is looked at.
            if (at >= 8 && at < end && below(4) && content.size() >= 8) {
                uint64_t length;
                std::memcpy(&length, content.data(), sizeof length);
                length += content.size() - before;
                std::memcpy(&content[0], &length, sizeof length);
            }
        }
        write(content);
        rnnfast_config config{};
        config.batch_size = 1;
        rnnfast_stream* const stream = rnnfast_open(path.c_str(), &config);
        opened += stream != nullptr;
        if (stream)
            outputs<float>(stream, config);
        else if (std::strncmp(rnnfast_error(), path.c_str(), path.size()))
            expect(false, std::string("after damage: ") + rnnfast_error());
        rnnfast_destroy(stream);
    }
    expect(opened > 0 && opened < rounds / 2, std::to_string(opened) + " damaged files opened");
}

}  // namespace

int main() {
    if (!rnnfast_isa()) {
        std::printf("%s\n", rnnfast_error());
        return 77;  // ctest's sign for a test that was skipped
    }
    path = std::string("file_test_") + rnnfast_isa() + ".safetensors";
    for (const Case& c : cases()) check<float>(c), check<double>(c);
    check_calls();
    check_precision();
    check_mutations();
    return report();
}
