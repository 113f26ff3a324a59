// Layers and cells from the files that `layer.save` writes in Python.
#pragma once

#include <memory>
#include <vector>

#include "include/rnnfast.h"

namespace rnnfast {

struct LayerFile {
    std::unique_ptr<unsigned char[]> data;
    std::vector<rnnfast_layer> layers;  // their arrays lie in `data`
};

// Sets what of `config` the file says: all but `batch_size`, and `weights` only where it is null.
// Throws std::invalid_argument, which names the file and what is wrong, where it is none that a
// stream can run; before its arrays are read, if they are not those of its sizes.
LayerFile read_layer_file(const char* path, rnnfast_config& config);

}  // namespace rnnfast
