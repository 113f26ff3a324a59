// Reads safetensors files, which rnnfast/_safetensors.py describes: arrays by name, and strings.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace rnnfast {

// An array of a file, and where it begins and ends in the data.
struct Tensor {
    const char* dtype;  // NumPy's name
    std::vector<int64_t> shape;
    int64_t begin, end;
};

// A file with a header that has been found right. What is in it may have been damaged, or made to
// do harm: nothing nests or repeats, and no memory is asked for that the file does not fill.
class Safetensors {
public:
    // Throws std::invalid_argument where the file cannot be read, or is no such file. `path`: as
    // std::fopen takes it.
    explicit Safetensors(const char* path);

    std::map<std::string, std::string> metadata;
    std::map<std::string, Tensor> tensors;
    int64_t bytes = 0;  // of the data: the arrays, one after the other

    // The data. Arrays of one dtype are aligned to it.
    std::unique_ptr<unsigned char[]> read();

private:
    void read_exactly(void* to, size_t length);
    void check_places();

    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace rnnfast
