// The names of cells and formats that programs and saved files use.
#pragma once

#include <cstddef>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>

#include "dispatch/registry.h"

namespace rnnfast {

inline constexpr const char* kCells[] = {
#define CELL(name, type) #name,
#include "core/cells.inc"
#undef CELL
};

inline constexpr const char* kFormats[] = {
#define FORMAT(name, type) #name,
#include "core/formats.inc"
#undef FORMAT
};

// The format that `name` names, for layers of `dtype`, or none if `name` is the dtype. Only float32 has
// formats. For any other name, this throws std::invalid_argument, which lists the values that `what` may
// have.
inline std::optional<FormatId> find_format(const std::string& what, const std::string& name,
                                           const std::string& dtype) {
    if (name == dtype) return {};
    std::string known = dtype;
    if (dtype == "float32") {
        for (size_t i = 0; i < std::size(kFormats); ++i) {
            if (name == kFormats[i]) return FormatId(i);
            known += std::string(", ") + kFormats[i];
        }
        known = "one of " + known;
    }
    throw std::invalid_argument(what + ": expected " + known + ", got " + name);
}

}  // namespace rnnfast
