// What the C++ tests count: how much they checked, and how much of it failed.
#pragma once

#include <cstdio>
#include <string>

namespace rnnfast {

inline int failures = 0, checked = 0;

inline void expect(bool holds, const std::string& what) {
    ++checked;
    if (holds) return;
    ++failures;
    std::printf("FAILED %s\n", what.c_str());
}

}  // namespace rnnfast
