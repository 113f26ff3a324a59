// Reads layers and cells from the files that `layer.save` writes in Python.
#pragma once

#include <memory>
#include <vector>

#include "include/rnnfast.h"

namespace rnnfast {

struct LayerFile {
    std::unique_ptr<unsigned char[]> data;
    std::vector<rnnfast_layer> layers;  // their arrays lie in `data`
};

// Fills in `config` from the file: all fields except `batch_size`, and `weights` only if it is null. Throws
// std::invalid_argument, which names the file and the error, if the file has no layer that a stream can
// run. If the arrays do not have the layer's sizes, it throws before it reads them.
LayerFile read_layer_file(const char* path, rnnfast_config& config);

}  // namespace rnnfast
