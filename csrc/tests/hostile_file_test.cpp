// rnnfast_open of files that are damaged, or made to do harm: each is refused with a sentence.
#include "tests/saved_file.h"

using namespace rnnfast;

namespace {

// That the file is refused, and why.
void refused(const std::string& content, const std::string& want) {
    write(content);
    rnnfast_config config{};
    config.batch_size = 1;
    rnnfast_stream* const stream = rnnfast_open(path.c_str(), &config);
    const std::string got = stream ? "a stream" : rnnfast_error();
    expect(got.compare(0, path.size() + 2, path + ": ") == 0 &&
               got.find(want, path.size()) != std::string::npos,
           "expected \"" + want + "\", got \"" + got + "\"");
    expect(stream || (!config.cell && !config.hidden_size), "config changed: " + want);
    rnnfast_destroy(stream);
}

void check_headers() {
    refused("", "file: expected 8 more bytes, got 0");
    refused(std::string(7, '\0'), "file: expected 8 more bytes, got 7");
    refused(std::string(8, '\xff') + "{}",
            "header: expected at most 2 bytes, got a length of 18446");
    refused(std::string("\3\0\0\0\0\0\0\0{}", 10), "header: expected at most 2 bytes");
    const auto header = [](const std::string& text, const std::string& want) {
        refused(with_length(text, ""), want);
    };
    header("", "header: expected '{' at byte 0, got its end");
    header(" {}", "header: expected '{'");
    header("{} x", "header: expected its end at byte 3, got 'x'");
    header("{", "header: expected a string at byte 1, got its end");
    header(std::string("{}\0", 3), "header: expected its end");
    header("{}", "metadata: expected the option format, got none");
    std::string deep(300'000, '[');
    header(deep, "header: expected '{'");
    header("{\"a\":" + deep, "header: expected '{' at byte 5");
    deep.clear();
    for (int i = 0; i < 50'000; ++i) deep += "{\"a\":";
    header(deep, "'a': expected dtype, shape and data_offsets, got 'a'");
    header("{\"__metadata__\":{\"a\":{}}}", "header: expected a string");
    header("{\"__metadata__\":{\"a\":\"\",\"a\":\"\"}}",
           "each key once in an object, got 'a' twice");
    header("{\"__metadata__\":{},\"__metadata__\":{}}", "got '__metadata__' twice");
    header("{\"a\n\":{}}", "header: expected a string of printable ASCII");
    header("{\"\xc3\xa9\":{}}", "header: expected a string of printable ASCII");
    header("{\"\\x\":{}}", "header: expected an escaped character");
    header("{\"\\u12\":{}}", "header: expected an escaped character");
    header("{\"\\u00", "header: expected an escaped character");
    header("{\"\\", "header: expected an escaped character");
    header("{\"a", "header: expected a string of printable ASCII");
    header("{\"a\":{},}", "'a': expected a shape and two data_offsets, got fewer");
}

void check_tensors() {
    const auto tensor = [](const std::string& text, const std::string& want) {
        refused(with_length("{\"a\":" + text + "}", "data"), want);
    };
    const auto integers = [&](const std::string& shape, const std::string& offsets,
                              const std::string& want) {
        tensor("{\"dtype\":\"F32\",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}",
               want);
    };
    tensor("5", "header: expected '{'");
    tensor("{}", "'a': expected a shape and two data_offsets, got fewer");
    tensor("{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[0,2]}", "'a': dtype: expected one");
    tensor("{\"dtype\":5}", "header: expected a string");
    tensor("{\"shape\":[1],\"shape\":[1]}", "got 'shape' twice");
    integers("[1]", "[0]", "two data_offsets, got fewer");
    integers("[1]", "[0,4,8]", "expected at most 2 integers");
    integers("[1]", "[4,8]", "begins at byte 0 of the data, got one at 4");
    integers("[1]", "[4,0]", "expected 4 bytes, got data_offsets 4, 0");
    integers("[1]", "[0,8]", "expected 4 bytes, got data_offsets 0, 8");
    integers("[2]", "[0,8]", "file: expected 8 bytes of data, got 4");
    integers("[0]", "[0,0]", "file: expected 0 bytes of data, got 4");
    integers("[4294967296,4294967296]", "[0,0]", "expected a shape that fits in memory");
    for (const char* wrong : {"-1", "1.0", "1e0", "01", "\"1\"", "true", "NaN", "null", "[1]", "",
                              "1,", "9999999999999999999", "1234567890123456789"})
        integers("[" + std::string(*wrong ? wrong : ",") + "]", "[0,4]", "an integer of 0 or more");
    integers("[1 1]", "[0,4]", "header: expected ']'");
    std::string many = "[1";
    for (int i = 0; i < 100'000; ++i) many += ",1";
    integers(many + "]", "[0,4]", "expected at most 64 integers");
    Content overlap = lstm();
    overlap["bias_hh_l0"] = overlap["bias_ih_l0"];
    refused(overlap.whole(),
            "expected an array that begins at byte 800 of the data, got one at 720");
}

void check_options() {
    const auto option = [](const std::string& name, const std::string& text, const char* want) {
        Content content = lstm();
        content[name] = text;
        refused(content.whole(), want);
    };
    option("format", "pt", "format: expected rnnfast, got pt");
    option("format_version", "2", "format_version: expected 1, got 2");
    option("class", "GRU6", "class: expected RNN, GRU or LSTM, or one of them and Cell, got GRU6");
    option("class", "Cell", "class: expected RNN, GRU or LSTM");
    option("class", "GRU", "metadata: expected the option reset_after, got none");
    option("class", "LSTMCell", "metadata: expected no other option, got batch_first");
    option("seed", "1", "metadata: expected no other option, got seed");
    option("hidden_size", "10", "weight_ih_l0: expected shape (40, 4), got (20, 4)");
    option("hidden_size", "1000000000", "hidden_size: expected that of the file's arrays");
    option("hidden_size", "999999999999999999", "hidden_size: expected that of the file's arrays");
    option("hidden_size", "0", "weight_ih_l0: expected shape (0, 4)");
    for (const char* wrong : {"", "-5", "05", "5.0", "true", "1000000000000000000", "[[["})
        option("hidden_size", wrong, "hidden_size: expected an integer of 0 or more");
    option("input_size", "999999999999999999", "weight_ih_l0: expected shape (20, 999999999999999");
    option("proj_size", "3", "weight_hh_l0: expected shape (20, 3), got (20, 5)");
    option("proj_size", "5", "weight_hr_l0: expected an array, got none");
    option("num_layers", "0", "file: expected 0 arrays, got 8");
    option("num_layers", "1", "file: expected 4 arrays, got 8");
    option("num_layers", "3", "weight_ih_l2: expected an array, got none");
    option("num_layers", "1000000000", "num_layers: expected the layers of the file");
    option("bias", "false", "file: expected 4 arrays, got 8");
    option("bias", "1", "bias: expected true or false, got 1");
    option("bidirectional", "true", "bidirectional: expected false for a stream, got true");
    option("dtype", "float64", "dtype: expected float32, got float64");
    option("precision", "int4", "precision: expected one of float32, bfloat16, int8, got int4");
    option("precision", "float64", "precision: expected one of float32, bfloat16, int8, got float");
    const std::string name = "bias_ih_l1", renamed = "other";
    Content content = lstm();
    for (auto& item : content.tensors)
        if (item.first == name) item.first = renamed;
    refused(content.whole(), "bias_ih_l1: expected an array, got none");
    content = lstm();
    content.tensors.clear(), content.data.clear();
    refused(content.whole(), "file: expected arrays, got none");
    const std::string whole = lstm().whole();
    for (const size_t cut :
         {size_t(1), size_t(9), size_t(100), whole.size() - 80, whole.size() - 1})
        refused(whole.substr(0, cut), "expected");
    refused(whole + "x", "bytes of data, got");
}

}  // namespace

int main() {
    if (!rnnfast_isa()) {
        std::printf("%s\n", rnnfast_error());
        return 77;  // ctest's sign for a test that was skipped
    }
    path = std::string("hostile_file_test_") + rnnfast_isa() + ".safetensors";
    check_headers();
    check_tensors();
    check_options();
    return report();
}
