// Reads safetensors files, which have named arrays and strings. rnnfast/_safetensors.py describes them.
#pragma once

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace rnnfast {

// An array of a file. `begin` and `end` are its offsets in the data.
struct Tensor {
    const char* dtype;  // NumPy's name
    std::vector<int64_t> shape;
    int64_t begin, end;
};

// A file whose header has been checked. A file may be damaged, or made to do harm. So the header may have
// no further nesting and no repeated key, and no more memory is allocated than the file fills.
class Safetensors {
public:
    // Throws std::invalid_argument if the file cannot be read or is not such a file. `path` is a path that
    // std::fopen accepts.
    explicit Safetensors(const char* path);

    std::map<std::string, std::string> metadata;
    std::map<std::string, Tensor> tensors;
    int64_t bytes = 0;  // the size of the data: the arrays, one after the other

    // Reads the data. If all arrays have one dtype, they are aligned to it.
    std::unique_ptr<unsigned char[]> read();

private:
    void read_exactly(void* to, size_t length);
    void check_places();

    std::unique_ptr<std::FILE, int (*)(std::FILE*)> file_;
};

}  // namespace rnnfast
