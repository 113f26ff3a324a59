// Cells and formats by their names, as programs and saved files have them.
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

// The format that `name` names, for layers of `dtype`; none where it names the dtype. Throws
// std::invalid_argument, which says what `what` may be, where it names neither; float32 alone has
// formats.
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
